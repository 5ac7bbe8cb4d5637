"""Everything on one GPU within nine minutes, without a network: `python -m benchmarks.bench_gpu`.

The limits, each heat of `benchmarks.settings.GPU` with its profiles, and the runs to an accuracy, in that order; what
the time does not suffice for is left out and said so. Each heat and run is filed as it ends, and a second call
goes on: what is filed of the same versions and device is not run again, and what failed is tried last. The stages
`bench` and `accuracy` are two halves of it. Ends with exit code 0 if all is there, with 3 if something was left out or
failed. `--tiny` runs the same on the CPU in small, for tests.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

from benchmarks.accuracy import measure
from benchmarks.bench import Sheet
from benchmarks.settings import GOALS, GPU, TINY, Device, Heat
from common.commands.shell import guard
from parity_tests.results import RESULTS

SECONDS = 540.0
LEFT = 3  # exit code


def main() -> None:
    """`bench_gpu [STAGE] [--out DIR] [--seconds N] [--tiny]`."""
    parser = ArgumentParser(prog="bench_gpu", description="Measure both frameworks on one GPU.")
    parser.add_argument("stage", nargs="?", choices=("bench", "accuracy"), help="limits, heats and profiles, or runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="end by then")
    parser.add_argument("--tiny", action="store_true", help="in small, on the CPU")
    options = parser.parse_args()
    until = perf_counter() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    suite, jobs = ("tiny", TINY) if options.tiny else ("gpu", GPU)
    device: Device = "cpu" if options.tiny else "gpu"
    sheet = Sheet(suite, options.out / f"bench-{suite}.json") if options.stage != "accuracy" else None
    whole = True
    for job in in_order(jobs, sheet):
        if isinstance(job, Heat) and sheet:
            sheet.run(job, until)
        elif isinstance(job, str) and options.stage != "bench":
            whole &= reach(job, device, options.out / f"accuracy-{job}-{device}.json", until)
    if sheet:
        sheet.show()
        whole &= all(map(sheet.whole, (job for job in jobs if isinstance(job, Heat))))
    if not whole:
        raise SystemExit(LEFT)


def in_order(jobs: tuple[Heat | str, ...], sheet: Sheet | None) -> list[Heat | str]:
    """Those that are not done, heats that failed in an earlier call last."""
    heats = [job for job in jobs if isinstance(job, Heat)] if sheet else []
    done = [heat for heat in heats if sheet and sheet.whole(heat)]
    failed = [heat for heat in heats if sheet and heat not in done and sheet.rows(heat)]
    return [job for job in jobs if job not in done and job not in failed] + failed


def reach(name: str, device: Device, out: Path, until: float) -> bool:
    """The runs of a goal, if there is time for half of them; whether all are there."""
    left, needed = until - perf_counter(), GOALS[name].seconds / 2
    if left < needed or left < 0:
        print(f"{name}: left out, needs about {needed:.0f} s, and {max(left, 0):.0f} s are left", flush=True)
        return False
    return measure(name, device, out, until)


if __name__ == "__main__":
    guard(main)
