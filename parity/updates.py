"""The rule by which an optimizer made its memory and its update, told from what was seen of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_FITS = 1e-7  # what rounding may leave of a rule, relative
_LEAST = 0.05  # momentum that somebody would give
_SAMPLE = 4096  # elements that are enough to tell a rule
_NOTHING = 1e-7  # the share of a rule below which a term is not there


@dataclass(frozen=True)
class Rule:
    """An update, taken off: `scale` times what `form` says, and `decay` times the parameter.

    Attributes:
        form: "momentum", "nesterov" (known from the second step on), "gradient"; "adam", or "root" of the gradient
            alone, and either with ", epsilon inside".
        scale: of the first term; at Adam's with its bias correction.
        epsilon: of Adam's denominator, with its bias correction.
        decay: of the parameter before the step: decoupled weight decay.
    """

    form: str
    scale: float
    epsilon: float = 0.0
    decay: float = 0.0


@dataclass(frozen=True)
class Moved:
    """A parameter before and after a step, its gradient, and the optimizer's memory of it by slot, new and old.

    Of each the same elements; see `sampled`.
    """

    before: Array
    after: Array
    gradient: Array
    memory: Mapping[str, Array]
    old: Mapping[str, Array]

    @property
    def update(self) -> Array:
        """What was taken off."""
        return self.before - self.after


def rule_of(moved: Moved) -> Rule | None:
    """By which a parameter was updated; None where it is none of those known."""
    u, p = moved.update, moved.before
    if not np.any(u):
        return None
    first, second = (moved.memory.get(slot) for slot in ("exp_avg", "exp_avg_sq"))
    if first is not None and second is not None:
        return _adam("adam", u, p, first, second)
    if second is not None and "momentum_buffer" not in moved.memory:
        return _adam("root", u, p, moved.gradient, second)
    memory, old = moved.memory.get("momentum_buffer"), moved.old.get("momentum_buffer")
    source = moved.gradient if memory is None else memory
    for decayed in ((), (p,)):  # a bias that began at zero is after one step a multiple of the memory
        if fit := _fit(u, (source, *decayed)):
            return Rule("gradient" if memory is None else "momentum", fit[0], decay=fit[1] if decayed else 0.0)
        fit = _fit(u, (source, old, *decayed)) if memory is not None and old is not None else None
        if fit and fit[0] + fit[1] > 0 and -fit[1] > _LEAST * (fit[0] + fit[1]):
            return Rule("nesterov", fit[0] + fit[1], decay=fit[2] if decayed else 0.0)
    return None


def _adam(form: str, u: Array, p: Array, first: Array, second: Array) -> Rule | None:
    """u (sqrt(v) + e) = c m, and with what decay adds; or u^2 (v + e) = c^2 m^2."""
    root = np.sqrt(np.maximum(second, 0))
    if fit := _fit(u * root, (first, -u)):
        return Rule(form, fit[0], fit[1])
    if fit := _fit(u * root, (first, -u, p * root, p)):
        return Rule(form, fit[0], fit[1], fit[2])
    if (fit := _fit(u**2 * second, (first**2, -(u**2)))) and fit[0] > 0:
        return Rule(f"{form}, epsilon inside", float(np.sqrt(fit[0])), fit[1])
    return None


def sampled(values: Array) -> Array:
    """As many elements as are enough, as float64."""
    flat = np.asarray(values).reshape(-1)
    return flat[:: (len(flat) // _SAMPLE) | 1].astype(np.float64)


def _fit(wanted: Array, terms: Sequence[Array]) -> list[float] | None:
    """Factors of the terms that make up what is wanted to the last digits, those of no account as 0."""
    lengths = [float(np.linalg.norm(term)) for term in terms]
    length = float(np.linalg.norm(wanted))
    used = [place for place, size in enumerate(lengths) if size > 0]
    if not length or wanted.size <= len(used):
        return None
    matrix = np.stack([terms[place] / lengths[place] for place in used], 1)
    factors, *_ = np.linalg.lstsq(matrix, wanted / length, rcond=1e-13)
    if np.linalg.norm(matrix @ factors - wanted / length) > _FITS:
        return None
    found = [0.0] * len(terms)
    for place, factor in zip(used, factors, strict=True):
        found[place] = float(factor) * length / lengths[place] if abs(factor) > _NOTHING else 0.0
    return found


@dataclass(frozen=True)
class Kept:
    """New memory: `old` times the old one, `new` times the gradient (or its square), which holds `decay` times p."""

    old: float
    new: float
    decay: float


def kept_of(slot: str, moved: Moved, momentum: float | None = None) -> Kept | None:
    """How the memory of one slot was made; None where it is by none of the rules known.

    Args:
        slot: of the optimizer.
        moved: a parameter.
        momentum: that is likely: a bias that began at zero is after one step a multiple of the memory, and what is
            kept of this then looks as decay of the bias does.
    """
    value, old, g, p = moved.memory[slot], moved.old.get(slot), moved.gradient, moved.before
    before = np.zeros_like(value) if old is None else old
    if slot == "momentum_buffer" and momentum and (fit := _fit(value - momentum * before, (g, p))) and fit[0]:
        return Kept(momentum, fit[0], fit[1] / fit[0])
    if slot in ("momentum_buffer", "exp_avg") and (fit := _fit(value, (before, g, p))) and fit[1]:
        return Kept(fit[0], fit[1], fit[2] / fit[1])
    if slot == "exp_avg_sq" and (fit := _fit(value, (before, g**2, g * p, p**2))) and fit[1]:
        return Kept(fit[0], fit[1], fit[2] / fit[1] / 2)
    return None


def memory_told(slot: str, kept: tuple[Kept, Kept], names: tuple[str, str], apart: Sequence[bool]) -> str:
    """The difference of how two memories are kept, in a sentence; "" where it is of another kind.

    Args:
        slot: of the optimizer.
        kept: the left's and the right's.
        names: of the sides.
        apart: whether each side's update decays the parameter apart from the gradient.
    """
    one, other = kept
    if not np.isclose(one.decay, other.decay, rtol=1e-4, atol=1e-12):
        place = int(abs(other.decay) > abs(one.decay))
        less = kept[1 - place].decay
        more = f" (the other's {less:.4g})" if less else ""
        where = "weight decay that only its optimizer has, or has before the momentum"
        if apart[1 - place] and not apart[place]:
            where = f"L2 decay, where {names[1 - place]}'s is decoupled from the gradient"
        return f"{names[place]}'s memory holds {abs(kept[place].decay):.4g} times the parameter more{more}: {where}."
    if any(not np.isclose(k.new, round(k.new, 5), rtol=1e-6) for k in kept) or np.isclose(one.new, other.new):
        ours, theirs = f"{one.old:.6g}", f"{other.old:.6g}"
        same = ours == theirs or slot != "momentum_buffer"
        return "" if same else f"Of the old memory {names[0]} keeps {ours}, {names[1]} {theirs}: the momentum."
    if slot == "momentum_buffer":
        return f"Of the gradient {names[0]}'s memory takes {one.new:.4g}, {names[1]}'s {other.new:.4g}: dampening."
    which = "the second beta" if slot == "exp_avg_sq" else "the first beta"
    return f"Of its old {_MOMENTS[slot]} {names[0]} keeps {1 - one.new:.6g}, {names[1]} {1 - other.new:.6g}: {which}."


_MOMENTS = {"exp_avg": "mean", "exp_avg_sq": "mean square"}


def told(rules: tuple[Rule, Rule], names: tuple[str, str], settings: Mapping[str, Any], step: int) -> str:
    """The difference of two rules in a sentence; "" where there is none.

    Args:
        rules: the left's and the right's.
        names: of the sides.
        settings: what is known of either optimizer: `momentum`, `nesterov`, `betas`.
        step: from 0, since the optimizer began.
    """
    one, other = rules
    if one.form != other.form:
        words = [f"{name} {_FORMS[rule.form]}" for name, rule in zip(names, rules, strict=True)]
        return f"The update: {words[0]}, {words[1]}."
    ratio = other.scale / one.scale if one.scale else np.inf
    if one.form.startswith(("adam", "root")):
        adam = one.form.startswith("adam")
        first, second = (1 - beta ** (step + 1) if adam else 1.0 for beta in settings.get("betas", (0.9, 0.999)))
        correction = np.sqrt(second) / first
        for place, factor in enumerate((1 / ratio if ratio else np.inf, ratio)):
            if not np.isclose(ratio, 1) and np.isclose(factor, correction, rtol=1e-6):
                return f"{names[1 - place]}'s Adam has no bias correction, {names[place]}'s has."
        if not np.isclose(one.epsilon, other.epsilon, rtol=1e-2, atol=1e-14) and np.isclose(ratio, 1, rtol=1e-6):
            ours, theirs = (f"{rule.epsilon / np.sqrt(second):.3g}" for rule in rules)
            return f"The optimizer's epsilon is {names[0]}'s {ours}, {names[1]}'s {theirs}."
    if not np.isclose(ratio, 1, rtol=1e-6):
        return f"{names[1]}'s update is {ratio:.6g} times {names[0]}'s: {_scaled(ratio, names, one.form, settings)}."
    if not np.isclose(one.decay, other.decay, rtol=1e-4, atol=1e-12):
        ours, theirs = (f"{rule.decay:.4g}" for rule in rules)
        return (
            f"Besides the update {names[0]} takes {ours} times the parameter off, {names[1]} {theirs}: decoupled "
            "weight decay, times the learning rate."
        )
    return ""


_FORMS = {
    "momentum": "takes the momentum's step",
    "nesterov": "takes Nesterov's step",
    "gradient": "takes the gradient's step",
    "adam": "has the epsilon beside the root",
    "adam, epsilon inside": "has it inside the root",
    "root": "has the epsilon beside the root",
    "root, epsilon inside": "has it inside the root",
}


def _scaled(ratio: float, names: tuple[str, str], form: str, settings: Mapping[str, Any]) -> str:
    """Why one update is a multiple of another; Nesterov's first step is 1 + momentum times the plain one."""
    momentum = settings.get("momentum", 0.0)
    for place, factor in ((0, 1 / ratio if ratio else 0.0), (1, ratio)):
        if form == "momentum" and momentum and np.isclose(factor, 1 + momentum, rtol=1e-6):
            return f"1 + the momentum {momentum:g}, which is Nesterov's step, that {names[place]} takes alone"
    return "the learning rate or its schedule"
