"""A person's folder: what in it is a picture, and what systems, archivers, notebooks and this project left there."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

from common.errors import UserError
from common.recipes.spec import RECIPE

# What Pillow calls files of `photos.FORMATS`, without .pfm, whose pixels are floating point numbers.
IMAGE_SUFFIXES = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".apng", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
PREDICTIONS = "predictions.csv"  # in a folder that a prediction of a folder has left
_OURS = ("runs", "predictions")  # what commands write to unless told otherwise
# Besides what is hidden by a dot; compared without regard to case.
_LEFT_BEHIND = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
        *("__macosx", "network trash folder", "temporary items", "__pycache__"),
        *("$recycle.bin", "recycler", "recycled", "system volume information", "lost+found", "found.000"),
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    )
)


class Tree:
    """A folder that is looked through for pictures, and a count of what was passed over on the way.

    Links are followed, but none to a folder that leads here, and within `images` each folder is entered once.

    Args:
        root: names are told from here.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._passed: dict[str, dict[Path, None]] = defaultdict(dict)  # each once, in order
        self._suffixes: Counter[str] = Counter()
        self._looked: dict[Path, tuple[list[Path], list[Path]]] = {}

    def look(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the pictures that lie in a folder itself, in order.

        Raises:
            UserError: it cannot be read.
        """
        if folder not in self._looked:
            above = _above(folder)
            folders, pictures = self._read(folder)
            circles = [path for path in folders if path.is_symlink() and _identity(path) in above]
            for path in circles:
                self._pass("in a circle of links", path)
            self._looked[folder] = [path for path in folders if path not in circles], pictures
        return self._looked[folder]

    def images(self, folder: Path) -> list[Path]:
        """The pictures in and below a folder, in order."""
        found, waiting, seen = list[Path](), [folder], _above(folder)
        while waiting:
            folders, pictures = self.look(waiting.pop())
            found += pictures
            for inner in folders:
                if (identity := _identity(inner)) in seen:
                    self._pass("linked twice", inner)
                    continue
                seen.add(identity)
                waiting.append(inner)
        return sorted(found)

    def pass_loose(self, folder: Path) -> None:
        """Count the pictures that lie beside the class folders in `folder`."""
        for path in self.look(folder)[1]:
            self._pass("beside the class folders", path)

    @property
    def passed(self) -> str:
        """What was passed over, in one line; empty where nothing was."""
        words = []
        for what, paths in self._passed.items():
            example = os.path.relpath(next(iter(paths)), self.root)
            words.append(f"{len(paths):,} {what} ({example}{' ...' if len(paths) > 1 else ''})")
        if self._suffixes:
            kinds = ", ".join(f"{suffix} {count:,}" for suffix, count in self._suffixes.most_common(6))
            more = " ..." if len(self._suffixes) > 6 else ""
            words.append(f"{self._suffixes.total():,} with a suffix of no picture ({kinds}{more})")
        return f"passed over: {'; '.join(words)}" if words else ""

    def _pass(self, what: str, path: Path) -> None:
        self._passed[what][path] = None

    def _read(self, folder: Path) -> tuple[list[Path], list[Path]]:
        folders, pictures = [], []
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"Cannot read the folder {folder.absolute()}: {error.strerror}.") from error
        for entry in found:
            path = folder / entry.name
            linked = entry.is_symlink()
            if entry.name.startswith(".") or entry.name.casefold() in _LEFT_BEHIND:
                self._pass("hidden or left there by systems", path)
            elif path.is_dir() if linked else entry.is_dir():  # a path tells of a circle, an entry raises
                if _is_ours(path):
                    self._pass("of this project's runs and predictions", path)
                else:
                    folders.append(path)
            elif linked and not path.exists():
                self._pass("linked to nothing", path)
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                pictures.append(path)
            else:
                self._suffixes[path.suffix.lower() or "none"] += 1
        return folders, pictures


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, as everything else that is written and printed here."""
    try:
        name.encode()
    except UnicodeEncodeError:  # for bytes that are none, Python has characters that no encoding has
        return False
    return True


def _is_ours(folder: Path) -> bool:
    """Whether this project has written a folder: a class may be called runs, but then pictures lie in it."""
    if any((folder / mark).is_file() for mark in (RECIPE, PREDICTIONS)):
        return True
    if folder.name.casefold() not in _OURS:
        return False
    pictures = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return all(Path(path.stem).suffix.lower() in IMAGE_SUFFIXES for path in pictures)  # a prediction's is cat.jpg.png


def _above(folder: Path) -> set[tuple[int, int]]:
    """The folder and all that lead to it, by its name and, where links are on the way, in truth."""
    named, real = folder.absolute(), folder.resolve()
    return {_identity(path) for path in (named, *named.parents, real, *real.parents)}


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
