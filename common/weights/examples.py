"""The examples that a trained network is run on, in its own labels."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from common.data.classes import hold_to
from common.data.dataset import Dataset
from common.data.load import load_split, load_splits, load_unseen
from common.data.spec import Split
from common.errors import UserError
from common.weights.network import UNSAID, Network, run_at

_SHOWN = 10  # names in a note


def examples(
    network: Network, path: Path | None, dataset: str | None, split: Split, data_dir: Path | None = None
) -> Dataset:
    """A split of a network's own dataset or of another, its classes matched to the network's by name.

    A folder without a training part is tested whole, unless it is the one that the network was trained on, which may
    have been moved: then on the fifth that training left out.

    Args:
        network: that is to see them.
        path: that it was opened from; a run leaves out the images that it skipped.
        dataset: a name, as `load_dataset` takes it (default: that of the network's recipe).
        split: of it.
        data_dir: where tensorflow-datasets keeps its data.

    Raises:
        UserError: nobody says which dataset, it is not there, or its classes are not the network's.
    """
    recipe, run = network.recipe, run_at(path) if path else None
    name, skipped = dataset or recipe.dataset, run.skipped if run else ()
    if name == UNSAID:
        raise UserError(f"{network.title} does not say on what it was trained: name a dataset, --dataset folder:PATH.")
    own, found = network.path is not None and name == recipe.dataset, dict[Split, Dataset]()
    if network.path and network.splits and name.startswith("folder:"):
        with suppress(UserError):  # a folder to test on alone has no such splits
            found = load_splits(replace(recipe, dataset=name), data_dir, skipped)
    others = {part for part, data in found.items() if network.splits.get(part) != data.fingerprint()}
    moved = bool(found) and not own and not others
    if own or moved:
        data = load_split(replace(recipe, dataset=name), split, data_dir, skipped)
    elif split == "test":
        data = load_unseen(name, data_dir)
    else:
        data = load_split(replace(recipe, dataset=name, val_fraction=0.0), split, data_dir)
    data = hold_to(data, network.class_names or _taken_from(data, network), network.title)
    if own and {split, "train"} <= others:
        raise UserError(
            f"{name} is not as it was when {network.title} was trained on it, nor is its split: which pictures were "
            "trained on cannot be told. Put them back as they were, or name others: --dataset folder:PATH."
        )
    if moved:
        print(f"note: {name} holds the files of the training, by their names: split as there", file=sys.stderr)
    elif not own and name.startswith("folder:") and recipe.dataset.startswith("folder:"):
        print(f"note: that {network.title} was not trained on pictures of {name} is taken on trust", file=sys.stderr)
    return data


def _taken_from(data: Dataset, network: Network) -> tuple[str, ...]:
    """The names of a network's classes that it does not know, and a note that says so."""
    if len(data.class_names) != network.arch.classes:
        raise UserError(
            f"{network.title} has {network.arch.classes} classes, without names, and {data.name} has "
            f"{len(data.class_names)}: say which they are, --classes NAME,NAME,... in the order of its logits."
        )
    order = ",".join(data.class_names[:_SHOWN]) + ",..." * (len(data.class_names) > _SHOWN)
    print(f"note: {network.title} does not name its classes: taken to be, in this order, {order}", file=sys.stderr)
    return data.class_names
