"""Runs and result files as the pages need them: what is missing or damaged is said, not raised."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from common.errors import UserError
from common.networks import of_run
from common.run import Framework, RunFolder

SPLITS = ("train", "val", "test")
KEYS = ("loss", "accuracy")


def read_run(path: Path | None, framework: Framework) -> dict[str, Any]:
    """A run's curves and final figures.

    Returns:
        `name`, `given`, `problems` (sentences), `curves` by split and key as [step, value] pairs, and `final`.
    """
    found: dict[str, Any] = {"name": str(path or ""), "given": path is not None, "problems": [], "curves": {}}
    found["final"] = {}
    if path is None:
        return found
    problems = found["problems"]
    try:
        run = RunFolder.open(path) if path.exists() else None
        if run is None:
            raise UserError(f"There is no run {path}.")
        run.check_framework(framework)
        found["recipe"] = run.recipe.name
    except (UserError, OSError, KeyError, TypeError) as error:
        problems.append(_sentence(error, f"The run {path} cannot be read"))
        return found
    rows, broken = _rows(run.path / "metrics.jsonl")
    problems += broken
    found["curves"] = _curves(rows)
    found["final"] = _final(rows)
    return found


def _rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that can be read, and a sentence for what cannot."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return [], [f"{path} cannot be read: {error.strerror}."]
    rows, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            complete = isinstance(row["step"], int) and row["split"] in SPLITS
        except (ValueError, KeyError, TypeError):
            complete = False
        if complete:
            rows.append(row)
        else:
            bad.append(number)
    if bad:
        where = f"line {bad[0]}" if len(bad) == 1 else f"{len(bad)} lines, the first of them line {bad[0]},"
        return rows, [f"{path} is damaged or half written: {where} of {len(lines)} cannot be read and is left out."]
    return rows, [] if rows else [f"{path} holds no rows yet."]


def _curves(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[list[float]]]]:
    """By split and key, the finite points in the order of steps; of a step that is there twice, the last."""
    curves: dict[str, dict[str, list[list[float]]]] = {}
    for split in SPLITS:
        for key in KEYS:
            points = {row["step"]: row[key] for row in rows if row["split"] == split and _number(row.get(key))}
            if points:
                curves.setdefault(split, {})[key] = [[step, points[step]] for step in sorted(points)]
    return curves


def _final(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last scores of each split, and the speed."""
    final: dict[str, Any] = {}
    for split in SPLITS:
        for key in KEYS:
            values = [row[key] for row in rows if row["split"] == split and _number(row.get(key))]
            if values:
                final[f"{split} {key}"] = values[-1]
    speeds = [row["images/s"] for row in rows if _number(row.get("images/s"))]
    if speeds:
        final["images per second, median"] = median(speeds)
    return final


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, dict[str, list[list[float]]]]:
    """By split and key, the absolute difference at every step that both runs have."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for split, keys in ours["curves"].items():
        for key, points in keys.items():
            other = dict(map(tuple, theirs["curves"].get(split, {}).get(key, [])))
            pairs = [[step, abs(value - other[step])] for step, value in points if step in other]
            if pairs:
                found.setdefault(split, {})[key] = pairs
    return found


def trained(path: Path | None, framework: Framework) -> tuple[Any, str]:
    """The network of a run for its weights, or None and why there is none."""
    if path is None:
        return None, ""
    try:
        return of_run(path, framework), ""
    except (UserError, OSError, KeyError, TypeError) as error:
        return None, _sentence(error, f"The weights of {path} cannot be read")


def read_result(path: Path) -> tuple[Any, str]:
    """A file of results, or None and a sentence."""
    try:
        return json.loads(path.read_text(encoding="utf-8")), ""
    except OSError as error:
        return None, f"{path.name} cannot be read: {error.strerror}."
    except ValueError:
        return None, f"{path.name} is damaged or half written: it is not valid JSON."


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _sentence(error: Exception, otherwise: str) -> str:
    return str(error) if isinstance(error, UserError) else f"{otherwise}: {type(error).__name__} {error}."
