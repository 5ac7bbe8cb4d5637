"""What is told when training cannot go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.arch.spec import Arch
from common.data.batch import Batch, first_rows
from common.data.dataset import Dataset
from common.data.pipeline import batches
from common.runs.journal import Journal
from common.world import World


def not_finite(journal: Journal, where: str, step: int) -> str:
    """That numbers stopped being finite.

    Args:
        journal: of the run; its progress is the last good checkpoint's.
        where: in the network.
        step: counted from 1.
    """
    epoch = (step - 1) // journal.steps + 1
    return (
        f"At step {step}, in epoch {epoch}, {where} became NaN or infinite. The last good checkpoint is "
        f"{_last_good(journal)}. Start again with a lower optimizer.lr (it is {journal.recipe.optimizer.lr}), a "
        f"schedule.warmup_epochs or an optimizer.clip_norm; the same recipe would come to the same end."
    )


def _smaller(arch: Arch, world: World, parts: int, size: int) -> str:
    """How a run takes fewer examples at a time, and whether it is the same run then."""
    if not any(conv.norm for conv in arch.convs):
        return f"--accumulate {parts} gives the same run, --batch-size {size} another one"
    if world.alone:
        return (
            f"--accumulate {parts} and --batch-size {size} give other runs, for {arch.name} has batch norm, which "
            f"normalises what is taken at a time"
        )
    return f"more processes, each with its share of the batch, give the same run, --batch-size {size} another one"


def _last_good(journal: Journal) -> Path | str:
    progress = journal.progress
    if not progress.step:
        return "none: the run had none yet"
    step = None if progress.finished else progress.step
    return journal.run.checkpoint(progress.epochs, journal.framework, step)


def out_of_memory(
    journal: Journal,
    train: Dataset,
    attempt: Callable[[Batch], object],
    is_out_of_memory: Callable[[Exception], bool],
    world: World,
) -> str:
    """That the device's memory is too small, and what fits: halves of the micro-batch are tried until one does.

    Args:
        journal: of the run.
        train: the training split.
        attempt: takes one step on a batch.
        is_out_of_memory: whether an error of `attempt` says so.
        world: the processes that train.
    """
    recipe = journal.recipe
    size = recipe.micro_batch
    batch = next(iter(batches(train, recipe, 0, train=True)))
    advice = "Not even one example fits: take a smaller recipe.arch or preprocess.resize, or another --device."
    while size > 1:
        size //= 2
        try:
            attempt(first_rows(batch, size))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            parts = next(
                n
                for n in range(1, recipe.batch_size + 1)
                if recipe.batch_size % n == 0 and recipe.batch_size // n <= size
            )
            advice = f"{size} at a time fit: {_smaller(journal.arch, world, parts, size)}."
            break
    at_once = f", {recipe.micro_batch} at a time," if recipe.accumulate > 1 else ""
    return (
        f"The device has not enough memory for batch_size {recipe.batch_size}{at_once} in {recipe.precision}. {advice} "
        f"The last good checkpoint is {_last_good(journal)}."
    )
