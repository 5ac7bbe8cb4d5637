"""The comparer itself: what it must refuse, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parity_tests.compare import Bounds, Mismatch, Trace, compare_run, compare_traces, measure

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
    assert "Shapes" in _difference(_trace(loss=VALUES), _trace(loss=VALUES[:, :1]), bound=np.inf).cause
    assert "Dtypes" in _difference(_trace(loss=VALUES), _trace(loss=VALUES.astype(np.float32)), bound=np.inf).cause


def test_batches_must_be_equal_to_the_bit() -> None:
    other = VALUES.copy()
    other[0, 0] = np.nextafter(other[0, 0], 9)
    assert _difference(_trace(batch=VALUES), _trace(batch=other), bound=1.0).phase == "batch"


def test_a_side_that_runs_out_of_batches_is_named() -> None:
    class Idle:
        name = "idle"

        def step(self, batch: int) -> Trace:
            return {}

    with pytest.raises(Mismatch, match="no batch left"):
        compare_run(Idle(), Idle(), [1, 2], [1], Bounds(1.0))


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


def test_a_decay_that_differs_is_named() -> None:
    left = {"parameter": {"w": VALUES}, "gradient": {"w": VALUES[::-1]}}
    right = {"parameter": {"w": VALUES * 0.999}, "gradient": {"w": VALUES[::-1]}}
    assert "weight decay" in _difference(left, right).cause
