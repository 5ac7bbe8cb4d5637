"""A folder of photographs, one folder of images per class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common.data.dataset import Dataset
from common.data.sources import Files, Photographs
from common.data.spec import Split
from common.errors import UserError

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def folder_of(name: str) -> Path:
    """The folder that "folder:PATH" names.

    Raises:
        UserError: it begins with ~somebody who is unknown.
    """
    try:
        return Path(name.removeprefix("folder:")).expanduser()
    except RuntimeError as error:  # ~somebody
        raise UserError(f"The dataset {name!r} is not there: {error}") from error


def load_folder(name: str, root: Path) -> tuple[Dataset, Dataset]:
    """`root/train/CLASS/*` and `root/test/CLASS/*` (or `val`); else `root/CLASS/*`, a fixed fifth of each tested.

    Raises:
        UserError: there is no such folder, or its splits do not hold images of the same two classes or more.
    """
    if not root.is_dir():
        raise UserError(f"The dataset {name!r} is not there: {root.absolute()} is not a folder.")
    test_root = next((root / held for held in ("test", "val") if (root / held).is_dir()), None)
    if (root / "train").is_dir() and test_root:
        names = _class_names(root / "train")
        if names != _class_names(test_root):
            raise UserError(f"{root / 'train'} and {test_root} must hold the same classes, one folder each.")
        train, test = list_images(root / "train", names), list_images(test_root, names)
    else:
        names = _class_names(root)
        train = list_images(root, names, lambda place: place % 5 > 0)
        test = list_images(root, names, lambda place: place % 5 == 0)
    return photographs_of(name, "train", names, root, train), photographs_of(name, "test", names, root, test)


def _class_names(root: Path) -> list[str]:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise UserError(f"{root.absolute()} must hold one folder of images per class, at least two; it has {names}.")
    return names


def list_images(
    root: Path, names: Sequence[str], chosen: Callable[[int], bool] = lambda place: True
) -> Iterator[tuple[Path, int]]:
    """The images below each class's folder, in a fixed order, with their label; those of the chosen places in it.

    Raises:
        UserError: a class has none.
    """
    for label, name in enumerate(names):
        found = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise UserError(f"{(root / name).absolute()} holds no images ({', '.join(IMAGE_SUFFIXES)}).")
        yield from ((path, label) for place, path in enumerate(found) if chosen(place))


def photographs_of(
    name: str, split: Split, names: Sequence[str], root: Path, found: Iterable[tuple[Path, int]]
) -> Dataset:
    """A split of image files and their labels."""
    files = Files(root, found)
    return Dataset(name, split, None, tuple(names), Photographs(files.open, files=files), np.arange(len(files)))
