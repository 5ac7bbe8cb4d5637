"""This project's two sides for the comparer: the real `train_step` of each framework, watched."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from inspect import unwrap
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import optax
import torch

import flax_impl.optim
import flax_impl.state
import flax_impl.train
import torch_impl.optim
import torch_impl.state
import torch_impl.train
from common.arch.spec import Arch
from common.data.batch import Batch
from common.recipes.spec import Recipe
from flax_impl import convert
from flax_impl import device as flax_device
from flax_impl import feed as flax_feed
from parity.compare import Tensors, Trace
from parity_tests import QUICK_XLA
from parity_tests.outputs import mark, shown
from torch_impl import device as torch_device
from torch_impl import feed as torch_feed

LARGE = 100  # pixels: code that is not optimized at all then takes longer to run than some effort to compile
Edit = Callable[[torch.nn.Module], None]


def make_pair(
    recipe: Recipe, arch: Arch, steps: int, edit: Edit | None = None, device: str = "cpu"
) -> tuple[TorchSide, FlaxSide]:
    """Both sides at the start of a run, watched; for the arguments see `make_states`."""
    ours, theirs = make_states(recipe, arch, steps, edit, device)
    return TorchSide(ours, arch), FlaxSide(theirs, arch)


def make_states(
    recipe: Recipe, arch: Arch, steps: int, edit: Edit | None = None, device: str = "cpu"
) -> tuple[torch_impl.state.TrainState, flax_impl.state.TrainState]:
    """Both frameworks' states at the start of a run, with the same initial weights, drawn by PyTorch.

    Args:
        recipe: to train; float64 needs JAX's x64 flag.
        arch: adapted to the data.
        steps: in one epoch.
        edit: changes PyTorch's weights before Flax gets them.
        device: "cpu" or "gpu", for both.
    """
    ours = torch_impl.state.init_state(recipe, arch, steps, torch_device.pick_device(device))
    if edit:
        edit(ours.model)
    place = flax_device.pick_device(device)
    variables = convert.from_torch({name: tensor.cpu() for name, tensor in ours.model.state_dict().items()}, arch)
    # Flax's own draws would be compiled for many seconds, and thrown away.
    with mock.patch.object(flax_impl.state, "initialize", return_value=variables):
        return ours, flax_impl.state.init_state(recipe, arch, steps, place)


class TorchSide:
    """Watches `torch_impl.train.train_step` with forward hooks."""

    name = "PyTorch"

    def __init__(self, state: torch_impl.state.TrainState, arch: Arch) -> None:
        self.state, self.arch = state, arch
        self.seen: dict[str, list[np.ndarray]] = {}
        # As the backward pass leaves them, before any clipping. The hooks hold the dict alone: autograd keeps hooks
        # where Python's garbage collector cannot see them, and a reference to the model would keep it for ever.
        self.gradients = gradients = dict[str, np.ndarray]()
        for name, parameter in state.model.named_parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda parameter, name=name: gradients.update({name: _numpy(parameter.grad)})
            )
        state.model.register_forward_pre_hook(lambda module, inputs: self._see("images", inputs[0]))
        for name, module in state.model.named_modules():
            if _is_compared(name) and not isinstance(module, torch.nn.Identity):
                module.register_forward_hook(lambda _, __, output, name=name: self._see(name, output))

    def _see(self, name: str, tensor: torch.Tensor) -> None:
        self.seen.setdefault(name, []).append(_numpy(tensor))

    def step(self, batch: Batch) -> Trace:
        """Train on one batch; see `compare.Side`."""
        model = self.state.model
        inputs = torch_feed.to_device(batch, self.state.device)
        moved = _flat_inputs(inputs) | {"labels": inputs.labels.int()}
        scale = self.state.scaler.get_scale()
        self.gradients.clear()
        self.seen.clear()
        sums = torch_impl.train.train_step(self.state, inputs)
        memory = torch_impl.optim.optimizer_state(self.state.optimizer, model)
        named = dict(model.named_parameters())
        seen = {name: np.concatenate(arrays) for name, arrays in self.seen.items()}
        return {
            "batch": _as_used({name: _numpy(array) for name, array in moved.items()}, self.state.recipe),
            "input": {"images": seen.pop("images")},
            "activation": seen,
            "loss": _means(sums),
            "gradient": {
                name: self.gradients[name] / scale if name in self.gradients else 0 * _numpy(parameter)
                for name, parameter in reversed(named.items())
            },
            "optimizer": _flat(memory.slots),
            "parameter": {name: _numpy(parameter) for name, parameter in named.items()},
            "statistic": {name: _numpy(b) for name, b in model.named_buffers() if "running" in name},
        }


class FlaxSide:
    """Watches `flax_impl.train.train_step`: an interceptor of linen's modules and the optimizer mark values in it."""

    name = "Flax"

    def __init__(self, state: flax_impl.state.TrainState, arch: Arch) -> None:
        self.state, self.arch = state.replace(tx=_watched(state.tx)), arch
        worth = arch.image[0] >= LARGE and os.environ.get("XLA_FLAGS") == QUICK_XLA
        options = {"xla_backend_optimization_level": 1} if worth else None
        step = shown(unwrap(flax_impl.train.train_step))  # without the original's trace and donation
        self.compiled = jax.jit(step, compiler_options=options)

    def step(self, batch: Batch) -> Trace:
        """Train on one batch; see `compare.Side`."""
        inputs = flax_feed.to_device(batch, self.state.device)
        with nn.intercept_methods(Interceptor()):
            (self.state, sums), marked = self.compiled(self.state, inputs)
        whole = {name: np.concatenate(arrays) for name, arrays in marked.items() if name != GRADIENTS}
        seen = {name: _channels_first(name, array, self.arch) for name, array in whole.items()}
        gradients = jax.tree.unflatten(jax.tree.structure(self.state.params), marked[GRADIENTS])
        memory = flax_impl.optim.optimizer_state(self.state.opt_state, self.arch)
        variables = convert.named(self.state.variables, self.arch)
        return {
            "batch": _as_used(_flat_inputs(inputs), self.state.recipe),
            "input": {"images": seen.pop("images")},
            "activation": seen,
            "loss": _means(sums),
            "gradient": convert.named({"params": gradients}, self.arch),
            "optimizer": _flat(memory.slots),
            "parameter": {name: array for name, array in variables.items() if "running" not in name},
            "statistic": {name: array for name, array in variables.items() if "running" in name},
        }


