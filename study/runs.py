"""Runs and result files as the pages need them: what is missing or damaged is said, not raised."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any

from common.errors import UserError
from common.frameworks import Framework
from common.runs.folder import RunFolder
from common.weights.network import result_at
from parity_tests.noise import FLOOR

SPLITS = ("train", "val", "test")
KEYS = {"loss": "loss", "accuracy": "accuracy", "lr": "learning rate"}
EPOCH_LOSS = "epoch loss"  # of training alone: a point at each epoch's last step, over all of its examples

# What a run came to: the key of a figure, what it is, and how the pages write it.
FIGURES = {
    "train loss": ("training loss, last epoch", ""),
    "test loss": ("test loss, last epoch", ""),
    "test accuracy": ("test accuracy, last epoch", "percent"),
    "val accuracy": ("validation accuracy, last epoch", "percent"),
    "seconds": ("time in training steps", "seconds"),
    "speed": ("images per second, median", "rate"),
    "memory": ("peak memory", "memory"),
}

ALLOWED = 4  # times the self-noise: two runs, each with rounding of its own, and noise is measured on a run or two

SEEN = 0.02  # of a loss: what an eye takes for a difference of two curves

Points = list[tuple[float, float]]  # step, value
Curves = dict[str, dict[str, Points]]


def read_run(path: Path | None, framework: Framework) -> dict[str, Any]:
    """A run's curves, final figures and confusion matrix.

    Returns:
        `name`, `given`, `problems` (sentences), `curves` by split and key as [step, value] pairs, `final` by the keys
        of `FIGURES`, and `confusion` (None, or what `read_confusion` returns).
    """
    found: dict[str, Any] = {"name": str(path or ""), "given": path is not None, "problems": []}
    found |= {"curves": {}, "final": {}, "confusion": None}
    if path is None:
        return found
    problems = found["problems"]
    try:
        run = RunFolder.open(path) if path.exists() else None
        if run is None:
            raise UserError(f"There is no run {path}.")
        run.check_framework(framework)
        about = {"recipe": run.recipe.name, "epochs": run.recipe.epochs, "device": run.manifest["device"]}
        memory = run.manifest.get("peak_memory_bytes")  # of a finished run
    except (UserError, OSError, KeyError, TypeError) as error:
        problems.append(_sentence(error, f"The run {path} cannot be read"))
        return found
    rows, broken = _rows(run.path / "metrics.jsonl")
    problems += broken
    found |= about
    found["curves"] = _curves(rows)
    found["final"] = _final(rows) | ({"memory": memory} if _number(memory) else {})
    found["confusion"], problem = read_confusion(run.path / "evaluation")
    problems += [problem] if problem else []
    return found


def listed(given: Path | None) -> list[Path]:
    """The run folders that one word of the command names: a path, or several with spaces between."""
    if given is None or given.exists():
        return [given] if given else []
    return [Path(word) for word in str(given).split()]


def remember(out: Path, given: Mapping[str, Sequence[Path]]) -> dict[str, list[str]]:
    """The paths of runs and noise as a site keeps them for its next build: as seen from its folder."""
    return {key: [os.path.relpath(path, out) for path in paths] for key, paths in given.items()}


def remembered(out: Path) -> dict[str, list[Path]]:
    """What `remember` has kept in a site's data.json, as seen from here; nothing where there is no such site."""
    found, problem = read_result(out / "data.json")
    kept = found.get("given", {}) if not problem and isinstance(found, dict) else {}
    if not isinstance(kept, dict) or not all(isinstance(paths, list) for paths in kept.values()):
        return {}
    return {key: [Path(os.path.relpath(out / str(path))) for path in paths] for key, paths in kept.items()}


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


def _curves(rows: list[dict[str, Any]]) -> Curves:
    """By split and key, the finite points in the order of steps; of a step that is there twice, the last."""
    curves: Curves = {}
    for split in SPLITS:
        for key in KEYS:
            points = {row["step"]: row[key] for row in rows if row["split"] == split and _number(row.get(key))}
            if points:
                curves.setdefault(split, {})[key] = [(step, points[step]) for step in sorted(points)]
    if losses := _epoch_losses(rows):
        curves["train"][EPOCH_LOSS] = losses
    return curves


def _epoch_losses(rows: list[dict[str, Any]]) -> Points:
    """The mean training loss of each epoch, each example counted once, at the epoch's last step."""
    trained = {row["step"]: row for row in rows if row["split"] == "train" and _number(row.get("loss"))}
    points = []
    for _, group in groupby((trained[step] for step in sorted(trained)), key=lambda row: row.get("epoch")):
        epoch = list(group)
        points.append((epoch[-1]["step"], fmean([row["loss"] for row in epoch], [_examples(row) for row in epoch])))
    return points


