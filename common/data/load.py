"""From a dataset's name to its splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.data.dataset import Dataset
from common.data.digits import load_digits
from common.data.folder import folder_of, list_images, load_folder, photographs_of
from common.data.sources import Relabelled
from common.data.spec import DATASETS, Split
from common.errors import UserError, lookup
from common.recipes.spec import Recipe


def load_dataset(name: str, data_dir: Path | None = None) -> tuple[Dataset, Dataset]:
    """Load the training and the test split.

    Args:
        name: a key of `DATASETS`, or "folder:PATH" for a folder with one folder of images per class.
        data_dir: where tensorflow-datasets keeps its data; its own default (`TFDS_DATA_DIR`) when not given.

    Raises:
        UserError: unknown name, or data that is not there and cannot be fetched: what is missing, where it was
            looked for and the command that prepares it.
    """
    if name.startswith("folder:"):
        return load_folder(name, folder_of(name))
    spec = lookup(DATASETS, name, "dataset")
    if name == "digits":
        return load_digits(spec)
    from common.data.tfds import load_arrays, load_photographs  # which imports tensorflow-datasets

    return (load_arrays if spec.image else load_photographs)(name, spec, data_dir)


def load_unseen(name: str, data_dir: Path | None = None) -> Dataset:
    """What a network can be tested on that was trained elsewhere: the test split, or all of an unsplit folder.

    Raises:
        UserError: as `load_dataset`.
    """
    _, test = load_dataset(name, data_dir)
    root = folder_of(name)
    if not name.startswith("folder:") or (root / "train").is_dir():
        return test
    names = list(test.class_names)
    return photographs_of(name, "test", names, root, list_images(root, names))


def relabel(data: Dataset, class_names: Sequence[str]) -> Dataset:
    """A dataset in the labels of ImageNet's 1,000 classes, or of any others.

    Args:
        data: its classes have names of `class_names`, or of WordNet's (n01440764), as ImageNet's folders have;
            they may be some of them.
        class_names: in label order; ImageNet's 1,000 classes in the order of their WordNet names.

    Raises:
        UserError: a class is not among them.
    """
    tables = [{name: label for label, name in enumerate(class_names)}]
    if len(class_names) == DATASETS["imagenet2012"].classes:
        tables.append({name: label for label, name in enumerate(_wordnet_names())})
    for table in tables:
        if all(name in table for name in data.class_names):
            labels = np.array([table[name] for name in data.class_names], np.int32)
            return replace(data, class_names=tuple(class_names), source=Relabelled(data.source, labels))
    unknown = [name for name in data.class_names if not any(name in table for table in tables)]
    raise UserError(
        f"{data.name} has classes that the network does not know: {', '.join(unknown[:5] or data.class_names[:5])}"
        f"{' ...' if len(unknown) > 5 else ''}. It needs ImageNet's, by WordNet name (n01440764) or by the "
        f"network's own (such as {class_names[0]!r})."
    )


def _wordnet_names() -> list[str]:
    """Of ImageNet's 1,000 classes, in label order, from the list that tensorflow-datasets carries."""
    package = find_spec("tensorflow_datasets")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "datasets" / "imagenet2012" / "labels.txt").read_text("utf-8").split()


def load_split(recipe: Recipe, name: Split, data_dir: Path | None) -> Dataset:
    """The split of a recipe's dataset that a run of it trained or was evaluated on.

    Raises:
        UserError: the recipe holds out no validation split, or the data is not there.
    """
    train, test = load_dataset(recipe.dataset, data_dir)
    if name == "test":
        return test
    if recipe.val_fraction:
        train, val = train.hold_out(recipe.val_fraction, recipe.seed)
        return val if name == "val" else train
    if name == "val":
        raise UserError(f"The recipe {recipe.name!r} holds out no validation split (val_fraction is 0).")
    return train
