"""What an evaluation prints and leaves: the table of checkpoints, confusion matrices, probabilities."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.data.dataset import Dataset
from common.frameworks import Framework
from common.reports.figures import save_figure, shorten
from common.runs.choice import Choice
from common.runs.files import atomic, write_csv
from common.runs.scores import Scores, percent, significant

Watch = Callable[[np.ndarray, np.ndarray], None]
COUNTS_FIT = 20  # classes up to which a confusion matrix has its counts written in
_RECALL = 1.3  # inches, of the bars beside it
NAMES_FIT = 60  # classes up to which each has its name at the axis; beyond, some have


@dataclass
class Recorder:
    """Collects what `watch` is given while a split is evaluated.

    Attributes:
        classes: how many.
        keep: collect the probabilities too, and not the confusion matrix alone.
        confusion: int64 (classes, classes), examples by true and by guessed class.
    """

    classes: int
    keep: bool
    confusion: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.classes, self.classes), np.int64)
        self._labels: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []

    def __call__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        """Add a batch: labels (n,) and probabilities (n, classes)."""
        np.add.at(self.confusion, (labels, probabilities.argmax(1)), 1)
        if self.keep:
            self._labels.append(labels)
            self._probabilities.append(probabilities)

    @property
    def labels(self) -> np.ndarray:
        """Of every example, in the order of the split."""
        return np.concatenate(self._labels)

    @property
    def probabilities(self) -> np.ndarray:
        """(n, classes), of every example in the order of the split."""
        return np.concatenate(self._probabilities)


@dataclass(frozen=True)
class Row:
    """One checkpoint's scores."""

    name: str
    scores: Scores


def better(row: Row, other: Row) -> bool:
    """Whether a row is the better one by accuracy; among equals, by loss."""
    ours, theirs = ((-each.scores.top1, each.scores.loss) for each in (row, other))
    return ours < theirs


def best(rows: Sequence[Row]) -> Row:
    """The best row by accuracy; among equals by loss, then the earliest."""
    found = rows[0]
    for row in rows[1:]:
        found = row if better(row, found) else found
    return found


def lowest(rows: Sequence[Row]) -> Row:
    """The row of the lowest loss; of equals the earliest."""
    return min(rows, key=lambda row: row.scores.mean_loss)


def marks(row: Row, rows: Sequence[Row]) -> str:
    """What distinguishes one checkpoint among several, in words."""
    if len(rows) < 2:
        return ""
    words = ["best accuracy"] * (row is best(rows)) + ["lowest loss"] * (row is lowest(rows))
    return ", ".join(words)


def line(row: Row) -> str:
    """A row of plain text: `epoch_0008  accuracy 98.1 % 353/360  top-5 100.0 %  loss 0.0710`."""
    scores = row.scores
    return (
        f"{row.name}  accuracy {percent(scores.accuracy)} {scores.top1}/{scores.count}  "
        f"top-5 {percent(scores.top5 / scores.count)}  loss {significant(scores.mean_loss)}"
    )


