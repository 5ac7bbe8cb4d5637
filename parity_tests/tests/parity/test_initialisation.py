"""How two models begin: their initial weights as distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

import parity
import parity.linen
import parity.torch
from parity import initialisation
from parity.initialisation import _described, _detectable, _differ, _sampled, _spread
from parity_tests.tests.parity.pairs import NET, LinenNet, TorchNet, batches

pytestmark = pytest.mark.usefixtures("x64")
INIT = nn.initializers
WEIGHT = (40, 6, 5, 5)


def _drawn(fill: Callable[[torch.Tensor], Any]) -> Any:
    torch.manual_seed(1)
    values = torch.empty(WEIGHT, dtype=torch.float64)
    fill(values)
    return values.numpy()


def _flax(make: Any) -> Any:
    values = make(jax.random.key(1), (5, 5, 6, 40), np.float64)
    return np.moveaxis(np.asarray(values), (-1, -2), (0, 1))


NAMED: dict[str, Callable[[], Any]] = {
    "uniform within ±0.0816 (PyTorch's default)": lambda: _drawn(lambda w: torch.nn.init.kaiming_uniform_(w, a=5**0.5)),
    "normal with standard deviation 0.0452 (kaiming_normal_, fan_out)": lambda: _drawn(
        lambda w: torch.nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu")
    ),
    "uniform within ±0.0722 (xavier_uniform_)": lambda: _drawn(torch.nn.init.xavier_uniform_),
    "normal with standard deviation 0.0196": lambda: _drawn(lambda w: torch.nn.init.normal_(w, std=0.02)),
    "truncated normal with standard deviation 0.0812 (lecun_normal)": lambda: _flax(INIT.lecun_normal()),
    "truncated normal with standard deviation 0.115 (he_normal)": lambda: _flax(INIT.he_normal()),
    "uniform within ±0.141 (lecun_uniform)": lambda: _flax(INIT.lecun_uniform()),
    "uniform within ±0.2 (kaiming_uniform_)": lambda: _drawn(
        lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu")
    ),
    "normal with standard deviation 0.115 (kaiming_normal_, fan_in)": lambda: _drawn(
        lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="relu")
    ),
    "truncated normal with standard deviation 0.0417 (glorot_normal)": lambda: _flax(INIT.glorot_normal()),
    "normal with standard deviation 0.0417 (xavier_normal_)": lambda: _drawn(torch.nn.init.xavier_normal_),
    "zeros": lambda: _flax(INIT.zeros),
    "ones": lambda: _flax(INIT.ones),
    "all 0.25": lambda: _flax(INIT.constant(0.25)),
}


@pytest.mark.parametrize("said", NAMED)
def test_how_a_tensor_was_drawn_is_told(said: str) -> None:
    form, _, rest = _described(NAMED[said]().reshape(-1), WEIGHT)[1].partition(" with")
    wanted, _, more = said.partition(" with")
    assert form == wanted
    assert rest.partition(" (")[2] == more.partition(" (")[2]


def test_how_an_embedding_was_drawn_is_told() -> None:
    """By each framework's own layer."""
    torch.manual_seed(1)
    ours = torch.nn.Embedding(500, 16).weight.detach().double().numpy()
    theirs = nn.Embed(500, 16).init(jax.random.key(1), np.zeros(1, np.int32))["params"]["embedding"]
    for values, name in ((ours, "PyTorch"), (np.asarray(theirs, np.float64), "Flax")):
        assert _described(values.reshape(-1), values.shape)[0] == f"normal an embedding's in {name}"


def test_equal_distributions_are_not_told_apart() -> None:
    """A thousand pairs of draws of any size, at the level of one in a hundred: ten are expected."""
    rng = np.random.default_rng(5)
    draws: tuple[Callable[[int], Any], ...] = (rng.standard_normal, lambda n: rng.uniform(-1, 1, n))
    for draw in draws:
        for size in (8, 40, 400):
            wrong = sum(_differ(draw(size), draw(size), 0.01) for _ in range(500))
            assert wrong <= 25, (size, wrong)


