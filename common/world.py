"""The processes that train one network together, and which rows of a batch each of them takes."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from common.arch.spec import Arch
from common.errors import UserError, first_line
from common.recipes.spec import Recipe

# So long may a living process keep the others waiting (it writes a checkpoint, reads slow disks), in seconds.
PATIENCE = 600
# So long may a process be silent before the others take it for dead, where nobody watches it, in seconds.
HEARTBEAT = 30


@dataclass(frozen=True)
class World:
    """One process among `size`; the default is a process alone.

    Attributes:
        rank: which one, from 0.
        size: how many there are, on all hosts.
        local_rank: which one on its host, from 0: it takes that accelerator.
        address: "host:port" at which process 0 is to be found.
        even: every process holds equally many rows, as JAX's arrays need it; those beyond the batch repeat others and
            are to be masked. Else the numbers of rows differ by at most one, and may be 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = ""
    even: bool = True

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ, *, even: bool) -> World:
        """The process that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe, as torchrun sets them.

        Raises:
            UserError: one of them is missing or is no number that fits.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        given = {name: environment[name] for name in (*names, "MASTER_ADDR") if name in environment}
        if "WORLD_SIZE" not in given or given["WORLD_SIZE"] == "1":
            return cls()
        if missing := [name for name in (*names, "MASTER_ADDR") if name not in given]:
            raise UserError(f"WORLD_SIZE is {given['WORLD_SIZE']}, so {missing[0]} must be set too.")
        for name in names:
            if not given[name].isdecimal():
                raise UserError(f"{name} is {given[name]!r}; it must be a whole number.")
        rank, size, local_rank = (int(given[name]) for name in names[:3])
        if not 0 <= local_rank <= rank < size:
            raise UserError(f"RANK is {rank} and LOCAL_RANK {local_rank}; WORLD_SIZE {size} allows 0 to {size - 1}.")
        return cls(rank, size, local_rank, f"{given['MASTER_ADDR']}:{given['MASTER_PORT']}", even)

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """Meet the others in this block.

        Raises:
            UserError: they are not to be met, and why.
        """
        if self.main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun listens there
            check_port(self.address)
        try:
            yield
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank} of {self.size} cannot meet the others at {self.address}: {first_line(error)}."
            ) from error

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def rows(self, count: int) -> np.ndarray:
        """The places in a batch of `count` of this process's rows: int64 (n,), in order.

        With `even` the last ones may be `count` or more: padding.
        """
        if self.even:
            each = -(-count // self.size)
            return np.arange(self.rank * each, (self.rank + 1) * each)
        return np.arange(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def describe(self, device: str) -> str:
        """The devices of all processes in words, given this one's."""
        return device if self.alone else f"{self.size} processes, each on {device}"

    def check(self, recipe: Recipe, arch: Arch) -> None:
        """Refuse what several processes would not train as one does.

        Raises:
            UserError: says what to change.
        """
        if self.size > 1 and recipe.accumulate > 1 and any(conv.norm for conv in arch.convs):
            raise UserError(
                f"accumulate is {recipe.accumulate}, and {arch.name} has batch norm, which normalises over the "
                f"micro-batch of one process, but over {self.size} of them together. Set accumulate to 1: each process "
                f"already holds only its share of the batch."
            )
        if self.size > recipe.batch_size:
            raise UserError(f"batch_size is {recipe.batch_size}: too few examples for {self.size} processes.")


ALONE = World()


def check_port(address: str) -> None:
    """Refuse a port on which another program of this host listens.

    Raises:
        UserError: names it.
    """
    port = int(address.rpartition(":")[2])
    if port >= 2**16:
        raise UserError(f"There is no port {port}: the last is {2**16 - 1}.")
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(("", port))
    except OSError as error:
        raise UserError(f"Process 0 cannot listen on port {port}: {error.strerror}. Name another one.") from error


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Among several processes, end one that fails without a farewell: JAX would wait there for the others."""
    try:
        yield
    except BaseException as error:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        code = error.code if isinstance(error, SystemExit) else 1
        os._exit(code if isinstance(code, int) else int(code is not None))
