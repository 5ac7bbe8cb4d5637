"""Train a recipe in Flax: `python -m flax_impl.train digits`. Read next to `torch_impl/train.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from traceback import clear_frames
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from flax.training import train_state
from jax import Array

from common import cli, datasets, faults, plots
from common.arch import Arch
from common.errors import NonFiniteError, UserError
from common.initializers import get_init
from common.journal import Journal
from common.pipeline import Batch, batches, steps_per_epoch
from common.recipes import Recipe
from common.run import default_folder, open_or_create, write_manifest
from common.stopping import Stop
from common.world import World
from flax_impl import checkpoint, convert
from flax_impl.device import (
    Feed,
    check_precision,
    compute_dtype,
    describe,
    is_out_of_memory,
    peak_memory,
    pick_device,
    to_device,
)
from flax_impl.evaluate import evaluate
from flax_impl.init import initialize
from flax_impl.layers import dropout_from, norm_over
from flax_impl.loss_scale import Scaler
from flax_impl.model import AlexNet, LeNet, build
from flax_impl.optim import build_optimizer, build_scaler, build_schedule
from flax_impl.preprocess import mix, preprocess, soft_targets
from flax_impl.world import add_up, in_touch, join, leave, share


class TrainState(train_state.TrainState):
    """Everything that a training step changes, and the recipe that says how."""

    batch_stats: Any
    scaler: Scaler
    model: AlexNet | LeNet = struct.field(pytree_node=False)
    recipe: Recipe = struct.field(pytree_node=False)
    freeze_steps: int = struct.field(pytree_node=False)
    processes: int = struct.field(pytree_node=False, default=1)

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
    real = draws.get("real")
    gradients, batch_stats, loss, logits = accumulate(state, x, targets, real)
    state = update(state, gradients, batch_stats)
    correct = (logits.argmax(1) == labels).sum(where=real)
    return state, {"loss": loss, "correct": correct, "count": jnp.array(len(labels)) if real is None else real.sum()}


def backward(
    state: TrainState,
    batch_stats: Any,
    x: Array,
    targets: Array,
    real: Array | None,
    row: Array | int,
    rows: int,
    count: Array | int,
) -> tuple[Any, Any, Array, Array]:
    """The gradients of one micro-batch.

    Args:
        state: whose parameters they are of.
        batch_stats: batch norm's, so far.
        x: (n, H, W, C), the micro-batch: equally many rows of each process.
        targets: (n, classes).
        real: bool (n,), which rows do not only pad the batch; None: all.
        row: of a process's rows at which it begins.
        rows: of the whole batch, padding included.
        count: of the whole batch's examples.

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
        loss = optax.softmax_cross_entropy(logits, smooth).sum(where=real)
        scaled = loss / count * (1 if state.scaler.scale is None else state.scaler.scale)
        return scaled, (updates.get("batch_stats", {}), loss, logits)

    with (
        nn.intercept_methods(dropout_from(row, rows, state.processes)) if len(x) < rows else nullcontext(),
        nullcontext() if real is None else nn.intercept_methods(norm_over(real)),
    ):
        gradients, rest = jax.grad(loss_fn, has_aux=True)(state.params)
    return gradients, *rest


def accumulate(state: TrainState, x: Array, targets: Array, real: Array | None = None) -> tuple[Any, Any, Array, Array]:
    """The gradients of a batch, in each process one micro-batch after the other; see `backward`."""
    micro, rows, processes = state.recipe.micro_batch, len(x), state.processes
    each = rows // processes
    count = rows if real is None else real.sum()
    if each <= micro:
        return backward(state, state.batch_stats, x, targets, real, 0, rows, count)

    def add(so_far: Any, part: Any) -> Any:
        gradients, batch_stats, loss = so_far
        x, targets, real, row = part
        more, batch_stats, extra, logits = backward(state, batch_stats, x, targets, real, row, rows, count)
        return (jax.tree.map(jnp.add, gradients, more), batch_stats, loss + extra), logits

    def cut(a: Array, begin: int, end: int, size: int) -> Array:
        """These rows of each process as (parts, processes * size, ...): a copy, but no row changes its process."""
        parts = a.reshape(processes, each, *a.shape[1:])[:, begin:end].reshape(processes, -1, size, *a.shape[1:])
        return parts.swapaxes(0, 1).reshape(-1, processes * size, *a.shape[1:])

    # A loop that XLA keeps: unrolled, it would hold the activations of several micro-batches at once.
    whole = each // micro * micro
    parts = jax.tree.map(lambda a: cut(a, 0, whole, micro), (x, targets, real))
    none = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, jnp.zeros((), x.dtype)
    so_far, logits = jax.lax.scan(add, none, (*parts, jnp.arange(0, whole, micro)))
    logits = logits.reshape(-1, processes, micro, logits.shape[-1]).swapaxes(0, 1).reshape(processes, whole, -1)
    if whole < each:
        rest = jax.tree.map(lambda a: cut(a, whole, each, each - whole)[0], (x, targets, real))
        so_far, last = add(so_far, (*rest, whole))
        logits = jnp.concatenate([logits, last.reshape(processes, each - whole, -1)], axis=1)
    return *so_far, logits.reshape(rows, -1)


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
    begin = partial(init_state, recipe, arch, steps, device)
    state = begin()
    if not world.main:
        follow(state, world, train, splits, steps)
        return None
    state, fresh = (state, None) if options.resume else start_weights(state, arch, options.init_from)
    out = options.out or default_folder(recipe, "flax")
    with open_or_create(out, recipe, "flax", resume=options.resume) as run:
        place = world.describe(describe(device))
        data = {"train": train, **splits}
        write_manifest(run, "flax", place, arch, train.class_names, options.init_from, data)
        journal = Journal(run, "flax", arch, steps, options.log_every, options.checkpoint_every, options.keep)
        if options.resume:
            state, fresh = restore(state, journal)
            journal.rewind()
        state, _ = share(state, world, journal.progress.epochs)
        cli.announce(journal, place, train, splits, fresh)
        try:
            train_epochs(state, world, train, splits, journal)
        except (NonFiniteError, RuntimeError, MemoryError) as error:
            clear_frames(error.__traceback__)  # which hold what fills the device
            del state
            if fault := diagnose(error, begin, train, journal):
                raise UserError(fault) from error
            raise
        best = checkpoint.load_variables(run.checkpoint(journal.final_epoch(), "flax"), arch, recipe.param_dtype)
        about = {"class_names": train.class_names, "preprocess": recipe.preprocess}
        convert.save(run.path / "model.safetensors", best, arch, recipe.epochs * steps, **about)
        journal.close(peak_memory(device))
    leave(world)
    return run.path


