"""What both frameworks are fed: batches of uint8 pixels, labels and draws, the same bytes for the same recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from math import ceil, inf
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from common import draws, photos, workers
from common.arch import Size, get_arch
from common.datasets import Dataset, View
from common.draws import Stream
from common.recipes import Recipe
from common.world import ALONE, World

if TYPE_CHECKING:
    from PIL import Image


Uniforms = Callable[[Stream, int], np.ndarray]  # so many numbers in [0, 1) for each of n examples: float64 (n, width)

Item = TypeVar("Item")

_MIXES = ("mixup", "cut", "share")  # draws of pairs, not of single images


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
        first, of: where a process among several holds rows `first` and following of a batch of `of` examples. If its
            world is even, `partner` means places in the whole batch, and `real`, bool (n,), marks the rows that do not
            only pad it (missing if none do). Else `partner` means its own images, and the last of these has no draws
            to be mixed by: it is the partner of the first.
    """

    images: np.ndarray
    labels: np.ndarray
    draws: dict[str, np.ndarray]
    ids: np.ndarray
    first: int = 0
    of: int | None = None

    @property
    def count(self) -> int:
        """Examples in the whole batch."""
        return len(self.labels) if self.of is None else self.of

    def update(self, digest: hashlib._Hash) -> None:
        """Add every byte of the batch to a hash."""
        for array in (self.images, self.labels, *(self.draws[key] for key in sorted(self.draws))):
            digest.update(array.tobytes())


