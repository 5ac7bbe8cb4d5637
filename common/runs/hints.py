"""The next command to type, in the form in which this one was started: by make, or as a module of Python."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from common.frameworks import Framework


def resume(framework: Framework, run: Path) -> str:
    """Continues a run; of several processes it is only said how, since no one of them knows the words for all."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"the same command with --resume {_quoted(run)}"
    if "MAKELEVEL" in os.environ:
        return f"make resume RUN={_quoted(run)}"
    return f"{_module(framework, 'train')} --resume {_quoted(run)}"


def after_training(framework: Framework, run: Path, recipe: str) -> list[str]:
    """What people do with a finished run: predict, score every checkpoint that stays, compare the frameworks."""
    place = _quoted(run)
    if "MAKELEVEL" in os.environ:
        other = "" if framework == "torch" else f" FRAMEWORK={framework}"
        return [
            f"make predict RUN={place} IMAGE=photo.jpg{other}",
            f"make evaluate-{framework} RUN={place}",
            f"make compare RECIPE={recipe}",
        ]
    return [
        f"{_module(framework, 'predict')} photo.jpg --run {place}",
        f"{_module(framework, 'evaluate')} {place}",
        f"{_python()} -m study.compare {recipe}",
    ]


def _module(framework: Framework, command: str) -> str:
    return f"{_python()} -m {framework}_impl.{command}"


def _python() -> str:
    """The word that started this interpreter."""
    return _quoted(sys.orig_argv[0]) if sys.orig_argv and sys.orig_argv[0] else "python"


def _quoted(word: object) -> str:
    return shlex.quote(str(word))
