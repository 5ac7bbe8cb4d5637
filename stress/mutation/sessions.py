"""A file's mutants, the tests of each, and what became of them: Cosmic Ray's database, one for each file."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from stress.mutation import mutations, reach

SOURCES = ("common", "torch_impl", "flax_impl", "parity")
# What each process imports once, before its mutants.
IMPORTED = (
    *("numpy", "scipy", "PIL", "sklearn", "tyro", "cattrs", "torch", "torchvision"),
    *("jax", "flax.linen", "optax", "orbax.checkpoint"),
)


@dataclass(frozen=True)
class Tree:
    """What is mutated: packages of a tree, its tests, and what its processes import first."""

    root: Path
    sources: tuple[str, ...] = SOURCES
    tests: str = "parity_tests/tests"
    imported: tuple[str, ...] = IMPORTED
    grace: float = 60.0  # seconds that a mutant may take beyond ten times what its tests take

    @property
    def store(self) -> Path:
        """The folder of what is kept between runs."""
        return self.root / ".mutate"

    def files(self) -> list[str]:
        """Every file that may be mutated."""
        found = (path for room in self.sources for path in (self.root / room).rglob("*.py"))
        return sorted(str(path.relative_to(self.root)) for path in found)

    def test_files(self) -> list[str]:
        """Every file of tests."""
        return sorted(str(path.relative_to(self.root)) for path in (self.root / self.tests).rglob("test_*.py"))


@dataclass
class Session:
    """The mutants of one file, and what became of them."""

    file: str
    source: str
    database: WorkDB
    tests: dict[str, list[str]] = field(default_factory=dict)  # of each job
    left: dict[str, int] = field(default_factory=dict)  # tests of it beyond the budget
    keys: dict[str, str] = field(default_factory=dict)  # of the tests, to know that they changed

    def specs(self) -> dict[str, MutationSpec]:
        """Every mutation that is tried, by job."""
        left_out = {job for job, result in self.database.results if result.worker_outcome == WorkerOutcome.SKIPPED}
        items = {item.job_id: item.mutations[0] for item in self.database.work_items}
        return {job: spec for job, spec in items.items() if job not in left_out}

    def results(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """What became of each mutant that was tried: an outcome, and more about it."""
        found = {}
        for job, result in self.database.results:
            if result.worker_outcome != WorkerOutcome.SKIPPED:
                about = json.loads(result.output or "{}")
                found[job] = about.pop("outcome"), about
        return found

    def pending(self) -> list[str]:
        """Jobs without a result, and survivors of other tests than would be run now."""
        done = self.results()
        stale = {
            job
            for job, (outcome, about) in done.items()
            if outcome in ("survived", "unreached") and about["key"] != self.keys.get(job)
        }
        return [job for job in self.tests if job not in done or job in stale]

    def finish(self, job: str, outcome: str, **about: Any) -> None:
        """Keep a result."""
        verdict = TestOutcome.SURVIVED if outcome in ("survived", "unreached") else TestOutcome.KILLED
        output = json.dumps({"outcome": outcome, "key": self.keys[job], "left": self.left[job]} | about)
        self.database.set_result(job, WorkResult(WorkerOutcome.NORMAL, output, verdict))


@contextmanager
def opened(tree: Tree, file: str) -> Iterator[Session]:
    """The session of a file as it is; a file that changed gets a new one."""
    source = (tree.root / file).read_text("utf-8")
    version = reach.digest(tree.root / file) + reach.digest(Path(mutations.__file__))[:8]
    folder, stem = tree.store / "sessions", file.replace("/", ".")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.{version}.sqlite"
    if not path.exists():
        for old in folder.glob(f"{stem}.*.sqlite"):
            old.unlink()
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with use_db(str(part), WorkDB.Mode.create) as database:
            fill(database, file, source)
        part.rename(path)
    with use_db(str(path), WorkDB.Mode.open) as database:
        yield Session(file, source, database)


def fill(database: WorkDB, file: str, source: str) -> None:
    """Put every mutation of a file into its session; those that are left out get their reason as the result."""
    found = {f"{each.operator}:{each.occurrence}": each for each in mutations.mutations(source)}
    database.add_work_items(
        WorkItem.single(
            job,
            MutationSpec(
                file, each.operator, each.occurrence, each.start, each.end, {"old": each.old, "new": each.new}
            ),
        )
        for job, each in found.items()
    )
    for job, each in found.items():
        if each.left_out:
            database.set_result(job, WorkResult(WorkerOutcome.SKIPPED, each.left_out))


def select(session: Session, tree: Tree, reached: reach.Reach, budget: float) -> None:
    """Choose each mutant's tests: those that reach its line, the fastest first, within the budget."""
    lines = reached.lines.get(session.file, {})
    module = ast.parse(session.source)
    imported: list[str] | None = None
    for job, spec in session.specs().items():
        statement = lines_run(module, spec)
        if statement:
            tests = ordered(frozenset().union(*(lines.get(line, frozenset()) for line in statement)), reached)
        else:
            imported = by_import(session.file, tree, reached) if imported is None else imported
            tests = imported
        total = np.cumsum([reached.seconds[test] for test in tests])
        taken = tests[: max(int(np.searchsorted(total, budget, "right")), 1)]
        session.tests[job], session.left[job] = taken, len(tests) - len(taken)
        files = sorted({test.split("::")[0] for test in taken})
        session.keys[job] = hash_of([*taken, *(reach.digest(tree.root / file) for file in files)])


def hash_of(words: Iterable[str]) -> str:
    """A short name for many words."""
    return sha256("\n".join(words).encode()).hexdigest()[:16]


def ordered(tests: Iterable[str], reached: reach.Reach) -> list[str]:
    """The fastest first."""
    return sorted(tests, key=lambda test: (reached.seconds[test], test))


def lines_run(module: ast.Module, spec: MutationSpec) -> range:
    """The lines of the innermost statement around a mutation that runs in a call; none: it runs at import."""
    line, inside, found = spec.start_pos[0], False, range(0)
    for node in ast.walk(module):
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside |= node.body[0].lineno <= line <= (node.end_lineno or 0)
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):  # outer ones come first
            last = body[0].lineno if isinstance(body, list) and body[0].lineno > line else (node.end_lineno or 0) + 1
            found = range(node.lineno, last)
    if len(found) > 0 and isinstance(module, ast.Module) and spec.end_pos[0] not in found:
        found = range(line, spec.end_pos[0] + 1)
    return found if inside else range(0)


def by_import(file: str, tree: Tree, reached: reach.Reach) -> list[str]:
    """Tests of what a file computes at import: those that run a line of it or import it, then those of its readers."""
    readers = [other for other in (*tree.files(), *tree.test_files()) if reads(tree.root / other, file)]
    near = {test for tests in reached.lines.get(file, {}).values() for test in tests}
    near |= {test for test in reached.seconds if test.split("::")[0] in readers}
    far = {test for other in readers for tests in reached.lines.get(other, {}).values() for test in tests}
    return [*ordered(near, reached), *ordered(far - near, reached)]


def reads(path: Path, file: str) -> bool:
    """Whether a file imports another by name."""
    room, _, name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".").rpartition(".")
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names) if any(each.name == f"{room}.{name}" for each in names):
                return True
            case ast.ImportFrom(module=module, names=names) if module == f"{room}.{name}".lstrip("."):
                return True
            case ast.ImportFrom(module=module, names=names) if module == room and name in [each.name for each in names]:
                return True
    return False
