"""How optimizers keep their memory and update, told from what was seen; and models that average over devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import torch
from jax import lax

import parity
import parity.linen
import parity.torch
from parity_tests.tests.parity.pairs import MOMENTUM, NET, QUICK, RATE, TAIL, LinenTail, TorchTail, batches, flax_loss

pytestmark = pytest.mark.usefixtures("x64")
DECAY = 1e-2


def _check(optimizer: Callable[[Any], Any], tx: Any, **options: Any) -> parity.Verdict:
    """Attention with these optimizers."""
    torch.manual_seed(0)
    model = TorchTail().double()
    left = parity.torch.Side(model, NET.losses[0], optimizer(model.parameters()))
    variables = jax.eval_shape(LinenTail().init, jax.random.key(0), np.ones((3, 6, 8)))
    right = parity.linen.Side(LinenTail(), variables, flax_loss, tx, compiler_options=QUICK)
    return parity.check(left, right, batches(TAIL.shape, count=3), **{"noise": False, **options})


def _sgd(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, RATE, **{"momentum": MOMENTUM, **options})


def _adam(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2, **options)


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 1e-2, weight_decay=DECAY)


def _plain_adam() -> Any:
    """Without the correction of what begins at zero."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        state = state._replace(
            mu=jax.tree.map(lambda g, m: 0.9 * m + 0.1 * g, updates, state.mu),
            nu=jax.tree.map(lambda g, v: 0.999 * v + 0.001 * g**2, updates, state.nu),
        )
        return jax.tree.map(lambda m, v: -1e-2 * m / (v**0.5 + 1e-8), state.mu, state.nu), state

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


PLANTED: dict[str, tuple[Callable[[Any], Any], Any, str, str]] = {
    "Nesterov": (
        _sgd,
        optax.sgd(RATE, MOMENTUM, nesterov=True),
        "parameter",
        "1.9 times PyTorch's: 1 + the momentum 0.9, which is Nesterov's step, that Flax takes alone.",
    ),
    "Nesterov in PyTorch": (
        lambda parameters: _sgd(parameters, nesterov=True),
        optax.sgd(RATE, MOMENTUM),
        "parameter",
        "1 + the momentum 0.9, which is Nesterov's step, that PyTorch takes alone.",
    ),
    "momentum": (
        _sgd,
        optax.sgd(RATE, 0.8),
        "optimizer",
        "Of the old memory PyTorch keeps 0.9, Flax 0.8: the momentum.",
    ),
    "dampening": (
        lambda parameters: _sgd(parameters, dampening=0.5),
        optax.sgd(RATE, MOMENTUM),
        "optimizer",
        "Of the gradient PyTorch's memory takes 0.5, Flax's 1: dampening.",
    ),
    "no momentum": (
        _sgd,
        optax.sgd(RATE),
        "optimizer",
        "different kinds: PyTorch's keeps momentum_buffer, Flax's nothing.",
    ),
    "decoupled decay": (
        lambda parameters: _adam(parameters, weight_decay=DECAY),
        optax.adamw(1e-2, weight_decay=DECAY),
        "optimizer",
        "PyTorch's memory holds 0.01 times the parameter more: L2 decay, where Flax's is decoupled",
    ),
    "another decoupled decay": (
        _adamw,
        optax.adamw(1e-2, weight_decay=1e-4),
        "parameter",
        "Besides the update PyTorch takes 0.0001 times the parameter off, Flax 1e-06: decoupled weight decay",
    ),
    "epsilon": (
        _adam,
        optax.adam(1e-2, eps=1e-6),
        "parameter",
        "The optimizer's epsilon is PyTorch's 1e-08, Flax's 1e-06.",
    ),
    "epsilon inside the root": (
        _adam,
        optax.adam(1e-2, eps=0.0, eps_root=1e-6),
        "parameter",
        "The update: PyTorch has the epsilon beside the root, Flax has it inside the root.",
    ),
    "epsilon of RMSprop": (
        lambda parameters: torch.optim.RMSprop(parameters, 1e-3, eps=1e-4),
        optax.rmsprop(1e-3, decay=0.99, eps=1e-4),
        "parameter",
        "The update: PyTorch has the epsilon beside the root, Flax has it inside the root.",
    ),
    "bias correction": (_adam, _plain_adam(), "parameter", "Flax's Adam has no bias correction, PyTorch's has."),
    "first beta": (
        _adam,
        optax.adam(1e-2, b1=0.8),
        "optimizer",
        "Of its old mean PyTorch keeps 0.9, Flax 0.8: the first beta.",
    ),
    "second beta": (
        _adam,
        optax.adam(1e-2, b2=0.99),
        "optimizer",
        "Of its old mean square PyTorch keeps 0.999, Flax 0.99: the second beta.",
    ),
    "rate": (_adam, optax.adam(3e-2), "parameter", "Flax's update is 3 times PyTorch's: the learning rate"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_of_optimizers_is_named(name: str) -> None:
    optimizer, tx, phase, cause = PLANTED[name]
    [finding] = _check(optimizer, tx).findings
    assert finding.difference.phase == phase, finding
    assert cause in finding.cause, finding.cause


@pytest.mark.parametrize(
    ("optimizer", "tx"),
    [
        (_sgd, optax.sgd(RATE, MOMENTUM)),
        (lambda p: _sgd(p, nesterov=True), optax.sgd(RATE, MOMENTUM, nesterov=True)),
        (_adam, optax.adam(1e-2)),
        (_adamw, optax.adamw(1e-2, weight_decay=DECAY)),
    ],
)
def test_the_same_optimizers_agree(optimizer: Any, tx: Any) -> None:
    assert (verdict := _check(optimizer, tx)), verdict


def test_of_two_differences_each_is_named_once() -> None:
    """Where the memory differs, so does what is made of it; a bias from zero is a multiple of its memory."""

    def ours(parameters: Any) -> Any:
        named = [*parameters]
        with torch.no_grad():
            for parameter in named:
                parameter.mul_(parameter.ndim > 1)
        return _sgd(named, weight_decay=DECAY)

    verdict = _check(ours, optax.sgd(RATE, MOMENTUM, nesterov=True), go_on=True)
    told = [(finding.difference.step, finding.difference.phase) for finding in verdict.findings]
    assert told == [(0, "optimizer"), (0, "parameter")], verdict
    assert "holds 0.01 times the parameter more: weight decay" in verdict.findings[0].cause
    assert "Nesterov" in verdict.findings[1].cause


class _Averaged(nn.Module):
    """A norm that averages over an axis of devices, as under pmap."""

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.BatchNorm(not train, momentum=0.9, axis_name="batch")(nn.Dense(4)(x))
        return nn.Dense(5)(nn.tanh(lax.pmean(x, "devices") if train and not self.is_initializing() else x))


def _averaged() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.Linear(4, 5))


def test_axes_of_devices_are_bound() -> None:
    verdict = replace(NET, torch=_averaged, linen=_Averaged(), shape=(6, 8)).check(noise=False)
    assert verdict, verdict
    assert {("activation", name) for name in ("0", "1", "3 (input)", "3")} < verdict.report.worst.keys()
    assert "Flax averages over devices (batch, devices): there is one." in verdict.notes
