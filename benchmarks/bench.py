"""How fast this project trains, beside the loops that others write: `python -m benchmarks.bench cpu`.

The programs of a heat run in processes of their own, are started one after the other and take turns, so that what else
the machine does meets all of them. Writes benchmarks/results/bench-SUITE.json and prints a table.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from benchmarks import kernels
from benchmarks.limits import Limits, measure_limits
from benchmarks.settings import SUITES, Contestant, Heat
from benchmarks.worker import adapted
from common.arch.spec import Arch
from common.commands.shell import guard
from common.config import read_json
from common.errors import UserError, lookup
from common.runs.files import write_json
from common.system import SPINS, commit, package_versions
from parity_tests.results import RESULTS, ROOT

# Those who wait for their turn must neither spin nor hold memory that they do not use: OpenMP's threads wait as they do
# in training, and JAX takes no more of a GPU than this share, for what its autotuner once tried it keeps. A first step
# is one on a machine that has kept no programs.
ENVIRONMENT = {name: value for name, value in os.environ.items() if "CLIENT_MEM_FRACTION" not in name} | {
    "GOMP_SPINCOUNT": SPINS,
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_CLIENT_MEM_FRACTION": "0.2",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
WIDTH = {"float64": 8, "bfloat16": 2, "float16": 2}  # bytes of a number that passes between layers; else 4
PATIENCE = 240.0  # seconds that a program may take for an answer
PROFILED = 3  # steps


class Worker:
    """A program in a process of its own; see `benchmarks.worker`."""

    def __init__(self, contestant: Contestant) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(contestant))]
        pipe, self.started = subprocess.PIPE, perf_counter()
        self.process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True)
        self.contestant, self.first_step_seconds = contestant, 0.0
        self.memory: dict[str, int | None] = {}

    def ask(self, *command: str | int) -> dict[str, Any]:
        """What it answers to a command.

        Raises:
            UserError: it has failed, its own message stands above; or there is no answer.
        """
        assert self.process.stdin
        assert self.process.stdout
        who = f"{self.contestant.name}, {self.contestant.arch}, batch {self.contestant.batch}"
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise UserError(f"{who}: failed.") from None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.process.kill()
            raise UserError(f"{who}: no answer in {PATIENCE:.0f} s.")
        if not (line := self.process.stdout.readline()):
            raise UserError(f"{who}: failed.")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end by itself."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def stop(self) -> None:
        """Wait until it has ended, or end it."""
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@dataclass
class Entry:
    """A contestant at work, or why it is not."""

    contestant: Contestant
    worker: Worker | None
    turns: list[dict[str, float]] = field(default_factory=list)
    failed: str = ""

    def do(self, *command: str | int) -> dict[str, Any]:
        """What its process answers; nothing from the first failure on, which is kept."""
        if self.worker is None or self.failed:
            return {}
        try:
            return self.worker.ask(*command)
        except UserError as error:
            self.failed = str(error)
            return {}

    def warm_up(self, steps: int) -> None:
        """Take the first step, which compiles, then those of a turn."""
        self.do("run", self.contestant.data, 1)
        if self.worker and not self.worker.first_step_seconds:
            self.worker.first_step_seconds = perf_counter() - self.worker.started
        self.do("run", self.contestant.data, steps)
        self.do("settle")


def race(heat: Heat, until: float = inf) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Start the programs one by one, each warm before the next, then let the contestants take turns.

    Args:
        heat: of which programs.
        until: when (perf_counter) nothing more is begun.

    Returns:
        Every contestant, and a profile of each program if the heat asks for them.
    """
    with started(heat, until) as entries:
        for turn in range(heat.rounds):
            for entry in entries if not turn or perf_counter() < until else []:
                if answer := entry.do("run", entry.contestant.data, heat.steps):
                    entry.turns.append(answer)
        programs: dict[Contestant, Entry] = {}
        for entry in entries:
            programs.setdefault(entry.contestant.process, entry)
        for entry in programs.values():
            if entry.worker:
                entry.worker.memory = entry.do("memory")
        return entries, [profile(entry) for entry in programs.values() if heat.profile and perf_counter() < until]


