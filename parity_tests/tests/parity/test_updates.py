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
from parity import updates
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
        # Without an epsilon, which optax puts inside the root of the one and can put beside that of the other.
        (lambda p: torch.optim.Adagrad(p, 1e-2, initial_accumulator_value=0.1, eps=0), optax.adagrad(1e-2, 0.1, 0)),
        (lambda p: torch.optim.RMSprop(p, 1e-3), optax.rmsprop(1e-3, decay=0.99, eps_in_sqrt=False)),
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


def _moved(make: Callable[[Any], Any], steps: int) -> updates.Moved:
    """The last of some steps that one of PyTorch's optimizers takes, by gradients without any relation."""
    generator = torch.Generator().manual_seed(3)
    parameter = torch.nn.Parameter(torch.randn(60, generator=generator, dtype=torch.float64))
    optimizer, old = make([parameter]), dict[str, Any]()
    for _ in range(steps):
        before, old = parameter.detach().clone().numpy(), _slots(optimizer.state[parameter])
        gradient = parameter.grad = torch.randn(60, generator=generator, dtype=torch.float64)
        optimizer.step()
    memory = _slots(optimizer.state[parameter])
    return updates.Moved(before, parameter.detach().numpy(), gradient.numpy(), memory, old)


def _slots(state: Any) -> dict[str, Any]:
    names = {"square_avg": "exp_avg_sq", "sum": "exp_avg_sq"}
    return {names.get(slot, slot): t.clone().numpy() for slot, t in state.items() if t is not None and t.ndim}


def _adams(b1: float, b2: float, step: int) -> tuple[float, float]:
    """Of the scale and of the epsilon: arXiv:1412.6980, section 2, its last paragraph."""
    return (1 - b2**step) ** 0.5 / (1 - b1**step), (1 - b2**step) ** 0.5


RULES: dict[str, tuple[Callable[[Any], Any], str, float, float, float]] = {
    "gradient": (lambda p: torch.optim.SGD(p, 0.3), "gradient", 0.3, 0, 0),
    "momentum": (lambda p: torch.optim.SGD(p, 0.3, 0.2), "momentum", 0.3, 0, 0),
    "little Nesterov": (lambda p: torch.optim.SGD(p, 0.3, 0.06, nesterov=True), "nesterov", 0.3, 0, 0),
    "Nesterov": (lambda p: torch.optim.SGD(p, 0.3, 0.9, nesterov=True), "nesterov", 0.3, 0, 0),
    "Adam": (lambda p: torch.optim.Adam(p, 0.3, (0.8, 0.95), 1e-3), "adam", 0.3, 1e-3, 0),
    "AdamW": (lambda p: torch.optim.AdamW(p, 0.3, (0.8, 0.95), 1e-3, 0.02), "adam", 0.3, 1e-3, 0.3 * 0.02),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, 0.3, eps=1e-2), "root", 0.3, 1e-2, 0),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, 0.3, eps=1e-2), "root", 0.3, 1e-2, 0),
}


@pytest.mark.parametrize("name", RULES)
def test_the_rule_of_an_optimizer_is_found_with_its_numbers(name: str) -> None:
    make, form, scale, epsilon, decay = RULES[name]
    by, of = _adams(0.8, 0.95, 3) if form == "adam" else (1.0, 1.0)
    found = updates.rule_of(_moved(make, 3))
    assert found is not None
    assert found.form == form
    assert (found.scale, found.epsilon, found.decay) == pytest.approx((scale * by, epsilon * of, decay), rel=1e-6)


