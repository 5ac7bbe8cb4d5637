"""uint8 pixels and draws to the model's input, on the device. Read next to `flax_impl/preprocess.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.recipes.spec import IMAGENET_PCA, Preprocess
from torch_impl.device import constant


def preprocess(images: Tensor, draws: dict[str, Tensor], spec: Preprocess, dtype: torch.dtype) -> Tensor:
    """Apply a recipe's preprocessing with the numbers that were drawn for it.

    Args:
        images: uint8 (N, H, W, C), as stored.
        draws: see `common.data.augment.AUGMENTATIONS`; a step without its draws is left out.
        spec: the recipe's.
        dtype: of the result.

    Returns:
        (N, C, H', W') of `dtype`, normalised, channels last in memory.
    """
    if "crop" in draws and spec.crop:
        images = crop(images, draws["crop"], spec.pad, spec.crop)
    if "flip" in draws:
        images = torch.where(draws["flip"][:, None, None, None], images.flip(2), images)
    x = images.permute(0, 3, 1, 2).to(dtype).div_(255)
    if "box" in draws and spec.crop:
        x = resized_crop(x, draws["box"].to(dtype), spec.crop)
    if spec.resize:
        # Half-pixel centres, and no antialiasing when shrinking: both frameworks' defaults differ, so say so.
        x = F.interpolate(x, (spec.resize, spec.resize), mode="bilinear", align_corners=False, antialias=False)
    if "jitter" in draws:
        x = jitter(x, draws["jitter"].to(dtype))
    if "pca" in draws:
        noise = draws["pca"].to(dtype) * spec.pca_std @ constant(IMAGENET_PCA, dtype, x.device)
        x = x + noise[:, :, None, None]
    mean = constant(spec.mean, dtype, x.device)[:, None, None]
    std = constant(spec.std, dtype, x.device)[:, None, None]
    return x.sub_(mean).div_(std)


def crop(images: Tensor, places: Tensor, pad: int, side: int) -> Tensor:
    """Cut a square out of each zero-padded image: uint8 (N, side, side, C).

    Args:
        images: uint8 (N, H, W, C).
        places: int32 (N, 2), top and left edge in the padded image.
        pad: zeros on every side.
        side: of the square.
    """
    images = F.pad(images, (0, 0, pad, pad, pad, pad))
    reach = torch.arange(side, device=images.device)
    rows = (places[:, :1] + reach)[:, :, None]
    columns = (places[:, 1:] + reach)[:, None, :]
    return images[torch.arange(len(images), device=images.device)[:, None, None], rows, columns]


def resized_crop(x: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Resize a box of each image, bilinear with half-pixel centres, no antialiasing: (N, C, side, side).

    Args:
        x: (N, C, H, W).
        boxes: (N, 4), top, left, height and width in pixels.
        side: of the result.
    """
    rows = blend(boxes[:, 0], boxes[:, 2], x.shape[2], side)
    columns = blend(boxes[:, 1], boxes[:, 3], x.shape[3], side)
    return torch.einsum("nih,nchw,njw->ncij", rows, x, columns)


def blend(start: Tensor, extent: Tensor, pixels: int, side: int) -> Tensor:
    """The weight of each of `pixels` in each of `side` places that span [start, start + extent): (N, side, pixels)."""
    centres = (torch.arange(side, dtype=start.dtype, device=start.device) + 0.5) / side
    places = extent[:, None] * centres - 0.5  # beyond the box's edge, the edge's pixels
    places = torch.minimum(places.clamp(min=0), extent[:, None] - 1) + start[:, None]
    return (1 - (places[:, :, None] - torch.arange(pixels, dtype=start.dtype, device=start.device)).abs()).clamp(min=0)


def jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, each clipped to [0, 1], as torchvision's `adjust_...` do.

    Args:
        x: (N, C, H, W) in [0, 1].
        factors: (N, 3).
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    x = (x * brightness).clamp(0, 1)
    x = (x * contrast + grey(x).mean((1, 2, 3), keepdim=True) * (1 - contrast)).clamp(0, 1)
    return (x * saturation + grey(x) * (1 - saturation)).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) of RGB, or the one channel itself: (N, C, H, W) -> (N, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def mix(x: Tensor, draws: dict[str, Tensor], partner: Tensor | None) -> Tensor:
    """MixUp and CutMix: blend with the partner's pixels or paste a box of them. (N, C, H, W) -> the same.

    Without an image that is a partner alone; see `common.data.batch.Batch`.
    """
    if partner is None:
        return x
    other, own = x[partner], draws["mixup"].to(x.dtype)[:, None, None, None]
    x = x[: len(other)]
    top, left, bottom, right = draws["cut"][:, :, None].unbind(1)
    rows, columns = torch.arange(x.shape[2], device=x.device), torch.arange(x.shape[3], device=x.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None] & ((columns >= left) & (columns < right))[
        :, None, None
    ]
    return torch.where(inside, other, x * own + other * (1 - own))


def soft_targets(
    labels: Tensor, draws: dict[str, Tensor], partner: Tensor | None, classes: int, dtype: torch.dtype
) -> Tensor:
    """Labels (N,) as shares of the classes, mixed like the pixels: (N, classes)."""
    targets = F.one_hot(labels, classes).to(dtype)
    if partner is None:
        return targets
    own = draws["share"].to(dtype)[:, None]
    return targets[: len(own)] * own + targets[partner] * (1 - own)
