"""Pools: those of the convolution blocks, and the adaptive one before the dense layers."""

from __future__ import annotations

from common.arch.spec import Arch, AvgPool, MaxPool
from study.notes.note import PAPER, TORCHVISION, Note

_ADAPTIVE = (
    "PyTorch needs a module for the adaptive pool, an nn.Identity where there is none; in Flax it is a function.",
)


def note(arch: Arch, layer: str) -> Note:
    """Of a block that pools."""
    pool = next(step for step in dict(arch.named_convs())[layer].after if isinstance(step, MaxPool | AvgPool))
    what = "the largest" if isinstance(pool, MaxPool) else "the mean"
    keeps = f"The pool keeps {what} of each {pool.size} × {pool.size} window: a shift by a pixel changes little."
    paper = next(step for step in PAPER.convs[0].after if isinstance(step, MaxPool))
    if pool.size > pool.stride:
        overlap = (
            f"Its windows are {pool.stride} apart, so that they overlap: 0.4 points of top-1 and 0.3 of top-5 error "
            "less than without (section 3.4)."
        )
    else:
        overlap = (
            f"Its windows do not overlap; the paper's do, {paper.size} × {paper.size} with a stride of {paper.stride} "
            "(section 3.4)."
        )
    return Note("", (f"{keeps} {overlap}",))


def adaptive(arch: Arch, layer: str) -> Note:
    """Of `pool`."""
    if not arch.adaptive_pool:
        return Note(
            "Does nothing in this architecture: images have one size, so nothing is left to adapt.",
            (f"torchvision's alexnet averages to {TORCHVISION.adaptive_pool} × {TORCHVISION.adaptive_pool} here.",),
            _ADAPTIVE,
        )
    bins = arch.adaptive_pool
    last = [row.output for row in arch.layers() if row.kind != "dense" and row.name != layer][-1]
    as_it_is = " At this architecture's own size it changes nothing." if last[:2] == (bins, bins) else ""
    return Note(
        f"Averages whatever arrives into {bins} × {bins} places, so that images of any size fit the dense layers."
        + as_it_is,
        (f"The paper has none: {PAPER.image[0]} pixels leave 6 × 6 by themselves (section 3.5).",),
        _ADAPTIVE,
    )
