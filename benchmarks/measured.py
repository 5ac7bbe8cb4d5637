"""What the recipes come to: a queue of whole runs, one after the other, each filed when it ends.

`python -m benchmarks.measured` trains what `CPU` (or `GPU`) has and `benchmarks/results/accuracy.json` has not, by the
ordinary commands, each run in its folder below runs/measured, where it goes on if it was stopped.
`benchmarks.measured_tables` writes the tables of README and docs from that file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from statistics import mean, stdev
from time import monotonic
from typing import Any

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.frameworks import FRAMEWORKS, Framework
from common.recipes.spec import Recipe
from common.recipes.zoo import get_recipe
from common.runs.files import write_json
from common.runs.folder import RunFolder
from common.stopping import Stopped
from common.system import commit
from parity_tests.published import defaults, leaves
from parity_tests.results import RESULTS, ROOT

FILE = RESULTS / "accuracy.json"
KEY = ("recipe", "framework", "seed", "changes", "gpu")  # one row each
TITLES = {"digits": "scikit-learn's digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
LOSSLESS = ("mnist", "fashion_mnist", "cifar10")  # as they were published
ENDING = 300.0  # seconds that a run which is told to stop may take for its checkpoint


@dataclass(frozen=True)
class Run:
    """A run that is to be measured.

    Attributes:
        recipe, framework, seed: of it.
        changes: words that the command line says besides; the row says them, too.
    """

    recipe: str
    framework: Framework
    seed: int = 0
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder, and as it is told."""
        return "-".join([self.recipe, self.framework, str(self.seed), *(word.strip("-") for word in self.changes)])


def _both(recipe: str, seeds: int = 1, more_torch: int = 0) -> tuple[Run, ...]:
    """A recipe with so many seeds in both frameworks, and more of them in PyTorch."""
    both = [Run(recipe, framework, seed) for seed in range(seeds) for framework in FRAMEWORKS]
    return (*both, *(Run(recipe, "torch", seed) for seed in range(seeds, seeds + more_torch)))


# What two processor cores can do, the quickest first.
CPU = (
    *_both("digits", seeds=3),
    *_both("fashion_mnist_lenet"),
    *_both("fashion_mnist_fast"),
    *_both("cifar10_fast", more_torch=2),
    *_both("fashion_mnist"),
    Run("cifar10_finetune_backbone", "torch", changes=("--precision", "bfloat16")),
    Run("cifar10", "torch"),
)
GPU_RECIPES = (
    *("digits", "fashion_mnist_lenet", "fashion_mnist_fast", "cifar10_fast", "fashion_mnist", "cifar10"),
    *("cifar10_finetune_backbone", "fashion_mnist_best", "cifar10_best"),
)
GPU = tuple(run for recipe in GPU_RECIPES for run in _both(recipe, seeds=5))


@dataclass(frozen=True)
class Options:
    """Train the runs that are not filed yet, in their order, and file each.

    Attributes:
        recipes: only these (default: all of the queue).
        frameworks: only these.
        seeds: only these.
        gpu: the queue of a GPU, five seeds of each, in place of a CPU's.
        again: train those that are filed, too, for results of the code as it is.
        limit: seconds, after which the run at hand writes a checkpoint and is filed with the epochs that it has done.
        runs: folder of the runs.
        file: of the results.
        show: say what is left, and train nothing.
    """

    recipes: Sequence[str] = ()
    frameworks: Sequence[Framework] = tuple(FRAMEWORKS)
    seeds: Sequence[int] = ()
    gpu: bool = False
    again: bool = False
    limit: float = float("inf")
    runs: Path = ROOT / "runs" / "measured"
    file: Path = FILE
    show: bool = False

    def wanted(self) -> list[Run]:
        """What is asked for of the queue.

        Raises:
            UserError: a recipe is not known, or nothing is asked for.
        """
        for recipe in self.recipes:
            get_recipe(recipe)
        found = [
            run
            for run in (GPU if self.gpu else CPU)
            if (not self.recipes or run.recipe in self.recipes)
            and run.framework in self.frameworks
            and (not self.seeds or run.seed in self.seeds)
        ]
        if not found:
            raise UserError("The queue has no such run: see CPU and GPU in benchmarks/measured.py.")
        return found


def read(file: Path) -> list[dict[str, Any]]:
    """The rows that are filed; none where there is no file yet."""
    return json.loads(file.read_text("utf-8")) if file.exists() else []


def add(file: Path, row: dict[str, Any]) -> None:
    """File a row, in place of an earlier one of the same run, but a part of a run never in place of a whole one."""
    rows = {tuple(map(str, map(each.get, KEY))): each for each in read(file)}
    before = rows.get(key := tuple(map(str, map(row.get, KEY))))
    if before and is_whole(before) and not is_whole(row):
        print(f"The run that is filed was whole, and this one is of {row['epochs']} epochs: it stays.")
        return
    rows[key] = row
    write_json(file, [rows[key] for key in sorted(rows)])


