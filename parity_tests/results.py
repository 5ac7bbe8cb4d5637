"""Where measurements go: NAME.json in the folder that PARITY_RESULTS names, as `make test-full` does; else nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.runs.files import write_json
from common.system import commit

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"  # where this project's commands file what they find
Record = Callable[[str, dict[str, Any]], None]


def file(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, and the commit of the code that it is of."""
    write_json(path, {"commit": None} | result | {"commit": commit()})


def record(name: str, result: dict[str, Any]) -> None:
    """Write a result, if the environment says where."""
    if folder := os.environ.get("PARITY_RESULTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        file(Path(folder) / f"{name}.json", result)
