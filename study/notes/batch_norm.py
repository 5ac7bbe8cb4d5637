"""Batch norm, which the paper did not have."""

from __future__ import annotations

from study.notes.note import Note

_WHY = (
    "Batch norm brings each channel to mean 0 and variance 1 over the batch and all places, then scales and shifts it "
    "by two learnt numbers; in evaluation it takes running averages instead. It is of 2015 (arXiv:1502.03167) and took "
    "the place that local response norm had."
)
_PARTS = (
    "Batch norm: PyTorch's momentum is the weight of the new batch, Flax's that of the old statistics (1 - momentum). "
    "PyTorch updates its running variance with the unbiased estimate; flax_impl.layers.BatchNorm does the same."
)


def note() -> Note:
    """Of a block that has one."""
    return Note("", (_WHY,), (_PARTS,))
