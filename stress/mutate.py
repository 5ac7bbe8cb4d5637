"""Mutation testing: change one place of the code at a time, and see that a test fails. `make mutate` runs it.

Cosmic Ray makes the changes and keeps them with their results, a database for each file, so that a run goes on where
the last one stopped. Each mutant is tried on a copy of the tree by the tests that reach its line, the fastest first;
the score of each file and the survivors are filed. What `.mutate` holds is made by this command and may be deleted.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from common.commands.shell import guard
from common.errors import UserError
from parity_tests.results import RESULTS, ROOT
from stress.mutation import reach, report
from stress.mutation.sessions import Session, Tree, opened, select
from stress.mutation.trials import run

QUICK, FULL = "not full and not gpu", "not gpu"


@dataclass(frozen=True)
class Options:
    """Which mutants, and by which tests.

    Attributes:
        files: to mutate, below the root (default: all).
        sample: that many mutants drawn at random, instead of all.
        seed: of the draw.
        processes: that try mutants, each on a copy of the tree.
        tests: test files that may be used (default: all).
        full: by the long tests too.
        budget: seconds of their own time that the tests of one mutant may take; what is beyond is left out and said.
        seconds: after which no mutant is begun; the next run goes on (default: none).
        out: folder for mutation.json and mutation.md.
        root: of the tree.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    sample: int = 0
    seed: int = 0
    processes: int = os.cpu_count() or 1
    tests: tuple[str, ...] = ()
    full: bool = False
    budget: float = 120
    seconds: float = float("inf")
    out: Path = RESULTS
    root: Path = ROOT


def mutate(options: Options, tree: Tree) -> dict[str, Any]:
    """Try mutants and file the result.

    Returns:
        What mutation.json holds.

    Raises:
        UserError: there is no such file.
    """
    chosen = list(options.files) or tree.files()
    if unknown := sorted(set(chosen) - set(tree.files())):
        raise UserError(f"{unknown[0]} is not among the files that are mutated: *.py in {', '.join(tree.sources)}.")
    known, deadline = report.equivalents(tree.root), time.monotonic() + options.seconds
    test_files = list(options.tests) or tree.test_files()
    with ExitStack() as stack:
        stack.enter_context(alone(tree.store))
        reached = measured(options, tree, test_files)
        sessions = [stack.enter_context(opened(tree, file)) for file in chosen]
        for session in sessions:
            select(session, tree, reached, options.budget)
        picked = draw(sessions, options)
        run(picked, tree, reached, options.processes, deadline)
        about: dict[str, Any] = {"commit": report.commit(tree.root), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        about |= {"tests": "all" if test_files == tree.test_files() else test_files, "long_tests": options.full}
        rows = {file: report.score(session, jobs, known) | about for file, (session, jobs) in picked.items()}
    path = options.out / ("mutation-sample.json" if options.sample else "mutation.json")
    if options.sample:
        path.unlink(missing_ok=True)  # two samples do not add up
    return report.write(rows, path, tree.root)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the only process that works in a folder.

    Raises:
        UserError: another does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another process mutates with {folder}: wait until it ends, or end it.") from None
        yield


def measured(options: Options, tree: Tree, test_files: list[str]) -> reach.Reach:
    """What the tests reach, measured where it is not known, in several processes."""
    store, marks = tree.store / ("reach-full" if options.full else "reach"), FULL if options.full else QUICK
    with ThreadPoolExecutor(options.processes) as pool:
        jobs = {pool.submit(reach.measure, tree.root, file, tree.sources, marks, store): file for file in test_files}
        for number, job in enumerate(as_completed(jobs), 1):
            print(f"reach: {number} of {len(jobs)} test files, {job.result() or jobs[job]}", flush=True)
    return reach.load(tree.root, test_files, store)


def draw(sessions: Sequence[Session], options: Options) -> dict[str, tuple[Session, list[str]]]:
    """The jobs of each file: all, or a sample of them."""
    every = [(session, job) for session in sessions for job in session.tests]
    if options.sample:
        places = np.random.default_rng(options.seed).permutation(len(every))[: options.sample]
        every = [every[place] for place in sorted(places.tolist())]
    return {
        session.file: (session, jobs)
        for session in sessions
        if (jobs := [job for owner, job in every if owner is session])
    }


def main() -> None:
    """Try mutants, print the scores and file them; exit 1 if one survives that is not known to be equivalent."""
    options = tyro.cli(Options, prog="python -m stress.mutate")
    result = mutate(options, Tree(options.root))
    chosen = {file: each for file, each in result["files"].items() if file in (options.files or result["files"])}
    for file, each in chosen.items():
        print(f"{report.percent(each['score']):>7} {file}, {len(each['survivors'])} survived")
    print(f"{report.percent(result['score']):>7} of all that are filed: {result['totals']}")
    sys.exit(any(each["survivors"] for each in chosen.values()))


if __name__ == "__main__":
    guard(main, interrupted="; the same command goes on")
