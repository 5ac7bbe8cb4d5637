"""`make break`: the symptom comes first and the name last; answers are planted, and who errs is told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from parity.compare import Difference
from parity_tests import mutants
from study import break_it
from study.break_it import Options
from study.notes.faults import EXERCISES

NUMBER = next(number for number, one in enumerate(EXERCISES, 1) if one.fault == "momentum of 0.8")
CHOSEN = EXERCISES[NUMBER - 1]
RIGHT = CHOSEN.choices.index(CHOSEN.fault) + 1
WRONG = RIGHT % len(CHOSEN.choices) + 1


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The faults that were planted, without the seconds that it takes."""
    names: list[str] = []

    def plant(fault: str, known: Any) -> Difference:
        names.append(fault)
        return Difference(1, "optimizer", f"tensor {len(names)}", 0.5, 0.25, 3.0, 0.1, 1e-10, cause="A cause.")

    monkeypatch.setattr(break_it, "plant", plant)
    monkeypatch.setattr(break_it, "subjects", dict)
    return names


def typed(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """Somebody sits at the terminal and types these; then the input ends."""
    left = iter(answers)

    def answer(prompt: str) -> str:
        for one in left:
            return one
        raise EOFError

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(break_it, "_typing", lambda: True)


def test_a_fault_is_planted_shown_and_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """The real one: symptom, causes, the comparer's word, and the lines of both."""
    break_it.exercise(Options(str(NUMBER), RIGHT))
    said = capsys.readouterr().out
    place = said.index("They part first at step 1, optimizer, momentum_buffer/conv1.conv.weight")
    assert place < said.index(CHOSEN.choices[0]) < said.index("Yes. It is: momentum of 0.8.")
    assert "The comparer says: The optimizer's memory" in said
    assert "PyTorch, torch_impl/optim.py, line" in said
    assert "    optimizer = torch.optim.SGD(groups, spec.lr, spec.momentum" in said
    assert "Flax, flax_impl/optim.py, line" in said


def test_the_name_is_not_told_before_the_answer(planted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing can be typed in, the command that takes the answer is told."""
    break_it.exercise(Options())
    said = capsys.readouterr().out
    number = int(said.split()[1])
    chosen = EXERCISES[number - 1]
    assert planted == [chosen.fault]
    assert [said.count(name) for name in chosen.choices] == [1] * 5
    assert "A cause." not in said
    assert f"make break FAULT={number} ANSWER=..., 1 to 5, or 0 to be told" in said


def test_a_wrong_answer_is_planted_too(planted: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    break_it.exercise(Options(CHOSEN.fault, WRONG))
    said = capsys.readouterr().out
    assert planted == [CHOSEN.fault, CHOSEN.choices[WRONG - 1]]
    assert f"No. Planted as well, {planted[1]} shows first at step 1, optimizer, tensor 2" in " ".join(said.split())
    assert "It is:" not in said
    assert f"Try again: make break FAULT={NUMBER} ANSWER=..." in said


@pytest.mark.parametrize("last", [str(RIGHT), "", None])
def test_it_asks_until_it_is_right_or_given_up(
    planted: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, last: str | None
) -> None:
    typed(monkeypatch, "six", "6", str(WRONG), *([] if last is None else [last]))
    break_it.exercise(Options(str(NUMBER)))
    said = capsys.readouterr().out
    assert said.count("is no number from 1 to 5.") == 2
    assert planted == [CHOSEN.fault, CHOSEN.choices[WRONG - 1]]
    assert ("Yes. It is: momentum of 0.8." in said) == bool(last)
    assert "It is: momentum of 0.8." in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options("?"), "FAULT=. is no fault that can be planted: give the number or words of one of 1 .*; 12 "),
        (Options("momentun"), "FAULT=momentun is no fault"),
        (Options("momentum"), "FAULT=momentum fits 3 faults: give .* of one of 6 batch norm's .*; 10 momentum of 0.8"),
        (Options("13"), "FAULT=13 is no fault"),
        (Options("1", 6), "ANSWER=6 is none of the causes: give 1 to 5"),
        (Options(answer=2), "ANSWER=2 to which exercise"),
    ],
)
def test_a_slip_is_told_in_a_sentence(planted: list[str], options: Options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        break_it.exercise(options)
    assert planted == []


def test_the_curves_are_of_both_with_the_fault_planted(tmp_path: Path) -> None:
    """Another momentum leaves two losses alone: it shows in the memory of the second step, hence in the third loss."""
    filed = json.loads(break_it.measure(tmp_path, 3, [CHOSEN]).read_text("utf-8"))
    assert [row["fault"] for row in filed["rows"]] == [CHOSEN.fault, "momentum of 0.899"]
    assert filed["steps"] == 3
    for row, less, more in zip(filed["rows"], (1e-4, 1e-7), (1, 1e-3), strict=True):
        ours, theirs = row["losses"]["PyTorch"], row["losses"]["Flax"]
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-12)
        assert less < abs(ours[2] / theirs[2] - 1) < more


def test_a_slight_fault_shows_where_the_text_says() -> None:
    """A momentum of 0.899: at step 1 in the optimizer's memory, by a thousandth of the first gradient."""
    with break_it.planting() as known:
        found = mutants.run(break_it.SLIGHT, known[break_it.SLIGHT.subject])
    assert found
    assert mutants.caught(break_it.SLIGHT, found)
    assert found.tensor.startswith("momentum_buffer/")
    assert 1e-4 < found.relative < 2e-3
