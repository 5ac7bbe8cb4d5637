"""What README and the pages in docs say is so: each command, snippet, link, path and name, as it is written.

A command that trains, downloads or measures is not run, but parsed by its own command line, in a process of its own.
"""

from __future__ import annotations

import argparse
import ast
import functools
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
import tyro

from benchmarks.settings import SUITES
from common.arch import zoo as archs
from common.arch.zoo import get_arch
from common.data.spec import DATASETS
from common.recipes import zoo
from common.recipes.own import load_file
from common.recipes.zoo import RECIPES, get_recipe
from parity_tests.results import ROOT

FILES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"  # whose code test_notebook.py runs
PAGES = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in FILES} | {
    str(NOTEBOOK.relative_to(ROOT)): "\n\n".join(
        "".join(cell["source"])
        for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
    )
}
# What extend.md says holds once its lines are written: test_extend.py does so in a copy.
COMPLETE = sorted(PAGES.keys() - {"docs/extend.md"})
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOMS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
PAIRED = {path.stem for room in ("torch_impl", "flax_impl") for path in (ROOT / room).glob("*.py")}
MOST_LINES = 160  # of README

LANGUAGES = {"sh", "bash", "yaml", "python", "diff", "text"}
PROGRAMS = {"make", "python", "python3", "pip", "torchrun", "srun", "bash"}  # a name in backticks that starts a command
# Commands without options: what their words may be.
WORDS: dict[str, Mapping[str, Any]] = {
    "benchmarks.bench": SUITES,
    "benchmarks.bench_gpu": {},
    "benchmarks.gpu_run": {},
    "benchmarks.growth": SUITES,
    "benchmarks.packed": DATASETS,
    "stress.fuzz": {},
}
ENVIRONMENT = {"JAX_ENABLE_COMPILATION_CACHE", "XLA_PYTHON_CLIENT_PREALLOCATE"}  # variables that others read
LOOKUPS = {"recipe": get_recipe, "arch": get_arch}  # words that a command looks up after it has parsed them

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OWN = re.compile(r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # a file that a page writes
Call = list[str]  # a module, and its arguments


def blocks(text: str, *languages: str) -> list[str]:
    return [block for language, block in BLOCK.findall(text) if language in languages]


def spans(text: str) -> list[str]:
    """What stands in single backticks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


def commands(text: str) -> list[str]:
    """Every command of a page: in blocks, in backticks, and before the output it gave."""
    found = [span for span in spans(text) if " " in span and Path(span.split()[0]).name in PROGRAMS]
    for block in blocks(text, "sh", "bash"):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line for line in lines if line.strip() and not line.startswith("#")]
    for block in blocks(text, "yaml"):
        found += [line.strip().removeprefix("- ") for line in block.splitlines() if re.search(r"\bpython", line)]
    return found + [line[2:] for block in blocks(text, "text") for line in block.splitlines() if line.startswith("$ ")]


def calls(command: str) -> list[Call]:
    """The modules of this project that a command runs; dots that stand for anything are filled in.

    Raises:
        ValueError: it is of no kind that is known here, or make or pip would refuse it.
    """
    if loop := re.fullmatch(r"for (\w+) in (\S+) .*; do (.*); done", command):
        return calls(loop[3].replace(f"${loop[1]}", loop[2]))
    filled = re.sub(r"\s*\.\.\.", "", re.sub(r"(?<=[^\s\"])\.\.\.", "x", command))
    words = shlex.split(filled)
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] == "exec"):
        words.pop(0)
    match words:
        case ["make", *rest]:
            return made(rest)
        case [".venv/bin/python" | "python3", "-m", "pip", "install", *rest]:
            return installed(rest)
        case [".venv/bin/python" | ".venv-onnx/bin/python", "-m", module, *rest] if module.split(".")[0] in ROOMS:
            return [[module, *rest]]
        case [".venv/bin/torchrun", *rest]:
            return [["torch.distributed.run", *rest]]
        case ["bash", "-c", script] | ["srun", "bash", "-c", script]:
            return calls(script)
        case ["export", *_]:
            return []
    raise ValueError(f"{command!r} is no command that is known here, or works in an activated environment alone")


def made(words: Sequence[str]) -> list[Call]:
    """What make would run of this project.

    Raises:
        ValueError: there is no such target, or it does not use what is set.
    """
    targets, settings = ([word for word in words if ("=" in word) == setting] for setting in (False, True))
    unknown = set(targets) - set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    if unknown or not targets:
        raise ValueError(f"make has no target {', '.join(unknown)}")
    done = dry(*words)
    if done.returncode:
        raise ValueError(done.stderr)
    for setting in settings:
        name = setting.partition("=")[0]
        if dry(*(word for word in words if word != setting), f"{name}=").stdout == done.stdout:
            raise ValueError(f"make {' '.join(targets)} does not use {name}")
    lines = done.stdout.replace("\\\n", " ").splitlines()
    ours = re.compile(rf"\.venv(-onnx)?/bin/python -m +({'|'.join(ROOMS)})\b")
    return [call for line in lines if ours.match(line) for call in calls(line)]


@functools.cache
def dry(*words: str) -> subprocess.CompletedProcess[str]:
    """What make says that it would do; it is told nothing by the make that runs the tests."""
    command, alone = ["make", "--no-print-directory", "-n", *words], {"PATH": os.environ["PATH"]}
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True)


def installed(words: Sequence[str]) -> list[Call]:
    """Nothing that is run; `ValueError` for an extra or a file that there is not."""
    extras = {extra for word in words for found in re.findall(r"\[(.*)\]", word) for extra in found.split(",")}
    missing = extras - set(PROJECT["project"]["optional-dependencies"])
    missing |= {word for word in words if re.search(r"\.(lock|txt)$", word) and not (ROOT / word).is_file()}
    if missing:
        raise ValueError(f"pip would not find {', '.join(missing)}")
    return []


class Parsed(BaseException):
    """A command line is read, and what follows is left out."""


def parse(call: Call) -> tuple[bool, str]:
    """Start a module as a command, up to where it has read its arguments; whether it came there, and what it said."""
    module, *arguments = call
    if module == "torch.distributed.run":
        from torch.distributed.run import parse_args

        options = parse_args(arguments)
        return parse([options.training_script, *options.training_script_args])
    if module in WORDS:
        return look_up(module, arguments)
    said = io.StringIO()
    plain = argparse.ArgumentParser.parse_args if module == "parity" else None  # which is to need no other library
    with (
        mock.patch("tyro.cli", functools.partial(read_alone, tyro.cli)),
        mock.patch("sys.argv", call),
        mock.patch("argparse.ArgumentParser.parse_args", functools.partialmethod(read_plainly, plain))
        if plain
        else nullcontext(),
    ):
        try:
            with redirect_stdout(said), redirect_stderr(said):
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Parsed:
            launched = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
            return parse(launched) if launched else (True, "")
        except (SystemExit, ImportError) as error:
            return "--help" in arguments and error.args == (0,), f"{said.getvalue()} {error}"
    return False, f"{module} reads no command line"


def read_alone(cli: Callable[..., Any], kind: Any, *args: Any, **options: Any) -> None:
    """In place of `tyro.cli`: read the command line, refuse what the command would refuse at once, and end there."""
    read = cli(kind, *args, **options)
    for part in (read, *vars(read).values()):
        if hasattr(part, "check"):
            part.check()
    named = {name: value for name in LOOKUPS if isinstance(value := getattr(read, name, None), str)}
    if named:
        load_file(getattr(read, "recipe_file", None))
    for name, value in named.items():
        LOOKUPS[name](value)
    raise Parsed


def read_plainly(parser: argparse.ArgumentParser, read: Callable[..., Any], arguments: Any = None) -> None:
    """The same in place of `parse_args`."""
    read(parser, arguments)
    raise Parsed


def look_up(module: str, arguments: Sequence[str]) -> tuple[bool, str]:
    """The same for a command without options."""
    source = ROOT / f"{module.replace('.', '/')}.py"
    if "__main__" not in source.read_text("utf-8"):
        return False, f"{module} is no command"
    unknown = [word for word in arguments if word not in WORDS[module]]
    return not unknown, f"{module} does not know {', '.join(unknown)}"


def attempt(snippet: str) -> tuple[bool, str]:
    """Whether a snippet runs, and what it printed or raised."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            exec(compile(snippet, "snippet", "exec"), {"__name__": "__main__"})
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    return True, said.getvalue()


def work() -> None:
    """Answer for the tests, in a process of its own: how the snippets and calls on stdin end, and what options say."""
    given = json.load(sys.stdin)
    found = {snippet: attempt(snippet) for snippet in given["snippets"]}
    with TemporaryDirectory() as folder:
        for name, text in given["files"].items():
            Path(folder, name).write_text(text, "utf-8")
        for call in given["calls"]:
            if shlex.join(call) not in found:
                with mock.patch.dict(RECIPES), mock.patch.dict(zoo.ABOUT), mock.patch.dict(archs.OWN):
                    found[shlex.join(call)] = parse([f"{folder}/{w}" if w in given["files"] else w for w in call])
    helped = {module for module, *_ in given["calls"]} - WORDS.keys() - {"torch.distributed.run"}
    options = {option for module in helped for option in re.findall(r"--[a-z][\w.-]*", parse([module, "--help"])[1])}
    json.dump({"found": found, "options": sorted(options)}, sys.stdout)


class Answers:
    """What a process of its own has found, by snippet and by call, and every option that a command has."""

    def __init__(self, texts: Sequence[str]) -> None:
        asked: list[Call] = []
        for command in (command for text in texts for command in commands(text)):
            with suppress(ValueError):
                asked += calls(command)
        snippets = [snippet for text in texts for snippet in blocks(text, "python")]
        files = dict(found for text in texts for found in OWN.findall(text))
        code, question = (
            f"from {__name__} import work; work()",
            json.dumps({"snippets": snippets, "calls": asked, "files": files}),
        )
        process = [sys.executable, "-c", code]
        done = subprocess.run(process, cwd=ROOT, input=question, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        self.found: dict[str, tuple[bool, str]] = answer["found"]
        self.options: set[str] = set(answer["options"])

    def wrong(self, text: str) -> Iterator[str]:
        """What is wrong with a page's commands, snippets and options."""
        for command in commands(text):
            try:
                asked = [shlex.join(call) for call in calls(command)]
            except ValueError as error:
                yield str(error)
                continue
            yield from (f"{said} in {command}" for good, said in map(self.found.__getitem__, asked) if not good)
        for snippet in blocks(text, "python"):
            good, said = self.found[snippet]
            if not good:
                yield f"{said} in\n{snippet}"
        alone = [span for span in spans(text) if re.match(r"--|[A-Z_]+=", span)]
        named = {option for span in alone for option in re.findall(r"--[a-z][\w.-]*", span)}
        yield from (f"no command has {option}" for option in named - self.options)
        variables = {span.partition("=")[0] for span in alone if not span.startswith("--")} - ENVIRONMENT
        yield from (f"make does not use {name}" for name in variables if f"$({name})" not in MAKEFILE)


UNKNOWN = "Unrecognized options: --epoks"
FAULTS = {
    "a target": ("`make train-tensorflow`", "make has no target train-tensorflow"),
    "a variable": ("`make parity RUN=runs/...`", "make parity does not use RUN"),
    "an option through make": ('```sh\nmake train-torch ARGS="--epoks 5"\n```', UNKNOWN),
    "a recipe": ("```text\n$ make train-flax RECIPE=cifar11\n```", "no recipe 'cifar11'"),
    "an architecture": ("`make summary ARCH=alexnet_2021`", "no architecture 'alexnet_2021'"),
    "an option": ("```sh\n.venv/bin/python -m torch_impl.train digits \\\n    --epoks 5\n```", UNKNOWN),
    "a value": (
        "`.venv/bin/python -m flax_impl.train digits --epochs five`",
        "invalid literal for int() with base 10: 'five'",
    ),
    "a value that no run has": ("`.venv/bin/python -m flax_impl.train digits --epochs 0`", "epochs is 0"),
    "an option of evaluation": (
        "`.venv/bin/python -m torch_impl.evaluate runs/... --eleven-crop`",
        "Unrecognized options: --eleven-crop",
    ),
    "a module": ("`.venv/bin/python -m common.launched --processes 2`", "common.launched"),
    "a module that is no command": ("`.venv/bin/python -m common.errors`", "reads no command line"),
    "what is launched": (
        "`.venv/bin/python -m common.commands.launch --processes 2 -- torch_impl.train digits --epoks 5`",
        UNKNOWN,
    ),
    "what torchrun runs": ("`.venv/bin/torchrun --nproc-per-node 2 -m torch_impl.train digitz`", "no recipe 'digitz'"),
    "what a scheduler runs": (
        "```bash\nsrun bash -c 'RANK=$SLURM_PROCID exec .venv/bin/python -m torch_impl.train --epoks 5'\n```",
        UNKNOWN,
    ),
    "what a container runs": ("```yaml\n- exec .venv/bin/python -m torch_impl.train digits --epoks 5\n```", UNKNOWN),
    "an activated environment": ("`python -m torch_impl.train digits`", "activated environment"),
    "an unknown command": ("```sh\nrm -rf runs\n```", "no command that is known here"),
    "an extra": ("`python3 -m pip install -e '.[tensorflow]'`", "would not find tensorflow"),
    "a snippet": ("```python\nfrom parity import compare_walk\n```", "cannot import name 'compare_walk'"),
    "an option in prose": ("`--ten-corp`", "no command has --ten-corp"),
    "an option for make": ('`ARGS="--ten-corp"`', "no command has --ten-corp"),
    "a variable in prose": ("`IMAGES=cat.jpg`", "make does not use IMAGES"),
}


@pytest.fixture(scope="module")
def answers() -> Answers:
    """About all pages and all planted faults, in one process, since imports take the most time."""
    return Answers([*(PAGES[page] for page in COMPLETE), *(text for text, _ in FAULTS.values())])


@pytest.mark.parametrize("page", COMPLETE)
def test_commands_and_snippets_are_right(page: str, answers: Answers) -> None:
    assert not list(answers.wrong(PAGES[page]))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_one_is_found(fault: str, answers: Answers) -> None:
    text, complaint = FAULTS[fault]
    [wrong] = answers.wrong(text)
    assert complaint in " ".join(wrong.split())


def test_the_model_of_scaling_prints_its_table(answers: Answers) -> None:
    text = PAGES["docs/distributed.md"]
    [snippet] = blocks(text, "python")
    rows = re.findall(r"^\| (\d+) \| [\d.]+ \| ([\d.]+) \|", text, re.MULTILINE)
    assert answers.found[snippet][1].splitlines() == [" ".join(row) for row in rows] != []


def test_make_help_names_what_the_pages_name() -> None:
    """It is run; each target that it lists is on a page."""
    done = subprocess.run(["make", "help"], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    named = {word for text in PAGES.values() for line in commands(text) for word in line.split()}
    assert {"help", "train-torch", "test"} <= listed
    assert listed <= named


def wrong_links(page: str, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text)):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            wrong.append(link)
    return wrong


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def wrong_names(text: str) -> list[str]:
    """The names in backticks that are written like files or modules of this project, and are none."""
    own = {name for name, _ in OWN.findall(text)}
    return [span for span in spans(text) if span not in own and not (is_real_path(span) and is_real_module(span))]


def is_real_path(span: str) -> bool:
    """Whether a span that is written like a path of this project is one; true of all others."""
    if not re.fullmatch(r"[\w.*/-]+", span):
        return True
    if span.split("/")[0] in {*ROOMS, "docs", ".ci"} and "/" in span:
        return any(ROOT.glob(span.rstrip("/")))
    if span.endswith(".py"):
        return "/" not in span and any(any((ROOT / room).rglob(span)) for room in ROOMS)
    return True


def is_real_module(span: str) -> bool:
    """The same of a module or what is in one; `train.update` is in one framework's package, or in both."""
    first, *rest = span.split(".")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", span) or rest[-1] in ("py", "json", "safetensors", "onnx"):
        return True
    if first in ROOMS:
        return is_defined(ROOT, span)
    if first not in PAIRED:
        return True
    return is_field(span) or any(is_defined(ROOT / room, span) for room in ("torch_impl", "flax_impl"))


def is_field(span: str) -> bool:
    try:
        attrgetter(span)(RECIPES["digits"])
    except AttributeError:
        return False
    return True


def is_defined(folder: Path, dotted: str) -> bool:
    """Whether a dotted name, from a folder on, is a package, a module or something that a module defines."""
    names = dotted.split(".")
    while names and (folder / names[0]).is_dir():
        folder /= names.pop(0)
    file = folder / (f"{names.pop(0)}.py" if names and (folder / f"{names[0]}.py").is_file() else "__init__.py")
    if not file.is_file():
        return False
    defined = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.alias) and file.name == "__init__.py":
            defined.add(node.asname or node.name)
    return set(names) <= defined


def wrong_blocks(text: str) -> list[str]:
    """Fenced blocks that do not say what they hold, or do not end."""
    fences = re.findall(r"^\s*```.*$", text, re.MULTILINE)
    wrong = [language or "no language" for language, _ in BLOCK.findall(text) if language not in LANGUAGES]
    return wrong + ["a fence too many"] * (len(fences) != 2 * len(BLOCK.findall(text)))


@pytest.mark.parametrize("page", PAGES)
def test_links_names_and_blocks_are_right(page: str) -> None:
    assert not wrong_links(page, PAGES[page])
    assert not wrong_names(PAGES[page])
    assert not wrong_blocks(PAGES[page])


@pytest.mark.parametrize(
    "name",
    [
        "common/arch.py",
        "benchmarks/results/curves-*.json",
        "arches.py",
        "comon/arch/zoo.py",
        "common.launch",
        "common.arch.zoo.get_arc",
        "parity_tests.study",
        "train.accumulate",
        "convert.optimizer_to_torch",
        "preprocess.padding",
    ],
)
def test_a_wrong_name_is_found(name: str) -> None:
    assert wrong_names(f"see `{name}`") == [name]


@pytest.mark.parametrize("link", ["docs/evolution.md", "docs/evaluation.md#predictions", "#licenses", "study.md"])
def test_a_wrong_link_is_found(link: str) -> None:
    assert wrong_links("README.md", f"{PAGES['README.md']}\n[more]({link})") == [link]


@pytest.mark.parametrize("block", ["```\nmake test\n```\n", "```console\n$ make\n```\n", "```sh\nmake test\n"])
def test_a_block_that_does_not_say_what_it_holds_is_found(block: str) -> None:
    assert wrong_blocks(block)


def test_readme_fits_a_head() -> None:
    assert len(PAGES["README.md"].splitlines()) <= MOST_LINES


def test_the_picture_of_the_layout_is_true() -> None:
    """It shows every room, and `common`'s in the order in which the contract lets them import."""
    [picture] = blocks(PAGES["README.md"].partition("## Layout")[2], "text")
    *shown, chain = re.findall(r"[a-z_]+/(?: -> [a-z_]+/)*", picture)
    assert sorted(name.rstrip("/") for name in shown) == ROOMS
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract.get("containers") == ["common"]]
    rooms = [layer for layer in layers if (ROOT / "common" / layer).is_dir()]
    assert chain.replace("/", "").split(" -> ") == rooms
