"""What a network comes to on a split."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Sums over a whole split: cross-entropy, right first guesses, right among the first five, and examples."""

    loss: float
    top1: int
    top5: int
    count: int

    @property
    def accuracy(self) -> float:
        """Share of right first guesses."""
        return self.top1 / self.count

    @property
    def mean_loss(self) -> float:
        """Cross-entropy per example, in nats."""
        return self.loss / self.count
