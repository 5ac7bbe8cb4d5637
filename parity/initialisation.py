"""How two models begin: initial weights compared as distributions, which weights that are carried over hide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from parity import model as shared
from parity.model import Array, Batch, Watched
from parity.pairing import Match, match

_ERROR = 1e-6  # the probability that equal distributions are told apart, over all tensors
_FORM = 1e-4  # that a form is denied to a tensor that has it; this one only chooses words
_MOST = 50_000  # numbers of a tensor that are looked at
_TELLING = 0.25  # a standard deviation that differs by this share should show; where it cannot, the report says so
_TRUNCATED = 0.87962566103423978  # the standard deviation of a normal distribution cut off at two of its own
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Begun:
    """A pair of tensors that begin otherwise, in words; `tensors` are all that do so alike, by the left's names."""

    tensors: tuple[str, ...]
    left: str
    right: str


@dataclass
class Initial:
    """What came of a comparison of initial weights; `str` of it ends in a sentence.

    Attributes:
        names: of the sides.
        differences: in the order of the left's calls.
        compared: how many tensors, and how many of them hold random numbers.
        weak: those of too few numbers to tell distributions apart, by name, that were not.
    """

    names: tuple[str, str]
    differences: list[Begun] = field(default_factory=list)
    compared: tuple[int, int] = (0, 0)
    weak: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.differences

    @property
    def sentence(self) -> str:
        """The first difference, or that there is none."""
        one, other = self.names
        if not self.differences:
            tensors, drawn = self.compared
            return (
                f"{one} and {other} begin alike: {tensors} tensors, {drawn} of them random, none told apart with an "
                f"error probability of {_ERROR:g} in all."
            )
        first = self.differences[0]
        return f"{one} and {other} begin otherwise, first in {first.tensors[0]}: {self._words(first)}."

    def _words(self, begun: Begun) -> str:
        return f"{self.names[0]}'s {begun.left}, {self.names[1]}'s {begun.right}"

    def lines(self) -> list[str]:
        """A line for each difference, and what could not be told."""
        found = [
            f"{_few(begun.tensors)} begin{'s' * (len(begun.tensors) == 1)} otherwise: {self._words(begun)}."
            for begun in self.differences
        ]
        return found + ([f"Of too few numbers to tell by one draw: {_few(self.weak)}."] if self.weak else [])

    def __str__(self) -> str:
        return "\n".join([*self.lines(), self.sentence])


def initial(
    left: Watched,
    right: Watched,
    batch: Batch | Any,
    *,
    more: Iterable[tuple[Watched, Watched]] = (),
    pairs: Any = None,
) -> Initial:
    """Compare the weights with which two sides begin; both keep theirs.

    Args:
        left, right: with their initial weights: what `model.init` returned, not its shapes.
        batch: inputs, or (inputs, targets), in the left's layout, for the pairing.
        more: the same drawn with other seeds, where single tensors hold too few numbers.
        pairs: as for `match`.

    Raises:
        Unmatched: a module has no partner.
        ValueError: one side holds nothing but zeros, as one made of shapes does.
    """
    start = right.snapshot()
    try:
        found = match(left, right, batch, pairs)
    finally:
        right.restore(start)
    given = [(found.models[0].tensors, found.models[1].tensors)]
    inputs = batch[0] if isinstance(batch, tuple) and len(batch) == 2 else batch
    turned = shared.map_inputs(lambda array: shared.relay(array, left.layout, right.layout), inputs)
    for ours, theirs in more:
        ours.describe(inputs)
        theirs.describe(turned)
        given.append((ours.model().tensors, theirs.model().tensors))
    for side, tensors in zip((left, right), given[0], strict=True):
        if blank(tensors):
            raise ValueError(f"{side.name} holds nothing but zeros: make its side of what `init` returned, not shapes.")
    return begun(found, given)


def blank(tensors: Mapping[str, Array]) -> bool:
    """Whether weights were never drawn."""
    return not any(np.any(values) for values in tensors.values())


def begun(found: Match, draws: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]) -> Initial:
    """Compare draws of both sides' tensors, pair by pair."""
    result = Initial((found.left.name, found.right.name))
    pairs = [(pair, names) for pair in found.pairs for names in pair.tensors]
    level = _ERROR / (2 * max(len(pairs), 1))
    drawn = 0
    groups: dict[tuple[str, ...], Begun] = {}
    for pair, names in pairs:
        one, other = (
            np.concatenate([_sampled(found.in_torch(side, names[side], draw[side][names[side]])) for draw in draws])
            for side in (0, 1)
        )
        random = not (_constant(one) and _constant(other))
        drawn += random
        if not _differ(one, other, level):
            if random and _detectable(one, other, level) > _TELLING:
                result.weak.append(f"{names[0]} ({one.size})")
            continue
        shape = found.in_torch(0, pair.tensors[0][0], draws[0][0][pair.tensors[0][0]]).shape
        words = [_described(values, shape) for values in (one, other)]
        key = (*(form for form, _ in words), pair.kind, names[0].rpartition(".")[2])
        known = groups.get(key)
        groups[key] = (
            Begun((*known.tensors, names[0]), known.left, known.right)
            if known
            else Begun((names[0],), words[0][1], words[1][1])
        )
    result.differences = [*groups.values()]
    result.compared = (len(pairs), drawn)
    return result


