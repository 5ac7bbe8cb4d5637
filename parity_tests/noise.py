"""float32's own noise: how far a training curve moves when weights move by one unit in the last place.

Two correct implementations differ in float32 from their first sum on, and training amplifies that: a sign flips at a
ReLU, a maximum moves. So no fixed tolerance fits a float32 curve. The envelope is measured instead: PyTorch against
PyTorch with every weight moved by one ULP before every step, several times. That is rounding at its worst, so that the
other framework, one more draw of the same kind, is hardly ever the furthest of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

import flax_impl.state
import flax_impl.train
import torch_impl.state
import torch_impl.train
from common.arch.spec import Arch
from common.data.batch import Batch
from common.data.dataset import Dataset
from common.data.pipeline import steps_per_epoch
from common.recipes.spec import Recipe
from flax_impl import feed as flax_feed
from parity_tests.material import first_batches
from parity_tests.sides import Edit, make_states
from torch_impl import feed as torch_feed

Curve = npt.NDArray[np.float64]

FLOOR = 32  # ULP of the loss: what the sums of one forward pass may differ by before training amplifies anything
OPEN = 1e-2  # an envelope wider than this, relative to the loss, says nothing about a single step any more
FACTOR = 4


@dataclass(frozen=True)
class Subject:
    """What is trained, for how many steps, and where: on the "cpu" or the "gpu"."""

    recipe: Recipe
    arch: Arch
    data: Dataset
    steps: int
    device: str = "cpu"


def one_ulp(seed: int) -> Edit:
    """A function that moves every weight to a neighbouring number, up or down at random, each time anew.

    One weight alone would not do: it touches few of the sums, whereas another framework rounds every one of them
    differently, and so meets the next ReLU or pool that is near its edge sooner.
    """
    rng = np.random.default_rng(seed)

    @torch.no_grad()
    def edit(model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            up = torch.from_numpy(rng.integers(2, size=tuple(parameter.shape), dtype=bool)).to(parameter.device)
            ends = torch.where(up, torch.inf, -torch.inf).to(parameter.dtype)
            parameter.copy_(torch.nextafter(parameter, ends))

    return edit


def torch_curve(subject: Subject, edit: Edit | None = None) -> Curve:
    """PyTorch's loss at every step; `edit` changes the weights before each."""
    state, _ = _states(subject)
    sums = []
    for batch in _batches(subject):
        if edit:
            edit(state.model)
        sums.append(torch_impl.train.train_step(state, torch_feed.to_device(batch, state.device)))
    return np.array([float(row["loss"]) / float(row["count"]) for row in sums])


def flax_curve(subject: Subject) -> Curve:
    """Flax's loss at every step, from the same initial weights."""
    _, state = _states(subject)
    sums = []
    for batch in _batches(subject):
        state, row = flax_impl.train.train_step(state, flax_feed.to_device(batch, state.device))
        sums.append(row)
    return np.array([float(row["loss"]) / float(row["count"]) for row in sums])


def envelope(subject: Subject, base: Curve, runs: int) -> Curve:
    """The largest relative difference up to each step, over several runs with weights moved by one ULP at each."""
    moved = [np.abs(torch_curve(subject, one_ulp(seed)) - base) / base for seed in range(runs)]
    return np.maximum.accumulate(np.max(moved, 0).clip(FLOOR * np.finfo(np.float32).eps))


def first_outside(ours: Curve, theirs: Curve, width: Curve) -> int | None:
    """The first step at which two curves are further apart than the envelope allows, while it is informative."""
    informative = width < OPEN
    outside = ~(np.abs(theirs - ours) / ours <= FACTOR * width) & informative
    return int(np.argmax(outside)) if outside.any() else None


def _states(subject: Subject) -> tuple[torch_impl.state.TrainState, flax_impl.state.TrainState]:
    steps = steps_per_epoch(subject.data, subject.recipe)
    return make_states(subject.recipe, subject.arch, steps, device=subject.device)


def _batches(subject: Subject) -> Iterator[Batch]:
    return first_batches(subject.data, subject.recipe, subject.steps)
