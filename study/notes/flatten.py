"""From maps to a row of numbers, and why the first dense layer's weights have to be reordered."""

from __future__ import annotations

from common.arch.spec import Arch
from study.notes.note import Note

_PARTS = (
    "PyTorch flattens C, H, W and Flax H, W, C: the same numbers in another order. No transpose is left in either "
    "network; the converter reorders the inputs of the first dense layer's weights instead."
)


def note(arch: Arch, layer: str) -> Note:
    """Of `flatten`."""
    height, width, channels = arch.feature_size
    return Note(
        f"Lays the {height} × {width} × {channels} numbers out in one row of {height * width * channels:,}: a dense "
        "layer takes a row and knows no places.",
        (permuted(arch),),
        (_PARTS,),
    )


def permuted(arch: Arch) -> str:
    """Why the first dense layer's weights are permuted, with the two places of a number."""
    height, width, channels = arch.feature_size
    first = next(arch.named_dense())[0]
    return (
        f"Why {first}'s weights are permuted: PyTorch's row begins with the {height * width} places of channel 0, "
        f"Flax's with the {channels} channels of the first place. Channel c of row y and column x is number "
        f"c·{height * width} + y·{width} + x in PyTorch and (y·{width} + x)·{channels} + c in Flax; each weight has to "
        "go where its number went. Shapes cannot tell: a matrix in the wrong order has the same."
    )
