"""Train in PyTorch: a step changes its state in place. Read next to `flax_impl/train.py`.

`python -m torch_impl.train digits` trains a recipe; epochs, checkpoints and the run folder are the driver's, which is
`common/training/loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from common.commands.train import run_train
from common.recipes.spec import Recipe
from common.training import loop
from common.training.engine import AfterStep, Step
from common.training.options import TrainOptions
from torch_impl.accumulate import accumulate
from torch_impl.device import compute_in, constant
from torch_impl.engine import Engine
from torch_impl.feed import Inputs
from torch_impl.optim import clip_gradients
from torch_impl.preprocess import mix, soft_targets
from torch_impl.state import TrainState, freeze


def train_step(state: TrainState, inputs: Inputs, first: int = 0, count: int | None = None) -> dict[str, Tensor]:
    """One optimizer step, in place.

    Args:
        state: before the step.
        inputs: this process's rows of the batch.
        first: row of the whole batch that is the first here.
        count: rows of the whole batch; None: all are here.

    Returns:
        On the device: `loss` (cross-entropy in nats) and `correct` first guesses, summed over this process's rows, and
        their `count`.
    """
    images, labels, draws, facts = inputs
    state.model.train()
    freeze(state)
    x = mix(state.preprocess(images, draws, state.recipe.preprocess, state.dtype), draws, facts.partner)
    targets = soft_targets(labels, draws, facts.partner, state.model.arch.classes, state.dtype)
    state.dropout.at(state.step)
    state.optimizer.zero_grad()
    loss, logits = accumulate(backward, state, x, targets, first, len(x) if count is None else count)
    update(state)
    correct = (logits.argmax(1) == labels[: len(x)]).sum()
    return {"loss": loss, "correct": correct, "count": correct.new_full((), len(x))}


def backward(state: TrainState, x: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Add the gradients of one micro-batch to those that the parameters hold.

    Args:
        state: whose gradients are added to.
        x: (n, C, H, W), the micro-batch.
        targets: (n, classes).
        count: rows of the whole batch.

    Returns:
        The sum of its losses, and its logits.
    """
    with compute_in(state.recipe.precision, x.device):
        logits = state.network(x).to(x.dtype)
    smoothing, weights = state.recipe.label_smoothing, state.recipe.class_weights
    weight = None if weights == "equal" else constant(weights, x.dtype, x.device)
    loss = F.cross_entropy(logits, targets, weight=weight, reduction="sum", label_smoothing=smoothing)
    # Of gradients, DistributedDataParallel gives the mean over the processes.
    state.scaler.scale(loss * state.world.size / count).backward()
    return loss.detach(), logits.detach()


def update(state: TrainState) -> None:
    """One optimizer step with the gradients that the parameters hold; none where a scaled one overflowed."""
    state.scaler.unscale_(state.optimizer)
    clip_gradients(state.model.parameters(), state.recipe.optimizer.clip_norm)
    before = state.scaler.get_scale()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.scaler.get_scale() >= before:  # a smaller scale says that the step was left out
        state.schedule.step()
    state.step += 1


def train_epoch(state: TrainState, steps: Iterable[Step], after: AfterStep[TrainState]) -> TrainState:
    """Train on the batches of one pass; `after` is given each, the state, and what the step returned."""
    for batch, inputs in steps:
        sums = train_step(state, inputs, batch.first, batch.count)
        after(batch, state, sums)
    return state


def fit(recipe: Recipe, options: TrainOptions) -> Path | None:
    """Train a recipe and leave a run folder; see `common.training.loop.fit`."""
    return loop.fit(Engine(train_epoch), recipe, options)


if __name__ == "__main__":
    run_train(fit)
