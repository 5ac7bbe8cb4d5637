"""The C library's allocator, told to keep what is freed."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc, malloc.h


def keep_freed() -> bool:
    """Let glibc keep large freed blocks for the next step instead of returning them to the system.

    Both frameworks free and allocate the same hundreds of megabytes at every step on the CPU, and a page that comes
    from the system is cleared first.

    Returns:
        Whether it does so; other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_M_TOP_PAD, 2**28))
