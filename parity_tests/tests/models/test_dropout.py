"""PyTorch's copy of Flax's dropout masks, bit for bit, against the unmodified linen layer and `jax.random`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from parity_tests.material import smallest
from parity_tests.sides import make_states
from parity_tests.subjects import subjects
from torch_impl.dropout import SharedDropout, StepKey, bernoulli, fold_in, module_key, seed_key, share_dropout

WORDS = st.integers(0, 2**32 - 1)


def _x64(wide: bool) -> AbstractContextManager[None]:
    return jax.enable_x64(wide)


@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS)
def test_keys(seed: int, data: int) -> None:
    key = jax.random.fold_in(jax.random.key(seed), data)
    assert fold_in(seed_key(seed), data) == tuple(jax.random.key_data(key).tolist())


@settings(max_examples=40, deadline=None)
@given(
    WORDS,
    st.integers(1, 40_000),
    st.one_of(st.floats(0.01, 0.99), st.sampled_from([0.5, 0.1, 0.3, 0.75])),
    st.booleans(),
)
def test_bernoulli(seed: int, count: int, keep: float, wide: bool) -> None:
    with _x64(wide):
        theirs = np.asarray(jax.random.bernoulli(jax.random.key(seed), keep, (count,)))
    ours = bernoulli(seed_key(seed), keep, count, wide=wide).numpy()
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("wide", [False, True])
def test_across_chunks(wide: bool) -> None:
    """A mask of 128 x 9216, as the first dropout of `alexnet` draws it."""
    with _x64(wide):
        theirs = np.asarray(jax.random.bernoulli(jax.random.key(3), 0.5, (128, 9216))).ravel()
    np.testing.assert_array_equal(bernoulli(seed_key(3), 0.5, theirs.size, wide=wide).numpy(), theirs)


@pytest.mark.parametrize("first", [2**32 - 2, 2**32 + 5, 3 * 2**33 + 1])
def test_elements_beyond_four_billion_have_words_of_their_own(first: int) -> None:
    """JAX's cipher of their 64-bit numbers: of a large batch on several processes a later one begins there."""
    index = np.arange(first, first + 4, dtype=np.uint64)
    words = np.concatenate([index >> np.uint64(32), index & np.uint64(2**32 - 1)]).astype(np.uint32)
    high, low = np.asarray(threefry_2x32(jax.random.key_data(jax.random.key(9)), jnp.asarray(words))).reshape(2, 4)
    for keep in (0.1, 0.3, 0.5, 0.7, 0.9):
        ours = bernoulli(seed_key(9), keep, 4, wide=False, first=first).numpy()
        np.testing.assert_array_equal(ours, (high ^ low) / 2**32 < keep)


class _Nested(nn.Module):
    """A dropout two modules deep, called twice, as in a model of somebody else."""

    rate: float

    def setup(self) -> None:
        self.head = _Head(self.rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.head(x))


class _Head(nn.Module):
    rate: float

    def setup(self) -> None:
        self.drop6 = nn.Dropout(self.rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.drop6(x, deterministic=False)


@pytest.mark.parametrize("rate", [0.5, 0.3, 0.9])
@pytest.mark.parametrize("wide", [False, True])
def test_layer(rate: float, wide: bool) -> None:
    """Values too, in float32 and float64."""
    x = np.random.default_rng(0).standard_normal((6, 35)).astype(np.float64 if wide else np.float32)
    layer = SharedDropout(rate, ("drop6",))
    StepKey(11, [layer]).at(5)
    with _x64(wide):
        key = jax.random.fold_in(jax.random.key(11), 5)
        theirs = np.asarray(jax.jit(lambda x: _Head(rate).apply({}, x, rngs={"dropout": key}))(jnp.asarray(x)))
    np.testing.assert_array_equal(layer(torch.from_numpy(x)).numpy(), theirs)
    layer.eval()
    np.testing.assert_array_equal(layer(torch.from_numpy(x)).numpy(), x)


def test_nested_path_and_second_call() -> None:
    x = np.ones((4, 50), np.float32)
    theirs = np.asarray(_Nested(0.5).apply({}, jnp.asarray(x), rngs={"dropout": jax.random.key(2)})) / 4
    first, second = (
        bernoulli(module_key(seed_key(2), ("head", "drop6"), count), 0.5, x.size, wide=False) for count in (1, 2)
    )
    np.testing.assert_array_equal((first & second).numpy().reshape(x.shape), theirs == 1)


def test_feature_map_is_permuted() -> None:
    """The first dropout sees C, H, W in PyTorch and H, W, C in Flax."""
    height, width, channels = 2, 3, 4
    model = torch.nn.Module()
    model.drop6 = torch.nn.Dropout(0.5)
    model.drop7 = torch.nn.Dropout(0.5)
    step_key = share_dropout(model, (height, width, channels), seed=1)
    step_key.at(0)
    assert isinstance(model.drop6, SharedDropout)
    ours = model.drop6(torch.ones(5, height * width * channels)).reshape(5, channels, height, width)
    theirs = _Head(0.5).apply({}, jnp.ones((5, height * width * channels)), rngs={"dropout": _key(1, 0)})
    theirs = np.asarray(theirs).reshape(5, height, width, channels).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(ours.numpy(), theirs)
    assert isinstance(model.drop7, SharedDropout)
    assert model.drop7.size is None


def test_masks_are_dropout() -> None:
    """The right share, different at every step and in every layer."""
    step_key = StepKey(0, [])
    masks = []
    for step in range(2):
        step_key.at(step)
        masks += [bernoulli(module_key(step_key.key, (name,)), 0.5, 100_000, wide=False) for name in ("a", "b")]
    for place, mask in enumerate(masks):
        assert abs(mask.float().mean().item() - 0.5) < 0.01
        for other in masks[:place]:
            assert abs((mask == other).float().mean().item() - 0.5) < 0.01


def _key(seed: int, step: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), step)


def test_a_runs_masks_are_of_its_seed_and_step() -> None:
    """As `jax.random` folds the step into the seed's key, on both sides: other seeds train with other masks."""
    recipe = replace(subjects()["plain"].recipe, seed=5)
    ours, theirs = make_states(recipe, smallest(), 4)
    for step in (0, 3):
        expected = jax.random.key_data(jax.random.fold_in(jax.random.key(5), step)).tolist()
        ours.dropout.at(step)
        assert list(ours.dropout.key) == expected
        assert jax.random.key_data(theirs.replace(step=step).dropout_key).tolist() == expected
