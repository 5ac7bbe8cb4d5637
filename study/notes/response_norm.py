"""Local response norm: what it does, and where it went."""

from __future__ import annotations

from common.arch.spec import Arch, ConvSpec, LocalResponseNorm
from study.notes.note import PAPER, Note, listed

_PARTS = (
    "Local response norm: PyTorch divides alpha by the window's size, the paper does not. The Arch holds the paper's, "
    "so torch_impl multiplies by the size."
)


def note(arch: Arch, layer: str) -> Note:
    """Of a block that has one, or that has one in the 2012 paper."""
    norm = _norm(dict(arch.named_convs())[layer])
    if norm:
        return Note("", (_does(norm), _gain()), (_PARTS,))
    theirs = _norm(dict(PAPER.named_convs())[layer])
    if theirs is None or len(arch.convs) != len(PAPER.convs):
        return Note("")
    normed = [name for name, spec in PAPER.named_convs() if _norm(spec)]
    return Note(
        "",
        (
            f"The 2012 network has local response norm here, and only after {listed(normed)}. {_does(theirs)}",
            "Where it went: the network of Krizhevsky 2014, which torchvision has, leaves it out; later networks "
            "normalise by batch norm instead. Look at alexnet_2012 or alexnet_lrn to see it.",
        ),
    )


def _does(norm: LocalResponseNorm) -> str:
    return (
        f"Local response norm divides each value by (k + α · the sum of the squares of the {norm.size} channels around "
        f"it, at the same place) to the power β, with k {norm.k:g}, α {norm.alpha:g} and β {norm.beta:g}: a kernel "
        "that answers loudly quietens its neighbours (section 3.3). It has nothing to learn."
    )


def _gain() -> str:
    return (
        "The paper gained 1.4 points of top-1 and 1.2 of top-5 error by it. Krizhevsky 2014 and torchvision leave it "
        "out, and batch norm took its place."
    )


def _norm(spec: ConvSpec) -> LocalResponseNorm | None:
    return next((step for step in spec.after if isinstance(step, LocalResponseNorm)), None)
