"""One page that says what a training on somebody's pictures came to, and leads to all that it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from common.reports.evaluation import ClassScores
from common.runs.files import in_units, size_of, write_text
from common.runs.scores import percent

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.result { font-size: 1.15rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8886; text-align: right; }
th:first-child, td:first-child, .files td:last-child { text-align: left; }
.scores tr:last-child td { font-weight: 600; }
figure { margin: 1rem 0; } figcaption { opacity: .8; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { padding: .8rem 1rem; overflow-x: auto; background: #8882; border-radius: 4px; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Page:
    """What is on it; paths are told from the folder in which it lies.

    Attributes:
        title: above all.
        result: what came of it, in a sentence or two.
        facts: what it was trained on and how, by name.
        scores: of each class, and last their mean.
        pictures: the words below each, by its path.
        files: what each is, by its path.
        commands: what each does, by the words to type.
    """

    title: str
    result: str
    facts: Mapping[str, str]
    scores: Sequence[ClassScores]
    pictures: Mapping[str, str]
    files: Mapping[str, str]
    commands: Mapping[str, str]


def write_page(path: Path, page: Page) -> None:
    """Write it as one file of HTML without scripts, which shows the pictures that lie beside it."""
    folder, title = path.parent, escape(page.title)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>\n" for name, fact in page.facts.items())
    pictures = "".join(
        f'<figure><img src="{_link(name)}" alt="{escape(words)}"><figcaption>{escape(words)}</figcaption></figure>\n'
        for name, words in page.pictures.items()
    )
    files = "".join(
        f'<tr><td><a href="{_link(name)}">{escape(name)}</a></td><td>{in_units(size_of(folder / name))}</td>'
        f"<td>{escape(words)}</td></tr>\n"
        for name, words in page.files.items()
    )
    commands = "".join(
        f"<p>{escape(words)}</p>\n<pre>{escape(command)}</pre>\n" for command, words in page.commands.items()
    )
    write_text(
        path,
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="result">{escape(page.result)}</p>\n'
        f"<h2>Class by class</h2>\n{_table(page.scores)}{pictures}"
        f"<h2>How it was trained</h2>\n<dl>\n{facts}</dl>\n"
        f"<h2>What next</h2>\n{commands}"
        f'<h2>Files</h2>\n<div class="wide"><table class="files">\n{files}</table></div>\n</body>\n</html>\n',
    )


def _table(scores: Sequence[ClassScores]) -> str:
    rows = "".join(
        f"<tr><td>{escape(each.name)}</td><td>{percent(each.precision)}</td><td>{percent(each.recall)}</td>"
        f"<td>{percent(each.f1)}</td><td>{each.examples:,}</td></tr>\n"
        for each in scores
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "precision", "recall", "F1", "pictures"))
    return f'<div class="wide"><table class="scores">\n<tr>{head}</tr>\n{rows}</table></div>\n'


def _link(name: str) -> str:
    return escape(quote(name))
