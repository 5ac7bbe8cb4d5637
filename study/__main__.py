"""`make study`: write the study site and print its path."""

from __future__ import annotations

import tyro

from common.commands.shell import guard
from study.site import Options, build


def main() -> None:
    """Build the site that the command line asks for."""
    options = tyro.cli(Options, prog="python -m study")
    print(build(options).resolve())


if __name__ == "__main__":
    guard(main)
