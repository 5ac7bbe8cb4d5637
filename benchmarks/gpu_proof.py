"""A plugin of pytest's that files each test's outcome as it goes and spares those that have passed before.

`PROOF_LOG=FILE python -m pytest -p benchmarks.gpu_proof ...`: a line of JSON for each test, from all processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_run import ALL, proved
from common.runs.files import write_json

TOLD = 20_000  # characters of what pytest would print at its end, which one that is cut off does not come to
LOG = Path(os.environ["PROOF_LOG"])


class Log:
    """Writes the file; in the process that hears of all tests."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[str, Any]] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """Each process has found the same tests: those that are still to be run."""
        write_json(LOG.with_name(ALL), sorted({*ids, *passed()}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, call and end of a test each report; a process that died reports once, for none of them."""
        row = self.seen.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed", "seconds": 0.0})
        row["seconds"] = round(row["seconds"] + report.duration, 2)
        if report.outcome != "passed":
            row |= {"outcome": report.outcome, "why": _why(report), "told": report.longreprtext[-TOLD:]}
        if report.when not in ("setup", "call"):
            with LOG.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.seen.pop(report.nodeid)


def _why(report: pytest.TestReport) -> str:
    """One line of it."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return " ".join(text.split())[:300]


def pytest_configure(config: pytest.Config) -> None:
    """Every process reads which tests have passed before the first of them runs one."""
    if not hasattr(config, "workerinput"):
        LOG.parent.mkdir(parents=True, exist_ok=True)
        os.environ["PROOF_PASSED"] = json.dumps(sorted(passed()))
        config.pluginmanager.register(Log())


def passed() -> set[str]:
    """The tests whose last outcome is so."""
    return {test for test, row in proved(LOG.parents[1]).items() if row["outcome"] == "passed"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Spare those."""
    before = set(json.loads(os.environ["PROOF_PASSED"]))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
    items[:] = [item for item in items if item.nodeid not in before]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing left to run is no failure where tests have passed before."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and json.loads(os.environ["PROOF_PASSED"]):
        session.exitstatus = pytest.ExitCode.OK
