"""What a command can say before its framework is imported, which takes seconds: its help, or what was mistyped."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from common.frameworks import Framework

HELPS = ("-h", "--help")


class _GoOn(Exception):
    """The command line asks for more than words: its own module reads it again."""


def answer(package: str) -> None:
    """Called by a framework's package while Python looks in it for the module that `-m` names.

    Raises:
        SystemExit: all is said.
    """
    if sys.argv[:1] != ["-m"]:  # which Python sets just then, and to the module's path after
        return
    given = sys.orig_argv[: -len(sys.argv[1:]) or None][-1].removeprefix("-m")
    owner, _, command = given.partition(".")
    words = sys.argv[1:]
    helps = any(word in HELPS for word in words)
    if owner != package or not (helps or os.environ.get("WORLD_SIZE", "1") == "1"):
        return  # of several processes, one that leaves ends at once
    framework = cast("Framework", package.removesuffix("_impl"))
    # What a file or a folder says besides, training reads itself.
    if command in ("train", "find_lr") and (helps or not any("recipe" in word or "resume" in word for word in words)):
        _begin(framework, command, words)
    elif command in ("evaluate", "predict", "features", "export", "photos"):
        _parse(framework, command, words)


def _begin(framework: Framework, command: str, words: list[str]) -> None:
    """Do as the command does until it needs its framework."""
    with suppress(_GoOn):
        if command == "train":
            from common.commands.train import run_train

            run_train(_go_on, words, f"{framework}_impl.train")
        else:
            from common.commands.find_lr import run_find_lr

            run_find_lr(framework, _go_on, words)


def _parse(framework: Framework, command: str, words: list[str]) -> None:
    """Read the command line alone."""
    import tyro

    from common.commands.shell import guard

    module = import_module(f"common.commands.{command}")  # by name: a program packed without it has no such command
    if command == "photos":
        guard(lambda: module.check_words(framework, words))
    else:
        kind = getattr(module, f"{command.title()}Command")
        guard(lambda: tyro.cli(kind, args=words, prog=f"python -m {framework}_impl.{command}") and None)


def _go_on(*_: Any, **__: Any) -> Any:
    raise _GoOn
