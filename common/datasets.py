"""The datasets: what they are, how they are fetched, and reading any set of examples as uint8 pixels."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from common import draws
from common.arch import Size
from common.errors import UserError, lookup
from common.photos import opened

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "val", "test"]
View = Callable[[int, "Image.Image"], np.ndarray]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_CHUNK = 4096  # examples decoded at a time while a dataset is read into memory
_DIGITS_TEST = 360  # a fifth of scikit-learn's 1,797


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset by name.

    Attributes:
        image: stored size (height, width, channels), or None for photographs of differing sizes.
        classes: how many.
        examples: (train, test).
        test_split: what tensorflow-datasets calls the split that we test on.
        source: where it comes from.
    """

    image: Size | None
    classes: int
    examples: tuple[int, int]
    test_split: str
    source: str


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec((8, 8, 1), 10, (1437, 360), "test", "sklearn.datasets.load_digits"),
    "mnist": DatasetSpec((28, 28, 1), 10, (60_000, 10_000), "test", "tensorflow-datasets mnist"),
    "fashion_mnist": DatasetSpec((28, 28, 1), 10, (60_000, 10_000), "test", "tensorflow-datasets fashion_mnist"),
    "cifar10": DatasetSpec((32, 32, 3), 10, (50_000, 10_000), "test", "tensorflow-datasets cifar10"),
    "imagenet2012": DatasetSpec(
        None, 1000, (1_281_167, 50_000), "validation", "tensorflow-datasets imagenet2012 (downloaded by hand)"
    ),
}


class Source(Protocol):
    """Examples that can be read in any order."""

    def read(self, ids: np.ndarray, view: View | None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (n, height, width, channels) and labels int32 (n,) of these examples.

        Args:
            ids: int64 (n,), positions in the source.
            view: turns photograph `id` into pixels of one size for all; sources of one size ignore it.
        """


@dataclass(frozen=True)
class Arrays:
    """Images of one size, in memory: uint8 (n, height, width, channels) and int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def read(self, ids: np.ndarray, view: View | None = None) -> tuple[np.ndarray, np.ndarray]:
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

    def read(self, ids: np.ndarray, view: View | None) -> tuple[np.ndarray, np.ndarray]:
        if view is None:
            raise ValueError("photographs differ in size: a view is needed")

        def decode(example: int) -> tuple[np.ndarray, int]:
            with self.open(example) as (image, label):
                return view(example, image), label

        over = map if self.threads == 1 else self._pool.map
        images, labels = zip(*over(decode, ids.tolist()), strict=True)
        return np.stack(images), np.array(labels, np.int32)


@dataclass(frozen=True)
class Relabelled:
    """Examples of another source, their labels translated by a table: int32 (old classes,)."""

    source: Source
    table: np.ndarray

    def read(self, ids: np.ndarray, view: View | None = None) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.source.read(ids, view)
        return images, self.table[labels]


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
    """

    name: str
    split: Split
    image: Size | None
    class_names: tuple[str, ...]
    source: Source
    ids: np.ndarray
    workers: int = 0

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
        elif isinstance(source, Photographs) and isinstance(source.files, _Files):
            digest.update(source.files.names + source.files.labels.tobytes())
        return digest.hexdigest()

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
        shuffled = draws.order(seed, 0, len(self), draws.Stream.SPLIT)
        rest, held = np.sort(shuffled[count:]), np.sort(shuffled[:count])
        return replace(self, ids=self.ids[rest]), replace(self, ids=self.ids[held], split="val")


def load(name: str, data_dir: Path | None = None) -> tuple[Dataset, Dataset]:
    """Load the training and the test split.

    Args:
        name: a key of `DATASETS`, or "folder:PATH" for a folder with one folder of images per class.
        data_dir: where tensorflow-datasets keeps its data; its own default (`TFDS_DATA_DIR`) when not given.

    Raises:
        UserError: unknown name, or data that is not there and cannot be fetched: what is missing, where it was
            looked for and the command that prepares it.
    """
    if name.startswith("folder:"):
        return _load_folder(name, _folder(name))
    spec = lookup(DATASETS, name, "dataset")
    if name == "digits":
        return _load_digits(spec)
    from common import tfds_data  # imports tensorflow-datasets

    if spec.image is None:
        return tfds_data.load_photographs(name, spec, data_dir)
    return tfds_data.load_arrays(name, spec, data_dir)


def _folder(name: str) -> Path:
    try:
        return Path(name.removeprefix("folder:")).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"The dataset {name!r} is not there: {error}") from error


def load_unseen(name: str, data_dir: Path | None = None) -> Dataset:
    """What a network can be tested on that was trained elsewhere: the test split, or all of an unsplit folder.

    Raises:
        UserError: as `load`.
    """
    _, test = load(name, data_dir)
    root = _folder(name)
    if not name.startswith("folder:") or (root / "train").is_dir():
        return test
    names = list(test.class_names)
    return _photographs(name, "test", names, root, _list_images(root, names))


def relabel(data: Dataset, class_names: Sequence[str]) -> Dataset:
    """A dataset in the labels of ImageNet's 1,000 classes, or of any others.

    Args:
        data: its classes have names of `class_names`, or of WordNet's (n01440764), as ImageNet's folders have;
            they may be some of them.
        class_names: in label order; ImageNet's 1,000 classes in the order of their WordNet names.

    Raises:
        UserError: a class is not among them.
    """
    tables = [{name: label for label, name in enumerate(class_names)}]
    if len(class_names) == DATASETS["imagenet2012"].classes:
        tables.append({name: label for label, name in enumerate(_wordnet_names())})
    for table in tables:
        if all(name in table for name in data.class_names):
            labels = np.array([table[name] for name in data.class_names], np.int32)
            return replace(data, class_names=tuple(class_names), source=Relabelled(data.source, labels))
    unknown = [name for name in data.class_names if not any(name in table for table in tables)]
    raise UserError(
        f"{data.name} has classes that the network does not know: {', '.join(unknown[:5] or data.class_names[:5])}"
        f"{' ...' if len(unknown) > 5 else ''}. It needs ImageNet's, by WordNet name (n01440764) or by the "
        f"network's own (such as {class_names[0]!r})."
    )


def _wordnet_names() -> list[str]:
    """Of ImageNet's 1,000 classes, in label order, from the list that tensorflow-datasets carries."""
    package = find_spec("tensorflow_datasets")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "datasets" / "imagenet2012" / "labels.txt").read_text("utf-8").split()


