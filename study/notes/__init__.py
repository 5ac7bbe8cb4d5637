"""What the pages explain, a file for each concept: from the architecture's own numbers, citing paper and lines."""

from __future__ import annotations

from collections.abc import Callable

from common.arch.spec import Arch
from common.errors import UserError
from study.anatomy import kind
from study.notes import convolution, dense, dropout, flatten, pooling
from study.notes.note import Note

LAYERS: dict[str, Callable[[Arch, str], Note]] = {
    "conv": convolution.note,
    "pool": pooling.adaptive,
    "flatten": flatten.note,
    "drop": dropout.note,
    "fc": dense.note,
}


def about(arch: Arch, layer: str) -> Note:
    """The text of a layer.

    Raises:
        UserError: there is none for layers of its kind.
    """
    if kind(layer) not in LAYERS:
        raise UserError(f"{layer} of {arch.name} has no text: the pages explain every layer; add one to study/notes.")
    return LAYERS[kind(layer)](arch, layer)
