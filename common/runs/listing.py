"""What the run folders below a folder came to, from their files alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.frameworks import FRAMEWORKS
from common.recipes.spec import RECIPE
from common.runs.choice import best_epochs
from common.runs.folder import RunFolder

DEPTH = 3  # a comparison's runs lie one folder deeper than others
MARKS = ("manifest.json", "metrics.jsonl", "checkpoints")  # what else a run's folder has


@dataclass(frozen=True)
class Summary:
    """One run.

    Attributes:
        path: of its folder.
        framework: as people write it; empty of a run that was killed before it began.
        recipe: its name.
        epochs: finished and evaluated ones.
        planned: epochs of the recipe.
        best: the highest accuracy on `split`, and the epoch that had it; None before the first evaluation.
        split: the validation split where there is one, else the test split.
        seconds: spent in training steps.
        size: in bytes, on the disk.
        started: seconds since 1970.
    """

    path: Path
    framework: str
    recipe: str
    epochs: int
    planned: int
    best: tuple[float, int] | None
    split: str
    seconds: float
    size: int
    started: float


def find_runs(folder: Path) -> Iterator[Path]:
    """The run folders at a folder and below, and those that have lost their recipe.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name the one that the runs are in.")
    level = [folder]
    for _ in range(DEPTH):
        inner = list[Path]()
        for path in level:
            if RunFolder.is_at(path) or sum((path / mark).exists() for mark in MARKS) > 1:
                yield path
            else:
                inner += sorted(child for child in path.iterdir() if child.is_dir())
        level = inner


def summarize(path: Path) -> Summary:
    """What a run came to.

    Raises:
        UserError: its folder is damaged.
    """
    if not RunFolder.is_at(path):
        raise UserError(f"{path} has no {RECIPE}.")
    run = RunFolder(path)
    recipe, rows = run.recipe, run.metrics()
    manifest: Any = run.manifest if run.begun else {}
    if run.begun and (not isinstance(manifest, dict) or manifest.get("framework") not in FRAMEWORKS):
        raise UserError(f"{path / 'manifest.json'} is damaged: it does not say the framework of the run.")
    scored = [row for row in rows if row["split"] != "train"]
    split = "val" if any(row["split"] == "val" for row in scored) else "test"
    return Summary(
        path,
        FRAMEWORKS[manifest["framework"]].title if run.begun else "",
        recipe.name,
        max((row["epoch"] for row in scored), default=0),
        recipe.epochs,
        best_epochs(scored).get(split),
        split,
        sum(row["seconds"] for row in rows if isinstance(row.get("seconds"), int | float)),
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()),
        _started(path, manifest),
    )


def _started(path: Path, manifest: dict[str, Any]) -> float:
    """When a run began; of one that does not say, when its recipe was written."""
    try:
        return datetime.fromisoformat(manifest["started"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return (path / RECIPE).stat().st_mtime
