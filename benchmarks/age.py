"""Which results are of earlier code: `python -m benchmarks.age` lists them, with the command that makes each anew."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import tyro

from common.commands.shell import guard
from common.errors import UserError
from parity_tests.results import RESULTS, ROOT

PRODUCT = ("common", "torch_impl", "flax_impl")
BENCHMARKS = ("benchmarks", ":(exclude)benchmarks/results")
PROOF = (*PRODUCT, "parity", "parity_tests/sides.py", "parity_tests/together.py")


@dataclass(frozen=True)
class Origin:
    """Where a result comes from.

    Attributes:
        command: that makes it.
        code: folders and files that decide what it says, as git takes them.
    """

    command: str
    code: tuple[str, ...]


# By a file's name; the first that fits.
ORIGINS = {
    "accuracy.json": Origin("make results ARGS=--again", PRODUCT),
    "ablation-*.json": Origin("make ablation", (*PRODUCT, "benchmarks/ablation.py")),
    "bench-growth.json": Origin("make growth", (*PRODUCT, *BENCHMARKS)),
    "bench-*.json": Origin("make bench", (*PRODUCT, *BENCHMARKS)),
    "curve-*.json": Origin("make test-full", (*PROOF, "parity_tests/curves.py")),
    "dropout-*.json": Origin(
        ".venv/bin/python -m benchmarks.dropout", ("torch_impl/dropout.py", "benchmarks/dropout.py")
    ),
    "exercises-*.json": Origin("make break ARGS=--curves", (*PROOF, "parity_tests/mutants.py", "study/break_it.py")),
    "fuzz.json": Origin("make fuzz", (*PRODUCT, "stress/fuzz.py")),
    "input-*.json": Origin(".venv/bin/python -m benchmarks.input", ("common/data", "benchmarks/input.py")),
    "memory-*.json": Origin(".venv/bin/python -m benchmarks.memory", (*PRODUCT, "study", "benchmarks/memory.py")),
    "mutants-*.json": Origin("make mutants", (*PROOF, "parity_tests/mutants.py", "parity_tests/planted.py")),
    "mutation.json": Origin("make mutate", ()),  # each file in it has a commit of its own
    "pairs-*.json": Origin(".venv/bin/python -m benchmarks.pairs RECIPE --again", PRODUCT),
    "parity-*.json": Origin("make parity", (*PROOF, "parity_tests/table.py")),
    "photos-*.json": Origin(".venv/bin/python -m benchmarks.photos", (*PRODUCT, "benchmarks/photos.py")),
    "programs-*.json": Origin(".venv/bin/python -m parity_tests.programs", ("flax_impl", "common/arch")),
    "soak-*.json": Origin("make soak", (*PRODUCT, "stress/soak.py")),
}


def origin(name: str) -> Origin:
    """What a file of results comes from.

    Raises:
        UserError: nobody says.
    """
    for pattern, found in ORIGINS.items():
        if fnmatch(name, pattern):
            return found
    raise UserError(f"benchmarks/age.py does not say what {name} comes from: enter it in ORIGINS.")


def commits(name: str, content: Any) -> Iterator[tuple[str, tuple[str, ...], str | None]]:
    """The parts of a result that have a commit of their own: what they are, the code that they are of, the commit."""
    code = origin(name).code
    if name == "mutation.json":
        for file, found in content["files"].items():
            yield file, (file,), found["commit"]
    elif isinstance(content, list):
        for row in content:
            yield f"{row['recipe']} in {row['framework']}, seed {row['seed']}", code, row["commit"]
    else:
        yield "", code, content.get("commit")


def since(commit: str | None, code: tuple[str, ...], root: Path = ROOT) -> str:
    """How old a result is: empty where its code has not changed since.

    Args:
        commit: that it is of, with "+changes" behind where files differed from it.
        code: paths below `root`, a checkout.
    """
    if not commit:
        return "does not say of which commit it is"
    name, _, changed = commit.partition("+")
    git = ["git", "-C", str(root)]
    listed = subprocess.run(
        [*git, "rev-list", "--count", f"{name}..HEAD", "--", *code], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        return f"is of {name[:8]}, which this checkout does not know"
    count = int(listed.stdout)
    if not count:
        return f"is of {name[:8]} with changes that were not committed" if changed else ""
    named = ", ".join(path for path in code if not path.startswith(":"))
    return f"is of {name[:8]}; {named} changed in {count} commit{'s' * (count > 1)} since"


@dataclass(frozen=True)
class Options:
    """List the results that are of earlier code than this, and the commands that make them anew.

    Attributes:
        folder: of the results.
    """

    folder: Path = RESULTS


def main() -> None:
    """List them."""
    files = sorted(tyro.cli(Options, prog="python -m benchmarks.age").folder.glob("*.json"))
    old = 0
    for file in files:
        found: dict[str, list[str]] = {}
        for part, code, commit in commits(file.name, json.loads(file.read_text("utf-8"))):
            if said := since(commit, code):
                found.setdefault(said, []).append(part)
        old += bool(found)
        for said, parts in found.items():
            told = f" ({', '.join(parts)})" if any(parts) else ""
            print(f"{file.name}{told} {said}: {origin(file.name).command}")
    print(f"{len(files) - old} of {len(files)} files of results are of the code as it is.")


if __name__ == "__main__":
    guard(main)
