"""What linen lacks: sums in float32, response norm, adaptive and fast pooling, PyTorch's variance, parts of batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from common.arch.spec import LocalResponseNorm, MaxPool
from flax_impl.kernels import conv_general_dilated


def _promote_without_bias(x: Array, kernel: Array, bias: Array | None, *, dtype: Any) -> tuple[Array, Array, Any]:
    return *promote_dtype(x, kernel, dtype=dtype), bias


class Conv(nn.Conv):
    """linen's, with a bias that is added in the parameters' dtype, and a gradient that is summed in it.

    linen adds it in the layer's dtype: then XLA adds up the gradient over all rows and pixels in bfloat16 as well,
    where a sum soon stands still. Of 32,768 ones it makes 1024 on a CPU. The kernel has the gradient of
    `conv_general_dilated`, which is faster there.
    """

    promote_dtype: Any = _promote_without_bias
    conv_general_dilated: Any = conv_general_dilated

    def __call__(self, x: Array) -> Array:
        """(N, H, W, C) -> (N, H', W', features)."""
        y: Array = super().__call__(x)
        return y if self.dtype is None else y.astype(self.dtype)


class Dense(nn.Dense):
    """linen's, with the bias of `Conv`."""

    promote_dtype: Any = _promote_without_bias

    def __call__(self, x: Array) -> Array:
        """(N, inputs) -> (N, features)."""
        y: Array = super().__call__(x)
        return y if self.dtype is None else y.astype(self.dtype)


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
    `alexnet` on a CPU; by the places that `_largest` remembers, a byte for each window, it takes a third of that.
    """
    size, stride, padding = (spec.size,) * 2, (spec.stride,) * 2, [(spec.padding,) * 2] * 2
    return nn.max_pool(x, window_shape=size, strides=stride, padding=padding)


def _largest(x: Array, spec: MaxPool) -> tuple[Array, Array]:
    """`max_pool` by comparing a window's pixels row by row, and the place of the largest; the first of equal ones."""

    def later_if_larger(first: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        larger = (later[0] > first[0]) | jnp.isnan(later[0])
        return jnp.where(larger, later[0], first[0]), jnp.where(larger, later[1], first[1])

    size, stride = spec.size, spec.stride
    pad = (0, 0), (spec.padding,) * 2, (spec.padding,) * 2, (0, 0)
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    h, w = ((extent - size) // stride * stride + 1 for extent in x.shape[1:3])
    places = np.arange(size**2, dtype=np.min_scalar_type(size**2 - 1))
    pixels = [x[:, i : i + h : stride, j : j + w : stride] for i in range(size) for j in range(size)]
    y, place = reduce(later_if_larger, zip(pixels, places, strict=True))
    return y, jnp.broadcast_to(place, y.shape)


def _to_largest(spec: MaxPool, height: int, width: int, places: Array, gradient: Array) -> tuple[Array]:
    """The gradient of each window at its place: first up and down, then, in each row of pixels, left and right."""

    def lay_out(values: Array, where: Array, axis: int, extent: int, join: Callable[[Array, Array], Array]) -> Array:
        """Values of windows along an axis -> of pixels, where each window names one; what meets there is joined."""
        layers = []
        for i in reversed(range(spec.size)):
            chosen = jnp.where(where == i, values, 0)
            rest = extent + 2 * spec.padding - i - (values.shape[axis] - 1) * spec.stride - 1
            pad = [(i, rest, spec.stride - 1) if dim == axis else (0, 0, 0) for dim in range(4)]
            layers.append(jax.lax.pad(chosen, jnp.zeros((), values.dtype), pad))
        return jax.lax.slice_in_dim(reduce(join, layers), spec.padding, spec.padding + extent, axis=axis)

    row, column = places // spec.size, places % spec.size
    gradient = lay_out(gradient, row, 1, height, jnp.add)
    column = lay_out(column, row, 1, height, jnp.bitwise_or)  # windows that share a row's pixel name the same column
    return (lay_out(gradient, column, 2, width, jnp.add),)


def _max_pool(x: Array, spec: MaxPool) -> tuple[Array, Callable[[Array], tuple[Array]]]:
    y, places = _largest(x, spec)
    _, height, width, _ = x.shape
    return y, jax.tree_util.Partial(partial(_to_largest, spec, height, width), places)


def _max_pool_back(spec: MaxPool, pullback: Callable[[Array], tuple[Array]], gradient: Array) -> tuple[Array]:
    return pullback(gradient)


max_pool.defvjp(_max_pool, _max_pool_back)


def adaptive_avg_pool(x: Array, bins: int) -> Array:
    """Average into `bins` rows and columns, as `torch.nn.AdaptiveAvgPool2d` does: (N, H, W, C) -> (N, bins, bins, C).

    Bin i of n pixels covers floor(i * n / bins) up to, not including, ceil((i + 1) * n / bins). What is averaged over
    rows is not rounded to 16 bits before its columns are.
    """
    if x.shape[1:3] == (bins, bins):
        return x
    dtype, x = x.dtype, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis in (1, 2):
        pixels = x.shape[axis]
        if pixels != bins:
            edges = [(i * pixels // bins, -(-(i + 1) * pixels // bins)) for i in range(bins)]
            means = [jnp.mean(jax.lax.slice_in_dim(x, *edge, axis=axis), axis, keepdims=True) for edge in edges]
            x = jnp.concatenate(means, axis)
    return x.astype(dtype)


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
