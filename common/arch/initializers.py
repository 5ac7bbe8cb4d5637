"""Initialisation schemes as data. `torch_impl.init` and `flax_impl.init` draw them, each in its framework's way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.arch.spec import Arch
from common.errors import lookup

Kernel = Literal["fan_in_uniform", "he_fan_in", "he_fan_out", "xavier_uniform", "normal"]


@dataclass(frozen=True)
class Init:
    """How fresh parameters are drawn; batch norm always starts at scale 1 and shift 0.

    Attributes:
        conv, dense: the kernels' distribution.
            `fan_in_uniform`: U(-b, b), b = 1 / sqrt(fan in), PyTorch's default for both layer types.
            `he_fan_in`: N(0, 2 / fan in), He et al., arXiv:1502.01852, equation 10, which keeps activations in scale.
            `he_fan_out`: N(0, 2 / fan out), their equation 14, which keeps gradients in scale.
            `xavier_uniform`: U(-b, b), b = sqrt(6 / (fan in + fan out)), Glorot and Bengio, 2010.
            `normal`: N(0, std ** 2).
        std: for `normal`.
        bias: `zeros`, or `fan_in_uniform` as for the kernels (PyTorch's default).
        ones: layers whose bias starts at 1 instead.
    """

    conv: Kernel
    dense: Kernel
    std: float = 0.01
    bias: Literal["zeros", "fan_in_uniform"] = "zeros"
    ones: tuple[str, ...] = ()


INITS: dict[str, Init] = {
    # torch.nn.Conv2d and torch.nn.Linear as they come, which torchvision's alexnet leaves alone.
    "torch": Init(conv="fan_in_uniform", dense="fan_in_uniform", bias="fan_in_uniform"),
    # The 2012 paper, section 5: biases of 1 in conv 2, 4, 5 and the hidden dense layers give the ReLUs positive inputs.
    "normal_2012": Init(conv="normal", dense="normal", ones=("conv2", "conv4", "conv5", "fc6", "fc7")),
    # The CIFAR tutorials: Kaiming normal (fan out) convolutions, N(0, 0.01) dense layers, zero biases.
    "kaiming": Init(conv="he_fan_out", dense="normal"),
    # He et al. throughout: the only scheme here with which the digits recipe starts to learn in its first epoch.
    "he": Init(conv="he_fan_in", dense="he_fan_in"),
    # Dive into Deep Learning's Gluon code: init.Xavier(), zero biases.
    "xavier": Init(conv="xavier_uniform", dense="xavier_uniform"),
}


def get_init(name: str) -> Init:
    """Look up a named scheme.

    Raises:
        UserError: there is none of this name; the message names the nearest.
    """
    return lookup(INITS, name, "initialisation")


def fans(name: str, arch: Arch) -> tuple[int, int]:
    """Fan in and fan out of layer `name`: connections of one output, and of one input, through the kernel.

    A grouped convolution's output sees the input channels of its group only. PyTorch reads fan out off the weight's
    first dimension, all output channels, and so do we, since the recipes come from PyTorch.
    """
    inputs = arch.image[2]
    for conv_name, conv in arch.named_convs():
        if conv_name == name:
            return conv.kernel**2 * inputs // conv.groups, conv.kernel**2 * conv.features
        inputs = conv.features
    height, width, channels = arch.feature_size
    inputs = height * width * channels
    for dense_name, dense in arch.named_dense():
        if dense_name == name:
            return inputs, dense.features
        inputs = dense.features
    raise KeyError(name)
