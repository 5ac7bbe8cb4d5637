"""What a network comes to on a split, and how such numbers are printed."""

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


def percent(share: float) -> str:
    """A share in percent, with one decimal: `91.2 %`."""
    return f"{100 * share:.1f} %"


def significant(number: float) -> str:
    """A number with three significant digits: `0.263`, `1.30`, `12.0`; of a larger one all before the point."""
    return f"{number:,.0f}" if 999.5 <= abs(number) < 1e15 else f"{number:#.3g}".rstrip(".")


def told(loss: float, accuracy: float) -> str:
    """A loss and an accuracy, named: `loss 0.263  accuracy 91.2 %`."""
    return f"loss {significant(loss)}  accuracy {percent(accuracy)}"


def speed(images: float, seconds: float) -> str:
    """Images per second, named: `567 images/s`; below ten with decimals."""
    rate = images / seconds if seconds > 0 else 0.0
    return f"{rate:,.0f} images/s" if rate >= 9.995 else f"{significant(rate)} images/s"
