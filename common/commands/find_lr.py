"""The command line that finds a learning rate."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.commands.shell import guard
from common.frameworks import FRAMEWORKS, Framework
from common.recipes import own
from common.recipes.spec import Recipe
from common.recipes.zoo import described
from common.reports.rates import draw_rates
from common.runs.files import replaced
from common.training.rates import Curve, RateOptions


@dataclass(frozen=True)
class _RateCommand:
    """Find a learning rate: take training steps at growing rates, draw the loss, suggest a rate.

    Attributes:
        recipe_file: a Python file with recipes and architectures of your own; without a name its one recipe is taken.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[RateOptions, tyro.conf.arg(name="")]
    recipe_file: Path | None = None


def run_find_lr(
    framework: Framework, find: Callable[[Recipe, RateOptions], Curve], arguments: Sequence[str] | None = None
) -> None:
    """`find_lr [RECIPE] [--low RATE] [--high RATE] [--steps N] [--field VALUE ...]`: a rate, and a picture."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words and not words[0].startswith("-") else None

    def run() -> None:
        recipe = own.choose(name, own.find_option(words))
        command = tyro.cli(
            _RateCommand,
            args=words,
            default=_RateCommand(recipe, RateOptions()),
            prog=f"python -m {framework}_impl.find_lr {recipe.name}",
            description=f"{(_RateCommand.__doc__ or '').partition(chr(10))[0]}\n\n{described(recipe.name)}",
        )
        command.recipe.check()
        command.options.check()
        curve = find(command.recipe, command.options)
        about = f"{recipe.name}, {command.recipe.optimizer.name}, in {FRAMEWORKS[framework].title}"
        before = replaced(command.options.to)
        draw_rates(curve.rates, curve.losses, curve.smoothed, curve.suggested, about, command.options.to)
        ended = "" if len(curve.rates) == command.options.steps else f", diverging at {curve.rates[-1]:.2g}"
        print(f"lowest loss at {curve.rates[curve.lowest]:.2g}{ended}")
        print(f"suggested rate: {curve.suggested:.2g}, the recipe's is {command.recipe.optimizer.lr:g}")
        print(f"{command.options.to}{before}")

    guard(run)