class Report:
    """Shows rows as they come: a table on a terminal, else a line each; then the best ones, and the run's result.

    Args:
        title: of the table.
        unfair: what to say of a best one because of the split that it is chosen on.
        result: the epoch that is the run's result, where there is one.
    """

    def __init__(self, title: str, unfair: str = "", result: Choice | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self.title, self.rows, self.unfair, self.result = title, list[Row](), unfair, result
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> Report:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()
        if len(self.rows) > 1 and exception[0] is None:
            accurate, sure = best(self.rows), lowest(self.rows)
            unfair = f", {self.unfair}" if self.unfair else ""
            print(f"best accuracy: {accurate.name} {percent(accurate.scores.accuracy)}{unfair}")
            print(f"lowest loss: {sure.name} {significant(sure.scores.mean_loss)}{unfair}")
            if self.result:
                own = [percent(row.scores.accuracy) for row in self.rows if row.name == self.result.checkpoint]
                print(f"the run's result: {' '.join([self.result.checkpoint, *own])}, {self.result.why}")
            sys.stdout.flush()

    def add(self, row: Row) -> None:
        """Show one more row."""
        self.rows.append(row)
        if self._live:
            self._live.update(table(self.title, self.rows), refresh=True)
        else:
            print(line(row), flush=True)


def table(title: str, rows: Sequence[Row]) -> Any:
    """The rows as a rich table, the best ones marked."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title), title_justify="left")
    shown.add_column("checkpoint")
    for name in ("accuracy", "right", "top-5", "loss"):
        shown.add_column(name, justify="right")
    shown.add_column("")
    for row in rows:
        scores, mark = row.scores, marks(row, rows)
        shares = percent(scores.accuracy), f"{scores.top1}/{scores.count}", percent(scores.top5 / scores.count)
        cells = (Text(row.name), *shares, significant(scores.mean_loss), mark)
        shown.add_row(*cells, style="bold" if "accuracy" in mark else "")
    return shown


def write_table(path: Path, rows: Sequence[Row], framework: Framework, split: str, ten: bool) -> None:
    """Write the rows as CSV: checkpoint, framework, split, crops, top1, top5, loss, right, examples, best."""
    lines: list[list[Any]] = [
        ["checkpoint", "framework", "split", "crops", "top1", "top5", "loss", "right", "examples", "best"]
    ]
    for row in rows:
        scores = row.scores
        numbers = scores.accuracy, scores.top5 / scores.count, scores.mean_loss, scores.top1, scores.count
        lines.append([row.name, framework, split, 10 if ten else 1, *numbers, marks(row, rows)])
    write_csv(path, lines)


def write_confusion(path: Path, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Write examples by true class (rows) and guessed class (columns) as CSV, with the names of the classes."""
    rows = [[name, *counts] for name, counts in zip(names, confusion.tolist(), strict=True)]
    write_csv(path, [["true / guessed", *names], *rows])


@dataclass(frozen=True)
class ClassScores:
    """One class, or the mean of all (`macro average`).

    Attributes:
        precision: the share of what is guessed to be of the class that is; 0 where nothing is.
        recall: the share of the class that is guessed; 0 where it has no example.
        f1: their harmonic mean; 0 where both are.
        examples: of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    examples: int


def class_scores(confusion: np.ndarray, names: Sequence[str]) -> list[ClassScores]:
    """Precision, recall and F1 of each class that has examples or is guessed, and last their mean over these classes.

    Args:
        confusion: (classes, classes), examples by true and by guessed class.
        names: of the classes.
    """
    right, true, guessed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs = true + guessed > 0
    of = (right, guessed), (right, true), (2 * right, true + guessed)
    table = np.stack([np.divide(part, all_, out=np.zeros(len(names)), where=all_ > 0) for part, all_ in of], 1)
    rows = [(names[label], *table[label].tolist(), int(true[label])) for label in np.flatnonzero(occurs).tolist()]
    return [ClassScores(*row) for row in (*rows, ("macro average", *table[occurs].mean(0).tolist(), int(true.sum())))]


def write_classes(path: Path, scores: Sequence[ClassScores]) -> None:
    """Write them as CSV: class, precision, recall, f1, examples."""
    rows = [
        [each.name, *(f"{x:.6g}" for x in (each.precision, each.recall, each.f1)), each.examples] for each in scores
    ]
    write_csv(path, [["class", "precision", "recall", "f1", "examples"], *rows])


def show_classes(scores: Sequence[ClassScores]) -> None:
    """Print a line for each class, those of the lowest recall first and at most `COUNTS_FIT`, and last the mean."""
    *classes, mean = scores
    weakest = sorted(classes, key=lambda each: each.recall)[:COUNTS_FIT]
    for each in (*weakest, mean):
        print(
            f"precision {percent(each.precision)}  recall {percent(each.recall)}  F1 {percent(each.f1)}  "
            f"{each.examples:,} {each.name}"
        )
    if len(weakest) < len(classes):
        print(f"({len(weakest)} of {len(classes)} classes, those of the lowest recall)")


def confusion_files(stem: str) -> list[str]:
    """What `leave_confusion` calls its files."""
    return [f"{stem}-classes.csv", f"{stem}-confusion.csv", f"{stem}-confusion.png"]


def leave_confusion(folder: Path, stem: str, confusion: np.ndarray, names: Sequence[str], title: str) -> None:
    """Print what each class comes to and write it, as `confusion_files` names it.

    Args:
        folder: that is there.
        stem: begins the names.
        confusion, names, title: see `draw_confusion`.
    """
    of_classes = class_scores(confusion, names)
    show_classes(of_classes)
    classes, table, picture = (folder / name for name in confusion_files(stem))
    write_classes(classes, of_classes)
    write_confusion(table, confusion, names)
    draw_confusion(picture, confusion, names, title)


def write_probabilities(path: Path, recorder: Recorder, data: Dataset) -> None:
    """Write a .npz: `ids` (n,), `labels` (n,), `probabilities` (n, classes), `class_names`, and `files` if they are.

    `np.load(path)` opens it without pickle.
    """
    arrays = {"ids": data.ids, "labels": recorder.labels, "probabilities": recorder.probabilities}
    arrays["class_names"] = np.array(data.class_names)
    if data.files:
        arrays["files"] = np.array(data.files)
    with atomic(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def draw_confusion(path: Path, confusion: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix: the share of each true class's examples (rows) that is guessed to be each class.

    Beside it a bar for the share of each class that is guessed right.

    Args:
        path: of the picture.
        confusion: (classes, classes), examples by true and by guessed class.
        names: of the classes.
        title: above it.

    Up to 20 classes have their counts written in and up to 60 their names at the axes; of more, some have.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    classes = len(names)
    totals = confusion.sum(1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    side = float(np.clip(0.45 * classes, 4.5, 12))
    figure = Figure(figsize=(side + 4.5, side + 1.8), layout="compressed")
    axis, bars = figure.subplots(1, 2, width_ratios=(side, _RECALL))
    # By the square root, so that rare mistakes show beside what is right.
    picture = axis.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    figure.colorbar(picture, ax=(axis, bars), label="share of the true class", shrink=0.8)
    shown = np.unique(np.linspace(0, classes - 1, min(classes, NAMES_FIT)).round().astype(int))
    labels = [shorten(names[label], 24) for label in shown]
    size = 9 if classes <= COUNTS_FIT else 6
    axis.set_xticks(shown, labels, fontsize=size, rotation=0 if max(map(len, labels)) <= 2 else 90, parse_math=False)
    axis.set_yticks(shown, labels, fontsize=size, parse_math=False)
    axis.set(xlabel="guessed", ylabel="true")
    axis.set_title(title, parse_math=False, fontsize=10, wrap=True)
    if classes <= COUNTS_FIT:
        for true, guessed in np.argwhere(confusion):
            colour = "white" if shares[true, guessed] > 0.3 else "black"
            count = str(confusion[true, guessed])
            axis.text(guessed, true, count, ha="center", va="center", color=colour, fontsize=8)
    _draw_recall(bars, np.where(totals[:, 0] > 0, shares.diagonal(), np.nan), axis.get_ylim())
    bars.set_box_aspect(side / _RECALL)  # as high as the matrix, which is square
    save_figure(figure, path, 150 if classes <= NAMES_FIT else 200)


def _draw_recall(axis: Any, recall: np.ndarray, rows: tuple[float, float]) -> None:
    """Bars level with the rows of a confusion matrix: recall in percent.

    Args:
        axis: beside the matrix's.
        recall: (classes,), NaN for a class without examples, which has no bar.
        rows: the limits of the matrix's.
    """
    bars = axis.barh(range(len(recall)), 100 * np.nan_to_num(recall), height=0.8, color="#3b6fb6")
    if len(recall) <= NAMES_FIT:
        said = ["" if np.isnan(share) else f"{100 * share:.0f}" for share in recall]
        axis.bar_label(bars, said, padding=2, fontsize=8 if len(recall) <= COUNTS_FIT else 6)
    axis.set(xlim=(0, 130 if len(recall) <= NAMES_FIT else 100), ylim=rows, xticks=(0, 50, 100), yticks=())
    axis.tick_params("x", labelsize=8)
    axis.set_xlabel("recall, %", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
