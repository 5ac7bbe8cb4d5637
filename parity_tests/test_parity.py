"""The proof: every architecture and every recipe, both frameworks, tensor by tensor through real training steps.

float64 shows that the mathematics is one: the bounds are tight and asserted at every step. Runs of many steps use
networks eight times narrower (the layers, shapes and code are the same); every architecture takes a step at full
width as well.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.arch import ARCHS
from common.pipeline import steps_per_epoch
from common.recipes import RECIPES, Optimizer, Preprocess, Recipe
from parity_tests.compare import Bounds, compare_run
from parity_tests.material import data_for, first_batches, narrow, pixels
from parity_tests.sides import make_pair

EXACT = Bounds(1e-12, {"optimizer": 1e-11})
# Adam divides by the root of a mean square: where gradients are nearly zero it amplifies their rounding.
BOUNDS = {"sgd": Bounds(1e-11), "adam": Bounds(1e-9), "adamw": Bounds(1e-9)}
QUICK, LONG = 12, 200


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ARCHS)
def test_one_step_at_full_width(name: str) -> None:
    arch = ARCHS[name]
    recipe = Recipe(
        name=name,
        dataset="pixels",
        arch=name,
        init="torch",
        epochs=1,
        batch_size=2,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
        preprocess=Preprocess(mean=(0.5,), std=(0.25,)),
        precision="float64",
    )
    data = pixels(arch, 2)
    left, right = make_pair(recipe, arch, 1)
    compare_run(left, right, first_batches(data, recipe, 1), first_batches(data, recipe, 1), EXACT)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("steps", [QUICK, pytest.param(LONG, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", RECIPES)
def test_curve(name: str, steps: int) -> None:
    """Dropout, augmentation, momentum, decay and schedule on, a ragged last batch and several epochs included."""
    recipe = replace(RECIPES[name], precision="float64", batch_size=16, pretrained=False, epochs=LONG)
    data = data_for(recipe)
    per_epoch = steps // 3  # so that the run crosses epochs
    examples = per_epoch * recipe.batch_size - 5  # so that the last batch is smaller
    data = replace(data, ids=data.ids[:: max(len(data) // examples, 1)][:examples])
    schedule = replace(recipe.schedule, milestones=(1, 2))
    recipe = replace(recipe, schedule=schedule)
    arch = narrow(recipe.model_arch(data.image, len(data.class_names)))
    left, right = make_pair(recipe, arch, steps_per_epoch(data, recipe))
    ours, theirs = (first_batches(data, recipe, steps) for _ in range(2))
    report = compare_run(left, right, ours, theirs, BOUNDS[recipe.optimizer.name])
    assert len(report.losses) == steps
