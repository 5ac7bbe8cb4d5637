"""The order of a step's parts, and which of them stay in float32: each held to a formula in float64.

The frameworks agree with one another also where both have an order wrong, so the formula here is written down once
more, from the papers and from what `common.recipes.spec` and docs/training.md promise. Each wrong order is written
down too, and the values are such that it leaves the right one by a hundred times the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import unwrap
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict
from scipy.special import log_softmax

import flax_impl.accumulate
import flax_impl.engine
import flax_impl.evaluate
import flax_impl.feed
import flax_impl.train
import torch_impl.engine
import torch_impl.evaluate
import torch_impl.feed
import torch_impl.train
from common.arch.spec import AvgPool, LocalResponseNorm
from common.data.batch import NO_FACTS, Facts
from common.recipes.spec import FineTune, LossScale, Mix, Optimizer, Preprocess, Recipe, Schedule
from flax_impl import convert, layers
from flax_impl import model as flax_model
from parity_tests.material import smallest
from parity_tests.sides import make_states
from parity_tests.subjects import subjects
from torch_impl import layers as torch_layers
from torch_impl import model as torch_model

ARCH = smallest()
BOUND = 2e-6  # float32's rounding over a few steps of values around 1
PER_EPOCH = 2  # optimizer steps, so that the schedule and the freezing turn within a few
RECIPE = replace(
    subjects()["plain"].recipe,
    precision="float16",
    epochs=9,
    batch_size=8,
    schedule=Schedule(milestones=(2,), gamma=0.5),
    optimizer=Optimizer(lr=0.25, momentum=0.9, weight_decay=0.3, decay_biases=False, clip_norm=2.0),
    loss_scale=LossScale(initial=64.0, growth=4.0, backoff=0.5, interval=3),
    finetune=FineTune("last", freeze_epochs=1, backbone_lr=0.4),
    preprocess=Preprocess(),
)
ADAM = Optimizer(
    name="adam", lr=0.05, weight_decay=0.3, decay_biases=False, clip_norm=2.0, beta1=0.6, beta2=0.7, eps=1e-2
)
OPTIMIZERS = {
    "sgd": RECIPE.optimizer,
    "nesterov": replace(RECIPE.optimizer, nesterov=True, decay_biases=True),
    "adam": ADAM,
    "adamw": replace(ADAM, name="adamw"),
}
HEAD = ("fc4",)  # of FineTune("last")

Tensors = dict[str, np.ndarray]
States = tuple[Any, Any]
Step = Callable[[Any, Tensors], Any]


def _rows(names: Tensors, left_out: tuple[int, ...] = (0, 3), count: int = 8) -> list[Tensors]:
    """Gradients around the norm that is clipped to; those of a step that is left out hold one infinity."""
    rng, rows = np.random.default_rng(5), []
    for step in range(count):
        row = {name: rng.standard_normal(start.shape) for name, start in names.items()}
        norm = np.sqrt(sum((g**2).sum() for g in row.values()))
        row = {name: (g / norm * (9.0, 1.0)[step % 2]).astype(np.float32) for name, g in row.items()}
        if step in left_out:
            row["fc4.bias"][1] = np.inf
        rows.append(row)
    return rows


def _inputs(count: int = 8) -> dict[str, Any]:
    """A batch of pixels and labels, for both."""
    rng = np.random.default_rng(7)
    images, labels = rng.integers(0, 256, (count, 16, 16, 1), np.uint8), rng.integers(0, 3, count).astype(np.int32)
    return {
        "torch": torch_impl.feed.Inputs(torch.from_numpy(images), torch.from_numpy(labels).long(), {}, NO_FACTS),
        "flax": flax_impl.feed.Inputs(jnp.asarray(images), jnp.asarray(labels), {}, NO_FACTS),
        "images": images,
        "labels": labels,
    }


def _torch_step(state: Any, row: Tensors) -> Any:
    """The real step, in whose middle the backward pass is replaced by given gradients."""

    def backward(_: Any, state: Any, x: Any, targets: Any, first: int, count: int) -> Any:
        scale = state.scaler.scale(torch.ones(()))
        for name, parameter in state.model.named_parameters():
            # In the parameter's memory layout, as autograd leaves it: fused optimizers go through both as they lie.
            given = torch.empty_like(parameter).copy_(torch.from_numpy(row[name]))
            parameter.grad = given * scale if parameter.requires_grad else None
        return torch.zeros(()), torch.zeros(len(x), 3)

    with mock.patch.object(torch_impl.train, "accumulate", backward):
        torch_impl.train.train_step(state, _inputs()["torch"])
    return state


def _flax_step(state: Any, row: Tensors) -> Any:
    paths = {convert.flax_path(name)[1:]: convert.to_flax_layout(name, g, ARCH) for name, g in row.items()}
    return _jitted(state, unflatten_dict(paths))


@jax.jit
def _jitted(state: Any, gradients: Any) -> Any:
    def backward(_: Any, state: Any, x: Any, targets: Any, real: Any) -> Any:
        scale = 1.0 if state.scaler.scale is None else state.scaler.scale
        scaled = jax.tree.map(lambda g: g * scale, gradients)
        return scaled, state.batch_stats, jnp.zeros(()), jnp.zeros((len(x), 3))

    with mock.patch.object(flax_impl.train, "accumulate", backward):
        return unwrap(flax_impl.train.train_step)(state, _inputs()["flax"])[0]


def _torch_parameters(state: Any) -> Tensors:
    return {name: p.detach().numpy().copy() for name, p in state.model.named_parameters()}


def _flax_parameters(state: Any) -> Tensors:
    return convert.named({"params": state.params}, ARCH)


SIDES: dict[str, tuple[Step, Callable[[Any], Tensors]]] = {
    "torch": (_torch_step, _torch_parameters),
    "flax": (_flax_step, _flax_parameters),
}


def _states(recipe: Recipe) -> dict[str, Any]:
    recipe.check()
    ours, theirs = make_states(recipe, ARCH, PER_EPOCH, _spread)
    return {"torch": ours, "flax": theirs}


def _spread(model: torch.nn.Module) -> None:
    """No parameter is zero, so that each shows whether it decays."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)


