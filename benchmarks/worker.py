"""One program in a process of its own: reads commands, a line of JSON each, and answers each with a line.

`python -m benchmarks.worker '{"loop": "torch", "arch": "alexnet", "batch": 64}'`; `bench.py` starts it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain, count, repeat
from time import perf_counter, process_time, sleep
from typing import Any, Protocol

from benchmarks.kernels import profile
from benchmarks.settings import Contestant, Data
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.data.pipeline import steps_per_epoch
from common.data.synthetic import pixels
from common.system import peak_resident_bytes
from parity_tests.material import narrow

EPOCH, SMALL_EPOCH = 8, 64  # batches of large images and of small ones


class Runs(Protocol):
    """A training loop."""

    def launch(self, steps: int, data: Data) -> float:
        """Train, whether or not the device has finished on return; returns the seconds spent waiting for input."""

    def wait(self) -> None:
        """Until the device has finished. Nothing is copied from it."""

    def lowered(self) -> Any:
        """The step as JAX lowered it; None in PyTorch."""


def adapted(contestant: Contestant) -> Arch:
    """The architecture at the contestant's image size and width."""
    arch = ARCHS[contestant.arch]
    arch = narrow(arch, contestant.width, 64) if contestant.width > 1 else arch
    return arch.adapt(height=contestant.side, width=contestant.side) if contestant.side else arch


class Ours:
    """This project's loop: the pipeline, `Feed` and `train_step`, the loss left on the device."""

    def __init__(self, contestant: Contestant, arch: Arch) -> None:
        height, width, channels = arch.image
        stored = (contestant.stored or height, contestant.stored or width, channels)
        batches = EPOCH if stored[0] > 64 else SMALL_EPOCH
        self.data = pixels(arch, batches * contestant.batch, image=stored)
        self.contestant = contestant
        self.feed = self.begin(arch, steps_per_epoch(self.data, contestant.recipe))
        self.inputs: dict[Data, Iterator[Any]] = {"fed": self.endless_inputs(), "fixed": self.one_input()}

    def begin(self, arch: Arch, steps: int) -> Any:
        """Make the state; returns what takes batches to the device."""
        raise NotImplementedError

    def step(self, inputs: Any) -> None:
        """Train one step."""
        raise NotImplementedError

    def endless_inputs(self) -> Iterator[Any]:
        """Inputs on the device for ever, each late by `pause`."""
        for _, inputs in chain.from_iterable(self.feed(epoch, train=True) for epoch in count()):
            sleep(self.contestant.pause)
            yield inputs

    def one_input(self) -> Iterator[Any]:
        """The first for ever."""
        yield from repeat(next(iter(self.feed(0, train=True)))[1])

    def launch(self, steps: int, data: Data) -> float:
        """See `Runs`."""
        waited = 0.0
        for _ in range(steps):
            started = perf_counter()
            inputs = next(self.inputs[data])
            waited += perf_counter() - started
            self.step(inputs)
        return waited


class OursTorch(Ours):
    """In PyTorch."""

    def begin(self, arch: Arch, steps: int) -> Any:
        from torch_impl import device, feed, state, train

        place = device.pick_device(self.contestant.device)
        compiled = self.contestant.compile
        self.train_step = train.train_step
        self.state = state.init_state(self.contestant.recipe, arch, steps, place, compiled=compiled)
        return feed.feeds([self.data], self.contestant.recipe, place)[0]

    def step(self, inputs: Any) -> None:
        self.train_step(self.state, inputs)

    def wait(self) -> None:
        """See `Runs`."""
        import torch

        if self.state.device.type == "cuda":
            torch.cuda.synchronize(self.state.device)

    def lowered(self) -> None:
        """See `Runs`."""


