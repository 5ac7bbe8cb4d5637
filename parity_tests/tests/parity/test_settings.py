"""What a layer's arithmetic depends on is read off each framework's layers as it was given to them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from flax import nnx

import parity
import parity.linen
import parity.nnx
import parity.torch

pytestmark = pytest.mark.usefixtures("x64")
CONV = {"padding": [[2, 2], [1, 1]], "stride": [2, 1], "dilation": [3, 2], "groups": 2}
UP = {"stretched": [[1, 1], [2, 2]], "stride": [2, 1], "dilation": [1, 2]}
NORM = {"epsilon": 0.25}
RNGS = nnx.Rngs(0)

# By kind: the same layer three times, and what is read of it.
LAYERS: dict[str, tuple[torch.nn.Module, nn.Module, nnx.Module, dict[str, Any]]] = {
    "conv": (
        torch.nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (3, 2), 2),
        nn.Conv(6, (3, 2), (2, 1), ((2, 2), (1, 1)), kernel_dilation=(3, 2), feature_group_count=2),
        nnx.Conv(
            4, 6, (3, 2), (2, 1), padding=((2, 2), (1, 1)), kernel_dilation=(3, 2), feature_group_count=2, rngs=RNGS
        ),
        CONV,
    ),
    "conv_transpose": (
        torch.nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (1, 0), dilation=(1, 2)),
        nn.ConvTranspose(6, (3, 2), (2, 1), ((1, 1), (2, 2)), kernel_dilation=(1, 2)),
        nnx.ConvTranspose(4, 6, (3, 2), (2, 1), padding=((1, 1), (2, 2)), kernel_dilation=(1, 2), rngs=RNGS),
        UP,
    ),
    "batch_norm": (
        torch.nn.BatchNorm2d(4, 0.25, 0.2),
        nn.BatchNorm(momentum=0.8, epsilon=0.25),
        nnx.BatchNorm(4, use_running_average=True, momentum=0.8, epsilon=0.25, rngs=RNGS),
        NORM | {"momentum": 0.8},
    ),
    "layer_norm": (
        torch.nn.LayerNorm(4, 0.25),
        nn.LayerNorm(epsilon=0.25),
        nnx.LayerNorm(4, epsilon=0.25, rngs=RNGS),
        NORM,
    ),
    "group_norm": (
        torch.nn.GroupNorm(2, 4, 0.25),
        nn.GroupNorm(2, epsilon=0.25),
        nnx.GroupNorm(4, 2, epsilon=0.25, rngs=RNGS),
        NORM,
    ),
    "rms_norm": (
        torch.nn.RMSNorm(4, 0.25),
        nn.RMSNorm(epsilon=0.25),
        nnx.RMSNorm(4, epsilon=0.25, rngs=RNGS),
        NORM,
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("framework", ["torch", "linen", "nnx"])
def test_a_layers_settings_are_read_as_they_were_given(kind: str, framework: str) -> None:
    ours, linen, theirs, wanted = LAYERS[kind]
    images = np.ones((2, 7, 6, 4))
    side: Any
    if framework == "torch":
        side = parity.torch.Side(ours.double())
        images = images if kind in ("layer_norm", "rms_norm") else np.moveaxis(images, -1, 1)
    elif framework == "linen":
        flags: dict[str, Any] = {"use_running_average": True} if kind == "batch_norm" else {}
        side = parity.linen.Side(linen, jax.eval_shape(lambda key: linen.init(key, images, **flags), jax.random.key(0)))
    else:
        side = parity.nnx.Side(theirs)
    side.describe(images)
    module = side.model().modules[""]
    assert module.kind == kind
    config = {name: np.asarray(module.config[name]).tolist() for name in wanted}
    assert config == {name: np.asarray(given).tolist() for name, given in wanted.items()}
