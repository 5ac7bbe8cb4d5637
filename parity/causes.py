"""Guess from the numbers why two tensors differ. A hypothesis is named only where the data bear it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from parity import forms, updates

Array = npt.NDArray[Any]
Trace = Mapping[str, Mapping[str, Array]]

_EXACT = 1e-6  # what rounding may leave, relative, where two tensors are the same
_MULTIPLE = 0.99995  # the cosine above which one tensor is a multiple of another: a hundredth of it is something else
_MULTIPLE_OF = 0.01  # what rounding may leave of a count
_OF_ROUNDING = 1 - 1e-4  # the same where rounding may be in it
_ROUNDING = 0.3  # how far rounding may have one sign, or follow the values


@dataclass(frozen=True)
class Context:
    """What is known of a pair besides the traces of a step.

    Attributes:
        before: each side's `parameter`, `optimizer` and `statistic` before the step, as a trace.
        modules: by the path of a module, which its calls' names begin with, its kind and each side's settings; see
            `parity.model.Module`.
        optimizer: what is known of either side's; see `parity.model.Model`.
        step: of the run, from 0.
        masks: what each side's attention layers let queries see (N, queries, keys), by the left's names of their calls.
    """

    before: tuple[Trace, Trace] = field(default_factory=lambda: ({}, {}))
    modules: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    masks: tuple[Mapping[str, Array], Mapping[str, Array]] = field(default_factory=lambda: ({}, {}))


@dataclass(frozen=True)
class _Case:
    """A difference, and all that may explain it."""

    phase: str
    tensor: str
    left: Trace
    right: Trace
    names: tuple[str, str]
    context: Context

    def held(self, side: int, phase: str, tensor: str) -> Array | None:
        """What a side held before the step."""
        values = self.context.before[side].get(phase, {}).get(tensor)
        return None if values is None else as_float64(values)

    def settings(self) -> tuple[str, Mapping[str, Any], Mapping[str, Any]]:
        """Of the module that the tensor, or the call, is of."""
        if self.phase == "activation":
            path = self.tensor.split(":")[0]
            path = "" if path == "output" else path  # a model of one layer
        else:
            path = self.tensor.split(":")[-1].rpartition(".")[0]
        return self.context.modules.get(path, ("", {}, {}))

    def moved(self, side: int) -> updates.Moved | None:
        """What a side's optimizer did with the parameter that the tensor is or belongs to."""
        trace, name = (self.left, self.right)[side], self.tensor.split("/")[-1]
        before, after = self.context.before[side].get("parameter", {}).get(name), trace.get("parameter", {}).get(name)
        gradient = trace.get("gradient", {}).get(name)
        if before is None or after is None or gradient is None:
            return None
        old = self.context.before[side].get("optimizer", {})
        memory = [
            {slot: updates.sampled(held[f"{slot}/{name}"]) for slot in _MEMORY if f"{slot}/{name}" in held}
            for held in (trace.get("optimizer", {}), old)
        ]
        seen = [updates.sampled(values) for values in (before, after, gradient)]
        return updates.Moved(seen[0], seen[1], seen[2], *memory)

    def rules(self) -> tuple[updates.Rule, updates.Rule] | None:
        """By which either side updated the parameter; None where they are not known."""
        one, other = (self.moved(side) for side in (0, 1))
        if not one or not other:
            return None
        rules = updates.rule_of(one), updates.rule_of(other)
        return (rules[0], rules[1]) if rules[0] and rules[1] else None


