"""The driver, once for both frameworks: run folder, epochs, evaluation, checkpoints, following processes, faults."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import Any, Generic

from common.arch.spec import Arch
from common.data import workers
from common.data.bad import check_bad, find_bad
from common.data.batch import Batch
from common.data.dataset import Dataset
from common.data.load import check_classes, load_splits
from common.data.pipeline import steps_per_epoch
from common.data.spec import Split
from common.errors import DamagedError, NonFiniteError, UserError
from common.recipes.spec import Recipe
from common.runs import plots
from common.runs.folder import RunFolder, default_folder, open_or_create
from common.runs.journal import EpochRecord, Journal
from common.runs.logs import check_logs
from common.runs.manifest import write_manifest
from common.runs.progress import Progress
from common.runs.scores import Scores
from common.stopping import Stop, Stopped
from common.system import give_back_freed
from common.training import faults
from common.training.engine import AfterStep, Engine, Feed, State
from common.training.options import TrainOptions
from common.training.room import check_room
from common.weights.network import note_other_classes, other_photographs
from common.world import World

Fresh = tuple[str, ...] | None  # layers that given weights left as they were drawn; None without given weights


def fit(engine: Engine[State], recipe: Recipe, options: TrainOptions) -> Path | None:
    """Train a recipe and leave a run folder.

    Returns:
        The folder's path; None in a process that follows another one, which writes it.

    Raises:
        UserError: data, weights or folder are not as needed, or training cannot go on; says what to do.
        Stopped: a signal has asked to stop.
    """
    check_logs(options.log)
    if options.deterministic:
        engine.be_deterministic()
    with engine.in_touch(), workers.kept():
        data, skipped = _load(recipe, options)
        train = data["train"]
        arch = recipe.model_arch(train.image, len(train.class_names))
        recipe.check_rest(arch, len(train))
        if recipe.class_weights == "balanced":
            recipe = replace(recipe, class_weights=train.balanced_weights())
        if recipe.patience and "val" not in data:
            raise UserError(
                f"patience is {recipe.patience}, which counts epochs by their score on a validation split, and "
                f"{recipe.dataset} has none: hold one out, --val-fraction 0.1, or set patience to 0."
            )
        world = engine.join(options.device)
        world.check(recipe, arch)
        products = engine.check_precision(recipe, options)
        job = _Job(engine, recipe, options, arch, data, skipped, world, products)
        path = None
        if world.main:
            path = _lead(job, job.begin())
        else:
            _follow(job, job.begin())
        engine.leave(world)
        return path


def _load(recipe: Recipe, options: TrainOptions) -> tuple[dict[Split, Dataset], Sequence[str]]:
    """The splits, and the images that they go without: those of the run that is resumed, or those found bad now.

    Raises:
        UserError: the data is not as needed, or more images are bad than may be skipped.
    """
    before = RunFolder(options.out) if options.resume and options.out else None
    begun = before is not None and before.begun
    skipped: Sequence[str] = before.skipped if before and begun else ()
    data = load_splits(recipe, options.data_dir, skipped)
    if options.check_data or (options.skip_bad and not begun):
        bad = find_bad(data, recipe)
        skipped = [*skipped, *check_bad(bad, data, 0 if begun else options.skip_bad, begun)]
        if bad:
            data = load_splits(recipe, options.data_dir, skipped)
    check_classes(data)
    return {split: replace(part, workers=options.workers) for split, part in data.items()}, skipped


@dataclass(frozen=True)
class _Job(Generic[State]):
    """What is to be trained, and by whom."""

    engine: Engine[State]
    recipe: Recipe
    options: TrainOptions
    arch: Arch
    data: dict[Split, Dataset]
    skipped: Sequence[str]
    world: World
    products: dict[str, str]

    @property
    def steps(self) -> int:
        """In one epoch."""
        return steps_per_epoch(self.data["train"], self.recipe)

    def begin(self) -> State:
        """The state that a run begins with, without given weights."""
        return self.engine.begin(self.recipe, self.arch, self.steps, self.options)

    def feeds(self, state: State) -> dict[Split, Feed]:
        """What takes each split to the device."""
        return dict(zip(self.data, self.engine.feeds(state, list(self.data.values()), self.world), strict=True))


def _lead(job: _Job[State], state: State) -> Path:
    """Train in the process that writes and prints."""
    engine, recipe, options, world, fresh = job.engine, job.recipe, job.options, job.world, None
    if not options.resume:
        state, fresh = engine.start_weights(state, options.init_from)
        if options.init_from and not fresh:
            note_other_classes(options.init_from, job.data["train"].class_names)
        if options.init_from and (seen := other_photographs(options.init_from, job.data["train"].fingerprint())):
            print(f"note: {seen}", file=sys.stderr)
    out = options.out or default_folder(recipe, engine.framework)
    room = check_room(out, engine.checkpoint_bytes(state), recipe, job.steps, options)
    told = options.recorded()
    with open_or_create(out, recipe, engine.framework, resume=options.resume, options=told) as run:
        place, names = world.describe(engine.describe(state)), job.data["train"].class_names
        arithmetic = {
            "products": job.products,
            "deterministic": options.deterministic,
            "compiled": options.compile,
        }
        write_manifest(
            run, engine.framework, place, job.arch, names, options.init_from, job.data, arithmetic, job.skipped
        )
        run.keep(recipe, told)
        journal = Journal(
            run, engine.framework, job.arch, job.steps, options.log_every, options.checkpoint_every, options.kept
        )
        if options.resume:
            state, fresh = _restore(job, state, journal)
            journal.rewind()
        state, _ = engine.share(state, world, journal.progress.epochs)
        journal.announce(place, job.data, fresh, room)
        try:
            with journal.forwarding(options.log):
                peak = _train_epochs(job, state, journal)
        except (Stopped, KeyboardInterrupt) as stopped:
            raise journal.interrupted(stopped) from None
        except (NonFiniteError, RuntimeError, MemoryError) as error:
            clear_frames(error.__traceback__)  # which hold what fills the device
            del state
            if fault := _diagnose(job, error, journal):
                raise UserError(fault) from error
            raise
        del state
        give_back_freed()  # what the network that is published needs comes on top of it
        final, dest = journal.choice().epoch, run.path / "model.safetensors"
        best = run.checkpoint(final, engine.framework)
        engine.publish(best, dest, recipe, job.arch, final, job.steps)
        journal.close(peak)
    return run.path


def _train_epochs(job: _Job[State], state: State, journal: Journal) -> int:
    """Train from where the journal stands to the last epoch, with a checkpoint and then an evaluation after each.

    A resumed run evaluates its last finished epoch again: of that evaluation no checkpoint knows.

    Returns:
        The peak of memory, in bytes.

    Raises:
        NonFiniteError: the loss or a parameter became NaN or infinite.
        Stopped: a signal has asked to stop; a checkpoint is written.
    """
    engine, feeds = job.engine, job.feeds(state)
    train = feeds.pop("train")
    with journal.stop.waiting():
        if journal.progress.finished:
            _evaluate(job, state, feeds, journal, journal.progress)
        for epoch in range(journal.progress.epochs, job.recipe.epochs):
            if not engine.agree(journal.goes_on(epoch), job.world):
                break
            with journal.epoch(epoch) as record:
                state = engine.train_epoch(state, train(epoch, train=True, start=record.done), _recording(job, record))
            progress = record.progress()
            engine.save(record.path, state, progress)
            journal.stop_if_asked(record.path)
            _evaluate(job, state, feeds, journal, progress)
    return engine.peak_memory(state)


def _evaluate(
    job: _Job[State], state: State, feeds: Mapping[Split, Feed], journal: Journal, progress: Progress
) -> None:
    """Score the epoch that a checkpoint ends, tell of it and draw it.

    Raises:
        Stopped: a signal has asked to stop.
    """
    journal.scores(_score(job, state, feeds), progress)
    plots.redraw(journal.run)


def _score(job: _Job[State], state: State, feeds: Mapping[Split, Feed]) -> dict[Split, Scores]:
    return {split: job.engine.evaluate(state, feed) for split, feed in feeds.items()}


def _recording(job: _Job[State], record: EpochRecord) -> AfterStep[State]:
    """What happens after each step: it is written down, and a checkpoint where one is due."""

    def after(batch: Batch, state: State, sums: Mapping[str, Any]) -> None:
        record(batch, job.engine.add_up(sums, job.world), partial(job.engine.left_out, state))
        if record.due:
            job.engine.save(record.path, state, record.progress())
            record.journal.prune()
            record.journal.stop_if_asked(record.path)

    return after


def _follow(job: _Job[State], state: State) -> None:
    """Train in a process that is not the first: it takes the same steps and writes nothing.

    On a signal it goes on, for the first process stops after a step, which needs all.
    """
    engine, world = job.engine, job.world
    with Stop().waiting():
        state, first = engine.share(state, world, 0)
        feeds = job.feeds(state)
        train = feeds.pop("train")
        if first and engine.steps_done(state) == first * job.steps:
            _score(job, state, feeds)
        for epoch in range(first, job.recipe.epochs):
            if not engine.agree(True, world):
                break
            steps = train(epoch, train=True, start=engine.steps_done(state) - epoch * job.steps)
            state = engine.train_epoch(state, steps, lambda batch, state, sums: engine.add_up(sums, world))
            _score(job, state, feeds)


def _restore(job: _Job[State], state: State, journal: Journal) -> tuple[State, Fresh]:
    """The newest checkpoint of a run that is whole, damaged ones set aside, or the weights that it began with."""
    for path in reversed(journal.run.checkpoints(job.engine.framework)):
        try:
            state, journal.progress = job.engine.load(path, state)
            return state, None
        except DamagedError as error:
            journal.set_aside(path, error)
    return job.engine.start_weights(state, journal.run.init_from)


def _diagnose(job: _Job[State], error: Exception, journal: Journal) -> str | None:
    """What an error in training means and what to do, found by repeating steps; None where it is no known fault."""
    engine, train = job.engine, job.data["train"]
    if not isinstance(error, NonFiniteError):
        if not engine.is_out_of_memory(error):
            return None
        attempt = partial(_attempt, job)
        return faults.out_of_memory(journal, train, attempt, engine.is_out_of_memory, job.world)
    state, _ = _restore(job, job.begin(), journal)
    for step, batch in journal.repeat(train, error.step):
        if where := engine.nonfinite_layer(state, batch):
            return faults.not_finite(journal, where, step)
        state = engine.train_alone(state, batch)
    return faults.not_finite(journal, str(error), error.step)


def _attempt(job: _Job[State], batch: Batch) -> None:
    """One step from the beginning."""
    job.engine.train_alone(job.begin(), batch)