def _final(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The figures of `FIGURES` that the rows give."""
    final: dict[str, float] = {}
    trained = [row for row in rows if row["split"] == "train"]
    if losses := _epoch_losses(rows):
        final["train loss"] = losses[-1][1]
    for figure in ("test loss", "test accuracy", "val accuracy"):
        split, key = figure.split()
        values = [row[key] for row in rows if row["split"] == split and _number(row.get(key))]
        if values:
            final[figure] = values[-1]
    for figure, key, of_all in (("seconds", "seconds", sum), ("speed", "images/s", median)):
        values = [row[key] for row in trained if _number(row.get(key))]
        if values:
            final[figure] = of_all(values)
    return final


def _examples(row: Mapping[str, Any]) -> int:
    """How many examples a row of training is the mean of; 1 where it does not say."""
    rate, seconds = (row.get(key) for key in ("images/s", "seconds"))
    return max(round(float(rate or 0) * float(seconds or 0)), 1) if _number(rate) and _number(seconds) else 1


def verdict(ours: Curves, theirs: Curves, noise: Curves, precision: str) -> str:
    """Whether the losses of two runs agree, in a sentence: measured by what rounding alone drives them apart by.

    Args:
        ours, theirs: of both runs.
        noise: as `envelope`.
        precision: that they were computed in.
    """
    ratios = [
        (value / dict(noise[split]["loss"])[step], step, split)
        for split, keys in differences(ours, theirs).items()
        for step, value in keys.get("loss", [])
        if dict(noise.get(split, {}).get("loss", [])).get(step)
    ]
    if not ratios:
        return "no verdict: the self-noise was not measured"
    worst, _, _ = max(ratios)
    if worst <= ALLOWED:
        return (
            f"agree: the losses part by at most {worst:.2g} times {precision}'s own noise; {ALLOWED} times is allowed"
        )
    first, step, split = min((each for each in ratios if each[0] > ALLOWED), key=lambda each: each[1])
    return (
        f"part: at step {step} the {split} losses differ by {first:.2g} times {precision}'s own noise, where {ALLOWED} "
        f"times is allowed, and by at most {worst:.2g} times in all"
    )


def summary(ours: Mapping[str, Any], theirs: Mapping[str, Any], noise: Curves) -> list[dict[str, Any]]:
    """What both runs came to: a row for each figure that one of them has, how far they are apart, and the noise."""
    rows = []
    for key, (title, kind) in FIGURES.items():
        left, right = ours["final"].get(key), theirs["final"].get(key)
        if left is None and right is None:
            continue
        apart = None if left is None or right is None else abs(left - right)
        split, _, name = key.partition(" ")
        width = noise.get(split, {}).get(EPOCH_LOSS if split == "train" else name, [])
        row = {"title": title, "kind": kind, "PyTorch": left, "Flax": right, "difference": apart}
        rows.append(row | {"noise": width[-1][1] if width else None})
    return rows


def differences(ours: Curves, theirs: Curves) -> Curves:
    """By split and key, the absolute difference at every step that both have."""
    found: Curves = {}
    for split, keys in ours.items():
        for key, points in keys.items():
            other = dict(theirs.get(split, {}).get(key, []))
            pairs = [(step, abs(value - other[step])) for step, value in points if step in other]
            if pairs:
                found.setdefault(split, {})[key] = pairs
    return found


def parting(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Where two curves part: `parted`, the first step with a difference that is seen, or None; `largest`, of any."""
    shares = [abs(one - other) / max(abs(one), abs(other), 1e-300) for one, other in zip(ours, theirs, strict=True)]
    return {"parted": next((step for step, share in enumerate(shares) if share > SEEN), None), "largest": max(shares)}


def envelope(base: Curves, moved: Sequence[Curves], eps: float) -> Curves:
    """By split and key, the largest difference of any moved run from the base run, up to each step.

    Args:
        base: the run as it is.
        moved: runs whose weights were moved by one unit in the last place.
        eps: that unit, for the numbers from 1 to 2; a loss is given at least `noise.FLOOR` of its own.
    """
    found: Curves = {}
    for other in moved:
        for split, keys in differences(base, other).items():
            for key, points in keys.items():
                highest = accumulate((value for _, value in points), max)
                floor = FLOOR * eps if key in ("loss", EPOCH_LOSS) else 0.0
                least = {step: floor * abs(value) for step, value in base[split][key]}
                before = least | dict(found.get(split, {}).get(key, []))
                steps = [step for step, _ in points]
                widths = [(step, max(high, before[step])) for step, high in zip(steps, highest, strict=True)]
                found.setdefault(split, {})[key] = widths
    return found


def read_noise(path: Path | None) -> dict[str, Any]:
    """The self-noise that a comparison has measured: `runs`, how many, `curves`, as `envelope`, and `problem`."""
    nothing: dict[str, Any] = {"given": path is not None, "problem": "", "runs": 0, "curves": {}}
    if path is None:
        return nothing
    found, problem = read_result(path)
    if not problem and not (isinstance(found, dict) and isinstance(found.get("runs"), int) and _are_curves(found)):
        problem = f"{path} holds no envelope."
    return nothing | ({"problem": problem} if problem else {key: found[key] for key in ("runs", "curves")})


def _are_curves(found: Mapping[str, Any]) -> bool:
    try:
        return all(
            split in SPLITS and _number(step) and _number(value)
            for split, keys in found["curves"].items()
            for points in keys.values()
            for step, value in points
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def read_confusion(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest confusion matrix of the test split that `evaluate --confusion` left, and what is wrong with it.

    Returns:
        `of` (the scored weights), `names` and `counts` (examples by true class, then by guessed class); or None.
    """
    files = sorted(folder.glob("test-*-confusion.csv"), key=lambda file: file.stat().st_mtime)
    if not files:
        return None, ""
    try:
        with files[-1].open(encoding="utf-8", newline="") as file:
            (_, *names), *rows = csv.reader(file)
        counts = [[int(count) for count in row[1:]] for row in rows]
        if [len(row) for row in counts] != [len(names)] * len(names):
            raise ValueError
    except (OSError, ValueError, csv.Error):
        return None, f"{files[-1]} is damaged or half written: it is no confusion matrix."
    of = files[-1].name.removeprefix("test-").removesuffix("-confusion.csv")
    return {"of": of, "names": names, "counts": counts}, ""


def trained(path: Path | None, framework: Framework) -> tuple[Any, str]:
    """The network of a run for its weights, or None and why there is none."""
    if path is None:
        return None, ""
    if not path.exists():
        return None, f"There is no run {path}."  # as `read_run` says it, so that it is said once
    try:
        if RunFolder.is_at(path):
            RunFolder(path).check_framework(framework)
        return result_at(path, framework, "evaluate"), ""
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
