"""AlexNet and LeNet in Flax linen: NHWC, one named line per layer. Read next to `torch_impl/model.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from common.arch.spec import After, Arch, AvgPool, ConvSpec, MaxPool
from common.errors import UserError
from flax_impl.layers import BatchNorm, Conv, Dense, adaptive_avg_pool, local_response_norm, max_pool

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"relu": nn.relu, "tanh": jnp.tanh, "sigmoid": nn.sigmoid}


class ConvBlock(nn.Module):
    """Convolution, batch norm if any, activation, then pools and local response norms in the spec's order.

    Attributes:
        spec: of the block.
        activation: a key of `ACTIVATIONS`.
        dtype: of the arithmetic; None takes the widest of inputs and parameters.
        param_dtype: of the parameters.
    """

    spec: ConvSpec
    activation: str = "relu"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        spec, types = self.spec, {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.conv = Conv(
            spec.features,
            (spec.kernel, spec.kernel),
            spec.stride,
            padding=spec.padding,  # explicit: "SAME" would pad a strided layer unevenly, which PyTorch cannot
            feature_group_count=spec.groups,
            use_bias=spec.bias,
            **types,
        )
        if spec.norm:
            self.norm = BatchNorm(momentum=1 - spec.norm.momentum, epsilon=spec.norm.eps, **types)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """(N, H, W, C) -> (N, H', W', features)."""
        x = self.maps(x, train=train)
        for step in self.spec.after:
            x = _after(step, x)
        return x

    def maps(self, x: Array, *, train: bool) -> Array:
        """What enters the pools and local response norms: (N, H, W, C) -> (N, H'', W'', features)."""
        x = self.conv(x)
        x = self.norm(x, use_running_average=not train) if self.spec.norm else x
        return ACTIVATIONS[self.activation](x)


def _after(step: After, x: Array) -> Array:
    if isinstance(step, MaxPool):
        return max_pool(x, step)
    if isinstance(step, AvgPool):  # as in PyTorch, sums of 16-bit numbers are not rounded to 16 bits on the way
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return nn.avg_pool(wide, (step.size, step.size), (step.stride, step.stride)).astype(x.dtype)
    return local_response_norm(x, step)


class AlexNet(nn.Module):
    """Five convolution blocks and three dense layers, as `arch` says.

    `AlexNet(arch).init(key, images, train=False)` draws linen's own initial values; `flax_impl.init.initialize`
    draws a recipe's. Dropout takes its key from `rngs={"dropout": key}`.

    Raises:
        UserError: `arch` does not have five convolutions and three dense layers.
    """

    arch: Arch
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        _check_depth(self.arch, type(self).__name__, 5, 3)
        block = partial(ConvBlock, activation=self.arch.activation, dtype=self.dtype, param_dtype=self.param_dtype)
        dense = partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        conv1, conv2, conv3, conv4, conv5 = self.arch.convs
        fc6, fc7, fc8 = self.arch.dense
        self.conv1 = block(conv1)
        self.conv2 = block(conv2)
        self.conv3 = block(conv3)
        self.conv4 = block(conv4)
        self.conv5 = block(conv5)
        self.drop6 = nn.Dropout(fc6.dropout)
        self.fc6 = dense(fc6.features)
        self.drop7 = nn.Dropout(fc7.dropout)
        self.fc7 = dense(fc7.features)
        self.drop8 = nn.Dropout(fc8.dropout)
        self.fc8 = dense(fc8.features)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Images (N, H, W, C), normalised -> logits (N, classes)."""
        self.arch.check_input(x.shape, "NHWC")
        activation = ACTIVATIONS[self.arch.activation]
        x = self.conv1(x, train=train)
        x = self.conv2(x, train=train)
        x = self.conv3(x, train=train)
        x = self.conv4(x, train=train)
        x = self.conv5(x, train=train)
        x = adaptive_avg_pool(x, self.arch.adaptive_pool) if self.arch.adaptive_pool else x
        # (N, H * W * C); PyTorch flattens C * H * W, so the converter permutes fc6's rows.
        x = x.reshape(x.shape[0], -1)
        x = self.drop6(x, deterministic=not train)
        x = activation(self.fc6(x))
        x = self.drop7(x, deterministic=not train)
        x = activation(self.fc7(x))
        x = self.drop8(x, deterministic=not train)
        x = self.fc8(x)
        return x


class LeNet(nn.Module):
    """Two convolution blocks and two dense layers, as `arch` says.

    Raises:
        UserError: `arch` does not have two convolutions and two dense layers.
    """

    arch: Arch
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        _check_depth(self.arch, type(self).__name__, 2, 2)
        block = partial(ConvBlock, activation=self.arch.activation, dtype=self.dtype, param_dtype=self.param_dtype)
        dense = partial(Dense, dtype=self.dtype, param_dtype=self.param_dtype)
        conv1, conv2 = self.arch.convs
        fc3, fc4 = self.arch.dense
        self.conv1 = block(conv1)
        self.conv2 = block(conv2)
        self.drop3 = nn.Dropout(fc3.dropout)
        self.fc3 = dense(fc3.features)
        self.drop4 = nn.Dropout(fc4.dropout)
        self.fc4 = dense(fc4.features)

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Images (N, H, W, C), normalised -> logits (N, classes)."""
        self.arch.check_input(x.shape, "NHWC")
        activation = ACTIVATIONS[self.arch.activation]
        x = self.conv1(x, train=train)
        x = self.conv2(x, train=train)
        x = adaptive_avg_pool(x, self.arch.adaptive_pool) if self.arch.adaptive_pool else x
        x = x.reshape(x.shape[0], -1)  # (N, H * W * C); PyTorch flattens C * H * W
        x = self.drop3(x, deterministic=not train)
        x = activation(self.fc3(x))
        x = self.drop4(x, deterministic=not train)
        x = self.fc4(x)
        return x


def build(arch: Arch, *, dtype: Any = None, param_dtype: Any = jnp.float32) -> AlexNet | LeNet:
    """The module whose number of layers `arch` has.

    Raises:
        UserError: there is none.
    """
    kind = LeNet if len(arch.convs) == 2 else AlexNet
    return kind(arch, dtype=dtype, param_dtype=param_dtype)


def _check_depth(arch: Arch, name: str, convs: int, dense: int) -> None:
    if (len(arch.convs), len(arch.dense)) != (convs, dense):
        raise UserError(
            f"{name} takes {convs} convolutions and {dense} dense layers; "
            f"{arch.name} has {len(arch.convs)} and {len(arch.dense)}."
        )
