"""Local response norm: what it does, and where it went."""

from __future__ import annotations

from common.arch.spec import Arch, ConvSpec, LocalResponseNorm
from study.notes.note import PAPER, Note, listed

_WENT = (
    "Where it went: the network of Krizhevsky 2014, which torchvision has, leaves it out; later networks normalise by "
    "batch norm instead. Look at alexnet_2012 or alexnet_lrn to see it."
)
_GAINED = "The paper gained 1.4 points of top-1 and 1.2 of top-5 error by it (section 3.3)."
_PARTS = (
    "Local response norm: PyTorch divides alpha by the window's size, the paper does not. The Arch holds the paper's, "
    "so torch_impl multiplies by the size."
)


def note(arch: Arch, layer: str) -> Note:
    """Of a block that has one, or that has one in the 2012 paper."""
    norm = _norm(dict(arch.named_convs())[layer])
    if norm:
        return Note("", (_does(norm), f"{_GAINED} {_WENT}"), (_PARTS,))
    theirs = _norm(dict(PAPER.named_convs())[layer])
    if theirs is None or len(arch.convs) != len(PAPER.convs):
        return Note("")
    return Note("", (f"{_has('here')} {_does(theirs)}", _WENT))


def told() -> tuple[str, str, str]:
    """What the 2012 network's does, whether it helped, and where it went."""
    norm = next(found for _, spec in PAPER.named_convs() if (found := _norm(spec)))
    return f"{_has()} {_does(norm)}", _GAINED, _WENT


def _has(here: str = "") -> str:
    normed = [name for name, spec in PAPER.named_convs() if _norm(spec)]
    where = f"{here}, and only after" if here else "after"
    return f"The 2012 network has local response norm {where} {listed(normed)}."


def _does(norm: LocalResponseNorm) -> str:
    return (
        f"Local response norm divides each value by (k + α · the sum of the squares of the {norm.size} channels around "
        f"it, at the same place) to the power β, with k {norm.k:g}, α {norm.alpha:g} and β {norm.beta:g}: a kernel "
        "that answers loudly quietens its neighbours (section 3.3). It has nothing to learn."
    )


def _norm(spec: ConvSpec) -> LocalResponseNorm | None:
    return next((step for step in spec.after if isinstance(step, LocalResponseNorm)), None)
