"""The command lines. Both frameworks' commands take the same words, from here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common import datasets
from common import export as exports
from common.arch import Arch
from common.errors import UserError
from common.recipes import ABOUT, DEFAULT, RECIPES, Recipe, get_recipe
from common.run import Framework, RunFolder, Scores

Device = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True)
class TrainOptions:
    """What a command says besides the recipe; nothing here changes the numbers.

    Attributes:
        out: the run folder; a new one below `runs` when not given.
        resume: continue the run in `out`.
        init_from: start from this file of weights (.safetensors, or .pth in PyTorch): a whole network, one with
            another last layer, or a backbone alone.
        data_dir: where tensorflow-datasets keeps its data (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).
        device: to compute on.
        log_every: steps between two rows of metrics.jsonl.
    """

    out: Path | None = None
    resume: bool = False
    init_from: Path | None = None
    data_dir: Path | None = None
    device: Device = "auto"
    log_every: int = 10


@dataclass(frozen=True)
class _TrainCommand:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[TrainOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class _EvaluateCommand:
    """Print a line for a checkpoint, or for each checkpoint of a run.

    Attributes:
        path: a run folder, one of its checkpoints or its model.safetensors.
        split: to evaluate on.
        data_dir: where tensorflow-datasets keeps its data.
        device: to compute on.
    """

    path: tyro.conf.Positional[Path]
    split: Literal["train", "val", "test"] = "test"
    data_dir: Path | None = None
    device: Device = "auto"


@dataclass(frozen=True)
class _ExportCommand:
    """Write a network in a format that other tools read, and beside it a .json that says how to feed it.

    Attributes:
        source: a run folder, one of its checkpoints, or a .safetensors file.
        dest: the file to write; its suffix says the format.
        format: if the suffix does not say it.
        opset: of ONNX (default: 18).
        arch: the architecture of a .safetensors file that does not say it.
        recipe: whose preprocessing the .json shall give, for a .safetensors file outside a run folder.
    """

    source: tyro.conf.Positional[Path]
    dest: tyro.conf.Positional[Path]
    format: str | None = None
    opset: int | None = None
    arch: str | None = None
    recipe: str | None = None


def train(fit: Callable[[Recipe, TrainOptions], Path], arguments: Sequence[str] | None = None) -> None:
    """`train [RECIPE] [--field VALUE ...]`: any field of the recipe, and the options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words and not words[0].startswith("-") else DEFAULT

    def run() -> None:
        recipe = get_recipe(name)
        command = tyro.cli(
            _TrainCommand,
            args=words,
            default=_TrainCommand(recipe, TrainOptions()),
            prog=f"train {name}",
            description=f"{ABOUT[name]}\n\nRecipes: {', '.join(RECIPES)}.",
        )
        command.recipe.check()
        if command.options.log_every < 1:
            raise UserError(f"--log-every is {command.options.log_every}; it must be at least 1.")
        if command.options.resume and not command.options.out:
            raise UserError("--resume needs --out RUN, the folder of the run to continue.")
        fit(command.recipe, command.options)

    guard(run)


def evaluate(
    framework: Framework,
    score: Callable[[Path, Arch, str, datasets.Dataset, Recipe], Scores],
    arguments: Sequence[str] | None = None,
) -> None:
    """`evaluate PATH [--split SPLIT]`: accuracy, right ones of all, and loss of each checkpoint."""

    def run() -> None:
        command = tyro.cli(_EvaluateCommand, args=arguments)
        if not command.path.exists():
            raise UserError(f"There is no run folder and no checkpoint {command.path}.")
        folder = RunFolder.open(command.path)
        paths = folder.checkpoints(framework) if command.path.samefile(folder.path) else [command.path]
        if not paths:
            raise UserError(f"{folder.path} has no finished checkpoint yet.")
        recipe, data = folder.recipe, split(folder.recipe, command.split, command.data_dir)
        for path in paths:
            scores = score(path, folder.arch, command.device, data, recipe)
            print(
                f"{path.stem}  {scores.accuracy:.4f} {scores.top1}/{scores.count}  "
                f"top-5 {scores.top5 / scores.count:.4f}  loss {scores.mean_loss:.4f}",
                flush=True,
            )

    guard(run)


def export(
    framework: Framework,
    formats: Mapping[str, str],
    write: Callable[[exports.Source, Path, str, int], float],
    arguments: Sequence[str] | None = None,
) -> None:
    """`export SOURCE DEST [--format FORMAT]`: write the file and say how near its logits come to the source's."""

    def run() -> None:
        command = tyro.cli(_ExportCommand, args=arguments, prog=f"python -m {framework}_impl.export")
        kind = exports.pick_format(command.dest, command.format, formats)
        if command.opset is not None and kind != "onnx":
            raise UserError(f"--opset {command.opset} is for ONNX; {command.dest} becomes {kind}.")
        if command.dest.is_dir():
            raise UserError(f"{command.dest} is a folder: name the file to write.")
        source = exports.open_source(command.source, framework, command.arch, command.recipe)
        worst = write(source, command.dest, kind, exports.OPSET if command.opset is None else command.opset)
        batches = ", ".join(map(str, exports.BATCHES))
        print(f"{command.dest}: {source.arch.name}, {source.arch.classes} classes, as {kind}")
        print(f"{command.dest}.json: how to feed it")
        print(f"reloaded, its logits differ by at most {worst:.1e} of their scale (batches of {batches})")

    guard(run)


def split(recipe: Recipe, name: datasets.Split, data_dir: Path | None) -> datasets.Dataset:
    """The split of a recipe's dataset that a run of it trained or was evaluated on.

    Raises:
        UserError: the recipe holds out no validation split, or the data is not there.
    """
    train, test = datasets.load(recipe.dataset, data_dir)
    if name == "test":
        return test
    if recipe.val_fraction:
        train, val = train.hold_out(recipe.val_fraction, recipe.seed)
        return val if name == "val" else train
    if name == "val":
        raise UserError(f"The recipe {recipe.name!r} holds out no validation split (val_fraction is 0).")
    return train


def announce(
    run: RunFolder,
    device: str,
    arch: Arch,
    train: datasets.Dataset,
    splits: Mapping[datasets.Split, datasets.Dataset],
    fresh: tuple[str, ...] | None,
    first: int,
) -> None:
    """Say what is about to be trained, on what and where."""
    height, width, channels = arch.image
    held = " and ".join(f"{len(data):,} {name}" for name, data in splits.items())
    print(f"{run.recipe.name}: {arch.name}, {arch.parameters:,} parameters, input {height}x{width}x{channels}")
    print(f"{train.name}: {len(train):,} training, {held} images, {len(train.class_names)} classes")
    if fresh is not None:
        print(f"starting from given weights; fresh: {', '.join(fresh) or 'nothing'}")
    if first:
        print(f"resuming after epoch {first}")
    print(f"on {device}, into {run.path}\n", flush=True)


def guard(command: Callable[[], None]) -> None:
    """Run a command; a user's mistake becomes one sentence and exit code 2, Ctrl-C exit code 130."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ninterrupted; continue with --resume --out RUN", file=sys.stderr)
        raise SystemExit(130) from None