@pytest.mark.parametrize("form", ["adam", "root"])
def test_an_epsilon_inside_the_root_is_found_with_its_numbers(form: str) -> None:
    """c m / sqrt(v + e), m being the gradient where no mean of it is kept."""
    before, mean, square = np.random.default_rng(2).standard_normal((3, 60))
    memory = {"exp_avg": mean, "exp_avg_sq": square**2} if form == "adam" else {"exp_avg_sq": square**2}
    after = before - 0.3 * mean / np.sqrt(square**2 + 1e-3)
    found = updates.rule_of(updates.Moved(before, after, mean, memory, {}))
    assert found is not None
    assert found.form == f"{form}, epsilon inside"
    assert (found.scale, found.epsilon, found.decay) == pytest.approx((0.3, 1e-3, 0), rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_how_memory_is_kept_is_found_with_its_numbers(decay: float) -> None:
    def kept(slot: str, make: Callable[[Any], Any]) -> Any:
        found = updates.kept_of(slot, _moved(make, 3))
        assert found is not None, slot
        return found.old, found.new, found.decay

    momentum = kept("momentum_buffer", lambda p: torch.optim.SGD(p, 0.3, 0.7, 0.25, weight_decay=decay))
    assert momentum == pytest.approx((0.7, 0.75, decay), rel=1e-6)
    for slot, beta in (("exp_avg", 0.8), ("exp_avg_sq", 0.95)):
        moments = kept(slot, lambda p: torch.optim.Adam(p, 0.3, (0.8, 0.95), weight_decay=decay))
        assert moments == pytest.approx((beta, 1 - beta, decay), rel=1e-6)


def test_what_is_no_rule_is_none() -> None:
    """A step with noise in it of a millionth, and a momentum that nobody would give."""
    assert updates.rule_of(_moved(lambda p: torch.optim.SGD(p, 0.3, 0.04, nesterov=True), 3)) is None
    moved = _moved(RULES["momentum"][0], 3)
    noise = 1e-6 * np.random.default_rng(0).choice([-1, 1], 60) * np.abs(moved.update).max()
    assert updates.rule_of(replace(moved, after=moved.after + noise)) is None


def test_a_sample_is_of_the_whole_tensor() -> None:
    values = updates.sampled(np.arange(2.0**17).reshape(256, 512))
    assert 2048 <= len(values) <= 8192
    assert values[0] == 0
    assert values[-1] > 2**17 - 100
    assert len({*np.diff(values)}) == 1
    assert len({*(values % 512)}) == 512, "of every column, for widths are even"


NAMES = ("ours", "theirs")
TOLD: dict[str, tuple[updates.Rule, updates.Rule, dict[str, Any], int, str]] = {
    "no correction": (
        updates.Rule("adam", 0.1),
        updates.Rule("adam", 0.1 * _adams(0.8, 0.95, 3)[0]),
        {"betas": (0.8, 0.95)},
        2,
        "{0}'s Adam has no bias correction, {1}'s has.",
    ),
    "epsilon": (
        updates.Rule("adam", 0.1, 1e-3 * _adams(0.8, 0.95, 3)[1]),
        updates.Rule("adam", 0.1, 2e-6 * _adams(0.8, 0.95, 3)[1]),
        {"betas": (0.8, 0.95)},
        2,
        "The optimizer's epsilon is {0}'s 0.001, {1}'s 2e-06.",
    ),
    "Nesterov's first step": (
        updates.Rule("momentum", 0.1),
        updates.Rule("momentum", 0.17),
        {"momentum": 0.7},
        0,
        "1 + the momentum 0.7, which is Nesterov's step, that {1} takes alone.",
    ),
    "decay": (
        updates.Rule("momentum", 0.1, decay=1e-3),
        updates.Rule("momentum", 0.1),
        {},
        3,
        "Besides the update {0} takes 0.001 times the parameter off, {1} 0: decoupled weight decay",
    ),
}


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("turned", [False, True])
def test_two_rules_are_told_apart_whichever_side_has_which(name: str, turned: bool) -> None:
    one, other, settings, step, words = TOLD[name]
    said = updates.told((other, one) if turned else (one, other), NAMES, settings, step)
    if turned and "{1} 0" in words:  # the left is named first
        words = "Besides the update {1} takes 0 times the parameter off, {0} 0.001: decoupled weight decay"
    if turned and "epsilon is" in words:
        words = "The optimizer's epsilon is {1}'s 2e-06, {0}'s 0.001."
    assert words.format(*(NAMES[::-1] if turned else NAMES)) in said


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("apart", "words"),
    [
        ((False, False), "weight decay that only its optimizer has, or has before the momentum"),
        ((True, False), "L2 decay, where {0}'s is decoupled from the gradient"),
        ((True, True), "weight decay that only its optimizer has, or has before the momentum"),
    ],
)
def test_memory_that_decays_more_is_told_whichever_side_has_it(
    turned: bool, apart: tuple[bool, bool], words: str
) -> None:
    less, more = updates.Kept(0.9, 0.1, 0.002), updates.Kept(0.9, 0.1, 0.05)
    names = NAMES[::-1] if turned else NAMES
    if turned:
        said = updates.memory_told("exp_avg", (more, less), NAMES, apart[::-1])
    else:
        said = updates.memory_told("exp_avg", (less, more), NAMES, apart)
    told = f"{names[1]}'s memory holds 0.05 times the parameter more (the other's 0.002): {words.format(*names)}."
    assert said == told
