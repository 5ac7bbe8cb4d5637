"""The comparer: walk two implementations through the same training steps and name the first tensor that differs.

A `Side` trains on one batch and tells everything on the way; `compare_run` sets two sides against each other, phase by
phase in the order in which a step computes them. `parity.check` does so for two models; for anything else, write two
classes with a `name` and a `step` method that returns a `Trace` in one common layout.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import zip_longest
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from parity.causes import Context, as_float64, kept_slots, likely_cause

Tensors = Mapping[str, npt.NDArray[Any]]
Trace = Mapping[str, Tensors]
Unit = Literal["relative", "ulp", "norm"]

PHASES = ("batch", "input", "activation", "loss", "gradient", "optimizer", "parameter", "statistic")
"""A step's phases in the order of their computing. Within one, tensors are compared in the order of the left trace:
activations forward, gradients backward."""


class Side(Protocol):
    """One implementation in the middle of a run."""

    name: str

    def step(self, batch: Any) -> Trace:
        """Train on one batch.

        Returns:
            For each of `PHASES` (or fewer, but the same ones on both sides) tensors by name, as numpy arrays of one
            layout for both sides. `parameter` and `optimizer` are those after the step. A `loss` called "loss", a
            single number, also goes into the report's `losses`.
        """


@dataclass(frozen=True)
class Bounds:
    """The largest difference allowed.

    Attributes:
        default: for every phase.
        phase: other bounds by phase. Batches are always compared exactly.
        floor: scales below this count as this: a tensor that ought to be zero holds only rounding errors.
        unit: what is bounded. `relative`: the largest difference of two elements over the tensor's scale, which is its
            largest magnitude on either side. `ulp`: the same in units in the last place of that scale. `norm`: the
            Euclidean norm of the difference over the larger norm of the two, for arithmetic so coarse that single
            elements say little.
        tensor: other bounds for single tensors, by a pattern of their names (`layer4.*`) or of phase and name
            (`gradient/*.bias`); of several the first that fits. Infinity exempts a tensor, but not from being finite.
        share: scales below this share of the largest in the phase, or in the optimizer's slot, count as this share: the
            gradient of a bias before a batch norm ought to be zero, and holds only rounding errors.

    Raises:
        ValueError: a bound is negative or NaN, or there is no such phase or unit.
    """

    default: float
    phase: Mapping[str, float] = field(default_factory=dict)
    floor: float = 1e-300
    unit: Unit = "relative"
    tensor: Mapping[str, float] = field(default_factory=dict)
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"There is no unit {self.unit!r}; known: {', '.join(get_args(Unit))}.")
        if unknown := [phase for phase in self.phase if phase not in PHASES]:
            raise ValueError(f"There is no phase {unknown[0]!r}; known: {', '.join(PHASES)}.")
        if not all(bound >= 0 for bound in (self.default, *self.phase.values(), *self.tensor.values(), self.share)):
            raise ValueError(f"A bound must be zero or more: {self}.")

    def of(self, phase: str, tensor: str = "") -> float:
        """The bound of a phase, or of one of its tensors."""
        for pattern, bound in self.tensor.items():
            if fnmatchcase(tensor, pattern) or fnmatchcase(f"{phase}/{tensor}", pattern):
                return bound
        return 0.0 if phase == "batch" else self.phase.get(phase, self.default)


@dataclass(frozen=True)
class Difference:
    """How two tensors differ.

    Attributes:
        step: of the run, counted from 0.
        phase, tensor: where.
        absolute: the largest difference of two elements.
        relative: that, over the tensor's scale.
        ulp: that, in units in the last place of the tensor's scale.
        norm: of the difference, over the larger norm of the two.
        bound: on the one of these three that `unit` names.
        cause: the likely one, or what else is wrong (shape, dtype, not finite).
    """

    step: int
    phase: str
    tensor: str
    absolute: float
    relative: float
    ulp: float
    norm: float
    bound: float
    unit: Unit = "relative"
    cause: str = ""

    @property
    def size(self) -> float:
        """The figure that is bounded."""
        return float(getattr(self, self.unit))

    @property
    def within(self) -> bool:
        """Whether it is allowed. NaN compares false, so it is not."""
        return not self.cause and self.size <= self.bound

    def __str__(self) -> str:
        place = f"step {self.step}, {self.phase}" + f", {self.tensor}" * bool(self.tensor)
        if np.isnan(self.absolute):
            return f"{place}: {self.cause}"
        return (
            f"{place}: absolute {self.absolute:.3g}, "
            f"relative {self.relative:.3g}, {self.ulp:.3g} ULP, norm {self.norm:.3g} "
            f"(bound {self.bound:.3g} {self.unit}). {self.cause}"
        )


class Mismatch(AssertionError):
    """Two sides differ; `difference` is the first one."""

    def __init__(self, left: str, right: str, difference: Difference) -> None:
        super().__init__(f"{left} and {right} differ first at {difference}")
        self.difference = difference


@dataclass
class Report:
    """The largest difference of every phase and tensor over a run, and the losses at every step."""

    worst: dict[tuple[str, str], Difference] = field(default_factory=dict)
    losses: list[tuple[float, float]] = field(default_factory=list)

    def add(self, difference: Difference) -> None:
        """Keep a difference if it is the tensor's largest so far."""
        key = (difference.phase, difference.tensor)
        if key not in self.worst or difference.size > self.worst[key].size:
            self.worst[key] = difference

    def largest(self, phase: str | None = None) -> Difference:
        """The largest difference of a phase, or of all.

        Raises:
            ValueError: nothing was compared there.
        """
        found = [difference for difference in self.worst.values() if phase in (None, difference.phase)]
        if not found:
            raise ValueError(f"Nothing was compared{f' in the phase {phase!r}' if phase else ''}.")
        return max(found, key=lambda difference: difference.size)

    def phases(self) -> list[str]:
        """The phases that were compared, in order."""
        return [phase for phase in PHASES if any(d.phase == phase for d in self.worst.values())]


