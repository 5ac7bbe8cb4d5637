"""What the device can do at best: a large matrix product in each precision, and a copy, measured in the same run.

In a process of its own, which has ended before anything else is measured: `python -m benchmarks.limits gpu`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from common.commands.shell import guard
from common.errors import UserError
from parity_tests.results import ROOT

PRECISIONS = {"cpu": ("float32", "bfloat16"), "gpu": ("float32", "tf32", "bfloat16", "float16")}


@dataclass(frozen=True)
class Limits:
    """The best of several tries.

    Attributes:
        device: in words.
        operations: floating-point operations a second of a large product, for each precision.
        bytes: read or written a second by a large copy.
    """

    device: str
    operations: dict[str, float]
    bytes: float


def measure_limits(device: str, *, quick: bool = False) -> Limits:
    """Measure them; `quick` with small operands, for tests.

    Raises:
        UserError: the device is not there, or does not compute.
    """
    command = [sys.executable, "-m", "benchmarks.limits", device, *(["quick"] if quick else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"The limits of the {device} cannot be measured; what it says stands above.")
    return Limits(**json.loads(done.stdout.splitlines()[-1]))


def measure(device: str, *, quick: bool) -> Limits:
    """Measure them in this process."""
    import torch

    from torch_impl.device import pick_device

    place = pick_device(device)
    side = 256 if quick else (8192 if device == "gpu" else 2048)
    operations = {precision: _product(place, side, precision) for precision in PRECISIONS[device]}
    source = torch.empty(side * side * 16, device=place).fill_(1)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return Limits(_name(place), operations, moved / _best(place, lambda: target.copy_(source)))


def _product(place: Any, side: int, precision: str) -> float:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    left, right = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(place, lambda: left @ right)


def _best(place: Any, function: Callable[[], Any], tries: int = 20, enough: float = 2.0) -> float:
    """The fewest seconds of several tries; of fewer where they take `enough` together."""
    import torch

    seconds: list[float] = []
    while len(seconds) < tries and sum(seconds) < enough:
        started = perf_counter()
        function()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds.append(perf_counter() - started)
    return min(seconds)


def _name(place: Any) -> str:
    import torch

    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads"


def main() -> None:
    """`limits.py DEVICE [quick]`: print them as JSON."""
    print(json.dumps(asdict(measure(sys.argv[1], quick="quick" in sys.argv))))


if __name__ == "__main__":
    guard(main)
