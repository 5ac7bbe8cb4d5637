"""What PyTorch lacks: response norm in float32 and pooling whose gradients repeat, batch norm of several processes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import wrap


class LocalResponseNorm(nn.LocalResponseNorm):
    """PyTorch's, in float32 at least: added to k in bfloat16, alpha times the squares would vanish.

    It averages over the channels as the last axis, in one dimension: the gradient of PyTorch's own, an average in three
    dimensions, differs from run to run on a GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same, in its dtype."""
        return local_response_norm(x, self.size, self.alpha, self.beta, self.k)


@wrap  # torch.fx records the call, and does not look inside, where shapes and dtypes decide
def local_response_norm(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    """See `LocalResponseNorm`."""
    wide, kind = x.to(torch.promote_types(x.dtype, torch.float32)), x.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        last = wide.permute(0, 2, 3, 1)
        squares = F.pad(last.square().flatten(1, 2), (size // 2, (size - 1) // 2))
        means = F.avg_pool1d(squares, size, stride=1).view(last.shape)
        return (last / (k + alpha * means) ** beta).permute(0, 3, 1, 2).to(x.dtype)


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """PyTorch's, by the slices that it averages: its own gradient differs from run to run on a GPU."""

    output_size: int

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, bins, bins)."""
        return adaptive_avg_pool(x, self.output_size)


@wrap
def adaptive_avg_pool(x: Tensor, bins: int) -> Tensor:
    """(N, C, H, W) -> (N, C, bins, bins). Bin i of n pixels covers floor(i * n / bins) up to, not including,
    ceil((i + 1) * n / bins). What is averaged over rows is not rounded to 16 bits before its columns are."""
    if x.shape[2:] == (bins, bins):
        return x
    dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    for axis in (2, 3):
        pixels = x.shape[axis]
        if pixels != bins:
            edges = [(i * pixels // bins, -(-(i + 1) * pixels // bins)) for i in range(bins)]
            x = torch.cat([x.narrow(axis, i, j - i).mean(axis, keepdim=True) for i, j in edges], axis)
    return x.to(dtype)


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
