"""The batches of a pass over a split: which examples, and what is drawn for them, the same in both frameworks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TypeVar
from zlib import crc32

import numpy as np

from common.arch.zoo import get_arch
from common.data import workers
from common.data.augment import AUGMENTATIONS, PAIRED, Draws, Uniforms, central, draw
from common.data.batch import Batch, Facts
from common.data.crops import HostCrop
from common.data.dataset import Dataset
from common.data.draws import Stream, order, uniforms, uniforms_at
from common.recipes.spec import Recipe
from common.world import ALONE, World

Item = TypeVar("Item")


def steps_per_epoch(data: Dataset, recipe: Recipe) -> int:
    """Batches in one pass over `data`, a smaller last one included."""
    return -(-len(data) // recipe.batch_size)


def batches(
    data: Dataset,
    recipe: Recipe,
    epoch: int,
    *,
    train: bool,
    start: int = 0,
    world: World = ALONE,
    pixels: bool = True,
) -> Iterator[Batch]:
    """Yield the batches of one pass, read ahead in a thread or in `data.workers` processes. A smaller last one is kept.

    Args:
        data: one split.
        recipe: gives the batch size, the preprocessing and the seed.
        epoch: counted from 0; with the seed, it decides the order and every draw.
        train: shuffle and draw at random; else the stored order, central crops and no augmentation.
        start: how many batches to leave out at the beginning.
        world: the process that reads its rows of each batch.
        pixels: read them; else a device has them, and `Batch.images` is None.
    """
    one_pass = _Pass(data, recipe, epoch, train, world, pixels)
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
    pixels: bool

    def read(self, step: int) -> Batch:
        """The process's rows of the batch of one step; besides them, one partner at most is read."""
        size, world = self.recipe.batch_size, self.world
        whole = self._ids[step * size : (step + 1) * size]
        count, own = len(whole), world.rows(len(whole))
        first = int(own[0]) if len(own) else 0
        mixed = self.train and self.recipe.mixes
        places = np.append(own, first - 1) % count if mixed and not world.even else own % count
        ids = whole[places if len(places) else [0]]  # no source reads nothing
        images, labels, checksums = self._examples(ids)
        draws = {name: rows[: len(own if name in PAIRED else places)] for name, rows in self._draws(ids).items()}
        n = len(places)
        images, checksums = (None if array is None else array[:n] for array in (images, checksums))
        return Batch(images, labels[:n], draws, ids[:n], self._facts(own, len(ids), count), first, count, checksums)

    def _examples(self, ids: np.ndarray) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
        """Images, labels, and checksums of photographs."""
        if not self.pixels:
            assert self.data.arrays
            return None, self.data.arrays.labels[ids], None
        images, labels = self.data.source.read(ids, None if self.data.image else self._host_crop(ids))
        return images, labels, None if self.data.image else np.array([crc32(image) for image in images], np.uint32)

    def _facts(self, own: np.ndarray, read: int, count: int) -> Facts:
        """Of rows `own`, for which `read` examples are read, of a batch of `count`."""
        partner = None
        if self.train and self.recipe.mixes:  # the neighbour: in a random order, that is a random partner
            places = (own - 1) % count if self.world.even else np.roll(np.arange(read), 1)[: len(own)]
            partner = places.astype(np.int32)
        padded = self.world.even and count % self.world.size
        return Facts(partner, own < count if padded else None)

    @cached_property
    def _ids(self) -> np.ndarray:
        """The split's examples in the order of this pass."""
        if not self.train:
            return self.data.ids
        return self.data.ids[order(self.recipe.seed, self.epoch, len(self.data))]

    def _draws(self, ids: np.ndarray) -> Draws:
        if self.data.image:
            return {name: rows[ids] for name, rows in self._table.items()}
        return self._draw(partial(self._uniforms_at, ids), len(ids))

    @cached_property
    def _table(self) -> Draws:
        """The draws for every example of a source that is in memory itself."""
        count = int(self.data.ids.max()) + 1
        return self._draw(lambda stream, width: uniforms(self.recipe.seed, stream, self.epoch, count, width), count)

    def _uniforms_at(self, ids: np.ndarray, stream: Stream, width: int) -> np.ndarray:
        return uniforms_at(self.recipe.seed, stream, self.epoch, ids, width)

    def _draw(self, numbers: Uniforms, count: int) -> Draws:
        if not self.train:
            return central(self.recipe, self.data.image, count)
        return draw(self.recipe, self.data.image, numbers)

    def _host_crop(self, ids: np.ndarray) -> HostCrop:
        """How these photographs become pixels of one size."""
        spec, arch = self.recipe.preprocess, get_arch(self.recipe.arch)
        channels = arch.image[2]
        if not (self.train and spec.random_resized_crop):
            return HostCrop(spec.photo_side(arch), channels=channels)
        assert spec.crop
        box = AUGMENTATIONS["box"]
        return HostCrop(spec.crop, self._uniforms_at(ids, box.stream, box.width), channels)
