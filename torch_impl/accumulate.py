"""Micro-batches around a gradient function. Read next to `flax_impl/accumulate.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from torch_impl.state import TrainState

Backward = Callable[[TrainState, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def accumulate(
    backward: Backward, state: TrainState, x: Tensor, targets: Tensor, first: int, count: int
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of this process's rows, one micro-batch after the other.

    Args:
        backward: `torch_impl.train.backward`, which adds the gradients of one.
        state: whose gradients are added to.
        x: (N, C, H, W), this process's rows of the batch; N may be 0.
        targets: (N, classes).
        first: row of the whole batch that is the first here.
        count: rows of the whole batch.

    Returns:
        The sum of the losses, and the logits (N, classes).
    """
    micro, parts = state.recipe.micro_batch, []
    rows = range(0, max(len(x), 1), micro)
    together = state.network if isinstance(state.network, DistributedDataParallel) else None
    for row in rows:
        state.dropout.from_row(first + row)
        # Processes may have more or fewer micro-batches; each exchanges its gradients once, after its last.
        with together.no_sync() if together and row != rows[-1] else nullcontext():
            parts.append(backward(state, x[row : row + micro], targets[row : row + micro], count))
    return sum((loss for loss, _ in parts), torch.zeros((), device=x.device)), torch.cat([part for _, part in parts])
