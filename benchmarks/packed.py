"""Datasets in one file each, for machines without tensorflow-datasets: `python -m benchmarks.packed cifar10`.

Writes .bench/NAME.npz.xz: the images as tensorflow-datasets keeps them, still encoded, and their labels. `load` reads
it with numpy and Pillow alone.
"""

from __future__ import annotations

import io
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np

from common.arch.spec import Size
from common.data.dataset import Dataset, whole
from common.data.load import load_dataset
from common.data.sources import Arrays
from common.data.spec import DATASETS
from common.errors import UserError
from parity_tests.results import ROOT

FOLDER = ROOT / ".bench"
_CHUNK = 1000  # records read at a time


def pack(name: str) -> Path:
    """Write both splits of a dataset whose images have one size.

    Raises:
        UserError: as `common.data.load.load_dataset`.
    """
    from common.data import tfds as tfds_data

    arrays: dict[str, Any] = {}
    for split, records in zip(("train", "test"), tfds_data._open_splits(name, DATASETS[name], None)[1:], strict=True):
        starts = range(0, len(records), _CHUNK)
        chunks = [records.source.__getitems__(range(s, min(s + _CHUNK, len(records)))) for s in starts]
        rows = [row for chunk in chunks for row in chunk]
        arrays[f"{split}_bytes"] = np.frombuffer(b"".join(row["image"] for row in rows), np.uint8)
        arrays[f"{split}_ends"] = np.cumsum([len(row["image"]) for row in rows])
        arrays[f"{split}_labels"] = np.array([row["label"] for row in rows], np.int32)
    content = io.BytesIO()
    np.savez(content, **arrays)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.npz.xz"
    path.write_bytes(lzma.compress(content.getvalue()))
    return path


def load(name: str) -> tuple[Dataset, Dataset]:
    """The training and the test split: from the packed file if there is one, else as `common.data.load.load_dataset`.

    Raises:
        UserError: there is neither.
    """
    path = FOLDER / f"{name}.npz.xz"
    if not path.exists():
        try:
            return load_dataset(name)
        except ModuleNotFoundError as error:
            raise UserError(f"{path} is missing: write it with `python -m benchmarks.packed {name}`.") from error
    spec = DATASETS[name]
    assert spec.image
    names = [str(label) for label in range(spec.classes)]
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as file:
        train, test = (
            Arrays(_decode(file[f"{split}_bytes"], file[f"{split}_ends"], spec.image), file[f"{split}_labels"])
            for split in ("train", "test")
        )
    return (
        whole(name, "train", spec.image, names, train),
        whole(name, "test", spec.image, names, test),
    )


def _decode(encoded: np.ndarray, ends: np.ndarray, image: Size) -> np.ndarray:
    from PIL import Image

    pixels, start = np.empty((len(ends), *image), np.uint8), 0
    for row, end in zip(pixels, ends, strict=True):
        row[:] = np.asarray(Image.open(io.BytesIO(encoded[start:end].tobytes()))).reshape(image)
        start = end
    return pixels


if __name__ == "__main__":
    for dataset in sys.argv[1:]:
        print(pack(dataset))
