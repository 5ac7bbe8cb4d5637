"""One contestant in a process of its own: reads how many steps to train, a line each, and answers with seconds.

`python -m benchmarks.worker '{"loop": "torch", "arch": "alexnet", "batch": 64}'`; `bench.py` starts it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from itertools import chain, count, repeat
from time import perf_counter, process_time, sleep
from typing import Any, Protocol

from benchmarks.settings import Contestant
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.data.pipeline import steps_per_epoch
from common.data.synthetic import pixels
from parity_tests.material import narrow

EPOCH = 8  # batches


class Runs(Protocol):
    """A training loop."""

    def run(self, steps: int) -> float:
        """Train until the device has finished; returns the seconds spent waiting for input."""


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
        self.data = pixels(arch, EPOCH * contestant.batch, image=stored)
        self.contestant = contestant
        self.feed = self.begin(arch, steps_per_epoch(self.data, contestant.recipe))
        self.inputs = self.endless_inputs()

    def begin(self, arch: Arch, steps: int) -> Any:
        """Make the state; returns what takes batches to the device."""
        raise NotImplementedError

    def step(self, inputs: Any) -> Any:
        """Train one step; returns its sums, on the device."""
        raise NotImplementedError

    def endless_inputs(self) -> Iterator[Any]:
        """Inputs on the device for ever, each late by `pause`, or the first for ever."""
        passes = (self.feed(epoch, train=True) for epoch in count())
        if self.contestant.data == "fixed":
            yield from repeat(next(next(passes))[1])
        for _, inputs in chain.from_iterable(passes):
            sleep(self.contestant.pause)
            yield inputs

    def run(self, steps: int) -> float:
        """See `Runs`."""
        waited = 0.0
        for _ in range(steps):
            started = perf_counter()
            inputs = next(self.inputs)
            waited += perf_counter() - started
            sums = self.step(inputs)
        float(sums["loss"])
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

    def step(self, inputs: Any) -> Any:
        return self.train_step(self.state, inputs)


class OursFlax(Ours):
    """In Flax."""

    def begin(self, arch: Arch, steps: int) -> Any:
        from flax_impl import device, feed, state, train

        place = device.pick_device(self.contestant.device)
        self.train_step = train.train_step
        self.state = state.init_state(self.contestant.recipe, arch, steps, place)
        return feed.feeds([self.data], self.contestant.recipe, place)[0]

    def step(self, inputs: Any) -> Any:
        self.state, sums = self.train_step(self.state, inputs)
        return sums


def set_products(contestant: Contestant) -> None:
    """Compute float32 products as the contestant says: in float32, or rounded to TF32 on the way in."""
    rounded = contestant.precision == "tf32"
    if "flax" in contestant.loop:
        import jax

        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if rounded else "highest")
        if contestant.device == "cpu":
            jax.config.update("jax_platforms", "cpu")
    else:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounded


def make(contestant: Contestant) -> Runs:
    """The contestant's loop."""
    set_products(contestant)
    arch = adapted(contestant)
    if contestant.loop == "torch":
        return OursTorch(contestant, arch)
    if contestant.loop == "flax":
        return OursFlax(contestant, arch)
    if contestant.loop == "plain_flax":
        from benchmarks.plain_flax import PlainFlax

        return PlainFlax(contestant, arch)
    from benchmarks.plain_torch import PlainTorch

    return PlainTorch(contestant, arch)


def peak_bytes(contestant: Contestant) -> int:
    """The most memory that the process has held so far: the device's on a GPU."""
    if contestant.device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if "flax" in contestant.loop:
        import jax

        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    import torch

    return torch.cuda.max_memory_allocated()


def main() -> None:
    """Make the loop, take its first step, then as many as each line of the input says."""
    contestant = Contestant(**json.loads(sys.argv[1]))
    loop, steps = make(contestant), 1
    while True:
        started, cpu = perf_counter(), process_time()
        waited = loop.run(steps)
        took = {"seconds": perf_counter() - started, "waited": waited, "cpu_seconds": process_time() - cpu}
        print(json.dumps(took | {"peak_bytes": peak_bytes(contestant)}), flush=True)
        if not (line := sys.stdin.readline()):
            return
        steps = int(line)


if __name__ == "__main__":
    main()
