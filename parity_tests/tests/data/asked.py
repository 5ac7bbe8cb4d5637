"""What tests have worker processes do. Each of them imports this module, and so it imports little."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.data import workers
from common.data.crops import HostCrop
from common.errors import UserError


def process_id(step: int) -> int:
    return os.getpid()


def double_id(step: int) -> int:
    return 2 * os.getpid()


def refuse(step: int) -> int:
    raise UserError(f"no step {step}")


def slow(step: int) -> int:
    time.sleep(600 * min(step, 1))
    return os.getpid()


def wrong(step: int) -> int:
    raise KeyError(f"no such step: {step}")


def arrays(step: int) -> dict[str, np.ndarray]:
    """Small and large ones, and of unusual kinds."""
    large = np.random.default_rng(step).integers(0, 255, (300, 300), np.uint8)
    fixed = large.copy()
    fixed.flags.writeable = False
    return {
        "large": large,
        "other": large + 1,
        "fixed": fixed,
        "fortran": np.asfortranarray(large),
        "stepped": large[::2, ::-1],
        "empty": large[:0],
        "small": large[0],
        "limit": large.reshape(-1)[: workers._LARGE].copy(),
        "objects": np.array([step, "two", None], object),
    }


@dataclass(frozen=True)
class Noted:
    """Notes each step as a file."""

    folder: Path

    def read(self, step: int) -> int:
        (self.folder / str(step)).touch()
        return step


@dataclass(frozen=True)
class Spy:
    """A source whose labels count the frameworks that its process has imported. It talks, and listens to nothing."""

    def read(self, ids: np.ndarray, crop: HostCrop | None) -> tuple[np.ndarray, np.ndarray]:
        print("talk " * 9999, flush=True)
        assert not sys.stdin.read()
        loaded = sum(name in sys.modules for name in ("torch", "jax", "flax", "orbax"))
        return np.zeros((len(ids), 4, 4, 3), np.uint8), np.full(len(ids), loaded, np.int32)
