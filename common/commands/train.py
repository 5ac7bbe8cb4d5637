"""The command line of training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.commands.shell import guard
from common.recipes import own
from common.recipes.spec import Recipe
from common.recipes.zoo import ABOUT, RECIPES
from common.training.options import TrainOptions
from common.world import leaving_at_once


@dataclass(frozen=True)
class _TrainCommand:
    """What a command line says.

    Attributes:
        recipe_file: a Python file with recipes and architectures of your own; without a name its one recipe is trained.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[TrainOptions, tyro.conf.arg(name="")]
    recipe_file: Path | None = None


def run_train(fit: Callable[[Recipe, TrainOptions], Path | None], arguments: Sequence[str] | None = None) -> None:
    """`train [RECIPE] [--field VALUE ...]`: any field of the recipe, and the options."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words and not words[0].startswith("-") else None

    def run() -> None:
        recipe = own.choose(name, own.find_option(words))
        command = tyro.cli(
            _TrainCommand,
            args=words,
            default=_TrainCommand(recipe, TrainOptions()),
            prog=f"train {recipe.name}",
            description=f"{ABOUT[recipe.name]}\n\nRecipes: {', '.join(RECIPES)}.",
        )
        command.recipe.check()
        command.options.check()
        fit(command.recipe, command.options)

    with leaving_at_once():
        guard(run, "; if its folder is there, the same command with --resume --out RUN continues it")
