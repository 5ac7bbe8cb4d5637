"""Which tests reach which line, and how long each takes: measured with coverage's contexts, one test file at a time.

As a plugin of pytest (`-p stress.mutation.reach`) it names the running test to coverage; a test's own processes are
measured too, since coverage's settings take the test's name from pytest's variable. What a test file has measured holds
until it, or a file that it reached, changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

PASSED_TO = "MUTATE_PASSED"  # the variable that names the file for passed tests' durations
SETTINGS = """
[run]
branch = false
parallel = true
context = ${PYTEST_CURRENT_TEST-}
patch = subprocess
data_file = %(folder)s/data
source = %(sources)s
disable_warnings = no-data-collected, module-not-imported, module-not-measured, couldnt-parse
"""


@dataclass(frozen=True)
class Reach:
    """What the tests reach.

    Attributes:
        lines: of each file, below the root: line -> tests that reach it while they run.
        seconds: of each test that passed: its own time.
    """

    lines: Mapping[str, Mapping[int, frozenset[str]]]
    seconds: Mapping[str, float]


def measure(root: Path, test_file: str, sources: tuple[str, ...], marks: str, store: Path) -> str:
    """Run a test file under coverage, unless what it measured last still holds; what went wrong, or ""."""
    path = store / (test_file.replace("/", ".") + ".json")
    if path.exists() and _holds(root, json.loads(path.read_text()), marks):
        return ""
    with TemporaryDirectory() as folder:
        settings = Path(folder) / "coveragerc"
        settings.write_text(SETTINGS % {"folder": folder, "sources": ",".join(str(root / each) for each in sources)})
        passed = Path(folder) / "passed.json"
        variables = os.environ | {PASSED_TO: str(passed), "PYTHONPATH": _with_path(root)}
        command = ["-m", "coverage", "run", f"--rcfile={settings}", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-p", "stress.mutation.reach", "-m", marks, test_file]
        done = subprocess.run([sys.executable, *command], cwd=root, env=variables, capture_output=True, text=True)
        if not passed.exists():
            return f"{test_file}: {(done.stdout + done.stderr).strip()[-300:]}"
        subprocess.run(
            [sys.executable, "-m", "coverage", "combine", "-q", f"--rcfile={settings}"], cwd=root, check=False
        )
        seconds = json.loads(passed.read_text())
        lines = _read(root, Path(folder) / "data", set(seconds))
    files = sorted({test_file, *lines})
    found = {"marks": marks, "seconds": seconds, "files": {file: digest(root / file) for file in files}, "lines": lines}
    store.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return ""


def load(root: Path, test_files: list[str], store: Path) -> Reach:
    """What these test files have measured."""
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    seconds: dict[str, float] = {}
    for test_file in test_files:
        path = store / (test_file.replace("/", ".") + ".json")
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        seconds |= found["seconds"]
        for file, reached in found["lines"].items():
            for line, tests in reached.items():
                lines[file][int(line)].update(tests)
    frozen = {file: {line: frozenset(tests) for line, tests in each.items()} for file, each in lines.items()}
    return Reach(frozen, seconds)


def digest(path: Path) -> str:
    """Of a file's bytes; "" where there is none."""
    return sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def _holds(root: Path, found: dict[str, Any], marks: str) -> bool:
    return found["marks"] == marks and all(digest(root / file) == sum_ for file, sum_ in found["files"].items())


def _with_path(root: Path) -> str:
    """The root first, then the folder of this package, which may be another's."""
    return os.pathsep.join((str(root), str(Path(__file__).parents[2])))


def _read(root: Path, data: Path, passed: set[str]) -> dict[str, dict[int, list[str]]]:
    from coverage import CoverageData

    read, lines = CoverageData(str(data)), {}
    read.read()
    for file in read.measured_files():
        contexts = {line: _tests(names, passed) for line, names in read.contexts_by_lineno(file).items()}
        if Path(file).is_relative_to(root):
            lines[str(Path(file).relative_to(root))] = {line: tests for line, tests in contexts.items() if tests}
    return lines


def _tests(contexts: list[str], passed: set[str]) -> list[str]:
    """Tests by their contexts: a process of a test's own says "test (call)", and a fixture's "test (setup)"."""
    names = {part.rsplit(" (", 1)[0] if part.endswith(")") else part for each in contexts for part in each.split("|")}
    return sorted(names & passed)


# As a plugin.

_passed: dict[str, float] = {}
_spent: dict[str, float] = defaultdict(float)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Name the test to coverage while it, and the fixtures made for it, run."""
    from coverage import Coverage

    running = Coverage.current()
    if running is not None:
        running.switch_context(item.nodeid)
    yield
    if running is not None:
        running.switch_context("")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what passed, and how long it took with its fixtures."""
    _spent[report.nodeid] += report.duration
    if report.when == "call" and report.passed:
        _passed[report.nodeid] = 0.0


def pytest_sessionfinish() -> None:
    """Write it where the caller reads it."""
    if os.environ.get(PASSED_TO):
        Path(os.environ[PASSED_TO]).write_text(json.dumps({test: round(_spent[test], 3) for test in _passed}))
