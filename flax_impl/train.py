"""Train in Flax: a step returns a new state. Read next to `torch_impl/train.py`.

`python -m flax_impl.train digits` trains a recipe; epochs, checkpoints and the run folder are the driver's, which is
`common/training/loop.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from common.commands.train import run_train
from common.recipes.spec import Recipe
from common.training import loop
from common.training.engine import AfterStep, Step
from common.training.options import TrainOptions
from flax_impl.accumulate import accumulate
from flax_impl.engine import Engine
from flax_impl.feed import Inputs
from flax_impl.preprocess import mix, preprocess, soft_targets
from flax_impl.state import TrainState, freeze


@partial(jax.jit, donate_argnums=0)
def train_step(state: TrainState, inputs: Inputs) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step; the old state's memory is reused.

    Args:
        state: before the step.
        inputs: the batch, the rows of all processes.

    Returns:
        The new state. On the device: `loss` (cross-entropy in nats) and `correct` first guesses, summed over the
        batch, and `count`.
    """
    images, labels, draws, (partner, real) = inputs
    x = mix(preprocess(images, draws, state.recipe.preprocess, state.dtype), draws, partner)
    targets = soft_targets(labels, draws, partner, state.model.arch.classes, state.dtype)
    gradients, batch_stats, loss, logits = accumulate(backward, state, x, targets, real)
    state = update(state, gradients, batch_stats)
    correct = (logits.argmax(1) == labels).sum(where=real)
    return state, {"loss": loss, "correct": correct, "count": jnp.array(len(labels)) if real is None else real.sum()}


def backward(
    state: TrainState, batch_stats: Any, x: Array, targets: Array, real: Array | None, count: Array | int
) -> tuple[Any, Any, Array, Array]:
    """The gradients of one micro-batch.

    Args:
        state: whose parameters they are of.
        batch_stats: batch norm's, so far.
        x: (n, H, W, C), the micro-batch.
        targets: (n, classes).
        real: bool (n,), which rows do not only pad the batch; None: all.
        count: rows of the whole batch, without padding.

    Returns:
        The scaled gradients, the batch statistics, the sum of its losses, and its logits.
    """
    smoothing, weights = state.recipe.label_smoothing, state.recipe.class_weights
    smooth = optax.smooth_labels(targets, smoothing)
    smooth = smooth if weights == "equal" else smooth * jnp.array(weights, x.dtype)

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Array, Array]]:
        variables = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
        rngs = {"dropout": state.dropout_key}
        logits, updates = state.model.apply(variables, x, train=True, rngs=rngs, mutable=["batch_stats"])
        logits = logits.astype(x.dtype)
        loss = optax.softmax_cross_entropy(logits, smooth).sum(where=real)
        return state.scaler.scaled(loss / count), (updates.get("batch_stats", {}), loss, logits)

    gradients, rest = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, *rest


def update(state: TrainState, gradients: Any, batch_stats: Any) -> TrainState:
    """One optimizer step with these gradients; none where a scaled one overflowed."""
    gradients = freeze(state, state.scaler.unscale(gradients))
    after = state.apply_gradients(grads=gradients, batch_stats=batch_stats)
    if state.scaler.scale is None:
        return after
    finite = jnp.all(jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(gradients)]))
    left_out = state.replace(step=after.step, batch_stats=batch_stats)
    chosen: TrainState = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, left_out)
    return chosen.replace(scaler=state.scaler.after(finite))


def train_epoch(state: TrainState, steps: Iterable[Step], after: AfterStep[TrainState]) -> TrainState:
    """Train on the batches of one pass; `after` is given each, the state, and what the step returned."""
    for batch, inputs in steps:
        state, sums = train_step(state, inputs)
        after(batch, state, sums)
    return state


def fit(recipe: Recipe, options: TrainOptions) -> Path | None:
    """Train a recipe and leave a run folder; see `common.training.loop.fit`."""
    return loop.fit(Engine(train_epoch), recipe, options)


if __name__ == "__main__":
    run_train(fit)
