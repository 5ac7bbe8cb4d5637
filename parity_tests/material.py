"""What the parity tests feed and how they shrink it: narrow networks and small real datasets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count, islice

from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.data.batch import Batch
from common.data.dataset import Dataset
from common.data.load import load_dataset
from common.data.pipeline import batches
from common.data.spec import DATASETS
from common.data.synthetic import photographs, tiles
from common.recipes.spec import Recipe
from common.world import ALONE, World


def narrow(arch: Arch, conv: int = 8, dense: int = 64) -> Arch:
    """The same network with convolutions `conv` times narrower and hidden dense layers of `dense` outputs."""
    convs = tuple(replace(spec, features=spec.features // conv) for spec in arch.convs)
    hidden = tuple(replace(spec, features=dense) for spec in arch.dense[:-1])
    return replace(arch, convs=convs, dense=(*hidden, arch.dense[-1]))


def smallest() -> Arch:
    """LeNet on 16 x 16 pixels with a few channels, batch norm in its first block: every kind of parameter, quickly."""
    arch = narrow(ARCHS["lenet"], conv=5, dense=6).adapt(height=16, width=16, classes=3)
    first, second = arch.convs
    return replace(arch, convs=(replace(first, bias=False, norm=ARCHS["alexnet_bn"].convs[0].norm), second))


@cache
def digits() -> Dataset:
    """The training split of the digits, 8 x 8 x 1."""
    return load_dataset("digits")[0]


def data_for(recipe: Recipe) -> Dataset:
    """Real images of the kind that a recipe's dataset has, from installed packages alone."""
    if recipe.dataset == "digits":
        return digits()
    image = DATASETS[recipe.dataset].image if recipe.dataset in DATASETS else None
    return photographs() if image is None else tiles(image[0], image[2])


def first_batches(data: Dataset, recipe: Recipe, steps: int, world: World = ALONE) -> Iterator[Batch]:
    """The first batches of a training run, over as many epochs as it takes."""
    return islice(
        (batch for epoch in count() for batch in batches(data, recipe, epoch, train=True, world=world)), steps
    )
