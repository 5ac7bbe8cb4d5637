"""The datasets by name: what they are and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.arch.spec import Size

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset by name.

    Attributes:
        image: stored size (height, width, channels), or None for photographs of differing sizes.
        classes: how many.
        examples: (train, test).
        test_split: what tensorflow-datasets calls the split that we test on.
        source: where it comes from.
        dark: whether its pictures are light on a dark ground.
    """

    image: Size | None
    classes: int
    examples: tuple[int, int]
    test_split: str
    source: str
    dark: bool = False


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec((8, 8, 1), 10, (1437, 360), "test", "sklearn.datasets.load_digits", dark=True),
    "mnist": DatasetSpec((28, 28, 1), 10, (60_000, 10_000), "test", "tensorflow-datasets mnist", dark=True),
    "fashion_mnist": DatasetSpec(
        (28, 28, 1), 10, (60_000, 10_000), "test", "tensorflow-datasets fashion_mnist", dark=True
    ),
    "cifar10": DatasetSpec((32, 32, 3), 10, (50_000, 10_000), "test", "tensorflow-datasets cifar10"),
    "imagenet2012": DatasetSpec(
        None, 1000, (1_281_167, 50_000), "validation", "tensorflow-datasets imagenet2012 (downloaded by hand)"
    ),
}
