"""Whole training runs in float64, both frameworks side by side, every tensor of every step compared."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import flax_impl.evaluate
import torch_impl.evaluate
from common.data.load import load_dataset
from common.data.pipeline import batches, steps_per_epoch
from common.recipes.spec import Precision
from common.recipes.zoo import RECIPES
from common.runs.scores import Scores
from common.system import package_versions
from flax_impl import feed as flax_feed
from parity.compare import Bounds, Report, compare_run
from parity_tests.material import data_for, first_batches, narrow
from parity_tests.noise import Subject
from parity_tests.sides import make_pair
from torch_impl import feed as torch_feed
from torch_impl.device import describe, pick_device


def bounds_for(optimizer: str) -> Bounds:
    """What a run may part by. All but SGD divide by a root of squares: where gradients are nearly zero that amplifies
    their rounding."""
    return Bounds(1e-11 if optimizer == "sgd" else 1e-9)


# The narrow runs' batch, and the largest one whose rate they keep. cifar10_fast's 0.1 is for 512 examples: on 16,
# PyTorch parts from itself, its first weights moved by one ULP, by 1.1e-11 of a gradient within 200 steps; at a quarter
# of the rate by 6.7e-14 (float64, seed 0).
BATCH, LARGEST = 16, 128


def narrow_subject(name: str, steps: int, precision: Precision = "float64", device: str = "cpu") -> Subject:
    """A recipe with everything on, on a network eight times narrower, over three epochs with a ragged last batch."""
    recipe = replace(RECIPES[name], precision=precision, pretrained="no", epochs=steps)
    rate = recipe.optimizer.lr * min(LARGEST / recipe.batch_size, 1)
    recipe = replace(recipe, batch_size=BATCH, optimizer=replace(recipe.optimizer, lr=rate))
    data = data_for(recipe)
    examples = steps // 3 * recipe.batch_size - 5
    data = replace(data, ids=data.ids[:: max(len(data) // examples, 1)][:examples])
    if recipe.schedule.name == "step":
        recipe = replace(recipe, schedule=replace(recipe.schedule, milestones=(1, 2)))
    return Subject(recipe, narrow(recipe.model_arch(data.image, len(data.class_names))), data, steps, device)


def run(subject: Subject, bounds: Bounds | None = None) -> Report:
    """Both frameworks train a subject.

    Raises:
        Mismatch: a tensor of a step differs by more than the bounds, or `bounds_for`, allow.
    """
    recipe, data = subject.recipe, subject.data
    left, right = make_pair(recipe, subject.arch, steps_per_epoch(data, recipe), device=subject.device)
    ours, theirs = (first_batches(data, recipe, subject.steps) for _ in range(2))
    return compare_run(left, right, ours, theirs, bounds or bounds_for(recipe.optimizer.name))


def narrow_run(name: str, steps: int, device: str = "cpu") -> Report:
    """`narrow_subject` in float64.

    Raises:
        Mismatch: as `run`.
    """
    return run(narrow_subject(name, steps, device=device))


def whole_digits_run() -> tuple[Report, Scores, Scores]:
    """The default recipe as it is, every epoch at full width, and the test scores of both at its end.

    Raises:
        Mismatch: a tensor of a step differs by more than `bounds_for` allows.
    """
    recipe = replace(RECIPES["digits"], precision="float64")
    train, test = load_dataset(recipe.dataset)
    arch = recipe.model_arch(train.image, len(train.class_names))
    left, right = make_pair(recipe, arch, steps_per_epoch(train, recipe))

    def every() -> Any:
        return (batch for epoch in range(recipe.epochs) for batch in batches(train, recipe, epoch, train=True))

    report = compare_run(left, right, every(), every(), bounds_for(recipe.optimizer.name))
    [ours] = torch_feed.feeds([test], recipe, left.state.device)
    [theirs] = flax_feed.feeds([test], recipe, right.state.device)
    scores = torch_impl.evaluate.evaluate(left.state.model, ours)
    return report, scores, flax_impl.evaluate.evaluate(right.state.model, right.state.variables, theirs)


def summary(name: str, report: Report) -> dict[str, Any]:
    """What a run is filed as: the largest difference of each phase and both losses at each step."""
    return {
        "recipe": name,
        "precision": "float64",
        "steps": len(report.losses),
        "largest": {phase: asdict(report.largest(phase)) for phase in report.phases()},
        "losses": report.losses,
        "device": describe(pick_device("cpu")),
        "versions": package_versions(),
    }