def train_epochs(
    state: TrainState,
    world: World,
    train: datasets.Dataset,
    splits: dict[datasets.Split, datasets.Dataset],
    journal: Journal,
) -> None:
    """Train from where the journal stands to the last epoch, with a checkpoint and an evaluation after each.

    Raises:
        NonFiniteError: the loss or a parameter became NaN or infinite.
        Stopped: a signal has asked to stop; a checkpoint is written.
    """
    recipe, feed = state.recipe, Feed(train, jax.tree.leaves(state.params)[0].device)
    with journal.stop.waiting():
        for epoch in range(journal.progress.epochs, recipe.epochs):
            with journal.epoch(epoch) as record:
                for batch, inputs in feed(batches(train, recipe, epoch, train=True, start=record.done, world=world)):
                    state, sums = train_step(state, *inputs)
                    record(batch, add_up(sums, world))
                    if record.due:
                        checkpoint.save(record.path, state, record.progress())
                        record.saved()
            scores = {
                split: evaluate(state.model, state.variables, data, recipe, world=world)
                for split, data in splits.items()
            }
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
        state, first = share(state, world, 0)
        feed = Feed(train, jax.tree.leaves(state.params)[0].device)
        for epoch in range(first, state.recipe.epochs):
            start = int(state.step) - epoch * steps
            for _, inputs in feed(batches(train, state.recipe, epoch, train=True, start=start, world=world)):
                state, _ = train_step(state, *inputs)
            for data in splits.values():
                evaluate(state.model, state.variables, data, state.recipe, world=world)
    leave(world)


def restore(state: TrainState, journal: Journal) -> tuple[TrainState, tuple[str, ...] | None]:
    """Load the newest checkpoint of a run that is whole, or the weights that it began with.

    Returns:
        As `start_weights`.
    """
    state, progress = checkpoint.load_newest(journal, state)
    if progress:
        journal.progress = progress
        return state, None
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
        jax.block_until_ready(train_step(state, *to_device(batch, jax.tree.leaves(state.params)[0].device)))

    if not isinstance(error, NonFiniteError):
        if not is_out_of_memory(error):
            return None
        return faults.out_of_memory(journal, train, step_alone, is_out_of_memory)
    state, _ = restore(begin(), journal)
    device = jax.tree.leaves(state.params)[0].device
    for step, batch in journal.repeat(train, error.step):
        if where := nonfinite_layer(state, batch):
            return faults.not_finite(journal, where, step)
        state, _ = train_step(state, *to_device(batch, device))
    return faults.not_finite(journal, str(error), error.step)


def nonfinite_layer(state: TrainState, batch: Batch) -> str | None:
    """Where a training step's forward pass first meets NaN or infinity; None where it does not."""
    arch, dtype = state.model.arch, jnp.dtype(state.recipe.param_dtype)
    layers = [name for name, _ in (*arch.named_convs(), *arch.named_dense())]
    for name in layers:
        if not all(bool(jnp.isfinite(value).all()) for value in jax.tree.leaves(state.params[name])):
            return f"the parameters of {name}"
    images, _, draws = to_device(batch, jax.tree.leaves(state.params)[0].device)
    x = mix(preprocess(images, draws, state.recipe.preprocess, dtype), draws)
    dropout = jax.random.fold_in(jax.random.key(state.recipe.seed), state.step)
    _, kept = state.model.apply(
        state.variables,
        x,
        train=True,
        rngs={"dropout": dropout},
        mutable=["batch_stats", "intermediates"],
        capture_intermediates=True,
    )
    found = [name for name in layers if not jnp.isfinite(kept["intermediates"][name]["__call__"][0]).all()]
    return f"the output of {found[0]}" if found else None


def start_weights(state: TrainState, arch: Arch, init_from: Path | None) -> tuple[TrainState, tuple[str, ...] | None]:
    """Load the weights that the recipe or `--init-from` asks for.

    Returns:
        The state, and the layers that stayed fresh; None when nothing was loaded.
    """
    if init_from:
        variables, fresh = convert.load_partial(init_from, state.variables, arch)
    elif state.recipe.pretrained != "no":
        backbone = state.recipe.pretrained == "backbone"
        variables, fresh = convert.load_pretrained(state.variables, arch, backbone=backbone)
    else:
        return state, None
    variables = jax.device_put(variables, jax.tree.leaves(state.params)[0].device)
    return state.replace(params=variables["params"], batch_stats=variables.get("batch_stats", {})), fresh


if __name__ == "__main__":
    cli.train(fit)
