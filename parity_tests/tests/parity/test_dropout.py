"""Dropout that drops the same on both sides, by the layers' pairing; and what is off, and said to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import parity
import parity.linen
import parity.nnx
import parity.torch
from parity.dropout import Drop, Shared
from parity_tests.tests.parity.pairs import QUICK, RATE, batches, flax_loss, torch_loss

pytestmark = pytest.mark.usefixtures("x64")
SHAPE = (6, 3, 8, 8)


class _Torch(torch.nn.Module):
    """Dropout of single values, of whole maps, and of one layer that is called twice."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.conv, self.maps = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Dropout2d(0.25)
        self.mid, self.drop = torch.nn.Conv2d(6, 6, 1), torch.nn.Dropout(rate, inplace=True)
        self.wide, self.head = torch.nn.Linear(6, 6), torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(F.relu(self.mid(self.maps(self.conv(x))))).mean((2, 3))
        return self.head(self.drop(self.wide(x)))


class _Linen(nn.Module):
    """The same."""

    rate: float = 0.5
    last: bool = True

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        drop = nn.Dropout(self.rate, deterministic=not train)
        x = nn.Dropout(0.25, broadcast_dims=(1, 2))(nn.Conv(6, (3, 3))(x), deterministic=not train)
        x = drop(nn.relu(nn.Conv(6, (1, 1))(x))).mean((1, 2))
        x = nn.Dense(6)(x)
        return nn.Dense(5)(drop(x) if self.last else x)


