"""How batches get to where PyTorch computes. Read next to `flax_impl/feed.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.data.batch import Batch, Facts
from common.data.dataset import Dataset
from common.data.pipeline import batches, one_ahead
from common.recipes.spec import Recipe
from common.world import ALONE, World
from torch_impl.device import memory

RESIDENT_SHARE = 0.25  # of a device's memory that the data may take for good


class Inputs(NamedTuple):
    """A batch on the device: images uint8 (N, H, W, C), labels int64 (N,), what was drawn, and facts."""

    images: Tensor
    labels: Tensor
    draws: dict[str, Tensor]
    facts: Facts


def to_device(batch: Batch, device: torch.device) -> Inputs:
    """A batch with its pixels on the device; the copies do not wait for it."""
    assert batch.images is not None
    return Inputs(_move(batch.images, device), _move(batch.labels, device).long(), *_drawn(batch, device))


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
        device: torch.device,
        world: World = ALONE,
        kept: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.data, self.recipe, self.device, self.world, self.kept = data, recipe, device, world, kept
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(device))  # which still copies what is kept

    def __call__(self, epoch: int = 0, *, train: bool = False, start: int = 0) -> Iterator[tuple[Batch, Inputs]]:
        """The batches of one pass, each with its inputs on the device; see `common.data.pipeline.batches`."""
        pixels = self.kept is None
        read = batches(self.data, self.recipe, epoch, train=train, start=start, world=self.world, pixels=pixels)
        return one_ahead((batch, self._put(batch)) for batch in read)

    def _put(self, batch: Batch) -> Inputs:
        if not self.stream:
            return self._take(batch)
        with torch.cuda.stream(self.stream):
            inputs = self._take(batch)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self.stream)
        for tensor in (inputs.images, inputs.labels, *inputs.draws.values(), *inputs.facts):
            if tensor is not None:
                tensor.record_stream(now)  # else the next batch could get its memory before the step has read it
        return inputs

    def _take(self, batch: Batch) -> Inputs:
        if not self.kept:
            return to_device(batch, self.device)
        ids, (images, labels) = _move(batch.ids, self.device), self.kept
        return Inputs(images[ids], labels[ids], *_drawn(batch, self.device))


def feeds(splits: Sequence[Dataset], recipe: Recipe, device: torch.device, world: World = ALONE) -> list[Feed]:
    """A feed for each split. Examples that are in memory are kept on the device as uint8, once for all splits of a
    source, while they take up to `RESIDENT_SHARE` of its memory together."""
    room, kept = RESIDENT_SHARE * memory(device), dict[int, tuple[Tensor, Tensor]]()
    for data in splits:
        arrays = data.arrays
        if arrays and id(arrays) not in kept and arrays.images.nbytes <= room:
            kept[id(arrays)] = _move(arrays.images, device), _move(arrays.labels, device).long()
            room -= arrays.images.nbytes
    return [Feed(data, recipe, device, world, kept.get(id(data.arrays))) for data in splits]


def _drawn(batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], Facts]:
    draws = {name: _move(array, device) for name, array in batch.draws.items()}
    return draws, Facts(*(None if array is None else _move(array, device) for array in batch.facts))


def _move(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
