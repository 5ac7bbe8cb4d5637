"""From a dataset's name to its splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common.data.dataset import Dataset
from common.data.digits import load_digits
from common.data.folder import folder_of, load_folder, load_labelled
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
    splits = _load(name, data_dir)
    return splits["train"], splits["test"]


def load_splits(recipe: Recipe, data_dir: Path | None = None, skip: Collection[str] = ()) -> dict[Split, Dataset]:
    """The splits that a run of a recipe trains on, is tested on and, if there is one, chooses its epoch by.

    A folder's own validation split goes before `val_fraction`, and a note says so.

    Args:
        recipe: gives the dataset and the share to hold out.
        data_dir: as for `load_dataset`.
        skip: images of a folder to leave out, by their path in it.

    Raises:
        UserError: as `load_dataset`, or a part would be empty.
    """
    splits = _load(recipe.dataset, data_dir, skip)
    if recipe.val_fraction and "val" in splits:
        note = f"val_fraction {recipe.val_fraction:g} is left aside: {splits['val'].where} is the validation split"
        return {split: replace(data, notes=(note, *data.notes)) for split, data in splits.items()}
    if recipe.val_fraction:
        splits["train"], splits["val"] = splits["train"].hold_out(recipe.val_fraction, recipe.seed)
    return splits


def check_classes(splits: Mapping[Split, Dataset]) -> None:
    """Refuse splits that lack an example of a class.

    Raises:
        UserError: names the class and the split.
    """
    for split, data in splits.items():
        if lacking := data.lacking():
            which = ", ".join(lacking[:5]) + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
            place = f" ({data.where})" if data.where else ""
            raise UserError(
                f"There is no image of {which} in the {split} split of {data.name}{place}, and every split needs some "
                f"of each class: add images, take a larger share, or remove the class."
            )


def _load(name: str, data_dir: Path | None, skip: Collection[str] = ()) -> dict[Split, Dataset]:
    if name.startswith("folder:"):
        return load_folder(name, folder_of(name), skip)
    spec = lookup(DATASETS, name, "dataset")
    if name == "digits":
        train, test = load_digits(spec)
        return {"train": train, "test": test}
    from common.data.tfds import load_arrays, load_photographs  # which imports tensorflow-datasets

    train, test = (load_arrays if spec.image else load_photographs)(name, spec, data_dir)
    return {"train": train, "test": test}


def load_unseen(name: str, data_dir: Path | None = None) -> Dataset:
    """What a network can be tested on that was trained elsewhere: the test split, or all of an unsplit folder.

    Raises:
        UserError: as `load_dataset`.
    """
    return load_labelled(name, folder_of(name)) if name.startswith("folder:") else load_dataset(name, data_dir)[1]


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
        tables.append({name: label for label, name in enumerate(wordnet_names())})
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


def wordnet_names() -> tuple[str, ...]:
    """Of ImageNet's 1,000 classes, in label order, from the list that tensorflow-datasets carries."""
    package = find_spec("tensorflow_datasets")
    assert package is not None
    assert package.origin is not None
    return tuple((Path(package.origin).parent / "datasets" / "imagenet2012" / "labels.txt").read_text("utf-8").split())


def load_split(recipe: Recipe, name: Split, data_dir: Path | None, skip: Collection[str] = ()) -> Dataset:
    """The split of a recipe's dataset that a run of it trained or was evaluated on; see `load_splits`.

    Raises:
        UserError: there is no validation split, or the data is not there.
    """
    splits = load_splits(recipe, data_dir, skip)
    if name not in splits:
        raise UserError(f"The recipe {recipe.name!r} holds out no validation split (val_fraction is 0).")
    return splits[name]
