"""The command line that lists runs: `python -m common.commands.runs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.runs.listing import Summary, find_runs, summarize


@dataclass(frozen=True)
class _RunsCommand:
    """List the runs in a folder, newest first: framework, recipe, epochs, best accuracy, time in training steps, size.

    Attributes:
        folder: whose run folders are listed.
    """

    folder: tyro.conf.Positional[Path] = Path("runs")


def run_runs(arguments: Sequence[str] | None = None) -> None:
    """`runs [FOLDER]`: a line for each run; damaged ones are named and passed over."""

    def run() -> None:
        command = tyro.cli(_RunsCommand, args=arguments, prog="python -m common.commands.runs")
        found, damaged = list[Summary](), list[str]()
        for path in find_runs(command.folder):
            try:
                found.append(summarize(path))
            except (UserError, OSError) as error:
                damaged.append(f"warning: {error}" if isinstance(error, UserError) else f"warning: {path}: {error}.")
        if found:
            _show(sorted(found, key=lambda summary: summary.started, reverse=True))
        elif not damaged:
            print(f"There are no runs in {command.folder} yet: `make train-torch` makes one.")
        for sentence in damaged:
            print(sentence, file=sys.stderr)

    guard(run)


def _show(found: Sequence[Summary]) -> None:
    """Print a table, each column as wide as its widest entry, so that a line stays one line."""
    rows = [("run", "framework", "recipe", "epochs", "best accuracy", "seconds", "MiB")]
    for run in found:
        best = f"{run.best[0]:.4f} {run.split}, epoch {run.best[1]}" if run.best else ""
        epochs = f"{run.epochs}/{run.planned}" if run.framework else "not begun"
        seconds, size = f"{run.seconds:,.0f}", f"{run.size / 2**20:,.1f}"
        rows.append((str(run.path), run.framework, run.recipe, epochs, best, seconds, size))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [text.ljust(width) for text, width in zip(row[:5], widths[:5], strict=True)]
        right = [text.rjust(width) for text, width in zip(row[5:], widths[5:], strict=True)]
        print("  ".join(left + right))


if __name__ == "__main__":
    run_runs()
