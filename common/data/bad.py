"""Photographs that cannot be read: all are found before a run begins, and some may be gone without."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from common.arch.zoo import get_arch
from common.data.crops import HostCrop
from common.data.dataset import Dataset
from common.data.photos import cause
from common.data.sources import Files, Photographs
from common.data.spec import Split
from common.errors import UserError
from common.recipes.spec import Recipe

_CHUNK = 4096  # examples that wait for a thread at a time


@dataclass(frozen=True)
class Bad:
    """An example that cannot be read.

    Attributes:
        path: of its file below the dataset's folder; None where it is a record.
        fault: what is wrong with it, in words.
    """

    path: str | None
    fault: str


def find_bad(splits: Mapping[Split, Dataset], recipe: Recipe) -> list[Bad]:
    """Decode every photograph as an evaluation would, in threads, with a bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    arch = get_arch(recipe.arch)
    crop = HostCrop(recipe.preprocess.photo_side(arch), channels=arch.image[2])
    console, found = Console(stderr=True), list[Bad]()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for split, data in splits.items():
            if not isinstance(data.source, Photographs):
                continue
            starts = range(0, len(data), _CHUNK)
            said = f"Checking {split}"
            for start in track(starts, said, console=console, transient=True, disable=not console.is_terminal):
                ids = data.ids[start : start + _CHUNK].tolist()
                faults = pool.map(lambda index, source=data.source: _fault(source, index, crop), ids)
                found += [bad for bad in faults if bad]
    return found


def _fault(source: Photographs, index: int, crop: HostCrop) -> Bad | None:
    files = source.files if isinstance(source.files, Files) else None
    try:
        with source.open(index) as (image, _):
            np.asarray(crop(image, 0))
    except UserError as error:
        first = error.__cause__
        known = files is not None and isinstance(first, Exception)
        return Bad(files.path_below(index) if files else None, cause(first) if known else str(error))  # type: ignore[arg-type]
    return None


def check_bad(bad: Sequence[Bad], splits: Mapping[Split, Dataset], allowed: int, resumed: bool = False) -> list[str]:
    """The paths of the files to skip.

    Args:
        bad: what `find_bad` found.
        splits: where.
        allowed: how many may be skipped.
        resumed: the run has begun with the files as they are.

    Raises:
        UserError: there are more, or they are no files; names each.
    """
    paths = [each.path for each in bad if each.path is not None]
    if len(bad) <= allowed and len(paths) == len(bad):
        return paths
    if len(paths) < len(bad):
        raise UserError(f"{len(bad)} examples cannot be read: {' '.join(each.fault for each in bad)}")
    if resumed:
        advice = "put pictures that can be read in their places, under their names: a resumed run needs the same files"
    else:
        advice = f"mend or remove them, or say --skip-bad {len(bad)} to go on without them"
    total = sum(map(len, splits.values()))
    named = ", ".join(f"{each.path} ({each.fault})" for each in bad)
    raise UserError(f"{len(bad):,} of {total:,} images of {splits['train'].name} cannot be read: {named}; {advice}.")
