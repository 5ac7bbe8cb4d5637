"""`make break`: plant a fault in one framework and let the learner find it by its first symptom.

The faults are those of the exercises (`study/notes/faults.py`), planted as `parity_tests.mutants` does: in the memory
of this process, so that no file changes.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, indent
from time import perf_counter
from typing import Annotated

import jax
import tyro

from common.commands.shell import guard
from common.data.pipeline import steps_per_epoch
from common.errors import UserError
from common.frameworks import FRAMEWORKS
from common.system import package_versions
from parity import PHASES
from parity.compare import Difference, Side
from parity_tests import mutants, results
from parity_tests.material import first_batches
from parity_tests.mutants import Mutant
from parity_tests.results import RESULTS
from parity_tests.sides import make_pair
from parity_tests.subjects import Subject, subjects
from study import source
from study.notes.faults import EXERCISES, Exercise
from torch_impl.device import describe, pick_device

STEPS = 40  # that the curves of the pages are of
CURVES = "exercises-cpu.json"

# Too small to be an exercise: what people ask for, whose curves the start page shows.
SLIGHT = Mutant("momentum of 0.899", "SGD", mutants.optimizer_of_torch(momentum=0.899), "optimizer", ".*", step=1)

_MUTANTS = {mutant.name: mutant for mutant in mutants.MUTANTS}
WIDTH = 100  # columns of what is said
_REVEAL = 0  # the answer of who gives up


@dataclass(frozen=True)
class Options:
    """Plant a fault in one of the two frameworks, show where they part first, and ask which fault it is.

    Attributes:
        fault: the exercise's number, or words of its fault's name; one that nobody knows when not given.
        answer: the number of the cause that you think it is, where nothing can be typed in; 0 shows the right one.
        curves: instead, train with each fault for some steps, and file the losses that the pages draw.
    """

    fault: Annotated[str | None, tyro.conf.arg(metavar="NUMBER|WORDS")] = None
    answer: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    curves: bool = False


def choose(fault: str | None) -> int:
    """The number of the exercise, from 1, that a number or words of a name mean; any where there are none.

    Raises:
        UserError: none is meant, or several are.
    """
    if not fault:
        return random.randrange(len(EXERCISES)) + 1
    if fault.isdecimal() and 1 <= int(fault) <= len(EXERCISES):
        return int(fault)
    names = [exercise.fault for exercise in EXERCISES]
    words = fault.lower().split()
    same = [name for name in names if name.lower() == fault.lower()]
    found = same or [name for name in names if all(word in name.lower() for word in words)]
    if len(found) != 1:
        said = f"fits {len(found)} faults" if found else "is no fault that can be planted"
        known = "; ".join(f"{number} {name}" for number, name in enumerate(names, 1) if name in (found or names))
        raise UserError(f"FAULT={fault} {said}: give the number or words of one of {known}.")
    return names.index(found[0]) + 1


@contextmanager
def planting() -> Iterator[dict[str, Subject]]:
    """Within it, faults can be planted in the networks that it gives."""
    with jax.enable_x64(True):
        yield subjects()


def plant(fault: str, known: dict[str, Subject]) -> Difference:
    """Train both frameworks with a fault in one; where they part first.

    Raises:
        UserError: they do not.
    """
    mutant = _MUTANTS[fault]
    found = mutants.run(mutant, known[mutant.subject])
    if found is None:
        raise UserError(f"{fault} was planted and the frameworks agree: report this.")
    return found


def symptom(found: Difference) -> str:
    """Where two sides part first and by how much, without its cause."""
    return (
        f"They part first at step {found.step}, {found.phase}, {found.tensor}:\n"
        f"  by at most {found.absolute:.3g}, which is {found.relative:.3g} of the largest value ({found.ulp:.3g} units "
        f"in the last place; {found.bound:.0e} is allowed).\n"
        f"Steps count from 0; each is compared in the order {', '.join(PHASES)},\n"
        "within each from the first layer to the last, gradients backwards. All that comes before was equal."
    )


def explain(exercise: Exercise, found: Difference) -> str:
    """What the comparer says of a fault, why it shows there, and the lines of both frameworks."""
    parts = [f"It is: {exercise.fault}.", fill(f"The comparer says: {found.cause}", WIDTH), fill(exercise.why, WIDTH)]
    for framework, about in FRAMEWORKS.items():
        for cite in exercise.torch if framework == "torch" else exercise.flax:
            one = source.excerpt(cite.side or framework, cite.module, cite.begins, cite.count)
            parts.append(f"{about.title}, {one.path}, line {one.first}:\n{indent(one.text, '    ')}")
    return "\n\n".join(parts)


def refute(name: str, found: Difference) -> str:
    """Why a wrong answer is wrong: where its fault, planted too, shows."""
    place = f"step {found.step}, {found.phase}, {found.tensor}, by {found.relative:.3g} of the largest value"
    return fill(f"No. Planted as well, {name} shows first at {place}. The comparer says of it: {found.cause}", WIDTH)


def ask(choices: Sequence[str]) -> int:
    """What the learner types: a number of the choices; 0 for nothing, or the end of the input."""
    while True:
        try:
            typed = input(f"Which is it? 1 to {len(choices)}, or Enter to be told: ").strip() or str(_REVEAL)
        except EOFError:
            print()
            return _REVEAL
        if typed.isdecimal() and int(typed) <= len(choices):
            return int(typed)
        print(f"{typed} is no number from 1 to {len(choices)}.")


def exercise(options: Options) -> None:
    """Plant, show, ask, and explain.

    Raises:
        UserError: no such fault, or no such answer.
    """
    number = choose(options.fault)
    chosen = EXERCISES[number - 1]
    choices, answer = chosen.choices, options.answer
    if answer is not None and not _REVEAL <= answer <= len(choices):
        raise UserError(f"ANSWER={answer} is none of the causes: give 1 to {len(choices)}, or 0 to be told.")
    if answer is not None and not options.fault:
        raise UserError(f"ANSWER={answer} to which exercise? FAULT=1 to FAULT={len(EXERCISES)} names it.")
    print(f"exercise {number} of {len(EXERCISES)}: training both frameworks with a fault in one ...", flush=True)
    with planting() as known:
        found = plant(chosen.fault, known)
        print(f"\n{symptom(found)}\n\nFive causes, one of them right:")
        print("\n".join(f"  {place}  {name}" for place, name in enumerate(choices, 1)) + "\n", flush=True)
        again = f"make break FAULT={number} ANSWER=..."
        if answer is None and not _typing():
            print(f"Give the answer with {again}, 1 to {len(choices)}, or 0 to be told.")
            return
        while answer is None or (answer and choices[answer - 1] != chosen.fault):
            if answer:
                print(f"{refute(choices[answer - 1], plant(choices[answer - 1], known))}\n", flush=True)
                if options.answer is not None:
                    print(f"Try again: {again}, or 0 to be told.")
                    return
            answer = ask(choices)
    print(("Yes. " if answer else "") + explain(chosen, found))


def _typing() -> bool:
    """Whether somebody can type an answer."""
    return sys.stdin is not None and sys.stdin.isatty()


def losses(mutant: Mutant, subject: Subject, steps: int) -> dict[str, list[float]]:
    """The losses of both frameworks over some steps with a fault planted, by their titles."""
    recipe, data = subject.recipe, subject.data
    with mutant.patch():
        sides: tuple[Side, Side] = make_pair(recipe, subject.arch, steps_per_epoch(data, recipe), subject.edit)
        batches = first_batches(data, recipe, steps)
        found = [[side.step(batch)["loss"]["loss"].item() for side in sides] for batch in batches]
    return {side.name: list(column) for side, column in zip(sides, zip(*found, strict=True), strict=True)}


def measure(folder: Path = RESULTS, steps: int = STEPS, exercises: Sequence[Exercise] = EXERCISES) -> Path:
    """File the losses of every exercise and of `SLIGHT`, a line for each on the way."""
    rows, planted = [], [*(_MUTANTS[one.fault] for one in exercises), SLIGHT]
    with planting() as known:
        for number, mutant in enumerate(planted, 1):
            began = perf_counter()
            rows.append({"fault": mutant.name, "losses": losses(mutant, known[mutant.subject], steps)})
            print(f"{number} of {len(planted)}, {mutant.name}: {perf_counter() - began:.1f} s", flush=True)
    about = {"device": describe(pick_device("cpu")), "versions": package_versions(), "steps": steps}
    results.file(folder / CURVES, about | {"rows": rows})
    return folder / CURVES


def main() -> None:
    """Do what the command line asks for."""
    options = tyro.cli(Options, prog="python -m study.break_it")
    if options.curves:
        print(measure())
    else:
        exercise(options)


if __name__ == "__main__":
    guard(main)
