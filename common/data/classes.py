"""Classes go by their names: a dataset's are held to a network's, whatever the order of either."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.data.dataset import Dataset
from common.data.load import relabel
from common.data.photos import flatten
from common.data.sources import Photographs, Relabelled
from common.data.spec import DATASETS
from common.errors import UserError

_SHOWN = 5  # names in a sentence


def hold_to(data: Dataset, names: Sequence[str], owner: str) -> Dataset:
    """A dataset in a network's labels: the same classes in another order are matched by name.

    Args:
        data: to be labelled.
        names: of the network's classes, in label order. ImageNet's 1,000 take datasets of some of them too.
        owner: of those names, for the message.

    Raises:
        UserError: names the classes that one of the two lacks, or that two of the network share.
    """
    if data.class_names == tuple(names):
        return data
    if len(names) == DATASETS["imagenet2012"].classes:
        return relabel(data, names)
    if told := difference(data.class_names, names):
        raise UserError(f"The classes of {data.name} are not those of {owner}: {told}.")
    return relabel(data, names)


def difference(given: Sequence[str], wanted: Sequence[str]) -> str:
    """How two lists of classes differ besides their order, in words; nothing where they do not."""
    for names, whose in ((given, "the data has"), (wanted, "the network has")):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            return f"{whose} more than one class called {_listed(twice)}"
    new, gone = [name for name in given if name not in wanted], [name for name in wanted if name not in given]
    if not new and not gone:
        return ""
    spelt = {_plain(name): name for name in gone}
    pairs = [(name, spelt[_plain(name)]) for name in new if _plain(name) in spelt]
    if pairs and len(pairs) == len(new) == len(gone):
        told = ", ".join(f"{ours!r} for {theirs!r}{_by_what(ours, theirs)}" for ours, theirs in pairs[:_SHOWN])
        return f"only the spelling differs, the data has {told}. Rename them"
    parts = [f"the network does not know {_listed(new)}"] * bool(new) + [f"the data lacks {_listed(gone)}"] * bool(gone)
    return " and ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN)


def _plain(name: str) -> str:
    """A name without what people and systems write differently: case, spaces, and Unicode's ways to write a letter."""
    letters = unicodedata.normalize("NFC", name).casefold()
    return "".join(letter for letter in letters if not letter.isspace() and letter not in "_-")


def _by_what(one: str, other: str) -> str:
    """Why two names that look alike are not one, where it cannot be seen."""
    same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    return " (the same letters, but Unicode composes them in the one and not in the other: NFC and NFD)" if same else ""


def read_names(given: str) -> tuple[str, ...]:
    """Class names in label order: a list with commas between, or a file, one on each line or a JSON list.

    Raises:
        UserError: the file cannot be read, a name is empty, or one is there twice.
    """
    path, names = Path(given), given.split(",")
    if os.path.isfile(path) or path.suffix in (".txt", ".json"):  # noqa: PTH113 (of a list too long for a path that raises)
        try:
            text = path.read_text("utf-8-sig")
            names = json.loads(text) if path.suffix == ".json" else text.rstrip().splitlines()
        except OSError as error:
            raise UserError(f"--classes: cannot read {path}: {error.strerror}.") from error
        except ValueError as error:
            raise UserError(f"--classes: {path} is not a list of names in UTF-8: {error}.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"--classes: {path} is not a list of names.")
    found = tuple(name.strip() for name in names)
    if not all(found):
        raise UserError(f"--classes: the name of class {found.index('')} is empty; give one for each, in label order.")
    if twice := sorted({name for name in found if found.count(name) > 1}):
        raise UserError(f"--classes: {_listed(twice)} is there more than once; a class goes by its name.")
    return found


@dataclass(frozen=True)
class _Converted:
    """Opens photographs in the colours of so many channels; not a closure, for worker processes are sent it."""

    open: Callable[[int], AbstractContextManager[tuple[Any, int]]]
    channels: int

    @contextmanager
    def __call__(self, index: int) -> Iterator[tuple[Any, int]]:
        with self.open(index) as (image, label):
            yield flatten(image, self.channels), label


def in_channels(data: Dataset, channels: int) -> Dataset:
    """Photographs as pixels of so many channels (3: colours, 1: grey); other data as it is."""
    inner = data.source.source if isinstance(data.source, Relabelled) else data.source
    if channels == 3 or not isinstance(inner, Photographs):
        return data
    grey = Photographs(_Converted(inner.open, channels), inner.threads, inner.files)
    source = replace(data.source, source=grey) if isinstance(data.source, Relabelled) else grey
    return replace(data, source=source)
