"""Compare two recordings: `python -m parity compare a.npz b.npz`."""

from __future__ import annotations

import argparse
import sys

from parity.compare import Bounds
from parity.files import load
from parity.pairing import match
from parity.verdict import check


def main(arguments: list[str] | None = None) -> int:
    """Print the verdict; 0 where the recordings agree, 1 where they part, 2 where they cannot be compared."""
    parser = argparse.ArgumentParser(prog="parity", description="Where two models part, and why.")
    parser.add_argument(
        "command", choices=("compare", "match"), help="compare recordings, or print how they are paired"
    )
    parser.add_argument("left", help="a recording that parity.save wrote")
    parser.add_argument("right", help="another, of a model with the left's weights")
    parser.add_argument("--to", metavar="FILE", help="also write it: .json, .html or text; a pairing as JSON")
    parser.add_argument("--bound", type=float, help="largest difference allowed, of each tensor's scale")
    parser.add_argument("--tensor", action="append", default=[], metavar="PATTERN=BOUND", help="another for tensors")
    parser.add_argument("--pairs", metavar="FILE", help="a pairing that was kept, perhaps edited")
    parser.add_argument("--go-on", action="store_true", help="name every difference, not the first alone")
    given = parser.parse_args(arguments)
    try:
        left, right = load(given.left), load(given.right)
        if given.command == "match":
            found = match(left, right, left.batches[0], values=False)
            print(found)
            if given.to:
                found.save(given.to)
            return 0
        bounds = _bounds(given.bound, given.tensor)
        verdict = check(left, right, pairs=given.pairs, bounds=bounds, mode=left.mode, go_on=given.go_on)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(verdict)
    if given.to:
        verdict.save(given.to)
    return 0 if verdict else 1


def _bounds(bound: float | None, tensors: list[str]) -> Bounds | None:
    """From what was written.

    Raises:
        ValueError: a pattern has no number.
    """
    if bound is None and not tensors:
        return None
    named = {}
    for text in tensors:
        pattern, _, number = text.rpartition("=")
        try:
            named[pattern] = float(number)
        except ValueError:
            raise ValueError(f"--tensor {text} is not of the form PATTERN=BOUND, such as *.running_var=inf.") from None
    return Bounds(1e-10 if bound is None else bound, tensor=named, share=1e-4)


if __name__ == "__main__":
    sys.exit(main())
