"""A process that tries mutants on a copy of the tree: a request a line on stdin, an answer a line on stdout.

Importing the frameworks takes longer than most tests. So they, and nothing of this project, are imported once, and each
mutant's tests run in a fork. The parent never computes: no thread of a framework is lost in the fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

OWN = ("common", "torch_impl", "flax_impl", "parity", "parity_tests")  # a mutant must be imported in the fork
SWITCHES = ("-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu")


class First:
    """A plugin: remembers the test that fails first."""

    def __init__(self) -> None:
        self.name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid or "collection"


def attempt(request: dict[str, Any]) -> dict[str, Any]:
    """Write the mutant, run its tests, put the file back.

    Returns:
        "code": pytest's exit code, negative for a signal; None: the time limit passed.
        "by": the test that failed first.
    """
    path, began = Path(request["file"]), time.monotonic()
    original = path.read_text("utf-8")
    try:
        path.write_text(request["text"], "utf-8")
        code, by = _in_fork(request["tests"], request["limit"])
    finally:
        path.write_text(original, "utf-8")
    return {"code": code, "by": by, "seconds": round(time.monotonic() - began, 2)}


def _in_fork(tests: list[str], limit: float) -> tuple[int | None, str]:
    said = Path("mutate-says.json").absolute()
    said.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os._exit(_run(tests, said))
    deadline, code = time.monotonic() + limit, None
    try:
        while code is None and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0 if done else 0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started too
        if code is None:
            os.waitpid(child, 0)
    return code, json.loads(said.read_text()) if said.exists() else ""


def _run(tests: list[str], said: Path) -> int:
    """The tests, in the fork; they may say what they like."""
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        first = First()
        code = int(pytest.main([*SWITCHES, *tests], plugins=[first]))
        said.write_text(json.dumps(first.name))
        return code
    except BaseException:
        return 3


def main() -> None:
    """Answer until stdin ends, as it does when the command that asks is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    pytest.main(["--version"])  # imports its plugins
    for name in sys.argv[1:]:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # what is imported is no garbage
    assert not set(OWN) & set(sys.modules), "a mutant must be imported in the fork"
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
