"""Gather finished runs into one result file: `python -m benchmarks.collect NAME RUN [RUN ...]`.

Everything is read from the run folders, so a figure in the README can be traced to the run that gave it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common.commands.shell import guard
from common.runs.files import write_json
from common.runs.folder import RunFolder
from parity_tests.results import RESULTS


def summary(run: RunFolder) -> dict[str, Any]:
    """What a run came to: the test accuracy after each epoch, seconds of training, and all that they depend on."""
    recipe, manifest, rows = run.recipe, run.manifest, run.metrics()
    tested = {row["epoch"]: row["accuracy"] for row in rows if row["split"] == "test"}
    trained = [row for row in rows if row["split"] == "train"]
    seconds = sum(row["seconds"] for row in trained)
    count = sum(row["seconds"] * row["images/s"] for row in trained)
    return {
        "recipe": recipe.name,
        "framework": manifest["framework"],
        "seed": recipe.seed,
        "epochs": len(tested),
        "of_epochs": recipe.epochs,
        "test_accuracy": [round(accuracy, 4) for accuracy in tested.values()],
        "train_seconds": round(seconds, 1),
        "images_per_second": round(count / seconds),
        "device": manifest["device"],
        "versions": manifest["versions"],
        "commit": manifest["commit"],
        "batches_sha256": manifest["batches_sha256"]["1"],
    }


def main() -> None:
    """Write benchmarks/results/NAME.json from the run folders named on the command line."""
    name, *folders = sys.argv[1:]
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", [summary(RunFolder.open(Path(folder))) for folder in folders])
    print(RESULTS / f"{name}.json")


if __name__ == "__main__":
    guard(main)
