"""What both frameworks are fed: batches of uint8 pixels, labels and draws, the same bytes for the same recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common import draws
from common.arch import get_arch
from common.datasets import Dataset, View
from common.draws import Stream
from common.recipes import Recipe

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Batch:
    """One batch, on the host.

    Attributes:
        images: uint8 (n, height, width, channels), as stored.
        labels: int32 (n,).
        draws: what the device must do to each image; a key is missing where the recipe does not ask for it.
            `crop`: int32 (n, 2), top and left edge in the zero-padded image. `box`: float64 (n, 4), top, left, height
            and width of the part to be resized. `flip`: bool (n,). `jitter`: float64 (n, 3), factors of brightness,
            contrast and saturation. `pca`: float64 (n, 3), standard normals. And to mix pairs, `partner`: int32 (n,),
            the other's place in the batch; `mixup`: float64 (n,), weight of the own pixels; `cut`: int32 (n, 4), top,
            left, bottom and right of the partner's box; `share`: float64 (n,), weight of the own label.
        ids: int64 (n,), which of the source's examples these are.
    """

    images: np.ndarray
    labels: np.ndarray
    draws: dict[str, np.ndarray]
    ids: np.ndarray

    def update(self, digest: hashlib._Hash) -> None:
        """Add every byte of the batch to a hash."""
        for array in (self.images, self.labels, *(self.draws[key] for key in sorted(self.draws))):
            digest.update(array.tobytes())


def steps_per_epoch(data: Dataset, recipe: Recipe) -> int:
    """Batches in one pass over `data`, a smaller last one included."""
    return -(-len(data) // recipe.batch_size)


def batches(data: Dataset, recipe: Recipe, epoch: int, *, train: bool) -> Iterator[Batch]:
    """Yield the batches of one pass, reading one ahead in a thread. A smaller last batch is kept.

    Args:
        data: one split.
        recipe: gives the batch size, the preprocessing and the seed.
        epoch: counted from 0; with the seed, it decides the order and every draw.
        train: shuffle and draw at random; else the stored order, central crops and no augmentation.
    """
    order = draws.order(recipe.seed, epoch, len(data)) if train else np.arange(len(data))
    ids = data.ids[order]
    side = recipe.preprocess.photo_side(get_arch(recipe.arch))
    height, width = data.image[:2] if data.image else (side, side)
    if data.image is None and train and recipe.preprocess.random_resized_crop:
        assert recipe.preprocess.crop
        height = width = recipe.preprocess.crop
    count = int(data.ids.max()) + 1
    table = _draw(recipe, epoch, count, height, width, train, data.image is not None) | (
        _draw_mix(recipe, epoch, count, data) if train else {}
    )
    view = _view(recipe, epoch, side, train) if data.image is None else None

    def read(start: int) -> Batch:
        chosen = ids[start : start + recipe.batch_size]
        images, labels = data.source.read(chosen, view)
        numbers = {name: rows[chosen] for name, rows in table.items()}
        if "share" in numbers:  # the neighbour: in a random order, that is a random partner
            numbers["partner"] = np.roll(np.arange(len(chosen), dtype=np.int32), 1)
        return Batch(images, labels, numbers, chosen)

    starts = range(0, len(ids), recipe.batch_size)
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(read, starts[0])
        for start in starts[1:]:
            batch, following = following.result(), ahead.submit(read, start)
            yield batch
        yield following.result()


def _draw(
    recipe: Recipe, epoch: int, count: int, height: int, width: int, train: bool, sized: bool
) -> dict[str, np.ndarray]:
    """The draws of one epoch for every example of a source; images are (height, width), `sized` if stored so."""
    spec, seed = recipe.preprocess, recipe.seed
    table: dict[str, np.ndarray] = {}
    if spec.random_resized_crop and train and sized:
        table["box"] = random_boxes(height, width, draws.uniforms(seed, Stream.RESIZED_CROP, epoch, count, 22))
    elif spec.crop:
        room = np.array([height, width]) - spec.crop
        if train:
            places = np.floor(draws.uniforms(seed, Stream.CROP, epoch, count, 2) * (room + 2 * spec.pad + 1))
        else:
            places = np.broadcast_to(np.rint(room / 2) + spec.pad, (count, 2))
        table["crop"] = places.astype(np.int32)
    if spec.flip and train:
        table["flip"] = draws.uniforms(seed, Stream.FLIP, epoch, count, 1)[:, 0] < 0.5
    if (spec.brightness or spec.contrast or spec.saturation) and train:
        reach = np.array([spec.brightness, spec.contrast, spec.saturation])
        low, high = np.maximum(1 - reach, 0), 1 + reach
        table["jitter"] = low + (high - low) * draws.uniforms(seed, Stream.JITTER, epoch, count, 3)
    if spec.pca_std and train:
        table["pca"] = draws.normals(draws.uniforms(seed, Stream.PCA, epoch, count, 6))
    return table


def _draw_mix(recipe: Recipe, epoch: int, count: int, data: Dataset) -> dict[str, np.ndarray]:
    """How every example of a source is mixed with its partner; nothing where the recipe mixes none."""
    spec = recipe.mix
    if not (spec.mixup or spec.cutmix):
        return {}
    height, width, _ = recipe.preprocess.input_size(data.image, get_arch(recipe.arch))
    which, weight, top, left = draws.uniforms(recipe.seed, Stream.MIX, epoch, count, 4).T
    paste = which < 0.5 if spec.mixup and spec.cutmix else np.full(count, bool(spec.cutmix))
    mixup = np.where(paste, 1.0, draws.betas(spec.mixup, weight) if spec.mixup else 1.0)
    side = np.where(paste, np.sqrt(1 - draws.betas(spec.cutmix, weight)) if spec.cutmix else 0.0, 0.0)
    middle = np.stack([np.floor(top * height), np.floor(left * width)], 1)
    half = np.floor(np.outer(side, (height, width)) / 2)
    cut = np.concatenate([middle - half, middle + half], 1).clip(0, [height, width] * 2).astype(np.int32)
    area = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1]) / (height * width)
    return {"mixup": mixup, "cut": cut, "share": np.where(paste, 1 - area, mixup)}


def _view(recipe: Recipe, epoch: int, side: int, train: bool) -> View:
    """How a photograph becomes pixels of one size on the host."""
    spec = recipe.preprocess
    if not (train and spec.random_resized_crop):
        return lambda index, image: central_square(image, side)
    crop = spec.crop
    assert crop

    def random_view(index: int, image: Image.Image) -> np.ndarray:
        return random_resized_crop(image, crop, draws.uniforms_at(recipe.seed, Stream.RESIZED_CROP, epoch, index, 22))

    return random_view


def central_square(image: Image.Image, side: int) -> np.ndarray:
    """Resize so that the shorter side has `side` pixels and keep the central square: uint8 (side, side, 3).

    The sizes and offsets are those of torchvision's `Resize` and `CenterCrop`.
    """
    from PIL import Image

    width, height = image.size
    shorter = min(width, height)
    width, height = int(side * width / shorter), int(side * height / shorter)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def random_resized_crop(image: Image.Image, side: int, uniforms: np.ndarray) -> np.ndarray:
    """A random box of 8 to 100 % of the area and an aspect ratio of 3/4 to 4/3, resized: uint8 (side, side, 3).

    Args:
        image: a photograph.
        side: of the result, in pixels.
        uniforms: float64 (22,) in [0, 1): area and ratio of ten tries, then the box's place.

    """
    from PIL import Image

    width, height = image.size
    top, left, h, w = random_boxes(height, width, uniforms[None])[0]
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)))


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