class _Nnx(nnx.Module):
    """The same."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv, self.mid = nnx.Conv(3, 6, (3, 3), rngs=rngs), nnx.Conv(6, 6, (1, 1), rngs=rngs)
        self.maps, self.drop = nnx.Dropout(0.25, broadcast_dims=(1, 2), rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.wide, self.head = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.drop(nnx.relu(self.mid(self.maps(self.conv(x))))).mean((1, 2))
        return self.head(self.drop(self.wide(x)))


def _left(model: torch.nn.Module | None = None, dropout: Any = "shared") -> parity.torch.Side:
    torch.manual_seed(0)
    model = (model or _Torch()).double()
    return parity.torch.Side(model, torch_loss, torch.optim.SGD(model.parameters(), RATE), dropout=dropout)


def _right(model: nn.Module, shape: tuple[int, ...] = (6, 8, 8, 3), dropout: Any = "shared") -> parity.linen.Side:
    variables = jax.eval_shape(lambda key, x: model.init({"params": key, "dropout": key}, x), *_given(shape))
    return parity.linen.Side(model, variables, flax_loss, optax.sgd(RATE), dropout=dropout, compiler_options=QUICK)


def _given(shape: tuple[int, ...]) -> tuple[Any, Any]:
    return jax.random.key(0), np.ones(shape)


def _nnx() -> parity.nnx.Side:
    return parity.nnx.Side(_Nnx(nnx.Rngs(0)), flax_loss, optax.sgd(RATE), dropout="shared", compiler_options=QUICK)


@pytest.mark.parametrize(
    ("right", "maps", "drop"), [(lambda: _right(_Linen()), "Dropout_1", "Dropout_0"), (_nnx, "maps", "drop")]
)
def test_layers_drop_the_same(right: Callable[[], Any], maps: str, drop: str) -> None:
    verdict = parity.check(_left(), right(), batches(SHAPE, count=3))
    assert verdict, verdict
    paired = [("maps", maps), ("drop", drop), ("drop:2", f"{drop}:2")]
    told = ", ".join(one if one == other else f"{one} with {other}" for one, other in paired)
    assert f"Dropout masks are shared by {told}." in verdict.notes


def test_masks_are_of_the_rate_and_change_with_step_and_call() -> None:
    side = _left()
    drops, off = side.drops(batches(SHAPE)[0][0])
    assert [(drop.name, drop.rate) for drop in drops] == [("maps", 0.25), ("drop", 0.5), ("drop:2", 0.5)]
    assert off == []
    first, second = (parity.dropout.uniform(step, drops[1]) for step in (0, 1))
    assert abs((first < 0.5).mean() - 0.5) < 0.05
    assert 0.4 < ((first < 0.5) == (second < 0.5)).mean() < 0.6
    side.drawn = {drop.name: parity.dropout.uniform(0, drop) for drop in drops}
    seen = side.step(batches(SHAPE)[0])["activation"]
    zeros = seen["drop"] == 0
    assert np.array_equal(zeros, (first < 0.5) | (seen["drop (input)"] == 0))
    assert np.array_equal(seen["drop"][~zeros], 2 * seen["drop (input)"][~zeros])
    whole = (seen["maps"] == 0).all((2, 3))
    assert np.array_equal(whole, (seen["maps"] == 0).any((2, 3)))
    assert 0 < whole.sum() < whole.size


def test_another_rate_is_named() -> None:
    verdict = parity.check(_left(), _right(_Linen(rate=0.1)), batches(SHAPE), noise=False)
    assert "The dropout rate of drop is PyTorch's 0.5, Flax's 0.1." in verdict.sentence


def test_what_drops_otherwise_is_told_of_either_side() -> None:
    names = ("ours", "theirs")

    def drop(name: str, rate: float, after: str = "") -> Drop:
        return Drop(name, (2, 3), rate, (), after)

    for one, other in ((0.5, 0.1), (0.1, 0.5), (0.3, 0.3)):
        paired = Shared([(drop("x", one), drop("y", other))])
        words = f"The dropout rate of x is ours's {one:g}, theirs's {other:g}." if one != other else ""
        assert paired.cause(["w", "x"], "", names) == words
        assert paired.cause(["w"], "", names) == "", "it is on another way"
    for side, without, name in (("ours", "theirs", "x"), ("theirs", "ours", "y")):
        alone = Shared(alone=[(side, drop(name, 0.25, "fc"))])
        words = f"{side} has the dropout {name}, of rate 0.25, where {without} has none."
        assert alone.cause(["x"], "fc", names) == words
        assert alone.cause(["w"], "conv", names) == ""


def test_a_dropout_that_is_missing_is_named() -> None:
    verdict = parity.check(_left(), _right(_Linen(last=False)), batches(SHAPE), noise=False)
    assert "PyTorch has the dropout drop:2, of rate 0.5, where Flax has none." in verdict.sentence
    less = _Torch()
    less.maps.p = 0.0
    verdict = parity.check(_left(less), _right(_Linen()), batches(SHAPE), noise=False)
    assert "Flax has the dropout Dropout_1, of rate 0.25, where PyTorch has none." in verdict.sentence


class _Mixed(torch.nn.Module):
    """Attention with dropout inside, dropout as a function, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
        self.drop, self.head = torch.nn.Dropout(0.5), torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(F.dropout(self.drop(x).mean(1), 0.2, self.training))


class _MixedLinen(nn.Module):
    """The same."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.MultiHeadDotProductAttention(2, dropout_rate=0.3, deterministic=not train)(x)
        return nn.Dense(5)(nn.Dropout(0.5, deterministic=not train)(x).mean(1))


def test_what_is_no_layer_is_off_and_said_to_be() -> None:
    verdict = parity.check(_left(_Mixed()), _right(_MixedLinen(), (6, 4, 8)), batches((6, 4, 8)), noise=False)
    assert verdict, verdict
    told = "\n".join(verdict.notes)
    assert "Dropout masks are shared by drop with Dropout_0." in told
    assert "PyTorch's dropout in attention, the model is off: it is no layer, whose masks could be shared." in told
    assert "Flax's dropout in MultiHeadDotProductAttention_0 is off" in told


def test_sharing_takes_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dropout='shared' is asked of PyTorch alone: Flax must share, too\."):
        parity.check(_left(), _right(_Linen(), dropout="off"), batches(SHAPE))
    with pytest.raises(ValueError, match="PyTorch shares its dropout masks with another side and cannot be recorded"):
        parity.record(_left(), batches(SHAPE))
