"""What linen lacks: sums in float32, response norm, adaptive and fast pooling, PyTorch's variance, parts of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from common.arch.spec import LocalResponseNorm, MaxPool

_PIXELS = 2048  # of results that `_to_kernel` takes at a time, more where one image has more
_SMALL = 64  # pixels of an image's result; where there are fewer, `_to_kernel` gains nothing but in a loop
_looped: ContextVar[bool] = ContextVar("_looped", default=False)


@contextmanager
def in_a_loop() -> Iterator[None]:
    """What is traced here, XLA will loop over: on a CPU its own gradient of a kernel is many times slower there."""
    before = _looped.set(True)
    try:
        yield
    finally:
        _looped.reset(before)


def _promote_without_bias(x: Array, kernel: Array, bias: Array | None, *, dtype: Any) -> tuple[Array, Array, Any]:
    return *promote_dtype(x, kernel, dtype=dtype), bias


def conv_general_dilated(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    **settings: Any,
) -> Array:
    """lax's, with a faster gradient of the kernel on a CPU: (N, H, W, C) and (h, w, C / groups, C') -> (N, H', W', C').

    There XLA takes two to three times as long for it as for the convolution; by `_to_kernel` it takes about as long.
    Its own remains on other devices, where a convolution is dilated or its result small and not `in_a_loop`, and where
    several devices hold the batch, of which a loop over its images would gather all in each.
    """
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)

    def convolve(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            **settings,
        )

    small = not _looped.get() and prod(jax.eval_shape(convolve, x, kernel).shape[1:3]) < _SMALL
    if small or {*lhs_dilation, *rhs_dilation} != {1} or jax.device_count() > 1:
        return convolve(x, kernel)

    def by_rows(x: Array, kernel: Array, gradient: Array) -> Array:
        groups = zip(*(jnp.split(a, feature_group_count, -1) for a in (x, gradient)), strict=True)
        parts = [_to_kernel(x, gradient, kernel.shape[:2], strides, padding) for x, gradient in groups]
        return jnp.concatenate(parts, -1)

    def by_lax(x: Array, kernel: Array, gradient: Array) -> Array:
        to_kernel: Array = jax.linear_transpose(partial(convolve, x), kernel)(gradient)[0]
        return to_kernel

    def back(given: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
        x, kernel = given
        to_x = jax.linear_transpose(lambda x: convolve(x, kernel), x)(gradient)[0]
        return to_x, jax.lax.platform_dependent(x, kernel, gradient, cpu=by_rows, default=by_lax)

    with_gradient = jax.custom_vjp(convolve)
    with_gradient.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), back)
    return with_gradient(x, kernel)


def _to_kernel(
    x: Array, gradient: Array, size: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> Array:
    """The kernel's gradient as products, one for each of its rows: a few images at a time, which stay in the cache.

    16-bit numbers are multiplied and added up in float32.

    Args:
        x: (N, H, W, C), what was convolved.
        gradient: (N, H', W', C'), of the result.
        size: h and w of the kernel.
        strides: of its windows.
        padding: above and below, left and right.

    Returns:
        (h, w, C, C').
    """
    (images, height, width, features), wide = gradient.shape, jnp.promote_types(x.dtype, jnp.float32)
    most = max(height * width, _PIXELS // 8 if _looped.get() else _PIXELS)  # micro-batches are there to save memory
    few = max(n for n in range(1, images + 1) if images % n == 0 and n * height * width <= most)
    down, right = (slice(0, (n - 1) * stride + 1, stride) for n, stride in zip((height, width), strides, strict=True))

    def add(so_far: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        x, gradient = (a.astype(wide) for a in part)
        # (C, H, n, W): the left sides of the products below are copies of whole rows of pixels.
        x = jnp.pad(x.transpose(3, 1, 0, 2), ((0, 0), padding[0], (0, 0), padding[1]))
        gradient = gradient.swapaxes(0, 1).reshape(-1, features)
        beside = jnp.concatenate([x[..., j:][..., right] for j in range(size[1])])
        beside = jax.lax.optimization_barrier(beside)  # or XLA would put it together anew for every product
        rows = [beside[:, i:][:, down].reshape(len(beside), -1) @ gradient for i in range(size[0])]
        return so_far + jnp.stack(rows).reshape(so_far.shape), None

    parts = (x.reshape(-1, few, *x.shape[1:]), gradient.reshape(-1, few, *gradient.shape[1:]))
    return jax.lax.scan(add, jnp.zeros((*size, x.shape[-1], features), wide), parts)[0].astype(x.dtype)


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
