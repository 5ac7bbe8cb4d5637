"""Train a recipe in PyTorch: `python -m torch_impl.train digits`. Read next to `flax_impl/train.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from common import cli, datasets, plots
from common.arch import Arch
from common.initializers import get_init
from common.journal import Journal
from common.pipeline import batches, steps_per_epoch
from common.recipes import Recipe
from common.run import default_folder, open_or_create, write_manifest
from torch_impl import checkpoint, weights
from torch_impl.device import Feed, check_compiler, check_precision, compute_in, describe, pick_device
from torch_impl.dropout import StepKey, share_dropout
from torch_impl.evaluate import evaluate
from torch_impl.init import initialize
from torch_impl.model import AlexNet, LeNet, build
from torch_impl.optim import build_optimizer, build_scaler, build_schedule, clip_gradients
from torch_impl.preprocess import mix, preprocess, soft_targets


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
    preprocess: Callable[..., Tensor] = preprocess
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
    state = TrainState(model, optimizer, schedule, scaler, dropout, recipe, tune.freeze_epochs * steps)
    if compiled:
        model.compile(dynamic=False)
        state.preprocess = torch.compile(preprocess, dynamic=False)
    return state


def _head_and_backbone(model: AlexNet | LeNet, recipe: Recipe) -> tuple[list[Parameter], list[Parameter]]:
    layers, named = recipe.head_layers(model.arch), list(model.named_parameters())
    head = [parameter for name, parameter in named if name.split(".")[0] in layers]
    return head, [parameter for name, parameter in named if name.split(".")[0] not in layers]


def train_step(state: TrainState, images: Tensor, labels: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """One optimizer step, in place, with what `Feed` or `to_device` gives.

    Returns:
        On the device: `loss` (cross-entropy in nats) and `correct` first guesses, summed over the batch, and `count`.
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
    loss, logits = accumulate(state, x, targets)
    update(state)
    correct = (logits.argmax(1) == labels).sum()
    return {"loss": loss, "correct": correct, "count": torch.tensor(len(labels))}


def backward(state: TrainState, x: Tensor, targets: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """Add the gradients of one micro-batch.

    Args:
        state: whose gradients are added to.
        x: (N, C, H, W), the whole batch.
        targets: (N, classes).
        row: at which the micro-batch begins.

    Returns:
        The sum of its losses, and its logits.
    """
    part = slice(row, row + state.recipe.micro_batch)
    state.dropout.from_row(row)
    with compute_in(state.recipe.precision, x.device):
        logits = state.model(x[part]).to(x.dtype)
    loss = F.cross_entropy(logits, targets[part], reduction="sum", label_smoothing=state.recipe.label_smoothing)
    state.scaler.scale(loss / len(x)).backward()
    return loss.detach(), logits.detach()


def accumulate(state: TrainState, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a batch, one micro-batch after the other; see `backward`."""
    parts = [backward(state, x, targets, row) for row in range(0, len(x), state.recipe.micro_batch)]
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


def fit(recipe: Recipe, options: cli.TrainOptions) -> Path:
    """Train a recipe and leave a run folder.

    Returns:
        The folder's path.

    Raises:
        UserError: data, weights or folder are not as needed; says what to do.
    """
    train, test = datasets.load(recipe.dataset, options.data_dir)
    arch = recipe.model_arch(train.image, len(train.class_names))
    splits: dict[datasets.Split, datasets.Dataset] = {"test": test}
    if recipe.val_fraction:
        train, splits["val"] = train.hold_out(recipe.val_fraction, recipe.seed)
    steps, device = steps_per_epoch(train, recipe), pick_device(options.device)
    check_precision(recipe.precision, device)
    if options.compile:
        check_compiler(device)
    state = init_state(recipe, arch, steps, device, compiled=options.compile)
    fresh = start_weights(state, arch, options)
    run = open_or_create(options.out or default_folder(recipe, "torch"), recipe, "torch", resume=options.resume)
    write_manifest(run, "torch", describe(device), arch, train.class_names)
    first = checkpoint.resume(run, state) if options.resume else 0
    cli.announce(run, describe(device), arch, train, splits, fresh, first)
    journal, feed = Journal(run, steps, options.log_every), Feed(train, device)
    for epoch in range(first, recipe.epochs):
        with journal.epoch(epoch) as record:
            for batch, inputs in feed(batches(train, recipe, epoch, train=True)):
                record(batch, train_step(state, *inputs))
        scores = {split: evaluate(state.model, data, recipe) for split, data in splits.items()}
        checkpoint.save(run.checkpoint(epoch + 1, "torch"), state)
        journal.scores(epoch, scores, record)
        plots.curves(run)
    best = checkpoint.load_model(run.checkpoint(journal.final_epoch(), "torch"), arch)
    about = {"class_names": train.class_names, "preprocess": recipe.preprocess}
    weights.save(run.path / "model.safetensors", best, arch, state.step, **about)
    journal.close()
    return run.path


def start_weights(state: TrainState, arch: Arch, options: cli.TrainOptions) -> tuple[str, ...] | None:
    """Load the weights that the recipe or `--init-from` asks for.

    Returns:
        The layers that stayed fresh; None when nothing was loaded.
    """
    if options.resume:
        return None
    if options.init_from:
        return weights.load_partial(options.init_from, state.model, arch)
    if state.recipe.pretrained == "no":
        return None
    return weights.load_pretrained(state.model, arch, backbone=state.recipe.pretrained == "backbone")


if __name__ == "__main__":
    cli.train(fit)
