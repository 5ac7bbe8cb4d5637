"""Flax, as the driver sees it. Read next to `torch_impl/engine.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from common.arch.spec import Arch
from common.data.batch import Batch
from common.data.dataset import Dataset
from common.frameworks import Framework
from common.recipes.spec import Recipe
from common.runs.folder import RunFolder
from common.runs.progress import Progress
from common.runs.scores import Scores
from common.training.engine import AfterStep, Step
from common.training.options import TrainOptions
from common.weights.network import about
from common.world import World
from flax_impl import checkpoint, device, weights, world
from flax_impl.evaluate import evaluate
from flax_impl.feed import Feed, feeds, to_device
from flax_impl.preprocess import mix, preprocess
from flax_impl.state import TrainState, init_state


@dataclass(frozen=True)
class Engine:
    """See `common.training.engine.Engine`.

    Attributes:
        loop: `flax_impl.train.train_epoch`.
    """

    loop: Callable[[TrainState, Iterable[Step], AfterStep[TrainState]], TrainState]
    framework: Framework = "flax"

    def be_deterministic(self) -> None:
        """Take only algorithms that repeat their results."""
        device.be_deterministic()

    def in_touch(self) -> AbstractContextManager[None]:
        """Say in a sentence that another process is gone."""
        return world.in_touch()

    def join(self, name: str) -> World:
        """Meet the other processes, if there are any."""
        return world.join(name)

    def leave(self, own: World) -> None:
        """Part from them."""
        world.leave(own)

    def check_precision(self, recipe: Recipe, options: TrainOptions) -> dict[str, str]:
        """What the device multiplies float32 numbers in, found by trying.

        Raises:
            UserError: the device is not there, or does not compute in the recipe's precision.
        """
        return device.check_precision(recipe.precision, device.pick_device(options.device))

    def begin(self, recipe: Recipe, arch: Arch, steps: int, options: TrainOptions) -> TrainState:
        """The state before the first step; XLA always compiles.

        Raises:
            UserError: the device is not there.
        """
        place = device.pick_device(options.device)
        return init_state(recipe, arch, steps, place)

    def share(self, state: TrainState, own: World, first: int) -> tuple[TrainState, int]:
        """Give every process the state, and a number, that process 0 has."""
        return world.share(state, own, first)

    def agree(self, goes_on: bool, own: World) -> bool:
        """Whether training goes on, as process 0 has it."""
        return world.agree(goes_on, own)

    def start_weights(self, state: TrainState, init_from: Path | None) -> tuple[TrainState, tuple[str, ...] | None]:
        """Load the weights that the recipe or `--init-from` asks for; names the layers that stay fresh."""
        arch = state.model.arch
        if init_from:
            variables, fresh = weights.load_partial(init_from, state.variables, arch)
        elif state.recipe.pretrained == "no":
            return state, None
        else:
            backbone = state.recipe.pretrained == "backbone"
            variables, fresh = weights.load_pretrained(state.variables, arch, backbone=backbone)
        variables = jax.device_put(variables, state.device)
        return state.replace(params=variables["params"], batch_stats=variables.get("batch_stats", {})), fresh

    def feeds(self, state: TrainState, splits: Sequence[Dataset], own: World) -> list[Feed]:
        """What takes each split's batches to the state's device."""
        return feeds(splits, state.recipe, state.device, own)

    def train_epoch(self, state: TrainState, steps: Iterable[Step], after: AfterStep[TrainState]) -> TrainState:
        """The loop over batches."""
        return self.loop(state, steps, after)

    def train_alone(self, state: TrainState, batch: Batch) -> TrainState:
        """One step, waited for."""
        step = batch, to_device(batch, state.device)
        return jax.block_until_ready(self.loop(state, [step], lambda batch, state, sums: None))

    def add_up(self, sums: Mapping[str, Array], own: World) -> Mapping[str, Array]:
        """What a step returned, added over all processes."""
        return world.add_up(sums, own)

    def steps_done(self, state: TrainState) -> int:
        """Training steps so far."""
        return int(state.step)

    def left_out(self, state: TrainState) -> int:
        """Those of them that changed nothing, since float16's gradients overflowed."""
        return 0 if state.scaler.scale is None else int(state.step) - int(state.updates)

    def evaluate(self, state: TrainState, feed: Any) -> Scores:
        """Score the network on a split."""
        return evaluate(state.model, state.variables, feed)

    def save(self, path: Path, state: TrainState, progress: Progress) -> None:
        """Write a checkpoint, whole or not at all."""
        checkpoint.save(path, state, progress)

    def checkpoint_bytes(self, state: TrainState) -> int:
        """How large a checkpoint becomes, about."""
        return checkpoint.size(state)

    def load(self, path: Path, state: TrainState) -> tuple[TrainState, Progress]:
        """Read one."""
        return checkpoint.load(path, state)

    def publish(self, path: Path, dest: Path, recipe: Recipe, arch: Arch, epoch: int, steps: int) -> None:
        """Write a checkpoint's network as the .safetensors file that both frameworks open."""
        best = weights.load_variables(path, arch, recipe.param_dtype)
        weights.save(dest, best, arch, epoch * steps, epoch=epoch, **vars(about(RunFolder.open(dest))))

    def describe(self, state: TrainState) -> str:
        """The device in words."""
        return device.describe(_own_device(state))

    def peak_memory(self, state: TrainState) -> int:
        """The most bytes that were held at once."""
        return device.peak_memory(_own_device(state))

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether an error says that memory is full."""
        return device.is_out_of_memory(error)

    def nonfinite_layer(self, state: TrainState, batch: Batch) -> str | None:
        """Where a training step's forward pass first meets NaN or infinity; None where it does not."""
        arch = state.model.arch
        layers = [name for name, _ in (*arch.named_convs(), *arch.named_dense())]
        for name in layers:
            if not all(bool(jnp.isfinite(value).all()) for value in jax.tree.leaves(state.params[name])):
                return f"the parameters of {name}"
        images, _, draws, facts = to_device(batch, state.device)
        x = mix(preprocess(images, draws, state.recipe.preprocess, state.dtype), draws, facts.partner)
        _, kept = state.model.apply(
            state.variables,
            x,
            train=True,
            rngs={"dropout": state.dropout_key},
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
        found = [name for name in layers if not jnp.isfinite(kept["intermediates"][name]["__call__"][0]).all()]
        return f"the output of {found[0]}" if found else None


def _own_device(state: TrainState) -> jax.Device:
    """This process's, among those that hold the state."""
    return jax.tree.leaves(state.params)[0].addressable_data(0).device