_MEMORY = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def likely_cause(
    phase: str,
    tensor: str,
    left: Trace,
    right: Trace,
    names: tuple[str, str] = ("left", "right"),
    context: Context | None = None,
) -> str:
    """One sentence on the likely cause of a difference in `tensor`, given that everything before it agrees."""
    if phase == "batch":
        return _PHASE_HINTS[phase]
    case = _Case(phase, tensor, left, right, names, context or Context())
    a, b = as_float64(left[phase][tensor]), as_float64(right[phase][tensor])
    if a.shape != b.shape:
        return _settings(case)
    rules: tuple[Callable[[], str], ...] = (
        lambda: _settings(case),
        lambda: _attention_masks(case),
        lambda: _between(case),
        lambda: _channels(case, a, b),
        lambda: _constants(case, a, b),
        lambda: _cross_entropy(case, a, b),
        lambda: _penalty(case, a, b),
        lambda: _remembered(case),
        lambda: _updated(case),
        lambda: _decayed(case, a, b),
        lambda: _clipped(case),
        lambda: _updates(case, a, b),
        lambda: _running(case, a, b),
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


def _attention_masks(case: _Case) -> str:
    """An attention layer is told to hide something else."""
    ours, theirs = (masks.get(case.tensor) for masks in case.context.masks)
    if case.phase != "activation" or ours is None or theirs is None or np.array_equal(ours, theirs):
        return ""
    if ours.shape != theirs.shape:
        return f"The mask is of the shape {ours.shape} in {case.names[0]}, of {theirs.shape} in {case.names[1]}."
    (one, kept), (other, its) = map(forms.mask_words, (ours, theirs))
    opposite = "" if kept.all() or not np.array_equal(kept, ~its) else " (the opposite ones)"
    told = [f"{case.names[0]} {one}", f"{case.names[1]} {other}"]
    return f"The attention mask: {told[0]}, {told[1]}{opposite}."


def _settings(case: _Case) -> str:
    """A layer whose inputs agree has other settings."""
    if case.phase != "activation":
        return ""
    _, ours, theirs = case.settings()
    for name, words in _SETTINGS.items():
        one, other = (_plain(settings.get(name)) for settings in (ours, theirs))
        if one is not None and other is not None and one != other:
            told = f"{words} {case.names[0]}'s {_words(one)}, {case.names[1]}'s {_words(other)}"
            same = [n for n, given in zip(case.names, (ours, theirs), strict=True) if given.get("written") == "SAME"]
            odd = name == "padding" and len(same) == 1
            return f"{told}: {same[0]}'s SAME puts the odd pixel at the end." if odd else f"{told}."
    return ""


_SETTINGS = {
    "padding": "The padding before and after each axis is",
    "stretched": "The padding of the stretched input, before and after each axis, is",
    "stride": "The stride is",
    "dilation": "The dilation is",
    "groups": "The number of groups is",
    "epsilon": "The epsilon is",
    "heads": "The number of heads is",
    "rate": "The dropout rate is",
}


def _plain(setting: Any) -> Any:
    return [_plain(part) for part in setting] if isinstance(setting, list | tuple) else setting


def _words(setting: Any) -> str:
    return (
        " ".join(map(str, map(tuple, setting)))
        if setting and isinstance(setting, list) and isinstance(setting[0], list)
        else str(setting)
    )


def _between(case: _Case) -> str:
    """What happened between two layers: an activation function, a pool, resizing, attention."""
    if case.phase != "activation":
        return ""
    ours, theirs = case.left["activation"], case.right["activation"]
    sources = {}
    for name in ours:
        if name == case.tensor:
            break
        if name in theirs and _alike(ours[name], theirs[name]):
            sources[name] = ours[name]
    inputs = {name: a for name, a in case.left.get("input", {}).items() if name in case.right.get("input", {})}
    one, other = ours[case.tensor], theirs[case.tensor]
    if case.tensor != "output" and not case.tensor.endswith(" (input)"):
        return ""
    source, ours_words, theirs_words = forms.explain(one, other, {**inputs, **sources})
    if not source or ours_words == theirs_words:
        return ""
    told = [
        f"{name} computes {words or 'something else'}"
        for name, words in zip(case.names, (ours_words, theirs_words), strict=True)
    ]
    return f"Of {source} {told[0]}, {told[1]}."


def _alike(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    one, other = as_float64(a), as_float64(b)
    limit = 1e-9 if min(a.dtype.itemsize, b.dtype.itemsize) > 4 else 1e-4
    return bool(np.abs(one - other).max(initial=0) <= limit * max(np.abs(one).max(initial=0), 1e-30))


def _channels(case: _Case, a: Array, b: Array) -> str:
    if case.phase != "input" or a.ndim != 4 or a.shape[1] < 2:
        return ""
    found = np.allclose(a[:, ::-1], b, rtol=_EXACT, atol=_EXACT * np.abs(a).max())
    return "The channels are in the opposite order: red, green, blue against blue, green, red." if found else ""


def _constants(case: _Case, a: Array, b: Array) -> str:
    """Each channel of one side's images is a straight line of the other's."""
    if case.phase != "input" or a.ndim != 4 or not 1 <= a.shape[1] <= 4:
        return ""
    lines, rest = [], 0.0
    for x, y in zip(np.moveaxis(a, 1, 0), np.moveaxis(b, 1, 0), strict=True):
        spread = np.vdot(x - x.mean(), x - x.mean())
        factor = np.vdot(x - x.mean(), y - y.mean()) / spread if spread else 0.0
        shift = y.mean() - factor * x.mean()
        rest = max(rest, float(np.abs(factor * x + shift - y).max()))
        lines.append((factor, shift))
    if not all(factor for factor, _ in lines) or rest > _EXACT * np.abs(a - b).max():
        return ""
    told = ", ".join(f"{factor:.4g} x {shift:+.4g}" for factor, shift in lines)
    for (one, ours), (other, theirs) in product(_NORMALISATIONS.items(), _NORMALISATIONS.items()):
        pairs = zip(ours, theirs, lines, strict=False)
        fits = [
            np.allclose((std / std2, (mean - mean2) / std2), line, rtol=1e-4, atol=1e-4)
            for (mean, std), (mean2, std2), line in pairs
        ]
        if one != other and len(lines) <= min(len(ours), len(theirs)) and all(fits):
            return f"The normalisation: {case.names[0]}'s images have {one}, {case.names[1]}'s {other}."
    return f"The normalisation: {case.names[1]}'s channels are {told} of {case.names[0]}'s x."


_IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
_NORMALISATIONS = {  # (mean, standard deviation) of each channel of images from 0 to 1
    "values from 0 to 1": ((0.0, 1.0),) * 3,
    "values from 0 to 255": ((0.0, 1 / 255),) * 3,
    "values from -1 to 1": ((0.5, 0.5),) * 3,
    "ImageNet's mean and standard deviation": _IMAGENET,
    "CIFAR-10's mean and standard deviation": ((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616)),
    "ImageNet's mean and standard deviation, of values from 0 to 255": tuple((m, s / 255) for m, s in _IMAGENET),
}


def _cross_entropy(case: _Case, a: Array, b: Array) -> str:
    """The loss is a cross entropy of the output on either side, reduced and smoothed otherwise."""
    logits, target = case.left.get("activation", {}).get("output"), case.left.get("batch", {}).get("target")
    if case.phase != "loss" or logits is None or target is None or logits.ndim != 2 or a.size != 1:
        return ""
    if target.dtype.kind not in "iu" or target.shape != logits.shape[:1]:
        return ""
    scores = as_float64(logits)
    logs = scores - scores.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    plain = -logs[np.arange(len(logs)), target].mean()
    told = [_smoothed(float(values.item()), plain, -logs.mean(), len(logs)) for values in (a, b)]
    if not all(told) or told[0] == told[1]:
        return ""
    return f"The loss is the cross entropy, {case.names[0]}'s {told[0]}, {case.names[1]}'s {told[1]}."


def _smoothed(loss: float, plain: float, uniform: float, count: int) -> str:
    """How a cross entropy was made of the plain one, its value for even targets, and the number of examples."""
    for reduction, factor in (("averaged", 1), ("summed", count)):
        smoothing = (loss / factor - plain) / (uniform - plain)
        if -1e-6 < smoothing < 0.9 and abs(smoothing - round(smoothing, 3)) < 1e-6:
            return reduction + (f" with label smoothing {smoothing:.3g}" if round(smoothing, 3) else "")
    return ""


def _rates(case: _Case) -> dict[str, float]:
    """The factor by which a parameter's gradients differ by a multiple of the parameter, where they do."""
    found = {}
    ours, theirs = case.left.get("gradient", {}), case.right.get("gradient", {})
    for name in ours.keys() & theirs.keys():
        values = case.held(0, "parameter", name)
        if values is not None and ours[name].shape == theirs[name].shape == values.shape and np.any(values):
            difference = as_float64(theirs[name]) - as_float64(ours[name])
            if _along(difference, values, _MULTIPLE):
                found[name] = float(np.vdot(difference, values) / np.vdot(values, values))
    return found


def _penalty(case: _Case, a: Array, b: Array) -> str:
    """The loss holds weight decay on one side: what it is more agrees with what gradients are more."""
    if case.phase != "loss" or a.size != 1 or not (rates := _rates(case)):
        return ""
    difference = float((b - a).item())
    rate = float(np.median([*rates.values()]))
    tensors = dict(case.context.before[0].get("parameter", {}))
    groups = {
        "all parameters": tensors,
        "the parameters of two axes and more (no biases, no norms)": {n: v for n, v in tensors.items() if v.ndim > 1},
        ", ".join(rates): {name: tensors[name] for name in rates},
    }
    for words, group in groups.items():
        total = sum(float((as_float64(values) ** 2).sum()) for values in group.values())
        if abs(rate * total / 2 - difference) <= 1e-4 * abs(difference):
            side = case.names[difference > 0]
            return f"{side}'s loss holds weight decay: {abs(rate):.4g} / 2 times the squares of {words}."
    return ""


def _decayed(case: _Case, a: Array, b: Array) -> str:
    """The difference is a multiple of the parameter before the step."""
    if case.phase not in ("gradient", "optimizer", "parameter"):
        return ""
    values = case.held(0, "parameter", case.tensor.split("/")[-1])
    if values is None or not _along(b - a, values, _MULTIPLE):
        return ""
    rate = float(np.vdot(b - a, values) / np.vdot(values, values))
    if case.phase == "gradient":
        side = case.names[rate > 0]
        return f"{side}'s gradient holds {abs(rate):.4g} times the parameter: weight decay inside its loss."
    if case.phase == "optimizer":
        side = case.names[rate > 0]
        return (
            f"{side}'s memory holds {abs(rate):.4g} times the parameter more: weight decay that only its optimizer "
            "has, or has before the momentum."
        )
    side = case.names[rate < 0]
    return f"{side} takes {abs(rate):.4g} times the parameter more off: weight decay that only it has, or another rate."


def _remembered(case: _Case) -> str:
    """How the optimizer's memory was made of the old one, the gradient and the parameter."""
    moved = [case.moved(side) for side in (0, 1)]
    slot = case.tensor.rpartition("/")[0]
    if case.phase != "optimizer" or slot not in _MEMORY:
        return ""
    momentum = case.context.optimizer.get("momentum")
    one, other = (updates.kept_of(slot, part, momentum) if part else None for part in moved)
    if not one or not other:
        return ""
    rules = [updates.rule_of(part) for part in moved if part]
    return updates.memory_told(slot, (one, other), case.names, [bool(rule and rule.decay) for rule in rules])


def kept_slots(phase: str, left: Mapping[str, Array], right: Mapping[str, Array], names: tuple[str, str]) -> str:
    """Optimizers of different kinds, in a sentence; "" where they are not."""
    slots = [dict.fromkeys(name.rpartition("/")[0] for name in tensors) for tensors in (left, right)]
    if phase != "optimizer" or slots[0].keys() == slots[1].keys():
        return ""
    words = [", ".join(kept) or "nothing" for kept in slots]
    return f"The optimizers are of different kinds: {names[0]}'s keeps {words[0]}, {names[1]}'s {words[1]}."


def _updated(case: _Case) -> str:
    """By which rule the parameter was updated on either side."""
    rules = case.rules() if case.phase == "parameter" else None
    if rules is None:
        return ""
    return updates.told(rules, case.names, case.context.optimizer, case.context.step)


def follows_memory(name: str, left: Trace, right: Trace, context: Context) -> bool:
    """Whether both sides update a parameter by one rule, so that it differs only as their memories do."""
    case = _Case("parameter", name, left, right, ("", ""), context)
    if rules := case.rules():
        return not updates.told(rules, case.names, context.optimizer, context.step)
    apart = as_float64(right["parameter"][name]) - as_float64(left["parameter"][name])
    for slot, values in left.get("optimizer", {}).items():  # where one side's update is nothing but rounding
        if slot.endswith(f"/{name}") and slot in right["optimizer"]:
            memory = as_float64(right["optimizer"][slot]) - as_float64(values)
            if _along(memory, apart, _OF_ROUNDING) and np.any(memory):
                return True
    return False


def _ratio(pairs: list[tuple[Array, Array]]) -> float:
    """The factor between all of some pairs of tensors, but those that hold rounding errors; NaN where there is none."""
    factors = []
    largest = max((np.abs(one).max(initial=0) for one, _ in pairs), default=0)
    for one, other in pairs:
        if one.shape != other.shape:
            return np.nan
        if max(np.abs(one).max(initial=0), np.abs(other).max(initial=0)) > 1e-9 * largest:
            if not _along(one, other, 1 - 1e-9):
                return np.nan
            factors.append(float(np.vdot(one, other) / np.vdot(one, one)))
    return factors[0] if factors and np.allclose(factors, factors[0], rtol=1e-6) else np.nan


def _clipped(case: _Case) -> str:
    """All of the optimizer's memory is another by one factor, though gradients agree."""
    if case.phase not in ("optimizer", "parameter"):
        return ""
    slot = case.tensor.rpartition("/")[0]
    ours, theirs = case.left.get(case.phase, {}), case.right.get(case.phase, {})
    names = [name for name in ours if name in theirs and name.rpartition("/")[0] == slot]
    pairs = [(as_float64(ours[name]), as_float64(theirs[name])) for name in names]
    if case.phase == "parameter":
        held = [case.held(0, "parameter", name) for name in names]
        pairs = [(a - w, b - w) for (a, b), w in zip(pairs, held, strict=True) if w is not None]
    factor = _ratio(pairs)
    if len(pairs) < 2 or not factor > 0 or factor == 1:
        return ""
    gradients = case.left.get("gradient", {}).values()
    norm = float(np.sqrt(sum(float((as_float64(g) ** 2).sum()) for g in gradients)))
    if case.phase == "parameter" and not _round(norm * min(factor, 1 / factor)):
        return ""
    if abs(factor - 1) < 1e-3:
        return (
            f"All differ by the factor {factor:.9g}, with gradients of norm {norm:.4g}: the clipping of one side adds "
            f"{abs(factor - 1) * norm:.2g} to the norm, as PyTorch's adds 1e-6."
        )
    side, share = case.names[factor < 1], min(factor, 1 / factor)
    share = np.sqrt(share) if slot.endswith("_sq") else share
    return f"{side} clips gradients, of norm {norm:.4g}, to {norm * share:.4g}: all that it makes of them is smaller."


def _round(number: float) -> bool:
    """Whether it is what somebody would write: of two digits."""
    return bool(np.isclose(number, float(f"{number:.2g}"), rtol=1e-4))


def _updates(case: _Case, a: Array, b: Array) -> str:
    """What was added to the parameter differs by a factor."""
    before = case.held(0, "parameter", case.tensor)
    if case.phase != "parameter" or before is None or not _along(a - before, b - before, 1 - 1e-6):
        return ""
    factor = float(np.vdot(a - before, b - before) / np.vdot(a - before, a - before))
    return f"{case.names[1]}'s update is {factor:.6g} times {case.names[0]}'s: the learning rate or its schedule."


def _running(case: _Case, a: Array, b: Array) -> str:
    """Running statistics: what was kept of the old ones, and whether the variance is divided by n or n - 1."""
    if case.phase != "statistic":
        return ""
    _, ours, theirs = case.settings()
    if ours.get("momentum") != theirs.get("momentum"):
        kept = [f"{settings.get('momentum')}" for settings in (ours, theirs)]
        return f"Of the old value {case.names[0]} keeps {kept[0]}, {case.names[1]} {kept[1]}: the momentum."
    before, keeps = case.held(0, "statistic", case.tensor), ours.get("momentum")
    if before is None or keeps is None or not _along(a - keeps * before, b - keeps * before, 1 - 1e-9):
        return ""
    factor = float(np.vdot(a - keeps * before, b - keeps * before) / np.vdot(a - keeps * before, a - keeps * before))
    small = min(factor, 1 / factor)
    count = 1 / (1 - small) if small < 1 else 0.0
    if count > 1.5 and abs(count - round(count)) < 1e-3 * count:
        side, n = case.names[factor > 1], round(count)
        given = case.left.get("activation", {}).get(f"{case.tensor.split(':')[-1].rpartition('.')[0]} (input)")
        if given is not None and given.ndim > 1 and abs(given.size / given.shape[1] - count) < _MULTIPLE_OF * count:
            n = given.size // given.shape[1]  # of which float32 leaves only so many digits
        return f"{side}'s running variance is unbiased, divided by n - 1 for n = {n}; the other's by n."
    return ""


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
