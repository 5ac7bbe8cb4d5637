"""What the parity tests feed and how they shrink it: narrow networks and small real datasets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np

from common import datasets
from common.arch import Arch, Size
from common.datasets import Arrays, Dataset, Photographs
from common.pipeline import Batch, batches
from common.recipes import Recipe
from common.world import ALONE, World

if TYPE_CHECKING:
    from PIL import Image

CLASSES = 10


def narrow(arch: Arch, conv: int = 8, dense: int = 64) -> Arch:
    """The same network with convolutions `conv` times narrower and hidden dense layers of `dense` outputs."""
    convs = tuple(replace(spec, features=spec.features // conv) for spec in arch.convs)
    hidden = tuple(replace(spec, features=dense) for spec in arch.dense[:-1])
    return replace(arch, convs=convs, dense=(*hidden, arch.dense[-1]))


def pixels(arch: Arch, examples: int, seed: int = 0, image: Size | None = None) -> Dataset:
    """Random pixels of the architecture's own size, or of another, with random labels, for checks of arithmetic."""
    rng = np.random.default_rng(seed)
    image = image or arch.image
    images = rng.integers(0, 256, (examples, *image), np.uint8)
    labels = rng.integers(0, arch.classes, examples, np.int32)
    names = [str(label) for label in range(arch.classes)]
    return datasets.whole("pixels", "train", image, names, Arrays(images, labels))


@cache
def digits() -> Dataset:
    """The training split of the digits, 8 x 8 x 1."""
    return datasets.load("digits")[0]


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
    return datasets.whole("tiles", "train", (side, side, channels), names, arrays)


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


def data_for(recipe: Recipe) -> Dataset:
    """Real images of the kind that a recipe's dataset has, from installed packages alone."""
    if recipe.dataset == "digits":
        return digits()
    image = datasets.DATASETS[recipe.dataset].image
    return photographs() if image is None else tiles(image[0], image[2])


def first_batches(data: Dataset, recipe: Recipe, steps: int, world: World = ALONE) -> Iterator[Batch]:
    """The first batches of a training run, over as many epochs as it takes."""
    return islice(
        (batch for epoch in count() for batch in batches(data, recipe, epoch, train=True, world=world)), steps
    )


def _sample_images() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images
