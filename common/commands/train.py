"""The command line of training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import getmodule
from pathlib import Path
from typing import Annotated, Any

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.recipes import own
from common.recipes.spec import Recipe
from common.recipes.zoo import described, get_recipe
from common.runs.folder import RunFolder
from common.training.options import TrainOptions
from common.world import leaving_at_once


@dataclass(frozen=True)
class _TrainCommand:
    """What a command line says.

    Attributes:
        resume: continue a run, with the recipe and the options that its folder holds; what is given besides, in a
            recipe file too, must be the recipe's own, but for more epochs.
        recipe_file: a Python file with recipes and architectures of your own; without a name its one recipe is trained.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[TrainOptions, tyro.conf.arg(name="")]
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    recipe_file: Path | None = None


def run_train(
    fit: Callable[[Recipe, TrainOptions], Path | None],
    arguments: Sequence[str] | None = None,
    module: str | None = None,
) -> None:
    """`train [RECIPE] [--field VALUE ...]`: any field of the recipe, and the options; `train --resume RUN`.

    What Python's -m takes for the command is `module`, or where `fit` is.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words and not words[0].startswith("-") else None

    def run() -> None:
        rest, folder = resuming(words)
        before = RunFolder(folder) if folder and RunFolder.is_at(folder) else None
        options, file = TrainOptions(), own.find_option(words)
        if before:
            options, recipe = options.of_run(before), _resumed(before, name, file)
        else:
            recipe = own.choose(name, file)
        command = tyro.cli(
            _TrainCommand,
            args=rest,
            default=_TrainCommand(recipe, options),
            prog=f"python -m {module or _module(fit)} {recipe.name}",
            description=described(recipe.name),
        )
        options = command.options
        if command.resume:
            options = replace(options, out=command.resume, resume=True)
        command.recipe.check()
        options.check()
        fit(command.recipe, options)

    with leaving_at_once():
        guard(run, "; if its folder is there, the same command with --resume RUN continues it")


def _resumed(run: RunFolder, name: str | None, file: Path | None) -> Recipe:
    """The recipe that a run goes on with, before what the command line names: its own, unless another one is given.

    That is told apart from the run's field by field, and so is the run's own as a file of the user has it now.

    Raises:
        UserError: the recipe that is given cannot be had, or the run's cannot be read.
    """
    found = own.load_file(file)
    before = run.recipe
    name = name or next((each for each in found if each == before.name), found[0] if found else before.name)
    if name == before.name and name not in own.FILES:
        return before
    given = get_recipe(name)
    return replace(given, epochs=max(given.epochs, before.epochs)) if name == before.name else given


def _module(fit: Callable[..., Any]) -> str:
    """What Python's -m takes for the command that trains by `fit`."""
    spec = getattr(getmodule(fit), "__spec__", None)
    return spec.name if spec else "torch_impl.train"


def resuming(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words with `--resume RUN` at their end, if they resume a run in any form, and its folder.

    Raises:
        UserError: two folders are named, or none.
    """
    left, rest, places, resumes = list(words), list[str](), list[str](), False
    while left:
        flag, equals, value = (word := left.pop(0)).partition("=")
        if flag not in ("--resume", "--out"):
            rest.append(word)
            continue
        resumes |= flag == "--resume"
        if equals:
            places.append(value)
        elif left and not left[0].startswith("-"):
            places.append(left.pop(0))
    if not resumes:
        return list(words), None
    if not places:
        raise UserError("--resume needs RUN, the folder of the run to continue.")
    if len(set(places)) > 1:
        raise UserError(f"--resume {places[0]} names the folder that the run goes on in: leave --out {places[1]} out.")
    return [*rest, "--resume", places[0]], Path(places[0])
