"""What `make photos` comes to on pictures that are few: from torchvision's convolutions and from scratch.

`python -m benchmarks.photos` writes pictures of four of CIFAR-10's classes into a folder, trains on them by the
ordinary command what benchmarks/results/photos-cpu.json has not, and files each run. `ALEXNET_FEATURES` names the file
of convolutions.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from benchmarks.measured import read, spread, title
from common.commands.photos import BACKBONE
from common.commands.shell import guard
from common.data.load import load_dataset
from common.errors import UserError
from common.frameworks import FRAMEWORKS, Framework
from common.runs.files import atomic, write_json
from common.runs.folder import RunFolder
from common.weights.result import result_of_run
from parity_tests.results import RESULTS, ROOT

FILE = RESULTS / "photos-cpu.json"
DATASET = "cifar10"
CLASSES = ("airplane", "cat", "horse", "ship")
EACH = {"train": 120, "test": 100}  # pictures of a class, the first of each split
SEEDS = 3
STARTS = {"torchvision's convolutions": (), "scratch": ("--scratch",)}
HEAD = "| start | PyTorch | Flax |"


@dataclass(frozen=True)
class Options:
    """Train on a folder of few pictures, from both starts in both frameworks, and file each run.

    Attributes:
        frameworks: only these.
        runs: folder of the pictures and the runs.
        file: of the results.
    """

    frameworks: Sequence[Framework] = tuple(FRAMEWORKS)
    runs: Path = ROOT / "runs" / "photos-measured"
    file: Path = FILE


def write_pictures(folder: Path) -> None:
    """A folder for each split, in it one for each class; whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic(folder) as part:
        for data, (split, each) in zip(load_dataset(DATASET), EACH.items(), strict=True):
            images, labels = data.source.read(data.ids, None)
            for name in CLASSES:
                place = part / split / name
                place.mkdir(parents=True)
                for number in np.flatnonzero(labels == data.class_names.index(name))[:each]:
                    Image.fromarray(images[number]).save(place / f"{number}.png")


def train(framework: Framework, seed: int, start: str, pictures: Path, folder: Path) -> dict[str, Any]:
    """A run as a row of the results; one that is in its folder already goes on.

    Raises:
        UserError: it failed; its own words say why.
    """
    begins = [pictures, "--out", folder, "--seed", seed, "--device", "cpu", *STARTS[start]]
    said = ["--resume", folder] if RunFolder.is_at(folder) else begins
    command = [sys.executable, "-m", f"{framework}_impl.photos", *map(str, said)]
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise UserError(f"Training in {folder} ended with exit code {code}; the same command goes on with it.")
    run = RunFolder(folder)
    choice, rows = result_of_run(run), run.metrics()
    assert choice
    scores = {row["epoch"]: row["accuracy"] for row in rows if row["split"] == "test"}
    return {
        "recipe": run.recipe.name,
        "framework": framework,
        "seed": seed,
        "start": start,
        "test_accuracy": round(scores[choice.epoch], 4),
        "epoch": choice.epoch,
        "epochs": max(scores),
        "data": title(DATASET),
        "pictures": EACH,
        "classes": CLASSES,
    } | {name: run.manifest[name] for name in ("device", "versions", "commit", "batches_sha256")}


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Mean and sample standard deviation over the seeds, as lines of Markdown."""
    yield from (HEAD, "|---|---|---|")
    for start in STARTS:
        cells = [start]
        for framework in FRAMEWORKS:
            found = [
                100 * row["test_accuracy"] for row in rows if (row["start"], row["framework"]) == (start, framework)
            ]
            cells.append(f"{spread(found)}{' (1 seed)' * (len(found) == 1)}" if found else "not measured")
        yield f"| {' | '.join(cells)} |"


def fill(page: str, rows: Sequence[dict[str, Any]]) -> str:
    """A page with its table written anew."""
    lines = list[str]()
    for inside, part in groupby(page.split("\n"), lambda line: line.startswith("|")):
        found = list(part)
        lines += table(rows) if inside and found[0] == HEAD else found
    return "\n".join(lines)


def main() -> None:
    """Train, and file, what is not filed yet."""
    options = tyro.cli(Options, prog="python -m benchmarks.photos")
    if not Path(os.environ.get(BACKBONE, "")).is_file():
        raise UserError(f"{BACKBONE} must name a file of torchvision's convolutions: see docs/weights.md.")
    pictures = options.runs / "pictures"
    if not pictures.exists():
        write_pictures(pictures)
    for seed in range(SEEDS):
        for start in STARTS:
            for framework in options.frameworks:
                rows = read(options.file)
                if any((row["start"], row["framework"], row["seed"]) == (start, framework, seed) for row in rows):
                    continue
                folder = options.runs / f"{framework}-{start.split()[-1]}-{seed}"
                rows.append(train(framework, seed, start, pictures, folder))
                write_json(options.file, sorted(rows, key=lambda row: (row["start"], row["framework"], row["seed"])))


if __name__ == "__main__":
    guard(main)
