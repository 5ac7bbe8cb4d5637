"""What a command can say before its framework is imported, which takes seconds: its help, or what was mistyped."""

from __future__ import annotations

import os
import sys
from typing import Any, cast

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
    # Of several processes, one that leaves ends at once.
    trains = command in ("train", "find_lr") and os.environ.get("WORLD_SIZE", "1") == "1"
    elsewhere = any("recipe" in word or "resume" in word for word in words)  # a file or a folder says the rest
    if owner == package and (helps or (trains and words and not elsewhere)):
        try:
            _read(package, command, words)
        except _GoOn:
            return


def _read(package: str, command: str, words: list[str]) -> None:
    """Read the command line as its module would."""
    from common.frameworks import Framework

    framework = cast(Framework, package.removesuffix("_impl"))
    if command == "train":
        from common.commands.train import run_train

        run_train(_go_on, words, f"{package}.train")
    elif command == "find_lr":
        from common.commands.find_lr import run_find_lr

        run_find_lr(framework, _go_on, words)
    elif command == "evaluate":
        from common.commands.evaluate import run_evaluate

        run_evaluate(framework, _go_on, _go_on, words)
    elif command == "predict":
        from common.commands.predict import run_predict

        run_predict(framework, _go_on, _go_on, words)
    elif command == "features":
        from common.commands.features import run_features

        run_features(framework, _go_on, _go_on, words)


def _go_on(*_: Any, **__: Any) -> Any:
    raise _GoOn
