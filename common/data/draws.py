"""Random numbers as a function of (seed, stream, epoch, index) and of nothing else.

numpy's Philox is counter-based: the key holds (seed, stream), the counter (position, -, epoch, -). So any example's
numbers can be had alone, in any order, on any process, and both frameworks see the same ones. Only raw uniforms are
taken from it, since numpy may change how its other distributions consume the stream (NEP 19).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_BLOCK = 4  # 64-bit words that one Philox counter value gives
_CHUNK = 1 << 16


class Stream(IntEnum):
    """What a draw is for. A new purpose is a new number at the end: renumbering would change every run; 6 is spent."""

    SPLIT = 0
    ORDER = 1
    CROP = 2
    FLIP = 3
    PCA = 4
    RESIZED_CROP = 5
    JITTER = 7
    MIX = 8


def uniforms(seed: int, stream: Stream, epoch: int, count: int, width: int) -> np.ndarray:
    """Draw `width` numbers for each of `count` examples.

    Returns:
        float64 (count, width) in [0, 1). Row i does not depend on `count`.
    """
    words = _words(width)
    return _generator(seed, stream, epoch, 0).random((count, words))[:, :width]


def uniforms_at(seed: int, stream: Stream, epoch: int, ids: np.ndarray, width: int) -> np.ndarray:
    """The rows `ids` of `uniforms` alone: float64 (n, width). For data too large for a table of all rows."""
    words = _words(width)
    generator, rows, following = _generator(seed, stream, epoch, 0), np.empty((len(ids), words)), 0
    for row, index in zip(rows, ids.tolist(), strict=True):
        generator.bit_generator.advance((index - following) * words // _BLOCK)  # type: ignore[attr-defined]
        generator.random(out=row)
        following = index + 1
    return rows[:, :width]


def order(seed: int, epoch: int, count: int, stream: Stream = Stream.ORDER) -> np.ndarray:
    """A random permutation of range(count): int64 (count,)."""
    generator, keys = _generator(seed, stream, epoch, 0), np.empty(count)
    for start in range(0, count, _CHUNK):  # the first column of `uniforms`, never all of its words at once
        part = keys[start : start + _CHUNK]
        part[:] = generator.random((len(part), _words(1)))[:, 0]
    return np.argsort(keys, kind="stable")


def normals(uniform: np.ndarray) -> np.ndarray:
    """Standard normals from pairs of uniforms (Box and Muller, 1958): (..., 2k) -> (..., k)."""
    half = uniform.shape[-1] // 2
    radius = np.sqrt(-2.0 * np.log1p(-uniform[..., :half]))
    return radius * np.cos(2.0 * np.pi * uniform[..., half:])


def betas(alpha: float, uniform: np.ndarray) -> np.ndarray:
    """Draws of Beta(alpha, alpha) from uniforms, by the inverse of its distribution function."""
    from scipy.special import betaincinv

    return np.asarray(betaincinv(alpha, alpha, uniform))


def _words(width: int) -> int:
    """Words reserved per example: whole counter values, so that each row starts at one."""
    return -(-width // _BLOCK) * _BLOCK


def _generator(seed: int, stream: Stream, epoch: int, block: int) -> np.random.Generator:
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([block, 0, epoch, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
