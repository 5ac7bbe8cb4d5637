"""One split of a dataset: which examples, of which classes, read from where."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.arch.spec import Size
from common.data.draws import Stream, order
from common.data.sources import Arrays, Files, Photographs, Relabelled, Source
from common.data.spec import Split
from common.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """One split of a dataset.

    Attributes:
        name, split: which.
        image: stored size (height, width, channels), or None for photographs.
        class_names: in label order.
        source: where the examples are read from.
        ids: int64 (n,), which of the source's examples belong to this split. Draws are keyed by them.
        workers: processes that decode photographs ahead; 0 decodes in threads of this one.
        where: the examples are, in words, if somebody might ask.
        notes: what was passed over on the way to them, a line each.
    """

    name: str
    split: Split
    image: Size | None
    class_names: tuple[str, ...]
    source: Source
    ids: np.ndarray
    workers: int = 0
    where: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def arrays(self) -> Arrays | None:
        """The source's examples, where they are in memory: those of other splits too, at the places `ids` gives."""
        return self.source if isinstance(self.source, Arrays) else None

    @property
    def files(self) -> list[str]:
        """The path of each example, where they are files; else nothing."""
        source = self._stored
        return [source.files[i] for i in self.ids] if isinstance(source, Photographs) and source.files else []

    @property
    def _stored(self) -> Source:
        return self.source.source if isinstance(self.source, Relabelled) else self.source

    def fingerprint(self) -> str:
        """A hash of which examples these are, as far as that is known without reading them: names and labels."""
        digest = hashlib.sha256("\0".join(self.class_names).encode(errors="surrogateescape"))
        source = self._stored
        digest.update(self.ids.astype("<i8").tobytes())
        if isinstance(source, Arrays):
            digest.update(source.labels.astype("<i4").tobytes())
        elif isinstance(source, Photographs) and isinstance(source.files, Files):
            digest.update(source.files.names + source.files.labels.tobytes())
        return digest.hexdigest()

    def balanced_weights(self) -> tuple[float, ...]:
        """For each class the examples that it would have if all had equally many, divided by those that it has.

        Raises:
            UserError: a class has no example, or the labels are not known without reading the examples.
        """
        if (counts := self.counts()) is None:
            raise UserError(
                f"class_weights is balanced, and the labels of {self.name} are known only where its photographs are "
                f"read: give the numbers, --class-weights 1.0 2.5 ..., one for each class."
            )
        if not counts.all():
            none = self.class_names[int(counts.argmin())]
            raise UserError(f"class_weights is balanced, and no training example of {self.name} is of class {none!r}.")
        return tuple((len(self) / (len(counts) * counts)).tolist())

    def counts(self) -> np.ndarray | None:
        """int64 (classes,), the examples of each class, where they are known without reading them."""
        labels = self._labels()
        return None if labels is None else np.bincount(labels, minlength=len(self.class_names))

    def _labels(self) -> np.ndarray | None:
        """int (n,), where they are known without reading the examples."""
        if isinstance(self.source, Relabelled):
            stored = replace(self, source=self.source.source)._labels()
            return None if stored is None else self.source.table[stored]
        if isinstance(self.source, Arrays):
            return self.source.labels[self.ids]
        if isinstance(self.source, Photographs) and isinstance(self.source.files, Files):
            return np.asarray(self.source.files.labels)[self.ids]
        return None

    def content(self) -> str | None:
        """A hash of every pixel of examples that are in memory; None for photographs, whose batches carry checksums."""
        source = self._stored
        return hashlib.sha256(source.images[self.ids]).hexdigest() if isinstance(source, Arrays) else None

    def sizes(self) -> str | None:
        """A hash of the bytes that each photograph's file takes; None where they are no files."""
        sizes = [Path(file).stat().st_size for file in self.files]
        return hashlib.sha256(np.array(sizes, "<i8").tobytes()).hexdigest() if sizes else None

    def hold_out(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Split off a validation set drawn at random.

        Returns:
            The rest and the held-out part (`split` "val"), each in the original order.

        Raises:
            UserError: one of the two would be empty.
        """
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise UserError(f"val_fraction {fraction} leaves {count} of {len(self)} examples for validation.")
        shuffled = order(seed, 0, len(self), Stream.SPLIT)
        rest, held = np.sort(shuffled[count:]), np.sort(shuffled[:count])
        kept, part = (f"{share:.4g} of {self.where}" if self.where else "" for share in (1 - fraction, fraction))
        return (
            replace(self, ids=self.ids[rest], where=kept),
            replace(self, ids=self.ids[held], split="val", where=part),
        )

    def lacking(self) -> list[str]:
        """The classes that have no example here, as far as that is known without reading the examples."""
        if (counts := self.counts()) is None:
            return []
        return [name for name, count in zip(self.class_names, counts, strict=True) if not count]


def whole(name: str, split: Split, image: Size, class_names: Sequence[str], source: Arrays) -> Dataset:
    """A `Dataset` of every example of an in-memory source."""
    return Dataset(name, split, image, tuple(class_names), source, np.arange(len(source.labels)))


def described(splits: Mapping[Split, Dataset]) -> list[str]:
    """Where the examples of each split are and what was passed over, a line each, if somebody might ask."""
    lines = [f"{split}: {len(data):,} from {data.where}" for split, data in splits.items() if data.where]
    return lines + list(dict.fromkeys(note for data in splits.values() for note in data.notes))
