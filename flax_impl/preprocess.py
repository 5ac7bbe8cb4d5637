"""uint8 pixels and draws to the model's input, on the device. Read next to `torch_impl/preprocess.py`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from common.recipes.spec import IMAGENET_PCA, Preprocess


def preprocess(images: Array, draws: dict[str, Array], spec: Preprocess, dtype: Any) -> Array:
    """Apply a recipe's preprocessing with the numbers that were drawn for it.

    Args:
        images: uint8 (N, H, W, C), as stored.
        draws: see `common.data.augment.AUGMENTATIONS`; a step without its draws is left out.
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
    if "box" in draws and spec.crop:
        x = resized_crop(x, draws["box"].astype(dtype), spec.crop)
    if spec.resize:
        # Half-pixel centres, and no antialiasing when shrinking: both frameworks' defaults differ, so say so.
        x = jax.image.resize(x, (len(x), spec.resize, spec.resize, x.shape[3]), "bilinear", antialias=False)
    if "jitter" in draws:
        x = jitter(x, draws["jitter"].astype(dtype))
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

    def cut(image: Array, place: Array) -> Array:
        start = (*place, jnp.zeros((), place.dtype))
        return jax.lax.dynamic_slice(image, start, (side, side, image.shape[2]))

    # One slice an image: XLA then knows that no process needs another's. Of images[rows, columns] it does not.
    return jax.vmap(cut)(images, places)


def resized_crop(x: Array, boxes: Array, side: int) -> Array:
    """Resize a box of each image, bilinear with half-pixel centres, no antialiasing: (N, side, side, C).

    Args:
        x: (N, H, W, C).
        boxes: (N, 4), top, left, height and width in pixels.
        side: of the result.
    """
    rows = blend(boxes[:, 0], boxes[:, 2], x.shape[1], side)
    columns = blend(boxes[:, 1], boxes[:, 3], x.shape[2], side)
    return jnp.einsum("nih,nhwc,njw->nijc", rows, x, columns, precision="highest")


def blend(start: Array, extent: Array, pixels: int, side: int) -> Array:
    """The weight of each of `pixels` in each of `side` places that span [start, start + extent): (N, side, pixels)."""
    centres = (jnp.arange(side, dtype=start.dtype) + 0.5) / side
    places = extent[:, None] * centres - 0.5  # beyond the box's edge, the edge's pixels
    places = jnp.minimum(places.clip(min=0), extent[:, None] - 1) + start[:, None]
    return (1 - jnp.abs(places[:, :, None] - jnp.arange(pixels, dtype=start.dtype))).clip(min=0)


def jitter(x: Array, factors: Array) -> Array:
    """Change brightness, contrast and saturation, each clipped to [0, 1], as torchvision's `adjust_...` do.

    Args:
        x: (N, H, W, C) in [0, 1].
        factors: (N, 3).
    """
    brightness, contrast, saturation = jnp.moveaxis(factors[:, :, None, None, None], 1, 0)
    x = (x * brightness).clip(0, 1)
    x = (x * contrast + grey(x).mean((1, 2, 3), keepdims=True) * (1 - contrast)).clip(0, 1)
    return (x * saturation + grey(x) * (1 - saturation)).clip(0, 1)


def grey(x: Array) -> Array:
    """Luma (ITU-R BT.601) of RGB, or the one channel itself: (N, H, W, C) -> (N, H, W, 1)."""
    if x.shape[3] == 1:
        return x
    red, green, blue = jnp.moveaxis(x, 3, 0)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[..., None]


def mix(x: Array, draws: dict[str, Array], partner: Array | None) -> Array:
    """MixUp and CutMix: blend with the partner's pixels or paste a box of them. (N, H, W, C) -> the same."""
    if partner is None:
        return x
    other, own = x[partner], draws["mixup"].astype(x.dtype)[:, None, None, None]
    top, left, bottom, right = jnp.moveaxis(draws["cut"][:, :, None], 1, 0)
    rows, columns = jnp.arange(x.shape[1]), jnp.arange(x.shape[2])
    inside = ((rows >= top) & (rows < bottom))[:, :, None, None] & ((columns >= left) & (columns < right))[
        :, None, :, None
    ]
    return jnp.where(inside, other, x * own + other * (1 - own))


def soft_targets(labels: Array, draws: dict[str, Array], partner: Array | None, classes: int, dtype: Any) -> Array:
    """Labels (N,) as shares of the classes, mixed like the pixels: (N, classes)."""
    targets = jax.nn.one_hot(labels, classes, dtype=dtype)
    if partner is None:
        return targets
    own = draws["share"].astype(dtype)[:, None]
    return targets * own + targets[partner] * (1 - own)