def compare_run(
    left: Side, right: Side, left_batches: Iterable[Any], right_batches: Iterable[Any], bounds: Bounds
) -> Report:
    """Train both sides and assert that every tensor of every step agrees.

    Args:
        left, right: in the same state.
        left_batches, right_batches: each side's own, so that they are compared too; lazily read.
        bounds: on the differences.

    Returns:
        How close they were.

    Raises:
        Mismatch: at the first step, phase and tensor that differ by more, or are not finite, or are missing; or nothing
            was compared.
        TypeError, ValueError: what a side returns is no `Trace`.
    """
    report, names, end = Report(), (left.name, right.name), object()
    for step, (ours, theirs) in enumerate(zip_longest(left_batches, right_batches, fillvalue=end)):
        if end in (ours, theirs):
            raise Mismatch(*names, _odd(step, "batch", "", f"{names[theirs is end]} has no batch left."))
        one, other = left.step(ours), right.step(theirs)
        compare_traces(one, other, step, bounds, names, report)
        if "loss" in one.get("loss", {}):
            report.losses.append((one["loss"]["loss"].item(), other["loss"]["loss"].item()))
    if not report.worst:
        raise Mismatch(*names, _odd(0, "batch", "", "There is no batch, so nothing was compared."))
    return report


def compare_traces(
    left: Trace,
    right: Trace,
    step: int,
    bounds: Bounds,
    names: tuple[str, str] = ("left", "right"),
    report: Report | None = None,
    context: Context | None = None,
) -> Report:
    """Assert that two traces of one step agree.

    Args:
        left, right, step, bounds, names: as for `compare_run`.
        report: to add to.
        context: what is known besides, for the causes.

    Raises:
        Mismatch, TypeError, ValueError: as `compare_run`.
    """
    report = report or Report()
    for difference in differences(left, right, step, bounds, names, context):
        if not difference.within:
            raise Mismatch(*names, difference)
        report.add(difference)
    return report


def differences(
    left: Trace,
    right: Trace,
    step: int,
    bounds: Bounds,
    names: tuple[str, str] = ("left", "right"),
    context: Context | None = None,
    phases: tuple[str, ...] = PHASES,
    skip: Collection[str] = (),
) -> Iterator[Difference]:
    """The difference of every tensor of some phases, in order; those that are not allowed with their likely cause.

    Args:
        left, right, step, bounds, names, context: as for `compare_traces`.
        phases: to compare.
        skip: tensors to leave out.

    Raises:
        Mismatch: neither shows a tensor.
        TypeError, ValueError: as `compare_run`.
    """
    _check_trace(left, names[0])
    _check_trace(right, names[1])
    if not any(left.values()) and not any(right.values()):
        raise Mismatch(*names, _odd(step, PHASES[0], "", "Neither shows a tensor, so nothing was compared."))
    for phase in phases:
        ours, theirs = left.get(phase, {}), right.get(phase, {})
        floors = _floors(bounds, ours)
        for tensor in [*ours, *(name for name in theirs if name not in ours)]:
            if tensor in skip:
                continue
            if tensor not in ours or tensor not in theirs:
                absent = names[0] if tensor not in ours else names[1]
                kept = kept_slots(phase, ours, theirs, names)
                yield _odd(step, phase, tensor, kept or f"{absent} has no such tensor.")
                continue
            own = replace(bounds, floor=floors.get(_slot(tensor), bounds.floor))
            difference = measure(ours[tensor], theirs[tensor], step, phase, tensor, own, names)
            if not difference.within:
                cause = difference.cause
                if not cause or left[phase][tensor].shape != right[phase][tensor].shape:
                    cause = f"{cause} {likely_cause(phase, tensor, left, right, names, context)}".strip()
                difference = replace(difference, cause=cause)
            yield difference


