"""The command line of evaluation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import tyro

from common.commands.shell import guard
from common.data.dataset import Dataset, described
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.own import load_file
from common.reports.evaluation import (
    Recorder,
    Report,
    Row,
    Watch,
    confusion_files,
    leave_confusion,
    write_probabilities,
    write_table,
)
from common.runs.choice import UNFAIR
from common.runs.files import replaced
from common.runs.folder import RunFolder
from common.runs.scores import Scores
from common.training.options import Device, check_workers
from common.weights.examples import examples
from common.weights.network import (
    NOTHING,
    ClassNames,
    Given,
    Network,
    complete,
    networks_at,
    pretrained,
    run_at,
)
from common.weights.result import result_of_run


@dataclass(frozen=True)
class EvaluateCommand:
    """Score a checkpoint, or each checkpoint of a run, and write what is found to files beside the run.

    Attributes:
        path: a run folder, one of its checkpoints, or a .safetensors file.
        pretrained: score torchvision's pretrained AlexNet instead.
        dataset: to score on, by name, or folder:PATH with a folder for each class (default: that of the training).
        arch: the architecture of a .safetensors file that does not say it.
        recipe: of the training of a .safetensors file that does not say how images become its input.
        classes: class names of a .safetensors file in label order: a list with commas between, or a file of lines.
        recipe_file: a Python file with recipes and architectures of your own, which the names may be of.
        split: to evaluate on.
        ten_crop: average the probabilities of corners, centre and mirror images, ten crops of each image.
        confusion: print and leave precision, recall and F1 of each class, and leave a confusion matrix as picture and
            CSV; of several checkpoints, the run's result's, or of an unfinished run the newest one's.
        probabilities: leave the probabilities of every example as .npz; of the same checkpoint.
        out: folder for the files (default: `evaluation` in the run folder).
        data_dir: where tensorflow-datasets keeps its data.
        device: to compute on.
        workers: processes that decode photographs ahead; 0 decodes in threads of this one.
    """

    path: tyro.conf.Positional[Path | None] = None
    pretrained: bool = False
    dataset: str | None = None
    arch: str | None = None
    recipe: str | None = None
    classes: str | None = None
    recipe_file: Path | None = None
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
        command = tyro.cli(EvaluateCommand, args=arguments, prog=f"python -m {framework}_impl.evaluate")
        load_file(command.recipe_file)
        check_workers(command.workers)
        chosen, folder = _networks(command, framework, names)
        data = examples(chosen[0], command.path, command.dataset, command.split, command.data_dir)
        (_, data), *_ = taken = [network.take(data) for network in chosen]
        chosen, data = [network for network, _ in taken], replace(data, workers=command.workers)
        for line in described({data.split: data}):
            print(line)
        if command.ten_crop and not chosen[0].recipe.preprocess.crop:
            raise UserError(
                f"--ten-crop needs a recipe with preprocess.crop; {chosen[0].recipe.name!r} takes images whole."
            )
        crops = ", ten crops each" if command.ten_crop else ""
        title = f"{command.path or folder.parent}: {len(data):,} images of {data.name}, {data.split}{crops}"
        result = result_of_run(RunFolder(command.path)) if command.path else None
        kept: tuple[Row, Recorder] | None = None
        unfair = UNFAIR if command.split == "test" and not command.dataset else ""
        with Report(title, unfair, result) as report:
            for network in chosen:
                recorder = Recorder(len(data.class_names), command.probabilities)
                watch = recorder if command.confusion or command.probabilities else None
                scores = score(network, command.device, data, ten=command.ten_crop, watch=watch)
                row = Row(network.path.stem if network.path else "pretrained", scores)
                if kept is None or not (result and kept[0].name == result.checkpoint):
                    kept = row, recorder
                report.add(row)
        assert kept
        _leave_files(command, framework, folder, report.rows, data, *kept)

    guard(run)


def _networks(command: EvaluateCommand, framework: Framework, names: ClassNames) -> tuple[list[Network], Path]:
    """The networks to score, and the folder for files."""
    given = Given(command.arch, command.recipe, command.classes)
    if command.pretrained:
        if command.path:
            raise UserError(f"--pretrained scores torchvision's weights, so it goes without {command.path}.")
        if given != NOTHING:
            raise UserError("--arch, --recipe and --classes are for a .safetensors file, not for --pretrained.")
        return [pretrained(names())], command.out or Path("runs") / "pretrained" / "evaluation"
    if not command.path:
        raise UserError("Name a run folder or a checkpoint, or say --pretrained.")
    chosen = [complete(network, names) for network in networks_at(command.path, framework, "evaluate", given)]
    run = run_at(command.path)
    return chosen, command.out or (run.path if run else command.path.parent) / "evaluation"


def _leave_files(
    command: EvaluateCommand,
    framework: Framework,
    folder: Path,
    rows: Sequence[Row],
    data: Dataset,
    row: Row,
    recorder: Recorder,
) -> None:
    """Write what was asked for, and say where; `row` and `recorder` are of the run's result."""
    kind = command.split + ("-ten-crop" if command.ten_crop else "")
    if command.dataset and not command.pretrained:  # beside the files of the run's own data
        kind += "-on-" + re.sub(r"[^\w.-]+", "_", Path(command.dataset.removeprefix("folder:")).resolve().name)
    alone = command.path is None or not RunFolder.is_at(command.path)
    one = f"{kind}-{row.name}"
    title = f"{row.name}, {kind} split of {data.name}: {row.scores.top1:,} of {row.scores.count:,} right"
    names = [f"{one if alone else kind}.csv"]
    names += confusion_files(one) if command.confusion else []
    names += [f"{one}-probabilities.npz"] if command.probabilities else []
    written = [f"{name}{replaced(folder / name)}" for name in names]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / names[0], rows, framework, command.split, command.ten_crop)
        if command.confusion:
            leave_confusion(folder, one, recorder.confusion, data.class_names, title)
        if command.probabilities:
            write_probabilities(folder / names[-1], recorder, data)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    print(f"{folder}: {', '.join(written)}", flush=True)
