"""`make compare`: train a recipe in both frameworks from the same weights and draws, and write the site with the runs.

The runs follow one another, so that their times can be compared. More PyTorch runs, with every weight moved by one unit
in the last place before each step, then measure how far float32's rounding alone drives the curves apart.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime
from io import TextIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Annotated, Any
from unittest import mock

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import flax_impl.evaluate
import torch_impl.evaluate
import torch_impl.state
import torch_impl.train
from common.commands.evaluate import run_evaluate
from common.commands.shell import guard
from common.errors import UserError
from common.frameworks import Framework
from common.recipes import own
from common.recipes.spec import Recipe
from common.runs.files import write_json
from common.runs.folder import RunFolder
from common.training.options import Device, TrainOptions
from parity_tests.noise import one_ulp
from parity_tests.start import start
from study import runs, site
from torch_impl import weights

EPOCHS = 3
MOVED = 1
EVALUATIONS: dict[Framework, Any] = {"torch": torch_impl.evaluate, "flax": flax_impl.evaluate}


@dataclass(frozen=True)
class Options:
    """Train a recipe in both frameworks from the same initial weights and draws, and compare what they come to.

    Attributes:
        recipe: to train (default: digits, or the recipe file's).
        epochs: of every run, few, so that the default takes minutes; a cosine fits itself to them.
        arch: in place of the recipe's.
        moved: PyTorch runs with every weight moved by one unit in the last place before each step, for the self-noise.
        device: to train on.
        data_dir: where tensorflow-datasets keeps its data.
        recipe_file: a Python file with recipes and architectures of your own, which the names may be of.
        out: folder for the runs; a new one below `runs` when not given.
        site: folder for the pages.
    """

    recipe: Annotated[str | None, tyro.conf.Positional] = None
    epochs: int = EPOCHS
    arch: str | None = None
    moved: int = MOVED
    device: Device = "auto"
    data_dir: Path | None = None
    recipe_file: Path | None = None
    out: Path | None = None
    site: Path = Path("site")


def compare(options: Options) -> Path:
    """Train, evaluate, measure the noise, print the table and write the site.

    Returns:
        The first page.

    Raises:
        UserError: an unknown recipe, data or weights that cannot be had, a folder that is there already.
    """
    whole = own.choose(options.recipe, options.recipe_file)
    recipe = replace(whole, epochs=options.epochs, arch=options.arch or whole.arch)
    recipe.check()
    folder = options.out or Path("runs") / f"compare-{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    initial = _initial_weights(recipe, options, folder)
    print(f"{recipe.name}, {recipe.epochs} of its {whole.epochs} epochs, twice from {initial}\n")
    for framework in EVALUATIONS:
        _fit(framework, recipe, options, folder / framework)
    _check_batches(folder)
    for framework, module in EVALUATIONS.items():
        scored = [str(folder / framework / "model.safetensors"), "--confusion", "--device", options.device]
        scored += ["--data-dir", str(options.data_dir)] if options.data_dir else []
        run_evaluate(framework, module.evaluate_network, module.class_names, scored)
    noise = _measure_noise(recipe, options, folder)
    ours, theirs = (runs.read_run(folder / framework, framework) for framework in EVALUATIONS)
    widths = runs.read_noise(noise)["curves"]
    _show(recipe, runs.summary(ours, theirs, widths))
    print(runs.verdict(ours["curves"], theirs["curves"], widths, recipe.precision), flush=True)
    chosen = site.Options(run_torch=folder / "torch", run_flax=folder / "flax", noise=noise, out=options.site)
    page = site.build(chosen)
    print(f"\nmake study RUN_TORCH={chosen.run_torch} RUN_FLAX={chosen.run_flax} NOISE={noise} writes the pages again")
    return page


def _initial_weights(recipe: Recipe, options: Options, folder: Path) -> Path:
    """Write what both runs start from."""
    model, arch = start(recipe, options.data_dir)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {folder}: {error.strerror}. Name another one with --out.") from error
    weights.save(folder / "initial.safetensors", model, arch)
    return folder / "initial.safetensors"


def _fit(framework: Framework, recipe: Recipe, options: Options, run: Path) -> None:
    """Train in a process of its own, which has the machine and its memory to itself."""
    words = [
        "--epochs",
        str(recipe.epochs),
        "--arch",
        recipe.arch,
        "--init-from",
        str(run.parent / "initial.safetensors"),
        "--out",
        str(run),
    ]
    words += ["--log-every", "1", "--device", options.device]
    words += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    words += ["--recipe-file", str(options.recipe_file)] if options.recipe_file else []
    done = subprocess.run([sys.executable, "-m", f"{framework}_impl.train", recipe.name, *words])
    if done.returncode:
        raise UserError(f"Training with {framework}_impl failed, exit code {done.returncode}; see above.")
    print()


def _check_batches(folder: Path) -> None:
    """Both must have been fed the same images, labels and draws.

    Raises:
        UserError: they were not.
    """
    ours, theirs = (RunFolder(folder / framework).manifest["batches_sha256"] for framework in EVALUATIONS)
    if ours != theirs:
        raise UserError(f"The two runs in {folder} were fed different batches: did the data change between them?")


def _measure_noise(recipe: Recipe, options: Options, folder: Path) -> Path:
    """Train PyTorch again with moved weights, and write how far the curves lie from those of the run as it is."""
    given = TrainOptions(
        init_from=folder / "initial.safetensors", data_dir=options.data_dir, device=options.device, log_every=1
    )
    moved = []
    if options.moved:
        print("self-noise: PyTorch again, every weight moved by one unit in the last place before each step")
    for seed in range(options.moved):
        title, began = f"self-noise, run {seed + 1} of {options.moved}", perf_counter()
        with TemporaryDirectory(dir=folder) as scratch, redirect_stdout(_Epochs(title)):
            run = _moved_run(recipe, replace(given, out=Path(scratch) / "run"), seed)
            moved.append(runs.read_run(run, "torch")["curves"])
        print(f"{title}: {perf_counter() - began:.1f} s\n", flush=True)
    eps = float(np.finfo(recipe.param_dtype).eps)
    curves = runs.envelope(runs.read_run(folder / "torch", "torch")["curves"], moved, eps)
    path = folder / "noise.json"
    write_json(path, {"recipe": recipe.name, "epochs": recipe.epochs, "runs": options.moved, "curves": curves})
    return path


class _Epochs(TextIOBase):
    """Takes what a run prints, and shows where it was to go the lines of its epochs, under another title."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title, self.shown = title, sys.stdout

    def write(self, text: str) -> int:
        """Of a line or its end."""
        if text.startswith("epoch "):
            print(f"{self.title}, {text}", file=self.shown, flush=True)
        return len(text)


def _moved_run(recipe: Recipe, given: TrainOptions, seed: int) -> Path:
    edit, step = one_ulp(seed), torch_impl.train.train_step

    def moved_step(state: torch_impl.state.TrainState, *batch: Any) -> Any:
        edit(state.model)
        return step(state, *batch)

    with mock.patch.object(torch_impl.train, "train_step", moved_step):
        path = torch_impl.train.fit(recipe, given)
    assert path
    return path


def _show(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the summary."""
    table = Table(title=f"{recipe.name}, {recipe.epochs} epochs, the same initial weights and draws")
    table.add_column("")
    for column in ("PyTorch", "Flax", "difference", "self-noise"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row[key] for key in ("PyTorch", "Flax", "difference", "noise"))
        table.add_row(
            row["title"], *("" if number is None else site.written(number, row["kind"]) for number in numbers)
        )
    Console(width=None if sys.stdout.isatty() else 120).print("", table)


def main() -> None:
    """Compare as the command line asks, and print the site's path."""
    print(compare(tyro.cli(Options, prog="python -m study.compare")).resolve())


if __name__ == "__main__":
    guard(main)
