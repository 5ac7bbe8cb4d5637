"""Worker processes that read ahead. Each imports what reading needs, and neither a framework nor the user's program."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import Any, TypeVar

from common.errors import UserError
from common.stopping import SIGNALS

T = TypeVar("T")
_AHEAD = 3  # steps that a worker is asked for before the first of them is taken
_LARGE = 1 << 16  # bytes from which an array travels by itself
_ARRAY, _PICKLE = b"a", b"p"  # what a file holds


def check_system() -> None:
    """Refuse a system whose processes cannot pass memory on.

    Raises:
        UserError: says so.
    """
    if not hasattr(os, "memfd_create"):
        raise UserError("Reading in worker processes needs Linux: say --workers 0.")


class _Worker:
    """A process that answers through a socket until it is ended, or until this process is gone."""

    def __init__(self) -> None:
        self.channel, theirs = socket.socketpair()
        code = f"import sys; sys.path[:] = {[*map(str, sys.path)]!a}; import {__name__} as w; w.work({theirs.fileno()})"
        # Ctrl-C reaches all processes of a terminal: new ones are deaf to it from the start, and this one waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            command = [sys.executable, "-c", code]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def ask(self, what: bytes | int) -> socket.socket:
        """Give it a pickle of `read`, or a step to be read; returns where the answer to the step comes."""
        self.channel.sendall(pickle.dumps(what))
        return self.channel

    def end(self) -> None:
        """Kill it."""
        self.channel.close()
        self.process.kill()
        self.process.wait()


_spare: list[list[_Worker]] = []  # of each `kept` that has begun, the processes that wait for a pass


@contextmanager
def kept() -> Iterator[None]:
    """Within it, processes that have read a whole pass wait for the next one; at its end they end."""
    _spare.append([])
    try:
        yield
    finally:
        for worker in _spare.pop():
            worker.end()


def read(read: Callable[[int], T], steps: range, workers: int) -> Iterator[T]:
    """Read steps in processes, each the next but `workers`, and give them in order.

    A process holds up to three results. It ends with the iterator (within `kept`, if that is left early), and after the
    step it is at if this process is gone, however that ended; Ctrl-C and SIGTERM are this process's to answer.

    Args:
        read: reads a step. It is pickled, and the processes import the modules that it needs. Large arrays in what it
            returns travel in memory without a name, which is freed with the last that uses it.
        steps: to be read.
        workers: how many processes.

    Raises:
        UserError: this is not Linux, a process died, or `read` raised it.
        RuntimeError: `read` raised anything else; with its traceback.
    """
    check_system()
    spare, crew, asked = _spare[-1] if _spare else None, list[_Worker](), deque[socket.socket]()
    try:
        for _ in range(min(workers, len(steps))):
            crew.append(spare.pop() if spare else _Worker())
        for worker in crew:
            worker.ask(pickle.dumps(read))
        for step, worker in zip(steps, cycle(crew), strict=False):
            asked.append(worker.ask(step))
            if len(asked) == _AHEAD * len(crew):
                yield _receive(asked.popleft())
        while asked:
            yield _receive(asked.popleft())
        if spare is not None:
            spare += crew
            crew = []
    except ConnectionError as error:
        raise UserError(
            "A process that reads images died. Memory may be too small: take fewer --workers or smaller batches; "
            "--workers 0 reads in this process."
        ) from error
    finally:
        for worker in crew:
            worker.end()


def work(number: int) -> None:
    """A worker's life: unpickle each `read` that comes through an open socket, and answer the steps that follow it."""
    read: Any = None
    failed: Exception | None = None
    with socket.socket(fileno=number) as channel, channel.makefile("rb") as asked, suppress(ConnectionError, EOFError):
        while True:
            what = pickle.load(asked)
            if isinstance(what, bytes):
                read, failed = _attempt(pickle.loads, what)
            else:
                _send(channel, (None, failed) if failed else _attempt(read, what))


def _attempt(function: Callable[[Any], Any], argument: Any) -> tuple[Any, Exception | None]:
    """What a function returned, or what it raised as an exception that can be pickled."""
    try:
        return function(argument), None
    except UserError as error:
        return None, error
    except Exception:
        return None, RuntimeError(f"In a process that reads images:\n{traceback.format_exc()}")


def _send(channel: socket.socket, answer: tuple[Any, Exception | None]) -> None:
    """Send a pickle, before it its large arrays, each in a file of its own: who keeps one does not keep them all."""

    def is_small(array: pickle.PickleBuffer) -> bool:
        if array.raw().nbytes >= _LARGE:
            _send_file(channel, _ARRAY, array.raw())
        return array.raw().nbytes < _LARGE

    _send_file(channel, _PICKLE, pickle.dumps(answer, protocol=5, buffer_callback=is_small))


def _send_file(channel: socket.socket, kind: bytes, data: bytes | memoryview) -> None:
    """Send data in a file in memory, which has no name, not even in /dev/shm: nothing is left after its last user."""
    with os.fdopen(os.memfd_create("batch"), "wb") as file:
        file.write(data)
        file.flush()
        socket.send_fds(channel, [kind], [file.fileno()])


def _receive(channel: socket.socket) -> Any:
    """What `_send` sent: a result, or its exception, which is raised. Large arrays stay in the memory they came in.

    Raises:
        ConnectionError: the process is no more.
    """
    kind, received = _ARRAY, []
    while kind == _ARRAY:
        kind, files, _, _ = socket.recv_fds(channel, 1, 1)
        if not kind:
            raise ConnectionResetError
        received.append(mmap.mmap(files[0], 0))
        os.close(files[0])
    result, error = pickle.loads(received.pop(), buffers=received)
    if error:
        raise error
    return result
