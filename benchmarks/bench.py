"""How fast this project trains, beside the loops that others write: `python -m benchmarks.bench cpu`.

The contestants of a heat run in processes of their own and take turns, so that what else the machine does meets all
of them. Writes benchmarks/results/bench-SUITE.json and prints a table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from benchmarks.limits import Limits, measure_limits
from benchmarks.settings import SUITES, Contestant, Heat
from benchmarks.worker import adapted
from common.arch.spec import Arch
from common.errors import UserError, lookup
from common.runs.files import write_json
from common.system import package_versions
from parity_tests.results import RESULTS, ROOT

# Those who wait for their turn must not spin, nor hold memory that they do not use.
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "passive", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
WIDTH = {"float64": 8, "bfloat16": 2, "float16": 2}  # bytes of a number that passes between layers; else 4


@dataclass
class Entry:
    """A contestant at work."""

    contestant: Contestant
    process: subprocess.Popen[str]
    started: float
    first_step: float = 0.0
    turns: list[dict[str, float]] = field(default_factory=list)
    peak_bytes: int = 0

    @classmethod
    def start(cls, contestant: Contestant) -> Entry:
        """Start its process; its first answer comes after the first step."""
        command = [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(contestant))]
        pipe, started = subprocess.PIPE, perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True)
        return cls(contestant, process, started)

    def answer(self) -> dict[str, float]:
        """What it says after its steps.

        Raises:
            UserError: it has failed; its own message stands above.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.contestant.name} failed, {self.contestant.arch}, batch {self.contestant.batch}.")
        said = json.loads(line)
        self.peak_bytes = said.pop("peak_bytes")
        return said

    def turn(self, steps: int) -> dict[str, float]:
        """Let it train."""
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End its process."""
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def race(heat: Heat) -> list[Entry | str]:
    """Start the contestants, then let them take turns; a failed one is its message."""
    entries: list[Entry | str] = []
    started = map(Entry.start, heat.contestants)  # one after the other, unless all are asked for at once
    for entry in list(started) if heat.together else started:
        try:
            entry.answer()
            entry.first_step = perf_counter() - entry.started
            entry.turn(heat.steps)  # warm-up
            entries.append(entry)
        except UserError as error:
            entry.stop()
            entries.append(str(error))
    running = [entry for entry in entries if isinstance(entry, Entry)]
    try:
        for _ in range(heat.rounds):
            for entry in running:
                entry.turns.append(entry.turn(heat.steps))
    finally:
        for entry in running:
            entry.stop()
    return entries


def row(entry: Entry, base: Entry | None, heat: Heat, limits: Limits) -> dict[str, Any]:
    """What is filed about a contestant."""
    contestant, steps = entry.contestant, heat.steps
    seconds = [turn["seconds"] / steps for turn in entry.turns]
    step, arch = median(seconds), adapted(contestant)
    ratios = [b["seconds"] / o["seconds"] for b, o in zip(base.turns, entry.turns, strict=True)] if base else [1.0]
    cpu = [median(turn["cpu_seconds"] / steps for turn in one.turns) for one in (entry, base or entry)]
    operations, moved = 2 * training_multiply_adds(arch) * contestant.batch, training_bytes(arch, contestant)
    return asdict(contestant) | {
        "images_per_second": round(contestant.batch / step, 1),
        "step_seconds": step,
        "step_seconds_quartiles": quantiles(seconds, n=4)[::2] if len(seconds) > 1 else [step, step],
        "cpu_seconds": cpu[0],
        "waiting_share": sum(turn["waited"] for turn in entry.turns) / sum(turn["seconds"] for turn in entry.turns),
        "peak_bytes": entry.peak_bytes,
        "first_step_seconds": entry.first_step,
        "times_base": median(ratios),
        "times_base_range": [min(ratios), max(ratios)],
        "times_base_cpu_seconds": cpu[1] / cpu[0],
        "of_arithmetic_limit": operations / limits.operations[contestant.precision] / step,
        "of_memory_limit": moved / limits.bytes / step,
        "turns": entry.turns,
    }


def training_multiply_adds(arch: Arch) -> int:
    """Of one image's training step: forward, and twice as much backward, except the pixels' own gradient."""
    return 3 * arch.multiply_adds - next(layer.multiply_adds for layer in arch.layers())


def training_bytes(arch: Arch, contestant: Contestant) -> int:
    """The least that a step must move if nothing stays in a cache.

    Each layer's output is written and read in the forward pass, and so is its gradient in the backward pass, which
    reads the output again; each parameter is read twice, its gradient written and read, and the optimizer reads and
    writes it and its momentum: 8 times 4 bytes.
    """
    outputs = sum(layer.output[0] * layer.output[1] * layer.output[2] for layer in arch.layers())
    return 5 * outputs * contestant.batch * WIDTH.get(contestant.precision, 4) + 8 * 4 * arch.parameters


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    columns = ("loop", "network", "side", "precision", "batch", "images/s", "step", "quartiles", "x base", "range")
    table = Table(*columns, "x base (CPU time)", "waiting", "memory", "first step", "of arithmetic", "of memory")
    for r in rows:
        if "failed" in r:
            table.add_row(r["failed"])
            continue
        low, high = r["step_seconds_quartiles"]
        least, most = r["times_base_range"]
        table.add_row(
            Contestant(**{k: r[k] for k in Contestant.__dataclass_fields__}).name + (" *" if r["base"] else ""),
            r["arch"],
            str(r["side"] or adapted(Contestant(r["loop"], r["arch"], r["batch"])).image[0]),
            r["precision"] + (", fixed" if r["data"] == "fixed" else ""),
            str(r["batch"]),
            f"{r['images_per_second']:,.1f}",
            f"{1000 * r['step_seconds']:,.1f} ms",
            f"{1000 * low:,.1f} to {1000 * high:,.1f}",
            f"{r['times_base']:.2f}",
            f"{least:.2f} to {most:.2f}",
            f"{r['times_base_cpu_seconds']:.2f}",
            f"{100 * r['waiting_share']:.1f} %",
            f"{r['peak_bytes'] / 2**30:.2f} GiB",
            f"{r['first_step_seconds']:.1f} s",
            f"{100 * r['of_arithmetic_limit']:.0f} %",
            f"{100 * r['of_memory_limit']:.0f} %",
        )
    Console(width=220 if not sys.stdout.isatty() else None).print(table, "* the base of the lines below it")


def run_suite(name: str, out: Path, until: float) -> list[dict[str, Any]]:
    """Race every heat of a suite, filing after each; heats that would begin after `until` (perf_counter) are left out.

    Raises:
        UserError: there is no suite of this name.
    """
    heats = lookup(SUITES, name, "suite")
    device = heats[0].contestants[0].device
    limits = measure_limits(device, quick=name == "tiny")
    rows: list[dict[str, Any]] = []
    for heat in heats:
        if perf_counter() > until:
            rows.append({"failed": f"left out for lack of time: {[c.name for c in heat.contestants]}"})
            continue
        entries = race(heat)
        base = next((entry for entry in entries if isinstance(entry, Entry)), None)
        for entry in entries:
            if isinstance(entry, str):
                rows.append({"failed": entry})
            else:
                rows.append(row(entry, base, heat, limits) | {"base": entry is base})
        about = {"suite": name, "limits": asdict(limits), "versions": package_versions()}
        write_json(out, about | {"rows": rows})
        print(f"heat {heats.index(heat) + 1} of {len(heats)} done", file=sys.stderr, flush=True)
    show(rows)
    return rows


def main() -> None:
    """`bench.py SUITE [OUT]`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / f"bench-{name}.json"
    run_suite(name, out, perf_counter() + 3600)
    print(out)


if __name__ == "__main__":
    main()
