"""Photographs of differing sizes become pixels of one size, on the host: central squares or random boxes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import TYPE_CHECKING

import numpy as np

from common.data import photos

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class HostCrop:
    """How the photographs of a batch become pixels of one size.

    Attributes:
        side: of the square, in pixels.
        numbers: float64 (n, 22) in [0, 1), for a random box of each, see `random_resized_crop`; None: central squares.
        channels: of the result, 3 for colour, 1 for grey.
    """

    side: int
    numbers: np.ndarray | None = None
    channels: int = 3

    def __call__(self, image: Image.Image, place: int) -> np.ndarray:
        """The photograph at this place in the batch, RGB or grey: uint8 (side, side, channels)."""
        if self.channels == 1 and image.mode != "L":
            image = image.convert("L")  # before it is resized, as predictions of networks of one channel read it
        if self.numbers is None:
            pixels = central_square(image, self.side)
        else:
            pixels = random_resized_crop(image, self.side, self.numbers[place])
        return pixels.reshape(self.side, self.side, -1)  # Pillow gives grey no axis of its own


def central_square(image: Image.Image, side: int) -> np.ndarray:
    """Resize so that the shorter side has `side` pixels and keep the central square: uint8 (side, side, 3).

    The sizes and offsets are those of torchvision's `Resize` and `CenterCrop`.

    Raises:
        ValueError: it would have more pixels than Pillow opens.
    """
    from PIL import Image

    width, height = image.size
    shorter = min(width, height)
    width, height = int(side * width / shorter), int(side * height / shorter)
    if width * height > (Image.MAX_IMAGE_PIXELS or inf):
        raise ValueError(f"it is so narrow that it would become {width}x{height} pixels for a shorter side of {side}")
    resized = photos.cut(image, (0, 0, *image.size)).resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def random_resized_crop(image: Image.Image, side: int, uniforms: np.ndarray) -> np.ndarray:
    """A random box of 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3, resized: uint8 (side, side, 3).

    Args:
        image: a photograph.
        side: of the result, in pixels.
        uniforms: float64 (22,) in [0, 1): area and ratio of ten tries, then the box's place.

    A JPEG that is not decoded yet is decoded at a half, a quarter or an eighth of its size, if the box then still has
    twice `side` pixels each way. That is fast, and changes pixels a little, as Pillow's own `thumbnail` does.
    """
    from PIL import Image

    width, height = image.size
    top, left, h, w = random_boxes(height, width, uniforms[None])[0]
    box = np.array([left, top, left + w, top + h])
    if drafted := image.draft(None, (ceil(width * 2 * side / w), ceil(height * 2 * side / h))):
        box *= drafted[1][2] / width
    (left, top), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    part = photos.cut(image, (left, top, right, bottom))
    inside = tuple(box - (left, top, left, top))
    return np.asarray(part.resize((side, side), Image.Resampling.BILINEAR, box=inside))


def random_boxes(height: int, width: int, uniforms: np.ndarray) -> np.ndarray:
    """A random box for each of n images of (height, width): whole pixels in float64 (n, 4): top, left, height, width.

    Args:
        height, width: in pixels.
        uniforms: float64 (n, 22) in [0, 1): area and ratio of ten tries, then the box's place.

    Source: torchvision's `RandomResizedCrop`: ten tries, then the largest central box within the ratios.
    """
    areas = width * height * (0.08 + 0.92 * uniforms[:, :10])
    ratios = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniforms[:, 10:20])
    widths, heights = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = np.argmax(fits, 1)[:, None]
    w, h = np.take_along_axis(widths, first, 1)[:, 0], np.take_along_axis(heights, first, 1)[:, 0]
    left, top = np.floor(uniforms[:, 20] * (width - w + 1)), np.floor(uniforms[:, 21] * (height - h + 1))
    largest_w, largest_h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    central = (height - largest_h) // 2, (width - largest_w) // 2, largest_h, largest_w
    return np.where(fits.any(1)[:, None], np.stack([top, left, h, w], 1), central)
