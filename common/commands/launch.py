"""Train in several processes: `python -m common.commands.launch --processes 2 -- flax_impl.train digits`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.training.launch import Launch


def run_launch(arguments: Sequence[str] | None = None) -> None:
    """`launch [--processes N ...] -- MODULE [ARGUMENT ...]`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    cut = words.index("--") if "--" in words else len(words)

    def run() -> None:
        launch = tyro.cli(Launch, args=words[:cut], prog="python -m common.commands.launch")
        launch.check()
        if not words[cut + 1 :]:
            raise UserError("Name the module to run after --, for example: --processes 2 -- flax_impl.train digits")
        raise SystemExit(launch.run(words[cut + 1 :]))

    guard(run)


if __name__ == "__main__":
    run_launch()
