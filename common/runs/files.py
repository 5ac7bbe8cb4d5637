"""Files that survive a crash: written whole or not at all, checked when read, locked against a second writer."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import chain, count
from pathlib import Path
from typing import Any

from common.errors import DamagedError, UserError
from common.runs.scores import significant

REPLACED = " (replaced)"
PART = ".part"  # ends the name of what is not finished
SUMS = "SHA256SUMS"  # in a folder, as the command sha256sum writes it

_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give another name to write a file or folder to, then flush it to the disk and rename it to `path`.

    Raises:
        UserError: it cannot be written; then `path` is as it was before.
    """
    part = path.with_name(path.name + PART)
    with writing(path):
        try:
            _clear(part)
            yield part
            flush(part)
            if path.is_dir():
                remove(path)  # a folder cannot take the place of another
            part.replace(path)
            _flush_one(path.parent)
        finally:
            _clear(part)


def _clear(part: Path) -> None:
    """Delete what was begun, also under the longer names that libraries make of ours."""
    for left in part.parent.iterdir():
        if left.name.startswith(part.name):
            remove(left)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what the operating system has against writing `path`, also where a library hides it.

    Raises:
        UserError: it cannot be written, and why.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (reason := _reason(error)):
            raise
        raise UserError(f"Cannot write {path}: {reason}.") from error


def _reason(error: BaseException | None) -> str | None:
    while error:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        for fault in _FAULTS:
            if os.strerror(fault) in str(error):
                return os.strerror(fault)
        error = error.__cause__ or error.__context__
    return None


def flush(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for inside in path.rglob("*"):
        _flush_one(inside)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there. A folder first loses its name: none is seen half deleted."""
    if path.is_dir() and not path.is_symlink():
        gone = path if path.name.endswith(PART) else path.rename(path.with_name(f"{path.name}.old{PART}"))
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder; 0 where nothing is."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def free_at(path: Path) -> int:
    """The bytes that the disk has free on which a file or folder is, or would be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def in_units(size: int) -> str:
    """Bytes in words: `931 MB`, `2.10 GB`; in thousands, as disks are sold."""
    power = next((power for power in (1, 2) if size / 1000**power < 999.5), 3)
    return f"{significant(size / 1000**power)} {('kB', 'MB', 'GB')[power - 1]}"


def missing(path: Path) -> UserError:
    """The error of a checkpoint that is not there: a `DamagedError` where something of another kind has its name."""
    if not (path.is_symlink() or path.exists()):
        return UserError(f"There is no checkpoint {path}.")
    what = "a link to nothing" if not path.exists() else "a folder" if path.is_dir() else "a file"
    return DamagedError(f"{path} is damaged: it is {what}.")


def unused(path: Path) -> Path:
    """This path if nothing has it, else the first of PATH-2, PATH-3 and so on that nothing has."""
    names = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(2)))
    return next(name for name in names if not (name.exists() or name.is_symlink()))


def replaced(path: Path) -> str:
    """What commands say behind the name of a file that they are about to write: whether it takes another's place."""
    return REPLACED if path.exists() else ""


def write_sums(folder: Path) -> None:
    """Leave in a folder the SHA-256 of every file in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files), "utf-8")


def check_sums(folder: Path) -> None:
    """Hold a folder to its `write_sums`.

    Raises:
        DamagedError: a file is missing, or is not the one that was written.
    """
    try:
        lines = (folder / SUMS).read_text("utf-8").splitlines()
        sums = {name: expected for expected, name in (line.split("  ", 1) for line in lines)}
        for name, expected in sums.items():
            if not (folder / name).resolve().is_relative_to(folder.resolve()) or sha256(folder / name) != expected:
                raise DamagedError(f"{folder} is damaged: {name} is not the file that was written.")
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder} is damaged or was not finished: {error}.") from error
    if extra := {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {SUMS, *sums}:
        raise DamagedError(f"{folder} is damaged: {min(extra)} does not belong to it.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process that has a folder; the operating system ends it with the process, however that ends.

    Raises:
        UserError: another has it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(f"Another process is training in {folder}: wait until it ends, or end it.") from None
    except OSError as error:
        print(f"note: {folder} cannot be locked against a second process: {error.strerror}", file=sys.stderr)
    try:
        yield
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # files may have names that are not UTF-8


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Write rows as CSV, whole or not at all."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
