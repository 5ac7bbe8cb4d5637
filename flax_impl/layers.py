"""What linen lacks: local response norm, adaptive and fast pooling, PyTorch's running variance, parts of batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from common.arch.spec import LocalResponseNorm, MaxPool


def local_response_norm(x: Array, spec: LocalResponseNorm) -> Array:
    """Section 3.3 of the 2012 paper, over the last axis, zeros beyond its ends: (N, H, W, C) -> the same.

    An even window reaches one channel further down than up, as PyTorch's does. Computed in float32 at least: added to
    k in bfloat16, alpha times the squares would vanish.
    """
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    reach = [(0, 0)] * 3 + [(spec.size // 2, (spec.size - 1) // 2)]
    squares = jax.lax.reduce_window(x * x, 0.0, jax.lax.add, (1, 1, 1, spec.size), (1,) * 4, reach)
    return (x / (spec.k + spec.alpha * squares) ** spec.beta).astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Array, spec: MaxPool) -> Array:
    """linen's, with a faster gradient, which goes to the first of equal pixels as well: (N, H, W, C) -> (N, H', W', C).

    XLA goes back through linen's window by window (select-and-scatter), which takes a seventh of a training step of
    `alexnet` on a CPU; through the comparisons of `_largest` it takes a third of that.
    """
    size, stride, padding = (spec.size,) * 2, (spec.stride,) * 2, [(spec.padding,) * 2] * 2
    return nn.max_pool(x, window_shape=size, strides=stride, padding=padding)


def _largest(x: Array, spec: MaxPool) -> Array:
    """`max_pool` by comparing pixels, first within rows, then within columns: the first of equal ones stays."""

    def later_if_larger(first: Array, later: Array) -> Array:
        return jnp.where((later > first) | jnp.isnan(later), later, first)

    pad = (0, 0), (spec.padding,) * 2, (spec.padding,) * 2, (0, 0)
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    for axis in (2, 1):
        last = (x.shape[axis] - spec.size) // spec.stride * spec.stride
        places = [jax.lax.slice_in_dim(x, i, i + last + 1, spec.stride, axis) for i in range(spec.size)]
        x = reduce(later_if_larger, places)
    return x


def _max_pool_back(spec: MaxPool, pullback: Callable[[Array], tuple[Array]], gradient: Array) -> tuple[Array]:
    return pullback(gradient)


max_pool.defvjp(lambda x, spec: jax.vjp(partial(_largest, spec=spec), x), _max_pool_back)


def adaptive_avg_pool(x: Array, bins: int) -> Array:
    """Average into `bins` rows and columns, as `torch.nn.AdaptiveAvgPool2d` does: (N, H, W, C) -> (N, bins, bins, C).

    Bin i of n pixels covers floor(i * n / bins) up to, not including, ceil((i + 1) * n / bins).
    """
    for axis in (1, 2):
        pixels = x.shape[axis]
        if pixels != bins:
            edges = [(i * pixels // bins, -(-(i + 1) * pixels // bins)) for i in range(bins)]
            means = [jnp.mean(jax.lax.slice_in_dim(x, *edge, axis=axis), axis, keepdims=True) for edge in edges]
            x = jnp.concatenate(means, axis)
    return x


class BatchNorm(nn.BatchNorm):
    """linen's, with the running variance unbiased as PyTorch's: times n / (n - 1), n values per channel.

    A mask (N, 1, 1, 1) leaves out rows. The batch itself is normalised by the biased variance in both frameworks.
    """

    use_fast_variance: bool = False  # E[x^2] - E[x]^2 cancels; PyTorch averages the squared distance from the mean

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        """(N, H, W, C) -> the same, normalised per channel."""
        old: Array = self.get_variable("batch_stats", "var")
        y = super().__call__(x, use_running_average, mask=mask)
        if not use_running_average and not self.is_initializing():
            n = (len(x) if mask is None else mask.sum()) * (x[0].size // x.shape[-1])
            kept = self.momentum * old
            biased = self.get_variable("batch_stats", "var") - kept
            self.put_variable("batch_stats", "var", kept + biased * (n / (n - (n > 1))))
        return y


def dropout_from(row: Array | int, rows: int, processes: int = 1) -> Callable[..., Any]:
    """An interceptor for `nn.intercept_methods`: a micro-batch gets its part of the whole batch's dropout masks.

    The unmodified layer is given the micro-batch at its place in a batch of zeros.

    Args:
        row: of a process's rows at which the micro-batch begins.
        rows: of the whole batch.
        processes: which hold equally many of the rows, and of the micro-batch's.
    """

    def intercept(call: Any, inputs: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if not isinstance(context.module, nn.Dropout) or context.method_name != "__call__":
            return call(*inputs, **keywords)
        [x] = inputs
        own = x.reshape(processes, -1, *x.shape[1:])
        whole = jnp.zeros((processes, rows // processes, *x.shape[1:]), x.dtype)
        whole = jax.lax.dynamic_update_slice_in_dim(whole, own, row, 1)
        dropped = call(whole.reshape(rows, *x.shape[1:]), **keywords).reshape(whole.shape)
        return jax.lax.dynamic_slice_in_dim(dropped, row, own.shape[1], 1).reshape(x.shape)

    return intercept


def norm_over(real: Array) -> Callable[..., Any]:
    """An interceptor for `nn.intercept_methods`: batch norm's statistics leave out the rows that only pad the batch.

    Args:
        real: bool (N,), which rows do not.
    """

    def intercept(call: Any, inputs: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
            keywords = {**keywords, "mask": jnp.expand_dims(real, (1, 2, 3))}
        return call(*inputs, **keywords)

    return intercept
