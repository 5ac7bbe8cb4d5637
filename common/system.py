"""The machine and what is installed: versions, commit, memory."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir

from common.errors import UserError

PACKAGES = ("torch", "torchvision", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def expanded(name: str) -> Path:
    """A path as it is typed, its ~ replaced.

    Raises:
        UserError: nobody says where that home is: of ~somebody unknown, or of a user whom the system does not know.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name} cannot be found: {str(error).rstrip('.')}; name the folder without ~.") from error


def cache_folder() -> Path:
    """Where this project keeps for the next time what can be had again; below a user's ~/.cache."""
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in some containers
        home = Path(gettempdir())
    return home / ".cache" / "alexnet-twice"


def programs_folder() -> Path:
    """Where what JAX compiled is kept. A home that machines share has one for each kind of processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # no Linux
        features = platform.processor()
    return cache_folder() / f"jax-{platform.machine()}-{sha256(features.encode()).hexdigest()[:8]}"


def package_versions(more: tuple[str, ...] = ()) -> dict[str, str]:
    """The installed versions of the packages that a run's numbers depend on, and of more."""
    found = {}
    for package in (*PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_resident_bytes() -> int:
    """The most memory that this process has held at once, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    # ru_maxrss would count what the parent process held when it started this one.
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def commit() -> str | None:
    """The git commit of the code, with "+changes" when files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


SPINS = "10000"


def wait_briefly() -> None:
    """Let OpenMP's threads that wait for each other give their cores to other work soon, unless the environment says
    how they wait.

    By itself libgomp, PyTorch's OpenMP on Linux, has them spin 300,000 times: where another job takes one of the cores,
    that is most of the time. Where none does they rarely wait so long. It is read once, when PyTorch is imported
    (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


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


def give_back_freed() -> None:
    """Return to the system what `keep_freed` has kept, once there is no next step."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
