"""Which epoch is a run's result, and by what: the one answer for training and `common.weights.result`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from common.runs.folder import epoch_name
from common.runs.scores import percent

UNFAIR = "chosen on the test split, so no fair estimate"


@dataclass(frozen=True)
class Choice:
    """The epoch whose weights are a run's result, and why, in words that follow its number."""

    epoch: int
    why: str

    @property
    def checkpoint(self) -> str:
        """Its checkpoint's name, without the suffix."""
        return epoch_name(self.epoch)


def best_epochs(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """The highest accuracy on each split of rows that are not of training, and the epoch that had it.

    Of equals it is the one of the lowest loss, for a small split has many equals, and of these the first.
    """
    found: dict[str, tuple[float, float, int]] = {}
    for row in rows:
        before, score = found.get(row["split"]), (row["accuracy"], -row.get("loss", 0.0))
        if row["split"] != "train" and (not before or score > before[:2]):
            found[row["split"]] = (*score, row["epoch"])
    return {split: (accuracy, epoch) for split, (accuracy, _, epoch) in found.items()}


def choose(best: Mapping[str, tuple[float, int]], last: int) -> Choice:
    """The best epoch on the validation split; without one the last, since a best one would be chosen on the test split.

    Args:
        best: as `best_epochs` gives it.
        last: the epoch that a run without a validation split ends with.
    """
    if "val" in best:
        accuracy, epoch = best["val"]
        return Choice(epoch, f"the best on the validation split ({percent(accuracy)})")
    return Choice(last, "the last: no validation split to choose by")
