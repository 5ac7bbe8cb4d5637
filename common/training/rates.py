"""A range test of the learning rate (Smith, arXiv:1506.01186, section 3.3), once for both frameworks.

The rate grows by the same factor before every step. The loss falls where it is large enough, and rises where it is too
large; a tenth of the rate at which it was lowest leaves room for the rest of a training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from math import inf, isfinite
from pathlib import Path
from typing import Any

from common.data.batch import Batch
from common.data.load import check_classes, load_splits
from common.errors import UserError
from common.recipes.spec import FineTune, Recipe, Schedule
from common.training.engine import Engine, Feed, State, Step
from common.training.options import Device, TrainOptions
from common.world import ALONE

MEMORY = 0.8  # of the smoothed loss, a step
DIVERGED = 4.0  # times the lowest smoothed loss
LEAST = 10  # steps that a curve needs
SAFETY = 10.0  # the suggested rate is so many times smaller than the one with the lowest loss


@dataclass(frozen=True)
class RateOptions:
    """What is tried.

    Attributes:
        low: the first rate.
        high: the last one; the test ends before it where the loss is four times its lowest.
        steps: between them, of the recipe's batches.
        to: the PNG to write; one that is there is replaced.
        data_dir: where tensorflow-datasets keeps its data (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).
        device: to compute on.
    """

    low: float = 1e-6
    high: float = 10.0
    steps: int = 100
    to: Path = Path("rates.png")
    data_dir: Path | None = None
    device: Device = "auto"

    def check(self) -> None:
        """Refuse values that no test can have.

        Raises:
            UserError: names the option.
        """
        if not 0 < self.low < self.high < inf:
            raise UserError(f"--low {self.low:g} --high {self.high:g}: both must be positive, and the first smaller.")
        if self.steps < LEAST:
            raise UserError(f"--steps is {self.steps}; it must be at least {LEAST}.")
        if self.to.suffix.lower() != ".png":
            raise UserError(f"--to {self.to}: the picture is a PNG, so give it a name that ends in .png.")


@dataclass(frozen=True)
class Curve:
    """What a test came to: the rate of each step, the loss of its batch before it, and that loss smoothed."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def lowest(self) -> int:
        """The step with the lowest smoothed loss."""
        return min(range(len(self.smoothed)), key=self.smoothed.__getitem__)

    @property
    def suggested(self) -> float:
        """The rate to train with."""
        return self.rates[self.lowest] / SAFETY


def find_rate(engine: Engine[State], recipe: Recipe, options: RateOptions) -> Curve:
    """Take the recipe's training steps at growing rates; nothing is written.

    Raises:
        UserError: data, weights or device are not as needed, or the loss was never finite for long enough.
    """
    data = load_splits(recipe, options.data_dir, ())
    check_classes(data)
    train = data["train"]
    tried = growing(recipe, options)
    if tried.class_weights == "balanced":
        tried = replace(tried, class_weights=train.balanced_weights())
    given = TrainOptions(device=options.device, data_dir=options.data_dir)
    engine.check_precision(tried, given)
    # An epoch of the schedule is one step here, so that the rate grows with each.
    state = engine.begin(tried, tried.model_arch(train.image, len(train.class_names)), 1, given)
    state, _ = engine.start_weights(state, None)
    [feed] = engine.feeds(state, [train], ALONE)
    print(f"{recipe.name}: {options.steps} steps from {options.low:g} to {options.high:g}, on {engine.describe(state)}")
    curve = Curve([], [], [])

    def after(batch: Batch, state: State, sums: Mapping[str, Any]) -> None:
        add(curve, tried.learning_rate(len(curve.rates), 1), float(sums["loss"]) / float(sums["count"]))

    engine.train_epoch(state, _steps(feed, curve, options.steps), after)
    if len(curve.smoothed) < LEAST:
        raise UserError(f"The loss was not finite after {len(curve.smoothed)} steps already: take a smaller --low.")
    return curve


def growing(recipe: Recipe, options: RateOptions) -> Recipe:
    """The recipe with a rate that is `low` at first, `high` at the last step, and grows by the same factor between."""
    schedule = Schedule(
        "step", tuple(range(1, options.steps)), (options.high / options.low) ** (1 / (options.steps - 1))
    )
    tune = FineTune(recipe.finetune.head, 0, recipe.finetune.backbone_lr)
    optimizer = replace(recipe.optimizer, lr=options.low)
    return replace(recipe, optimizer=optimizer, schedule=schedule, finetune=tune, epochs=options.steps)


def add(curve: Curve, rate: float, loss: float) -> None:
    """Write a step down; the smoothed loss is the mean of all so far, each counting `MEMORY` times the one after it."""
    curve.rates.append(rate)
    curve.losses.append(loss)
    weights = [MEMORY**age for age in range(len(curve.losses))][::-1]
    curve.smoothed.append(sum(w * x for w, x in zip(weights, curve.losses, strict=True)) / sum(weights))
    if not isfinite(loss):
        for column in (curve.rates, curve.losses, curve.smoothed):
            column.pop()


def _steps(feed: Feed, curve: Curve, most: int) -> Iterator[Step]:
    """The recipe's batches, pass after pass, until there are enough or the loss has gone."""
    taken = 0
    for epoch in count():
        for step in feed(epoch, train=True):
            gone = len(curve.losses) < taken or (curve.smoothed and curve.smoothed[-1] > DIVERGED * min(curve.smoothed))
            if gone or taken == most:
                return
            yield step
            taken += 1
