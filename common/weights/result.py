"""Of which epoch a run's `model.safetensors` is, and whether its rows call that one the run's result."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.runs.choice import Choice, best_epochs, choose
from common.runs.folder import RunFolder
from common.weights import exchange


def result_of_run(run: RunFolder) -> Choice | None:
    """The choice of a finished run, from its files.

    None where these do not say, no result is there yet, or the one that is there is of another epoch, from before the
    run went on.
    """
    epoch, choice = _read(run)
    return choice if choice and epoch in (None, choice.epoch) else None


def said_of(path: Path | None) -> str:
    """What to say of the epoch that a network's file is of, as a line; empty where it is not a run's result."""
    if not path or path.name != "model.safetensors" or not RunFolder.is_at(path.parent):
        return ""
    epoch, choice = _read(RunFolder(path.parent))
    if choice and epoch in (None, choice.epoch):
        return f"{path} is of epoch {choice.epoch}, {choice.why}"
    why = ": the run has gone on since, and has no result until it is finished" if choice else ""
    return f"{path} is of epoch {epoch}{why}" if epoch else ""


def _read(run: RunFolder) -> tuple[int | None, Choice | None]:
    """The epoch that the file says it is of, and the choice by the rows; None where there is no file, or none says."""
    file, epoch = run.path / "model.safetensors", None
    try:
        epoch = exchange.read_epoch(exchange.read_metadata(file)[0], str(file))
        return epoch, choose(best_epochs(run.metrics()), run.recipe.epochs)
    except (UserError, KeyError):
        return epoch, None
