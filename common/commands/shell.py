"""What every command does: a user's mistake becomes one sentence, a signal or a closed pipe an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import TextIOWrapper
from signal import SIGINT, SIGPIPE
from typing import TextIO

from common.errors import UserError
from common.stopping import Stopped, stopping_at_once


def guard(command: Callable[[], None], interrupted: str = "") -> None:
    """Run a command. A user's mistake becomes one sentence and exit code 2; a signal a hint and 128 + its number."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's, inherited, need not be installed here; ours draw into files
    with _printing():
        try:
            with stopping_at_once(), _readable():
                _check_place()
                command()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except (Stopped, KeyboardInterrupt) as stopped:
            with suppress(OSError):  # of a terminal that is gone
                print(f"\n{stopped}" if str(stopped) else f"\ninterrupted{interrupted}", file=sys.stderr)
            raise SystemExit(128 + getattr(stopped, "number", SIGINT)) from None


def _readable() -> AbstractContextManager[None]:
    """Within it, a command line that tyro reads has a help for people; others do without tyro."""
    if "tyro" not in sys.modules:
        return nullcontext()
    from common.commands.help import Readable

    return Readable()


def _check_place() -> None:
    try:
        os.getcwd()  # noqa: PTH109, for what it raises
    except FileNotFoundError as error:
        raise UserError("The folder that this command was started in is gone: start it in another one.") from error


@contextmanager
def _printing() -> Iterator[None]:
    """Print what a terminal's encoding lacks as \\u...; where nobody reads any more, end as SIGPIPE ends a program.

    Raises:
        SystemExit: what is printed goes nowhere.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    code = None
    try:
        try:
            yield
        except SystemExit as end:
            code = end.code
            raise
        finally:
            for stream in streams:
                stream.flush()  # not at the interpreter's end, where nobody can help it
    except OSError as error:
        closed = next((stream for stream in streams if not _open(stream)), None)
        if not closed:
            raise
        _forget(closed)
        if code or isinstance(error, BrokenPipeError):
            raise SystemExit(code or 128 + SIGPIPE) from None
        with suppress(OSError):
            print(f"error: Cannot print: {error.strerror}.", file=sys.stderr)
        raise SystemExit(2) from None


def _open(stream: TextIO) -> bool:
    """Whether what is printed arrives, found by trying."""
    try:
        print(file=stream, flush=True)
    except OSError:
        return False
    return True


def _forget(stream: TextIO) -> None:
    """Let what is printed, and what still waits, go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
