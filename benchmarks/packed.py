"""Datasets in one file each, for machines without tensorflow-datasets: `python -m benchmarks.packed cifar10`.

Writes NAME.npz.xz: images and their labels; PNG as pixels, which xz squeezes better, JPEG as it is. `load` reads it
with numpy and Pillow alone. The folder is .bench, or what PACKED_DATA says.
"""

from __future__ import annotations

import io
import lzma
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.arch.spec import Size
from common.commands.shell import guard
from common.data.dataset import Dataset, whole
from common.data.load import load_dataset
from common.data.sources import Arrays
from common.data.spec import DATASETS
from common.errors import UserError
from common.runs.files import atomic
from parity_tests.results import ROOT

FOLDER = Path(os.environ.get("PACKED_DATA") or ROOT / ".bench")
_CHUNK = 1000  # records read at a time
_PNG = b"\x89PNG"


def pack(name: str, folder: Path = FOLDER) -> Path:
    """Write both splits of a dataset whose images have one size, and is prepared.

    Raises:
        UserError: it is not, or is not what is said to be there.
    """
    from common.data import tfds as tfds_data

    spec, root = DATASETS[name], tfds_data._root(None)
    if not tfds_data._find(name, root):
        raise UserError(f"{name} is not in {root}: prepare it with `make data DATASET={name}`, or set TFDS_DATA_DIR.")
    assert spec.image
    arrays: dict[str, Any] = {}
    for split, records in zip(("train", "test"), tfds_data._open_splits(name, spec, None)[1:], strict=True):
        starts = range(0, len(records), _CHUNK)
        chunks = [records.source.__getitems__(range(s, min(s + _CHUNK, len(records)))) for s in starts]
        rows = [row for chunk in chunks for row in chunk]
        encoded = np.frombuffer(b"".join(row["image"] for row in rows), np.uint8)
        ends = np.cumsum([len(row["image"]) for row in rows])
        if rows[0]["image"].startswith(_PNG):
            arrays[f"{split}_images"] = _decode(encoded, ends, spec.image)
        else:
            arrays |= {f"{split}_bytes": encoded, f"{split}_ends": ends}
        arrays[f"{split}_labels"] = np.array([row["label"] for row in rows], np.int32)
    content = io.BytesIO()
    np.savez(content, **arrays)
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / f"{name}.npz.xz"
    with atomic(path) as part:
        part.write_bytes(lzma.compress(content.getvalue()))
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
        train, test = (Arrays(_images(file, split, spec.image), file[f"{split}_labels"]) for split in ("train", "test"))
    return (
        whole(name, "train", spec.image, names, train),
        whole(name, "test", spec.image, names, test),
    )


def _images(file: Mapping[str, np.ndarray], split: str, image: Size) -> np.ndarray:
    if f"{split}_images" in file:
        return file[f"{split}_images"]
    return _decode(file[f"{split}_bytes"], file[f"{split}_ends"], image)


def _decode(encoded: np.ndarray, ends: np.ndarray, image: Size) -> np.ndarray:
    from PIL import Image

    pixels, start = np.empty((len(ends), *image), np.uint8), 0
    for row, end in zip(pixels, ends, strict=True):
        row[:] = np.asarray(Image.open(io.BytesIO(encoded[start:end].tobytes()))).reshape(image)
        start = end
    return pixels


def main() -> None:
    """Pack every dataset that the command line names."""
    for dataset in sys.argv[1:]:
        print(pack(dataset))


if __name__ == "__main__":
    guard(main)