@dataclass
class _Slots:
    first: np.ndarray | float = 0.0
    second: np.ndarray | float = 0.0
    steps: int = 0


def _expected(recipe: Recipe, start: Tensors, rows: list[Tensors], wrong: str = "") -> list[Tensors]:
    """The parameters after every step, in float64, by the formulas: or by one that is `wrong`.

    A step with an infinite gradient is left out whole. In every other the gradients are clipped to their common norm
    (Pascanu et al., arXiv:1211.5063, algorithm 1), PyTorch's 1e-6 added; decay enters SGD's and Adam's gradient before
    their memory and AdamW's step after it (arXiv:1711.05101, algorithms 1 and 2); Adam is arXiv:1412.6980,
    algorithm 1, and SGD as PyTorch's documentation of `torch.optim.SGD` prints it. The rate and the freezing go by the
    steps that were taken.
    """
    spec, tune = recipe.optimizer, recipe.finetune
    parameters = {name: value.astype(np.float64) for name, value in start.items()}
    memory = {name: _Slots() for name in start}
    path, taken, scale = [], 0, recipe.loss_scale.initial
    for step, row in enumerate(rows):
        clock = step if wrong == "left-out steps count" else taken
        if all(np.isfinite(g).all() for g in row.values()):
            frozen = (step if wrong == "frozen by training steps" else clock) < tune.freeze_epochs * PER_EPOCH
            live = {name: g.astype(np.float64) for name, g in row.items() if not frozen or _is_head(name)}
            for name, g in _clipped(spec, live, parameters, scale, wrong).items():
                rate = recipe.learning_rate(clock, PER_EPOCH)
                if not _is_head(name) and wrong != "the backbone at the full rate":
                    rate *= tune.backbone_lr
                decay = spec.weight_decay * ((g.ndim > 1) != (wrong == "the others decay") or spec.decay_biases)
                parameters[name] = _moved(spec, parameters[name], g, memory[name], rate, decay, wrong)
            taken += 1
        path.append(dict(parameters))
    return path


def _is_head(name: str) -> bool:
    return name.split(".")[0] in HEAD


def _clipped(spec: Optimizer, row: Tensors, parameters: Tensors, scale: float, wrong: str) -> Tensors:
    if wrong == "clipped before unscaled":
        return {
            name: g / scale for name, g in _clipped(spec, {n: g * scale for n, g in row.items()}, {}, 1, "").items()
        }
    if wrong == "each clipped alone":
        return {name: _clipped(spec, {name: g}, parameters, scale, "")[name] for name, g in row.items()}
    if wrong == "decay before clipping":
        row = {name: g + spec.weight_decay * parameters[name] * (g.ndim > 1) for name, g in row.items()}
    norm = np.sqrt(sum((g**2).sum() for g in row.values()))
    return {name: g * min(1.0, spec.clip_norm / (norm + 1e-6)) for name, g in row.items()}


