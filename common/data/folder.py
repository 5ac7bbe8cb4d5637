"""A folder of photographs, one folder of images per class, split by folders or not."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.data.dataset import Dataset
from common.data.listing import IMAGE_SUFFIXES, Tree, is_text
from common.data.sources import Files, Photographs
from common.data.spec import Split
from common.errors import UserError
from common.system import expanded

# What people call the folder of a split; None: of pictures without labels, which nobody can train on.
SPLIT_NAMES: dict[str, Split | None] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("pred", "predict", "prediction", "unlabeled", "unlabelled"), None),
}
_FIFTH = 5  # without a folder to test on, every fifth image of a class is


def folder_of(name: str) -> Path:
    """The folder that "folder:PATH" names.

    Raises:
        UserError: it begins with ~somebody who is unknown.
    """
    try:
        return expanded(name.removeprefix("folder:"))
    except UserError as error:
        raise UserError(f"The dataset {name!r} is not there: {error}") from error


@dataclass(frozen=True)
class Layout:
    """How a folder of photographs is laid out.

    Attributes:
        tree: what has been looked through.
        base: the folder of the splits or, without splits, of the classes.
        splits: where each split's class folders are; empty without splits.
        classes: the names of the class folders, the same in every split.
        notes: what is not used, a sentence each.
    """

    tree: Tree
    base: Path
    splits: Mapping[Split, Path]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, root: Path) -> Layout:
        """Look for splits and classes in a folder, and in the one inside it where it holds no other.

        Raises:
            UserError: there is no such folder; it cannot be told which of its folders are splits and which classes; or
                its splits do not hold the same two classes or more.
        """
        if not root.is_dir():
            raise UserError(
                f"The dataset {name!r} is not there: {root.absolute()} is not a folder. Name the folder of your "
                "photographs: --dataset folder:PATH."
            )
        tree = Tree(root)
        base = root
        while True:
            folders, _ = tree.look(base)
            roles = _roles(folders)
            if roles or len(folders) != 1 or not tree.look(folders[0])[0]:
                break
            [base] = folders
        splits, notes = _splits(tree, base, folders, roles)
        if not splits:
            return cls(tree, base, {}, _class_names(tree, base), notes)
        first, *others = splits
        splits[first] = _descend(tree, splits[first])
        names = _class_names(tree, splits[first])
        for split in others:
            splits[split] = _descend(tree, splits[split], names)
            if not tree.look(splits[split])[0] and tree.look(splits[split])[1]:
                notes += (f"{splits[split]} is passed over: its pictures lie in no class folders.",)
                del splits[split]
            else:
                _check_same(splits[first], names, splits[split], _class_names(tree, splits[split]))
        return cls(tree, base, splits, names, notes)

    def labelled(
        self, root: Path, skip: Collection[str] = (), chosen: Callable[[int], bool] = lambda place: True
    ) -> Iterator[tuple[Path, int]]:
        """The images of each class, in a fixed order, with their label; those of the chosen places in it.

        Args:
            root: of the class folders.
            skip: images to leave out before places are counted, by their path below `base`.
            chosen: of the places in a class.

        Raises:
            UserError: a class has no image at all.
        """
        self.tree.pass_loose(root)
        for label, name in enumerate(self.classes):
            found = self.tree.images(root / name)
            if not found:
                passed = f"; {self.tree.passed}" if self.tree.passed else ""
                raise UserError(f"{(root / name).absolute()} holds no images ({', '.join(IMAGE_SUFFIXES)}{passed}).")
            if skip:
                found = [path for path in found if str(path.relative_to(self.base)) not in skip]
            yield from ((path, label) for place, path in enumerate(found) if chosen(place))

    def dataset(self, name: str, split: Split, where: str, found: Iterable[tuple[Path, int]]) -> Dataset:
        """A split of image files and their labels; `where` they are, in words."""
        files = Files(self.base, found)
        source = Photographs(files.open, files=files)
        return Dataset(name, split, None, self.classes, source, np.arange(len(files)), where=where)

    def with_notes(self, splits: Mapping[Split, Dataset], skip: Collection[str] = ()) -> dict[Split, Dataset]:
        """The same splits, once all have been listed, with what was passed over."""
        notes = self.notes + ((self.tree.passed,) if self.tree.passed else ())
        if skip:
            more = " ..." if len(skip) > 5 else ""
            notes += (f"skipped as bad: {len(skip):,} ({', '.join(sorted(skip)[:5])}{more})",)
        return {split: replace(data, notes=notes) for split, data in splits.items()}


def load_folder(name: str, root: Path, skip: Collection[str] = ()) -> dict[Split, Dataset]:
    """The splits of a folder: those that its folders' names say, else every fifth image of each class to test.

    A folder for validation alone, without one to test on, is what is tested on.

    Args:
        name: of the dataset.
        root: the folder.
        skip: images to leave out, by their path below the folder of the splits or classes.

    Raises:
        UserError: as `Layout.of`, or it holds a split but none to train on.
    """
    layout = Layout.of(name, root)
    places: dict[Split, Path] = dict(layout.splits)
    if places and "train" not in places:
        raise UserError(
            f"{layout.base.absolute()} holds {_listed(places.values())}, but no split to train on: name its folder "
            f"train, or name the folder of the classes alone."
        )
    if "val" in places and "test" not in places:
        places["test"] = places.pop("val")
    if "test" in places:
        return layout.with_notes(
            {
                split: layout.dataset(name, split, str(place), layout.labelled(place, skip))
                for split, place in places.items()
            },
            skip,
        )
    root = places.get("train", layout.base)
    train = layout.labelled(root, skip, lambda place: place % _FIFTH > 0)
    test = layout.labelled(root, skip, lambda place: place % _FIFTH == 0)
    splits: dict[Split, Dataset] = {
        "train": layout.dataset(name, "train", f"four fifths of each class in {root}", train),
        "test": layout.dataset(name, "test", f"a fifth of each class in {root}", test),
    }
    return layout.with_notes(splits, skip)


def load_labelled(name: str, root: Path) -> Dataset:
    """What a network trained elsewhere can be tested on: the test split (or validation), or all of an unsplit folder.

    Raises:
        UserError: as `Layout.of`.
    """
    layout = Layout.of(name, root)
    place = next((layout.splits[split] for split in ("test", "val", "train") if split in layout.splits), layout.base)
    return layout.with_notes({"test": layout.dataset(name, "test", str(place), layout.labelled(place))})["test"]


def _roles(folders: Sequence[Path]) -> dict[Path, Split | None]:
    """The folders whose names are those of splits; or, of names that share what is around them, as in train_images and
    test_images, two splits or more. Nothing where no name is.
    """
    groups: dict[tuple[str, str], dict[Path, Split | None]] = defaultdict(dict)
    for folder in folders:
        name = folder.name.casefold()
        for word, split in SPLIT_NAMES.items():
            for match in re.finditer(word, name):
                groups[name[: match.start()], name[match.end() :]][folder] = split
    counts = {around: len({*roles.values()} - {None}) for around, roles in groups.items()}
    if counts.get(("", "")):
        return groups["", ""]
    shared = [around for around, count in counts.items() if count > 1]
    return groups[max(shared, key=lambda around: (len(groups[around]), -len("".join(around))))] if shared else {}


def _splits(
    tree: Tree, base: Path, folders: Sequence[Path], roles: Mapping[Path, Split | None]
) -> tuple[dict[Split, Path], tuple[str, ...]]:
    """The folder of each split, the one to train on first, and sentences about what is passed over."""
    splits: dict[Split, Path] = {}
    if not roles:
        return splits, ()
    others = [folder for folder in folders if folder not in roles]
    if strange := [folder for folder in others if tree.images(folder)]:
        raise UserError(
            f"{base.absolute()} holds {_listed(path for path, role in roles.items() if role)}, named as splits are, "
            f"beside {_listed(strange)}: rename what is a class, or move what belongs to no split elsewhere."
        )
    notes = [f"{folder} is passed over: it holds no pictures." for folder in others]
    notes += [f"{folder} is passed over: its name says that it has no labels." for folder in roles if not roles[folder]]
    order: tuple[Split, ...] = ("train", "test", "val")
    for wanted in order:
        found = [folder for folder, split in roles.items() if split == wanted]
        if len(found) > 1:
            raise UserError(f"{base.absolute()} holds {_listed(found)}, two folders for one split: leave one of them.")
        for folder in found:
            if same := [other for other in splits.values() if other.samefile(folder)]:
                raise UserError(f"{folder} and {same[0]} are the same folder: what is trained on cannot be tested on.")
            splits[wanted] = folder
    return splits, tuple(notes)


def _descend(tree: Tree, folder: Path, classes: Collection[str] = ()) -> Path:
    """The folder of a split's classes: archives repeat levels, as in train/train, and one folder alone is no class."""
    while len(inner := tree.look(folder)[0]) == 1 and inner[0].name not in classes:
        if not classes and not tree.look(inner[0])[0]:
            break
        [folder] = inner
    return folder


