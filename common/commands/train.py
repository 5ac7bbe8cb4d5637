"""The command line of training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.recipes import own
from common.recipes.spec import Recipe
from common.recipes.zoo import ABOUT, RECIPES
from common.runs.folder import RunFolder
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
    """`train [RECIPE] [--field VALUE ...]`: any field of the recipe, and the options; `train --resume RUN`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words and not words[0].startswith("-") else None

    def run() -> None:
        rest, folder = resuming(words)
        before = RunFolder(folder) if folder and RunFolder.is_at(folder) else None
        options, recipe = TrainOptions(), None
        if name or not before:
            recipe = own.choose(name, own.find_option(words))
        if before:
            options = options.of_run(before)
            # Another recipe is told apart from the run's field by field.
            recipe = before.recipe if recipe is None or recipe.name == before.recipe.name else recipe
        assert recipe
        command = tyro.cli(
            _TrainCommand,
            args=rest,
            default=_TrainCommand(recipe, options),
            prog=f"train {recipe.name}",
            description=f"{ABOUT.get(recipe.name, '')}\n\nRecipes: {', '.join(RECIPES)}.",
        )
        command.recipe.check()
        command.options.check()
        fit(command.recipe, command.options)

    with leaving_at_once():
        guard(run, "; if its folder is there, the same command with --resume RUN continues it")


def resuming(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """`--resume RUN` spelled out as `--resume --out RUN`, and the folder that is resumed.

    Raises:
        UserError: two folders are named.
    """
    spelled = list[str]()
    for word, following in pairwise((*words, "-")):
        flag, equals, value = word.partition("=")
        spelled += [flag, "--out", value] if flag == "--resume" and equals else [word]
        if word == "--resume" and not following.startswith("-"):
            spelled.append("--out")
    places = [following for word, following in pairwise(spelled) if word == "--out"]
    places += [word.removeprefix("--out=") for word in spelled if word.startswith("--out=")]
    if "--resume" not in spelled or not places:
        return spelled, None
    if len(set(places)) > 1:
        raise UserError(f"--resume {places[0]} names the folder that the run goes on in: leave --out {places[1]} out.")
    return spelled, Path(places[0])
