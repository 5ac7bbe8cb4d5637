"""The command line that prepares a dataset of tensorflow-datasets: `python -m common.commands.data cifar10`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.commands.shell import guard


@dataclass(frozen=True)
class _DataCommand:
    """Download and prepare a dataset, or say where it is.

    Attributes:
        name: mnist, fashion_mnist, cifar10 or imagenet2012.
        data_dir: where to keep it; else TFDS_DATA_DIR, else ~/tensorflow_datasets.
    """

    name: tyro.conf.Positional[str]
    data_dir: Path | None = None


def run_data() -> None:
    """`data NAME [--data-dir DIR]`."""
    from common.data.tfds import prepare

    command = tyro.cli(_DataCommand, prog="python -m common.commands.data")
    try:
        print(f"{command.name} is in {prepare(command.name, command.data_dir)}")
    except KeyboardInterrupt:
        os._exit(130)  # an ordinary exit would wait for the downloads


if __name__ == "__main__":
    guard(run_data)
