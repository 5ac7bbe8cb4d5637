"""What each part of AlexNet is worth: the same recipe with one thing changed, several seeds, both frameworks.

`python -m benchmarks.ablation digits --seeds 0 1 2` trains every row one after the other and writes
benchmarks/results/ablation-RECIPE.json and .md after each run, so that an interrupted table keeps what it has.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import tyro

from common.arch.zoo import ABLATIONS
from common.commands.shell import guard
from common.errors import UserError, lookup
from common.frameworks import Framework
from common.recipes import own
from common.recipes.spec import Recipe
from common.runs.files import write_text
from common.runs.folder import RunFolder
from parity_tests import results
from parity_tests.results import RESULTS

# The techniques of the recipe, one at a time, beside the networks of `ABLATIONS`.
TECHNIQUES: dict[str, tuple[str, ...]] = {
    "label smoothing": ("--label-smoothing", "0.1"),
    "MixUp": ("--mix.mixup", "0.2"),
    "CutMix": ("--mix.cutmix", "1.0"),
    "cosine": ("--schedule.name", "cosine", "--schedule.milestones"),
    "kernels alone decay": ("--optimizer.no-decay-biases",),
    "bfloat16": ("--precision", "bfloat16"),
}


@dataclass(frozen=True)
class Options:
    """Train the rows of an ablation table.

    Attributes:
        recipe: that every row changes (default: digits, or the recipe file's).
        seeds: of each row.
        frameworks: to train in.
        epochs: in place of the recipe's.
        rows: only these, by their names in the table (default: all).
        recipe_file: a Python file with recipes and architectures of your own, which the recipe may be of.
    """

    recipe: Annotated[str | None, tyro.conf.Positional] = None
    seeds: tuple[int, ...] = (0, 1, 2)
    frameworks: tuple[Framework, ...] = ("torch", "flax")
    epochs: int | None = None
    rows: tuple[str, ...] = ()
    recipe_file: Path | None = None


def rows(recipe: Recipe, chosen: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each row's name, and the words that change the recipe.

    Args:
        recipe: that is changed.
        chosen: the rows that are wanted; all, if there are none.

    Raises:
        UserError: there is no row of such a name.
    """
    table: dict[str, tuple[str, ...]] = {"as it is": ()}
    if recipe.arch == "alexnet_cifar":
        table |= {name: ("--arch", name) for name in ABLATIONS}
    table |= TECHNIQUES
    return {name: lookup(table, name, "row") for name in chosen} or table


def train(options: Options, recipe: Recipe, framework: Framework, seed: int, words: tuple[str, ...]) -> dict[str, Any]:
    """Train one run and return its final test accuracy and where it ran.

    Raises:
        UserError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        changes = [*words, "--seed", str(seed), "--out", str(out)]
        changes += ["--epochs", str(options.epochs)] if options.epochs else []
        changes += ["--recipe-file", str(options.recipe_file)] if options.recipe_file else []
        command = [sys.executable, "-m", f"{framework}_impl.train", recipe.name, *changes]
        if code := subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"Training with {framework}_impl failed, exit code {code}; see above.")
        run = RunFolder.open(out)
        last = [row for row in run.metrics() if row["split"] == "test"][-1]
        place = {"device": run.manifest["device"], "versions": run.manifest["versions"]}
        return {"seed": seed, "epochs": run.recipe.epochs, "accuracy": last["accuracy"], "loss": last["loss"], **place}


def write(recipe: Recipe, found: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Write the runs so far as JSON, and their means and spreads as Markdown."""
    stem = RESULTS / f"ablation-{recipe.name}"
    results.file(stem.with_suffix(".json"), {"recipe": recipe.name, "rows": found})
    lines = ["| row | framework | runs | mean test accuracy | standard deviation |", "|---|---|---|---|---|"]
    for name, frameworks in found.items():
        for framework, runs in frameworks.items():
            scores = [run["accuracy"] for run in runs]
            spread = f"{stdev(scores):.4f}" if len(scores) > 1 else ""
            lines.append(f"| {name} | {framework} | {len(scores)} | {mean(scores):.4f} | {spread} |")
    write_text(stem.with_suffix(".md"), "\n".join(lines) + "\n")


def main() -> None:
    """Train every row and write the table."""
    options = tyro.cli(Options, prog="python -m benchmarks.ablation")
    recipe = own.choose(options.recipe, options.recipe_file)
    chosen = rows(recipe, options.rows)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in options.seeds:
        for name, words in chosen.items():
            for framework in options.frameworks:
                result = train(options, recipe, framework, seed, words)
                found.setdefault(name, {}).setdefault(framework, []).append(result)
                write(recipe, found)
                print(f"{name}, {framework}, seed {seed}: {result['accuracy']:.4f}", flush=True)


if __name__ == "__main__":
    guard(main)
