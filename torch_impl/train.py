"""Train a recipe in PyTorch: `python -m torch_impl.train digits`. Read next to `flax_impl/train.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from traceback import clear_frames

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from common import cli, datasets, faults, plots
from common.arch import Arch
from common.errors import NonFiniteError, UserError
from common.initializers import get_init
from common.journal import Journal
from common.pipeline import Batch, batches, steps_per_epoch
from common.recipes import Recipe
from common.run import default_folder, open_or_create, write_manifest
from common.stopping import Stop
from common.world import ALONE, World
from torch_impl import checkpoint, weights
from torch_impl.device import (
    Feed,
    check_compiler,
    check_precision,
    compute_in,
    describe,
    is_out_of_memory,
    peak_memory,
    pick_device,
    to_device,
)
from torch_impl.dropout import StepKey, share_dropout
from torch_impl.evaluate import evaluate
from torch_impl.init import initialize
from torch_impl.model import AlexNet, LeNet, build
from torch_impl.optim import build_optimizer, build_scaler, build_schedule, clip_gradients
from torch_impl.preprocess import mix, preprocess, soft_targets
from torch_impl.world import add_up, in_touch, join, leave, share


@dataclass
class TrainState:
    """Everything that a training step changes, and the recipe that says how."""

    model: AlexNet | LeNet
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: GradScaler
    dropout: StepKey
    recipe: Recipe
    freeze_steps: int
    network: nn.Module
    preprocess: Callable[..., Tensor]
    world: World = ALONE
    step: int = 0


def init_state(recipe: Recipe, arch: Arch, steps: int, device: torch.device, *, compiled: bool = False) -> TrainState:
    """Fresh parameters, optimizer and schedule.

    Args:
        recipe: what to train.
        arch: adapted to the data.
        steps: in one epoch.
        device: to train on.
        compiled: let PyTorch compile preprocessing and network, once for each shape; see `check_compiler`.
    """
    model = build(arch)
    initialize(model, get_init(recipe.init), recipe.seed)
    dropout = share_dropout(model, arch.feature_size, recipe.seed)
    dtype = getattr(torch, recipe.param_dtype)
    model.to(device, dtype).to(memory_format=torch.channels_last)  # the batches arrive channels last: no copies
    tune = recipe.finetune
    optimizer = build_optimizer(recipe.optimizer, *_head_and_backbone(model, recipe), tune.backbone_lr)
    schedule = build_schedule(optimizer, recipe.schedule, steps, recipe.epochs)
    scaler = build_scaler(recipe.loss_scale, recipe.precision, device)
    prepare = preprocess
    if compiled:
        model.compile(dynamic=False)
        prepare = torch.compile(preprocess, dynamic=False)
    freeze_steps = tune.freeze_epochs * steps
    return TrainState(model, optimizer, schedule, scaler, dropout, recipe, freeze_steps, model, prepare)


def _head_and_backbone(model: AlexNet | LeNet, recipe: Recipe) -> tuple[list[Parameter], list[Parameter]]:
    layers, named = recipe.head_layers(model.arch), list(model.named_parameters())
    head = [parameter for name, parameter in named if name.split(".")[0] in layers]
    return head, [parameter for name, parameter in named if name.split(".")[0] not in layers]


def train_step(
    state: TrainState,
    images: Tensor,
    labels: Tensor,
    draws: dict[str, Tensor],
    first: int = 0,
    count: int | None = None,
) -> dict[str, Tensor]:
    """One optimizer step, in place, with what `Feed` or `to_device` gives.

    Args:
        state: before the step.
        images, labels, draws: this process's rows of the batch.
        first: row of the whole batch that is the first here.
        count: rows of the whole batch; None: all are here.

    Returns:
        On the device: `loss` (cross-entropy in nats) and `correct` first guesses, summed over this process's rows, and
        their `count`.
    """
    parameter = next(state.model.parameters())
    state.model.train().requires_grad_(True)
    if state.schedule.last_epoch < state.freeze_steps:
        for frozen in _head_and_backbone(state.model, state.recipe)[1]:
            frozen.requires_grad_(False)
    x = mix(state.preprocess(images, draws, state.recipe.preprocess, parameter.dtype), draws)
    targets = soft_targets(labels, draws, state.model.arch.classes, parameter.dtype)
    state.dropout.at(state.step)
    state.optimizer.zero_grad()
    loss, logits = accumulate(state, x, targets, first, len(x) if count is None else count)
    update(state)
    correct = (logits.argmax(1) == labels[: len(x)]).sum()
    return {"loss": loss, "correct": correct, "count": torch.tensor(len(x))}


def backward(state: TrainState, x: Tensor, targets: Tensor, row: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Add the gradients of one micro-batch.

    Args:
        state: whose gradients are added to.
        x: (N, C, H, W), this process's rows of the batch.
        targets: (N, classes).
        row: at which the micro-batch begins.
        first, count: as for `train_step`.

    Returns:
        The sum of its losses, and its logits.
    """
    part = slice(row, row + state.recipe.micro_batch)
    state.dropout.from_row(first + row)
    with compute_in(state.recipe.precision, x.device):
        logits = state.network(x[part]).to(x.dtype)
    loss = F.cross_entropy(logits, targets[part], reduction="sum", label_smoothing=state.recipe.label_smoothing)
    # Of gradients, DistributedDataParallel gives the mean over the processes.
    state.scaler.scale(loss * state.world.size / count).backward()
    return loss.detach(), logits.detach()


