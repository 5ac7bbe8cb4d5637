"""uint8 pixels and draws to the model's input, on the device. Read next to `torch_impl/preprocess.py`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from common.recipes import IMAGENET_PCA, Preprocess


def preprocess(images: Array, draws: dict[str, Array], spec: Preprocess, dtype: Any) -> Array:
    """Apply a recipe's preprocessing with the numbers that were drawn for it.

    Args:
        images: uint8 (N, H, W, C), as stored.
        draws: see `common.pipeline.Batch`; a step without its draws is left out.
        spec: the recipe's.
        dtype: of the result.

    Returns:
        (N, H', W', C) of `dtype`, normalised.
    """
    if "crop" in draws and spec.crop:
        images = crop(images, draws["crop"], spec.pad, spec.crop)
    if "flip" in draws:
        images = jnp.where(draws["flip"][:, None, None, None], jnp.flip(images, 2), images)
    x = images.astype(dtype) / 255
    if spec.resize:
        # Half-pixel centres, and no antialiasing when shrinking: both frameworks' defaults differ, so say so.
        x = jax.image.resize(x, (len(x), spec.resize, spec.resize, x.shape[3]), "bilinear", antialias=False)
    if "pca" in draws:
        noise = jnp.matmul(
            draws["pca"].astype(dtype) * spec.pca_std, jnp.asarray(IMAGENET_PCA, dtype), precision="highest"
        )
        x = x + noise[:, None, None, :]
    mean = jnp.asarray(spec.mean, dtype)
    std = jnp.asarray(spec.std, dtype)
    return (x - mean) / std


def crop(images: Array, places: Array, pad: int, side: int) -> Array:
    """Cut a square out of each zero-padded image: uint8 (N, side, side, C).

    Args:
        images: uint8 (N, H, W, C).
        places: int32 (N, 2), top and left edge in the padded image.
        pad: zeros on every side.
        side: of the square.
    """
    images = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    reach = jnp.arange(side)
    rows = (places[:, :1] + reach)[:, :, None]
    columns = (places[:, 1:] + reach)[:, None, :]
    return images[jnp.arange(len(images))[:, None, None], rows, columns]
