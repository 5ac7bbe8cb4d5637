"""The command line of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import tyro

from common.commands.shell import guard
from common.data.dataset import Dataset, described
from common.data.load import load_dataset, load_split, load_unseen, relabel
from common.errors import UserError
from common.frameworks import Framework
from common.reports.evaluation import (
    Recorder,
    Report,
    Row,
    Watch,
    better,
    draw_confusion,
    write_confusion,
    write_probabilities,
    write_table,
)
from common.runs.folder import RunFolder
from common.runs.scores import Scores
from common.training.options import Device, check_workers
from common.weights.network import ClassNames, Network, networks_at, pretrained


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


class Score(Protocol):
    """Scores a trained network on a split, in one of the frameworks; see their `evaluate_network`."""

    def __call__(self, network: Network, device: str, data: Dataset, *, ten: bool, watch: Watch | None) -> Scores: ...


def run_evaluate(framework: Framework, score: Score, names: ClassNames, arguments: Sequence[str] | None = None) -> None:
    """`evaluate PATH [--split SPLIT] [--ten-crop] ...`: accuracy, right ones of all, and loss of each checkpoint."""

    def run() -> None:
        command = tyro.cli(_EvaluateCommand, args=arguments, prog=f"python -m {framework}_impl.evaluate")
        check_workers(command.workers)
        chosen, data, folder = _what_to_score(command, framework, names)
        data = replace(data, workers=command.workers)
        for line in described({data.split: data}):
            print(line)
        if command.ten_crop and not chosen[0].recipe.preprocess.crop:
            raise UserError(
                f"--ten-crop needs a recipe with preprocess.crop; {chosen[0].recipe.name!r} takes images whole."
            )
        crops = ", ten crops each" if command.ten_crop else ""
        title = f"{folder.parent}: {len(data):,} images of {data.name}, {data.split}{crops}"
        kept: tuple[Row, Recorder] | None = None
        with Report(title) as report:
            for network in chosen:
                recorder = Recorder(len(data.class_names), command.probabilities)
                watch = recorder if command.confusion or command.probabilities else None
                scores = score(network, command.device, data, ten=command.ten_crop, watch=watch)
                row = Row(network.path.stem if network.path else "pretrained", scores)
                if kept is None or better(row, kept[0]):
                    kept = row, recorder
                report.add(row)
        assert kept
        _leave_files(command, framework, folder, report.rows, data, *kept)

    guard(run)


def _what_to_score(
    command: _EvaluateCommand, framework: Framework, names: ClassNames
) -> tuple[list[Network], Dataset, Path]:
    """The networks, the examples, and the folder for files."""
    if command.pretrained:
        if command.path:
            raise UserError(f"--pretrained scores torchvision's weights, so it goes without {command.path}.")
        network = pretrained(names())
        name = command.dataset or network.recipe.dataset
        if command.split == "train":
            data, _ = load_dataset(name, command.data_dir)
        else:
            data = load_unseen(name, command.data_dir)
        return (
            [network],
            relabel(data, network.class_names),
            command.out or Path("runs") / "pretrained" / "evaluation",
        )
    if command.dataset:
        raise UserError("--dataset goes with --pretrained: a run is scored on the data of its recipe.")
    if not command.path:
        raise UserError("Name a run folder or a checkpoint, or say --pretrained.")
    chosen = networks_at(command.path, framework, "evaluate")
    folder = RunFolder.open(command.path)
    data = load_split(folder.recipe, command.split, command.data_dir, folder.skipped)
    return chosen, data, command.out or folder.path / "evaluation"


def _leave_files(
    command: _EvaluateCommand,
    framework: Framework,
    folder: Path,
    rows: Sequence[Row],
    data: Dataset,
    row: Row,
    recorder: Recorder,
) -> None:
    """Write what was asked for, and say where; `row` and `recorder` are of the most accurate checkpoint."""
    kind = command.split + ("-ten-crop" if command.ten_crop else "")
    alone = command.path is None or RunFolder.open(command.path).path.resolve() != command.path.resolve()
    one = f"{kind}-{row.name}"
    title = f"{row.name}, {kind} split of {data.name}: {row.scores.top1:,} of {row.scores.count:,} right"
    written = [f"{one if alone else kind}.csv"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / written[0], rows, framework, command.split, command.ten_crop)
        if command.confusion:
            written += [f"{one}-confusion.csv", f"{one}-confusion.png"]
            write_confusion(folder / written[-2], recorder.confusion, data.class_names)
            draw_confusion(folder / written[-1], recorder.confusion, data.class_names, title)
        if command.probabilities:
            written.append(f"{one}-probabilities.npz")
            write_probabilities(folder / written[-1], recorder, data)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    print(f"{folder}: {', '.join(written)}", flush=True)
