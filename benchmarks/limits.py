"""What the device can do at best: a large matrix product in each precision, and a copy, measured in the same run."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch


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
    """Measure them; `quick` with small operands, for tests."""
    place = torch.device("cuda" if device == "gpu" else "cpu")
    side = 256 if quick else (8192 if device == "gpu" else 2048)
    operations = {"float32": _product(place, side, torch.float32, tf32=False)}
    operations["bfloat16"] = _product(place, side, torch.bfloat16, tf32=False)
    operations["tf32"] = _product(place, side, torch.float32, tf32=True) if device == "gpu" else 0.0
    source = torch.empty(side * side * 16, device=place).fill_(1)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return Limits(_name(place), operations, moved / _best(place, lambda: target.copy_(source)))


def _product(place: torch.device, side: int, dtype: torch.dtype, *, tf32: bool) -> float:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    left, right = (torch.randn(side, side, device=place).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(place, lambda: left @ right)


def _best(place: torch.device, function: object, tries: int = 10, enough: float = 2.0) -> float:
    """The fewest seconds of several tries; of fewer where they take `enough` together."""
    seconds: list[float] = []
    while len(seconds) < tries and sum(seconds) < enough:
        started = perf_counter()
        function()  # type: ignore[operator]
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        seconds.append(perf_counter() - started)
    return min(seconds)


def _name(place: torch.device) -> str:
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {torch.get_num_threads()} threads"
