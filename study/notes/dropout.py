"""Dropout."""

from __future__ import annotations

from common.arch.spec import Arch
from study.anatomy import sides
from study.notes.note import PAPER, TORCHVISION, Note, listed

_PARTS = (
    "PyTorch's Dropout draws from a global generator, Flax's from the key passed as rngs={'dropout': key}. Training "
    "puts torch_impl.dropout in its place, which reproduces Flax's masks bit for bit.",
    "Flax is told deterministic=not train; PyTorch's module knows its mode. In evaluation, as measured here, both pass "
    "their input on.",
)
_FIRST = "Its input is flattened in another order in each framework, so the mask is reordered with it."


def note(arch: Arch, layer: str) -> Note:
    """Of the dropout before a dense layer."""
    dense = layer.replace("drop", "fc")
    rate, inputs = dict(arch.named_dense())[dense].dropout, sides(arch)[dense][2]
    first = next(arch.named_dense())[0] == dense
    parts = (*_PARTS, *([_FIRST] if first else []))
    where = (
        f"The paper drops before {listed(_dropped(PAPER))} (section 4.2), torchvision before "
        f"{listed(_dropped(TORCHVISION))}."
    )
    if not rate:
        return Note("Does nothing in this architecture: its rate is 0.", (where,), parts)
    return Note(
        f"In training, makes each of its {inputs:,} inputs zero with a probability of {rate:g}, so that no unit can "
        "rely on another; in evaluation it hands everything on.",
        (
            f"What is kept is multiplied by 1 / (1 − {rate:g}) = {1 / (1 - rate):.3g} in training, so that sums keep "
            "their size. The paper instead halves the outputs in evaluation, which comes to the same (section 4.2): "
            "without dropout its network overfitted, with it training took about twice as many steps.",
            where,
        ),
        parts,
    )


def _dropped(arch: Arch) -> list[str]:
    return [name for name, spec in arch.named_dense() if spec.dropout]
