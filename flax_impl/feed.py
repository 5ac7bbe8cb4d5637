"""How batches get to where JAX computes. Read next to `torch_impl/feed.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from common.data.batch import Batch, Facts
from common.data.dataset import Dataset
from common.data.pipeline import batches, one_ahead
from common.recipes.spec import Recipe
from common.world import ALONE, World
from flax_impl.device import memory

RESIDENT_SHARE = 0.25  # of a device's memory that the data may take for good


class Inputs(NamedTuple):
    """A batch on the device: images uint8 (N, H, W, C), labels int32 (N,), what was drawn, and facts."""

    images: Array
    labels: Array
    draws: dict[str, Array]
    facts: Facts


def to_device(batch: Batch, device: jax.Device | Sharding) -> Inputs:
    """A batch with its pixels on the device; the copies do not wait for it.

    On the devices of several processes N counts the rows of all.
    """
    return Inputs(*_put_rows((batch.images, batch.labels, batch.draws, batch.facts), device))


class Feed:
    """Takes the batches of a split to the device, one ahead of the step that computes.

    Args:
        data: the split.
        recipe: gives the batch size, the preprocessing and the seed.
        device: where they go.
        world: the process that reads its rows of each batch.
        kept: images and labels of all of the source's examples, where the device has them: then nothing but indices
            and draws travels. Others are copied batch by batch, beside the computation.
    """

    def __init__(
        self,
        data: Dataset,
        recipe: Recipe,
        device: jax.Device | Sharding,
        world: World = ALONE,
        kept: tuple[Array, Array] | None = None,
    ) -> None:
        self.data, self.recipe, self.device, self.world, self.kept = data, recipe, device, world, kept

    def __call__(self, epoch: int = 0, *, train: bool = False, start: int = 0) -> Iterator[tuple[Batch, Inputs]]:
        """The batches of one pass, each with its inputs on the device; see `common.data.pipeline.batches`."""
        pixels = self.kept is None
        read = batches(self.data, self.recipe, epoch, train=train, start=start, world=self.world, pixels=pixels)
        return one_ahead((batch, self._put(batch)) for batch in read)

    def _put(self, batch: Batch) -> Inputs:
        if not self.kept:
            return to_device(batch, self.device)
        ids, draws, facts = _put_rows((batch.ids.astype(np.int32), batch.draws, batch.facts), self.device)
        images, labels = _take(self.kept, ids)
        return Inputs(images, labels, draws, facts)


def feeds(splits: Sequence[Dataset], recipe: Recipe, device: jax.Device | Sharding, world: World = ALONE) -> list[Feed]:
    """A feed for each split. Examples that are in memory are kept on the device as uint8, once for all splits of a
    source, while they take up to `RESIDENT_SHARE` of its memory together."""
    room, kept = RESIDENT_SHARE * memory(device), dict[int, tuple[Array, Array]]()
    for data in splits:
        arrays = data.arrays
        if arrays and id(arrays) not in kept and arrays.images.nbytes <= room:
            kept[id(arrays)] = jax.device_put((arrays.images, arrays.labels), device)
            room -= arrays.images.nbytes
    return [Feed(data, recipe, device, world, kept.get(id(data.arrays))) for data in splits]


def _put_rows(arrays: Any, device: jax.Device | Sharding) -> Any:
    """Arrays of this process's rows on its device, or of all rows on those of all processes."""
    if not isinstance(device, NamedSharding):
        return jax.device_put(arrays, device)
    rows = NamedSharding(device.mesh, PartitionSpec(device.mesh.axis_names))
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(rows, array), arrays)


@jax.jit
def _take(kept: tuple[Array, Array], ids: Array) -> tuple[Array, Array]:
    """Images and labels of these examples."""
    images, labels = kept
    return images[ids], labels[ids]