@contextmanager
def started(heat: Heat, until: float) -> Iterator[list[Entry]]:
    """The contestants, warm, in processes that end afterwards."""
    workers: dict[Contestant, Worker] = {}
    entries: list[Entry] = []
    try:
        for contestant in heat.contestants:
            if contestant.process not in workers and perf_counter() < until:
                workers[contestant.process] = Worker(contestant)
            worker = workers.get(contestant.process)
            entries.append(Entry(contestant, worker, failed="" if worker else f"{contestant.name}: no time to start."))
            entries[-1].warm_up(heat.steps)
        yield entries
    finally:
        for worker in workers.values():
            worker.close()
        for worker in workers.values():
            worker.stop()


def profile(entry: Entry) -> dict[str, Any]:
    """What is filed of a program's kernels, fed where it can be."""
    failed = entry.failed
    told = entry.do("profile", "fed", PROFILED)
    about = asdict(entry.contestant.process)
    told = about | (told or {"failed": entry.failed})
    entry.failed = failed  # its turns count
    return told


def row(entry: Entry, base: Entry | None, heat: Heat, limits: Limits) -> dict[str, Any]:
    """What is filed about a contestant."""
    contestant, steps, worker = entry.contestant, heat.steps, entry.worker
    about = {"heat": heat.name} | asdict(contestant)
    if entry.failed or worker is None:
        return about | {"failed": entry.failed}
    seconds = [turn["seconds"] / steps for turn in entry.turns]
    step, arch = median(seconds), adapted(contestant)
    ratios = [b["seconds"] / o["seconds"] for b, o in zip(base.turns, entry.turns, strict=True)] if base else [1.0]
    cpu = [median(turn["cpu_seconds"] / steps for turn in one.turns) for one in (entry, base or entry)]
    operations, moved = 2 * training_multiply_adds(arch) * contestant.batch, training_bytes(arch, contestant)
    return about | {
        "images_per_second": round(contestant.batch / step, 1),
        "step_seconds": step,
        "step_seconds_quartiles": quantiles(seconds, n=4)[::2] if len(seconds) > 1 else [step, step],
        "cpu_seconds": cpu[0],
        "waiting_share": sum(turn["waited"] for turn in entry.turns) / sum(turn["seconds"] for turn in entry.turns),
        **worker.memory,
        "first_step_seconds": worker.first_step_seconds,
        "times_base": median(ratios),
        "times_base_range": [min(ratios), max(ratios)],
        "times_base_cpu_seconds": cpu[1] / cpu[0],
        "of_arithmetic_limit": operations / limits.operations[contestant.precision] / step,
        "of_memory_limit": moved / limits.bytes / step,
        "base": entry is base,
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
    memory = ("memory", "reserved", "program")
    table = Table(*columns, "x base (CPU time)", "waiting", *memory, "first step", "of arithmetic", "of memory")
    for r in rows:
        contestant = Contestant(**{k: r[k] for k in Contestant.__dataclass_fields__})
        what = (
            contestant.name + (" *" if r.get("base") else ""),
            contestant.arch,
            str(contestant.side or adapted(contestant).image[0]),
            contestant.precision + (", fixed" if contestant.data == "fixed" else ""),
            str(contestant.batch),
        )
        if "failed" in r:
            table.add_row(*what, r["failed"])
            continue
        low, high = r["step_seconds_quartiles"]
        least, most = r["times_base_range"]
        held = (r.get(key) for key in ("peak_bytes", "reserved_bytes", "program_bytes"))
        table.add_row(
            *what,
            f"{r['images_per_second']:,.1f}",
            f"{1000 * r['step_seconds']:,.1f} ms",
            f"{1000 * low:,.1f} to {1000 * high:,.1f}",
            f"{r['times_base']:.2f}",
            f"{least:.2f} to {most:.2f}",
            f"{r['times_base_cpu_seconds']:.2f}",
            f"{100 * r['waiting_share']:.1f} %",
            *("" if held_bytes is None else f"{held_bytes / 2**30:.2f} GiB" for held_bytes in held),
            f"{r['first_step_seconds']:.1f} s",
            f"{100 * r['of_arithmetic_limit']:.0f} %",
            f"{100 * r['of_memory_limit']:.0f} %",
        )
    Console(width=240 if not sys.stdout.isatty() else None).print(table, "* the base of the lines below it")


class Sheet:
    """What is filed of a suite, heat by heat.

    Args:
        suite: a name of `SUITES`.
        out: the file. What it holds of the same versions, measured on the same device, stays.

    Raises:
        UserError: there is no suite of this name.
    """

    def __init__(self, suite: str, out: Path) -> None:
        heats = lookup(SUITES, suite, "suite")
        self.out, self.limits = out, measure_limits(heats[0].contestants[0].device, quick=suite == "tiny")
        about = {"suite": suite, "limits": asdict(self.limits), "versions": package_versions(), "commit": commit()}
        filed = read_json(out) if out.exists() else {}
        same = filed.get("versions") == about["versions"] and filed["limits"]["device"] == self.limits.device
        kept = {key: filed[key] for key in ("rows", "profiles")} if same and "profiles" in filed else {}
        self.content: dict[str, Any] = about | {"left_out": {}, "rows": [], "profiles": []} | kept

    def rows(self, heat: Heat) -> list[dict[str, Any]]:
        """Those that are filed, if they are of the same contestants."""
        rows = [row for row in self.content["rows"] if row["heat"] == heat.name]
        filed = [{key: row.get(key) for key in asdict(c)} for row, c in zip(rows, heat.contestants, strict=False)]
        return rows if filed == [asdict(contestant) for contestant in heat.contestants] else []

    def whole(self, heat: Heat) -> bool:
        """Whether it is filed and nobody failed."""
        rows = self.rows(heat)
        return bool(rows) and not any("failed" in row for row in rows)

    def run(self, heat: Heat, until: float) -> None:
        """Race a heat and file it, unless it would end after `until` (perf_counter)."""
        left, left_out = until - perf_counter(), self.content["left_out"]
        left_out.pop(heat.name, None)
        if left < heat.seconds or left < 0:
            left_out[heat.name] = f"needs about {heat.seconds:.0f} s, and {max(left, 0):.0f} s are left"
        else:
            entries, profiles = race(heat, until)
            base = next((entry for entry in entries if not entry.failed), None)
            told = {
                "rows": [row(e, base, heat, self.limits) | {"commit": self.content["commit"]} for e in entries],
                "profiles": [{"heat": heat.name} | profile for profile in profiles],
            }
            for key, new in told.items():
                self.content[key] = [each for each in self.content[key] if each["heat"] != heat.name] + new
        write_json(self.out, self.content)
        print(f"{heat.name}: {left_out.get(heat.name, 'done')}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """Print everything."""
        show(self.content["rows"])
        for told in self.content["profiles"]:
            contestant = Contestant(**{k: told[k] for k in Contestant.__dataclass_fields__})
            if "failed" in told:
                print(f"{contestant.name}: {told['failed']}")
            else:
                kernels.show(f"{contestant.name}, {contestant.arch}, batch {contestant.batch}", told)
        for name, why in self.content["left_out"].items():
            print(f"{name}: left out, {why}")


def main() -> None:
    """`bench.py SUITE [OUT]`: everything anew."""
    name = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / f"bench-{name}.json"
    heats = lookup(SUITES, name, "suite")
    out.unlink(missing_ok=True)
    sheet = Sheet(name, out)
    for heat in heats:
        sheet.run(heat, inf)
    sheet.show()
    print(out)


if __name__ == "__main__":
    guard(main)
