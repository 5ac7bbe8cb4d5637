"""The one exception that a user's mistake raises, and the look-up that names the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """A mistake that the user can mend: its text is one clear sentence or two, shown without a stack trace."""


class DamagedError(UserError):
    """A file that is not as it was written: truncated, altered or never finished."""


class NonFiniteError(Exception):
    """Training came to NaN or infinity at or before a step, counted from 1."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(what)
        self.step = step


def first_line(error: BaseException) -> str:
    """What an error says, in one line without a full stop; its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:")[:400] if lines else type(error).__name__


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return `table[name]`, or raise a `UserError` that names the nearest match and every known name.

    Args:
        table: the named things, for example `RECIPES`.
        name: what the user typed.
        kind: what the table holds, in the singular, for the message ("recipe").
    """
    if name in table:
        return table[name]
    close = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(f"There is no {kind} {name!r}.{guess} Known: {', '.join(sorted(table))}.")
