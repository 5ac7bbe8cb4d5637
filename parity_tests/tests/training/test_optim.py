"""Every optimizer and schedule over 1,000 steps on equal gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from common.recipes.spec import Optimizer, Schedule
from common.recipes.zoo import RECIPES
from flax_impl import optim as flax_optim
from torch_impl import optim as torch_optim

STEPS, PER_EPOCH = 1000, 90
SHAPES = {"kernel": (7, 5), "bias": (5,)}
SCHEDULE = Schedule(milestones=(3, 6, 9))
SGD = Optimizer(lr=0.05)
ADAM = Optimizer(name="adam", lr=1e-3)
SPECS = {
    "sgd": SGD,
    "decay": replace(SGD, weight_decay=5e-4),
    "momentum": replace(SGD, momentum=0.9),
    "momentum and decay": replace(SGD, momentum=0.9, weight_decay=5e-4),
    "nesterov": replace(SGD, momentum=0.9, nesterov=True, weight_decay=1e-4),
    "clip": replace(SGD, momentum=0.9, clip_norm=1.5),
    "adam": ADAM,
    "adam and decay": replace(ADAM, weight_decay=1e-2),
    "adam, other betas and eps": replace(ADAM, beta1=0.8, beta2=0.99, eps=1e-3),
    "adamw": replace(ADAM, name="adamw", weight_decay=1e-2),
    "adamw and clip": replace(ADAM, name="adamw", clip_norm=1.0),
} | {name: recipe.optimizer for name, recipe in RECIPES.items()}


def gradients(seed: int) -> list[dict[str, np.ndarray]]:
    """Of very different sizes, some of them zero, as those of dead units are."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(STEPS):
        scale = 10.0 ** rng.integers(-6, 1)
        drawn = {name: scale * rng.standard_normal(shape) for name, shape in SHAPES.items()}
        drawn["bias"][0] = 0.0
        rows.append(drawn)
    return rows


def torch_path(
    spec: Optimizer, start: dict[str, np.ndarray], rows: list[dict[str, np.ndarray]], device: torch.device | str = "cpu"
) -> list[np.ndarray]:
    parameters = torch.nn.ParameterDict({name: torch.tensor(value) for name, value in start.items()}).to(device)
    optimizer = torch_optim.build_optimizer(spec, parameters.values())
    schedule = torch_optim.build_schedule(optimizer, SCHEDULE, PER_EPOCH, -(-STEPS // PER_EPOCH))
    path = []
    for row in rows:
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(row[name], device=device)
        torch_optim.clip_gradients(parameters.values(), spec.clip_norm)
        optimizer.step()
        schedule.step()
        path.append(np.concatenate([parameters[name].numpy(force=True).ravel() for name in start]))
    return path


def flax_path(spec: Optimizer, start: dict[str, np.ndarray], rows: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    rate = flax_optim.build_schedule(SCHEDULE, spec.lr, PER_EPOCH, -(-STEPS // PER_EPOCH))
    tx = flax_optim.build_optimizer(spec, rate)
    params = jax.tree.map(jnp.asarray, start)
    state = tx.init(params)

    @jax.jit
    def step(params: optax.Params, state: optax.OptState, row: optax.Updates) -> tuple[optax.Params, optax.OptState]:
        updates, state = tx.update(row, state, params)
        return optax.apply_updates(params, updates), state

    path = []
    for row in rows:
        params, state = step(params, state, row)
        path.append(np.concatenate([np.asarray(params[name]).ravel() for name in start]))
    return path


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SPECS)
def test_a_thousand_steps(name: str) -> None:
    spec, rows = SPECS[name], gradients(1)
    start = {name: np.random.default_rng(0).standard_normal(shape) for name, shape in SHAPES.items()}
    ours, theirs = torch_path(spec, start, rows), flax_path(spec, start, rows)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    assert worst < 1e-12, worst
    # The path is long enough to show a wrong rate: every step moves the parameters.
    assert all((a != b).any() for a, b in pairwise(ours))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("change", [{"eps": 1e-7}, {"weight_decay": 1e-4}, {"beta2": 0.998}, {"lr": 1.001e-3}])
def test_a_wrong_hyperparameter_shows(change: dict[str, float]) -> None:
    spec, rows = SPECS["adamw"], gradients(1)
    start = {name: np.ones(shape) for name, shape in SHAPES.items()}
    wrong = replace(spec, **change)  # type: ignore[arg-type]
    ours, theirs = torch_path(spec, start, rows), flax_path(wrong, start, rows)
    assert max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) > 1e-9


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", RECIPES)
def test_schedules_at_every_step(name: str) -> None:
    recipe = RECIPES[name]
    per_epoch = 7
    optimizer = torch_optim.build_optimizer(recipe.optimizer, [torch.nn.Parameter(torch.zeros(1))])
    schedule = torch_optim.build_schedule(optimizer, recipe.schedule, per_epoch, recipe.epochs)
    theirs = flax_optim.build_schedule(recipe.schedule, recipe.optimizer.lr, per_epoch, recipe.epochs)
    table = np.asarray(jax.vmap(theirs)(jnp.arange(recipe.epochs * per_epoch)))
    for step in range(recipe.epochs * per_epoch):
        expected = recipe.learning_rate(step, per_epoch)
        assert schedule.get_last_lr() == [pytest.approx(expected, rel=1e-15)]
        assert table[step] == pytest.approx(expected, rel=1e-15)
        optimizer.step()
        schedule.step()
