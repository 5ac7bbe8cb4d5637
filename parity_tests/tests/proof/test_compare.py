"""The comparer itself: what it must refuse, and what it says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from parity.compare import Bounds, Mismatch, Trace, compare_run, compare_traces, measure
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


def test_shape_and_dtype_must_agree() -> None:
    def cause(left: Any, right: Any) -> str:
        return _difference(_trace(gradient=left), _trace(gradient=right), bound=np.inf).cause

    assert "shape" in cause(VALUES, VALUES[:, :1])
    assert "float32" in cause(VALUES, VALUES.astype(np.float32))
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
        ({"loss": {"loss": VALUES}}, ValueError, "must be one number"),
    ],
)
def test_what_is_no_trace_is_refused(trace: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        _run(trace, trace)


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
    import re

    difference = _difference(_trace(**{phase: VALUES}), _trace(**{phase: right}))
    assert re.search(word, difference.cause), difference.cause


@pytest.mark.parametrize(
    ("other", "word"), [(0.5, "other dropout masks"), (0.4, r"60\.\d% are zero: another dropout rate")]
)
def test_a_dropout_that_differs_is_named(other: float, word: str) -> None:
    import re

    kept = RNG.uniform(size=(2, 100, 200))
    left, right = (np.where(kept[side] < rate, 1 / rate, 0.0) for side, rate in enumerate((0.5, other)))
    difference = _difference({"activation": {"drop6": left}}, {"activation": {"drop6": right}})
    assert re.search(word, difference.cause), difference.cause


def test_a_decay_that_differs_is_named() -> None:
    left = {"parameter": {"w": VALUES}, "gradient": {"w": VALUES[::-1]}}
    right = {"parameter": {"w": VALUES * 0.999}, "gradient": {"w": VALUES[::-1]}}
    assert "weight decay" in _difference(left, right).cause


def test_the_example_in_the_docs() -> None:
    """It runs as printed, and a rate that differs is found and named as printed."""
    text = PAGE.read_text(encoding="utf-8").split("## A pair of your own")[1]
    code, said = (text.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "text"))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    wrong = code.replace('("theirs", 0.1)', '("theirs", 0.1001)')
    found = subprocess.run([sys.executable, "-c", wrong], cwd=ROOT, capture_output=True, text=True)
    assert " ".join(said.split()) in found.stderr
