"""The shape of a text, and of a pointer into the sources."""

from __future__ import annotations

from dataclasses import dataclass

from common.arch.zoo import ARCHS

PAPER = ARCHS["alexnet_2012"]
TORCHVISION = ARCHS["alexnet"]


@dataclass(frozen=True)
class Note:
    """What a layer's panel says.

    Attributes:
        lead: one plain sentence: what the layer does and why it is there.
        why: where it comes from and what is to be known of it; sections are the 2012 paper's unless told otherwise.
        parts: where the two frameworks' texts part.
    """

    lead: str
    why: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    def __add__(self, other: Note) -> Note:
        """This note's lead, and what both say."""
        return Note(self.lead, self.why + other.why, self.parts + other.parts)


@dataclass(frozen=True)
class Cite:
    """Lines of a module that the other framework has a counterpart of.

    Attributes:
        module: whose file it is: "train".
        begins: part of the first line, which no other line of the file holds.
        count: of lines.
        side: whose file it is, where it is not the framework's for which it is cited: the converter is Flax's alone.
    """

    module: str
    begins: str
    count: int = 1
    side: str = ""


@dataclass(frozen=True)
class Concept:
    """One thing that the frameworks do in different ways, with the lines of both.

    Attributes:
        key: names it on the page.
        title: in a few words.
        lead: one plain sentence: what it is.
        torch, flax: the lines; at least one each.
        text: what follows from it, a sentence or two each.
    """

    key: str
    title: str
    lead: str
    torch: tuple[Cite, ...]
    flax: tuple[Cite, ...]
    text: tuple[str, ...] = ()


def percent(share: float) -> str:
    """0.9617 -> "96.2 %"."""
    return f"{100 * share:.1f} %"


def listed(names: list[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
