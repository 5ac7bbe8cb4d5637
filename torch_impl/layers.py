"""What PyTorch lacks: response norm in float32, batch norm over the rows of several processes on a CPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class LocalResponseNorm(nn.LocalResponseNorm):
    """PyTorch's, in float32 at least: added to k in bfloat16, alpha times the squares would vanish."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, in its dtype."""
        wide, kind = torch.promote_types(x.dtype, torch.float32), x.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return super().forward(x.to(wide)).to(x.dtype)


def synchronise_norms(model: nn.Module) -> None:
    """Give batch norm, in place, the mean and variance of the rows of all processes."""
    if next(model.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, SyncBatchNorm(norm))


class SyncBatchNorm(nn.BatchNorm2d):
    """`torch.nn.SyncBatchNorm`, which refuses the CPU.

    Args:
        norm: whose parameters and statistics it takes over.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self._parameters, self._buffers = norm._parameters, norm._buffers

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same; N may be 0 and differ between processes."""
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.to(self.weight.dtype)
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        rows = x.new_full((1,), x.numel() // x.shape[1])
        sums: Tensor = _AllReduce.apply(torch.cat([x.sum(axes), rows]))
        count, mean = sums[-1], sums[:-1] / sums[-1]
        distance = x - mean.view(shape)
        variance: Tensor = _AllReduce.apply((distance**2).sum(axes)) / count
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(new, self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (distance * scale.view(shape) + self.bias.view(shape)).to(dtype)


class _AllReduce(torch.autograd.Function):
    """A sum over processes. Each one's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduce.forward(ctx, gradient)
