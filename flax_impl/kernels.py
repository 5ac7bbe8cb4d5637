"""A faster gradient of a convolution's kernel on a CPU, which PyTorch has of oneDNN.

`flax_impl.layers.Conv` is trained by it. What a convolution computes, and what a GPU does, are lax's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

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
