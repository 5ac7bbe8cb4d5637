"""What a layer makes of images, as a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.data.batch import Batch
from common.data.dataset import Dataset
from common.data.pipeline import batches
from common.errors import UserError
from common.reports.predictions import find_images, read_images
from common.runs.files import atomic
from common.weights.network import Network

Features = Callable[[Batch], np.ndarray]  # float (n, features), or (n, channels, height, width) of a convolution block


def of_split(compute: Features, network: Network, data: Dataset) -> dict[str, Any]:
    """Of every example of a split, in order: `features`, `ids`, `labels`, `class_names`, and `files` if they are."""
    read = ((batch.labels, compute(batch)) for batch in batches(data, network.recipe, 0, train=False))
    labels, rows = zip(*read, strict=True)
    found = {"features": np.concatenate(rows), "ids": data.ids, "labels": np.concatenate(labels)}
    found["class_names"] = np.array(data.class_names)
    return found | ({"files": np.array(data.files)} if data.files else {})


def of_images(compute: Features, network: Network, place: str, failed: list[str]) -> dict[str, Any]:
    """Of an image or the images of a folder, in order: `features` and `files`.

    Args:
        compute: the layer of the network, loaded.
        network: what it is.
        place: a file or a folder.
        failed: takes a sentence for each file that cannot be read.

    Raises:
        UserError: there is no image that can be read.
    """
    names: list[str] = []
    rows: list[np.ndarray] = []
    root, files, passed = find_images(place)
    if passed:
        print(passed, file=sys.stderr)
    for some, _, batch in read_images(network, root, files, failed):
        names += some
        rows.append(compute(batch))
    if not rows:
        raise UserError(failed[0])
    return {"features": np.concatenate(rows), "files": np.array(names)}


def check_destination(path: Path) -> None:
    """Make the folder of a .npz file that is going to be written.

    Raises:
        UserError: it cannot be one, or its folder cannot be made.
    """
    if path.suffix != ".npz" or path.is_dir():
        raise UserError(f"--out {path}: name a file that ends in .npz, which numpy.load opens.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {path.parent}: {error.strerror}.") from error


def write_features(path: Path, arrays: Mapping[str, Any], layer: str) -> None:
    """Write a .npz, whole or not at all, with the layer's name as `layer`; `np.load(path)` opens it without pickle.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic(path) as part, part.open("wb") as file:
            np.savez(file, layer=np.array(layer), **arrays)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror or error}.") from error
