"""Stand-ins for data that is not at hand: random pixels, and pieces of two photographs that scikit-learn carries."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from common.arch.spec import Arch, Size
from common.data.dataset import Dataset, whole
from common.data.sources import Arrays, Photographs

if TYPE_CHECKING:
    from PIL import Image


CLASSES = 10


def pixels(arch: Arch, examples: int, seed: int = 0, image: Size | None = None) -> Dataset:
    """Random pixels of the architecture's own size, or of another, with random labels, for checks of arithmetic."""
    rng = np.random.default_rng(seed)
    image = image or arch.image
    images = rng.integers(0, 256, (examples, *image), np.uint8)
    labels = rng.integers(0, arch.classes, examples, np.int32)
    names = [str(label) for label in range(arch.classes)]
    return whole("pixels", "train", image, names, Arrays(images, labels))


@cache
def tiles(side: int, channels: int) -> Dataset:
    """Squares of scikit-learn's two sample photographs, ten classes by their row, as stored images of one size."""
    found, labels = [], []
    for photograph in _sample_images():
        for row in range(CLASSES):
            top = row * (photograph.shape[0] - side) // (CLASSES - 1)
            for left in range(0, photograph.shape[1] - side + 1, 8):
                found.append(photograph[top : top + side, left : left + side, :channels])
                labels.append(row)
    names = [str(label) for label in range(CLASSES)]
    arrays = Arrays(np.stack(found), np.array(labels, np.int32))
    return whole("tiles", "train", (side, side, channels), names, arrays)


@cache
def photographs() -> Dataset:
    """The same photographs cut into pieces of differing sizes, for recipes that crop on the host."""
    pieces = [
        photograph[top : top + 280 + 7 * (left % 5), left : left + 300]
        for photograph in _sample_images()
        for top in range(0, 120, 12)
        for left in range(0, 340, 17)
    ]

    def open_piece(index: int) -> AbstractContextManager[tuple[Image.Image, int]]:
        from PIL import Image

        return nullcontext((Image.fromarray(pieces[index]), index % CLASSES))

    names = tuple(str(label) for label in range(CLASSES))
    return Dataset("photographs", "train", None, names, Photographs(open_piece), np.arange(len(pieces)))


def _sample_images() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images