def _sampled(values: Array) -> Array:
    """As many numbers as tell enough, flat."""
    flat = values.reshape(-1)
    return flat[:: (flat.size // _MOST) | 1].astype(np.float64)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def _differ(one: Array, other: Array, level: float) -> bool:
    """Whether two samples are of different distributions: by their shape, or by their spread."""
    if _constant(one) or _constant(other):
        return not (_constant(one) and _constant(other) and one[0] == other[0])
    if np.array_equal(one, other):
        return False
    n, m = one.size, other.size
    limit = math.sqrt(-math.log(level / 2) / 2 * (n + m) / (n * m))
    if _distance(np.sort(one), np.sort(other)) > limit:
        return True
    ratio = math.log(one.var() / other.var())
    return abs(ratio) > -_NORMAL.inv_cdf(level / 2) * math.hypot(_spread(one), _spread(other))


def _distance(one: Array, other: Array) -> float:
    """Of two sorted samples: the largest difference of their shares below any number."""
    places = np.concatenate([one, other])
    shares = [np.searchsorted(values, places, "right") / values.size for values in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def _spread(values: Array) -> float:
    """The standard error of the logarithm of a variance; small samples have no better than a normal's."""
    centred = values - values.mean()
    tail = float((centred**4).mean() / max((centred**2).mean() ** 2, 1e-300))
    return math.sqrt(max(tail - 1, 0.8 if values.size > 100 else 2.0) / values.size)


def _detectable(one: Array, other: Array, level: float) -> float:
    """The share by which a standard deviation would have to differ to be seen."""
    return math.expm1(-_NORMAL.inv_cdf(level / 2) * math.hypot(_spread(one), _spread(other)) / 2)


def _described(values: Array, weight: tuple[int, ...]) -> tuple[str, str]:
    """(form, in words) of how a tensor was drawn; `weight` is the shape of the kernel that it is of, or belongs to."""
    if _constant(values):
        word = {0.0: "zeros", 1.0: "ones"}.get(float(values[0]), f"all {values[0]:.4g}")
        return word, word
    mean, deviation, bound = float(values.mean()), float(values.std()), float(np.abs(values).max())
    scaled = np.sort(values) / deviation
    limit = math.sqrt(-math.log(_FORM / 2) / (2 * values.size))
    error = 4 * _spread(values) / 2 + 1e-3
    ranks = (np.arange(values.size) + 0.5) / values.size
    far = {form: float(np.abs(shares(scaled) - ranks).max()) for form, shares in _FORMS.items()}
    if bound > 2 / _TRUNCATED * deviation * (1 + error):
        del far["truncated normal"]
    form = min(far, key=far.__getitem__)
    if far[form] <= limit:
        size = deviation * (math.sqrt(3) if form == "uniform" else 1)
        said = f"{form} with standard deviation {deviation:.3g}"
        said = f"uniform within ±{bound:.3g}" if form == "uniform" else said
        off = {recipe: abs(size / wanted - 1) for recipe, (its, wanted) in _recipes(weight).items() if its == form}
        nearest = min(off, key=off.__getitem__, default="")
        if nearest and off[nearest] < error:
            return f"{form} {nearest}", f"{said} ({nearest})"
        return form, said
    told = f"random from {values.min():.3g} to {values.max():.3g} with mean {mean:.3g} and standard deviation"
    return "random", f"{told} {deviation:.3g}"


def _cut(values: Array) -> Array:
    """The shares of a normal distribution of deviation 1 that was cut off at two of its own before."""
    low, high = _NORMAL.cdf(-2), _NORMAL.cdf(2)
    return np.clip((_bell(values * _TRUNCATED) - low) / (high - low), 0, 1)


def _bell(values: Array) -> Array:
    return np.array([_NORMAL.cdf(float(value)) for value in values])


_FORMS: dict[str, Callable[[Array], Array]] = {  # shares below numbers, of deviation 1
    "uniform": lambda x: np.clip(x / math.sqrt(12) + 0.5, 0, 1),
    "truncated normal": _cut,
    "normal": _bell,
}


def _recipes(weight: tuple[int, ...]) -> dict[str, tuple[str, float]]:
    """(form, bound or standard deviation) by which people draw a kernel O, I, ..., or the bias beside it."""
    if len(weight) < 2:
        return {}
    field_size = math.prod(weight[2:])
    given, made = weight[1] * field_size, weight[0] * field_size
    return {
        "PyTorch's default": ("uniform", given**-0.5),
        "lecun_normal": ("truncated normal", given**-0.5),
        "he_normal": ("truncated normal", (2 / given) ** 0.5),
        "kaiming_normal_, fan_out": ("normal", (2 / made) ** 0.5),
        "kaiming_normal_, fan_in": ("normal", (2 / given) ** 0.5),
        "xavier_uniform_": ("uniform", (6 / (given + made)) ** 0.5),
        "kaiming_uniform_": ("uniform", (6 / given) ** 0.5),
        "lecun_uniform": ("uniform", (3 / given) ** 0.5),
        "glorot_normal": ("truncated normal", (2 / (given + made)) ** 0.5),
        "xavier_normal_": ("normal", (2 / (given + made)) ** 0.5),
        "an embedding's in PyTorch": ("normal", 1.0),
        "an embedding's in Flax": ("normal", weight[1] ** -0.5),
    }
