"""Which images of a split a network names wrong, the surest of them first: as a table and as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.data.dataset import Dataset
from common.data.photos import open_image
from common.reports.evaluation import Recorder
from common.reports.sheets import Cell, draw_sheet, thumbnail
from common.runs.files import write_csv
from common.runs.scores import percent

SHOWN = 24  # mistakes that are drawn


@dataclass(frozen=True)
class Mistake:
    """An image file, what the network says it is, with which probability, and what it is."""

    file: str
    said: str
    probability: float
    true: str


def find_mistakes(recorder: Recorder, data: Dataset) -> list[Mistake]:
    """What an evaluation found wrong, by the probability of what was said, the highest first.

    Args:
        recorder: that kept the probabilities of `data`.
        data: a split of image files.
    """
    names, said = data.class_names, recorder.probabilities.argmax(1)
    found = [
        Mistake(file, names[guess], float(row[guess]), names[label])
        for file, row, guess, label in zip(data.files, recorder.probabilities, said, recorder.labels, strict=True)
        if guess != label
    ]
    return sorted(found, key=lambda mistake: (-mistake.probability, mistake.file))


def write_mistakes(path: Path, found: Sequence[Mistake]) -> None:
    """Write them as CSV: file, said, probability, true."""
    rows = [(each.file, each.said, f"{each.probability:.6g}", each.true) for each in found]
    write_csv(path, [("file", "said", "probability", "true"), *rows])


def draw_mistakes(path: Path, found: Sequence[Mistake]) -> None:
    """Draw the worst: each image, what it is said to be and with which probability, what it is, and its file."""
    cells = [
        Cell(
            thumbnail(open_image(Path(each.file))),
            (f"{percent(each.probability)} {each.said}", f"is {each.true}", Path(each.file).name),
        )
        for each in found[:SHOWN]
    ]
    mistakes = "mistake" if len(found) == 1 else "mistakes"
    which = f"The {len(cells)} surest of {len(found):,}" if len(cells) < len(found) else f"All {len(found)}"
    draw_sheet(path, cells, f"{which} {mistakes}: what the network says, what it is")