def _moved(
    spec: Optimizer, value: np.ndarray, g: np.ndarray, slots: _Slots, rate: float, decay: float, wrong: str
) -> np.ndarray:
    """A parameter after one optimizer step."""
    if wrong == "decay before clipping":
        decay = 0.0
    decoupled = (spec.name == "adamw") != (wrong == "the other decay")
    before = 0.0 if decoupled else decay
    g = g + before * value
    slots.steps += 1
    if spec.name == "sgd":
        slots.first = spec.momentum * slots.first + g
        step = g + spec.momentum * slots.first if spec.nesterov else slots.first
    else:
        slots.first = spec.beta1 * slots.first + (1 - spec.beta1) * g
        slots.second = spec.beta2 * slots.second + (1 - spec.beta2) * g**2
        first, second = slots.first / (1 - spec.beta1**slots.steps), slots.second / (1 - spec.beta2**slots.steps)
        step = first / (np.sqrt(second) + spec.eps)
    moved: np.ndarray = value - rate * (step + (decay if decoupled else 0.0) * value)
    return moved


def _distance(ours: list[Tensors], theirs: list[Tensors]) -> float:
    return max(float(np.abs(a[name] - b[name]).max()) for a, b in zip(ours, theirs, strict=True) for name in a)


WRONG = (
    "clipped before unscaled",
    "each clipped alone",
    "decay before clipping",
    "the other decay",
    "the others decay",
    "left-out steps count",
    "frozen by training steps",
    "the backbone at the full rate",
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unscaled_then_clipped_together_then_decayed_and_only_taken_steps_count(name: str) -> None:
    """float16 with clipping, freezing and a schedule: eight steps, the first and the fourth of which overflow."""
    recipe = replace(RECIPE, optimizer=OPTIMIZERS[name])
    for framework, state in _states(recipe).items():
        step, parameters = SIDES[framework]
        start = parameters(state)
        rows, path = _rows(start), []
        for row in rows:
            state = step(state, row)
            path.append(parameters(state))
        assert _distance(path, _expected(recipe, start, rows)) < BOUND, framework
        for wrong in WRONG:
            if not (recipe.optimizer.decay_biases and wrong in ("the others decay", "decay before clipping")):
                far = _distance(_expected(recipe, start, rows, wrong), _expected(recipe, start, rows))
                assert far > 100 * BOUND, wrong


def test_a_run_has_the_rates_of_its_recipe_from_its_first_step_to_its_last() -> None:
    """Of a cosine, which ends with the run: plain SGD by gradients of one takes the rate off a parameter."""
    schedule, plain = Schedule("cosine", warmup_epochs=1, final=0.1), Optimizer(lr=0.25)
    recipe = replace(RECIPE, precision="float64", epochs=4, schedule=schedule, optimizer=plain, finetune=FineTune())
    with jax.enable_x64(True):
        states, count = _states(recipe), 4 * PER_EPOCH
        for framework, state in states.items():
            step, parameters = SIDES[framework]
            before, rates = parameters(state)["fc4.bias"], list[float]()
            ones = {name: np.ones(value.shape) for name, value in parameters(state).items()}
            for _ in range(count):
                state = step(state, ones)
                after = parameters(state)["fc4.bias"]
                rates.append(float((before - after).mean()))
                before = after
            assert rates == pytest.approx([recipe.learning_rate(s, PER_EPOCH) for s in range(count)], rel=1e-9), (
                framework
            )


class _TorchLogits(torch.nn.Module):
    """A network whose logits are the first pixels, scaled, and fc4's bias, in 16 bits."""

    def __init__(self, bias: torch.nn.Parameter, dtype: str, gain: float) -> None:
        super().__init__()
        self.bias, self.dtype, self.gain = bias, getattr(torch, dtype), gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = (x.flatten(1)[:, :3] * self.gain + self.bias).to(self.dtype)
        return logits


@dataclass(frozen=True)
class _FlaxLogits:
    """The same, which also returns batch statistics of its own."""

    dtype: str
    gain: float
    stats: float = 0.0
    arch: Any = ARCH

    def apply(self, variables: Any, x: Any, *, train: bool, rngs: Any = None, mutable: Any = None) -> Any:
        bias = variables["params"]["fc4"]["bias"]
        logits = (x.reshape(len(x), -1)[:, :3] * self.gain + bias).astype(self.dtype)
        if not train:
            return logits
        return logits, {"batch_stats": jax.tree.map(lambda old: old + self.stats, variables["batch_stats"])}


def _logits(images: np.ndarray, bias: np.ndarray, dtype: str, gain: float) -> np.ndarray:
    x = images.reshape(len(images), -1)[:, :3].astype(np.float32) / np.float32(255) * np.float32(gain) + bias
    return np.asarray(jnp.asarray(x, dtype)).astype(np.float64)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_loss_and_log_probabilities_of_16_bit_logits_are_float32(precision: Any) -> None:
    """Held to scipy's log-softmax in float64, label smoothing by its formula; in 16 bits both would be far off."""
    recipe = replace(RECIPE, precision=precision, label_smoothing=0.2, finetune=FineTune())
    states, inputs, gain = _states(recipe), _inputs(), 20.0
    ours, theirs = states["torch"], states["flax"].replace(model=_FlaxLogits(precision, gain))
    bias = ours.model.fc4.bias
    expected = log_softmax(_logits(inputs["images"], bias.detach().numpy(), precision, gain), 1)
    targets = 0.8 * np.eye(3)[inputs["labels"]] + 0.2 / 3
    rounded = np.asarray(jnp.asarray(expected, precision)).astype(np.float64)
    assert np.abs(rounded - expected).max() > 100 * BOUND * np.abs(expected).max()
    ours.network = _TorchLogits(bias, precision, gain)
    network = _TorchLogits(bias, precision, gain)
    found = {
        "torch": torch_impl.evaluate.log_probabilities(network, inputs["torch"], recipe),  # type: ignore[arg-type]
        "flax": unwrap(flax_impl.evaluate.log_probabilities)(theirs.model, theirs.variables, inputs["flax"], recipe),
    }
    x, shares = inputs["images"].astype(np.float32) / np.float32(255), np.eye(3, dtype=np.float32)[inputs["labels"]]
    given = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(shares)
    losses: dict[str, Any] = {
        "torch": torch_impl.train.backward(ours, *given, 8)[0],
        "flax": flax_impl.train.backward(theirs, theirs.batch_stats, jnp.asarray(x), jnp.asarray(shares), None, 8)[2],
    }
    for framework, scores in found.items():
        assert "float32" in str(scores.dtype)
        np.testing.assert_allclose(np.asarray(scores), expected, rtol=BOUND, atol=BOUND, err_msg=framework)
        assert float(losses[framework]) == pytest.approx(-(targets * expected).sum(), rel=BOUND), framework


def test_micro_batches_are_added_up_before_their_sum_is_clipped() -> None:
    """Two micro-batches whose gradients of fc4's bias nearly cancel: clipped each alone, their sum would be another."""
    inputs = _inputs()
    images, labels = np.zeros((8, 16, 16, 1), np.uint8), np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32)
    images[:4, 0, 1], images[4:, 0, 0] = 255, 254  # sure of the wrong class, and so of opposite gradients
    inputs["torch"] = inputs["torch"]._replace(images=torch.from_numpy(images))
    inputs["torch"] = inputs["torch"]._replace(labels=torch.from_numpy(labels).long())
    inputs["flax"] = inputs["flax"]._replace(images=jnp.asarray(images), labels=jnp.asarray(labels))
    spec = Optimizer(lr=1.0, clip_norm=0.1)
    recipe = replace(RECIPE, precision="float32", optimizer=spec, accumulate=2, finetune=FineTune())
    states = _states(recipe)
    ours, theirs = states["torch"], states["flax"].replace(model=_FlaxLogits("float32", 2.0))
    start = ours.model.fc4.bias.detach().numpy().copy()
    share = np.exp(log_softmax(_logits(images, start, "float32", 2.0), 1)) - np.eye(3)[labels]
    parts = [share[:4].sum(0) / 8, share[4:].sum(0) / 8]

    def moved(*gradients: np.ndarray) -> np.ndarray:
        result: np.ndarray = start - sum(g * min(1.0, 0.1 / (np.linalg.norm(g) + 1e-6)) for g in gradients)
        return result

    expected = moved(parts[0] + parts[1])
    assert np.abs(moved(*parts) - expected).max() > 100 * BOUND
    ours.network = _TorchLogits(ours.model.fc4.bias, "float32", 2.0)
    torch_impl.train.train_step(ours, inputs["torch"])
    theirs, _ = jax.jit(unwrap(flax_impl.train.train_step))(theirs, inputs["flax"])
    for after in (ours.model.fc4.bias.detach().numpy(), np.asarray(theirs.params["fc4"]["bias"])):
        np.testing.assert_allclose(after, expected, rtol=0, atol=BOUND)


