"""Plants a one-line fault in a module as it is imported, and runs tests with it: a process that `shared_faults` starts.

No file is edited: the module's text is changed on its way to the compiler, so the fault is in every constant, default
and decorator that is computed at import, too. Each fault gets a process of its own, forked from one that has imported
the libraries, which take longer than the tests, and nothing of the project.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import NoReturn
from xml.etree import ElementTree

SECONDS = 300  # that a job may take


@dataclass(frozen=True)
class Job:
    """Tests to be run with a fault planted.

    Attributes:
        tests: as pytest names them, from the project's root.
        module: that has the fault; none: there is no fault.
        old, new: the text that is changed, which stands there once, and what it becomes.
    """

    tests: tuple[str, ...]
    module: str = ""
    old: str = ""
    new: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a job: how many tests ran, the messages of those that failed, and what kept them from running."""

    count: int
    messages: tuple[str, ...]
    broken: str = ""


def with_fault(text: str, old: str, new: str) -> str:
    """A module's text with one line changed.

    Raises:
        ValueError: there is no such place in it, or there are several.
    """
    if text.count(old) != 1:
        raise ValueError(f"{old!r} stands in the module {text.count(old)} times, not once")
    return text.replace(old, new)


class _Loader(SourceFileLoader):
    """Compiles the text of a module with a fault, whatever is cached of it."""

    def __init__(self, job: Job, path: str) -> None:
        super().__init__(job.module, path)
        self.job = job

    def get_code(self, fullname: str) -> CodeType:
        text = with_fault(Path(self.path).read_text("utf-8"), self.job.old, self.job.new)
        return compile(text, self.path, "exec", dont_inherit=True)


class _Finder:
    """Finds the module with the fault, before any other finder does."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.job.module:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.origin:
            spec.loader = _Loader(self.job, spec.origin)
        return spec


def _run(job: Job, report: Path, log: Path) -> NoReturn:
    """In a process of its own: plant the fault, run the tests, and end."""
    import pytest

    code = 99
    try:
        signal.alarm(SECONDS)
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if job.module:
            assert job.module not in sys.modules, "the module is imported already"
            sys.meta_path.insert(0, _Finder(job))
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-m", "", f"--junitxml={report}", *job.tests])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def _outcome(job: Job, folder: Path) -> Outcome:
    report, log = folder / "report.xml", folder / "log"
    child = os.fork()
    if not child:
        _run(job, report, log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):  # all passed, or some failed
        return Outcome(0, (), f"it ended with {code}: {log.read_text('utf-8')[-2000:]}")
    cases = list(ElementTree.parse(report).iter("testcase"))
    failures = [failure for case in cases for failure in case.findall("failure")]
    errors = [error.attrib["message"] for case in cases for error in case.findall("error")]
    messages = tuple(failure.attrib["message"] for failure in failures)
    return Outcome(len(cases), messages, "; ".join(errors))


def main() -> None:
    """Read jobs from standard input, a JSON object a line, and write an outcome for each as it is done.

    The arguments are libraries to be imported once for all.
    """
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(_outcome(Job(**json.loads(line)), Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