def is_whole(row: dict[str, Any]) -> bool:
    """Whether a run has had all of its epochs."""
    return bool(row["epochs"] == row["of_epochs"])


def is_filed(run: Run, rows: Sequence[dict[str, Any]], *, gpu: bool) -> bool:
    """Whether a run is there with all of its epochs."""
    key = (run.recipe, run.framework, run.seed, list(run.changes), gpu)
    return any(tuple(map(row.get, KEY)) == key and is_whole(row) for row in rows)


def outcome(run: Run, folder: Path) -> dict[str, Any] | None:
    """What a run came to so far, as a row; None before its first epoch has ended."""
    if not RunFolder.is_at(folder) or not RunFolder(folder).begun:
        return None
    found = RunFolder(folder)
    manifest, rows = found.manifest, found.metrics()
    scores = {row["epoch"]: row["accuracy"] for row in rows if row["split"] == "test"}
    if not scores:
        return None
    training = [row for row in rows if row["split"] == "train"]
    return {
        "recipe": run.recipe,
        "framework": run.framework,
        "seed": run.seed,
        "changes": list(run.changes),
        "gpu": not manifest["device"].startswith("cpu"),
        "epochs": max(scores),
        "of_epochs": found.recipe.epochs,
        "settings": settings(found.recipe),
        "data": title(found.recipe.dataset),
        "test_accuracy": [round(scores[epoch], 4) for epoch in sorted(scores)],
        "train_seconds": round(sum(row["seconds"] for row in training), 1),
        "device": manifest["device"],
        "versions": manifest["versions"],
        "commit": manifest["commit"],
        "batches_sha256": manifest["batches_sha256"],
    }


def spread(percents: Sequence[float]) -> str:
    """Of runs that differ by their seed: `97.8 ± 0.5 % (3 seeds)`, the sample's standard deviation; of one `81.9 %`."""
    if len(percents) == 1:
        return f"{percents[0]:.1f} %"
    return f"{mean(percents):.1f} ± {stdev(percents):.1f} % ({len(percents)} seeds)"


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says that is not the default, field by field, its seed apart: what a figure is of."""
    usual = defaults(Recipe)
    found = {path: value for path, value in leaves(recipe).items() if path != "seed" and usual.get(path) != value}
    return json.loads(json.dumps(found))  # lists for tuples, as a file gives them back


def title(dataset: str) -> str:
    """A dataset as people write it; one that was published without loss and lies here with, says so."""
    name = TITLES.get(dataset, dataset)
    if dataset not in LOSSLESS:
        return name
    import tensorflow_datasets as tfds

    from common.data.tfds import prepare

    source = tfds.builder_from_directory(str(prepare(dataset))).as_data_source(
        "test", decoders={"image": tfds.decode.SkipDecoding()}
    )
    return f"{name} (JPEG)" if source[0]["image"].startswith(b"\xff\xd8") else name


def train(run: Run, folder: Path, seconds: float, more: Sequence[str] = ()) -> bool:
    """Train a run to its end, or as far as it comes within some seconds.

    Args:
        run: the run.
        folder: of it; one that is there already goes on.
        seconds: that it has.
        more: words for one that begins, which its row does not say.

    Returns:
        Whether it ended.

    Raises:
        UserError: it failed; its own words say why.
    """
    begun = RunFolder.is_at(folder)
    words = ["--resume", str(folder)] if begun else ["--out", str(folder), "--seed", str(run.seed), *run.changes, *more]
    command = [sys.executable, "-m", f"{run.framework}_impl.train", run.recipe, *words]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            code = process.wait(None if seconds == float("inf") else max(seconds, 0))
        except subprocess.TimeoutExpired:
            process.send_signal(SIGTERM)
            process.wait(ENDING)
            return False
        except (Stopped, KeyboardInterrupt):
            process.wait(ENDING)  # a signal from the terminal has reached it, too
            raise
    if code:
        raise UserError(f"{run.name} ended with exit code {code}; the same command goes on with it.")
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and file, what is not filed yet."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.measured")
    rows = [] if options.again else read(options.file)
    left = [run for run in options.wanted() if not is_filed(run, rows, gpu=options.gpu)]
    parent = options.runs / f"again-{(commit() or 'here')[:8]}" if options.again else options.runs
    if options.show or not left:
        print("\n".join(run.name for run in left) or f"All of them are in {options.file}.")
        return
    end = monotonic() + options.limit
    for place, run in enumerate(left, 1):
        folder = parent / run.name
        print(f"{run.name}, {place} of {len(left)}", flush=True)
        ended = False
        try:
            ended = train(run, folder, end - monotonic())
        finally:
            row = outcome(run, folder)
            if row:
                add(options.file, row)
                print(f"{run.name}: {row['test_accuracy'][-1]:.4f} after epoch {row['epochs']} of {row['of_epochs']}")
        if not ended:
            print(f"The time is over; the same command goes on with {folder}.")
            return


if __name__ == "__main__":
    guard(main)
