"""Worker processes, which are Grain's. Each imports this module where Python would import the program once more."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Thread
from types import ModuleType
from typing import Any, Generic, TypeVar
from unittest import mock

from common.errors import UserError
from common.stopping import SIGNALS

T = TypeVar("T")
_AHEAD = 8  # more than Grain reads ahead in each process


def read(read: Callable[[int], T], steps: range, workers: int) -> Iterator[T]:
    """Read steps in processes, each the next but `workers`, and give them in order.

    A process holds up to three results. It ends with the iterator, and with this process however that ends; Ctrl-C and
    SIGTERM are this process's to answer.

    Args:
        read: reads a step; what it returns has arrays as attributes, which travel through shared memory. It is sent
            to the processes by cloudpickle.
        steps: to be read.
        workers: how many processes.

    Raises:
        UserError: Grain is not installed, a process died, or `read` raised it.
    """
    grain = _import_grain()
    source = grain.MapDataset.source(_Source(read, steps, _AHEAD * workers))
    one_by_one = source.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    results = iter(one_by_one.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _settle))
    try:
        with (
            mock.patch.object(sys.modules["__main__"], "__spec__", __spec__),  # what the processes import
            mock.patch.object(grain.multiprocessing.SharedMemoryArray, "enable_async_del"),  # too late at an exit
        ):
            # Ctrl-C reaches all processes of a terminal: new ones are deaf to it from the start, and this one waits.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            try:
                kind, attributes = _next(results)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield kind(**attributes)
        for _ in steps[1:]:
            kind, attributes = _next(results)
            yield kind(**attributes)
    finally:
        results.close()


@dataclass(frozen=True)
class _Source(Generic[T]):
    """What Grain reads from, by place: the steps, and then nothing, more often than Grain reads ahead."""

    read: Callable[[int], T]
    steps: range
    more: int

    def __len__(self) -> int:
        return len(self.steps) + self.more

    def __getitem__(self, place: int) -> tuple[type[T], dict[str, Any]] | tuple[()]:
        if place >= len(self.steps):
            return ()  # at its end, an iterator would keep its last arrays
        result = self.read(self.steps[place])
        return type(result), vars(result)


def _next(results: Iterator[Any]) -> Any:
    try:
        return next(results)
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError(
            "A process that reads images died. Memory, or shared memory (/dev/shm), may be too small: take fewer "
            "--workers or smaller batches; --workers 0 reads in this process."
        ) from error


def _settle(index: int, count: int) -> None:
    """In a worker: leave stopping to the parent, and do not outlive it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _import_grain() -> ModuleType:
    """Import Grain, but not JAX with it: a second and 130 MB for nothing in each worker, and in PyTorch."""
    spared = [name for name in ("jax", "orbax") if name not in sys.modules]
    before = logging.root.manager.disable
    try:
        sys.modules.update(dict.fromkeys(spared))  # type: ignore[arg-type]  # None: as if it were not installed
        logging.disable(logging.WARNING)  # of its absence
        import grain
        from absl import flags
    except ImportError as error:
        raise UserError(
            f"Reading in worker processes needs the package {error.name}, which is not installed: `pip install grain`, "
            f"or say --workers 0."
        ) from error
    finally:
        logging.disable(before)
        for name in spared:
            del sys.modules[name]
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl's flags, which only absl's own programs parse
    return grain


if __name__ == "__mp_main__":
    _import_grain()
