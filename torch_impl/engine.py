"""PyTorch, as the driver sees it. Read next to `flax_impl/engine.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from torch_impl import checkpoint, device, weights, world
from torch_impl.evaluate import evaluate
from torch_impl.feed import Feed, feeds, to_device
from torch_impl.preprocess import mix, preprocess
from torch_impl.state import TrainState, init_state


@dataclass(frozen=True)
class Engine:
    """See `common.training.engine.Engine`.

    Attributes:
        loop: `torch_impl.train.train_epoch`.
    """

    loop: Callable[[TrainState, Iterable[Step], AfterStep[TrainState]], TrainState]
    framework: Framework = "torch"

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
        """The state before the first step.

        Raises:
            UserError: the device is not there, or cannot compile.
        """
        place = device.pick_device(options.device)
        if options.compile:
            device.check_compiler(place)
        return init_state(recipe, arch, steps, place, compiled=options.compile)

    def share(self, state: TrainState, own: World, first: int) -> tuple[TrainState, int]:
        """Give every process the state, and a number, that process 0 has."""
        return state, world.share(state, own, first)

    def agree(self, goes_on: bool, own: World) -> bool:
        """Whether training goes on, as process 0 has it."""
        return world.agree(goes_on, own)

    def start_weights(self, state: TrainState, init_from: Path | None) -> tuple[TrainState, tuple[str, ...] | None]:
        """Load the weights that the recipe or `--init-from` asks for; names the layers that stay fresh."""
        model, arch = state.model, state.model.arch
        if init_from:
            return state, weights.load_partial(init_from, model, arch)
        if state.recipe.pretrained == "no":
            return state, None
        return state, weights.load_pretrained(model, arch, backbone=state.recipe.pretrained == "backbone")

    def feeds(self, state: TrainState, splits: Sequence[Dataset], own: World) -> list[Feed]:
        """What takes each split's batches to the state's device."""
        return feeds(splits, state.recipe, state.device, own)

    def train_epoch(self, state: TrainState, steps: Iterable[Step], after: AfterStep[TrainState]) -> TrainState:
        """The loop over batches."""
        return self.loop(state, steps, after)

    def train_alone(self, state: TrainState, batch: Batch) -> TrainState:
        """One step, waited for."""
        return self.loop(
            state, [(batch, to_device(batch, state.device))], lambda batch, state, sums: float(sums["loss"])
        )

    def add_up(self, sums: Mapping[str, Tensor], own: World) -> Mapping[str, Tensor]:
        """What a step returned, added over all processes."""
        return world.add_up(sums, own)

    def steps_done(self, state: TrainState) -> int:
        """Training steps so far."""
        return state.step

    def left_out(self, state: TrainState) -> int:
        """Those of them that changed nothing, since float16's gradients overflowed."""
        return state.step - state.schedule.last_epoch

    def evaluate(self, state: TrainState, feed: Any) -> Scores:
        """Score the network on a split."""
        return evaluate(state.model, feed)

    def save(self, path: Path, state: TrainState, progress: Progress) -> None:
        """Write a checkpoint, whole or not at all."""
        checkpoint.save(path, state, progress)

    def checkpoint_bytes(self, state: TrainState) -> int:
        """How large a checkpoint becomes, about."""
        return checkpoint.size(state)

    def load(self, path: Path, state: TrainState) -> tuple[TrainState, Progress]:
        """Read one."""
        return state, checkpoint.load(path, state)

    def publish(self, path: Path, dest: Path, recipe: Recipe, arch: Arch, epoch: int, steps: int) -> None:
        """Write a checkpoint's network as the .safetensors file that both frameworks open."""
        best = weights.load_model(path, arch, recipe.param_dtype)
        weights.save(dest, best, arch, epoch * steps, epoch=epoch, **vars(about(RunFolder.open(dest))))

    def describe(self, state: TrainState) -> str:
        """The device in words."""
        return device.describe(state.device)

    def peak_memory(self, state: TrainState) -> int:
        """The most bytes that were held at once."""
        return device.peak_memory(state.device)

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether an error says that memory is full."""
        return device.is_out_of_memory(error)

    @torch.no_grad()
    def nonfinite_layer(self, state: TrainState, batch: Batch) -> str | None:
        """Where a training step's forward pass first meets NaN or infinity; None where it does not."""
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
        images, _, draws, facts = to_device(batch, state.device)
        x = mix(preprocess(images, draws, state.recipe.preprocess, state.dtype), draws, facts.partner)
        state.dropout.at(state.step)
        with device.compute_in(state.recipe.precision, state.device):
            state.model.train()(x)
        for hook in hooks:
            hook.remove()
        return f"the output of {found[0]}" if found else None
