"""Which parts of a step stay in float32 under bfloat16 and float16, told by the dtype of every single operation.

Their effect is hidden by the noise of 16 bits, so it is not asked for: in Flax every equation of the traced step is
looked at, in PyTorch every operation that the step dispatches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from inspect import unwrap
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flax_impl.evaluate
import flax_impl.feed
import flax_impl.train
import torch_impl.evaluate
import torch_impl.feed
import torch_impl.train
from common.arch.spec import LocalResponseNorm
from common.data.batch import NO_FACTS
from common.recipes.spec import Preprocess, Recipe
from parity_tests.material import smallest
from parity_tests.sides import make_states
from parity_tests.subjects import subjects


def _subject(precision: Any) -> tuple[Recipe, Any]:
    """Batch norm, response norm, dropout, smoothing, clipping, micro-batches."""
    arch = smallest()
    first, second = arch.convs
    fc3, fc4 = arch.dense
    convs = (first, replace(second, after=(*second.after, LocalResponseNorm(5, 2.0, 1e-4, 0.75))))
    arch = replace(arch, convs=convs, dense=(fc3, replace(fc4, dropout=0.5)))
    recipe = subjects()["plain"].recipe
    optimizer = replace(recipe.optimizer, clip_norm=1.0)
    recipe = replace(recipe, precision=precision, preprocess=Preprocess(), optimizer=optimizer, label_smoothing=0.1)
    return recipe, arch


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Of a traced function and of all that it calls; where a CPU computes otherwise, of what the other devices do.

    A CPU's gradients of kernels add up in float32 throughout, which `test_layers.py` shows.
    """
    for equation in jaxpr.eqns:
        by_platform = equation.params.get("branches_platforms")
        called = [equation.params["branches"][by_platform.index(None)]] if by_platform else equation.params.values()
        inner = [leaf for leaf in jax.tree.leaves(list(called)) if hasattr(leaf, "eqns") or hasattr(leaf, "jaxpr")]
        for called in inner:
            yield from _equations(getattr(called, "jaxpr", called))
        if not inner:
            yield equation


def _narrow(values: Any) -> bool:
    return any(
        getattr(v, "aval", v).dtype.name in ("bfloat16", "float16")
        for v in values
        if hasattr(getattr(v, "aval", v), "dtype")
    )


class _Dispatched(TorchDispatchMode):
    """Keeps the name of every operation, and the dtypes of what it takes and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.dtype], list[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        dtypes = [
            [leaf.dtype for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
            for tree in ((args, kwargs), result)
        ]
        self.seen.append((func._schema.name.removeprefix("aten::"), *dtypes))
        return result


# Products, what only moves or compares numbers, and the few sums of two or scalings between layers (a pool's gradient,
# dropout's 1 / (1 - rate)). No exponential, logarithm, power or root, and no sum over rows, pixels or channels.
FLAX_IN_16_BITS = {
    *("conv_general_dilated", "dot_general", "convert_element_type", "select_n", "broadcast_in_dim", "slice", "pad"),
    *("max", "reduce_window_max", "reshape", "transpose", "squeeze", "rev", "add", "add_any", "div"),
    *("gt", "eq", "ne", "lt"),
}
# As above. Batch norm takes and gives 16 bits, but its statistics are looked at below; `sum` is a dense layer's bias
# gradient, which PyTorch adds up in float32 and rounds once.
TORCH_IN_16_BITS = {
    *("convolution", "convolution_backward", "mm", "addmm", "native_batch_norm", "native_batch_norm_backward", "sum"),
    *("max_pool2d_with_indices", "max_pool2d_with_indices_backward", "relu", "threshold_backward", "_to_copy", "t"),
    *("detach", "mul", "view", "scalar_tensor", "where", "clone", "_unsafe_view", "lift_fresh", "reciprocal"),
}
# After the layers: the loss, response norm, clipping and the optimizer, all of which must have been seen.
FLAX_ISLANDS = {"exp", "log", "reduce_sum", "reduce_max", "pow", "reduce_window_sum", "sqrt", "rsqrt"}
TORCH_ISLANDS = {"_log_softmax", "_log_softmax_backward_data", "pow", "avg_pool2d", "_fused_sgd_", "linalg_vector_norm"}


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_flax_computes_products_in_16_bits_and_everything_that_adds_up_in_float32(precision: str) -> None:
    recipe, arch = _subject(precision)
    _, state = make_states(recipe, arch, 4)
    inputs = flax_impl.feed.Inputs(jnp.zeros((8, 16, 16, 1), jnp.uint8), jnp.zeros(8, jnp.int32), {}, NO_FACTS)
    step, after = jax.make_jaxpr(unwrap(flax_impl.train.train_step), return_shape=True)(state, inputs)
    scoring, scores = jax.make_jaxpr(
        lambda variables: unwrap(flax_impl.evaluate.eval_step)(state.model, variables, inputs, recipe),
        return_shape=True,
    )(state.variables)
    # Two layers: forward, to the kernels and to the inputs. That to the images nobody asks for, and XLA leaves it out.
    for traced, convolutions, products in ((step, 6, 6), (scoring, 2, 2)):
        equations = list(_equations(traced.jaxpr))
        found = {e.primitive.name for e in equations if _narrow(e.invars) or _narrow(e.outvars)}
        assert found <= FLAX_IN_16_BITS
        multiplied = [e for e in equations if e.primitive.name in ("conv_general_dilated", "dot_general")]
        assert Counter(e.primitive.name for e in multiplied) == {
            "conv_general_dilated": convolutions,
            "dot_general": products,
        }
        assert {v.aval.dtype.name for e in multiplied for v in (*e.invars, *e.outvars)} == {precision}
    assert {e.primitive.name for e in _equations(step.jaxpr)} >= FLAX_ISLANDS
    for leaf in jax.tree.leaves((after, scores)):
        assert leaf.dtype.name in ("float32", "int32", "uint32")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_pytorch_computes_products_in_16_bits_and_everything_that_adds_up_in_float32(precision: str) -> None:
    recipe, arch = _subject(precision)
    state, _ = make_states(recipe, arch, 4)
    images, labels = torch.zeros(8, 16, 16, 1, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    inputs, narrow = torch_impl.feed.Inputs(images, labels, {}, NO_FACTS), getattr(torch, precision)
    with _Dispatched() as step:
        sums = torch_impl.train.train_step(state, inputs)
    with _Dispatched() as scoring:
        scores = torch_impl.evaluate.eval_step(state.model, inputs, recipe)
    for dispatched in (step.seen, scoring.seen):
        assert {name for name, taken, given in dispatched if narrow in (*taken, *given)} <= TORCH_IN_16_BITS
        for name, taken, given in dispatched:
            if name in ("convolution", "convolution_backward", "mm", "addmm"):
                assert {*taken, *given} == {narrow}, name
            if name == "native_batch_norm":
                assert taken[1:] == [torch.float32] * 4, "scale, shift and running statistics"
                assert given[1:] in ([torch.float32] * 2, []), "the batch's own"
    assert {name for name, _, _ in step.seen} >= TORCH_ISLANDS
    held = [*state.model.state_dict().values(), sums["loss"], scores["loss"], scores["log_probabilities"]]
    held += [value for slots in state.optimizer.state.values() for value in slots.values()]
    assert {tensor.dtype for tensor in held} == {torch.float32, torch.int64}