def _class_names(tree: Tree, root: Path) -> tuple[str, ...]:
    folders, _ = tree.look(root)
    names = [path.name for path in folders]
    if len(names) < 2:
        raise UserError(f"{root.absolute()} must hold one folder of images per class, at least two; it has {names}.")
    for folder in folders:
        if not is_text(folder.name):
            raise UserError(f"{root.absolute()} holds a class whose name is not UTF-8, {folder.name!r}: rename it.")
        inside = [path for path in tree.look(folder)[0] if SPLIT_NAMES.get(path.name.casefold())]
        if folder.name.casefold() in SPLIT_NAMES or len(inside) > 1:
            found = inside if len(inside) > 1 else [folder]
            raise UserError(
                f"{found[0].parent.absolute()} holds {_listed(found)}, named as splits are, where classes or images "
                f"are expected: rename what is a class; splits are the outer folders, classes the inner ones."
            )
    return tuple(names)


def _check_same(root: Path, names: Sequence[str], other: Path, found: Sequence[str]) -> None:
    if names != found:
        differing = sorted({*names} ^ {*found})
        said = f"{', '.join(differing[:5])}{' ...' if len(differing) > 5 else ''}"
        raise UserError(f"{root} and {other} must hold the same classes, one folder each; only one has {said}.")


def _listed(folders: Iterable[Path]) -> str:
    names = [folder.name for folder in folders]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
