"""Where examples are read from, in any order: memory, files, records."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.data.crops import HostCrop
from common.data.photos import opened

if TYPE_CHECKING:
    from PIL import Image

# A run counts on the names that it began with: without one of them it could not be resumed.
_ADVICE = (
    "Put a picture that can be read in its place, under its name, and a run that was interrupted resumes; a new run "
    "goes on without such files with --skip-bad."
)


class Source(Protocol):
    """Examples that can be read in any order."""

    def read(self, ids: np.ndarray, crop: HostCrop | None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (n, height, width, channels) and labels int32 (n,) of these examples.

        Args:
            ids: int64 (n,), positions in the source.
            crop: turns photographs into pixels of one size for all; sources of one size ignore it.
        """


@dataclass(frozen=True)
class Arrays:
    """Images of one size, in memory: uint8 (n, height, width, channels) and int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def read(self, ids: np.ndarray, crop: HostCrop | None = None) -> tuple[np.ndarray, np.ndarray]:
        return self.images[ids], self.labels[ids]


@dataclass(frozen=True)
class Photographs:
    """Photographs on disk, decoded when read.

    Attributes:
        open: opens one example: the image, which may be decoded later, and its label; raises `UserError` for one that
            cannot be read or used.
        threads: that decode; Pillow releases the interpreter's lock while it works.
        files: the path of each example, where they are files.
    """

    open: Callable[[int], AbstractContextManager[tuple[Image.Image, int]]]
    threads: int = os.cpu_count() or 1
    files: Sequence[str] = ()

    def __reduce__(self) -> tuple[type[Photographs], tuple[Any, ...]]:
        return Photographs, (self.open, 1, self.files)  # a copy in a worker process, one of several, decodes alone

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads)

    def read(self, ids: np.ndarray, crop: HostCrop | None) -> tuple[np.ndarray, np.ndarray]:
        if crop is None:
            raise ValueError("photographs differ in size: a crop is needed")

        def decode(place: int, example: int) -> tuple[np.ndarray, int]:
            with self.open(example) as (image, label):
                return crop(image, place), label

        over = map if self.threads == 1 else self._pool.map
        images, labels = zip(*over(decode, range(len(ids)), ids.tolist()), strict=True)
        return np.stack(images), np.array(labels, np.int32)


@dataclass(frozen=True)
class Relabelled:
    """Examples of another source, their labels translated by a table: int32 (old classes,)."""

    source: Source
    table: np.ndarray

    def read(self, ids: np.ndarray, crop: HostCrop | None = None) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.source.read(ids, crop)
        return images, self.table[labels]


class Files(Sequence[str]):
    """The paths of images and their labels, in not many more bytes than the paths have below their root.

    Python's own paths and strings take hundreds of bytes each: too many for a million of them in several processes.
    """

    def __init__(self, root: Path, found: Iterable[tuple[Path, int]]) -> None:
        names, ends, labels = bytearray(), array("q", [0]), array("i")
        for path, label in found:
            names += os.fsencode(path.relative_to(root))
            ends.append(len(names))
            labels.append(label)
        self.root, self.names, self.ends, self.labels = root, bytes(names), ends, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return os.path.join(self.root, self.path_below(index))  # noqa: PTH118

    def path_below(self, index: int) -> str:
        """The path of an image below the root; bytes that are not UTF-8 as Python's strings carry them."""
        return os.fsdecode(self.names[self.ends[index] : self.ends[index + 1]])

    @contextmanager
    def open(self, index: int) -> Iterator[tuple[Image.Image, int]]:
        """One image and its label; see `opened`."""
        with opened(Path(self[index]), advice=_ADVICE) as image:
            yield image, self.labels[index]
