"""Train a recipe in Flax: `python -m flax_impl.train digits`. Read next to `torch_impl/train.py`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
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
from flax_impl.device import Feed, check_precision, compute_dtype, describe, pick_device
from flax_impl.evaluate import evaluate
from flax_impl.init import initialize
from flax_impl.layers import dropout_from
from flax_impl.loss_scale import Scaler
from flax_impl.model import AlexNet, LeNet, build
from flax_impl.optim import build_optimizer, build_scaler, build_schedule
from flax_impl.preprocess import mix, preprocess, soft_targets


class TrainState(train_state.TrainState):
    """Everything that a training step changes, and the recipe that says how."""

    batch_stats: Any
    scaler: Scaler
    model: AlexNet | LeNet = struct.field(pytree_node=False)
    recipe: Recipe = struct.field(pytree_node=False)
    freeze_steps: int = struct.field(pytree_node=False)

    @property
    def updates(self) -> Array:
        """Optimizer steps done: fewer than `step` where float16 overflowed."""
        return self.opt_state[-1].count

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
        tune = recipe.finetune
        is_head = None if tune.head == "all" else recipe.head_layers(arch).__contains__
        freeze_steps = tune.freeze_epochs * steps
        state = TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=build_optimizer(recipe.optimizer, rate, is_head, tune.backbone_lr, freeze_steps),
            batch_stats=variables.get("batch_stats", {}),
            scaler=build_scaler(recipe.loss_scale, recipe.precision),
            model=model,
            recipe=recipe,
            freeze_steps=freeze_steps,
        )
    # As a step leaves them, arrays of a definite type on a definite device, or the second step would compile again.
    return jax.device_put(state.replace(step=jnp.zeros((), jnp.int32)), device)


@partial(jax.jit, donate_argnums=0)
def train_step(
    state: TrainState, images: Array, labels: Array, draws: dict[str, Array]
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step with what `Feed` or `to_device` gives; the old state's memory is reused.

    Returns:
        The new state. On the device: `loss` (cross-entropy in nats) and `correct` first guesses, summed over the
        batch, and `count`.
    """
    recipe, dtype = state.recipe, jnp.dtype(state.recipe.param_dtype)
    x = mix(preprocess(images, draws, recipe.preprocess, dtype), draws)
    targets = soft_targets(labels, draws, state.model.arch.classes, dtype)
    gradients, batch_stats, loss, logits = accumulate(state, x, targets)
    state = update(state, gradients, batch_stats)
    correct = (logits.argmax(1) == labels).sum()
    return state, {"loss": loss, "correct": correct, "count": jnp.array(len(labels))}


def backward(
    state: TrainState, batch_stats: Any, x: Array, targets: Array, row: Array | int, rows: int
) -> tuple[Any, Any, Array, Array]:
    """The gradients of one micro-batch.

    Args:
        state: whose parameters they are of.
        batch_stats: batch norm's, so far.
        x: (n, H, W, C), the micro-batch.
        targets: (n, classes).
        row: of the whole batch at which it begins.
        rows: of the whole batch.

    Returns:
        The scaled gradients, the batch statistics, the sum of the losses, and the logits.
    """
    dropout = jax.random.fold_in(jax.random.key(state.recipe.seed), state.step)
    smooth = optax.smooth_labels(targets, state.recipe.label_smoothing)

    def loss_fn(params: Any) -> tuple[Array, tuple[Any, Array, Array]]:
        variables = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
        logits, updates = state.model.apply(
            variables, x, train=True, rngs={"dropout": dropout}, mutable=["batch_stats"]
        )
        logits = logits.astype(x.dtype)
        loss = optax.softmax_cross_entropy(logits, smooth).sum()
        scaled = loss / rows * (1 if state.scaler.scale is None else state.scaler.scale)
        return scaled, (updates.get("batch_stats", {}), loss, logits)

    with nn.intercept_methods(dropout_from(row, rows)) if len(x) < rows else nullcontext():
        gradients, rest = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, *rest


