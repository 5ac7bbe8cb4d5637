"""What `fit` keeps and tells while it trains: rows in metrics.jsonl, checkpoints' progress, a bar, a line per epoch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

from common.arch import Arch
from common.config import from_dict
from common.datasets import Dataset, Split
from common.errors import DamagedError, NonFiniteError, UserError
from common.files import flush, remove, unused, writing
from common.pipeline import Batch, batches
from common.recipes import Recipe
from common.run import Framework, RunFolder, Scores, changed, package_versions, write_json
from common.stopping import Stop


@dataclass(frozen=True)
class Progress:
    """Where in a run a checkpoint was written, and what the rest of that epoch needs. Each checkpoint carries it.

    Attributes:
        recipe, arch: of the run.
        versions: of the packages that wrote it.
        step: optimizer steps so far.
        epoch: that `step` belongs to, counted from 0.
        finished: whether that epoch is, its evaluation included.
        rows: of metrics.jsonl, of that epoch.
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


class Journal:
    """The book of one run.

    Args:
        run: where the rows go.
        framework: of the run.
        arch: of the network.
        steps: in each epoch.
        log_every: steps between two rows. Metrics stay on the device until then, so that the loop need not wait.
        checkpoint_every: steps between two checkpoints within an epoch; None: none there.
        keep: how many checkpoints stay, the best apart; None: all.
    """

    def __init__(
        self,
        run: RunFolder,
        framework: Framework,
        arch: Arch,
        steps: int,
        log_every: int,
        checkpoint_every: int | None = None,
        keep: int | None = None,
    ) -> None:
        self.run, self.framework, self.recipe, self.steps, self.log_every = run, framework, run.recipe, steps, log_every
        self.arch, self.checkpoint_every, self.keep = arch, checkpoint_every, keep
        self.stop = Stop()
        self.evaluations: list[dict[str, Any]] = []  # the rows that are not of training
        self.progress = Progress.start(self.recipe, arch)  # of the checkpoint that training starts from

    def rewind(self) -> None:
        """Drop the rows that were written after `progress`, and say so if other packages wrote that."""
        self.run.rewind(self.progress.epoch, self.progress.rows, self.progress.evaluations)
        self.evaluations = [row for row in self.run.metrics() if row["split"] != "train"]
        for package, version in package_versions().items():
            before = self.progress.versions.get(package, version)
            if before != version:
                print(
                    f"note: the checkpoint was written with {package} {before}, and {version} is installed: "
                    f"what follows may differ in its last digits",
                    file=sys.stderr,
                )

    def set_aside(self, path: Path, error: DamagedError) -> None:
        """Tell of a damaged checkpoint and rename it, so that it is no longer taken for one."""
        aside = unused(path.with_name(f"{path.name}.damaged"))
        with writing(path):
            path.rename(aside)
        print(f"warning: {error} It is skipped and kept as {aside.name}.", file=sys.stderr)

    def repeat(self, train: Dataset, until: int) -> Iterator[tuple[int, Batch]]:
        """The batches since the last checkpoint once more, each with its step, counted from 1; one beyond `until`."""
        step = self.progress.step
        for epoch in range(self.progress.epochs, self.recipe.epochs):
            for batch in batches(train, self.recipe, epoch, train=True, start=step - epoch * self.steps):
                step += 1
                if step > until + 1:
                    return
                yield step, batch

    @contextmanager
    def epoch(self, epoch: int) -> Iterator[EpochRecord]:
        """Record one epoch, counted from 0; at its end the hash of its batches goes into the metrics."""
        from rich.console import Console

        with _bar(Console(stderr=True), f"epoch {epoch + 1}/{self.recipe.epochs}", self.steps) as bar:
            record = EpochRecord(self, epoch, bar)
            yield record
        record.close()

    def scores(self, epoch: int, scores: Mapping[Split, Scores], record: EpochRecord) -> None:
        """Write an epoch's evaluations and print its line."""
        for split, score in scores.items():
            numbers = {"loss": score.mean_loss, "accuracy": score.accuracy, "top5": score.top5 / score.count}
            self.evaluations.append(record.log(step=record.step, epoch=epoch + 1, split=split, **numbers))
        record.finished = True
        tested = "  ".join(f"{split} {score.mean_loss:.4f} {score.accuracy:.4f}" for split, score in scores.items())
        print(f"epoch {epoch + 1:3d}/{self.recipe.epochs}  {record.summary()}  {tested}", flush=True)

    @property
    def best(self) -> dict[str, tuple[float, int]]:
        """The highest accuracy on each split, and the first epoch that had it."""
        found: dict[str, tuple[float, int]] = {}
        for row in self.evaluations:
            if row["accuracy"] > found.get(row["split"], (-1.0, 0))[0]:
                found[row["split"]] = (row["accuracy"], row["epoch"])
        return found

    def prune(self) -> None:
        """Delete the oldest checkpoints beyond `keep`, but never one of a best epoch."""
        best = [self.run.checkpoint(epoch, self.framework) for _, epoch in self.best.values()]
        if self.keep:
            for path in self.run.checkpoints(self.framework)[: -self.keep]:
                if path not in best:
                    with writing(path):
                        remove(path)

    def final_epoch(self) -> int:
        """The epoch whose weights are the run's result: the best on the validation split, or the last without one."""
        return self.best["val"][1] if "val" in self.best else self.recipe.epochs

    def close(self, peak_memory: int) -> None:
        """Print what the run came to and where it lies; its peak memory, in bytes, goes into the manifest."""
        write_json(self.run.path / "manifest.json", self.run.manifest | {"peak_memory_bytes": peak_memory})
        rows = [row for row in self.run.metrics() if row["split"] == "test" and row["epoch"] == self.final_epoch()]
        print(f"\ntest accuracy {rows[-1]['accuracy']:.4f} after epoch {self.final_epoch()}", end="")
        if "val" in self.best:
            print(f", which was best on the validation split ({self.best['val'][0]:.4f})")
        else:
            best, epoch = self.best["test"]
            print(f" (best {best:.4f} after epoch {epoch}, but chosen on the test split: hold one out, --val-fraction)")
        print(f"{self.run.path}: curves.png, metrics.jsonl, model.safetensors, checkpoints/")


