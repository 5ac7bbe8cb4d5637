"""AlexNet and LeNet in PyTorch: NCHW, one named line per layer. Read next to `flax_impl/model.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.arch.spec import After, Arch, AvgPool, ConvSpec, MaxPool
from common.errors import UserError
from torch_impl.layers import AdaptiveAvgPool2d, LocalResponseNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


class ConvBlock(nn.Module):
    """Convolution, batch norm if any, activation, then pools and local response norms in the spec's order.

    Args:
        spec: of the block.
        channels: that enter it.
        activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, spec: ConvSpec, channels: int, activation: str = "relu") -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, spec.features, spec.kernel, spec.stride, spec.padding, groups=spec.groups, bias=spec.bias
        )
        self.norm = nn.BatchNorm2d(spec.features, spec.norm.eps, spec.norm.momentum) if spec.norm else nn.Identity()
        self.activation = ACTIVATIONS[activation]
        self.after = nn.Sequential(*(_after(step) for step in spec.after))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, features, H', W')."""
        x = self.maps(x)
        return cast(Tensor, self.after(x))

    def maps(self, x: Tensor) -> Tensor:
        """What enters the pools and local response norms: (N, C, H, W) -> (N, features, H'', W'')."""
        x = self.conv(x)
        x = self.norm(x)
        return self.activation(x)


def _after(step: After) -> nn.Module:
    if isinstance(step, MaxPool):
        return nn.MaxPool2d(step.size, step.stride, step.padding)
    if isinstance(step, AvgPool):
        return nn.AvgPool2d(step.size, step.stride)
    # PyTorch divides alpha by the size of the window, the paper does not.
    return LocalResponseNorm(step.size, step.alpha * step.size, step.beta, step.k)


class AlexNet(nn.Module):
    """Five convolution blocks and three dense layers, as `arch` says. In evaluation after `.eval()`, as usual.

    Raises:
        UserError: `arch` does not have five convolutions and three dense layers.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        _check_depth(arch, type(self).__name__, 5, 3)
        self.arch = arch
        conv1, conv2, conv3, conv4, conv5 = arch.convs
        fc6, fc7, fc8 = arch.dense
        height, width, channels = arch.feature_size
        self.activation = ACTIVATIONS[arch.activation]
        self.conv1 = ConvBlock(conv1, arch.image[2], arch.activation)
        self.conv2 = ConvBlock(conv2, conv1.features, arch.activation)
        self.conv3 = ConvBlock(conv3, conv2.features, arch.activation)
        self.conv4 = ConvBlock(conv4, conv3.features, arch.activation)
        self.conv5 = ConvBlock(conv5, conv4.features, arch.activation)
        self.pool = AdaptiveAvgPool2d(arch.adaptive_pool) if arch.adaptive_pool else nn.Identity()
        self.drop6 = nn.Dropout(fc6.dropout)
        self.fc6 = nn.Linear(height * width * channels, fc6.features)
        self.drop7 = nn.Dropout(fc7.dropout)
        self.fc7 = nn.Linear(fc6.features, fc7.features)
        self.drop8 = nn.Dropout(fc8.dropout)
        self.fc8 = nn.Linear(fc7.features, fc8.features)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W), normalised -> logits (N, classes)."""
        self.arch.check_input(x.shape, "NCHW")
        x = self.conv1(x)
        x = self.conv2(x)
        x = self.conv3(x)
        x = self.conv4(x)
        x = self.conv5(x)
        x = self.pool(x)
        x = x.flatten(1)  # (N, C * H * W); Flax flattens H * W * C, so the converter permutes fc6's columns
        x = self.drop6(x)
        x = self.activation(self.fc6(x))
        x = self.drop7(x)
        x = self.activation(self.fc7(x))
        x = self.drop8(x)
        x = self.fc8(x)
        return x


class LeNet(nn.Module):
    """Two convolution blocks and two dense layers, as `arch` says.

    Raises:
        UserError: `arch` does not have two convolutions and two dense layers.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        _check_depth(arch, type(self).__name__, 2, 2)
        self.arch = arch
        conv1, conv2 = arch.convs
        fc3, fc4 = arch.dense
        height, width, channels = arch.feature_size
        self.activation = ACTIVATIONS[arch.activation]
        self.conv1 = ConvBlock(conv1, arch.image[2], arch.activation)
        self.conv2 = ConvBlock(conv2, conv1.features, arch.activation)
        self.pool = AdaptiveAvgPool2d(arch.adaptive_pool) if arch.adaptive_pool else nn.Identity()
        self.drop3 = nn.Dropout(fc3.dropout)
        self.fc3 = nn.Linear(height * width * channels, fc3.features)
        self.drop4 = nn.Dropout(fc4.dropout)
        self.fc4 = nn.Linear(fc3.features, fc4.features)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W), normalised -> logits (N, classes)."""
        self.arch.check_input(x.shape, "NCHW")
        x = self.conv1(x)
        x = self.conv2(x)
        x = self.pool(x)
        x = x.flatten(1)  # (N, C * H * W); Flax flattens H * W * C
        x = self.drop3(x)
        x = self.activation(self.fc3(x))
        x = self.drop4(x)
        x = self.fc4(x)
        return x


def build(arch: Arch) -> AlexNet | LeNet:
    """The module whose number of layers `arch` has, with PyTorch's default weights.

    Raises:
        UserError: there is none.
    """
    return LeNet(arch) if len(arch.convs) == 2 else AlexNet(arch)


def _check_depth(arch: Arch, name: str, convs: int, dense: int) -> None:
    if (len(arch.convs), len(arch.dense)) != (convs, dense):
        raise UserError(
            f"{name} takes {convs} convolutions and {dense} dense layers; "
            f"{arch.name} has {len(arch.convs)} and {len(arch.dense)}."
        )
