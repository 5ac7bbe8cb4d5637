"""Dense layers."""

from __future__ import annotations

from common.arch.spec import Arch
from study.anatomy import shares, sides
from study.notes.flatten import permuted
from study.notes.note import Note, listed, percent

_PARTS = (
    "PyTorch's Linear is told its inputs and keeps (out, in); Flax's Dense finds them and keeps (in, out).",
    "What is measured is the layer's output before the activation.",
)
_LAST = "Neither network applies a softmax: the loss does."


def note(arch: Arch, layer: str) -> Note:
    """Of a dense layer."""
    names = [name for name, _ in arch.named_dense()]
    inputs, outputs = sides(arch)[layer][2], dict(arch.named_dense())[layer].features
    if layer == names[0]:
        lead = (
            f"Each of its {outputs:,} outputs weighs every channel at every place, {inputs:,} numbers: patterns become "
            "evidence for things, wherever in the image they were."
        )
        return Note(lead, (_where_parameters_are(arch, layer, names),), (permuted(arch), *_PARTS))
    if layer == names[-1]:
        lead = f"Weighs the {inputs:,} findings for each of the {outputs:,} classes: a score each, called a logit."
        return Note(lead, ("The softmax over the scores belongs to the loss (section 3.5).",), (*_PARTS, _LAST))
    return Note(
        f"Combines {inputs:,} findings into {outputs:,} more: decisions that one weighing cannot make.",
        ("The paper's network ends in three such layers (section 3.5).",),
        _PARTS,
    )


def _where_parameters_are(arch: Arch, layer: str, names: list[str]) -> str:
    own = {row.name: row.parameters for row in arch.layers()}[layer] / arch.parameters
    share = shares(arch)
    return (
        f"Where the parameters are: {percent(own)} of them are in {layer}, {percent(share['dense_parameters'])} in "
        f"{listed(names)} together, while the convolutions do {percent(share['conv_multiply_adds'])} of the "
        "multiply-adds: a dense weight is used once an image, a kernel's at every place. Krizhevsky 2014 shares the "
        "work out by this: it splits the batch for convolutions, and the layer itself for dense ones."
    )
