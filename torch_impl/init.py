"""Fresh parameters in PyTorch, drawn as an `Init` says. Read next to `flax_impl/init.py`."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn

from common.arch.initializers import Init, Kernel, fans
from torch_impl.model import AlexNet, LeNet


@torch.no_grad()
def initialize(model: AlexNet | LeNet, init: Init, seed: int) -> None:
    """Draw every parameter anew, in place.

    Args:
        model: whose `arch` gives the layers' fans.
        init: the scheme.
        seed: of a generator of our own; PyTorch's global one is left alone.
    """
    generator = torch.Generator().manual_seed(seed)
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer = path.split(".")[0]
            fan_in, fan_out = fans(layer, model.arch)
            kernel = init.conv if isinstance(module, nn.Conv2d) else init.dense
            draw_kernel(module.weight, kernel, init.std, fan_in, fan_out, generator)
            if module.bias is not None:
                draw_bias(module.bias, init, layer, fan_in, generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def draw_kernel(
    weight: Tensor, kernel: Kernel, std: float, fan_in: int, fan_out: int, generator: torch.Generator
) -> None:
    """Fill a weight, (out, in) or (out, in, height, width), with draws of the named distribution."""
    match kernel:
        case "fan_in_uniform":
            nn.init.uniform_(weight, -1 / sqrt(fan_in), 1 / sqrt(fan_in), generator=generator)
        case "he_fan_in":
            nn.init.normal_(weight, 0, sqrt(2 / fan_in), generator=generator)
        case "he_fan_out":
            nn.init.normal_(weight, 0, sqrt(2 / fan_out), generator=generator)
        case "xavier_uniform":
            bound = sqrt(6 / (fan_in + fan_out))
            nn.init.uniform_(weight, -bound, bound, generator=generator)
        case "normal":
            nn.init.normal_(weight, 0, std, generator=generator)


def draw_bias(bias: Tensor, init: Init, layer: str, fan_in: int, generator: torch.Generator) -> None:
    """Fill a bias (out,) of the layer named."""
    if layer in init.ones:
        nn.init.ones_(bias)
    elif init.bias == "zeros":
        nn.init.zeros_(bias)
    else:
        nn.init.uniform_(bias, -1 / sqrt(fan_in), 1 / sqrt(fan_in), generator=generator)
