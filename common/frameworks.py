"""The two frameworks: one table of what differs by their name alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Framework = Literal["torch", "flax"]


@dataclass(frozen=True)
class About:
    """One framework.

    Attributes:
        title: as people write it.
        suffix: of its checkpoints.
        colour: of its curves.
    """

    title: str
    suffix: str
    colour: str


FRAMEWORKS: dict[Framework, About] = {
    "torch": About("PyTorch", ".pt", "#d1491f"),
    "flax": About("Flax", ".orbax", "#1f77c4"),
}