def _floors(bounds: Bounds, tensors: Tensors) -> dict[str, float]:
    """The floor of each slot: a share of the largest tensor in it."""
    floors: dict[str, float] = {}
    for name, values in tensors.items() if bounds.share else ():
        scale = bounds.share * _largest(as_float64(values))
        if np.isfinite(scale):
            floors[_slot(name)] = max(scale, floors.get(_slot(name), bounds.floor))
    return floors


def _slot(tensor: str) -> str:
    """Of the optimizer's memory; all tensors of another phase are in one."""
    return tensor.rpartition("/")[0]


def _check_trace(trace: Any, name: str) -> None:
    if not isinstance(trace, Mapping) or not all(isinstance(tensors, Mapping) for tensors in trace.values()):
        raise TypeError(f"{name}: a trace must be a mapping of phases to mappings of tensors by name.")
    if unknown := [phase for phase in trace if phase not in PHASES]:
        raise ValueError(f"{name}: its trace has a phase {unknown[0]!r}; known: {', '.join(PHASES)}.")
    for phase, tensors in trace.items():
        for tensor, values in tensors.items():
            if not isinstance(values, np.ndarray | np.generic):
                kind = type(values).__name__
                raise TypeError(f"{name}: {phase}, {tensor} is of type {kind}; make it a numpy array.")
            if phase == tensor == "loss" and values.size != 1:
                wanted = "must be one number; name those of single examples otherwise"
                raise ValueError(f"{name}: the loss called 'loss' {wanted}.")


def measure(
    left: npt.NDArray[Any],
    right: npt.NDArray[Any],
    step: int,
    phase: str,
    tensor: str,
    bounds: Bounds,
    names: tuple[str, str] = ("left", "right"),
) -> Difference:
    """The difference of two tensors; `cause` is set where they cannot be compared."""
    bound = bounds.of(phase, tensor)
    if left.shape != right.shape:
        return _odd(step, phase, tensor, f"{names[0]} has the shape {left.shape}, {names[1]} {right.shape}.")
    if left.dtype != right.dtype and not (left.dtype.kind in "iu" and right.dtype.kind in "iu"):
        kinds = f"{names[0]} has {left.dtype}, {names[1]} {right.dtype}"
        cause = f"{kinds}: a promotion or a cast on one side, such as by a layer's `dtype`."
        return _odd(step, phase, tensor, cause)
    equal = np.array_equal(left, right)  # also where 64-bit integers do not fit into a float64
    unit = last_place(left.real.dtype)
    left, right = as_float64(left), as_float64(right)
    for name, values in zip(names, (left, right), strict=True):
        if not np.isfinite(values).all():
            return _odd(step, phase, tensor, f"{name} holds NaN or infinity.")
    absolute = _largest(left - right) or float(not equal)
    scale = max(_largest(left), _largest(right), bounds.floor)
    ulp = unit * 2.0 ** np.floor(np.log2(scale)) or 1.0
    apart, *lengths = (float(np.linalg.norm(values)) for values in (left - right, left, right))
    norm = max(apart, absolute) / max(*lengths, bounds.floor)
    return Difference(step, phase, tensor, absolute, absolute / scale, absolute / ulp, norm, bound, bounds.unit)


def _largest(values: npt.NDArray[Any]) -> float:
    return float(np.abs(values).max(initial=0))


def last_place(dtype: np.dtype[Any]) -> float:
    """The unit in the last place of numbers from 1 to 2; 0 for a dtype that is not floating-point.

    numpy itself does not know bfloat16, which has seven bits of mantissa.
    """
    if dtype.name == "bfloat16":
        return 2.0**-7
    return float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0


def _odd(step: int, phase: str, tensor: str, cause: str) -> Difference:
    return Difference(step, phase, tensor, np.nan, np.nan, np.nan, np.nan, 0.0, cause=cause)
