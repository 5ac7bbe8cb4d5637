"""The command line that draws runs into one picture: `python -m common.commands.plot RUN RUN ...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.reports.overlay import draw_runs
from common.runs.files import replaced


@dataclass(frozen=True)
class _PlotCommand:
    """Draw loss and accuracy of any number of runs, of either framework, into one picture.

    Attributes:
        runs: run folders; `python -m common.commands.runs` lists them.
        to: the PNG to write; one that is there is replaced.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    to: Path = Path("curves.png")


def run_plot(arguments: Sequence[str] | None = None) -> None:
    """`plot RUN RUN ... [--to FILE.png]`: a picture, and where it lies."""

    def run() -> None:
        command = tyro.cli(_PlotCommand, args=arguments, prog="python -m common.commands.plot")
        if not command.runs:
            raise UserError("Name the run folders to draw: `python -m common.commands.runs` lists them.")
        if command.to.suffix.lower() != ".png":
            raise UserError(f"--to {command.to}: the picture is a PNG, so give it a name that ends in .png.")
        before = replaced(command.to)
        draw_runs(command.runs, command.to)
        print(f"{command.to}{before}")

    guard(run)


if __name__ == "__main__":
    run_plot()
