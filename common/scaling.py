"""What adding up gradients costs, and how training scales with it: `python -m common.scaling`.

The model of docs/distributed.md, where its assumptions are.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from common.arch.zoo import get_arch
from common.commands.shell import guard
from common.errors import UserError


@dataclass(frozen=True)
class Scaling:
    """Predict a training step's time in several processes that keep the batch of each.

    Attributes:
        arch: whose parameters are added up.
        step: seconds that one process takes for its share of a batch, without any other.
        bandwidth: bytes per second of the slowest link of the ring, in each direction.
        latency: seconds that a message takes, however small.
        bytes_per_parameter: 4 for float32 gradients.
        buckets: all-reduces that a step's gradients are split into.
        overlap: share of the step during which gradients are already on their way: the backward pass but for its first
            bucket, two thirds at most.
    """

    arch: str = "alexnet"
    step: float = 0.1
    bandwidth: float = 1.25e9
    latency: float = 50e-6
    bytes_per_parameter: int = 4
    buckets: int = 5
    overlap: float = 0.5

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            UserError: names the field.
        """
        for name in ("step", "bandwidth", "bytes_per_parameter", "buckets"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be above 0.")
        if self.latency < 0 or not 0 <= self.overlap <= 1:
            raise UserError("--latency must be at least 0 and --overlap in [0, 1].")

    def traffic(self, processes: int) -> float:
        """Bytes that each process sends in a step: 2 (n - 1) / n of the gradients (Patarasuk and Yuan, JPDC 2009)."""
        size = get_arch(self.arch).parameters * self.bytes_per_parameter
        return 2 * (processes - 1) / processes * size

    def all_reduce(self, processes: int) -> float:
        """Seconds that a step's ring all-reduces take: 2 (n - 1) messages each, one after the other."""
        return self.traffic(processes) / self.bandwidth + 2 * (processes - 1) * self.latency * self.buckets

    def seconds(self, processes: int) -> float:
        """A step's time: what of the all-reduces does not hide behind the backward pass comes on top."""
        return self.step + max(self.all_reduce(processes) - self.overlap * self.step, 0.0)

    def efficiency(self, processes: int) -> float:
        """The speed of each process, as a share of one's alone; each keeps its number of examples."""
        return self.step / self.seconds(processes)

    def break_even(self) -> float:
        """The bandwidth, in bytes per second, above which all traffic of many processes hides; latency left out."""
        size = get_arch(self.arch).parameters * self.bytes_per_parameter
        return 2 * size / (self.overlap * self.step) if self.overlap else float("inf")


def main(arguments: list[str] | None = None) -> None:
    """Print the prediction for 1 to 256 processes."""

    def run() -> None:
        scaling = tyro.cli(Scaling, args=arguments, prog="python -m common.scaling")
        scaling.check()
        print("processes  MB sent  all-reduce ms  step ms  efficiency  times as fast as one")
        for processes in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            milliseconds = 1e3 * scaling.all_reduce(processes), 1e3 * scaling.seconds(processes)
            share = scaling.efficiency(processes)
            print(
                f"{processes:9d}  {scaling.traffic(processes) / 1e6:7.1f}  {milliseconds[0]:13.1f}  "
                f"{milliseconds[1]:7.1f}  {share:10.2f}  {share * processes:21.1f}"
            )
        print(f"all traffic hides above {scaling.break_even() / 1e9:.2f} GB/s")

    guard(run)


if __name__ == "__main__":
    main()
