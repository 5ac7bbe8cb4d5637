"""Where in a run a checkpoint was written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.arch.spec import Arch
from common.config import from_dict
from common.errors import DamagedError, UserError
from common.recipes.spec import Recipe
from common.runs.folder import changed
from common.runs.scores import speed, told
from common.system import package_versions


@dataclass(frozen=True)
class Progress:
    """Where in a run a checkpoint was written, and what the rest of that epoch needs. Each checkpoint carries it.

    Attributes:
        recipe, arch: of the run.
        versions: of the packages that wrote it.
        step: optimizer steps so far.
        epoch: that `step` belongs to, counted from 0.
        finished: whether that epoch is, its evaluation left out.
        rows: of metrics.jsonl, of training in that epoch.
        evaluations: the rows of earlier epochs that are not of training: what the best epoch is chosen by.
        window: sums of the steps since the last of these rows.
        totals: sums of the steps before it, of that epoch.
        digest: of the batches of that epoch so far.
        seconds: spent training in that epoch.
    """

    recipe: Recipe
    arch: Arch
    versions: dict[str, str]
    step: int = 0
    epoch: int = 0
    finished: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] | None = None
    window: dict[str, float] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("loss", "correct", "count"), 0.0))
    digest: str = ""
    seconds: float = 0.0

    @classmethod
    def start(cls, recipe: Recipe, arch: Arch, epoch: int = 0, step: int = 0) -> Progress:
        """At the beginning of an epoch."""
        return cls(recipe, arch, package_versions(), step, epoch)

    @classmethod
    def read(cls, fields: Any, recipe: Recipe, arch: Arch, where: Path) -> Progress:
        """From `to_dict`'s fields.

        Raises:
            DamagedError: they do not describe it.
            UserError: the checkpoint at `where` was written by a run of another recipe or architecture.
        """
        try:
            progress = from_dict(fields, cls, str(where))
        except UserError as error:
            raise DamagedError(str(error)) from error
        if change := changed(progress.recipe, recipe):
            name, old, new = change
            raise UserError(f"{where} was written by a run with {name} = {old}, not {new}: it belongs to another run.")
        if progress.arch != arch:
            raise UserError(f"{where} holds another architecture, {progress.arch.name}, or one for other data.")
        return progress

    @property
    def epochs(self) -> int:
        """How many are finished."""
        return self.epoch + self.finished

    def summary(self) -> str:
        """Training loss, accuracy and speed of the epoch."""
        count = self.totals["count"]
        numbers = told(self.totals["loss"] / count, self.totals["correct"] / count)
        return f"{numbers}  {speed(count, self.seconds)}"