class OursFlax(Ours):
    """In Flax."""

    def begin(self, arch: Arch, steps: int) -> Any:
        from flax_impl import device, feed, state, train

        place = device.pick_device(self.contestant.device)
        self.train_step = train.train_step
        self.state = state.init_state(self.contestant.recipe, arch, steps, place)
        return feed.feeds([self.data], self.contestant.recipe, place)[0]

    def step(self, inputs: Any) -> None:
        self.state, _ = self.train_step(self.state, inputs)

    def wait(self) -> None:
        """See `Runs`."""
        import jax

        jax.block_until_ready(self.state)

    def lowered(self) -> Any:
        """See `Runs`."""
        return self.train_step.lower(self.state, next(self.inputs["fixed"]))


def set_products(contestant: Contestant) -> None:
    """Compute float32 products as the contestant says: in float32, or rounded to TF32 on the way in; on its device."""
    if "flax" in contestant.loop:
        import jax

        products = {"float32": "highest", "tf32": "tensorfloat32"}
        jax.config.update("jax_default_matmul_precision", products.get(contestant.precision))
        jax.config.update("jax_platforms", "cpu" if contestant.device == "cpu" else "cuda,cpu")
    else:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = contestant.precision == "tf32"


def make(contestant: Contestant) -> Runs:
    """The contestant's loop."""
    set_products(contestant)
    arch = adapted(contestant)
    if contestant.loop == "torch":
        return OursTorch(contestant, arch)
    if contestant.loop == "flax":
        return OursFlax(contestant, arch)
    if contestant.loop in ("plain_flax", "strong_flax"):
        from benchmarks.plain_flax import PlainFlax, StrongFlax

        return (PlainFlax if contestant.loop == "plain_flax" else StrongFlax)(contestant, arch)
    from benchmarks.plain_torch import PlainTorch, StrongTorch

    return (StrongTorch if contestant.loop == "strong_torch" else PlainTorch)(contestant, arch)


def run(loop: Runs, data: Data, steps: int) -> dict[str, float]:
    """Train so many steps until the device has finished; returns seconds."""
    started, cpu = perf_counter(), process_time()
    waited = loop.launch(steps, data)
    loop.wait()
    return {"seconds": perf_counter() - started, "waited": waited, "cpu_seconds": process_time() - cpu}


def settle(contestant: Contestant) -> dict[str, float]:
    """Give back what only the first steps needed, such as cuDNN's trials, and count PyTorch's peaks from here."""
    if contestant.device == "gpu" and "flax" not in contestant.loop:
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return {}


def memory(loop: Runs, contestant: Contestant) -> dict[str, int | None]:
    """Bytes at most: allocated (on a CPU, held by the process), reserved by the framework, and needed by the program.

    JAX counts from the start of the process, trials of its autotuner included; what its compiled step needs is known
    by itself. PyTorch has no such figure: there it is what was allocated.
    """
    program = None
    if lowered := loop.lowered():
        stats = lowered.compile().memory_analysis()  # of the program that runs: nothing is compiled again
        held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        program = held + stats.temp_size_in_bytes
    if contestant.device == "cpu":
        return {"peak_bytes": peak_resident_bytes(), "reserved_bytes": None, "program_bytes": program}
    if program is not None:
        import jax

        told = jax.local_devices()[0].memory_stats() or {}
        peak, reserved = told.get("peak_bytes_in_use"), told.get("peak_pool_bytes")
    else:
        import torch

        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        program = peak
    return {"peak_bytes": peak, "reserved_bytes": reserved, "program_bytes": program}


def main() -> None:
    """Make the loop, then do what each line of the input says."""
    contestant = Contestant(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no answer
    loop = make(contestant)
    commands: dict[str, Callable[..., Any]] = {
        "run": lambda data, steps: run(loop, data, steps),
        "settle": lambda: settle(contestant),
        "memory": lambda: memory(loop, contestant),
        "profile": lambda data, steps: profile(loop, data, steps, "flax" if "flax" in contestant.loop else "torch"),
    }
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        answers.write(json.dumps(commands[name](*arguments)) + "\n")


if __name__ == "__main__":
    main()
