"""What must survive: every field of a training state, changed, saved and loaded, is found again.

The fields are not named one by one: the dataclass and the pytree are asked for them, so that one added tomorrow is
covered, or must be listed here with the reason why no checkpoint needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flax_impl.checkpoint
import flax_impl.engine
import flax_impl.evaluate
import flax_impl.optim
import flax_impl.state
import flax_impl.train
import flax_impl.weights
import torch_impl.checkpoint
import torch_impl.engine
import torch_impl.evaluate
import torch_impl.optim
import torch_impl.state
import torch_impl.train
import torch_impl.weights
import torch_impl.world
from common.arch.spec import Arch
from common.data.batch import NO_FACTS
from common.errors import NonFiniteError
from common.recipes.spec import FineTune, Optimizer, Preprocess, Recipe, Schedule
from common.runs.progress import Progress
from common.weights import exchange
from common.weights.network import Network
from common.world import World
from flax_impl import convert
from parity_tests.material import smallest
from parity_tests.sides import make_states
from parity_tests.subjects import subjects
from torch_impl.feed import Inputs

ARCH = smallest()
BASE = replace(subjects()["plain"].recipe, schedule=Schedule(), precision="float32", preprocess=Preprocess())
TUNED = FineTune("last", freeze_epochs=2, backbone_lr=0.5)
RECIPES: dict[str, Recipe] = {
    "sgd, float16": replace(BASE, precision="float16"),
    "adamw, fine-tuned": replace(BASE, optimizer=Optimizer(name="adamw", lr=1e-3), finetune=TUNED),
}

# Fields that a step does not change, and why a state of the same recipe has them already.
TORCH_NOT_KEPT = {
    "dropout": "made anew before each step from the recipe's seed and `step`",
    "recipe": "of the run: a checkpoint of another one is refused",
    "device": "where the run goes on",
    "dtype": "the recipe's",
    "freeze_steps": "the recipe's and the data's",
    "network": "the model, perhaps around it what exchanges gradients",
    "preprocess": "a function",
    "world": "of the process",
}
FLAX_NOT_KEPT = {
    "key": "made from the recipe's seed",
    "apply_fn": "a function",
    "tx": "functions, the recipe's",
    "model": "the recipe's",
    "recipe": "of the run: a checkpoint of another one is refused",
    "freeze_steps": "the recipe's and the data's",
    "processes": "of the world",
}


class _Changes:
    """Gives every number a value that no other one has."""

    def __init__(self) -> None:
        self.next = count(3)

    def __call__(self, value: Any) -> Any:
        """A tree of containers, arrays and numbers, with all numbers changed."""
        if isinstance(value, dict):
            return {key: self._entry(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        if isinstance(value, torch.Tensor):
            return torch.empty_like(value).copy_(torch.from_numpy(self._filled(value.numpy(force=True))))
        if isinstance(value, np.ndarray | jax.Array):
            return jnp.asarray(self._filled(np.asarray(value)))
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        return type(value)(next(self.next))

    def _entry(self, key: Any, item: Any) -> Any:
        return item if key == "params" and isinstance(item, list) else self(item)  # places, by which PyTorch sorts

    def _filled(self, array: np.ndarray) -> np.ndarray:
        values = np.array([next(self.next) for _ in range(array.size)], np.float64).reshape(array.shape)
        return np.array(values / 1024 if array.dtype.kind == "f" else values, array.dtype)


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, torch.Tensor))
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in flat]


def _assert_same(found: Any, expected: Any) -> None:
    ours, theirs = _leaves(found), _leaves(expected)
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, leaf), (_, other) in zip(ours, theirs, strict=True):
        assert leaf.dtype == other.dtype, path
        np.testing.assert_array_equal(leaf, other, err_msg=path)


def _assert_all_differ(found: Any, expected: Any) -> None:
    """So that what is found again cannot have been there before."""
    for (path, leaf), (_, other) in zip(_leaves(found), _leaves(expected), strict=True):
        if leaf.dtype.kind in "fiu" and not ("['param_groups']" in path and "['params']" in path):
            assert not (leaf == other).any(), path


def _progress(recipe: Recipe, arch: Arch, step: int) -> Progress:
    """Every field that has a default has another value; a field of a new type must be given one here."""
    start, made = Progress.start(recipe, arch), dict[str, Any]()
    values: dict[type, Callable[[Any], Any]] = {
        int: lambda old: old + 7,
        bool: lambda old: not old,
        float: lambda old: old + 0.1,
        str: lambda old: old + "text",
        list: lambda old: [{"step": 5, "loss": 0.3, "split": "train"}],
        dict: lambda old: dict.fromkeys(old, 0.7) or {"loss": 1 / 3},
        type(None): lambda old: [{"epoch": 1, "loss": 0.9}],
    }
    for field in fields(Progress):
        old = getattr(start, field.name)
        if field.name in ("recipe", "arch"):  # a checkpoint of others is refused
            made[field.name] = old
        elif field.name == "versions":
            made[field.name] = {"torch": "0.0"}
        else:
            made[field.name] = values[type(old)](old)
    assert all(made[field.name] != getattr(start, field.name) for field in fields(Progress)[2:])
    return Progress(**{**made, "step": step})


def _content(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else value


def _torch_kept(state: Any) -> dict[str, Any]:
    names = [field.name for field in fields(torch_impl.state.TrainState)]
    assert set(TORCH_NOT_KEPT) < set(names)
    return {name: _content(getattr(state, name)) for name in names if name not in TORCH_NOT_KEPT}


def _torch_started(recipe: Recipe) -> Any:
    """With an optimizer's memory of a first step, and a scaler that has scaled."""
    state, _ = make_states(recipe, ARCH, 2)
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.scaler.scale(torch.ones(()))
    state.optimizer.step()
    return state


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_pytorchs_state_survives(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    state, fresh = _torch_started(recipe), make_states(recipe, ARCH, 2)[0]
    before = deepcopy(_torch_kept(state))
    for field, content in _Changes()(before).items():
        value = getattr(state, field)
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(content)
        else:
            setattr(state, field, content)
    kept = _torch_kept(state)
    _assert_all_differ(kept, before)
    progress = _progress(recipe, ARCH, state.step)
    torch_impl.checkpoint.save(tmp_path / "state.pt", state, progress)
    assert torch_impl.checkpoint.load(tmp_path / "state.pt", fresh) == progress
    _assert_same(_torch_kept(fresh), kept)
    for optimizer in (state.optimizer, fresh.optimizer):  # a memory in another layout would be read as it lies
        for parameter, slots in optimizer.state.items():
            assert all(slot.stride() == parameter.stride() for slot in slots.values() if slot.shape == parameter.shape)


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_flaxs_state_survives(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    _, state = make_states(recipe, ARCH, 2)
    names = [field.name for field in fields(flax_impl.state.TrainState)]
    assert set(FLAX_NOT_KEPT) < set(names)
    changes = _Changes()
    kept = {field: jax.tree.map(changes, getattr(state, field)) for field in names if field not in FLAX_NOT_KEPT}
    _assert_all_differ(kept, {field: getattr(state, field) for field in kept})
    progress = _progress(recipe, ARCH, int(kept["step"]))
    flax_impl.checkpoint.save(tmp_path / "state", state.replace(**kept), progress)
    found, read = flax_impl.checkpoint.load(tmp_path / "state", state)
    assert read == progress
    _assert_same({field: getattr(found, field) for field in kept}, kept)
    for field in FLAX_NOT_KEPT:
        if field != "key":
            assert getattr(found, field) == getattr(state, field), field
    np.testing.assert_array_equal(found.key, jax.random.key_data(jax.random.key(recipe.seed)))


def test_a_state_with_one_parameter_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    """Or the newest checkpoint would be one that nothing can be done with."""
    recipe = next(iter(RECIPES.values()))
    ours, theirs = make_states(recipe, ARCH, 2)
    with torch.no_grad():
        next(ours.model.parameters()).view(-1)[-1] = float("nan")
    (first, *others), tree = jax.tree.flatten(theirs.params)
    theirs = theirs.replace(params=jax.tree.unflatten(tree, [first.at[(-1,) * first.ndim].set(jnp.nan), *others]))
    with pytest.raises(NonFiniteError, match="a parameter is not finite"):
        torch_impl.checkpoint.save(tmp_path / "state.pt", ours, _progress(recipe, ARCH, 0))
    with pytest.raises(NonFiniteError, match="a parameter is not finite"):
        flax_impl.checkpoint.save(tmp_path / "state", theirs, _progress(recipe, ARCH, 0))
    assert not any(tmp_path.iterdir())


def test_what_pytorchs_checkpoints_leave_out_is_not_changed_by_a_step() -> None:
    state = _torch_started(RECIPES["adamw, fine-tuned"])
    before = {name: getattr(state, name) for name in TORCH_NOT_KEPT}
    pixels, labels = torch.zeros(8, 16, 16, 1, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    inputs = Inputs(pixels, labels, {}, NO_FACTS)
    torch_impl.train.train_step(state, inputs)
    for name, value in before.items():
        assert getattr(state, name) is value, name
    other, _ = make_states(RECIPES["adamw, fine-tuned"], ARCH, 2)
    for each in (state, other):
        each.dropout.at(41)
    assert state.dropout.key == other.dropout.key


@pytest.mark.usefixtures("x64")
def test_a_network_opens_in_the_precision_of_its_recipe(tmp_path: Path) -> None:
    """Of a checkpoint, and of a file that holds its numbers in float32."""
    recipe = replace(BASE, precision="float64")
    ours, theirs = make_states(recipe, ARCH, 2)
    torch_impl.checkpoint.save(tmp_path / "state.pt", ours, _progress(recipe, ARCH, 0))
    flax_impl.checkpoint.save(tmp_path / "state.orbax", theirs, _progress(recipe, ARCH, 0))
    wanted = {n: t.numpy() for n, t in ours.model.state_dict().items() if not n.endswith(exchange.COUNTER)}
    exchange.write(tmp_path / "x.safetensors", {n: t.astype(np.float32) for n, t in wanted.items()}, ARCH)
    for name, rounded in (("state", False), ("x.safetensors", True)):
        files = [tmp_path / (name if rounded else f"{name}{suffix}") for suffix in (".pt", ".orbax")]
        networks = [Network(file, ARCH, recipe, ()) for file in files]
        model = torch_impl.evaluate.open_network(networks[0], "cpu")
        _, variables = flax_impl.evaluate.open_network(networks[1], "cpu")
        found = convert.to_torch(variables, ARCH)
        for key, value in wanted.items():
            expected = value.astype(np.float32).astype(np.float64) if rounded else value
            np.testing.assert_array_equal(model.state_dict()[key].numpy(), expected, strict=True)
            np.testing.assert_array_equal(found[key], expected, strict=not rounded)


def _engines() -> tuple[Any, Any]:
    loops: Any = torch_impl.train.train_epoch, flax_impl.train.train_epoch
    return torch_impl.engine.Engine(loops[0]), flax_impl.engine.Engine(loops[1])


def test_a_run_starts_from_all_that_a_file_holds(tmp_path: Path) -> None:
    """Running averages of batch norm are no parameters, but they are the network's."""
    ours, theirs = make_states(BASE, ARCH, 2)
    held = {n: np.full(shape, 0.5 + i, np.float32) for i, (n, shape) in enumerate(exchange.shapes(ARCH).items())}
    exchange.write(tmp_path / "x.safetensors", held, ARCH)
    engine, other = _engines()
    ours, fresh = engine.start_weights(ours, tmp_path / "x.safetensors")
    theirs, too = other.start_weights(theirs, tmp_path / "x.safetensors")
    assert fresh == too == ()
    found = convert.to_torch(theirs.variables, ARCH)
    for name, value in held.items():
        np.testing.assert_array_equal(ours.model.state_dict()[name].numpy(), value, name)
        np.testing.assert_array_equal(found[name], value, name)


@pytest.mark.parametrize("pretrained", ["no", "backbone", "all"])
def test_a_run_starts_from_what_its_recipe_says_of_torchvisions_weights(
    pretrained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = make_states(BASE, ARCH, 2)
    recipe, asked = replace(BASE, pretrained=pretrained), list[bool]()

    def load(given: Any, arch: Any, *, backbone: bool = False) -> Any:
        asked.append(backbone)
        return (given, ("fc4",)) if isinstance(given, dict) else ("fc4",)

    engine, other = _engines()
    for module in (torch_impl.weights, flax_impl.weights):
        monkeypatch.setattr(module, "load_pretrained", load)
    _, fresh = engine.start_weights(replace(ours, recipe=recipe), None)
    _, too = other.start_weights(theirs.replace(recipe=recipe), None)
    assert asked == ([] if pretrained == "no" else [pretrained == "backbone"] * 2)
    assert fresh == too == (None if pretrained == "no" else ("fc4",))


def _distinct(offset: int) -> dict[str, np.ndarray]:
    """For every parameter values that no other one has, exact in float32."""
    table, start = {}, offset
    for name, shape in exchange.shapes(ARCH).items():
        if "running" not in name:
            table[name] = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
            start += int(np.prod(shape))
    return table


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("tune", [FineTune(), TUNED], ids=["all", "fine-tuned"])
def test_an_optimizers_whole_memory_travels(name: Any, tune: FineTune) -> None:
    """Every slot of every parameter, the steps, and how many of them each parameter was frozen: there and back."""
    momentum = 0.9 * (name == "sgd")
    recipe = replace(BASE, optimizer=Optimizer(name=name, lr=1e-3, momentum=momentum), finetune=tune)
    ours, theirs = make_states(recipe, ARCH, 2)
    slots = torch_impl.optim.OPTIMIZERS[name].slots
    memory = {slot: _distinct(1000 * i) for i, slot in enumerate(slots, 1)}
    backbone = [n for n in memory[slots[0]] if n.split(".")[0] not in recipe.head_layers(ARCH)]
    late = {} if tune.head == "all" else dict.fromkeys(backbone, 4)
    given = exchange.OptimizerState(9, memory, late)
    opt_state = flax_impl.optim.load_optimizer(given, theirs.opt_state, ARCH)
    back = flax_impl.optim.optimizer_state(opt_state, ARCH)
    torch_impl.optim.load_optimizer(given, ours.optimizer, ours.model)
    again = torch_impl.optim.optimizer_state(ours.optimizer, ours.model)
    counts = torch_impl.optim.OPTIMIZERS[name].counts
    expected = given if counts else replace(given, frozen={})  # SGD has no clock, and in PyTorch no count of steps
    _assert_same(vars(back), vars(expected))
    _assert_same(vars(again), vars(expected if counts else replace(expected, step=0)))
    for parameter_name, parameter in ours.model.named_parameters():
        for slot, value in ours.optimizer.state[parameter].items():
            if slot != "step":
                np.testing.assert_array_equal(value.numpy(), memory[slot][parameter_name])
            else:
                assert value.item() == 9 - late.get(parameter_name, 0)


def test_what_is_frozen_has_an_empty_memory() -> None:
    """PyTorch's Adam makes none of it; Flax's is of zeros from the start, as what travels to it must be."""
    recipe = RECIPES["adamw, fine-tuned"]
    state, _ = make_states(recipe, ARCH, 2)
    head = {name for name, _ in state.model.named_parameters() if name.split(".")[0] in recipe.head_layers(ARCH)}
    for name, parameter in state.model.named_parameters():
        parameter.grad = torch.ones_like(parameter) if name in head else None
    state.optimizer.step()
    found = torch_impl.optim.optimizer_state(state.optimizer, state.model)
    assert found.slots.keys() == {"exp_avg", "exp_avg_sq"}
    for rows in found.slots.values():
        assert {name for name, memory in rows.items() if memory.any()} == head
        assert rows.keys() - head == found.frozen.keys()
    assert (found.step, {*found.frozen.values()}) == (1, {1})


def test_a_process_that_follows_has_all_that_the_first_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's world, without its processes: weights, memory, schedule, scale and step travel, and one number."""
    first, other = _torch_started(RECIPES["sgd, float16"]), _torch_started(RECIPES["sgd, float16"])
    kept = _torch_kept(first)
    for field, content in _Changes()(deepcopy(kept)).items():
        value = getattr(first, field)
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(content)
        else:
            setattr(first, field, content)
    sent: list[Any] = []

    def broadcast(message: list[Any], **_: Any) -> None:
        if sent:
            message[:] = sent
        sent[:] = message

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    monkeypatch.setattr(torch_impl.world, "DistributedDataParallel", lambda model, **_: model)
    assert torch_impl.world.share(first, World(0, 2), 5) == 5
    assert torch_impl.world.share(other, World(1, 2), 0) == 5
    _assert_same(_torch_kept(other), _torch_kept(first))
    assert other.step > 0


@pytest.mark.parametrize("side", ["from_torch", "to_torch"])
def test_every_element_of_every_tensor_has_a_place_of_its_own_in_the_other_framework(side: str) -> None:
    """Each of distinct numbers arrives once, in the tensor of its name and where the axes' names say."""
    tensors, start = {}, 1
    for name, shape in exchange.shapes(ARCH).items():
        tensors[name] = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
        start += int(np.prod(shape))
    variables = convert.from_torch(tensors, ARCH)
    if side == "to_torch":
        variables = convert.from_torch(convert.to_torch(variables, ARCH), ARCH)
    height, width, channels = ARCH.feature_size
    assert height * width > 1, "an order of pixels and channels must show"
    names = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
    for name, tensor in tensors.items():
        *layer, part = name.split(".")
        place: Any = variables["batch_stats" if "running" in part else "params"]
        for step in layer:
            place = place[step]
        found = place["scale" if layer[-1] == "norm" and part == "weight" else names.get(part, part)]
        match tensor.ndim:
            case 4:
                expected = np.einsum("oihw->hwio", tensor)
            case 2 if layer == ["fc3"]:
                rows = tensor.reshape(-1, channels, height, width)
                expected = np.einsum("ochw->hwco", rows).reshape(tensor.shape[::-1])
            case 2:
                expected = np.einsum("oi->io", tensor)
            case _:
                expected = tensor
        np.testing.assert_array_equal(found, expected, err_msg=name)