def accumulate(state: TrainState, x: Tensor, targets: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The gradients of this process's rows, one micro-batch after the other; see `backward`."""
    rows, parts = range(0, max(len(x), 1), state.recipe.micro_batch), []
    together = state.network if isinstance(state.network, DistributedDataParallel) else None
    for row in rows:
        # Processes may have more or fewer micro-batches; each exchanges its gradients once, after its last.
        with together.no_sync() if together and row != rows[-1] else nullcontext():
            parts.append(backward(state, x, targets, row, first, count))
    return sum((loss for loss, _ in parts), torch.zeros((), device=x.device)), torch.cat([part for _, part in parts])


def update(state: TrainState) -> None:
    """One optimizer step with the gradients there are; none where a scaled one overflowed."""
    state.scaler.unscale_(state.optimizer)
    clip_gradients(state.model.parameters(), state.recipe.optimizer.clip_norm)
    before = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.get_scale() >= before:  # a smaller scale says that the step was left out
        state.schedule.step()
    state.step += 1


@in_touch()
def fit(recipe: Recipe, options: cli.TrainOptions) -> Path | None:
    """Train a recipe and leave a run folder.

    Returns:
        The folder's path; None in a process that follows another one, which writes it.

    Raises:
        UserError: data, weights or folder are not as needed, or training cannot go on; says what to do.
        Stopped: a signal has asked to stop.
    """
    train, test = (replace(data, workers=options.workers) for data in datasets.load(recipe.dataset, options.data_dir))
    arch = recipe.model_arch(train.image, len(train.class_names))
    splits: dict[datasets.Split, datasets.Dataset] = {"test": test}
    if recipe.val_fraction:
        train, splits["val"] = train.hold_out(recipe.val_fraction, recipe.seed)
    world = join(options.device)
    world.check(recipe, arch)
    steps, device = steps_per_epoch(train, recipe), pick_device(options.device)
    check_precision(recipe.precision, device)
    if options.compile:
        check_compiler(device)
    begin = partial(init_state, recipe, arch, steps, device, compiled=options.compile)
    state = begin()
    if not world.main:
        follow(state, world, train, splits, steps)
        return None
    fresh = None if options.resume else start_weights(state, arch, options.init_from)
    out = options.out or default_folder(recipe, "torch")
    with open_or_create(out, recipe, "torch", resume=options.resume) as run:
        place = world.describe(describe(device))
        data = {"train": train, **splits}
        write_manifest(run, "torch", place, arch, train.class_names, options.init_from, data)
        journal = Journal(run, "torch", arch, steps, options.log_every, options.checkpoint_every, options.keep)
        if options.resume:
            fresh = restore(state, journal)
            journal.rewind()
        share(state, world, journal.progress.epochs)
        cli.announce(journal, place, train, splits, fresh)
        try:
            train_epochs(state, train, splits, journal)
        except (NonFiniteError, RuntimeError, MemoryError) as error:
            clear_frames(error.__traceback__)  # which hold what fills the device
            del state
            if fault := diagnose(error, begin, train, journal):
                raise UserError(fault) from error
            raise
        best = checkpoint.load_model(run.checkpoint(journal.final_epoch(), "torch"), arch)
        about = {"class_names": train.class_names, "preprocess": recipe.preprocess}
        weights.save(run.path / "model.safetensors", best, arch, recipe.epochs * steps, **about)
        journal.close(peak_memory(device))
    leave(world)
    return run.path


def train_epochs(
    state: TrainState, train: datasets.Dataset, splits: dict[datasets.Split, datasets.Dataset], journal: Journal
) -> None:
    """Train from where the journal stands to the last epoch, with a checkpoint and an evaluation after each.

    Raises:
        NonFiniteError: the loss or a parameter became NaN or infinite.
        Stopped: a signal has asked to stop; a checkpoint is written.
    """
    recipe, world, feed = state.recipe, state.world, Feed(train, next(state.model.parameters()).device)
    with journal.stop.waiting():
        for epoch in range(journal.progress.epochs, recipe.epochs):
            with journal.epoch(epoch) as record:
                for batch, inputs in feed(batches(train, recipe, epoch, train=True, start=record.done, world=world)):
                    record(batch, add_up(train_step(state, *inputs, batch.first, batch.count), world))
                    if record.due:
                        checkpoint.save(record.path, state, record.progress())
                        record.saved()
            scores = {split: evaluate(state.model, data, recipe, world=world) for split, data in splits.items()}
            journal.scores(epoch, scores, record)
            checkpoint.save(record.path, state, record.progress())
            plots.curves(journal.run)
            record.saved()


def follow(
    state: TrainState,
    world: World,
    train: datasets.Dataset,
    splits: dict[datasets.Split, datasets.Dataset],
    steps: int,
) -> None:
    """`fit` in a process that is not the first: it takes the same steps and writes nothing.

    On a signal it goes on, for the first process stops after a step, which needs all.
    """
    with Stop().waiting():
        epochs = range(share(state, world, 0), state.recipe.epochs)
        feed = Feed(train, next(state.model.parameters()).device)
        for epoch in epochs:
            start = state.step - epoch * steps
            for batch, inputs in feed(batches(train, state.recipe, epoch, train=True, start=start, world=world)):
                add_up(train_step(state, *inputs, batch.first, batch.count), world)
            for data in splits.values():
                evaluate(state.model, data, state.recipe, world=world)
    leave(world)


def restore(state: TrainState, journal: Journal) -> tuple[str, ...] | None:
    """Load the newest checkpoint of a run that is whole, or the weights that it began with.

    Returns:
        As `start_weights`.
    """
    progress = checkpoint.load_newest(journal, state)
    if progress:
        journal.progress = progress
        return None
    return start_weights(state, journal.arch, journal.run.init_from)


def diagnose(
    error: Exception, begin: Callable[[], TrainState], train: datasets.Dataset, journal: Journal
) -> str | None:
    """What an error in training means and what to do, found by repeating steps; None where it is no known fault.

    Args:
        error: of `train_epochs`.
        begin: makes the state that the run began with, without given weights.
        train: the training split.
        journal: of the run.
    """

    def step_alone(batch: Batch) -> None:
        state = begin()
        train_step(state, *to_device(batch, next(state.model.parameters()).device))

    if not isinstance(error, NonFiniteError):
        if not is_out_of_memory(error):
            return None
        return faults.out_of_memory(journal, train, step_alone, is_out_of_memory)
    state = begin()
    restore(state, journal)
    for step, batch in journal.repeat(train, error.step):
        if where := nonfinite_layer(state, batch):
            return faults.not_finite(journal, where, step)
        train_step(state, *to_device(batch, next(state.model.parameters()).device))
    return faults.not_finite(journal, str(error), error.step)


@torch.no_grad()
def nonfinite_layer(state: TrainState, batch: Batch) -> str | None:
    """Where a training step's forward pass first meets NaN or infinity; None where it does not."""
    parameter = next(state.model.parameters())
    for name, value in state.model.named_parameters():
        if not value.isfinite().all():
            return f"the parameters of {name.split('.')[0]}"
    found: list[str] = []

    def watch(name: str, output: Tensor) -> None:
        if not output.isfinite().all():
            found.append(name)

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: watch(name, output))
        for name, module in state.model.named_children()
    ]
    images, _, draws = to_device(batch, parameter.device)
    x = mix(preprocess(images, draws, state.recipe.preprocess, parameter.dtype), draws)
    state.dropout.at(state.step)
    with compute_in(state.recipe.precision, x.device):
        state.model.train()(x)
    for hook in hooks:
        hook.remove()
    return f"the output of {found[0]}" if found else None


def start_weights(state: TrainState, arch: Arch, init_from: Path | None) -> tuple[str, ...] | None:
    """Load the weights that the recipe or `--init-from` asks for.

    Returns:
        The layers that stayed fresh; None when nothing was loaded.
    """
    if init_from:
        return weights.load_partial(init_from, state.model, arch)
    if state.recipe.pretrained == "no":
        return None
    return weights.load_pretrained(state.model, arch, backbone=state.recipe.pretrained == "backbone")


if __name__ == "__main__":
    cli.train(fit)
