"""The proof: every architecture and every recipe, both frameworks, tensor by tensor through real training steps.

Runs of many steps use networks eight times narrower (the layers, shapes and code are the same); every architecture
takes a step at full width as well, in every precision.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from _pytest.mark import ParameterSet

from common.arch.zoo import ARCHS
from common.recipes.zoo import RECIPES
from parity_tests import curves
from parity_tests.material import narrow
from parity_tests.results import Record
from parity_tests.single_step import bounds_for, compare_step, measure_step, recipe_for

# Each recipe takes one step in each of three epochs; two of them take four, the last of which is ragged.
SHORT, QUICK, LONG = 3, 12, 200
KINDS = ("digits", "cifar10_best")


def _networks(*quick: str) -> list[ParameterSet]:
    """Every architecture; all but the `quick` ones for the complete run alone."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.full) for name in ARCHS]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", _networks("lenet"))
def test_one_step_at_full_width(name: str) -> None:
    compare_step(name, "float64")


@pytest.mark.usefixtures("x64")
def test_one_step_of_all_convolutions() -> None:
    """`alexnet` at full width but for its hidden dense layers, whose gigabytes take longer than all the rest."""
    compare_step("alexnet", "float64", arch=narrow(ARCHS["alexnet"], conv=1))


@pytest.mark.parametrize("name", _networks("alexnet_cifar", "lenet"))
def test_one_step_in_float32(name: str) -> None:
    compare_step(name, "float32")


@pytest.mark.parametrize("name", _networks("alexnet_cifar", "lenet"))
def test_one_step_in_bfloat16(name: str) -> None:
    compare_step(name, "bfloat16")


@pytest.mark.parametrize("name", _networks("lenet"))
def test_the_bounds_are_near_to_rounding_alone(name: str) -> None:
    """Activations and gradients: at most four times what PyTorch's float32 differs by from its float64, or 32 ULP."""
    recipe = recipe_for(name, "float32")
    bounds, (_, alone) = bounds_for(name, "float32"), measure_step(recipe, ARCHS[name], "ulp", avoid_kinks=True)
    measured = max(alone.largest(phase).size for phase in ("activation", "gradient", "parameter"))
    assert bounds.default <= max(4 * measured, 32)


def _curves() -> Iterator[ParameterSet]:
    """Every recipe, quickly and at length; all that the quick runs leave out, the complete run has."""
    for name in RECIPES:
        yield pytest.param(name, SHORT, marks=pytest.mark.full if name in KINDS else ())
        yield pytest.param(name, QUICK, marks=() if name in KINDS else pytest.mark.full)
        yield pytest.param(name, LONG, marks=pytest.mark.full)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "steps"), list(_curves()))
def test_curve(name: str, steps: int, record: Record) -> None:
    """Dropout, augmentation, momentum, decay and schedule on, a ragged last batch and several epochs included."""
    report = curves.narrow_run(name, steps)
    assert len(report.losses) == steps
    if steps == LONG:
        record(f"curve-{name}", curves.summary(name, report))


@pytest.mark.full
@pytest.mark.usefixtures("x64")
def test_the_whole_default_run(record: Record) -> None:
    """Every epoch of `digits` at full width; the last test image included, both classify alike."""
    report, ours, theirs = curves.whole_digits_run()
    assert (ours.top1, ours.top5, ours.count) == (theirs.top1, theirs.top5, theirs.count)
    assert ours.accuracy > 0.9, "the network must learn, or the curve shows nothing"
    scores = {"torch": ours.top1, "flax": theirs.top1, "of": ours.count}
    record("curve-digits-whole", curves.summary("digits", report) | {"correct": scores})