def test_a_step_that_is_left_out_keeps_its_batch_statistics_and_nothing_else() -> None:
    """Its forward pass was seen: PyTorch's own loop around `GradScaler` keeps what batch norm saw, and so do both."""
    recipe = replace(RECIPE, loss_scale=LossScale(initial=2.0**100), finetune=FineTune())
    states, inputs = _states(recipe), _inputs()
    ours = states["torch"]
    before = _torch_parameters(ours)
    pixels = inputs["images"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    with torch.no_grad():
        seen = ours.model.conv1.conv(torch.from_numpy(pixels)).double()
    torch_impl.train.train_step(ours, inputs["torch"])
    norm = ours.model.conv1.norm
    mean, variance = seen.mean((0, 2, 3)), seen.var((0, 2, 3))  # of n - 1, as PyTorch's documentation says
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * mean, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * variance, rtol=2e-3, atol=2e-3)
    assert int(norm.num_batches_tracked) == 1
    theirs = states["flax"].replace(model=_FlaxLogits("float16", 1.0, stats=0.25))
    after, _ = jax.jit(unwrap(flax_impl.train.train_step))(theirs, inputs["flax"])
    jax.tree.map(lambda new, old: np.testing.assert_array_equal(new, old + 0.25), after.batch_stats, theirs.batch_stats)
    for name, value in before.items():
        np.testing.assert_array_equal(_torch_parameters(ours)[name], value)
        np.testing.assert_array_equal(_flax_parameters(after)[name], value)
    assert (ours.scaler.get_scale(), ours.schedule.last_epoch, ours.step) == (2.0**99, 0, 1)
    assert (float(after.scaler.scale), int(after.updates), int(after.step)) == (2.0**99, 0, 1)
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, theirs.opt_state)
    torch_impl.train.train_step(ours, inputs["torch"])
    masks = jax.random.key_data(jax.random.fold_in(jax.random.key(recipe.seed), 1)).tolist()
    assert list(ours.dropout.key) == jax.random.key_data(after.dropout_key).tolist() == masks, "it is a step to dropout"
    assert torch_impl.engine.Engine(torch_impl.train.train_epoch).left_out(ours) == 2
    assert flax_impl.engine.Engine(flax_impl.train.train_epoch).left_out(after) == 1


