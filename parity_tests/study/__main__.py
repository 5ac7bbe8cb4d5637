"""`make study`: write the study site and print its path."""

from __future__ import annotations

import tyro

from common.cli import guard
from parity_tests.study.site import Options, build


def main() -> None:
    """Build the site that the command line asks for."""
    options = tyro.cli(Options, prog="study")
    print(build(options).resolve())


if __name__ == "__main__":
    guard(main)
