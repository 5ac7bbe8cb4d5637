"""The next command to type, in the form in which this one was started: by make, or as a module of Python."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from common.frameworks import Framework
from common.recipes import own
from common.recipes.spec import Recipe
from common.recipes.zoo import RECIPES


def resume(framework: Framework, run: Path) -> str:
    """Continues a run; of several processes it is only said how, since no one of them knows the words for all."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"the same command with --resume {_quoted(run)}"
    if "MAKELEVEL" in os.environ:
        return f"make resume RUN={_quoted(run)}"
    return f"{_module(framework, 'train')} --resume {_quoted(run)}"


def after_training(framework: Framework, run: Path, recipe: Recipe) -> list[str]:
    """What people do with a finished run: predict, score every checkpoint that stays, compare the frameworks.

    A folder of pictures is not the recipe's own data, so that comparing by the recipe's name would not find it; nor
    would it find a recipe that is known from the run alone, whose file was not named.
    """
    place, file = _quoted(run), own.FILES.get(recipe.name)
    if "MAKELEVEL" in os.environ:
        found = [
            f"make predict RUN={place} IMAGE=photo.jpg{_other(framework)}",
            f"make evaluate-{framework} RUN={place}",
            f"make compare RECIPE={recipe.name}" + (f" RECIPE_FILE={_quoted(file)}" if file else ""),
        ]
    else:
        found = [
            f"{_module(framework, 'predict')} photo.jpg --run {place}",
            f"{_module(framework, 'evaluate')} {place}",
            f"{_python()} -m study.compare {recipe.name}" + (f" --recipe-file {_quoted(file)}" if file else ""),
        ]
    return found[:-1] if recipe.dataset.startswith("folder:") or recipe.name not in RECIPES else found


def photos(framework: Framework, run: Path) -> str:
    """Continues a run on photographs, and makes its page."""
    if "MAKELEVEL" in os.environ:
        return f'make photos ARGS="--resume {_quoted(run)}"{_other(framework)}'
    return f"{_module(framework, 'photos')} --resume {_quoted(run)}"


def after_photos(framework: Framework, run: Path) -> dict[str, str]:
    """What people do with a network of their own, by the words to type: name pictures, train on, take it elsewhere.

    Flax's ONNX is written in an environment of its own, which make alone knows how to make.
    """
    place, module = _quoted(run), f"{_python()} -m {framework}_impl"
    if "MAKELEVEL" in os.environ:
        predict = f"make predict IMAGE=photo.jpg RUN={place}{_other(framework)}"
        on = f'make photos FOLDER=pictures ARGS="--init-from {place}"{_other(framework)}'
    else:
        predict, on = f"{module}.predict photo.jpg --run {place}", f"{module}.photos pictures --init-from {place}"
    suffix = ".pt2" if framework == "torch" else ".onnx"
    return {
        predict: "Name a picture, or those of a folder:",
        on: "Train on from here, with more pictures:",
        f"make export-{framework} RUN={place} TO=model{suffix}": "Write it in another format:",
    }


def _other(framework: Framework) -> str:
    return "" if framework == "torch" else f" FRAMEWORK={framework}"


def install(extra: str) -> str:
    """Installs what an option needs besides."""
    return f"{_python()} -m pip install -c requirements.lock -e '.[{extra}]'"


def _module(framework: Framework, command: str) -> str:
    return f"{_python()} -m {framework}_impl.{command}"


def _python() -> str:
    """The word that started this interpreter."""
    return _quoted(sys.orig_argv[0]) if sys.orig_argv and sys.orig_argv[0] else "python"


def _quoted(word: object) -> str:
    return shlex.quote(str(word))
