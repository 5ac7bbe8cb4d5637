"""The score of each file and what survived, as JSON and as a page."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmic_ray.work_item import WorkerOutcome

from common.runs.files import write_json, write_text
from stress.mutation.sessions import Session

EQUIVALENT = "parity_tests/equivalent_mutants.toml"
NAMES = {"killed": "killed", "timeout": "killed by its time limit", "equivalent": "equivalent", "survived": "survived"}
NAMES |= {"unreached": "reached by no test", "pending": "not tried yet"}


def equivalents(root: Path) -> dict[tuple[str, str, str], str]:
    """The mutants that no test can kill: (file, line, mutation) -> why."""
    path = root / EQUIVALENT
    listed = tomllib.loads(path.read_text("utf-8")).get("mutant", []) if path.exists() else []
    return {(each["file"], each["line"], each["mutation"]): each["reason"] for each in listed}


def write(rows: Mapping[str, dict[str, Any]], path: Path, root: Path) -> dict[str, Any]:
    """File what became of some files beside what is filed of others, and a page of it; what is then in the file."""
    filed = json.loads(path.read_text("utf-8"))["files"] if path.exists() else {}
    files = {file: each for file, each in filed.items() if (root / file).exists()}
    files |= {file: row for file, row in rows.items() if row["tried"]}
    totals = {name: sum(each[name] for each in files.values()) for name in NAMES}
    whole = {name: sum(each[name] for each in files.values() if not each["pending"]) for name in NAMES}
    result = {"score": share(whole), "totals": totals, "files": dict(sorted(files.items()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    write_text(path.with_suffix(".md"), page(result))
    return result


def score(session: Session, jobs: Sequence[str], known: dict[tuple[str, str, str], str]) -> dict[str, Any]:
    """What became of a file's mutants."""
    results, specs, counts, survivors = session.results(), session.specs(), Counter[str](), []
    for job in jobs:
        outcome, about = results.get(job, ("pending", {}))
        spec = specs[job]
        old, new = spec.operator_args["old"], spec.operator_args["new"]
        if outcome in ("survived", "unreached"):
            if (session.file, old, new) in known:
                outcome = "equivalent"
            else:
                place = {"at": spec.start_pos[0], "line": old, "mutation": new, "outcome": outcome}
                survivors.append(place | {"tests": len(session.tests[job]), "beyond_the_budget": about["left"]})
        counts[outcome] += 1
    left_out = Counter(
        str(result.output) for _, result in session.database.results if result.worker_outcome == WorkerOutcome.SKIPPED
    )
    totals = {name: counts[name] for name in NAMES}
    tried = len(jobs) - counts["pending"]
    order = sorted(survivors, key=lambda each: (each["at"], each["mutation"]))
    return {"score": share(totals), "tried": tried} | totals | {"left_out": dict(left_out), "survivors": order}


def share(totals: dict[str, int]) -> float | None:
    """Of the mutants that a test could kill, the killed; None while some are not tried, as the first are no sample."""
    if totals["pending"]:
        return None
    killed = totals["killed"] + totals["timeout"]
    tried = killed + totals["survived"] + totals["unreached"]
    return round(killed / tried, 4) if tried else None


def page(result: dict[str, Any]) -> str:
    """The scores as a table, and below it what survived."""
    lines = [
        "# Mutants",
        "",
        "Made by `make mutate`. A file has a score when all of its mutants were tried. Only the tests named were used.",
        "",
    ]
    lines += ["| file | score | " + " | ".join(NAMES) + " | tests | commit | date |", "|" + " --- |" * (len(NAMES) + 5)]
    for file, each in result["files"].items():
        cells = (
            file,
            percent(each["score"]),
            *(str(each[name]) for name in NAMES),
            used(each),
            each["commit"],
            each["date"],
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("| all | " + " | ".join((percent(result["score"]), *map(str, result["totals"].values()))) + " | | | |")
    for file, each in result["files"].items():
        if each["survivors"]:
            lines += ["", f"## {file}", "", "```diff"]
            for one in each["survivors"]:
                beyond = f", {one['beyond_the_budget']} beyond the budget" if one["beyond_the_budget"] else ""
                lines.append(f"@@ line {one['at']}, {one['outcome']}, {one['tests']} tests{beyond}")
                lines += [f"-{line}" for line in one["line"].split("\n")] + [
                    f"+{line}" for line in one["mutation"].split("\n")
                ]
            lines.append("```")
    return "\n".join(lines) + "\n"


def used(row: Mapping[str, Any]) -> str:
    """The tests that a file's mutants were tried by."""
    names = row["tests"] if row["tests"] == "all" else ", ".join(Path(each).stem for each in row["tests"])
    return names + ("" if row["long_tests"] else ", the quick ones")


def percent(number: float | None) -> str:
    return "-" if number is None else f"{number:.1%}"


def commit(root: Path) -> str:
    """Of the tree; "+" where files differ from it."""
    git = ["git", "-C", str(root)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return found.stdout.strip() + "+" * bool(changed.strip())
