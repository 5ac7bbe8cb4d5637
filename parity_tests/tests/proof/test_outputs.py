"""What a compiled step computes on its way is shown as it is, and costs one compilation that is kept."""

from __future__ import annotations

from dataclasses import replace
from inspect import unwrap
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flax_impl.feed
import flax_impl.train
from common.data.pipeline import steps_per_epoch
from common.recipes.spec import LossScale
from parity_tests import sides
from parity_tests.material import first_batches
from parity_tests.outputs import mark, shown
from parity_tests.subjects import Subject, subjects


def test_values_below_a_gradient_and_in_a_loop_are_shown() -> None:
    def loss(x: jax.Array) -> jax.Array:
        def add(total: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
            squares = mark("squares", jnp.where(row > 1, row**2, row))
            return total + squares.sum(), squares

        total, squares = jax.lax.scan(add, jnp.zeros(()), mark("all", x.reshape(2, 2, 1)))
        return total + mark("squares", squares[0]).sum()

    def step(given: dict[str, jax.Array]) -> dict[str, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(given["x"])
        return {"value": value, "gradient": mark("gradient", gradient)}

    given = {"x": jnp.arange(4.0)}
    result, marked = jax.jit(shown(step))(given)
    assert list(marked) == ["all", "squares", "gradient"]
    assert [values.ravel().tolist() for values in marked["squares"]] == [[0, 1, 4, 9], [0, 1]]
    assert marked["gradient"][0].tolist() == result["gradient"].tolist() == [2, 2, 4, 6]
    assert jax.tree.map(float, step(given)["value"]) == float(result["value"]) == 15


def _half(subject: Subject) -> Subject:
    return replace(subject, recipe=replace(subject.recipe, precision="float16", loss_scale=LossScale(2.0**20)))


def _float32(subject: Subject) -> Subject:
    return replace(subject, recipe=replace(subject.recipe, precision="float32", accumulate=3))


CASES = {
    "plain": subjects()["plain"],
    "batch norm": subjects()["batch norm"],
    "micro-batches": subjects()["everything"],
    "micro-batches in float32, and a rest": _float32(subjects()["everything"]),
    "float16": _half(subjects()["everything"]),
}


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_what_is_shown_is_what_a_callback_sees(name: str) -> None:
    """Bit for bit: the outputs change nothing of the step that they are of."""
    subject, recipe = CASES[name], CASES[name].recipe
    seen: dict[str, list[np.ndarray]] = {}

    def show(name: str, value: jax.Array) -> jax.Array:
        jax.debug.callback(lambda array: seen.setdefault(name, []).append(np.array(array)), value, ordered=True)
        return value

    with jax.enable_x64(recipe.precision == "float64"):
        side = sides.make_pair(recipe, subject.arch, steps_per_epoch(subject.data, recipe))[1]
        state, step = side.state, jax.jit(unwrap(flax_impl.train.train_step))
        for batch in first_batches(subject.data, recipe, 4):
            seen.clear()
            inputs: Any = flax_impl.feed.to_device(batch, state.device)
            with mock.patch.object(sides, "mark", show), nn.intercept_methods(sides.Interceptor()):
                state, sums = step(state, inputs)
            jax.effects_barrier()
            with nn.intercept_methods(sides.Interceptor()):
                (side.state, shown_sums), marked = side.compiled(side.state, inputs)
            assert list(marked) == list(seen)
            for name, values in marked.items():
                arrays = seen[name]
                if name != sides.GRADIENTS:  # of each micro-batch
                    values, arrays = [np.concatenate(values)], [np.concatenate(arrays)]
                assert [_bits(value) for value in values] == [_bits(array) for array in arrays], name
            assert jax.tree.map(_bits, (state, sums)) == jax.tree.map(_bits, (side.state, shown_sums))


def _bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    array = np.asarray(array)
    return str(array.dtype), array.shape, array.tobytes()