@pytest.mark.parametrize(
    ("draw", "size", "least"),
    [
        ("standard_normal", 40_000, 2.0),  # the fourth moment over the squared variance, less 1: 3 - 1, and 9 / 5 - 1
        ("uniform", 40_000, 0.8),
        ("uniform", 50, 2.0),  # few numbers hold no tail by which to tell: they count as normal at least
    ],
)
def test_the_error_of_a_spread_is_the_delta_methods(draw: str, size: int, least: float) -> None:
    values = getattr(np.random.default_rng(3), draw)(size=size)
    assert _spread(3 * values + 1) == pytest.approx((least / size) ** 0.5, rel=0.03)
    # A deviation that differs by this share is one in which the logarithms of two variances are so many errors apart.
    seen = _detectable(values, values, 0.0456) + 1
    assert 2 * np.log(seen) == pytest.approx(2 * 2**0.5 * _spread(values), rel=1e-2)


def test_a_sample_of_a_tensor_is_of_all_of_it() -> None:
    values = _sampled(np.arange(2.0**18).reshape(512, 512))
    assert 25_000 <= len(values) <= 100_000
    assert (values[0], values[-1] > 2**18 - 20) == (0, True)
    assert len({*np.diff(values)}) == 1


def test_other_spread_and_other_shape_are_told_apart() -> None:
    rng = np.random.default_rng(6)
    assert _differ(rng.standard_normal(3000), 1.2 * rng.standard_normal(3000), 1e-7)
    assert _differ(rng.standard_normal(5000), rng.uniform(-(3**0.5), 3**0.5, 5000), 1e-7)
    assert _differ(np.zeros(4), np.ones(4), 1e-7)
    assert not _differ(np.zeros(4), np.zeros(4), 1e-7)


def _sides(seed: int, linen: nn.Module | None = None) -> tuple[parity.torch.Side, parity.linen.Side]:
    torch.manual_seed(seed)
    net = linen or LinenNet()
    variables = net.init(jax.random.key(seed), np.ones((1, 16, 16, 3)), train=False)
    return parity.torch.Side(TorchNet().double()), parity.linen.Side(net, variables)


def test_the_first_that_begins_otherwise_is_named() -> None:
    left, right = _sides(0)
    kept = {name: values.copy() for name, values in right.names(right.params, False).items()}
    found = parity.initial(left, right, batches(NET.shape)[0], more=[_sides(seed) for seed in range(1, 30)])
    assert not found
    assert found.sentence == (
        "PyTorch and Flax begin otherwise, first in stem.weight: PyTorch's uniform within ±0.192 (PyTorch's default), "
        "Flax's truncated normal with standard deviation 0.193 (lecun_normal)."
    ), found
    told = {name: begun for begun in found.differences for name in begun.tensors}
    assert told["wide.bias"].right == "zeros"
    assert not {"norm.weight", "norm.running_var", "layer_norm.bias"} & told.keys()
    now = right.names(right.params, False)
    assert all(np.array_equal(values, kept[name]) for name, values in now.items())


class _Same(nn.Module):
    """What PyTorch's layers begin with."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        uniform = INIT.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Dense(60, kernel_init=uniform, bias_init=lambda *a: INIT.uniform(0.5)(*a) - 0.25)(x)


def test_what_begins_alike_is_said_to_with_its_error() -> None:
    torch.manual_seed(0)
    left = parity.torch.Side(torch.nn.Linear(16, 60).double())
    right = parity.linen.Side(_Same(), _Same().init(jax.random.key(0), np.ones((1, 16))))
    with mock.patch.object(initialisation, "_differ", wraps=_differ) as tried:
        found = parity.initial(left, right, np.ones((2, 16)))
    assert found, found
    # Two tests of each tensor, of shape and of spread, have the error among them.
    assert sum(2 * level for (_, _, level), _ in tried.call_args_list) == pytest.approx(1e-6)
    assert found.sentence == (
        "PyTorch and Flax begin alike: 2 tensors, 2 of them random, none told apart with an error probability of "
        "1e-06 in all."
    )
    assert "Of too few numbers to tell by one draw: bias (60)." in str(found)


def test_shapes_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="Flax holds nothing but zeros: make its side of what `init` returned"):
        parity.initial(*NET.sides(), batches(NET.shape)[0])


def test_a_check_that_goes_on_tells_of_them() -> None:
    left, _ = NET.sides()
    net = LinenNet()
    variables = net.init(jax.random.key(0), np.ones((1, 16, 16, 3)), train=False)
    right = parity.linen.Side(net, variables)
    verdict = parity.check(left, right, batches(NET.shape), mode="forward", go_on=True, noise=False)
    assert any(note.startswith("Before weights were carried over wide.weight") for note in verdict.notes), verdict
    again = parity.check(left, right, batches(NET.shape), mode="forward", go_on=True, noise=False)
    assert not any("Before weights" in note for note in again.notes)
