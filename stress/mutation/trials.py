"""Mutants are tried in several processes, each on a copy of the tree."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.errors import UserError
from parity_tests.results import ROOT
from stress.mutation import mutations
from stress.mutation.reach import Reach
from stress.mutation.sessions import Session, Tree

NOT_COPIED = (
    ".git",
    ".venv*",
    ".mutate",
    ".bench",
    ".*_cache",
    ".hypothesis",
    ".gpu-pack*",
    "runs",
    "site",
    "predictions",
)
OWN_TIMES = 10  # a mutant may take so many times what its tests take, and the tree's grace more
SOUND = 300.0  # seconds more than ten times their own that tests may take without a mutant
FLAKY = 5  # tests of a file that may fail in the copy without a mutant


class Worker:
    """A process with a copy of the tree."""

    def __init__(self, tree: Tree, copy: Path) -> None:
        at_the_root, anywhere = shutil.ignore_patterns(*NOT_COPIED), shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(
            tree.root,
            copy,
            ignore=lambda folder, names: (
                anywhere(folder, names) | (at_the_root(folder, names) if Path(folder) == tree.root else set())
            ),
        )
        own = {
            "PYTHONPATH": os.pathsep.join((str(copy), str(ROOT))),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # no test needs one; they take longer to import than most tests
            "PYTHONDONTWRITEBYTECODE": "1",  # a mutant of the same second and size must be read
            "JAX_COMPILATION_CACHE_DIR": str(tree.store / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "OMP_WAIT_POLICY": "passive",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        command = [sys.executable, "-m", "stress.mutation.worker", *tree.imported]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, cwd=copy, env=os.environ | own, text=True, **pipes)

    def ask(self, file: str, text: str, tests: list[str], limit: float) -> dict[str, Any]:
        """Try a text of a file.

        Raises:
            UserError: the process died.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"file": file, "text": text, "tests": tests, "limit": limit}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not (line := self.process.stdout.readline()):
            raise UserError("A process that tries mutants died; run the command again, and it goes on.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end."""
        with self.process:  # closes its pipes and waits
            self.process.terminate()


@dataclass
class Crew:
    """Workers, those that are idle, the time each test takes, and when no mutant is begun any more."""

    workers: list[Worker]
    idle: queue.Queue[Worker]
    seconds: Mapping[str, float]
    deadline: float
    grace: float

    def stop(self) -> None:
        """End every worker: no mutant is begun any more."""
        self.deadline = 0
        for worker in self.workers:
            worker.process.terminate()

    def ask(self, file: str, text: str, tests: Sequence[str], grace: float = 0) -> dict[str, Any] | None:
        """Try a text of a file when a worker is idle; None: it is too late."""
        worker = self.idle.get()
        try:
            if time.monotonic() > self.deadline:
                return None
            own = sum(map(self.seconds.__getitem__, tests))
            return worker.ask(file, text, list(tests), OWN_TIMES * own + (grace or self.grace))
        finally:
            self.idle.put(worker)


@contextmanager
def crew(tree: Tree, processes: int, reached: Reach, deadline: float) -> Iterator[Crew]:
    """So many workers, each with a copy of the tree."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        idle: queue.Queue[Worker] = queue.Queue()
        for number in range(processes):
            worker = Worker(tree, Path(folder) / str(number))
            stack.callback(worker.close)
            idle.put(worker)
        yield Crew(list(idle.queue), idle, reached.seconds, deadline, tree.grace)


def run(
    work: Mapping[str, tuple[Session, Sequence[str]]], tree: Tree, reached: Reach, processes: int, deadline: float
) -> None:
    """Try what is pending, file by file; only this process writes results."""
    pending = [(session, [job for job in session.pending() if job in set(jobs)]) for session, jobs in work.values()]
    if any(jobs for _, jobs in pending):
        with crew(tree, processes, reached, deadline) as workers, ThreadPoolExecutor(processes) as pool:
            for session, jobs in pending:
                try:
                    broken = unsound(session, jobs, workers)
                    try_all(session, jobs, broken, workers, pool)
                except BaseException:
                    workers.stop()
                    raise
                left_out = f"; without {sorted(broken)}, which fail without a mutant" if broken else ""
                counts = dict(Counter(outcome for outcome, _ in session.results().values()))
                print(f"{session.file}: {counts}, {len(session.pending())} to come{left_out}", flush=True)


def unsound(session: Session, jobs: Sequence[str], workers: Crew) -> set[str]:
    """Tests that fail in the copy without a mutant: they prove nothing.

    Raises:
        UserError: there are many, or they cannot run at all.
    """
    broken: set[str] = set()
    while every := sorted(
        {test for job in jobs for test in session.tests[job]} - broken, key=workers.seconds.__getitem__
    ):
        sound = workers.ask(session.file, session.source, every, SOUND)
        if sound is None or sound["code"] == 0:
            break
        broken.add(sound["by"])
        if len(broken) > FLAKY or sound["by"] not in every:
            how = f"exit code {sound['code']}, {', '.join(sorted(broken))}"
            raise UserError(f"Without a mutant, tests of {session.file} fail in a copy of the tree: {how}.")
    return broken


def try_all(session: Session, jobs: Sequence[str], broken: set[str], workers: Crew, pool: ThreadPoolExecutor) -> None:
    """Try a file's mutants and keep each result as it comes."""
    specs, asked = session.specs(), dict[Future[dict[str, Any] | None], str]()
    for job in jobs:
        spec, tests = specs[job], [test for test in session.tests[job] if test not in broken]
        if tests:
            text = mutations.mutated(session.source, spec.operator_name, spec.occurrence)
            asked[pool.submit(workers.ask, session.file, text, tests)] = job
        else:
            session.finish(job, "unreached")
    for future in as_completed(asked):
        if answer := future.result():
            outcome = {0: "survived", None: "timeout"}.get(answer["code"], "killed")
            session.finish(asked[future], outcome, by=answer["by"], seconds=answer["seconds"])
