"""What a GPU refuses, refused without one: PyTorch's steps on tensors that know that they are on CUDA and hold nothing.

Such tensors obey CUDA's rules (no numpy array of them, no mixing with a CPU's, no number read back inside a step), so
what would fail on a GPU, or wait for it, fails here. Keys of dropout masks are whole numbers of the host, and real.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

import flax_impl.evaluate
import flax_impl.train
import torch_impl.device
import torch_impl.dropout
import torch_impl.evaluate
import torch_impl.train
import torch_impl.world
from common.arch.spec import Arch
from common.data.batch import Batch, Facts
from common.recipes.spec import Optimizer, Precision, Recipe
from common.world import World
from flax_impl import feed as flax_feed
from parity_tests.material import first_batches
from parity_tests.sides import make_states
from parity_tests.subjects import subjects, with_everything
from parity_tests.tests.proof.test_gpu import need_gpu
from torch_impl import feed as torch_feed
from torch_impl.state import TrainState, init_state

# PyTorch's backward pass runs on "cuda" with a GPU alone. Of this one it keeps to the same rules, and to no kernels.
GPU = torch.device("meta")


@dataclass(frozen=True)
class Case:
    """A recipe on a small network."""

    recipe: Recipe
    arch: Arch
    batch: Batch


def case(name: str, precision: Precision, **changes: Any) -> Case:
    subject = subjects()["plain" if name in ("adamw", "clip", "accumulate") else name]
    recipe = with_everything(subject.recipe) if name == "accumulate" else subject.recipe
    recipe = replace(recipe, precision=precision, **changes)
    [batch] = first_batches(subject.data, recipe, 1)
    return Case(recipe, subject.arch, batch)


CASES = {
    "plain": {},
    "accumulate": {},
    "batch norm": {},
    "lrn": {},
    "adamw": {"optimizer": Optimizer(name="adamw", lr=1e-3, weight_decay=0.1)},
    "clip": {"optimizer": Optimizer(lr=0.1, momentum=0.9, clip_norm=0.1)},
}


@contextmanager
def cuda_without_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every tensor that is made in the block is an empty one, with a shape, a dtype and a device, and its rules."""
    fold_in = torch_impl.dropout.fold_in

    def on_the_host(key: Any, data: int) -> Any:
        with unset_fake_temporarily():
            return fold_in(key, data)

    monkeypatch.setattr(torch_impl.dropout, "fold_in", on_the_host)
    monkeypatch.setattr(torch.nn.Module, "_apply", _apply)
    optimizers = sys.modules[torch.optim.Optimizer.__module__]
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: [GPU.type])
    sgd = torch.optim.SGD  # whose fused kernel needs a device that computes
    monkeypatch.setattr(torch.optim, "SGD", lambda *args, **options: sgd(*args, **{**options, "fused": False}))
    torch_impl.device.constant.cache_clear()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch_impl.device.constant.cache_clear()


def _apply(module: torch.nn.Module, function: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module.to` puts new contents into the same tensors, which those without contents do not take: take new ones."""
    for child in module.children():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(function(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = function(buffer)
    return module


def inputs_of(batch: Batch) -> torch_feed.Inputs:
    def empty(array: np.ndarray) -> torch.Tensor:
        with unset_fake_temporarily():
            dtype = torch.as_tensor(array).dtype
        return torch.empty(array.shape, dtype=dtype, device=GPU)

    draws = {name: empty(array) for name, array in batch.draws.items()}
    facts = Facts(*(None if array is None else empty(array) for array in batch.facts))
    return torch_feed.Inputs(empty(batch.images), empty(batch.labels).long(), draws, facts)


def two_steps(given: Case) -> tuple[TrainState, dict[str, torch.Tensor]]:
    """The second step finds constants, optimizer memory and statistics where the first one left them."""
    state, inputs = init_state(given.recipe, given.arch, 4, GPU), inputs_of(given.batch)
    torch_impl.train.train_step(state, inputs)
    with no_constants():
        return state, torch_impl.train.train_step(state, inputs)


@contextmanager
def no_constants() -> Iterator[None]:
    """Refuse to make a tensor on the GPU from numbers of the host, for which it would be waited."""

    class Refuse(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            device = str((kwargs or {}).get("device"))
            if function in (torch.tensor, torch.as_tensor, torch.from_numpy) and device == GPU.type:
                raise AssertionError(f"a constant is made on the GPU in a step: {args[0]}")
            return function(*args, **(kwargs or {}))

    with Refuse():
        yield


@pytest.mark.parametrize(("name", "precision"), [*((name, "float32") for name in CASES), ("accumulate", "float64")])
def test_a_step_keeps_to_the_device(name: str, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    with cuda_without_one(monkeypatch):
        state, sums = two_steps(case(name, precision, **CASES[name]))
        assert {value.device for value in sums.values()} == {GPU}
        assert {parameter.device for parameter in state.model.parameters()} == {GPU}
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: None)
        total = torch_impl.world.add_up(sums, World(0, 2, even=False))
        assert {value.device for value in total.values()} == {GPU}


@pytest.mark.parametrize("ten", [False, True])
def test_an_evaluation_keeps_to_the_device(ten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case("plain", "float32")
    with cuda_without_one(monkeypatch):
        state, inputs = init_state(given.recipe, given.arch, 4, GPU), inputs_of(given.batch)
        torch_impl.evaluate.eval_step(state.model, inputs, given.recipe, ten=ten)
        with no_constants():
            found = torch_impl.evaluate.eval_step(state.model, inputs, given.recipe, ten=ten)
        assert {value.device for value in found.values()} == {GPU}


def _read_back(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    loss = f(logits, targets, **keywords)
    assert loss.item() >= 0
    return loss


def _as_array(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    np.asarray(logits.detach())
    return f(logits, targets, **keywords)


def _other_device(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return f(logits, targets, **keywords) + torch.ones(1)


def _number(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return f(logits, targets, **keywords) * torch.tensor(1.5, device=logits.device)


@pytest.mark.parametrize("fault", [_read_back, _as_array, _other_device, _number], ids=lambda fault: fault.__name__[1:])
def test_a_planted_fault_is_refused(fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is quite in order on a CPU."""
    original, given = torch.nn.functional.cross_entropy, case("plain", "float32")
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda *args, **options: fault(original, *args, **options)
    )
    state = init_state(given.recipe, given.arch, 4, torch.device("cpu"))
    torch_impl.train.train_step(state, torch_feed.to_device(given.batch, torch.device("cpu")))
    with (
        cuda_without_one(monkeypatch),
        pytest.raises(Exception, match=r"local_scalar_dense|numpy|same device|on the GPU"),
    ):
        two_steps(given)


def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    """Where all tests of a GPU would skip."""
    need_gpu(True, asked=True)
    with pytest.raises(pytest.skip.Exception):
        need_gpu(False, asked=False)
    with pytest.raises(pytest.fail.Exception, match="no GPU that both"):
        need_gpu(False, asked=True)


def test_a_flax_step_moves_nothing_by_itself() -> None:
    """Once its inputs are on the device: JAX is told to refuse what it would otherwise copy without a word."""
    given = case("plain", "float32")
    _, state = make_states(given.recipe, given.arch, 4)
    inputs = flax_feed.to_device(given.batch, jax.devices("cpu")[0])
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, sums = flax_impl.train.train_step(state, inputs)
        found = flax_impl.evaluate.eval_step(state.model, state.variables, inputs, given.recipe)
    assert np.isfinite(float(sums["loss"]))
    assert float(found["count"]) == len(given.batch.labels)
