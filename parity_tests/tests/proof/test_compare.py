"""The comparer itself: what it must refuse, and what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from parity.causes import likely_cause
from parity.compare import (
    PHASES,
    Bounds,
    Difference,
    Mismatch,
    Report,
    Trace,
    compare_run,
    compare_traces,
    differences,
    last_place,
    measure,
)
from parity_tests.results import ROOT

PAGE = ROOT / "docs" / "parity.md"
RNG = np.random.default_rng(0)
VALUES = RNG.standard_normal((40, 50))


def _trace(**phases: Any) -> Trace:
    return {phase: {"x": values} for phase, values in phases.items()}


def _difference(left: Trace, right: Trace, bound: float = 1e-9) -> Any:
    with pytest.raises(Mismatch) as caught:
        compare_traces(left, right, 3, Bounds(bound))
    return caught.value.difference


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_not_finite_never_passes(value: float, sides: str) -> None:
    bad = VALUES.copy()
    bad[1, 2] = value
    left, right = (bad if sides in (side, "both") else VALUES for side in ("left", "right"))
    difference = _difference(_trace(gradient=left), _trace(gradient=right), bound=np.inf)
    assert "NaN or infinity" in difference.cause


def test_the_first_phase_is_named() -> None:
    right = _trace(parameter=VALUES + 1, activation=VALUES + 1, loss=VALUES)
    difference = _difference(_trace(parameter=VALUES, activation=VALUES, loss=VALUES), right)
    assert (difference.step, difference.phase, difference.tensor) == (3, "activation", "x")


@pytest.mark.parametrize(("left", "right"), [({}, {"x": VALUES}), ({"x": VALUES}, {})])
def test_a_missing_tensor_is_named(left: Any, right: Any) -> None:
    assert "has no such tensor" in _difference({"loss": left}, {"loss": right}).cause
    with pytest.raises(Mismatch, match=r"^ours and theirs differ first at step 0, loss, x: (ours|theirs) has no such"):
        _run({"loss": left}, {"loss": right})


def test_shape_and_dtype_must_agree() -> None:
    def cause(left: Any, right: Any) -> str:
        return _difference(_trace(gradient=left), _trace(gradient=right), bound=np.inf).cause

    assert cause(VALUES, VALUES[:, :1]) == "left has the shape (40, 50), right (40, 1)."
    assert cause(VALUES, VALUES.astype(np.float32)).startswith("left has float64, right float32: a promotion or a cast")
    whole = np.arange(3)
    for dtype in (float, complex, bool):
        assert "int64" in cause(whole, whole.astype(dtype))
        assert "int64" in cause(whole.astype(dtype), whole)


def test_every_part_of_a_number_counts() -> None:
    assert _difference(_trace(input=VALUES + 0j), _trace(input=VALUES + 1j)).absolute == 1
    large = np.array([2**53, -5])
    assert _difference(_trace(batch=large), _trace(batch=large + np.array([1, 0]))).phase == "batch"
    assert measure(large, large.astype(np.uint64).astype(np.int64), 0, "batch", "x", Bounds(0.0)).within


def test_batches_must_be_equal_to_the_bit() -> None:
    other = VALUES.copy()
    other[0, 0] = np.nextafter(other[0, 0], 9)
    assert _difference(_trace(batch=VALUES), _trace(batch=other), bound=1.0).phase == "batch"


class _Side:
    """Shows the same trace at every step."""

    def __init__(self, name: str, trace: Any) -> None:
        self.name, self.trace = name, trace

    def step(self, batch: Any) -> Any:
        return self.trace


def _run(left: Any, right: Any, ours: Any = (1,), theirs: Any = (1,)) -> Any:
    return compare_run(_Side("ours", left), _Side("theirs", right), ours, theirs, Bounds(1.0))


@pytest.mark.parametrize(("batches", "short"), [(([1, 2], [1]), "theirs"), (([], [None]), "ours")])
def test_a_side_that_runs_out_of_batches_is_named(batches: Any, short: str) -> None:
    trace = _trace(input=VALUES)
    with pytest.raises(Mismatch, match=f"{short} has no batch left"):
        _run(trace, trace, *batches)


def test_nothing_compared_is_no_agreement() -> None:
    with pytest.raises(Mismatch, match="no batch, so nothing was compared"):
        _run(_trace(input=VALUES), _trace(input=VALUES), [], [])
    nothing: list[Any] = [{}, {"loss": {}}]
    for trace in nothing:
        with pytest.raises(Mismatch, match="Neither shows a tensor"):
            _run(trace, trace)
    report = _run(_trace(input=VALUES), _trace(input=VALUES))
    with pytest.raises(ValueError, match="Nothing was compared in the phase 'loss'"):
        report.largest("loss")


@pytest.mark.parametrize(
    ("trace", "error", "message"),
    [
        ({"activations": {"x": VALUES}}, ValueError, r"ours: .*'activations'; known: batch, input"),
        (None, TypeError, "ours: a trace must be a mapping"),
        ({"loss": 2.0}, TypeError, "ours: a trace must be a mapping"),
        ({"loss": {"loss": 2.0}}, TypeError, "ours: loss, loss is of type float"),
        ({"input": {"x": [1.0]}}, TypeError, "ours: input, x is of type list"),
        ({"loss": {"loss": VALUES}}, ValueError, "ours: .* must be one number"),
    ],
)
def test_what_is_no_trace_is_refused(trace: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        _run(trace, trace)
    with pytest.raises(error, match=message.replace("ours", "theirs")):
        _run({"input": {"x": VALUES}}, trace)


def test_the_losses_are_kept() -> None:
    report = _run({"loss": {"loss": np.array([2.5])}}, {"loss": {"loss": np.array([2.25])}}, [None, None], [None, None])
    assert report.losses == [(2.5, 2.25)] * 2
    assert _run({"loss": {"nll": np.float64(1)}}, {"loss": {"nll": np.float64(1)}}).losses == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "ULP"}, "no unit 'ULP'; known: relative"),
        ({"phase": {"weights": 1.0}}, "no phase 'weights'"),
        ({"default": float("nan")}, "zero or more"),
    ],
)
def test_bounds_that_bound_nothing_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bounds(**{"default": 1.0, **fields})


def test_the_sides_are_called_by_their_names() -> None:
    with pytest.raises(Mismatch, match="differ first at step 0, loss, x: theirs holds NaN or infinity"):
        _run(_trace(loss=VALUES), _trace(loss=VALUES * np.nan))
    with pytest.raises(Mismatch, match="theirs has -3 times what ours has"):
        _run(_trace(loss=VALUES), _trace(loss=VALUES * -3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_units_in_the_last_place(dtype: Any) -> None:
    left = np.array([1.0, -3.0], dtype)
    right = left + np.array([0, 5 * np.spacing(dtype(3))], dtype)
    difference = measure(left, right, 0, "loss", "x", Bounds(1.0))
    assert difference.ulp == 5
    assert difference.relative == pytest.approx(5 * np.spacing(dtype(3)) / 3)


@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_the_bound_is_sharp(factor: float) -> None:
    right = VALUES.copy()
    right[0, 0] += factor * 1e-6 * np.abs(VALUES).max()
    passes = measure(VALUES, right, 0, "loss", "x", Bounds(1e-6)).within
    assert passes == (factor < 1)


@pytest.mark.parametrize(
    ("phase", "right", "word"),
    [
        ("batch", VALUES + 1, "fed different bytes"),
        ("parameter", VALUES[::-1], "another order"),
        ("input", VALUES + 0.5, "everywhere"),
        ("loss", VALUES * 4, "0.25|4 times"),
        ("activation", VALUES * (1 + 2.0**-11 * RNG.uniform(-1, 1, VALUES.shape)), "TF32"),
        ("activation", VALUES * (1 + 2.0**-8 * RNG.uniform(-1, 1, VALUES.shape)), "bfloat16"),
    ],
)
def test_the_cause_is_named(phase: str, right: Any, word: str) -> None:
    difference = _difference(_trace(**{phase: VALUES}), _trace(**{phase: right}))
    assert re.search(word, difference.cause), difference.cause


@pytest.mark.parametrize(
    ("other", "word"), [(0.5, "other dropout masks"), (0.4, r"60\.\d% are zero: another dropout rate")]
)
def test_a_dropout_that_differs_is_named(other: float, word: str) -> None:
    kept = RNG.uniform(size=(2, 100, 200))
    left, right = (np.where(kept[side] < rate, 1 / rate, 0.0) for side, rate in enumerate((0.5, other)))
    difference = _difference({"activation": {"drop6": left}}, {"activation": {"drop6": right}})
    assert re.search(word, difference.cause), difference.cause


def test_a_decay_that_differs_is_named() -> None:
    left = {"parameter": {"w": VALUES}, "gradient": {"w": VALUES[::-1]}}
    right = {"parameter": {"w": VALUES * 0.999}, "gradient": {"w": VALUES[::-1]}}
    assert "weight decay" in _difference(left, right).cause


NOISE = RNG.standard_normal(VALUES.shape)
OTHER = RNG.standard_normal(VALUES.shape)


def test_the_phases_are_a_steps_in_the_order_of_their_computing() -> None:
    expected = ("batch", "input", "activation", "loss", "gradient", "optimizer", "parameter", "statistic")
    assert expected == PHASES


@pytest.mark.parametrize("scale", [1e-6, 1e-30, 1e-100, 1e30])
def test_no_scale_is_too_small_to_be_compared_unless_a_floor_is_given(scale: float) -> None:
    """Fresh gradients are of 1e-6: an absolute bound would pass a scrambled one."""
    right = VALUES.copy()
    place = np.unravel_index(np.abs(VALUES).argmin(), VALUES.shape)
    right[place] += 1e-3 * np.abs(VALUES).max()
    found = measure(VALUES * scale, right * scale, 0, "gradient", "x", Bounds(0.9e-3))
    assert found.relative == pytest.approx(1e-3, rel=1e-9)
    assert found.norm == pytest.approx(1e-3 * np.abs(VALUES).max() / np.linalg.norm(right), rel=1e-9)
    assert found.ulp == pytest.approx(1e-3 * 2**52 * _mantissa(np.abs(VALUES * scale).max()), rel=1e-9)
    assert not found.within
    floored = measure(VALUES * scale, right * scale, 0, "gradient", "x", Bounds(0.9e-3, floor=1e40))
    assert floored.within
    assert floored.relative == pytest.approx(found.absolute / 1e40)
    assert floored.norm == pytest.approx(found.absolute / 1e40)
    assert floored.ulp == pytest.approx(found.absolute / (2.0**-52 * 2 ** np.floor(np.log2(1e40))))


def test_the_floor_is_near_the_smallest_number() -> None:
    found = measure(np.array([1e-298]), np.array([2e-298]), 0, "gradient", "x", Bounds(0.4))
    assert found.relative == pytest.approx(0.5)
    assert not found.within
    assert measure(np.array([0.0]), np.array([1e-302]), 0, "gradient", "x", Bounds(1.0)).relative == pytest.approx(0.01)


def _mantissa(value: float) -> float:
    return float(np.frexp(value)[0]) * 2


def test_the_scale_is_the_larger_sides() -> None:
    for sides in ((VALUES, VALUES * 4), (VALUES * 4, VALUES)):
        found = measure(*sides, 0, "loss", "x", Bounds(1.0))
        assert found.relative == pytest.approx(0.75)
        assert found.norm == pytest.approx(0.75)
        assert found.absolute == pytest.approx(3 * np.abs(VALUES).max())


@pytest.mark.parametrize("unit", ["relative", "ulp", "norm"])
def test_the_unit_says_which_figure_is_bounded(unit: Any) -> None:
    """One pixel of 2,000 is off: little by the norm, a thousandth by the largest, 2**42 units in the last place."""
    right = VALUES.copy()
    right[3, 4] += 1e-3 * np.abs(VALUES).max()
    sizes = {
        "relative": 1e-3,
        "ulp": 1e-3 * 2**52 * _mantissa(np.abs(VALUES).max()),
        "norm": 1e-3 * np.abs(VALUES).max() / max(np.linalg.norm(VALUES), np.linalg.norm(right)),
    }
    for factor in (0.99, 1.01):
        found = measure(VALUES, right, 0, "loss", "x", Bounds(sizes[unit] * factor, unit=unit))
        assert found.size == pytest.approx(sizes[unit], rel=1e-6)
        assert (found.unit, found.within) == (unit, factor > 1)
        assert f"(bound {sizes[unit] * factor:.3g} {unit})" in str(found)
    assert Bounds(1.0).unit == "relative"
    assert measure(VALUES, right, 0, "loss", "x", Bounds(found.absolute / np.abs(VALUES).max())).within, (
        "the bound itself"
    )


def test_a_phase_has_its_own_bound_and_batches_have_none() -> None:
    bounds = Bounds(1e-3, {"loss": 1e-6, "batch": 1.0})
    assert [bounds.of(phase) for phase in ("batch", "loss", "gradient")] == [0.0, 1e-6, 1e-3]
    assert [Bounds(0.5).of(phase) for phase in PHASES] == [0.0] + [0.5] * 7
    with pytest.raises(ValueError, match="zero or more"):
        Bounds(1.0, {"loss": -1e-9})
    assert Bounds(0.0, {"loss": 0.0}).of("loss") == 0.0


def test_the_last_place_of_every_kind_of_number() -> None:
    import ml_dtypes

    kinds = {np.float16: 2.0**-10, np.float32: 2.0**-23, np.float64: 2.0**-52, ml_dtypes.bfloat16: 2.0**-7}
    for kind, unit in kinds.items():
        assert last_place(np.dtype(kind)) == unit
        left = np.array([1.5, -6.0, 0.25]).astype(kind)
        right = left.copy()
        right[0] = kind(1.5 + 8 * unit)
        found = measure(left, right, 0, "loss", "x", Bounds(1.0, unit="ulp"))
        assert found.ulp == 2, "of 6, whose last place is four times that of 1"
        assert found.absolute == 8 * unit
    assert (last_place(np.dtype(int)), last_place(np.dtype(bool))) == (0.0, 0.0)
    assert measure(np.array([5, 9]), np.array([5, 12]), 0, "loss", "x", Bounds(1.0)).ulp == 3, "a whole number's is 1"
    turned = measure(np.array([3 + 4j]), np.array([3 + 4.5j]), 0, "loss", "x", Bounds(1.0))
    assert (turned.absolute, turned.ulp) == (0.5, 0.5 / (2.0**-52 * 4))


def test_zeros_and_the_smallest_numbers() -> None:
    zeros, bounds = np.zeros(3), Bounds(0.0)
    for right in (zeros, -zeros):
        found = measure(zeros, right, 0, "loss", "x", bounds)
        assert (found.absolute, found.relative, found.ulp, found.norm, found.within) == (0, 0, 0, 0, True)
    for tiny in (5e-324, 2.3e-308):
        found = measure(zeros, np.array([0, tiny, 0]), 0, "loss", "x", bounds)
        assert found.absolute == tiny
        assert found.relative > 0
        assert found.ulp > 0
        assert found.norm > 0
        assert not found.within
    small = np.array([1e-45, 0], np.float32)  # the smallest float32
    assert measure(small, small * 0, 0, "loss", "x", Bounds(0.5)).relative == 1


def test_tensors_without_elements_agree() -> None:
    none = np.zeros((3, 0))
    found = measure(none, none, 4, "loss", "x", Bounds(0.0))
    assert found == Difference(4, "loss", "x", absolute=0, relative=0, ulp=0, norm=0, bound=0)
    assert found.within


def test_what_cannot_be_compared_has_no_figures() -> None:
    found = measure(VALUES, VALUES[0], 4, "loss", "x", Bounds(0.5))
    assert (found.step, found.phase, found.tensor, found.bound) == (4, "loss", "x", 0)
    assert np.isnan([found.absolute, found.relative, found.ulp, found.norm]).all()
    assert not found.within


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_the_report_keeps_each_tensors_worst(order: tuple[int, ...]) -> None:
    report, sizes = Report(), (0.1, 0.3, 0.2)
    for step in order:
        for tensor, factor in (("x", 1.0), ("y", 0.5)):
            report.add(Difference(step, "loss", tensor, 9 - sizes[step], sizes[step] * factor, 0.0, 0.0, 1.0))
    report.add(Difference(7, "batch", "x", 0.0, 0.25, 0.0, 0.0, 1.0))
    assert {key: (d.step, d.relative) for key, d in report.worst.items()} == {
        ("loss", "x"): (1, 0.3),
        ("loss", "y"): (1, 0.15),
        ("batch", "x"): (7, 0.25),
    }
    assert report.largest() is report.largest("loss") is report.worst["loss", "x"]
    assert report.largest("batch").step == 7
    assert report.phases() == ["batch", "loss"]
    report.add(Difference(8, "loss", "x", 0.0, 0.3, 0.0, 0.0, 1.0))
    assert report.largest().step == 1, "the first of two that are as large"
    with pytest.raises(ValueError, match="phase 'input'"):
        report.largest("input")


def test_a_run_reports_the_worst_of_all_its_steps() -> None:
    class Drifting:
        def __init__(self, name: str, drifts: list[float]) -> None:
            self.name, self.drifts = name, iter(drifts)

        def step(self, batch: Any) -> Any:
            return {"loss": {"loss": np.array(1 + next(self.drifts))}}

    report = compare_run(Drifting("a", [0.0] * 3), Drifting("b", [1e-3, 5e-3, 2e-3]), "xyz", "xyz", Bounds(1e-2))
    assert (report.largest().step, report.losses[2]) == (1, (1.0, 1.002))
    with pytest.raises(Mismatch, match="a and b differ first at step 2, loss, loss") as caught:
        compare_run(Drifting("a", [0.0] * 4), Drifting("b", [0.0, 1e-3, 9.0, 99.0]), "wxyz", "wxyz", Bounds(1e-2))
    assert caught.value.difference.step == 2


def test_the_first_tensor_is_named_in_the_left_traces_order() -> None:
    left = {"gradient": {"b": VALUES, "c": VALUES, "a": VALUES}}
    for wrong, first in ((("a", "c"), "c"), (("a", "b", "c"), "b"), (("a",), "a")):
        right = {"gradient": {name: VALUES + (name in wrong) for name in ("a", "b", "c")}}
        assert _difference(left, right).tensor == first
    more = {"gradient": {"new": VALUES, **{name: VALUES + (name == "a") for name in "abc"}}}
    assert _difference(left, more).tensor == "a", "what the right trace has besides comes after"
    assert _difference({"gradient": {"b": VALUES}}, {"gradient": {"x": VALUES, "b": VALUES}}).cause.startswith(
        "left has no"
    )
    assert _difference({"gradient": {"b": VALUES}}, {"gradient": {}}).cause.startswith("right has no")


def test_a_pair_that_shows_no_parameters_is_compared_as_well() -> None:
    found = _difference({"optimizer": {"momentum_buffer/x": VALUES}}, {"optimizer": {"momentum_buffer/x": OTHER}})
    assert (found.phase, found.cause) == ("optimizer", _cause("optimizer", VALUES, OTHER))


def test_what_is_wrong_besides_numbers_never_passes() -> None:
    odd = Difference(0, "loss", "x", 0.0, 0.0, 0.0, 0.0, 1.0, cause="odd")
    assert not odd.within
    assert Difference(0, "loss", "x", 0.0, 0.0, 0.0, 0.0, 0.0).within
    assert not Difference(0, "loss", "x", np.nan, np.nan, np.nan, np.nan, np.inf).within
    assert str(Difference(2, "loss", "", np.nan, np.nan, np.nan, np.nan, 0.0, cause="gone")) == "step 2, loss: gone"


def _cause(phase: str, left: Any, right: Any, tensor: str = "x", **others: Any) -> str:
    """Of a difference in `tensor`; what else the left trace holds is given by phase."""
    trace = {phase: {tensor: left}}
    return likely_cause(phase, tensor, {**others, **trace}, {**others, phase: {tensor: right}}, ("ours", "theirs"))


HINTS = {
    "batch": "different bytes",
    "input": "^Preprocessing: crop",
    "activation": "^This layer's forward pass",
    "loss": "^The loss: its reduction",
    "gradient": "^This layer's backward pass",
    "optimizer": "^The optimizer's memory",
    "parameter": "^The update: learning rate",
    "statistic": "^Running statistics",
}


@pytest.mark.parametrize("phase", PHASES)
def test_where_nothing_explains_a_difference_its_phase_does(phase: str) -> None:
    assert re.search(HINTS[phase], _cause(phase, VALUES, OTHER)), _cause(phase, VALUES, OTHER)
    assert HINTS.keys() == {*PHASES}


MULTIPLES = {
    "the parameters": ("weight decay", {"parameter": {"x": NOISE}}),
    "the momentum": ("the update: the learning rate", {"optimizer": {"momentum_buffer/x": NOISE}}),
    "Adam's momentum": ("the update: the learning rate", {"optimizer": {"exp_avg/x": NOISE}}),
    "the gradient": ("the gradient: the learning rate, its schedule or Nesterov", {"gradient": {"x": NOISE}}),
}


@pytest.mark.parametrize("name", MULTIPLES)
@pytest.mark.parametrize(("rest", "named"), [(0.0, True), (0.005, True), (0.03, False)])
def test_a_multiple_of_what_an_optimizer_adds_is_named(name: str, rest: float, named: bool) -> None:
    """Up to a hundredth of it, which an update that changed it meanwhile leaves."""
    word, others = MULTIPLES[name]
    phase, tensor, left = "parameter", "x", VALUES
    if name == "the parameters":
        phase, tensor = "optimizer", "momentum_buffer/x"
    right = left - 0.01 * (NOISE + rest * OTHER)
    assert (word in _cause(phase, left, right, tensor, **others)) == named
    assert word not in _cause("statistic", left, right, tensor, **others)
    assert word not in _cause(phase, left, right, tensor)


def test_a_decay_of_the_parameters_themselves_is_told_from_a_rate() -> None:
    others: Any = {"gradient": {"x": NOISE}, "optimizer": {"momentum_buffer/x": NOISE}}
    assert "weight decay" in _cause("parameter", VALUES, VALUES * 0.999, **others)
    assert "the update" in _cause("parameter", VALUES, VALUES + 1e-3 * NOISE, **others)
    both: Any = {"gradient": {"x": VALUES}, "optimizer": {"momentum_buffer/x": VALUES}}
    assert "weight decay" in _cause("parameter", VALUES, VALUES * 0.999, **both), "the first of two that explain it"


@pytest.mark.parametrize(
    ("phase", "factor", "text"),
    [
        ("loss", 0.5, r"^theirs has 0\.5 times what ours has: the reduction \(mean, sum, label smoothing\)\.$"),
        ("statistic", 0.9, r"^theirs has 0\.9 times what ours has: momentum, or n / \(n - 1\)\.$"),
        ("gradient", -64.0, r"^theirs has -64 times what ours has\.$"),
        ("activation", 1.25, r"^theirs has 1\.25 times what ours has\.$"),
    ],
)
def test_a_factor_is_named_with_what_it_may_be(phase: str, factor: float, text: str) -> None:
    assert re.search(text, _cause(phase, VALUES, VALUES * factor))
    assert not re.search("times", _cause(phase, VALUES, VALUES * factor + 0.03 * abs(factor - 1) * OTHER))


def test_a_shift_is_named_where_it_is_one() -> None:
    assert _cause("activation", VALUES, VALUES - 0.25) == "The difference is everywhere 0.25: a bias or a mean."
    assert "everywhere" not in _cause("activation", VALUES, VALUES - 0.25 + 0.01 * NOISE)
    assert "everywhere" not in _cause("loss", np.array(2.0), np.array(2.5))


def test_another_order_is_named_where_the_values_are_the_same() -> None:
    word = "same values in another order"
    square = VALUES[:, :40]
    assert word in _cause("activation", square, square.T)
    changed = square.T.copy()
    changed[0, 0] += 1e-3
    assert word not in _cause("activation", square, changed)
    near = np.array([1.0, 1.0005] * 8)
    assert word not in _cause("activation", near, near[::-1]), "equal but for rounding to 16 bits"


def test_images_that_are_mirrored_are_counted() -> None:
    images = RNG.uniform(size=(4, 3, 5, 6))
    flipped = images.copy()
    flipped[[0, 2, 3]] = images[[0, 2, 3], :, :, ::-1]
    text = "3 of 4 images are mirrored on one side only: the flips."
    assert _cause("input", images, flipped) == text
    assert _cause("activation", images, flipped) != text
    upside_down = images.copy()
    upside_down[1] = images[1, :, ::-1]
    assert "mirrored" not in _cause("input", images, upside_down)
    flipped[0, 0, 0, 0] += 1e-3
    assert "mirrored" not in _cause("input", images, flipped)


def test_masks_are_told_from_rates_by_their_own_noise() -> None:
    """Of 10,000 elements the share that is zero has a standard error of at most 0.5 %: six of them are noise."""
    for share, word in ((0.52, "other dropout masks"), (0.54, r"50\.0% against 54\.0% are zero: another dropout rate")):
        left, right = (np.arange(10_000) >= 10_000 * zero for zero in (0.5, share))
        assert re.search(word, _cause("activation", left * 2.0, right * 2.0, "drop7"))
        assert "dropout" not in _cause("activation", left * 2.0, right * 2.0, "fc7")
    moved = np.roll(np.arange(1000) % 2, 1) * 2.0
    said = _cause("activation", np.arange(1000) % 2 * 2.0, moved, "drop6")
    assert said.startswith("100.0% of the zeros are in other places")
    assert "dropout" not in _cause("activation", VALUES, VALUES + NOISE, "drop6"), "the zeros are the same"


ROUNDINGS = {
    20: "rounding in float32",
    29: "rounding in float32",
    10: "TF32 or float16",
    13: "TF32",
    7: "bfloat16",
    8: "bfloat16",
}


@pytest.mark.parametrize("bits", ROUNDINGS)
@pytest.mark.parametrize("phase", ["input", "activation", "loss", "gradient"])
def test_noise_of_the_size_of_a_dtypes_rounding_is_named(bits: int, phase: str) -> None:
    size = 1.4 * 2.0**-bits * np.abs(VALUES).max() / np.abs(NOISE).max()
    said = _cause(phase, VALUES, VALUES + size * NOISE)
    assert ROUNDINGS[bits] in said
    assert said.startswith(f"A relative difference of {1.4 * 2.0**-bits:.1g}"[:30])
    for other in ("optimizer", "parameter", "statistic"):
        assert re.search(HINTS[other], _cause(other, VALUES, VALUES + size * NOISE))


@pytest.mark.parametrize("bits", [4, 16, 33])
def test_noise_of_no_dtypes_size_is_not(bits: int) -> None:
    assert re.search(HINTS["gradient"], _cause("gradient", VALUES, VALUES + 2.0**-bits * NOISE / 2))


def test_what_has_one_sign_or_follows_the_values_is_no_rounding() -> None:
    size = 2.0**-11
    for difference in (np.abs(NOISE), VALUES + NOISE, NOISE + 0.5):
        assert re.search(HINTS["activation"], _cause("activation", VALUES, VALUES + size * difference))
    few = _cause("gradient", VALUES[0, :8], VALUES[0, :8] + size * np.abs(NOISE[0, :8]))
    assert "TF32" in few, "of eight numbers the signs say nothing"


def test_the_example_in_the_docs() -> None:
    """It runs as printed, and a rate that differs is found and named as printed."""
    text = PAGE.read_text(encoding="utf-8").split("## A pair of your own")[1]
    code, said = (text.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "text"))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    wrong = code.replace('("theirs", 0.1)', '("theirs", 0.1001)')
    found = subprocess.run([sys.executable, "-c", wrong], cwd=ROOT, capture_output=True, text=True)
    assert " ".join(said.split()) in found.stderr


def test_single_tensors_have_bounds_by_pattern() -> None:
    """The first pattern that fits, of the name or of phase and name; what is exempt must be finite all the same."""
    bounds = Bounds(1e-9, {"gradient": 1e-6}, tensor={"gradient/a.*": 1e-3, "*.var": np.inf, "a.*": 1e-4})
    given = [("gradient", "a.w"), ("parameter", "a.w"), ("gradient", "b.var"), ("gradient", "b.w"), ("loss", "b.w")]
    assert [bounds.of(*place) for place in given] == [1e-3, 1e-4, np.inf, 1e-6, 1e-9]
    with pytest.raises(ValueError, match="zero or more"):
        Bounds(1.0, tensor={"a": -1.0})
    free = Bounds(1e-9, tensor={"x": np.inf})
    compare_traces(_trace(statistic=VALUES), _trace(statistic=VALUES * 2), 0, free)
    with pytest.raises(Mismatch, match="NaN or infinity"):
        compare_traces(_trace(statistic=VALUES), _trace(statistic=VALUES * np.nan), 0, free)


@pytest.mark.parametrize(("size", "passes"), [(0.9e-13, True), (1.1e-13, False)])
def test_what_ought_to_be_zero_is_measured_on_the_scale_of_its_neighbours(size: float, passes: bool) -> None:
    """A share of 1e-4 of the largest gradient beside it, or of the largest of its slot in the optimizer's memory."""
    large, bounds = np.array([1.0, -0.5]), Bounds(1e-9, share=1e-4)
    for phase, prefix in (("gradient", ""), ("optimizer", "momentum/")):
        sides = [
            {phase: {f"{prefix}w": large, f"{prefix}b": np.array([at]), "other/b": large * 1e9}} for at in (0.0, size)
        ]
        found = [d.within for d in differences(sides[0], sides[1], 0, bounds)]
        assert found == [True, passes, True]
    with pytest.raises(Mismatch):
        compare_traces(sides[0], sides[1], 0, Bounds(1e-9))


@pytest.mark.parametrize(("size", "passes"), [(0.9e-11, True), (1.1e-11, False)])
def test_a_floor_that_is_given_counts_where_a_share_is_less(size: float, passes: bool) -> None:
    """And where all of a phase is zero, as of a frozen layer, there is nothing to divide by but it."""
    bounds = Bounds(1e-9, floor=1e-2, share=1e-4)
    one, other = ({"gradient": {"w": np.ones(2), "b": np.array([at])}} for at in (0.0, size))
    assert [d.within for d in differences(one, other, 0, bounds)] == [True, passes]
    zeros: Trace = {"gradient": {"w": np.zeros(2)}}
    [found] = differences(zeros, zeros, 0, Bounds(1e-9, share=1e-4))
    assert (found.within, found.relative) == (True, 0)


def test_what_is_too_large_on_the_right_hides_nothing_small() -> None:
    """The scale of a phase is the left's, which the right is held to."""
    left, right = ({"gradient": {"b": np.array([b]), "w": np.array([w])}} for b, w in ((1e-3, 1.0), (1.1e-3, 1e6)))
    assert [d.within for d in differences(left, right, 0, Bounds(1e-4, share=1e-4))] == [False, False]
