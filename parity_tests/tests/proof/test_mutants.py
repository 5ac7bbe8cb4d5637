"""Every planted fault is caught where it is, and the same pair without a fault passes."""

from __future__ import annotations

import pytest

from parity_tests.mutants import MUTANTS, Mutant, caught, run, train
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
