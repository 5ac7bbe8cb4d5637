"""What `fit` tells while it trains: rows in metrics.jsonl, a progress bar on a terminal, a line per epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from common.datasets import Split
from common.pipeline import Batch
from common.run import RunFolder, Scores, write_json


class Journal:
    """The book of one run.

    Args:
        run: where the rows go.
        steps: in each epoch.
        log_every: steps between two rows. Metrics stay on the device until then, so that the loop need not wait.
    """

    def __init__(self, run: RunFolder, steps: int, log_every: int) -> None:
        self.run, self.recipe, self.steps, self.log_every = run, run.recipe, steps, log_every
        self.best: dict[str, tuple[float, int]] = {}
        for row in run.metrics():  # of the epochs that an interrupted run has finished
            if row["split"] != "train":
                self._compare(row["split"], row["accuracy"], row["epoch"])

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
            self.run.log(step=record.step, epoch=epoch + 1, split=split, **numbers)
            self._compare(split, score.accuracy, epoch + 1)
        tested = "  ".join(f"{split} {score.mean_loss:.4f} {score.accuracy:.4f}" for split, score in scores.items())
        print(f"epoch {epoch + 1:3d}/{self.recipe.epochs}  {record.summary()}  {tested}", flush=True)

    def _compare(self, split: Split, accuracy: float, epoch: int) -> None:
        if accuracy > self.best.get(split, (-1.0, 0))[0]:
            self.best[split] = (accuracy, epoch)

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
        self.step = epoch * journal.steps
        self.digest = hashlib.sha256()
        self.window: dict[str, Any] = {}
        self.totals = {"loss": 0.0, "correct": 0.0, "count": 0.0}
        self.started = self.window_started = perf_counter()
        self.seconds = 0.0

    def __call__(self, batch: Batch, sums: Mapping[str, Any]) -> None:
        """Add one step.

        Args:
            batch: that was trained on.
            sums: `loss` and `correct` summed over the batch and its `count`, as device scalars.
        """
        self.step += 1
        batch.update(self.digest)
        self.window = {name: self.window[name] + value for name, value in sums.items()} if self.window else dict(sums)
        done = self.step - self.epoch * self.journal.steps
        if self.step % self.journal.log_every == 0 or done == self.journal.steps:
            self._flush()
        self.bar(done, self.totals)

    def _flush(self) -> None:
        sums = {name: float(value) for name, value in self.window.items()}
        now = perf_counter()
        lr = self.journal.recipe.learning_rate(self.step - 1, self.journal.steps)
        count = sums["count"]
        numbers = {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count, "lr": lr}
        seconds = now - self.window_started
        speed = {"seconds": seconds, "images/s": count / seconds}
        self.journal.run.log(step=self.step, epoch=self.epoch + 1, split="train", **numbers, **speed)
        self.totals = {name: self.totals[name] + sums[name] for name in self.totals}
        self.window, self.window_started = {}, now

    def close(self) -> None:
        """End the epoch: its batches' hash goes into the manifest (first epoch) and the metrics."""
        self.seconds = perf_counter() - self.started
        manifest = self.journal.run.manifest
        manifest.setdefault("batches_sha256", {})[str(self.epoch + 1)] = self.digest.hexdigest()
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
