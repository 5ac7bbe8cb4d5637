"""The comparer: two implementations walk through the same steps, and the first tensor that differs is named.

A small library of its own, on numpy alone.
"""

from parity.compare import PHASES, Bounds, Difference, Mismatch, Report, Side, Trace, compare_run, compare_traces

__all__ = ["PHASES", "Bounds", "Difference", "Mismatch", "Report", "Side", "Trace", "compare_run", "compare_traces"]
