"""Settings that every test needs, and what tests share."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both frameworks share one GPU's memory
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's idle threads must not spin where XLA's work

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    """Drop networks that a test has left in reference cycles: hooks and compiled steps refer to them."""
    yield
    gc.collect()


@pytest.fixture
def x64() -> Iterator[None]:
    """JAX with 64-bit numbers, for one test."""
    with jax.enable_x64(True):
        yield
