"""Dropout that drops the same on both sides: which layer is which, and the numbers that both draw from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from parity import model as shared
from parity.model import Array, Layout
from parity.pairing import Match


@dataclass(frozen=True)
class Drop:
    """A call of a dropout layer in training.

    Attributes:
        name: of the call.
        shape: of what it is given.
        rate: above 0.
        before: the calls that ended before it, in their order.
        after: the last of these that has a partner, by the right's name.
    """

    name: str
    shape: tuple[int, ...]
    rate: float
    before: tuple[str, ...]
    after: str = ""


class Dropping(Protocol):
    """A side whose dropout layers take the numbers that they draw from."""

    name: str
    layout: Layout
    drawn: dict[str, Array]

    def drops(self, inputs: object) -> tuple[list[Drop], list[str]]:
        """What is dropped in a training pass, and in words what else would be, which is off."""


@dataclass
class Shared:
    """Dropout layers that draw from the same numbers.

    Attributes:
        pairs: the left's and the right's calls.
        alone: (side's name, call) of those without a partner.
        off: in words, what is switched off.
    """

    pairs: list[tuple[Drop, Drop]] = field(default_factory=list)
    alone: list[tuple[str, Drop]] = field(default_factory=list)
    off: list[str] = field(default_factory=list)

    def draw(self, left: Dropping, right: Dropping, step: int) -> None:
        """Give both sides their numbers of a step: in the order of the left's axes, a stream for each call."""
        left.drawn, right.drawn = {}, {}
        for ours, theirs in self.pairs:
            numbers = uniform(step, ours)
            left.drawn[ours.name] = numbers
            moved = numbers if numbers.shape == theirs.shape else shared.relay(numbers, left.layout, right.layout)
            right.drawn[theirs.name] = moved.reshape(theirs.shape)
        for name, drop in self.alone:
            side = left if name == left.name else right
            side.drawn[drop.name] = uniform(step, drop)

    def cause(self, between: Sequence[str], partner: str, names: tuple[str, str]) -> str:
        """Dropout that differs in the way of a layer's input.

        Args:
            between: the left's calls on the way.
            partner: the right's name of the last paired call.
            names: of the sides.
        """
        for ours, theirs in self.pairs:
            if ours.name in between and ours.rate != theirs.rate:
                return f"The dropout rate of {ours.name} is {names[0]}'s {ours.rate:g}, {names[1]}'s {theirs.rate:g}."
        for name, drop in self.alone:
            if (name == names[0] and drop.name in between) or (name == names[1] and partner == drop.after):
                other = names[name == names[0]]
                return f"{name} has the dropout {drop.name}, of rate {drop.rate:g}, where {other} has none."
        return ""

    def notes(self) -> list[str]:
        """What the report says of it."""
        told = [
            ours.name if (ours.name, ours.rate) == (theirs.name, theirs.rate) else f"{ours.name} with {theirs.name}"
            for ours, theirs in self.pairs
        ]
        more = f" and {len(told) - 6} more" * (len(told) > 6)
        found = [f"Dropout masks are shared by {', '.join(told[:6])}{more}."] if told else []
        found += [
            f"{side}'s dropout {drop.name}, of rate {drop.rate:g}, has no partner: it drops alone."
            for side, drop in self.alone
        ]
        return found + self.off


def off_words(name: str, places: Iterable[str]) -> list[str]:
    """That dropout which is no layer of its own is off, in the words of a report."""
    told = ", ".join(places)
    return [f"{name}'s dropout in {told} is off: it is no layer, whose masks could be shared."] if told else []


def share(found: Match, inputs: tuple[object, object]) -> Shared:
    """Pair the dropout calls of two sides: by the paired layer before them, otherwise by their order.

    Args:
        found: the pairing of what has weights.
        inputs: each side's, in its own layout.
    """
    sides: tuple[Dropping, Dropping] = (found.left, found.right)  # type: ignore[assignment]
    (ours, off), (theirs, more) = (side.drops(given) for side, given in zip(sides, inputs, strict=True))
    partners = {left: right for left, right, pair in found.calls() if pair and not left.endswith(" (input)")}
    result = Shared(off=[*off, *more])
    itself = {right: right for right in partners.values()}
    left = [replace(drop, after=_last(drop.before, partners)) for drop in ours]
    right = [replace(drop, after=_last(drop.before, itself)) for drop in theirs]
    for drop in [*left]:
        other = next((other for other in right if other.after == drop.after and _fits(drop, other)), None)
        if other:
            result.pairs.append((drop, other))
            left.remove(drop)
            right.remove(other)
    if len(left) == len(right) and all(map(_fits, left, right)):
        result.pairs += zip(left, right, strict=True)
    else:
        result.alone = [(side.name, drop) for side, part in zip(sides, (left, right), strict=True) for drop in part]
    return result


def _last(before: Sequence[str], partners: dict[str, str]) -> str:
    """The partner of the last call that has one."""
    return next((partners[name] for name in reversed(before) if name in partners), "")


def _fits(one: Drop, other: Drop) -> bool:
    """Whether what they are given may be the same in another order of axes."""
    return len(one.shape) == len(other.shape) and sorted(one.shape) == sorted(other.shape)


def uniform(step: int, drop: Drop) -> Array:
    """Numbers from 0 to 1, of which those below the rate are dropped: a function of the step and the call's name."""
    key = hashlib.sha256(f"{step} {drop.name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).random(drop.shape)