class EpochRecord:
    """The sums of one epoch; called with each batch and what its step returned."""

    def __init__(self, journal: Journal, epoch: int, bar: Any) -> None:
        self.journal, self.epoch, self.bar = journal, epoch, bar
        start = journal.progress
        if start.epoch != epoch or start.finished:
            start = Progress.start(journal.recipe, journal.arch, epoch, epoch * journal.steps)
        self.step, self.rows, self.digest = start.step, list(start.rows), start.digest
        self.window: dict[str, Any] = dict(start.window)
        self.totals = dict(start.totals)
        self.finished = False
        self.window_started = perf_counter()
        self.started = self.window_started - start.seconds
        self.seconds = 0.0

    @property
    def done(self) -> int:
        """Steps of this epoch so far."""
        return self.step - self.epoch * self.journal.steps

    def __call__(self, batch: Batch, sums: Mapping[str, Any]) -> None:
        """Add one step.

        Args:
            batch: that was trained on.
            sums: `loss` and `correct` summed over the batch and its `count`, as device scalars.

        Raises:
            NonFiniteError: the losses since the last row come to NaN or infinity.
        """
        if self.window and self.step % self.journal.log_every == 0:
            self._flush()  # of the steps before this one, which the device works on while these are waited for
        self.step += 1
        digest = hashlib.sha256(self.digest.encode())
        batch.update(digest)
        self.digest = digest.hexdigest()
        self.window = {name: self.window[name] + value for name, value in sums.items()} if self.window else dict(sums)
        if self.done == self.journal.steps:
            self._flush()
        self.bar(self.done, self.totals)

    def _flush(self) -> None:
        sums = self._read_window()
        now = perf_counter()
        lr = self.journal.recipe.learning_rate(self.step - 1, self.journal.steps)
        count = sums["count"]
        numbers = {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count, "lr": lr}
        seconds = now - self.window_started
        speed = {"seconds": seconds, "images/s": count / seconds}
        self.log(step=self.step, epoch=self.epoch + 1, split="train", **numbers, **speed)
        self.totals = {name: self.totals[name] + sums[name] for name in self.totals}
        self.window, self.window_started = {}, now

    def _read_window(self) -> dict[str, float]:
        """From the device; exact, so that a sum goes on from it as it would have there."""
        sums = {name: float(value) for name, value in self.window.items()}
        if not isfinite(sums.get("loss", 0.0)):
            raise NonFiniteError(f"the loss is {sums['loss']}", self.step)
        return sums

    def log(self, **row: Any) -> dict[str, Any]:
        """Add a row to the metrics, and give it back; the epoch's checkpoints carry it too."""
        self.journal.run.log(**row)
        self.rows.append(row)
        return row

    @property
    def due(self) -> bool:
        """Whether a checkpoint belongs after this step: it is its turn, or a signal asks to stop."""
        every = self.journal.checkpoint_every
        return self.journal.stop.number is not None or bool(
            every and self.step % every == 0 and self.done < self.journal.steps
        )

    @property
    def path(self) -> Path:
        """Where the checkpoint after this step goes, or after the epoch if that is finished."""
        journal = self.journal
        if self.finished:
            return journal.run.checkpoint(self.epoch + 1, journal.framework)
        return journal.run.checkpoint(self.epoch, journal.framework, self.step)

    def progress(self) -> Progress:
        """What the checkpoint after this step carries; the rows so far are on the disk before it.

        Raises:
            NonFiniteError: a loss since the last row is NaN or infinite.
        """
        if (metrics := self.journal.run.path / "metrics.jsonl").exists():
            flush(metrics)
        return Progress(
            self.journal.recipe,
            self.journal.arch,
            package_versions(),
            self.step,
            self.epoch,
            self.finished,
            self.rows,
            [row for row in self.journal.evaluations if row["epoch"] <= self.epoch],
            self._read_window(),
            self.totals,
            self.digest,
            self.seconds or perf_counter() - self.started,
        )

    def saved(self) -> None:
        """Say that the checkpoint is written: older ones are pruned.

        Raises:
            Stopped: a signal has asked to stop.
        """
        self.journal.prune()
        advice = f"the same command with --resume --out {self.journal.run.path} continues it"
        self.journal.stop.raise_if_asked(f"{self.path} is written; {advice}")

    def close(self) -> None:
        """End the epoch: its batches' hash goes into the manifest."""
        self.seconds = perf_counter() - self.started
        manifest = self.journal.run.manifest
        manifest.setdefault("batches_sha256", {})[str(self.epoch + 1)] = self.digest
        write_json(self.journal.run.path / "manifest.json", manifest)

    def summary(self) -> str:
        """Training loss, accuracy and speed of the epoch."""
        count = self.totals["count"]
        mean, share = self.totals["loss"] / count, self.totals["correct"] / count
        return f"train {mean:.4f} {share:.4f}  {count / self.seconds:,.0f} images/s"


@contextmanager
def _bar(console: Any, title: str, steps: int) -> Iterator[Any]:
    """A function (steps done, totals) that draws a bar on a terminal and does nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=steps, numbers="")
        started = perf_counter()

        def update(done: int, totals: Mapping[str, float]) -> None:
            numbers = ""
            if totals["count"]:
                loss, accuracy = totals["loss"] / totals["count"], totals["correct"] / totals["count"]
                rate = totals["count"] / (perf_counter() - started)
                numbers = f"loss {loss:.4f}  accuracy {accuracy:.4f}  {rate:,.0f} images/s"
            progress.update(task, completed=done, numbers=numbers)

        yield update
