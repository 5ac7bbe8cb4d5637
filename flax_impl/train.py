"""Train a recipe in Flax: `python -m flax_impl.train digits`. Read next to `torch_impl/train.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state
from jax import Array

from common import cli, datasets, plots
from common.arch import Arch
from common.initializers import get_init
from common.journal import Journal
from common.pipeline import batches, steps_per_epoch
from common.recipes import Recipe
from common.run import default_folder, open_or_create, write_manifest
from flax_impl import checkpoint, convert
from flax_impl.device import compute_dtype, describe, pick_device, to_device
from flax_impl.evaluate import evaluate
from flax_impl.init import initialize
from flax_impl.model import AlexNet, LeNet, build
from flax_impl.optim import build_optimizer, build_schedule
from flax_impl.preprocess import preprocess


class TrainState(train_state.TrainState):
    """Everything that a training step changes, and the recipe that says how."""

    batch_stats: Any
    model: AlexNet | LeNet = struct.field(pytree_node=False)
    recipe: Recipe = struct.field(pytree_node=False)

    @property
    def variables(self) -> dict[str, Any]:
        """What `apply_fn` takes."""
        return {"params": self.params} | ({"batch_stats": self.batch_stats} if self.batch_stats else {})


def init_state(recipe: Recipe, arch: Arch, steps: int, device: jax.Device) -> TrainState:
    """Fresh parameters, optimizer and schedule.

    Args:
        recipe: what to train.
        arch: adapted to the data.
        steps: in one epoch.
        device: to train on.
    """
    if recipe.precision == "float64":
        jax.config.update("jax_enable_x64", True)  # without it JAX makes float32 of every float64
    model = build(arch, dtype=compute_dtype(recipe.precision), param_dtype=jnp.dtype(recipe.param_dtype))
    with jax.default_device(device):
        variables = initialize(model, get_init(recipe.init), recipe.seed)
        rate = build_schedule(recipe.schedule, recipe.optimizer.lr, steps, recipe.epochs)
        return TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=build_optimizer(recipe.optimizer, rate),
            batch_stats=variables.get("batch_stats", {}),
            model=model,
            recipe=recipe,
        )


@partial(jax.jit, donate_argnums=0)
def train_step(
    state: TrainState, images: Array, labels: Array, draws: dict[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step; the old state's memory is reused.

    Returns:
        The new state. On the device: `loss` (cross-entropy in nats) and `correct` first guesses, summed over the
        batch, and `count`.
    """
    dropout = jax.random.fold_in(jax.random.key(state.recipe.seed), state.step)
    dtype = jnp.dtype(state.recipe.param_dtype)
    x = preprocess(images, draws, state.recipe.preprocess, dtype)

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Any]]:
        variables = state.variables | {"params": params}
        logits, updates = state.model.apply(
            variables, x, train=True, rngs={"dropout": dropout}, mutable=["batch_stats"]
        )
        logits = logits.astype(dtype)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, updates)

    (loss, (logits, updates)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    state = state.apply_gradients(grads=gradients, batch_stats=updates.get("batch_stats", {}))
    count = len(labels)
    return state, {"loss": loss * count, "correct": (logits.argmax(1) == labels).sum(), "count": jnp.array(count)}


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
    state = init_state(recipe, arch, steps, device)
    state, fresh = start_weights(state, arch, options)
    run = open_or_create(options.out or default_folder(recipe, "flax"), recipe, "flax", resume=options.resume)
    write_manifest(run, "flax", describe(device), arch, train.class_names)
    state, first = checkpoint.resume(run, state) if options.resume else (state, 0)
    cli.announce(run, describe(device), arch, train, splits, fresh, first)
    journal = Journal(run, steps, options.log_every)
    for epoch in range(first, recipe.epochs):
        with journal.epoch(epoch) as record:
            for batch in batches(train, recipe, epoch, train=True):
                state, sums = train_step(state, *to_device(batch, device))
                record(batch, sums)
        scores = {split: evaluate(state.model, state.variables, data, recipe) for split, data in splits.items()}
        checkpoint.save(run.checkpoint(epoch + 1, "flax"), state)
        journal.scores(epoch, scores, record)
        plots.curves(run)
    best = checkpoint.load_variables(run.checkpoint(journal.final_epoch(), "flax"), arch, recipe.param_dtype)
    convert.save(run.path / "model.safetensors", best, arch, int(state.step))
    journal.close()
    return run.path


def start_weights(
    state: TrainState, arch: Arch, options: cli.TrainOptions
) -> tuple[TrainState, tuple[str, ...] | None]:
    """Load the weights that the recipe or `--init-from` asks for.

    Returns:
        The state, and the layers that stayed fresh; None when nothing was loaded.
    """
    if options.resume:
        return state, None
    if options.init_from:
        variables, fresh = convert.load_partial(options.init_from, state.variables, arch)
    elif state.recipe.pretrained:
        variables, fresh = convert.load_pretrained(state.variables, arch)
    else:
        return state, None
    variables = jax.device_put(variables, jax.tree.leaves(state.params)[0].device)
    return state.replace(params=variables["params"], batch_stats=variables.get("batch_stats", {})), fresh


if __name__ == "__main__":
    cli.train(fit)
