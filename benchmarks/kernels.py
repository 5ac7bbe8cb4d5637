"""What a few training steps make the device do: kernel by kernel, how often it idles, and how often it is waited for.

PyTorch's and JAX's own profilers record; their traces are read into the same events. On a CPU, which has no kernels,
operations are told instead. A profiled step is slower than others where the host is what limits it, so idle time is an
upper bound.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.frameworks import Framework

MARK = "benchmarked steps"  # spans them on the host
TOP = 25  # kernels that are filed

_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of PyTorch's trace
_CALLS = ("cuda_runtime", "cuda_driver")
_CALL = re.compile(r"cu(da)?[A-Z]")  # of the host to the driver, in JAX's trace
_WAIT = re.compile(r"Synchronize|Memcpy(DtoH)?(_v2)?$")  # copies that are not asynchronous wait, too
_TO_HOST = re.compile(r"D2H|DtoH")


@dataclass(frozen=True)
class Event:
    """What ran from `start` for `seconds` in a lane, a stream or a thread, in which events nest or follow another."""

    lane: Hashable
    name: str
    start: float
    seconds: float

    @property
    def end(self) -> float:
        """When it ended."""
        return self.start + self.seconds


@dataclass
class Trace:
    """A recording.

    Attributes:
        device: kernels and copies.
        operations: of a CPU, where nothing ran on another device.
        calls: of the host to the driver.
        marked: the span of the steps on the host.
    """

    device: list[Event] = field(default_factory=list)
    operations: list[Event] = field(default_factory=list)
    calls: list[Event] = field(default_factory=list)
    marked: list[Event] = field(default_factory=list)


def profile(loop: Any, data: str, steps: int, framework: Framework) -> dict[str, Any]:
    """Record so many steps of a `benchmarks.worker.Runs`; the summary of them. A first recording warms up."""
    record = {"torch": record_torch, "flax": record_jax}[framework]
    loop.wait()
    record(lambda: loop.launch(1, data), loop.wait)
    return summary(record(lambda: loop.launch(steps, data), loop.wait), steps)


def record_torch(launch: Callable[[], Any], wait: Callable[[], None]) -> Trace:
    """By `torch.profiler`, whose trace is a list of events in JSON."""
    import torch

    with torch.profiler.profile() as profiler:
        with torch.profiler.record_function(MARK):
            launch()
        wait()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        content = json.loads(path.read_text("utf-8"))
    trace = Trace()
    for said in content["traceEvents"]:
        if said.get("ph") != "X":
            continue
        category, lane = said.get("cat"), (said["pid"], said["tid"])
        event = Event(lane, said["name"], said["ts"] / 1e6, said["dur"] / 1e6)
        if category in _ON_DEVICE:
            trace.device.append(event)
        elif category in _CALLS:
            trace.calls.append(event)
        elif category == "cpu_op":
            trace.operations.append(event)
        elif category == "user_annotation" and event.name == MARK:
            trace.marked.append(event)
    return trace


def record_jax(launch: Callable[[], Any], wait: Callable[[], None]) -> Trace:
    """By `jax.profiler`, whose trace has a plane for each device and one or more for the host."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # or every call of Python is recorded, and late
    with TemporaryDirectory() as folder:
        jax.profiler.start_trace(folder, profiler_options=options)
        try:
            with jax.profiler.TraceAnnotation(MARK):
                launch()
                wait()  # other threads may launch what this one asked for, and later
        finally:
            jax.profiler.stop_trace()
        [path] = Path(folder).rglob("*.xplane.pb")
        recorded = jax.profiler.ProfileData.from_file(str(path))
    trace = Trace()
    for plane in recorded.planes:
        on_device = plane.name.startswith("/device:GPU")
        for line in plane.lines:
            if on_device and not line.name.startswith("Stream"):
                continue  # sums over streams
            for said in line.events:
                event = Event((plane.name, line.name), said.name, said.start_ns / 1e9, said.duration_ns / 1e9)
                if on_device:
                    trace.device.append(event)
                elif event.name == MARK:
                    trace.marked.append(event)
                elif _CALL.match(event.name):
                    trace.calls.append(event)
                elif any(key == "hlo_op" for key, _ in said.stats):
                    trace.operations.append(event)
    return trace


def summary(trace: Trace, steps: int) -> dict[str, Any]:
    """What is filed: counts and seconds of one step, by the mean over `steps`."""
    work = trace.device or trace.operations
    seconds: dict[str, float] = defaultdict(float)
    for event, own in own_seconds(work):
        seconds[event.name] += own
    counts, total = Counter(event.name for event in work), sum(seconds.values())
    span = max(event.end for event in work) - min(event.start for event in work)
    calls = [call.name for call in trace.calls if any(m.start <= call.start < m.end for m in trace.marked)]
    waits = Counter(name for name in calls if _WAIT.search(name))
    return {
        "steps": steps,
        "on": "device" if trace.device else "cpu",
        "step_seconds": span / steps,
        "busy_seconds": busy_seconds(work) / steps,
        "idle_share": 1 - busy_seconds(work) / span,
        "kernels": len(work) / steps,
        "launches": sum("Launch" in name for name in calls) / steps,
        "waits": {name: count / steps for name, count in waits.items()},
        "copies_to_host": sum(bool(_TO_HOST.search(event.name)) for event in trace.device) / steps,
        "top": [
            {"name": name, "count": counts[name] / steps, "seconds": own / steps, "share": own / total}
            for name, own in sorted(seconds.items(), key=lambda item: -item[1])[:TOP]
        ],
    }


def own_seconds(events: Iterable[Event]) -> list[tuple[Event, float]]:
    """Each event's seconds without those of the events within it."""
    lanes: dict[Hashable, list[Event]] = defaultdict(list)
    for event in events:
        lanes[event.lane].append(event)
    found: list[tuple[Event, float]] = []
    for lane in lanes.values():
        around: list[tuple[Event, list[float]]] = []  # those that are not over, and what was within them
        for event in sorted(lane, key=lambda event: (event.start, -event.seconds)):
            while around and around[-1][0].end <= event.start:
                done, within = around.pop()
                found.append((done, done.seconds - sum(within)))
            if around:
                around[-1][1].append(event.seconds)
            around.append((event, []))
        found += [(event, event.seconds - sum(within)) for event, within in around]
    return found


def busy_seconds(events: Iterable[Event]) -> float:
    """In which at least one of them ran."""
    busy, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event.start):
        busy += max(event.end - max(event.start, until), 0.0)
        until = max(until, event.end)
    return busy


def show(name: str, told: dict[str, Any], lines: int = 12) -> None:
    """Print the table of a profile."""
    from rich.console import Console
    from rich.table import Table

    waits = ", ".join(f"{call} {count:.1f}" for call, count in told["waits"].items()) or "none"
    print(
        f"\n{name}: a step of {1000 * told['step_seconds']:.2f} ms, {100 * told['idle_share']:.0f} % idle, "
        f"{told['kernels']:.0f} kernels, {told['launches']:.0f} launches, "
        f"{told['copies_to_host']:.1f} copies to the host, waits: {waits}"
    )
    table = Table("kernel" if told["on"] == "device" else "operation", "a step", "ms", "share")
    for each in told["top"][:lines]:
        numbers = f"{each['count']:.1f}", f"{1000 * each['seconds']:.3f}", f"{100 * each['share']:.1f} %"
        table.add_row(each["name"][:90], *numbers)
    Console(width=140, markup=False, emoji=False).print(table)  # names of kernels are full of brackets and colons
