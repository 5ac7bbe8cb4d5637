"""Guess from the numbers why two tensors differ. A hypothesis is named only where the data bear it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Trace = Mapping[str, Mapping[str, Array]]

_EXACT = 1e-6  # what rounding may leave, relative, where two tensors are the same
_MULTIPLE = 0.99995  # the cosine above which one tensor is a multiple of another: a hundredth of it is something else
_ROUNDING = 0.3  # how far rounding may have one sign, or follow the values


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
        values = np.stack([values.real, values.imag])
    return values.astype(np.float64)


def _masks(tensor: str, a: Array, b: Array) -> str:
    differ = float(np.mean((a == 0) != (b == 0)))
    if "drop" not in tensor or not differ:
        return ""
    ours, theirs = (float(np.mean(values == 0)) for values in (a, b))
    if abs(ours - theirs) > 3 / np.sqrt(a.size):  # six standard errors of a share, where they are largest
        return f"{ours:.1%} against {theirs:.1%} are zero: another dropout rate."
    return f"{differ:.1%} of the zeros are in other places: other dropout masks (key, step, path or order)."


def _mirrored(phase: str, a: Array, b: Array) -> str:
    if phase != "input" or a.ndim != 4:
        return ""
    limit = _EXACT * np.abs(a).max()
    same, mirrored = (np.abs(images - b).max((1, 2, 3)) <= limit for images in (a, a[..., ::-1]))
    if same.all() or not (same | mirrored).all():
        return ""
    return f"{(~same).sum()} of {len(a)} images are mirrored on one side only: the flips."


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
    if values is None or not _along(a - b, as_float64(values), _MULTIPLE):
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
        if values is not None and _along(a - b, as_float64(values), _MULTIPLE):
            return "The difference is a multiple of the update: the learning rate or its schedule."
    gradient = left.get("gradient", {}).get(tensor)
    if gradient is not None and _along(a - b, as_float64(gradient), _MULTIPLE):
        return "The difference is a multiple of the gradient: the learning rate, its schedule or Nesterov's step."
    return ""


def _shifted(a: Array, b: Array) -> str:
    difference = a - b
    constant = a.size > 1 and _along(difference, np.ones_like(a), _MULTIPLE)
    return f"The difference is everywhere {difference.mean():.3g}: a bias or a mean." * constant


def _scaled(phase: str, a: Array, b: Array, names: tuple[str, str]) -> str:
    if not _along(b - a, a, _MULTIPLE):
        return ""
    factor = float((a * b).sum() / (a * a).sum())
    hint = {"loss": ": the reduction (mean, sum, label smoothing)", "statistic": ": momentum, or n / (n - 1)"}
    return f"{names[1]} has {factor:.6g} times what {names[0]} has{hint.get(phase, '')}."


def _precision(phase: str, a: Array, b: Array) -> str:
    """Rounding is noise: of both signs, and without relation to the values."""
    if phase not in ("input", "activation", "loss", "gradient"):
        return ""
    noise = a - b
    one_sign = abs(noise.mean()) > _ROUNDING * np.abs(noise).mean()
    if noise.size > 8 and (one_sign or _along(noise, a, _ROUNDING)):
        return ""
    size = float(np.abs(noise).max() / max(np.abs(a).max(), np.abs(b).max()))
    bits = -int(np.frexp(size)[1])  # 2**-(bits + 1) <= size < 2**-bits
    name = next((name for fewer, name in _SIZES if bits > fewer), "")
    return f"A relative difference of {size:.1g} is the size of {name}." if name else ""


def _along(a: Array, b: Array, cosine: float) -> bool:
    """Whether two tensors of one shape point the same or the opposite way, their cosine above this; zeros do not."""
    if a.shape != b.shape:
        return False
    return bool(abs(np.vdot(a, b)) > cosine * np.linalg.norm(a) * np.linalg.norm(b))


_SIZES = (  # what a difference of more bits than this below the scale is; the first that holds
    (29, ""),
    (18, "float32 arithmetic in a float64 comparison (dtype promotion), or rounding in float32"),
    (13, ""),
    (8, "TF32 or float16 (10 bits of mantissa)"),
    (5, "bfloat16 (7 bits of mantissa)"),
)
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
