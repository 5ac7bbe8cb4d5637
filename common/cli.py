"""The command lines. Both frameworks' commands take the same words, from here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Literal, Protocol

import tyro

from common import datasets, evaluation, networks, predictions
from common import export as exports
from common.errors import UserError
from common.journal import Journal
from common.networks import Network
from common.predictions import Predictor
from common.recipes import ABOUT, DEFAULT, RECIPES, Recipe, get_recipe
from common.run import Framework, RunFolder, Scores
from common.stopping import Stopped, stopping_at_once
from common.world import leaving_at_once

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
        checkpoint_every: steps between two checkpoints within an epoch, besides the one after each (default: none).
        keep: how many checkpoints stay, the newest; the best stays as well (default: all).
        workers: processes that decode photographs ahead; 0 decodes in threads of this one.
        compile: let PyTorch compile the step with torch.compile, which takes its time at the start; JAX always does.
    """

    out: Path | None = None
    resume: bool = False
    init_from: Path | None = None
    data_dir: Path | None = None
    device: Device = "auto"
    log_every: int = 10
    checkpoint_every: int | None = None
    keep: int | None = None
    workers: int = 0
    compile: bool = False

    def check(self) -> None:
        """Refuse values that no run can have.

        Raises:
            UserError: names the option.
        """
        for name in ("log_every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
        _check_workers(self.workers)
        if self.resume and not self.out:
            raise UserError("--resume needs --out RUN, the folder of the run to continue.")


@dataclass(frozen=True)
class _TrainCommand:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[TrainOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class _EvaluateCommand:
    """Score a checkpoint, or each checkpoint of a run, and write what is found to files beside the run.

    Attributes:
        path: a run folder, one of its checkpoints or its model.safetensors.
        pretrained: score torchvision's pretrained AlexNet instead.
        dataset: for --pretrained: imagenet2012, or folder:PATH with a folder for each class.
        split: to evaluate on.
        ten_crop: average the probabilities of corners, centre and mirror images, ten crops of each image.
        confusion: leave a confusion matrix as picture and CSV; of several checkpoints, the most accurate one's.
        probabilities: leave the probabilities of every example as .npz; of the same checkpoint.
        out: folder for the files (default: `evaluation` in the run folder).
        data_dir: where tensorflow-datasets keeps its data.
        device: to compute on.
        workers: processes that decode photographs ahead; 0 decodes in threads of this one.
    """

    path: tyro.conf.Positional[Path | None] = None
    pretrained: bool = False
    dataset: str | None = None
    split: Literal["train", "val", "test"] = "test"
    ten_crop: bool = False
    confusion: bool = False
    probabilities: bool = False
    out: Path | None = None
    data_dir: Path | None = None
    device: Device = "auto"
    workers: int = 0


@dataclass(frozen=True)
class _PredictCommand:
    """Say what a network sees in an image, or in each image of a folder, and draw it.

    Attributes:
        image: a file, or a folder of images.
        run: a run folder or a checkpoint in one (default: torchvision's pretrained AlexNet).
        weights: a .safetensors file instead of a run.
        top: how many classes to name.
        out: folder for the pictures.
        device: to compute on.
    """

    image: tyro.conf.Positional[str]
    run: Path | None = None
    weights: Path | None = None
    top: int = 5
    out: Path = Path("predictions")
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


def train(fit: Callable[[Recipe, TrainOptions], Path | None], arguments: Sequence[str] | None = None) -> None:
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
        command.options.check()
        fit(command.recipe, command.options)

    with leaving_at_once():
        guard(run, "; if its folder is there, the same command with --resume --out RUN continues it")


class Score(Protocol):
    """Scores a trained network on a split, in one of the frameworks; see their `evaluate_network`."""

    def __call__(
        self, network: Network, device: str, data: datasets.Dataset, *, ten: bool, watch: evaluation.Watch | None
    ) -> Scores: ...


def evaluate(
    framework: Framework, score: Score, names: networks.ClassNames, arguments: Sequence[str] | None = None
) -> None:
    """`evaluate PATH [--split SPLIT] [--ten-crop] ...`: accuracy, right ones of all, and loss of each checkpoint."""

    def run() -> None:
        command = tyro.cli(_EvaluateCommand, args=arguments, prog=f"python -m {framework}_impl.evaluate")
        _check_workers(command.workers)
        chosen, data, folder = _what_to_score(command, framework, names)
        data = replace(data, workers=command.workers)
        if command.ten_crop and not chosen[0].recipe.preprocess.crop:
            raise UserError(
                f"--ten-crop needs a recipe with preprocess.crop; {chosen[0].recipe.name!r} takes images whole."
            )
        crops = ", ten crops each" if command.ten_crop else ""
        title = f"{folder.parent}: {len(data):,} images of {data.name}, {data.split}{crops}"
        kept: tuple[evaluation.Row, evaluation.Recorder] | None = None
        with evaluation.Report(title) as report:
            for network in chosen:
                recorder = evaluation.Recorder(len(data.class_names), command.probabilities)
                watch = recorder if command.confusion or command.probabilities else None
                scores = score(network, command.device, data, ten=command.ten_crop, watch=watch)
                row = evaluation.Row(network.path.stem if network.path else "pretrained", scores)
                if kept is None or evaluation.better(row, kept[0]):
                    kept = row, recorder
                report.add(row)
        assert kept
        _leave_files(command, framework, folder, report.rows, data, *kept)

    guard(run)


def _what_to_score(
    command: _EvaluateCommand, framework: Framework, names: networks.ClassNames
) -> tuple[list[Network], datasets.Dataset, Path]:
    """The networks, the examples, and the folder for files."""
    if command.pretrained:
        if command.path:
            raise UserError(f"--pretrained scores torchvision's weights, so it goes without {command.path}.")
        network = networks.pretrained(names())
        name = command.dataset or network.recipe.dataset
        if command.split == "train":
            data, _ = datasets.load(name, command.data_dir)
        else:
            data = datasets.load_unseen(name, command.data_dir)
        return (
            [network],
            datasets.relabel(data, network.class_names),
            command.out or Path("runs") / "pretrained" / "evaluation",
        )
    if command.dataset:
        raise UserError("--dataset goes with --pretrained: a run is scored on the data of its recipe.")
    if not command.path:
        raise UserError("Name a run folder or a checkpoint, or say --pretrained.")
    if not command.path.exists():
        raise UserError(f"There is no run folder and no checkpoint {command.path}.")
    folder = RunFolder.open(command.path)
    paths = folder.checkpoints(framework) if command.path.samefile(folder.path) else [command.path]
    if not paths:
        raise UserError(f"{folder.path} has no finished checkpoint yet.")
    if command.path.suffix != ".safetensors":
        folder.check_framework(framework)
    data = split(folder.recipe, command.split, command.data_dir)
    chosen = [Network(path, folder.arch, folder.recipe, tuple(folder.class_names)) for path in paths]
    return chosen, data, command.out or folder.path / "evaluation"


def _leave_files(
    command: _EvaluateCommand,
    framework: Framework,
    folder: Path,
    rows: Sequence[evaluation.Row],
    data: datasets.Dataset,
    row: evaluation.Row,
    recorder: evaluation.Recorder,
) -> None:
    """Write what was asked for, and say where; `row` and `recorder` are of the most accurate checkpoint."""
    kind = command.split + ("-ten-crop" if command.ten_crop else "")
    alone = command.path is None or RunFolder.open(command.path).path.resolve() != command.path.resolve()
    one = f"{kind}-{row.name}"
    title = f"{row.name}, {kind} split of {data.name}: {row.scores.top1:,} of {row.scores.count:,} right"
    written = [f"{one if alone else kind}.csv"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        evaluation.write_table(folder / written[0], rows, framework, command.split, command.ten_crop)
        if command.confusion:
            written += [f"{one}-confusion.csv", f"{one}-confusion.png"]
            evaluation.write_confusion(folder / written[-2], recorder.confusion, data.class_names)
            evaluation.draw_confusion(folder / written[-1], recorder.confusion, data.class_names, title)
        if command.probabilities:
            written.append(f"{one}-probabilities.npz")
            evaluation.write_probabilities(folder / written[-1], recorder, data)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    print(f"{folder}: {', '.join(written)}", flush=True)


def predict(
    framework: Framework,
    open_network: Callable[[Network, str], Predictor],
    names: networks.ClassNames,
    arguments: Sequence[str] | None = None,
) -> None:
    """`predict IMAGE [--run RUN | --weights FILE] [--top 5] [--out DIR]`: the most probable classes, and a picture."""

    def run() -> None:
        command = tyro.cli(_PredictCommand, args=arguments, prog=f"python -m {framework}_impl.predict")
        if command.top < 1:
            raise UserError(f"--top is {command.top}; it must be at least 1.")
        if command.run and command.weights:
            raise UserError("--run and --weights exclude each other: a run has its own weights.")
        predictions.find_images(command.image)  # before minutes are spent on weights
        if command.run:
            network = networks.of_run(command.run, framework)
        elif command.weights:
            network = networks.of_weights(command.weights, names)
        else:
            network = networks.pretrained(names())
        ready = open_network(network, command.device)
        predictions.predict_place(command.image, network, ready, command.top, command.out)

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


def _check_workers(workers: int) -> None:
    if workers < 0:
        raise UserError(f"--workers is {workers}; it must be 0 or more.")


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
    journal: Journal,
    device: str,
    train: datasets.Dataset,
    splits: Mapping[datasets.Split, datasets.Dataset],
    fresh: tuple[str, ...] | None,
) -> None:
    """Say what is about to be trained, on what and where."""
    recipe, arch, progress = journal.recipe, journal.arch, journal.progress
    height, width, channels = arch.image
    held = " and ".join(f"{len(data):,} {name}" for name, data in splits.items())
    print(f"{recipe.name}: {arch.name}, {arch.parameters:,} parameters, input {height}x{width}x{channels}")
    print(f"{train.name}: {len(train):,} training, {held} images, {len(train.class_names)} classes")
    if fresh is not None:
        print(f"starting from given weights; fresh: {', '.join(fresh) or 'nothing'}")
    if progress.finished:
        print(f"resuming after epoch {progress.epochs}")
    elif progress.step:
        print(f"resuming after step {progress.step}, in epoch {progress.epoch + 1}")
    print(f"on {device}, into {journal.run.path}\n", flush=True)


def guard(command: Callable[[], None], interrupted: str = "") -> None:
    """Run a command. A user's mistake becomes one sentence and exit code 2; Ctrl-C 130, SIGTERM 143 and a hint."""
    try:
        with stopping_at_once():
            command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (Stopped, KeyboardInterrupt) as stopped:
        print(f"\n{stopped}" if str(stopped) else f"\ninterrupted{interrupted}", file=sys.stderr)
        raise SystemExit(128 + getattr(stopped, "number", SIGINT)) from None
