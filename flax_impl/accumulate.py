"""Micro-batches around a gradient function. Read next to `torch_impl/accumulate.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from flax_impl.kernels import in_a_loop
from flax_impl.layers import dropout_from, norm_over
from flax_impl.state import TrainState

Gradients = tuple[Any, Any, Array, Array]
Backward = Callable[[TrainState, Any, Array, Array, Array | None, Array | int], Gradients]


def accumulate(backward: Backward, state: TrainState, x: Array, targets: Array, real: Array | None = None) -> Gradients:
    """The gradients of a batch, in each process one micro-batch after the other.

    Args:
        backward: `flax_impl.train.backward`, which gives the gradients of one.
        state: whose parameters they are of.
        x: (N, H, W, C), the rows of all processes, padding included.
        targets: (N, classes).
        real: bool (N,), which rows do not only pad the batch; None: all.

    Returns:
        The gradients, the batch statistics, the sum of the losses, and the logits (N, classes).
    """
    micro, rows, processes = state.recipe.micro_batch, len(x), state.processes
    each = rows // processes
    count = rows if real is None else real.sum()

    def part(batch_stats: Any, x: Array, targets: Array, real: Array | None, row: Array | int) -> Gradients:
        with _in_place(row, len(x), rows, processes, real):
            return backward(state, batch_stats, x, targets, real, count)

    if each <= micro:
        return part(state.batch_stats, x, targets, real, 0)

    def add(so_far: Any, given: Any) -> Any:
        gradients, batch_stats, loss = so_far
        more, batch_stats, extra, logits = part(batch_stats, *given)
        return (jax.tree.map(jnp.add, gradients, more), batch_stats, loss + extra), logits

    def cut(a: Array, begin: int, end: int, size: int) -> Array:
        """These rows of each process as (parts, processes * size, ...): a copy, but no row changes its process."""
        parts = a.reshape(processes, each, *a.shape[1:])[:, begin:end].reshape(processes, -1, size, *a.shape[1:])
        return parts.swapaxes(0, 1).reshape(-1, processes * size, *a.shape[1:])

    # A loop that XLA keeps: unrolled, it would hold the activations of several micro-batches at once.
    whole = each // micro * micro
    parts = jax.tree.map(lambda a: cut(a, 0, whole, micro), (x, targets, real))
    none = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, jnp.zeros((), x.dtype)
    with in_a_loop():
        so_far, logits = jax.lax.scan(add, none, (*parts, jnp.arange(0, whole, micro)))
    logits = logits.reshape(-1, processes, micro, logits.shape[-1]).swapaxes(0, 1).reshape(processes, whole, -1)
    if whole < each:
        rest = jax.tree.map(lambda a: cut(a, whole, each, each - whole)[0], (x, targets, real))
        so_far, last = add(so_far, (*rest, whole))
        logits = jnp.concatenate([logits, last.reshape(processes, each - whole, -1)], axis=1)
    return *so_far, logits.reshape(rows, -1)


@contextmanager
def _in_place(row: Array | int, size: int, rows: int, processes: int, real: Array | None) -> Iterator[None]:
    """Let a micro-batch of `size` rows, from this row of each process's on, have its part of the whole batch's dropout
    masks, and keep rows that only pad the batch out of batch norm's statistics."""
    with (
        nn.intercept_methods(dropout_from(row, rows, processes)) if size < rows else nullcontext(),
        nullcontext() if real is None else nn.intercept_methods(norm_over(real)),
    ):
        yield
