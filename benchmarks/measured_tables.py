"""The tables of README and docs that say what the recipes come to, written from what is below benchmarks/results.

`python -m benchmarks.measured_tables` fills the last column of the tables of recipes, writes docs/results.md and the
table of photographs in docs/data.md. No figure in them is typed: a test writes them again and finds them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro

from benchmarks import photos
from benchmarks.measured import FILE, is_whole, read, spread
from benchmarks.pairs import by_seed, difference
from common.commands.photos import FOLDER
from common.commands.shell import guard
from common.frameworks import FRAMEWORKS
from common.recipes.zoo import RECIPES
from common.runs.files import write_text
from parity_tests.results import RESULTS, ROOT

PAGES = ("README.md", "docs/recipes.md")  # with a table of recipes, whose last column is `HEAD`
HEAD = "measured here"
NONE = "not measured"
OWN = {name for name, recipe in RECIPES.items() if recipe.dataset.startswith(FOLDER)}  # of pictures that others have
RESULTS_PAGE = "docs/results.md"
PHOTOS_PAGE = "docs/data.md"
INTRODUCTION = """\
# Results

What the recipes come to on the test split after their last epoch, whole runs by the ordinary commands. This page is
written from `benchmarks/results/accuracy.json`, where each run's accuracy after every epoch, its settings, versions,
commit and hash of the batches are. `make results` trains what is not filed yet (`make results ARGS=--show` says what
that is), `make results-table` writes this page and the columns "measured here", and `make results-check` lists the
results, these and others, that are of earlier code.

Seeds differ in the order of examples, in augmentation, dropout and initial weights; the two frameworks draw their
initial weights on their own, so that equal seeds differ by more than rounding. Several runs are given by their mean
and sample standard deviation. "(JPEG)" marks data that lies here as JPEG re-encodings of the published images. Other
jobs ran beside most runs, so their seconds are no benchmark ([speed](performance.md)).
"""

PAIRS = """
## Does it matter which framework trains?

Pairs of whole runs: in each, both frameworks start from the same initial weights and see the same batches and draws;
seeds differ between pairs. Means are of the final test accuracy, with the sample's standard deviation.
`.venv/bin/python -m benchmarks.pairs digits` trains and files them.
"""

Row = dict[str, Any]


def score(rows: Sequence[Row]) -> str:
    """Accuracy of runs that differ by their seed; of a single one, how far it came if that is not its end."""
    alone = len(rows) == 1 and not is_whole(rows[0])
    after = f" after {rows[0]['epochs']} of {rows[0]['of_epochs']} epochs" if alone else ""
    return spread([100 * row["test_accuracy"][-1] for row in rows]) + after


def alike(row: Row) -> tuple[Any, ...]:
    """What runs that are averaged share, in the order of the tables."""
    order = list(RECIPES)
    place = order.index(row["recipe"]) if row["recipe"] in order else len(order)
    number = list(FRAMEWORKS).index(row["framework"])
    return place, row["recipe"], row["changes"], row["gpu"], not is_whole(row), row["epochs"], number


def groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Runs that differ by their seed alone."""
    for _, same in groupby(sorted(rows, key=lambda row: (*alike(row), row["seed"])), alike):
        yield list(same)


def cell(recipe: str, rows: Sequence[Row]) -> str:
    """What the tables of recipes say of one: whole runs where there are any."""
    of = [row for row in rows if row["recipe"] == recipe]
    if any(map(is_whole, of)):
        of = [row for row in of if is_whole(row)]
    said = []
    for same in groups(of):
        marks = [" ".join(same[0]["changes"])] if same[0]["changes"] else []
        marks += ["GPU"] if same[0]["gpu"] else []
        said.append(
            f"{FRAMEWORKS[same[0]['framework']].title} {score(same)}" + (f" ({', '.join(marks)})" * bool(marks))
        )
    return "; ".join(said) or NONE