def whole(name: str, split: Split, image: Size, class_names: Sequence[str], source: Arrays) -> Dataset:
    """A `Dataset` of every example of an in-memory source."""
    return Dataset(name, split, image, tuple(class_names), source, np.arange(len(source.labels)))


def read_in_chunks(examples: Any, count: int, image: Size, what: str) -> Arrays:
    """Read a random-access source of {"image", "label"} into memory, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    images = np.empty((count, *image), np.uint8)
    labels = np.empty(count, np.int32)
    starts = range(0, count, _CHUNK)
    console = Console(stderr=True)
    for start in track(starts, f"Reading {what}", console=console, transient=True, disable=not console.is_terminal):
        rows = examples.__getitems__(range(start, min(start + _CHUNK, count)))
        images[start : start + len(rows)] = np.stack([row["image"] for row in rows])
        labels[start : start + len(rows)] = [row["label"] for row in rows]
    return Arrays(images, labels)


def _load_digits(spec: DatasetSpec) -> tuple[Dataset, Dataset]:
    """scikit-learn's digits: 16 grey levels spread over 0 to 255, a fixed stratified fifth for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    assert spec.image is not None
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    train, test = train_test_split(np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0)
    names = [str(digit) for digit in bunch.target_names]
    return (
        whole("digits", "train", spec.image, names, Arrays(images[train], labels[train])),
        whole("digits", "test", spec.image, names, Arrays(images[test], labels[test])),
    )


def _load_folder(name: str, root: Path) -> tuple[Dataset, Dataset]:
    """`root/train/CLASS/*` and `root/test/CLASS/*` (or `val`); else `root/CLASS/*`, a fixed fifth of each tested."""
    if not root.is_dir():
        raise UserError(f"The dataset {name!r} is not there: {root.absolute()} is not a folder.")
    test_root = next((root / held for held in ("test", "val") if (root / held).is_dir()), None)
    if (root / "train").is_dir() and test_root:
        names = _class_names(root / "train")
        if names != _class_names(test_root):
            raise UserError(f"{root / 'train'} and {test_root} must hold the same classes, one folder each.")
        train, test = _list_images(root / "train", names), _list_images(test_root, names)
    else:
        names = _class_names(root)
        train = _list_images(root, names, lambda place: place % 5 > 0)
        test = _list_images(root, names, lambda place: place % 5 == 0)
    return _photographs(name, "train", names, root, train), _photographs(name, "test", names, root, test)


def _class_names(root: Path) -> list[str]:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"{root.absolute()} must hold one folder of images per class, at least two; it has {names}.")
    return names


def _list_images(
    root: Path, names: Sequence[str], chosen: Callable[[int], bool] = lambda place: True
) -> Iterator[tuple[Path, int]]:
    """The images below each class's folder, in a fixed order, with their label; those of the chosen places in it."""
    for label, name in enumerate(names):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise UserError(f"{(root / name).absolute()} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        yield from ((path, label) for place, path in enumerate(found) if chosen(place))


class _Files(Sequence[str]):
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
        return os.path.join(self.root, os.fsdecode(self.names[self.ends[index] : self.ends[index + 1]]))  # noqa: PTH118

    @contextmanager
    def open(self, index: int) -> Iterator[tuple[Image.Image, int]]:
        """One image and its label; see `opened`."""
        with opened(Path(self[index])) as image:
            yield image, self.labels[index]


def _photographs(
    name: str, split: Split, names: Sequence[str], root: Path, found: Iterable[tuple[Path, int]]
) -> Dataset:
    files = _Files(root, found)
    return Dataset(name, split, None, tuple(names), Photographs(files.open, files=files), np.arange(len(files)))
