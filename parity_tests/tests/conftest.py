"""Settings that every test needs, and what tests share."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from parity_tests import QUICK_XLA

os.environ.pop("MAKELEVEL", None)  # commands name the next one as make's where make has started them
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share one GPU's memory
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's idle threads must not spin where XLA's work
# Tests, and the commands that they start, compile the same programs again and again: each is kept for all of them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[2] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
if not Path("/dev/nvidiactl").exists():  # a GPU's tests, and `make test-full` (XLA_FLAGS=), compile as users do
    os.environ.setdefault("XLA_FLAGS", QUICK_XLA)
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # several processes share the cores
    share = max((os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

import signal
from collections.abc import Iterator

import jax
import psutil
import pytest

import common.system
from parity_tests import results

# Tests send signals, which a process in the background (&, nohup) would ignore, and those that it starts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

common.system.keep_freed = lambda: False  # one process runs hundreds of networks: what is freed must go back


@pytest.fixture(autouse=True, scope="session")
def _imports_stay() -> None:
    """Spare the collections between tests the objects of all imported modules: they are many, and never garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _drop_compiled() -> Iterator[None]:
    """Each of XLA's functions keeps a few memory mappings; a process that reaches the kernel's 65,530 is killed."""
    yield
    jax.clear_caches()
    gc.collect()


_GROWN = 64 << 20  # bytes; a collection after each of thousands of tests would take minutes
_held = [0]


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Drop networks in reference cycles, and the x64 mode that a float64 run switches on for its whole process."""
    yield
    process = psutil.Process()
    if process.memory_info().rss > _held[0] + _GROWN:
        gc.collect()
        _held[0] = process.memory_info().rss
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX with 64-bit numbers, for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def record() -> results.Record:
    """A function that files a measurement."""
    return results.record