def steps_per_epoch(data: Dataset, recipe: Recipe) -> int:
    """Batches in one pass over `data`, a smaller last one included."""
    return -(-len(data) // recipe.batch_size)


def batches(
    data: Dataset, recipe: Recipe, epoch: int, *, train: bool, start: int = 0, world: World = ALONE
) -> Iterator[Batch]:
    """Yield the batches of one pass, read ahead in a thread or in `data.workers` processes. A smaller last one is kept.

    Args:
        data: one split.
        recipe: gives the batch size, the preprocessing and the seed.
        epoch: counted from 0; with the seed, it decides the order and every draw.
        train: shuffle and draw at random; else the stored order, central crops and no augmentation.
        start: how many batches to leave out at the beginning.
        world: the process that reads its rows of each batch.
    """
    one_pass = _Pass(data, recipe, epoch, train, world)
    steps = range(start, steps_per_epoch(data, recipe))
    if not steps:
        return
    if data.workers and data.image is None:
        yield from workers.read(one_pass.read, steps, data.workers)
        return
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(one_pass.read, steps[0])
        for step in steps[1:]:
            batch, following = following.result(), ahead.submit(one_pass.read, step)
            yield batch
        yield following.result()


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the same items, each only after the next one has been made."""
    iterator = iter(items)
    for ready in islice(iterator, 1):
        for following in iterator:
            yield ready
            ready = following
        yield ready


@dataclass(frozen=True)
class _Pass:
    """One pass over a split, whose batches can be read in any order, in any process."""

    data: Dataset
    recipe: Recipe
    epoch: int
    train: bool
    world: World

    def read(self, step: int) -> Batch:
        """The process's rows of the batch of one step; besides them, one partner at most is read."""
        size, world = self.recipe.batch_size, self.world
        whole = self._ids[step * size : (step + 1) * size]
        count, own = len(whole), world.rows(len(whole))
        first = int(own[0]) if len(own) else 0
        mixed = self.train and bool(self.recipe.mix.mixup or self.recipe.mix.cutmix)
        places = np.append(own, first - 1) % count if mixed and not world.even else own % count
        ids = whole[places if len(places) else [0]]  # no source reads nothing
        if self.data.image:
            view, numbers = None, {name: rows[ids] for name, rows in self._table.items()}
        else:
            uniforms = partial(self._uniforms_at, ids)
            view, numbers = self._view(ids, uniforms), self._draw(uniforms, len(ids))
        images, labels = self.data.source.read(ids, view)
        numbers = {name: rows[: len(own if name in _MIXES else places)] for name, rows in numbers.items()}
        if mixed:  # the neighbour: in a random order, that is a random partner
            partner = (own - 1) % count if world.even else np.roll(np.arange(len(ids)), 1)[: len(own)]
            numbers["partner"] = partner.astype(np.int32)
        if world.even and count % world.size:
            numbers["real"] = own < count
        n = len(places)
        return Batch(images[:n], labels[:n], numbers, ids[:n], first, count)

    @cached_property
    def _ids(self) -> np.ndarray:
        """The split's examples in the order of this pass."""
        if not self.train:
            return self.data.ids
        return self.data.ids[draws.order(self.recipe.seed, self.epoch, len(self.data))]

    @cached_property
    def _table(self) -> dict[str, np.ndarray]:
        """The draws for every example of a source that is in memory itself."""
        count = int(self.data.ids.max()) + 1
        return self._draw(
            lambda stream, width: draws.uniforms(self.recipe.seed, stream, self.epoch, count, width), count
        )

    def _uniforms_at(self, ids: np.ndarray, stream: Stream, width: int) -> np.ndarray:
        return draws.uniforms_at(self.recipe.seed, stream, self.epoch, ids, width)

    def _view(self, ids: np.ndarray, uniforms: Uniforms) -> View:
        """How these photographs become pixels of one size on the host."""
        spec = self.recipe.preprocess
        if not (self.train and spec.random_resized_crop):
            side = spec.photo_side(get_arch(self.recipe.arch))
            return lambda index, image: central_square(image, side)
        assert spec.crop
        crop, rows = spec.crop, dict(zip(ids.tolist(), uniforms(Stream.RESIZED_CROP, 22), strict=True))
        return lambda index, image: random_resized_crop(image, crop, rows[index])

    def _draw(self, uniforms: Uniforms, count: int) -> dict[str, np.ndarray]:
        """What is drawn for `count` examples."""
        image, recipe = self.data.image, self.recipe
        if not self.train:
            return _central(recipe, image, count)
        return _draw(recipe, image, uniforms) | _draw_mix(recipe, image, uniforms)


def _central(recipe: Recipe, image: Size | None, count: int) -> dict[str, np.ndarray]:
    """The crops of an evaluation, for images of this stored size, or photographs."""
    spec = recipe.preprocess
    if not spec.crop:
        return {}
    side = spec.photo_side(get_arch(recipe.arch))
    places = np.rint((np.array(image[:2] if image else (side, side)) - spec.crop) / 2) + spec.pad
    return {"crop": np.tile(places.astype(np.int32), (count, 1))}


def _draw(recipe: Recipe, image: Size | None, uniforms: Uniforms) -> dict[str, np.ndarray]:
    """The draws for images of this stored size, or photographs."""
    spec = recipe.preprocess
    table: dict[str, np.ndarray] = {}
    if spec.random_resized_crop and image:
        table["box"] = random_boxes(*image[:2], uniforms(Stream.RESIZED_CROP, 22))
    elif spec.crop:
        side = spec.crop if spec.random_resized_crop else spec.photo_side(get_arch(recipe.arch))
        room = np.array(image[:2] if image else (side, side)) - spec.crop
        table["crop"] = np.floor(uniforms(Stream.CROP, 2) * (room + 2 * spec.pad + 1)).astype(np.int32)
    if spec.flip:
        table["flip"] = uniforms(Stream.FLIP, 1)[:, 0] < 0.5
    if spec.brightness or spec.contrast or spec.saturation:
        reach = np.array([spec.brightness, spec.contrast, spec.saturation])
        low, high = np.maximum(1 - reach, 0), 1 + reach
        table["jitter"] = low + (high - low) * uniforms(Stream.JITTER, 3)
    if spec.pca_std:
        table["pca"] = draws.normals(uniforms(Stream.PCA, 6))
    return table


def _draw_mix(recipe: Recipe, image: Size | None, uniforms: Uniforms) -> dict[str, np.ndarray]:
    """How every example is mixed with its partner; nothing where the recipe mixes none."""
    spec = recipe.mix
    if not (spec.mixup or spec.cutmix):
        return {}
    height, width, _ = recipe.preprocess.input_size(image, get_arch(recipe.arch))
    which, weight, top, left = uniforms(Stream.MIX, 4).T
    paste = which < 0.5 if spec.mixup and spec.cutmix else np.full(len(which), bool(spec.cutmix))
    mixup = np.where(paste, 1.0, draws.betas(spec.mixup, weight) if spec.mixup else 1.0)
    side = np.where(paste, np.sqrt(1 - draws.betas(spec.cutmix, weight)) if spec.cutmix else 0.0, 0.0)
    middle = np.stack([np.floor(top * height), np.floor(left * width)], 1)
    half = np.floor(np.outer(side, (height, width)) / 2)
    cut = np.concatenate([middle - half, middle + half], 1).clip(0, [height, width] * 2).astype(np.int32)
    area = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1]) / (height * width)
    return {"mixup": mixup, "cut": cut, "share": np.where(paste, 1 - area, mixup)}


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
