"""What both frameworks are fed: pixels, labels, random draws, and facts that are not drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


class Facts(NamedTuple):
    """What is known of a batch's rows and is not random: arrays on the host, or the same on a device.

    Attributes:
        partner: int32 (n,), whom each example is mixed with, where the recipe mixes; see `Batch`.
        real: bool (n,), which rows do not only pad the batch to a multiple of the processes; None: all.
    """

    partner: Any = None
    real: Any = None


NO_FACTS = Facts()


@dataclass(frozen=True)
class Batch:
    """One batch, on the host.

    Attributes:
        images: uint8 (n, height, width, channels), as stored; None where the device has them already.
        labels: int32 (n,).
        draws: what the device must do to each image, by the names of `common.data.augment.AUGMENTATIONS`; a key is
            missing where the recipe does not ask for it. In evaluation the central `crop` alone.
        ids: int64 (n,), which of the source's examples these are.
        facts: about the rows.
        first, of: where a process among several holds rows `first` and following of a batch of `of` examples. If its
            world is even, `partner` means places in the whole batch, and `real` marks the padding. Else `partner` means
            its own images, and the last of these has no draws to be mixed by: it is the partner of the first.
        checksums: uint32 (n,), CRC-32 of each photograph's pixels, made where they are decoded; None for examples that
            are in memory, which `Dataset.content` covers.
    """

    images: Any  # np.ndarray, or None
    labels: np.ndarray
    draws: dict[str, np.ndarray]
    ids: np.ndarray
    facts: Facts = NO_FACTS
    first: int = 0
    of: int | None = None
    checksums: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Examples in the whole batch."""
        return len(self.labels) if self.of is None else self.of

    def update(self, digest: hashlib._Hash) -> None:
        """Add to a hash which examples these are and all that was drawn for them."""
        drawn = (self.draws[key] for key in sorted(self.draws))
        for array in (self.ids, self.labels, *drawn, *self.facts, self.checksums):
            if array is not None:
                digest.update(array.tobytes())


def first_rows(batch: Batch, count: int) -> Batch:
    """The first examples of a batch that holds its pixels, mixed among themselves."""
    assert batch.images is not None
    draws = {name: rows[:count] for name, rows in batch.draws.items()}
    partner = None if batch.facts.partner is None else batch.facts.partner[:count] % count
    images, labels, ids = batch.images[:count], batch.labels[:count], batch.ids[:count]
    return replace(batch, images=images, labels=labels, draws=draws, ids=ids, facts=Facts(partner), of=count)
