"""What every command does: a user's mistake becomes one sentence, a signal an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import TextIOWrapper
from signal import SIGINT

from common.errors import UserError
from common.stopping import Stopped, stopping_at_once


def guard(command: Callable[[], None], interrupted: str = "") -> None:
    """Run a command. A user's mistake becomes one sentence and exit code 2; Ctrl-C 130, SIGTERM 143 and a hint."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # files may have names that no encoding has
    try:
        with stopping_at_once():
            command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except (Stopped, KeyboardInterrupt) as stopped:
        print(f"\n{stopped}" if str(stopped) else f"\ninterrupted{interrupted}", file=sys.stderr)
        raise SystemExit(128 + getattr(stopped, "number", SIGINT)) from None
