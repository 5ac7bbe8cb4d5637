"""Networks that torchvision publishes, written plainly in linen, from the papers and torchvision's public interface."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    features: int
    stride: int = 1
    padding: Any = ((1, 1), (1, 1))
    axis: str | None = None

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        y = nn.Conv(self.features, (3, 3), self.stride, padding=self.padding, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis)(y))
        y = nn.Conv(self.features, (3, 3), use_bias=False)(y)
        y = nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.features, (1, 1), self.stride, use_bias=False, name="shortcut")(x)
            x = nn.BatchNorm(not train, momentum=0.9, name="shortcut_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """`torchvision.models.resnet.ResNet` of basic blocks: `stages` says how many there are of each width.

    `axis` is that over which several devices would average what their norms see.
    """

    stages: tuple[int, ...] = (2, 2, 2, 2)
    classes: int = 10
    padding: Any = ((1, 1), (1, 1))
    axis: str | None = None

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, axis_name=self.axis)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), self.padding)
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                padding = self.padding if stride == 2 else ((1, 1), (1, 1))
                x = Block(64 * 2**stage, stride, padding, self.axis)(x, train)
        return nn.Dense(self.classes)(x.mean((1, 2)))


def adaptive_mean(x: Any, size: int, axis: int) -> Any:
    """Means over as many bins as are wanted, which overlap where the axis does not divide; PyTorch's adaptive pool."""
    length = x.shape[axis]
    bins = [(place * length // size, -(-(place + 1) * length // size)) for place in range(size)]
    return jnp.stack([jnp.take(x, jnp.arange(*span), axis).mean(axis) for span in bins], axis)


class Vgg(nn.Module):
    """`torchvision.models.vgg11_bn`, whose maps are flattened before the first of three dense layers."""

    wide: int = 4096
    widths: tuple[int, ...] = (64, 128, 256, 256, 512, 512, 512, 512)
    classes: int = 10

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        for place, features in enumerate(self.widths):
            x = nn.Conv(features, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
            if place in (0, 1, 3, 5, 7):
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = adaptive_mean(adaptive_mean(x, 7, 1), 7, 2)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(self.wide)(x)))
        return nn.Dense(self.classes)(x)


class Mobile(nn.Module):
    """`torchvision.models.mobilenet_v2`: expansion, a convolution of each channel by itself, projection."""

    classes: int = 10
    width: float = 1.0

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        def conv(x: Any, features: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> Any:
            pad = kernel // 2
            x = nn.Conv(features, (kernel, kernel), stride, pad, feature_group_count=groups, use_bias=False)(x)
            x = nn.BatchNorm(not train, momentum=0.9)(x)
            return nn.relu6(x) if act else x

        def sized(channels: int) -> int:
            """Divisible by 8, and not smaller by more than a tenth."""
            wanted = channels * self.width
            found = max(8, int(wanted + 4) // 8 * 8)
            return found + 8 if found < 0.9 * wanted else found

        x = conv(x, sized(32), 3, 2)
        for expand, channels, count, first in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for place in range(count):
                y = x if expand == 1 else conv(x, x.shape[-1] * expand)
                y = conv(y, y.shape[-1], 3, 1 if place else first, y.shape[-1])
                y = conv(y, sized(channels), act=False)
                x = x + y if y.shape == x.shape else y
        x = conv(x, max(sized(1280), 1280)).mean((1, 2))
        return nn.Dense(self.classes)(nn.Dropout(0.2, deterministic=not train)(x))
