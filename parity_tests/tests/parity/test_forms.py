"""The forms that are tried on what was seen, against the functions that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import linen as nn

from parity.causes import Context, likely_cause
from parity.forms import ELEMENTWISE, RESIZES, explain, follows

RNG = np.random.default_rng(4)
MAPS = 4 * RNG.standard_normal((2, 3, 9, 8))
TORCH = torch.from_numpy(MAPS)

FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda x: x,
    "ReLU": F.relu,
    "ReLU6": F.relu6,
    "GELU by the error function": F.gelu,
    "GELU by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "GELU as x sigmoid(1.702 x)": lambda x: x * torch.sigmoid(1.702 * x),
    "SiLU": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky ReLU with slope 0.01": F.leaky_relu,
    "leaky ReLU with slope 0.2": lambda x: F.leaky_relu(x, 0.2),
    "ELU": F.elu,
    "softplus": F.softplus,
    "hard swish": F.hardswish,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_elementwise_function_is_told(name: str) -> None:
    assert ELEMENTWISE.keys() == FUNCTIONS.keys()
    made = FUNCTIONS[name](TORCH).numpy()
    other = np.cos(MAPS)
    assert explain(made, other, {"before": MAPS[:, ::-1], "here": MAPS}) == ("here", name, "")


POOLS: dict[str, Callable[[], Any]] = {
    "max pool 3x3 with stride 2, padded by 1 before and 1 after": lambda: F.max_pool2d(TORCH, 3, 2, 1),
    "max pool 2x2 with stride 2": lambda: F.max_pool2d(TORCH, 2, 2),
    "average pool 3x3 with stride 2, padded by 1 before and 1 after": lambda: F.avg_pool2d(TORCH, 3, 2, 1),
    "average pool 3x3 with stride 2, padded by 1 before and 1 after that leaves padding out": lambda: F.avg_pool2d(
        TORCH, 3, 2, 1, count_include_pad=False
    ),
    "the mean over each map": lambda: TORCH.mean((2, 3)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("flat", [False, True])
def test_a_pool_is_told_flattened_or_not(name: str, flat: bool) -> None:
    made = POOLS[name]().numpy()
    made = made.reshape(2, -1) if flat else made
    assert explain(made, made * 0 + 7, {"here": MAPS})[1] == name


def _torch_resize(**options: Any) -> Any:
    return F.interpolate(TORCH, size=(5, 6), **options).numpy()


def _jax_resize(method: str, antialias: bool) -> Any:
    with jax.enable_x64(True):
        return np.asarray(jax.image.resize(jnp.asarray(MAPS), (2, 3, 5, 6), method, antialias=antialias))


SIZED: dict[str, Callable[[], Any]] = {
    "nearest resize": lambda: _torch_resize(mode="nearest"),
    "nearest resize by centres": lambda: _jax_resize("nearest", False),
    "bilinear resize": lambda: _torch_resize(mode="bilinear"),
    "bilinear resize that aligns corners": lambda: _torch_resize(mode="bilinear", align_corners=True),
    "bilinear resize with antialias": lambda: _jax_resize("bilinear", True),
    "bicubic resize (a = -0.75)": lambda: _torch_resize(mode="bicubic"),
    "bicubic resize (a = -0.5)": lambda: _jax_resize("bicubic", False),
    "bicubic resize with antialias": lambda: _torch_resize(mode="bicubic", antialias=True),
}


@pytest.mark.parametrize("name", SIZED)
def test_a_resize_is_told(name: str) -> None:
    assert RESIZES.keys() == SIZED.keys()
    made = SIZED[name]()
    assert explain(made, made * 0 + 7, {"here": MAPS})[1] == name


@pytest.mark.parametrize(
    ("causal", "scale", "told"),
    [(False, None, "1 / sqrt(head size)"), (True, 1.0, "1, causal"), (False, 12**-0.5, "1 / sqrt(width)")],
)
def test_attention_is_told(causal: bool, scale: float | None, told: str) -> None:
    q, k, v = RNG.standard_normal((3, 2, 5, 12))
    one, two, three = (torch.from_numpy(a).view(2, 5, 3, 4).transpose(1, 2) for a in (q, k, v))
    mixed = F.scaled_dot_product_attention(one, two, three, is_causal=causal, scale=scale)
    made = mixed.transpose(1, 2).reshape(2, 5, 12)
    found = explain(made.numpy(), made.numpy() + 1, {"v": v, "k": k, "q": q})
    assert found[1] == f"attention in 3 heads, its products scaled by {told}"


VECTORS: dict[str, Callable[[Any], Any]] = {
    "the mean over positions": lambda x: x.mean(1),
    "the first position": lambda x: x[:, 0],
    "the last position": lambda x: x[:, 4],
    "the largest over positions": lambda x: x.max(1),
    "the mean over the first 3 of 5 positions": lambda x: x[:, :3].sum(1) / 3,
    "the position 4 of 5": lambda x: x[:, 3],
}


@pytest.mark.parametrize("name", VECTORS)
def test_what_is_made_of_a_sequence_is_told(name: str) -> None:
    sequence = RNG.standard_normal((2, 5, 12))
    made = VECTORS[name](sequence)
    assert explain(made, made * 0 + 7, {"here": sequence}) == ("here", name, "")


def test_what_differs_in_one_example_alone_is_told() -> None:
    """Where nothing is negative, a leaky ReLU is a plain one."""
    values = np.abs(MAPS)
    values[1] *= -1
    made, other = F.relu(torch.from_numpy(values)).numpy(), F.leaky_relu(torch.from_numpy(values)).numpy()
    assert explain(made, other, {"here": values}) == ("here", "ReLU", "leaky ReLU with slope 0.01")


def test_a_sum_of_two_is_told_and_what_follows_from_another_difference() -> None:
    """A shortcut carries a difference past the layer that was put right."""
    block, shortcut = RNG.standard_normal((2, 2, 3, 4, 4))
    made = np.maximum(block + shortcut, 0)
    assert explain(made, made + 1, {"shortcut": shortcut, "block": block})[:2] == ("block + shortcut", "ReLU")
    other = np.maximum(block + shortcut * 2, 0)
    ours, theirs = ({"shortcut": shortcut * factor, "block": block} for factor in (1, 2))
    assert follows(made, other, ours, theirs)
    assert not follows(made, other, ours, ours)
    assert not follows(made, np.tanh(block + shortcut * 2), ours, theirs)


def test_decay_in_a_gradient_is_taken_from_the_parameters_before_the_step() -> None:
    before, after, gradient = RNG.standard_normal((3, 20))
    held = {"parameter": {"w": before}}
    left, right = (
        {"gradient": {"w": gradient}, "parameter": {"w": after}},
        {"gradient": {"w": gradient + 1e-4 * before}},
    )
    said = likely_cause("gradient", "w", left, right, ("ours", "theirs"), Context((held, held)))
    assert said == "theirs's gradient holds 0.0001 times the parameter: weight decay inside its loss."
    scale = {"parameter": {"w": np.ones(20)}}
    right = {"optimizer": {"momentum_buffer/w": gradient + 1e-4}}
    left = {"optimizer": {"momentum_buffer/w": gradient}}
    said = likely_cause("optimizer", "momentum_buffer/w", left, right, ("ours", "theirs"), Context((scale, scale)))
    assert "weight decay" in said, "of a norm's scale, no matter of a bias"


def test_linens_own_functions_are_told() -> None:
    """They are what most models call."""
    values = jnp.asarray(MAPS, jnp.float32)
    found = explain(np.asarray(nn.gelu(values)), np.asarray(nn.silu(values)), {"here": np.asarray(values)})
    assert found == ("here", "GELU by tanh", "SiLU")
