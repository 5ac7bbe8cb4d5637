"""Everything on one GPU within nine minutes, without a network: `python -m benchmarks.bench_gpu`.

Throughput of both frameworks beside the plain loops, time to accuracy, growth; in this order, and what does not fit
into the time is left out and said so. `--tiny` runs the same on the CPU in small, for tests.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter

from benchmarks.accuracy import measure
from benchmarks.bench import run_suite
from benchmarks.settings import Device
from common.commands.shell import guard
from parity_tests.results import RESULTS

SECONDS = 500.0  # begun later, a heat could end beyond the nine minutes
SHARES = {"gpu": 0.5, "growth-gpu": 1.0}  # of the time, at which the last heat of a suite may begin


def main() -> None:
    """`bench_gpu [--tiny [OUT]]`."""
    tiny = "--tiny" in sys.argv
    out = Path(sys.argv[-1]) if len(sys.argv) > 2 else RESULTS
    device: Device = "cpu" if tiny else "gpu"
    started = perf_counter()
    goals, suites = (("tiny",), {"tiny": 1.0}) if tiny else (("cifar10_fast", "fashion_mnist_fast"), SHARES)
    first, *rest = suites
    run_suite(first, out / f"bench-{first}.json", started + suites[first] * SECONDS)
    for goal in goals:
        left = started + 0.85 * SECONDS - perf_counter()
        measure(goal, device, out / f"accuracy-{goal}-{device}.json", left / len(goals))
    for suite in rest:
        run_suite(suite, out / f"bench-{suite}.json", started + suites[suite] * SECONDS)
    print(f"{perf_counter() - started:.0f} s")


if __name__ == "__main__":
    guard(main)