GRADIENTS = "gradients"


def _watched(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, which marks the gradients it gets."""

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        return tx.update(jax.tree.map(partial(mark, GRADIENTS), gradients), state, params)

    return optax.GradientTransformation(tx.init, update)


class Interceptor:
    """Marks what the modules of a model return; of the whole model, what it is given."""

    def __init__(self) -> None:
        self.inside: tuple[str, ...] | None = None

    def __call__(self, call: Any, inputs: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        path = context.module.path
        if context.method_name != "__call__" or path == self.inside:  # a subclass calls its parent's method
            return call(*inputs, **keywords)
        if not path:
            inputs = (mark("images", inputs[0]), *inputs[1:])
        outside, self.inside = self.inside, path
        output = call(*inputs, **keywords)
        self.inside = outside
        name = ".".join(path)
        return mark(name, output) if _is_compared(name) else output


def _is_compared(name: str) -> bool:
    """A block, a dense or dropout layer, or a block's convolution or batch norm; pools are functions in Flax."""
    first, _, part = name.partition(".")
    return bool(first) and first != "pool" and part in ("", "conv", "norm")


def _channels_first(name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    """(N, H, W, C) -> (N, C, H, W), also where the feature map has been flattened, before the first dense layer."""
    first = next(arch.named_dense())[0].replace("fc", "drop")
    if name == first:
        return array.reshape(-1, *arch.feature_size).transpose(0, 3, 1, 2).reshape(array.shape)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def _flat_inputs(inputs: Any) -> dict[str, Any]:
    """What a step is fed, by name."""
    facts = {name: array for name, array in inputs.facts._asdict().items() if array is not None}
    return {"images": inputs.images, "labels": inputs.labels, **inputs.draws, **facts}


def _means(sums: Any) -> Tensors:
    loss, correct, count = (
        _numpy(sums[name]) if isinstance(sums[name], torch.Tensor) else np.asarray(sums[name])
        for name in ("loss", "correct", "count")
    )
    return {"loss": loss / count.astype(loss.dtype), "correct": correct.astype(np.int64)}


def _as_used(batch: dict[str, Any], recipe: Recipe) -> Tensors:
    """Draws in the parameters' dtype, to which preprocessing casts them; JAX may do so on the way to the device."""
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    return {name: a.astype(recipe.param_dtype) if a.dtype.kind == "f" else a for name, a in arrays.items()}


def _flat(slots: dict[str, dict[str, np.ndarray]]) -> Tensors:
    return {f"{slot}/{name}": array for slot, tensors in slots.items() for name, array in tensors.items()}


def _numpy(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.clone().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy().copy()