def test_the_gradient_function_is_told_which_rows_only_pad() -> None:
    """Or their losses would count; the mean is over the others."""
    told: list[Any] = []

    def backward(state: Any, stats: Any, x: Any, targets: Any, real: Any, count: Any) -> Any:
        told.append((real.tolist(), int(count)))
        return {}, {}, jnp.zeros(()), targets

    state: Any = SimpleNamespace(recipe=SimpleNamespace(micro_batch=4), processes=1, batch_stats={}, params={})
    real = jnp.array([True, True, True, False])
    flax_impl.accumulate.accumulate(backward, state, jnp.zeros((4, 2)), jnp.zeros((4, 3)), real)
    assert told == [([True, True, True, False], 3)]


def test_a_right_guess_is_of_the_own_label_however_little_of_it_is_left() -> None:
    """Of two thirds of the rows it is guessed right, and of the others what they are mixed with, by nine tenths."""
    recipe = replace(RECIPE, precision="float32", finetune=FineTune(), mix=Mix(mixup=1.0))
    states, inputs = _states(recipe), _inputs(9)
    labels, partner = np.array([0, 1, 2] * 3, np.int32), np.roll(np.arange(9, dtype=np.int32), 1)
    guesses = np.where(np.arange(9) < 6, labels, labels[partner])
    draws: Any = {"mixup": np.full(9, 0.1), "cut": np.zeros((9, 4), np.int32), "share": np.full(9, 0.1)}
    logits = np.eye(3, dtype=np.float32)[guesses]
    ours = inputs["torch"]._replace(
        labels=torch.from_numpy(labels).long(),
        draws={name: torch.from_numpy(rows) for name, rows in draws.items()},
        facts=Facts(torch.from_numpy(partner).long()),
    )
    made = torch.zeros(()), torch.from_numpy(logits)
    with mock.patch.object(torch_impl.train, "accumulate", return_value=made):
        sums = torch_impl.train.train_step(states["torch"], ours)
    assert (int(sums["correct"]), int(sums["count"])) == (6, 9)
    theirs = inputs["flax"]._replace(labels=jnp.asarray(labels), draws=draws, facts=Facts(jnp.asarray(partner)))

    def accumulate(_: Any, state: Any, *rest: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, state.params), state.batch_stats, jnp.zeros(()), jnp.asarray(logits)

    with mock.patch.object(flax_impl.train, "accumulate", accumulate):
        _, found = jax.jit(unwrap(flax_impl.train.train_step))(states["flax"], theirs)
    assert (int(found["correct"]), int(found["count"])) == (6, 9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_response_norm_of_16_bit_numbers_is_rounded_once(dtype: str) -> None:
    """The paper's constants (k = 2, alpha = 1e-4): the result is the 16-bit number next to float64's, or its
    neighbour where float32 rounds a tie; in 16 bits alpha times the squares would vanish beside k."""
    spec = LocalResponseNorm(size=5, k=2.0, alpha=1e-4, beta=0.75)
    x = jnp.asarray(np.random.default_rng(3).uniform(1, 12, (2, 3, 3, 9)), dtype)
    wide = np.asarray(x).astype(np.float64)
    padded = np.pad(wide, [(0, 0)] * 3 + [(2, 2)])
    squares = sum(padded[..., i : i + 9] ** 2 for i in range(5))
    exact = wide / (2 + 1e-4 * squares) ** 0.75
    last = 2.0 ** (np.floor(np.log2(exact)) - (7 if dtype == "bfloat16" else 10))
    wrong = np.asarray(
        jnp.asarray(wide / np.asarray(jnp.asarray(2 + 1e-4 * squares, dtype)).astype(float) ** 0.75, dtype)
    )
    assert (np.abs(wrong.astype(float) - exact) / last).max() > 0.6
    kind = getattr(torch, dtype)
    ours = torch.from_numpy(wide.astype(np.float32)).to(kind).permute(0, 3, 1, 2)
    with torch.autocast("cpu", kind):
        found = torch_model._after(spec)(ours)
    assert found.dtype == kind
    theirs = layers.local_response_norm(x, spec)
    assert theirs.dtype == x.dtype
    for values in (found.permute(0, 2, 3, 1).float().numpy(), np.asarray(theirs)):
        assert (np.abs(values.astype(np.float64) - exact) / last).max() < 0.501


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("pool", [AvgPool(3, 2), AvgPool(2, 2), "adaptive"])
def test_means_of_16_bit_numbers_are_rounded_once(pool: AvgPool | str, dtype: str) -> None:
    """numpy's means of windows in float64; of bins of 3, 4 and 3 pixels where the pool is adaptive."""
    x = jnp.asarray(np.random.default_rng(4).uniform(1, 12, (2, 9, 9, 5)), dtype)
    wide = np.asarray(x).astype(np.float64)
    kind = getattr(torch, dtype)
    ours = torch.from_numpy(wide.astype(np.float32)).to(kind).permute(0, 3, 1, 2)
    if isinstance(pool, AvgPool):
        windows = [slice(start, start + pool.size) for start in range(0, 10 - pool.size, pool.stride)]
        found, theirs = torch_model._after(pool)(ours), flax_model._after(pool, x)
    else:
        windows = [slice(0, 3), slice(2, 5), slice(4, 7), slice(6, 9)]
        found, theirs = torch_layers.adaptive_avg_pool(ours, 4), layers.adaptive_avg_pool(x, 4)
    exact = np.stack([np.stack([wide[:, i, j].mean((1, 2)) for j in windows], 1) for i in windows], 1)
    last = 2.0 ** (np.floor(np.log2(exact)) - (7 if dtype == "bfloat16" else 10))
    assert (found.dtype, theirs.dtype) == (kind, x.dtype)
    for values in (found.permute(0, 2, 3, 1).float().numpy(), np.asarray(theirs)):
        assert values.shape == exact.shape
        assert (np.abs(values.astype(np.float64) - exact) / last).max() < 0.501
