"""Several processes on this host that train together."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from common.stopping import handled
from common.world import check_port

_GRACE = 20.0  # seconds that the others get to end by themselves once a process has failed
_POLL = 0.1  # seconds
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True)
class Launch:
    """Run a module in several processes. When one of them fails, the others are ended.

    It sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, as torchrun does.

    Attributes:
        processes: on this host.
        hosts: that take part, with as many processes each.
        host: which of them this is, from 0.
        address: HOST:PORT of host 0, the same words on every host (default: a free port, for one host alone).
    """

    processes: int = 1
    hosts: int = 1
    host: int = 0
    address: str | None = None

    def check(self) -> None:
        """Refuse what cannot be started.

        Raises:
            UserError: names the option.
        """
        if self.processes < 1:
            raise UserError(f"--processes is {self.processes}; it must be at least 1.")
        if not 0 <= self.host < self.hosts:
            raise UserError(f"--host is {self.host}; with --hosts {self.hosts} it must be from 0 to {self.hosts - 1}.")
        if self.hosts > 1 and self.address is None:
            raise UserError("--hosts needs --address HOST:PORT, where every host finds host 0.")
        if self.address is not None and not self.address.rpartition(":")[2].isdecimal():
            raise UserError(f"--address is {self.address!r}; it must be HOST:PORT.")
        if self.address is not None and self.host == 0:
            check_port(self.address)

    def environments(self) -> list[dict[str, str]]:
        """What each process of this host is told."""
        name, _, port = (self.address or f"localhost:{_free_port()}").rpartition(":")
        share = str(max((os.cpu_count() or 1) // self.processes, 1))
        common = {"WORLD_SIZE": str(self.hosts * self.processes), "MASTER_ADDR": name, "MASTER_PORT": port}
        return [
            {"OMP_NUM_THREADS": share}
            | os.environ
            | common
            | {"RANK": str(self.host * self.processes + place), "LOCAL_RANK": str(place)}
            for place in range(self.processes)
        ]

    def run(self, command: Sequence[str]) -> int:
        """Run `python -m` with these words until all processes have ended.

        Returns:
            0, or the exit code of the first process that failed: 128 plus the number for one ended by a signal.
        """
        started = [
            # A session of its own: Ctrl-C reaches each process once, through this one.
            subprocess.Popen(
                [sys.executable, "-m", *command], env=environment, start_new_session=True, preexec_fn=end_with_parent
            )
            for environment in self.environments()
        ]

        def forward(number: int, frame: Any) -> None:
            for process in started:
                process.send_signal(number)

        try:
            with handled(forward):
                return self._watch(started)
        finally:
            for process in started:
                process.kill()

    def _watch(self, started: list[subprocess.Popen[bytes]]) -> int:
        codes: list[int | None] = [None]
        while None in codes and not any(codes):
            time.sleep(_POLL)
            codes = [process.poll() for process in started]
        failed = [(code, place) for place, code in enumerate(codes) if code]
        if not failed:
            return 0
        # Who loses another one ends by a mere error: name the other.
        code, place = min(failed, key=lambda one: (one[0] > 0, -one[0]))
        rank = self.host * self.processes + place
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        print(f"process {rank} of {self.hosts * self.processes} {how}; the others are ended", file=sys.stderr)
        _end(started)
        return 128 - code if code < 0 else code


def end_with_parent() -> None:
    """In a new process: get SIGTERM when the launcher is gone, however that ended; Linux alone offers it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        process.terminate()
    limit = time.monotonic() + _GRACE
    while any(process.poll() is None for process in started) and time.monotonic() < limit:
        time.sleep(_POLL)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])
