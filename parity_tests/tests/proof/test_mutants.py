"""Every planted fault is caught where it is, and the same pair without a fault passes."""

from __future__ import annotations

import ast
import json
import py_compile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from parity_tests import mutants, planted, shared_faults
from parity_tests.mutants import MUTANTS, Mutant, caught, run, train
from parity_tests.results import ROOT
from parity_tests.shared_faults import FAULTS, SharedFault
from parity_tests.subjects import subjects

# One for each row of the table of causes runs in CI, the others in `make test-full` and `make mutants`.
_FIRST_OF_ROW = {mutant.row: mutant.name for mutant in reversed(MUTANTS)}.values()


def _marked(mutant: Mutant) -> object:
    marks = () if mutant.name in _FIRST_OF_ROW else pytest.mark.full
    return pytest.param(mutant, id=mutant.name, marks=marks)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mutant", [_marked(mutant) for mutant in MUTANTS])
def test_caught(mutant: Mutant) -> None:
    difference = run(mutant, subjects()[mutant.subject])
    assert caught(mutant, difference), (
        f"expected step {mutant.step}, {mutant.phase}, {mutant.tensor}; found {difference}"
    )


# Without a fault; those of the others pass in `test_techniques.py` and `test_optim.py` in CI, and here in full.
QUICK = ("plain", "batch norm", "lrn", "odd", "ties")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.full) for n in subjects()])
def test_no_false_alarm(name: str) -> None:
    train(subjects()[name])


def test_names_are_unique() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 25
    names = [mutant.name for mutant in MUTANTS] + [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)


# What both frameworks share. The libraries take seconds to import: all in `make test-full`, none in CI.


def found(body: Sequence[ast.stmt], name: str) -> ast.ClassDef | ast.FunctionDef:
    """The class or function of this name."""
    [definition] = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
    return definition


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
def test_a_shared_fault_is_one_line_and_its_test_is_there(fault: SharedFault) -> None:
    before = fault.file.read_text("utf-8")
    after = planted.with_fault(before, fault.old, fault.new)
    assert sum(a != b for a, b in zip(before.split("\n"), after.split("\n"), strict=True)) == 1
    compile(after, fault.file, "exec")
    path, *names = fault.test.partition("[")[0].split("::")
    body: Sequence[ast.stmt] = ast.parse((ROOT / shared_faults.TESTS / path).read_text("utf-8")).body
    for name in names:
        body = found(body, name).body


@pytest.mark.full
def test_shared_faults_are_named() -> None:
    """And their tests pass without one."""
    survivors = {
        fault.name: message for fault, message in shared_faults.run(FAULTS) if not shared_faults.caught(fault, message)
    }
    assert survivors == {}


def test_a_fault_is_planted_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Where its module is compiled and cached already, too; a fault that cannot be planted is no survivor."""
    (tmp_path / "toy.py").write_text(
        "TWO = 2\n\n\ndef double(x: int, by: int = TWO) -> int:\n    return x * by\n", "utf-8"
    )
    (tmp_path / "test_toy.py").write_text("import toy\n\n\ndef test_it():\n    assert toy.double(3) == 6\n", "utf-8")
    py_compile.compile(str(tmp_path / "toy.py"))
    tests = ("test_toy.py::test_it",)
    sound, fault = planted.Job(tests), planted.Job(tests, "toy", "TWO = 2", "TWO = 3")
    harmless, absent = replace(fault, old="x * by", new="by * x"), replace(fault, old="TWO = 4")
    jobs = [sound, fault, harmless, absent, sound]
    first, found, survived, broken, last = shared_faults.run_jobs(jobs, tmp_path, ["pytest"])
    assert first == last == survived == planted.Outcome(1, ())
    assert (found.count, len(found.messages), found.broken) == (1, 1, "")
    assert found.messages[0].startswith("assert 9 == 6")
    assert "'TWO = 4' stands in the module 0 times, not once" in broken.broken


def test_there_are_enough_shared_faults_of_every_kind() -> None:
    assert len(FAULTS) >= 25
    kinds = {"constant", "recipe", "default", "architecture", "dataset", "schedule", "draw", "split", "scoring"}
    assert {fault.row for fault in FAULTS} == kinds


def test_a_part_that_is_not_run_stays_filed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a fault that its test does not name is a survivor."""
    path, fault = tmp_path / "mutants-cpu.json", FAULTS[0]
    path.write_text(json.dumps({"device": "a", "versions": {}, "rows": [{"fault": "one"}]}), "utf-8")
    monkeypatch.setattr(shared_faults, "FAULTS", FAULTS[:2])
    monkeypatch.setattr(shared_faults, "run", lambda faults: zip(faults, ("something else", None), strict=True))
    monkeypatch.setattr("sys.argv", ["mutants", "--part", "shared", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        mutants.main()
    assert end.value.code == 1
    filed = json.loads(path.read_text("utf-8"))
    assert filed["rows"] == [{"fault": "one"}]
    assert [(row["found_at"], row["caught"]) for row in filed["shared"]["rows"]] == [
        (fault.test, "NO"),
        ("nowhere", "NO"),
    ]
