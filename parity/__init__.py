"""The comparer: two implementations walk through the same steps, and the first tensor that differs is named.

A small library of its own, on numpy and ml_dtypes. `parity.torch`, `parity.linen` and `parity.nnx` hold sides for
models of these frameworks, and import them when they are used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from parity.causes import Context
from parity.compare import (
    PHASES,
    Bounds,
    Difference,
    Mismatch,
    Report,
    Side,
    Trace,
    compare_run,
    compare_traces,
    differences,
)
from parity.files import Recording, load, record, save
from parity.initialisation import Begun, Initial, initial
from parity.pairing import Match, Pair, Unmatched, match
from parity.verdict import Finding, Verdict, check

__all__ = [
    "PHASES",
    "Begun",
    "Bounds",
    "Context",
    "Difference",
    "Finding",
    "Initial",
    "Match",
    "Mismatch",
    "Pair",
    "Recording",
    "Report",
    "Side",
    "Trace",
    "Unmatched",
    "Verdict",
    "check",
    "compare_run",
    "compare_traces",
    "differences",
    "initial",
    "load",
    "match",
    "record",
    "save",
]


def __getattr__(name: str) -> ModuleType:
    """The sides, whose frameworks are imported when they are first used."""
    if name in ("linen", "nnx", "torch"):
        return import_module(f"parity.{name}")
    raise AttributeError(f"module 'parity' has no attribute {name!r}")
