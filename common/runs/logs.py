"""The rows of metrics.jsonl sent on, to TensorBoard's event files or to Weights & Biases.

What is there follows from metrics.jsonl alone: a run that goes on writes its rows anew, up to where it goes on from, so
that a curve has each step once however often the run was killed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from itertools import accumulate
from typing import Any, Literal, Protocol, get_args

from common.config import to_dict
from common.errors import UserError, first_line, lookup
from common.frameworks import Framework
from common.runs import hints
from common.runs.files import remove, writing
from common.runs.folder import RunFolder

Log = Literal["tensorboard", "wandb"]
Mode = Literal["online", "offline", "disabled"]
PACKAGES: dict[Log, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # each extra is named as its log
PLACES = ("step", "epoch", "split")  # of a row; the rest are its numbers


class Send(Protocol):
    """Takes a row, and the time at which it was measured, in seconds since 1970."""

    def __call__(self, row: Mapping[str, Any], when: float) -> None: ...


def check_logs(logs: Sequence[Log]) -> None:
    """Find out before a run is begun whether its rows can be sent on.

    Raises:
        UserError: a package is not installed or cannot be imported, or Weights & Biases does not let the user in.
    """
    for log in logs:
        try:
            with _without("torch"):
                import_module(PACKAGES[log])
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == PACKAGES[log]
            why = "which is not installed" if absent else f"which cannot be imported ({first_line(error)})"
            raise UserError(f"--log {log} needs {PACKAGES[log]}, {why}: {hints.install(log)}") from error
    if "wandb" in logs and _mode() == "online":
        import wandb  # which asks for a key where there is a terminal

        try:
            wandb.login()
        except wandb.Error as error:
            raise UserError(f"--log wandb with WANDB_MODE=online: {first_line(error)}.") from error


def _mode() -> Mode:
    """How wandb is to work: offline, unless the environment says otherwise.

    Raises:
        UserError: it says something else.
    """
    return lookup({mode: mode for mode in get_args(Mode)}, os.environ.get("WANDB_MODE", "offline"), "WANDB_MODE")


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Within it, a package is not found unless it is there already: tensorboardX would import PyTorch beside JAX."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextmanager
def sending(logs: Sequence[Log], run: RunFolder, framework: Framework) -> Iterator[Send]:
    """Within it, each row that is given goes to every log, after those that the run has."""
    with ExitStack() as stack:
        sends = []
        for log in dict.fromkeys(logs):
            with writing(run.path / log):
                remove(run.path / log)
                sends.append(stack.enter_context(_OPEN[log](run, framework)))

        def send(row: Mapping[str, Any], when: float) -> None:
            for each in sends:
                each(row, when)

        rows = run.metrics() if sends else []
        later = [*accumulate((row.get("seconds", 0.0) for row in reversed(rows)), initial=0.0)][-2::-1]
        for row, seconds in zip(rows, later, strict=True):  # when it was measured is not in the file
            send(row, time.time() - seconds)
        yield send


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row under names that both logs take: `loss/train`, `images_per_second/train`, `top5/test`."""
    named = {key.replace("/s", "_per_second"): value for key, value in row.items() if key not in PLACES}
    return {f"{key}/{row['split']}": value for key, value in named.items()}


def settings(run: RunFolder, framework: Framework) -> dict[str, Any]:
    """The recipe and the framework as hyperparameters: `optimizer.lr`, ...; what is no number and no word as text."""
    found: dict[str, Any] = {"framework": framework}
    for key, value in to_dict(run.recipe).items():
        found |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value if isinstance(value, int | float | str) else str(value) for key, value in found.items()}


@contextmanager
def _tensorboard(run: RunFolder, framework: Framework) -> Iterator[Send]:
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    # `purge_step` tells a TensorBoard that is watching to forget what it has read.
    with SummaryWriter(str(run.path / "tensorboard"), purge_step=0, flush_secs=10) as writer:
        for summary in hparams(settings(run, framework), dict.fromkeys(("accuracy/test", "loss/test"))):
            writer.file_writer.add_summary(summary)

        def send(row: Mapping[str, Any], when: float) -> None:
            for name, value in numbers(row).items():
                writer.add_scalar(name, value, row["step"], walltime=when)

        yield send


@contextmanager
def _wandb(run: RunFolder, framework: Framework) -> Iterator[Send]:
    """Offline unless WANDB_MODE says otherwise; of one run there is one identity, however often it goes on."""
    import wandb

    (run.path / "wandb").mkdir()
    began = f"{run.path.name} {run.manifest.get('started')} {run.manifest.get('platform')}"
    book = wandb.init(
        project="alexnet-twice",
        name=run.path.name,
        id=hashlib.sha256(began.encode()).hexdigest()[:16],
        dir=run.path,
        config=settings(run, framework),
        mode=_mode(),
        settings=wandb.Settings(silent=True, console="off"),
    )
    try:
        yield lambda row, when: book.log(numbers(row), step=row["step"])
    finally:
        book.finish()


_OPEN: dict[Log, Callable[[RunFolder, Framework], AbstractContextManager[Send]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