def fill(page: str, rows: Sequence[Row]) -> str:
    """A page with its tables' last column filled, in tables whose last column is `HEAD`, but for the rows of `OWN`."""
    lines, inside = page.split("\n"), False
    for number, line in enumerate(lines):
        if line.rstrip().endswith(f"| {HEAD} |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and (names := re.findall(r"`([a-z0-9_]+)`", line.split("|")[1])) and not OWN & set(names):
            kept = line.rstrip()[:-1].rpartition("|")[0]
            cells = [cell(name, rows) for name in names]
            said = (
                cells[0]
                if len(set(cells)) == 1
                else "; ".join(f"`{n}`: {c}" for n, c in zip(names, cells, strict=True))
            )
            lines[number] = f"{kept}| {said} |"
    return "\n".join(lines)


def pairs_section(folder: Path) -> str:
    """What pairs of runs from equal weights say; empty where none are filed."""
    lines = []
    for file in sorted(folder.glob("pairs-*.json")):
        rows = read(file)
        means = zip(FRAMEWORKS.values(), by_seed(rows), strict=True)
        told = ", ".join(
            f"{about.title} {100 * mean(scores):.2f} ± {100 * stdev(scores):.2f} %" for about, scores in means
        )
        recipe, devices = rows[0]["recipe"], sorted({row["device"] for row in rows})
        lines.append(f"- `{recipe}`: {told}. {difference(*by_seed(rows)).verdict()} On {'; '.join(devices)}.")
    return "\n".join([PAIRS, *lines, ""]) if lines else ""


def results_page(rows: Sequence[Row], folder: Path) -> str:
    """docs/results.md: a summary, what pairs say, and every run."""
    summary = ["| recipe | data | framework | test accuracy | precision | device |", "|---|---|---|---|---|---|"]
    for same in groups(rows):
        first = same[0]
        name = " ".join([f"`{first['recipe']}`", *(f"`{word}`" for word in first["changes"])])
        title, precision = FRAMEWORKS[first["framework"]].title, first["settings"].get("precision", "float32")
        summary.append(f"| {name} | {first['data']} | {title} | {score(same)} | {precision} | {first['device']} |")
    runs = ["| recipe | framework | seed | epochs | test accuracy | best epoch | seconds | commit |", "|" + "---|" * 8]
    for row in (row for same in groups(rows) for row in same):
        accuracies = row["test_accuracy"]
        best = max(range(len(accuracies)), key=accuracies.__getitem__)
        words = [f"`{row['recipe']}`", FRAMEWORKS[row["framework"]].title, row["seed"]]
        words += [f"{row['epochs']} of {row['of_epochs']}", f"{accuracies[-1]:.4f}"]
        words += [
            f"{accuracies[best]:.4f} ({best + 1})",
            f"{row['train_seconds']:,.0f}",
            f"`{(row['commit'] or '-')[:8]}`",
        ]
        runs.append(f"| {' | '.join(map(str, words))} |")
    versions = sorted({", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows})
    parts = [INTRODUCTION, "\n".join(summary), pairs_section(folder) + "\n## Every run\n"]
    parts.append(
        "The best epoch is chosen on the test split, so it is no fair estimate, and only here for comparison.\n"
    )
    parts += ["\n".join(runs), f"\nVersions: {'; '.join(versions)}.\n"]
    return "\n".join(parts)


def pages(root: Path, rows: Sequence[Row], folder: Path = RESULTS) -> dict[str, str]:
    """Every page that has such figures, as it must be; `folder` has the pairs."""
    filled = {name: fill((root / name).read_text("utf-8"), rows) for name in PAGES}
    filled[PHOTOS_PAGE] = photos.fill((root / PHOTOS_PAGE).read_text("utf-8"), read(photos.FILE))
    return filled | {RESULTS_PAGE: results_page(rows, folder)}


@dataclass(frozen=True)
class Options:
    """Write the tables of README and docs that say what the recipes come to.

    Attributes:
        file: that says so.
    """

    file: Path = FILE


def main() -> None:
    """Write them."""
    options = tyro.cli(Options, prog="python -m benchmarks.measured_tables")
    for name, text in pages(ROOT, read(options.file)).items():
        path = ROOT / name
        if not path.exists() or path.read_text("utf-8") != text:
            write_text(path, text)
            print(f"{name} is written anew")


if __name__ == "__main__":
    guard(main)
