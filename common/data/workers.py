"""Worker processes that read ahead. Each imports what reading needs, and neither a framework nor the user's program."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import cycle
from typing import IO, Any, TypeVar

from common.errors import UserError
from common.stopping import SIGNALS

T = TypeVar("T")
_AHEAD = 3  # steps that a worker is asked for before the first is taken from it
_LARGE = 1 << 16  # bytes from which an array travels by itself
_MOST_FILES = 250  # that the kernel passes over at once


def read(read: Callable[[int], T], steps: range, workers: int) -> Iterator[T]:
    """Read steps in processes, each the next but `workers`, and give them in order.

    A process holds up to three results. It ends with the iterator, and with this process however that ends, then after
    the step that it is at; Ctrl-C and SIGTERM are this process's to answer.

    Args:
        read: reads a step. It is pickled once for each process, so it must come from a module that can be imported;
            large arrays of what it returns travel in memory that nothing names, and that is gone with its last user.
        steps: to be read.
        workers: how many processes.

    Raises:
        UserError: a process died, or `read` raised it.
        RuntimeError: `read` raised anything else, whose traceback this tells.
    """
    with ExitStack() as stack:
        channels = [stack.enter_context(_worker()) for _ in range(min(workers, len(steps)))]
        asked: deque[socket.socket] = deque()
        try:
            pickled = pickle.dumps(read)
            for channel in channels:
                channel.sendall(pickled)
            for channel, step in zip(cycle(channels), steps, strict=False):
                channel.sendall(b"%d\n" % step)
                asked.append(channel)
                if len(asked) == _AHEAD * len(channels):
                    yield _receive(asked.popleft())
            while asked:
                yield _receive(asked.popleft())
        except ConnectionError as error:
            raise UserError(
                "A process that reads images died. Memory may be too small: take fewer --workers or smaller batches; "
                "--workers 0 reads in this process."
            ) from error


@contextmanager
def _worker() -> Iterator[socket.socket]:
    """Start a process, which is killed when the `with` block ends. It is reached through the socket."""
    ours, theirs = socket.socketpair()
    code = f"import sys; sys.path[:] = {[*map(str, sys.path)]!a}; import {__name__} as w; w.work({theirs.fileno()})"
    command = [sys.executable, "-c", code]
    with ours:
        # Ctrl-C reaches all processes of a terminal: a new one is deaf to it from its start, as signals stay blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield ours
        finally:
            process.kill()
            process.wait()


def _receive(channel: socket.socket) -> Any:
    """What a worker's `read` returned; raises what it raised, or ConnectionError if the worker is no more."""
    sent, files, _, _ = socket.recv_fds(channel, 1, _MOST_FILES)
    if not sent:
        raise ConnectionResetError
    pickled, *large = map(_mapped, files)
    result, error = pickle.loads(pickled, buffers=large)
    if error:
        raise error
    return result


def _mapped(file: int) -> mmap.mmap:
    try:
        return mmap.mmap(file, 0)
    finally:
        os.close(file)


def work(channel_file: int) -> None:
    """A worker: answer the steps that come through a socket, until nobody is there who could ask."""
    with socket.socket(fileno=channel_file) as channel, channel.makefile("rb") as asked, suppress(ConnectionError):
        read, error = _attempt(pickle.load, asked)
        for step in asked:
            _send(channel, (None, error) if error else _attempt(read, int(step)))


def _attempt(function: Callable[[Any], T], argument: Any) -> tuple[T | None, Exception | None]:
    """What a function returns, or an exception that can travel."""
    try:
        return function(argument), None
    except UserError as error:
        return None, error
    except Exception:
        return None, RuntimeError(f"In a process that reads images:\n{traceback.format_exc()}")


def _send(channel: socket.socket, answer: Any) -> None:
    """Send a pickle and the large arrays that belong to it, each in a file of its own: one may be kept for long."""
    large: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        data = buffer.raw()
        if data.nbytes >= _LARGE:
            large.append(data)
        return data.nbytes < _LARGE

    pickled = pickle.dumps(answer, protocol=5, buffer_callback=stays)
    with ExitStack() as stack:
        files = [stack.enter_context(_nameless_file(data)) for data in (pickled, *large)]
        socket.send_fds(channel, [b"."], [file.fileno() for file in files])


def _nameless_file(data: bytes | memoryview) -> IO[bytes]:
    """A file that holds this data, in memory where the system can do that, and has no name to outlive its users."""
    file = os.fdopen(os.memfd_create("batch"), "wb") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
    file.write(data)
    file.flush()
    return file
