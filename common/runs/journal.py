"""What a run keeps and tells while it trains: rows in metrics.jsonl, checkpoints' progress, a bar, a line per epoch."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from signal import SIGINT
from time import perf_counter, time
from typing import Any

from common.arch.spec import Arch
from common.data.batch import Batch
from common.data.dataset import Dataset, described
from common.data.pipeline import batches
from common.data.spec import Split
from common.errors import DamagedError, NonFiniteError
from common.frameworks import Framework
from common.runs import hints
from common.runs.choice import UNFAIR, Choice, best_epochs, choose
from common.runs.files import flush, in_units, remove, size_of, unused, write_json, writing
from common.runs.folder import RunFolder
from common.runs.logs import Log, sending
from common.runs.progress import Progress
from common.runs.scores import Scores, percent, speed, told
from common.stopping import Stop, Stopped
from common.system import package_versions

LINE_EVERY = 30.0  # seconds between two lines of progress where there is no terminal
CHECKPOINTS_FIT = 3  # named in the last lines; of more, the newest are

Show = Callable[["EpochRecord"], object]  # what shows, after each step, how far an epoch is


class Journal:
    """The book of one run.

    Args:
        run: where the rows go.
        framework: of the run.
        arch: of the network.
        steps: in each epoch.
        log_every: steps between two rows. Metrics stay on the device until then, so that the loop need not wait.
        checkpoint_every: steps between two checkpoints within an epoch; None: none there.
        keep: how many checkpoints stay, the newest, and the best besides; None: all.
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
        self.started = perf_counter()
        self.send: Callable[[dict[str, Any], float], None] = lambda row, when: None

    @contextmanager
    def forwarding(self, logs: Sequence[Log]) -> Iterator[None]:
        """Within it, what is written goes to these logs too, and before it what was; see `sending`."""
        with sending(logs, self.run, self.framework) as self.send:
            yield

    def write(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl and to the logs."""
        self.run.log(**row)
        self.send(row, time())

    def announce(self, device: str, data: Mapping[Split, Dataset], fresh: tuple[str, ...] | None, room: str) -> None:
        """Say what is about to be trained, on what and where.

        Args:
            device: in words.
            data: the splits.
            fresh: as `Engine.start_weights` gives it.
            room: on the disk, in words.
        """
        recipe, arch, progress, train = self.recipe, self.arch, self.progress, data["train"]
        height, width, channels = arch.image
        held = " and ".join(f"{len(part):,} {name}" for name, part in data.items() if name != "train")
        print(f"{recipe.name}: {arch.name}, {arch.parameters:,} parameters, input {height}x{width}x{channels}")
        print(f"{train.name}: {len(train):,} training, {held} images, {len(train.class_names)} classes")
        for line in described(data):
            print(f"  {line}")
        if frozen := min(recipe.finetune.freeze_epochs, recipe.epochs):
            print(f"the backbone is frozen in {'all epochs' if frozen == recipe.epochs else f'the first {frozen}'}")
        if fresh is not None:
            print(f"starting from given weights; fresh: {', '.join(fresh) or 'nothing'}")
        if progress.finished and progress.epochs == recipe.epochs:
            more = "" if recipe.schedule.name == "cosine" else "; --epochs with a larger number trains on"
            print(f"resuming after epoch {progress.epochs}, the last: it is evaluated once more{more}")
        elif progress.finished:
            print(f"resuming after epoch {progress.epochs}")
        elif progress.step:
            print(f"resuming after step {progress.step}, in epoch {progress.epoch + 1}")
        print(f"on {device}, into {self.run.path} ({room})\n", flush=True)

    def rewind(self) -> None:
        """Drop the rows that were written after `progress`, and say so if other packages wrote that."""
        trained = [row for row in self.progress.rows if row["split"] == "train"]  # older checkpoints have others too
        self.run.rewind(self.progress.epoch, trained, self.progress.evaluations)
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

        console, title = Console(stderr=True), self.title(epoch + 1)
        with _bar(console, title, self.steps) if console.is_terminal else _lines(title, self) as show:
            record = EpochRecord(self, epoch, show)
            yield record
        record.close()

    def seconds_left(self, step: int) -> float:
        """How long the run will still take after so many steps, going by what it took since it began or was resumed."""
        done = step - self.progress.step
        return (perf_counter() - self.started) / done * (self.recipe.epochs * self.steps - step) if done else 0.0

    def scores(self, scores: Mapping[Split, Scores], progress: Progress) -> None:
        """Write the evaluations of the epoch that a checkpoint ends, delete older checkpoints, and print its line.

        Raises:
            Stopped: a signal has asked to stop; perhaps there is no terminal any more to print on.
        """
        for split, score in scores.items():
            numbers = {"loss": score.mean_loss, "accuracy": score.accuracy, "top5": score.top5 / score.count}
            row = {"step": progress.step, "epoch": progress.epochs, "split": split, **numbers}
            self.write(row)
            self.evaluations.append(row)
        self.prune()
        self.stop_if_asked(self.run.checkpoint(progress.epochs, self.framework))
        held = "  ".join(f"{split} {told(score.mean_loss, score.accuracy)}" for split, score in scores.items())
        print(f"{self.title(progress.epochs)}  {progress.summary()} | {held}", flush=True)
        if left := progress.rows[-1].get("left_out") if progress.rows else 0:
            print(f"  {left:,} of {progress.step:,} steps so far changed nothing: float16 overflowed", flush=True)

    def title(self, epoch: int) -> str:
        """An epoch among all, counted from 1, as wide as the last one: `epoch  3/12`."""
        last = str(self.recipe.epochs)
        return f"epoch {epoch:{len(last)}d}/{last}"

    def goes_on(self, epochs: int) -> bool:
        """Whether training goes on after so many epochs, as far as the recipe's patience decides; if not, says why."""
        best, epoch = self.best.get("val", (0.0, epochs))
        if not self.recipe.patience or epochs - epoch < self.recipe.patience:
            return True
        print(
            f"\nstopping early, after epoch {epochs} of {self.recipe.epochs}: none since epoch {epoch} was better on "
            f"the validation split ({percent(best)}), and patience is {self.recipe.patience}",
            flush=True,
        )
        return False

    @property
    def best(self) -> dict[str, tuple[float, int]]:
        """The highest accuracy on each split, and the epoch that had it: see `best_epochs`."""
        return best_epochs(self.evaluations)

    def prune(self) -> None:
        """Delete the oldest checkpoints beyond `keep`, but never the best epoch's: on the validation split, or without
        one on the test split. Two stay where there are two, so that there is another one if the newest is damaged.
        """
        if not self.keep:
            return
        found = self.run.checkpoints(self.framework)
        stay = set(found[-self.keep :])
        if best := self.best:
            _, epoch = best.get("val") or best["test"]
            stay.add(self.run.checkpoint(epoch, self.framework))
        if len(stay.intersection(found)) < 2:
            stay.update(found[-2:])
        for path in found:
            if path not in stay:
                with writing(path):
                    remove(path)

    def choice(self) -> Choice:
        """The epoch whose weights are the run's result."""
        return choose(self.best, self.recipe.epochs)

    def stop_if_asked(self, path: Path) -> None:
        """End here, after a checkpoint, if a signal has asked for it.

        Raises:
            Stopped: says how to continue.
        """
        self.stop.raise_if_asked(f"{path} is written; {hints.resume(self.framework, self.run.path)} continues it")

    def interrupted(self, stopped: BaseException) -> BaseException:
        """What ended training, told how to continue where it does not say so itself: it came without a checkpoint."""
        if str(stopped):
            return stopped
        number = stopped.number if isinstance(stopped, Stopped) else SIGINT
        return Stopped(number, f"interrupted; {hints.resume(self.framework, self.run.path)} continues it")

    def close(self, peak_memory: int) -> None:
        """Print what the run came to and where it lies; its peak memory, in bytes, goes into the manifest."""
        write_json(self.run.path / "manifest.json", self.run.manifest | {"peak_memory_bytes": peak_memory})
        choice = self.choice()
        rows = [row for row in self.run.metrics() if row["split"] == "test" and row["epoch"] == choice.epoch]
        hint = "" if "val" in self.best else " (--val-fraction 0.1 holds one out)"
        print(f"\ntest accuracy {percent(rows[-1]['accuracy'])} after epoch {choice.epoch}, {choice.why}{hint}")
        accuracy, epoch = self.best["test"]
        if accuracy > rows[-1]["accuracy"]:
            print(f"best test accuracy {percent(accuracy)} after epoch {epoch}, but that is {UNFAIR}")
        self._show_folder()
        print("\nnext:", *hints.after_training(self.framework, self.run.path, self.recipe), sep="\n  ", flush=True)

    def _show_folder(self) -> None:
        """Print what is in the run folder, and how large it is."""
        path, kept = self.run.path, [each.stem for each in self.run.checkpoints(self.framework)]
        shown = kept if len(kept) <= CHECKPOINTS_FIT else [f"{len(kept) - 2} more", *kept[-2:]]
        files = {
            "model.safetensors": f"the network after epoch {self.choice().epoch}, for both frameworks",
            "checkpoints": ", ".join(shown),
            "curves.png": "loss, accuracy and learning rate",
            "metrics.jsonl": "the numbers behind it",
            "tensorboard": f"the same: tensorboard --logdir {path}",
            "wandb": f"the same: wandb sync {path / 'wandb' / '*run-*'}",
        }
        print(f"\n{path}: {in_units(size_of(path))}")
        for name, about in files.items():
            if (path / name).exists():
                print(f"  {name:17}  {in_units(size_of(path / name)):>8}  {about}")


class EpochRecord:
    """The sums of one epoch; called with each batch and what its step returned."""

    def __init__(self, journal: Journal, epoch: int, show: Show) -> None:
        self.journal, self.epoch, self.show = journal, epoch, show
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

    def __call__(self, batch: Batch, sums: Mapping[str, Any], left_out: Callable[[], int] = int) -> None:
        """Add one step.

        Args:
            batch: that was trained on.
            sums: `loss` and `correct` summed over the batch and its `count`, as device scalars.
            left_out: counts the steps so far that float16's overflow left without an update.

        Raises:
            NonFiniteError: the losses since the last row come to NaN or infinity.
        """
        if self.window and self.step % self.journal.log_every == 0:
            self._flush(left_out)  # of the steps before this one, on which the device works while these are waited for
        self.step += 1
        digest = hashlib.sha256(self.digest.encode())
        batch.update(digest)
        self.digest = digest.hexdigest()
        self.window = {name: self.window[name] + value for name, value in sums.items()} if self.window else dict(sums)
        if self.done == self.journal.steps:
            self._flush(left_out)
        self.show(self)

    def _flush(self, left_out: Callable[[], int]) -> None:
        sums, recipe = self._read_window(), self.journal.recipe
        left = {"left_out": left_out()} if recipe.precision == "float16" else {}
        now = perf_counter()
        lr = recipe.learning_rate(max(self.step - 1 - sum(left.values()), 0), self.journal.steps)  # counts updates
        count = sums["count"]
        numbers = {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count, "lr": lr}
        seconds = now - self.window_started
        speed = {"seconds": seconds, "images/s": count / seconds}
        row = {"step": self.step, "epoch": self.epoch + 1, "split": "train", **numbers, **speed, **left}
        self.journal.write(row)
        self.rows.append(row)  # which the epoch's checkpoints carry
        self.totals = {name: self.totals[name] + sums[name] for name in self.totals}
        self.window, self.window_started = {}, now

    def _read_window(self) -> dict[str, float]:
        """From the device; exact, so that a sum goes on from it as it would have there."""
        sums = {name: float(value) for name, value in self.window.items()}
        if not isfinite(sums.get("loss", 0.0)):
            raise NonFiniteError(f"the loss is {sums['loss']}", self.step)
        return sums

    def summary(self) -> str:
        """Loss, accuracy and speed up to the last row; nothing before that."""
        count = self.totals["count"]
        if not count:
            return ""
        numbers = told(self.totals["loss"] / count, self.totals["correct"] / count)
        return f"{numbers}  {speed(count, self.window_started - self.started)}"

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

    def close(self) -> None:
        """End the epoch: its batches' hash goes into the manifest."""
        self.finished = True
        self.seconds = perf_counter() - self.started
        manifest = self.journal.run.manifest
        manifest.setdefault("batches_sha256", {})[str(self.epoch + 1)] = self.digest
        write_json(self.journal.run.path / "manifest.json", manifest)


@contextmanager
def _bar(console: Any, title: str, steps: int) -> Iterator[Show]:
    """What draws a bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, transient=True)
    progress.start()
    try:
        task = progress.add_task(title, total=steps, numbers="")
        yield lambda record: progress.update(task, completed=record.done, numbers=record.summary())
    finally:
        with suppress(OSError):  # of a terminal that is gone
            progress.stop()


@contextmanager
def _lines(title: str, journal: Journal) -> Iterator[Show]:
    """What prints a line now and then where there is no terminal, with the time that the run will still take."""
    printed = perf_counter()

    def show(record: EpochRecord) -> None:
        nonlocal printed
        now = perf_counter()
        if now - printed < LINE_EVERY or record.done == journal.steps:
            return
        printed = now
        left = journal.seconds_left(record.step)
        numbers = f"  {summary}" if (summary := record.summary()) else ""
        print(f"{title}  step {record.done}/{journal.steps}{numbers}  about {_duration(left)} left", file=sys.stderr)

    yield show


def _duration(seconds: float) -> str:
    """A time in words, rounded: `40 s`, `12 min`, `3 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
