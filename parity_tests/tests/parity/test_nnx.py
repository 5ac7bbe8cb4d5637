"""An NNX model against one of PyTorch, and against linen's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import parity
import parity.nnx
from parity_tests.tests.parity.pairs import MOMENTUM, NET, QUICK, RATE, batches, flax_loss

pytestmark = pytest.mark.usefixtures("x64")
FREE = parity.Bounds(1e-10, share=1e-4, tensor={"*.running_var": np.inf})


class _Net(nnx.Module):
    """What `pairs.TorchNet` is."""

    def __init__(self, epsilon: float, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 4, (3, 3), strides=2, padding=1, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, epsilon=epsilon, rngs=rngs)
        self.mid = nnx.Conv(4, 6, (3, 3), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(96, 8, rngs=rngs), nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.max_pool(nnx.relu(self.norm(self.stem(x))), (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = nnx.gelu(self.mid(x), approximate=False).reshape(len(x), -1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.drop(x))


def _side(epsilon: float = 1e-5) -> parity.nnx.Side:
    tx = optax.sgd(RATE, MOMENTUM)
    return parity.nnx.Side(_Net(epsilon, nnx.Rngs(0)), flax_loss, tx, compiler_options=QUICK)


def test_it_agrees_with_pytorch() -> None:
    verdict = parity.check(NET.sides()[0], _side(), batches(NET.shape), bounds=FREE)
    assert verdict, verdict
    assert verdict.pairing is not None
    assert {pair.tried for pair in verdict.pairing.pairs} == {"agrees"}
    assert ("wide", "layers.0") in [(pair.left, pair.right) for pair in verdict.pairing.pairs]


def test_what_differs_is_named() -> None:
    [finding] = parity.check(NET.sides()[0], _side(1e-3), batches(NET.shape), bounds=FREE, noise=False).findings
    assert (finding.tensors, finding.cause) == (("norm",), "The epsilon is PyTorch's 1e-05, NNX's 0.001.")


def test_linen_and_nnx_agree_to_the_last_place() -> None:
    """Both are JAX; as the left one, linen names the tensors."""
    given = [(np.moveaxis(images, 1, -1), labels) for images, labels in batches(NET.shape)]
    left = replace(NET, tx=optax.sgd(RATE, MOMENTUM)).sides()[1]
    drawn = jax.tree.map(lambda shape: np.random.default_rng(3).normal(size=shape.shape), left.params)
    left.load(
        {**left.names(drawn, False), **{name: np.ones(v.shape) for name, v in left.names(left.state, True).items()}}
    )
    verdict = parity.check(left, _side(), given, noise=False)
    assert verdict, verdict
    assert ("statistic", "batch_stats:BatchNorm_0.var") in verdict.report.worst
