"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: at once, or where training asks for it, after the step."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# From a keyboard, from whoever ends processes, from a terminal that is closed, and from schedulers before time is up.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Stopped(BaseException):
    """A signal ended the command, whose exit code is 128 + `number`. As KeyboardInterrupt, it is no `Exception`."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


class Stop:
    """Whether a signal has asked to stop. While `waiting`, the first one is noted here and the second stops at once."""

    number: int | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Put signals off until `raise_if_asked`."""
        with handled(self._note):
            yield

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            at_once(number, frame)
        self.number = number
        with suppress(OSError):  # of a terminal that is gone
            # Not print: the signal may have come in the middle of another one.
            os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once, without\n")

    def raise_if_asked(self, message: str) -> None:
        """End here if a signal has come.

        Raises:
            Stopped: with this message.
        """
        if self.number is not None:
            raise Stopped(self.number, f"{signal.Signals(self.number).name}: {message}")


def at_once(number: int, frame: FrameType | None) -> None:
    """A handler that ends the command where it is.

    Raises:
        Stopped: at once, or from a finalizer, where Python would print it and go on, as soon as that is done.
    """
    if _in_finalizer(frame):
        threading.Timer(0.01, os.kill, (os.getpid(), number)).start()
        return
    raise Stopped(number)


def _in_finalizer(frame: FrameType | None) -> bool:
    """Whether a `__del__` or a weak reference's callback is under way."""
    while frame:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename == weakref.__file__:
            return True
        frame = frame.f_back
    return False


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """End by `Stopped` on a signal, so that what is half written is cleaned up."""
    with handled(at_once):
        yield


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function handle these signals; but SIGHUP is ignored where it was, which is what nohup does."""
    if threading.current_thread() is not threading.main_thread():  # the only one that Python lets handle signals
        yield
        return
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    numbers = [number for number in SIGNALS if not (deaf and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
