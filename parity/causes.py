"""Guess from the numbers why two tensors differ. A hypothesis is named only where the data bear it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Trace = Mapping[str, Mapping[str, Array]]

_EXACT = 1e-6  # residual, relative, below which a hypothesis explains a difference


def likely_cause(phase: str, tensor: str, left: Trace, right: Trace, names: tuple[str, str] = ("left", "right")) -> str:
    """One sentence on the likely cause of a difference in `tensor`, given that everything before it agrees."""
    if phase == "batch":
        return _PHASE_HINTS[phase]
    a, b = as_float64(left[phase][tensor]), as_float64(right[phase][tensor])
    rules: tuple[Callable[[], str], ...] = (
        lambda: _masks(tensor, a, b),
        lambda: _mirrored(phase, a, b),
        lambda: _reordered(a, b),
        lambda: _decay(phase, tensor, a, b, left),
        lambda: _rate(phase, tensor, a, b, left),
        lambda: _shifted(a, b),
        lambda: _scaled(phase, a, b, names),
        lambda: _precision(phase, a, b),
    )
    for rule in rules:
        if found := rule():
            return found
    return _PHASE_HINTS.get(phase, "")


def as_float64(values: Array) -> Array:
    """Numbers of any kind as float64, a complex one as its two parts."""
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], -1)
    return values.astype(np.float64)


def _masks(tensor: str, a: Array, b: Array) -> str:
    differ = float(np.mean((a == 0) != (b == 0)))
    if "drop" not in tensor or not differ:
        return ""
    shares, spread = (float(np.mean(a == 0)), float(np.mean(b == 0))), 0.5 / np.sqrt(a.size)
    if abs(shares[0] - shares[1]) > 6 * spread:
        return f"{shares[0]:.1%} against {shares[1]:.1%} are zero: another dropout rate."
    return f"{differ:.1%} of the zeros are in other places: other dropout masks (key, step, path or order)."


def _mirrored(phase: str, a: Array, b: Array) -> str:
    if phase != "input" or a.ndim != 4:
        return ""
    differs = np.array([not np.allclose(x, y, rtol=_EXACT, atol=_EXACT) for x, y in zip(a, b, strict=True)])
    mirrored = all(
        np.allclose(x[..., ::-1], y, rtol=_EXACT, atol=_EXACT) for x, y in zip(a[differs], b[differs], strict=True)
    )
    return f"{differs.sum()} of {len(a)} images are mirrored on one side only: the flips." * mirrored


def _reordered(a: Array, b: Array) -> str:
    if np.allclose(a, b, rtol=1e-3, atol=0):
        return ""
    same = np.allclose(np.sort(a, axis=None), np.sort(b, axis=None), rtol=_EXACT, atol=0)
    return "The same values in another order: a transpose, or channels flattened first against last." * same


def _decay(phase: str, tensor: str, a: Array, b: Array, left: Trace) -> str:
    """The difference is a multiple of the parameters themselves."""
    if phase not in ("optimizer", "parameter"):
        return ""
    name = tensor.split("/")[-1]
    values = left.get("parameter", {}).get(name)
    if values is None or not _multiple(a - b, values.astype(np.float64), 1e-2):
        return ""
    return (
        "The difference is a multiple of the parameters: weight decay (its rate, or before against after the momentum)."
    )


def _rate(phase: str, tensor: str, a: Array, b: Array, left: Trace) -> str:
    """The difference is a multiple of what the optimizer adds."""
    if phase != "parameter":
        return ""
    for slot in ("momentum_buffer/", "exp_avg/"):
        values = left.get("optimizer", {}).get(slot + tensor)
        if values is not None and _multiple(a - b, values.astype(np.float64), 1e-2):
            return "The difference is a multiple of the update: the learning rate or its schedule."
    gradient = left.get("gradient", {}).get(tensor)
    if gradient is not None and _multiple(a - b, gradient.astype(np.float64), 1e-2):
        return "The difference is a multiple of the gradient: the learning rate, its schedule or Nesterov's step."
    return ""


def _shifted(a: Array, b: Array) -> str:
    difference = a - b
    scale = max(np.abs(a).max(), np.abs(b).max())
    constant = a.size > 1 and np.ptp(difference) < _EXACT * scale and np.abs(difference).max() > 10 * np.ptp(difference)
    return f"The difference is everywhere {difference.flat[0]:.3g}: a bias or a mean." * bool(constant)


def _scaled(phase: str, a: Array, b: Array, names: tuple[str, str]) -> str:
    if not _multiple(b - a, a, 1e-2):
        return ""
    factor = float((a * b).sum() / (a * a).sum())
    hint = {"loss": ": the reduction (mean, sum, label smoothing)", "statistic": ": momentum, or n / (n - 1)"}
    return f"{names[1]} has {factor:.6g} times what {names[0]} has{hint.get(phase, '')}."


def _precision(phase: str, a: Array, b: Array) -> str:
    """Rounding is noise: of both signs, and without relation to the values."""
    noise = (a - b).ravel()
    level, values = float(np.abs(noise).mean()), a.ravel()
    if phase not in ("input", "activation", "loss", "gradient") or not level or not np.abs(values).max():
        return ""
    along = abs(float(noise @ values)) / float(np.linalg.norm(noise) * np.linalg.norm(values))
    if noise.size > 8 and (abs(float(noise.mean())) > 0.3 * level or along > 0.3):
        return ""
    size = float(np.abs(noise).max() / max(np.abs(a).max(), np.abs(b).max()))
    for low, high, name in (
        (2.0**-30, 2.0**-19, "float32 arithmetic in a float64 comparison (dtype promotion), or rounding in float32"),
        (2.0**-14, 2.0**-9, "TF32 or float16 (10 bits of mantissa)"),
        (2.0**-9, 2.0**-6, "bfloat16 (7 bits of mantissa)"),
    ):
        if low < size < high:
            return f"A relative difference of {size:.1g} is the size of {name}."
    return ""


def _multiple(difference: Array, values: Array, residual: float) -> bool:
    """Whether `difference` is a constant times `values`, to a relative residual, and neither is zero."""
    square = float((values * values).sum())
    if difference.shape != values.shape or not square or not np.abs(difference).max():
        return False
    rest = difference - values * float((difference * values).sum() / square)
    return bool(np.linalg.norm(rest) < residual * np.linalg.norm(difference))


_PHASE_HINTS = {
    "batch": "The two sides were fed different bytes.",
    "input": "Preprocessing: crop, resize (antialias, half-pixel centres), colour noise, mean and std.",
    "activation": "This layer's forward pass: padding, groups, normalisation, or its weights.",
    "loss": "The loss: its reduction, label smoothing or targets.",
    "gradient": "This layer's backward pass: ties in a max pool, a stopped gradient.",
    "optimizer": "The optimizer's memory: decay before or after the momentum, dampening, betas.",
    "parameter": "The update: learning rate, schedule, eps, bias correction, decoupled decay.",
    "statistic": "Running statistics: momentum m or 1 - m, biased or unbiased variance.",
}
