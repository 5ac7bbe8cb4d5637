"""float32 training curves stay inside a measured envelope; faults that no forward check can see leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flax_impl.state
import flax_impl.train
import torch_impl.state
import torch_impl.train
from common.arch.spec import DenseSpec
from common.arch.zoo import ARCHS
from common.recipes.spec import Optimizer, Preprocess, Recipe, Schedule
from parity_tests.material import digits
from parity_tests.mutants import Patch, optimizer_of_torch, spec_of_flax, wrap
from parity_tests.noise import OPEN, Curve, Subject, envelope, first_outside, flax_curve, one_ulp, torch_curve

STEPS, LONG, RUNS = 60, 400, 10


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """So that PyTorch's sums do not depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _subject(steps: int, seed: int = 0) -> Subject:
    """LeNet on the digits with dropout, random crops, momentum, decay and a schedule: it learns within a minute."""
    recipe = Recipe(
        name="envelope",
        dataset="digits",
        arch="lenet",
        init="he",
        epochs=LONG,
        batch_size=16,
        optimizer=Optimizer(lr=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(milestones=(1,)),
        preprocess=Preprocess(pad=1, crop=8, flip=True, resize=28, mean=(0.5,), std=(0.5,)),
        seed=seed,
    )
    arch = replace(ARCHS["lenet"], dense=(DenseSpec(128, 0.3), DenseSpec(10, 0.3)))
    data = digits()
    return Subject(recipe, arch, replace(data, ids=data.ids[: 16 * 18 - 7]), steps)


@cache
def _base() -> tuple[Curve, Curve]:
    subject = _subject(STEPS)
    curve = torch_curve(subject)
    return curve, envelope(subject, curve, RUNS)


def test_the_frameworks_differ_by_no_more_than_rounding_does() -> None:
    curve, width = _base()
    assert curve[-5:].mean() < curve[:5].mean(), "the network must learn, or the curve shows nothing"
    assert width[-1] < OPEN, "the envelope must stay informative for as long as it is used"
    assert first_outside(curve, flax_curve(_subject(STEPS)), width) is None


def _barely_smoothed(
    f: Callable[..., torch.Tensor], logits: torch.Tensor, targets: torch.Tensor, **keywords: Any
) -> torch.Tensor:
    return f(logits, targets, **{**keywords, "label_smoothing": 1e-3})


def _lower_rate(f: Callable[..., Any], model: torch.nn.Module, *args: Any, **options: Any) -> Any:
    for module in model.children():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.299
    return f(model, *args, **options)


def _late(f: Callable[..., Any], *args: Any) -> Any:
    rate = f(*args)
    return lambda count: rate(count + 1)


# None of these changes the logits of a given network in evaluation, by as much as a bit.
FAULTS: dict[str, Patch] = {
    "momentum of 0.899": optimizer_of_torch(momentum=0.899),
    "weight decay of 4e-4": optimizer_of_torch(weight_decay=4e-4),
    "learning rate 0.1 % too large": optimizer_of_torch(lr=0.02002),
    "dropout of 0.299": wrap(torch_impl.state, "share_dropout", _lower_rate),
    "label smoothing of 0.001": wrap(F, "cross_entropy", _barely_smoothed),
    "the rate falls one step early": wrap(flax_impl.state, "build_schedule", _late),
    "crops counted from the unpadded image": spec_of_flax(pad=0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_leaves_the_envelope(fault: str) -> None:
    curve, width = _base()
    subject = _subject(STEPS)
    with FAULTS[fault]():
        wrong = (train(subject) for train in (torch_curve, flax_curve))  # the second where the first is not enough
        assert any(first_outside(curve, faulty, width) is not None for faulty in wrong)


@pytest.mark.full
def test_where_the_envelope_has_opened_the_curves_agree_in_distribution() -> None:
    """Six seeds: the mean loss of the last fifth of each run. The difference of the frameworks, seed by seed, is
    compared with that of PyTorch to itself with all weights moved by one ULP, by Welch's t: 4.0 is a chance of about
    1 in 1,000 with five degrees of freedom."""
    tail = LONG // 5
    between, within = [], []
    opened = 0
    for seed in range(6):
        subject = _subject(LONG, seed)
        curve = torch_curve(subject)
        moved = torch_curve(subject, one_ulp(seed))
        between.append((flax_curve(subject)[-tail:].mean() - curve[-tail:].mean()) / curve[-tail:].mean())
        within.append((moved[-tail:].mean() - curve[-tail:].mean()) / curve[-tail:].mean())
        opened += bool((np.abs(moved - curve) / curve > OPEN).any())
    assert opened >= 4, f"the envelope opened in {opened} of 6 runs only: train longer"
    spread = np.sqrt((np.var(between, ddof=1) + np.var(within, ddof=1)) / len(between))
    assert abs(np.mean(between) - np.mean(within)) < 4.0 * spread, (between, within)