def accumulate(state: TrainState, x: Array, targets: Array) -> tuple[Any, Any, Array, Array]:
    """The gradients of a batch, one micro-batch after the other; see `backward`."""
    micro, rows = state.recipe.micro_batch, len(x)
    if rows <= micro:
        return backward(state, state.batch_stats, x, targets, 0, rows)

    def add(so_far: Any, part: Any) -> Any:
        gradients, batch_stats, loss = so_far
        x, targets, row = part
        more, batch_stats, extra, logits = backward(state, batch_stats, x, targets, row, rows)
        return (jax.tree.map(jnp.add, gradients, more), batch_stats, loss + extra), logits

    # A loop that XLA keeps: unrolled, it would hold the activations of several micro-batches at once.
    whole = rows // micro * micro
    starts = jnp.arange(0, whole, micro)
    parts = jax.tree.map(lambda a: a[:whole].reshape(-1, micro, *a.shape[1:]), (x, targets))
    none = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, jnp.zeros((), x.dtype)
    so_far, logits = jax.lax.scan(add, none, (*parts, starts))
    logits = logits.reshape(whole, -1)
    if whole < rows:
        so_far, last = add(so_far, (x[whole:], targets[whole:], whole))
        logits = jnp.concatenate([logits, last])
    return *so_far, logits


def update(state: TrainState, gradients: Any, batch_stats: Any) -> TrainState:
    """One optimizer step with these gradients; none where a scaled one overflowed."""
    gradients = state.scaler.unscale(gradients)
    if state.freeze_steps:
        head = state.recipe.head_layers(state.model.arch)
        frozen = {layer: (state.updates < state.freeze_steps) & (layer not in head) for layer in gradients}
        gradients = {
            layer: jax.tree.map(lambda g, layer=layer: jnp.where(frozen[layer], 0, g), tree)
            for layer, tree in gradients.items()
        }
    after = state.apply_gradients(grads=gradients, batch_stats=batch_stats)
    if state.scaler.scale is None:
        return after
    finite = jnp.all(jnp.array([jnp.isfinite(g).all() for g in jax.tree.leaves(gradients)]))
    kept = state.replace(step=after.step, batch_stats=batch_stats)
    chosen: TrainState = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, kept)
    return chosen.replace(scaler=state.scaler.after(finite))


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
    state = init_state(recipe, arch, steps, device)
    state, fresh = start_weights(state, arch, options)
    run = open_or_create(options.out or default_folder(recipe, "flax"), recipe, "flax", resume=options.resume)
    write_manifest(run, "flax", describe(device), arch, train.class_names)
    state, first = checkpoint.resume(run, state) if options.resume else (state, 0)
    cli.announce(run, describe(device), arch, train, splits, fresh, first)
    journal, feed = Journal(run, steps, options.log_every), Feed(train, device)
    for epoch in range(first, recipe.epochs):
        with journal.epoch(epoch) as record:
            for batch, inputs in feed(batches(train, recipe, epoch, train=True)):
                state, sums = train_step(state, *inputs)
                record(batch, sums)
        scores = {split: evaluate(state.model, state.variables, data, recipe) for split, data in splits.items()}
        checkpoint.save(run.checkpoint(epoch + 1, "flax"), state)
        journal.scores(epoch, scores, record)
        plots.curves(run)
    best = checkpoint.load_variables(run.checkpoint(journal.final_epoch(), "flax"), arch, recipe.param_dtype)
    about = {"class_names": train.class_names, "preprocess": recipe.preprocess}
    convert.save(run.path / "model.safetensors", best, arch, int(state.step), **about)
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
    elif state.recipe.pretrained != "no":
        backbone = state.recipe.pretrained == "backbone"
        variables, fresh = convert.load_pretrained(state.variables, arch, backbone=backbone)
    else:
        return state, None
    variables = jax.device_put(variables, jax.tree.leaves(state.params)[0].device)
    return state.replace(params=variables["params"], batch_stats=variables.get("batch_stats", {})), fresh


if __name__ == "__main__":
    cli.train(fit)
