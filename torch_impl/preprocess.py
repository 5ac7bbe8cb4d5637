"""uint8 pixels and draws to the model's input, on the device. Read next to `flax_impl/preprocess.py`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.recipes import IMAGENET_PCA, Preprocess


def preprocess(images: Tensor, draws: dict[str, Tensor], spec: Preprocess, dtype: torch.dtype) -> Tensor:
    """Apply a recipe's preprocessing with the numbers that were drawn for it.

    Args:
        images: uint8 (N, H, W, C), as stored.
        draws: see `common.pipeline.Batch`; a step without its draws is left out.
        spec: the recipe's.
        dtype: of the result.

    Returns:
        (N, C, H', W') of `dtype`, normalised, channels last in memory.
    """
    if "crop" in draws and spec.crop:
        images = crop(images, draws["crop"], spec.pad, spec.crop)
    if "flip" in draws:
        images = torch.where(draws["flip"][:, None, None, None], images.flip(2), images)
    x = images.permute(0, 3, 1, 2).to(dtype) / 255
    if spec.resize:
        # Half-pixel centres, and no antialiasing when shrinking: both frameworks' defaults differ, so say so.
        x = F.interpolate(x, (spec.resize, spec.resize), mode="bilinear", align_corners=False, antialias=False)
    if "pca" in draws:
        noise = draws["pca"].to(dtype) * spec.pca_std @ torch.as_tensor(IMAGENET_PCA, dtype=dtype, device=x.device)
        x = x + noise[:, :, None, None]
    mean = torch.tensor(spec.mean, dtype=dtype, device=x.device)[:, None, None]
    std = torch.tensor(spec.std, dtype=dtype, device=x.device)[:, None, None]
    return (x - mean) / std


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
