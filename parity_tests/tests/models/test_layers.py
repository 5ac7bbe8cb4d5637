"""Layers that the frameworks define differently, one by one, against PyTorch's own and against plain numpy."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.arch.spec import LocalResponseNorm, MaxPool
from flax_impl import kernels, layers
from flax_impl import model as flax_model
from torch_impl import model as torch_model

RNG = np.random.default_rng(0)


def _compare(torch_layer: Any, flax_layer: Any, x: np.ndarray, bound: float = 1e-13) -> None:
    """Outputs and input gradients of an NCHW and an NHWC function on the same NHWC input."""
    ours = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    output = torch_layer(ours)
    weights = np.random.default_rng(1).standard_normal(tuple(output.shape))
    output.backward(torch.tensor(weights))
    theirs, pull = jax.vjp(flax_layer, jnp.asarray(x))
    (gradient,) = pull(jnp.asarray(weights.transpose(0, 2, 3, 1)))
    assert ours.grad is not None
    np.testing.assert_allclose(
        np.asarray(theirs).transpose(0, 3, 1, 2), output.detach().numpy(), rtol=bound, atol=bound
    )
    np.testing.assert_allclose(np.asarray(gradient).transpose(0, 3, 1, 2), ours.grad.numpy(), rtol=bound, atol=bound)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 12, 13])
@pytest.mark.parametrize("width", [6, 9])
def test_adaptive_average_pool(size: int, width: int) -> None:
    x = RNG.standard_normal((2, size, width, 3))
    _compare(torch.nn.AdaptiveAvgPool2d(6), lambda x: layers.adaptive_avg_pool(x, 6), x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("k", [1.0, 2.0])
def test_local_response_norm(size: int, k: float) -> None:
    """Also against the paper's formula, summed by hand."""
    spec = LocalResponseNorm(size=size, k=k, alpha=0.3, beta=0.75)
    x = RNG.standard_normal((2, 3, 4, 7))
    _compare(torch_model._after(spec), lambda x: layers.local_response_norm(x, spec), x)
    expected = np.empty_like(x)
    for channel in range(7):
        window = x[..., max(channel - size // 2, 0) : channel + (size - 1) // 2 + 1]
        expected[..., channel] = x[..., channel] / (k + 0.3 * (window**2).sum(-1)) ** 0.75
    np.testing.assert_allclose(np.asarray(layers.local_response_norm(jnp.asarray(x), spec)), expected, rtol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pool", [MaxPool(3, 2), MaxPool(2, 2), MaxPool(3, 2, 1), MaxPool(3, 1, 1)])
@pytest.mark.parametrize("values", ["distinct", "tied", "negative"])
def test_max_pool(pool: MaxPool, values: str) -> None:
    """Ties go to the same winner in the backward pass, and padding never wins over negative values."""
    x = RNG.standard_normal((2, 9, 8, 3))
    x = {"distinct": x, "tied": np.rint(x), "negative": -np.abs(x) - 1}[values]
    _compare(torch_model._after(pool), lambda x: flax_model._after(pool, x), x)


@pytest.mark.parametrize(
    "pool", [MaxPool(3, 2), MaxPool(2, 2), MaxPool(3, 2, 1), MaxPool(3, 1, 1), MaxPool(2, 3), MaxPool(1, 2)]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("values", ["distinct", "tied"])
def test_max_pool_goes_back_as_if_by_comparing_rows_and_columns(pool: MaxPool, dtype: str, values: str) -> None:
    """Bit for bit: JAX's own gradient of comparisons within rows, then within columns, adds up in the same order."""

    def compared(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), *[(pool.padding,) * 2] * 2, (0, 0)], constant_values=-jnp.inf)
        for axis in (2, 1):
            last = (x.shape[axis] - pool.size) // pool.stride * pool.stride
            places = [jax.lax.slice_in_dim(x, i, i + last + 1, pool.stride, axis) for i in range(pool.size)]
            x = reduce(lambda first, later: jnp.where(later > first, later, first), places)
        return x

    images = RNG.standard_normal((2, 9, 8, 3))
    x = jnp.asarray(np.rint(images) if values == "tied" else images, dtype)
    gradient = jnp.asarray(RNG.standard_normal(jax.eval_shape(compared, x).shape), dtype)

    @partial(jax.jit, static_argnums=0)
    def there_and_back(function: Any, x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, back = jax.vjp(function, x)
        return y, *back(gradient)

    expected = there_and_back(compared, x, gradient)
    found = there_and_back(lambda x: layers.max_pool(x, pool), x, gradient)
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("pool", [MaxPool(3, 2), MaxPool(2, 2, 1)])
def test_max_pool_hands_nan_on_as_pytorch_does(pool: MaxPool) -> None:
    """A window with NaN gives NaN, wherever in it, and its gradient goes to the last one: a diverged run is seen."""
    x = RNG.standard_normal((9, 9, 8, 2)).astype(np.float32)
    for image in range(9):  # one at each place of a window of three, and in one channel a second one
        x[image, 2 + image // 3, 2 + image % 3, :] = np.nan
        x[image, 4, 3, 1] = np.nan
    ours = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    expected = torch_model._after(pool)(ours)
    weights = RNG.standard_normal(expected.shape).astype(np.float32)
    expected.backward(torch.from_numpy(weights))
    cotangent = jnp.asarray(weights.transpose(0, 2, 3, 1))

    @jax.jit
    def there_and_back(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, back = jax.vjp(lambda x: flax_model._after(pool, x), x)
        return y, *back(cotangent)

    found, gradient = there_and_back(jnp.asarray(x))
    assert np.isnan(found).any(axis=(1, 2)).all(), "in every image and channel"
    assert ours.grad is not None
    for y in (found, flax_model._after(pool, jnp.asarray(x))):  # of training, and of evaluation
        np.testing.assert_array_equal(np.asarray(y).transpose(0, 3, 1, 2), expected.detach().numpy())
    theirs = np.asarray(gradient).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(theirs, ours.grad.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_bias_gradient_of_many_pixels_is_added_up_in_float32(kind: str, dtype: str) -> None:
    """Exact numbers whose sum 16 bits cannot reach one by one: there it would stand still at 256 or 2,048."""
    rows = 4100
    layer: Any = (
        layers.Conv(1, (1, 1), dtype=dtype, param_dtype=jnp.float32) if kind == "conv" else layers.Dense(1, dtype=dtype)
    )
    shape = (2, rows // 50, 25, 1) if kind == "conv" else (rows, 1)
    kernel = jnp.ones((1,) * (4 if kind == "conv" else 2))
    params = {"kernel": kernel, "bias": jnp.ones(1)}

    @jax.jit
    def gradient(params: Any) -> Any:
        y, back = jax.vjp(lambda params: layer.apply({"params": params}, jnp.ones(shape, dtype)), params)
        assert y.dtype == dtype
        return back(jnp.ones_like(y))[0]["bias"]

    found = gradient(params)
    assert (found.dtype, float(found[0])) == (jnp.float32, rows)
    model = torch.nn.Conv2d(1, 1, 1) if kind == "conv" else torch.nn.Linear(1, 1)
    with torch.autocast("cpu", getattr(torch, dtype)):
        output = model(torch.ones((2, 1, rows // 50, 25) if kind == "conv" else shape))
    output.sum().backward()
    assert model.bias is not None
    assert model.bias.grad is not None
    assert model.bias.grad.item() == float(jnp.asarray(rows, dtype)), "PyTorch's, rounded once"


CONVOLUTIONS = (  # images, features, and what linen is told of the kernel's size, strides, padding and groups
    ((4, 9, 8, 6), 4, (3, 3), 1, 1, 2),
    ((5, 17, 15, 3), 7, (5, 3), 2, 2, 1),
    ((2, 45, 42, 3), 4, (11, 11), 4, 2, 1),  # whose last rows and columns no window reaches
    ((3, 26, 19, 4), 8, (3, 2), (3, 2), ((0, 1), (2, 0)), 4),
    ((6, 47, 40, 2), 3, (2, 2), 1, 0, 1),  # more pixels than are taken at a time: an image after the other
    ((3, 7, 9, 5), 3, (3, 3), 1, 1, 1),  # too small a result, which is left to lax
    ((2, 17, 16, 3), 4, (4, 3), 2, "SAME", 1),
)
Case = tuple[tuple[int, ...], int, tuple[int, int], Any, Any, int]


def _pair(case: Case, param_dtype: Any = jnp.float64, **more: Any) -> tuple[nn.Conv, nn.Conv, Any, jax.Array]:
    """linen's own layer and ours, parameters for both, and images."""
    shape, features, size, strides, padding, groups = case
    told = {"padding": padding, "feature_group_count": groups, "param_dtype": param_dtype, **more}
    own, ours = (kind(features, size, strides, **told) for kind in (nn.Conv, layers.Conv))
    x = jnp.asarray(np.random.default_rng(2).standard_normal(shape), param_dtype)
    return own, ours, own.init(jax.random.key(0), x), x


def _agree(found: Any, expected: Any, bound: float) -> None:
    """Trees of arrays, to this part of the largest value of each."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * float(jnp.abs(theirs).max()))


def _apply(layer: nn.Conv, variables: Any, x: jax.Array) -> Any:
    return layer.apply(variables, x)


def _slopes(layer: nn.Conv, variables: Any, x: jax.Array) -> Any:
    """Of a loss that bends, to parameters and input."""
    result: Any = jax.eval_shape(layer.apply, variables, x)
    weights = jnp.asarray(np.random.default_rng(3).standard_normal(result.shape))
    return jax.grad(lambda variables, x: (_apply(layer, variables, x) ** 3 * weights).sum(), (0, 1))(variables, x)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_a_convolution_has_linens_values_and_gradients(case: Case) -> None:
    own, ours, variables, x = _pair(case)
    found, expected = (jax.jit(partial(_slopes, layer))(variables, x) for layer in (ours, own))
    _agree(found, expected, 1e-13)
    np.testing.assert_array_equal(ours.apply(variables, x), own.apply(variables, x))


@pytest.mark.usefixtures("x64")
def test_a_convolutions_gradients_are_mapped_and_derived_as_linens() -> None:
    """One for each image, and gradients of gradients."""
    own, ours, variables, x = _pair(CONVOLUTIONS[0])

    def bend(layer: nn.Conv, variables: Any, x: jax.Array) -> Any:
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(_slopes(layer, variables, x)))

    def both(layer: nn.Conv) -> Any:
        each = jax.vmap(lambda x: _slopes(layer, variables, x[None]))
        return jax.jit(lambda x: (each(x), jax.grad(partial(bend, layer), (0, 1))(variables, x)))(x)

    _agree(both(ours), both(own), 1e-13)


def _gradient_for(platform: str, layer: nn.Conv, variables: Any, x: jax.Array) -> Counter[str]:
    """How often each operation stands in what XLA is given for a device of this kind, which need not be here."""
    slope = jax.jit(jax.grad(lambda variables, x: (_apply(layer, variables, x) ** 2).sum(), (0, 1)))
    return Counter(
        re.findall(r"stablehlo\.(\w+)", slope.trace(variables, x).lower(lowering_platforms=(platform,)).as_text())
    )


@pytest.mark.parametrize("case", CONVOLUTIONS[:3], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_a_cpu_takes_the_kernels_gradient_as_products(case: Case, dtype: str) -> None:
    """A GPU is given linen's own operations, no more and no fewer, in a choice of one that XLA takes away."""
    _, ours, variables, x = _pair(case, jnp.float32, dtype=dtype)
    own = ours.clone(conv_general_dilated=None)
    choice = ("case", "return", "constant")
    for platform in ("cuda", "cpu"):
        told = [_gradient_for(platform, layer, variables, x) for layer in (ours, own)]
        found, expected = ({name: n for name, n in each.items() if name not in choice} for each in told)
        if platform == "cuda":
            assert found["convolution"] == 3
            assert found == expected
        else:
            assert found["convolution"] == 2
            assert found["while"] == case[-1]
            assert found["dot_general"] == case[-1] * case[2][0]


def test_a_small_kernels_gradient_is_products_in_a_loop_alone() -> None:
    """There XLA's own takes many times as long."""
    small = next(case for case in CONVOLUTIONS if case[0] == (3, 7, 9, 5))
    _, ours, variables, x = _pair(small, jnp.float32)
    assert _gradient_for("cpu", ours, variables, x)["dot_general"] == 0
    with kernels.in_a_loop():
        assert _gradient_for("cpu", ours, variables, x)["dot_general"] == small[2][0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_kernel_gradient_of_many_pixels_is_added_up_in_float32(dtype: str) -> None:
    """Over a hundred images, of which a few are taken at a time: 16 bits would stand still at 256 or 2,048."""
    _, ours, variables, x = _pair(((100, 12, 12, 1), 1, (1, 1), 1, 0, 1), jnp.float32, dtype=dtype)
    slope = jax.grad(lambda variables: ours.apply(variables, jnp.ones_like(x)).astype(jnp.float32).sum())  # type: ignore[union-attr]
    assert float(slope(variables)["params"]["kernel"][0, 0, 0, 0]) == float(jnp.asarray(x.size, dtype))


def test_the_forward_mode_of_a_convolution_is_refused() -> None:
    _, ours, variables, x = _pair(CONVOLUTIONS[0], jnp.float32)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda variables: ours.apply(variables, x), (variables,), (variables,))


class _Norm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return layers.BatchNorm(momentum=0.9, epsilon=1e-5, param_dtype=jnp.float64)(x, use_running_average=not train)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (2, 1, 1, 6)])
def test_batch_norm(shape: tuple[int, ...]) -> None:
    """Three batches of training, far from zero mean, then evaluation; outputs and running statistics."""
    ours = torch.nn.BatchNorm2d(6, eps=1e-5, momentum=0.1).double()
    variables: Any = _Norm().init(jax.random.key(0), jnp.zeros(shape), train=False)
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
    for _ in range(3):
        x = RNG.standard_normal(shape) * 3 + 100
        output = ours(torch.tensor(x).permute(0, 3, 1, 2)).detach().numpy()
        theirs, updates = _Norm().apply(variables, jnp.asarray(x), train=True, mutable=["batch_stats"])
        variables = {**variables, **updates}
        np.testing.assert_allclose(np.asarray(theirs).transpose(0, 3, 1, 2), output, rtol=1e-10, atol=1e-10)
    stats = variables["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], ours.running_mean.numpy(), rtol=1e-13)  # type: ignore[union-attr]
    np.testing.assert_allclose(stats["var"], ours.running_var.numpy(), rtol=1e-12)  # type: ignore[union-attr]
    ours.eval()
    output = ours(torch.tensor(x).permute(0, 3, 1, 2)).detach().numpy()
    theirs = _Norm().apply(variables, jnp.asarray(x), train=False)
    np.testing.assert_allclose(np.asarray(theirs).transpose(0, 3, 1, 2), output, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_batch_norm_of_one_value_has_no_spread() -> None:
    """A variance over n - 1 that are none would be no number: the running one falls to nine tenths."""
    variables: Any = _Norm().init(jax.random.key(0), jnp.zeros((1, 1, 1, 6)), train=False)
    made, updates = _Norm().apply(variables, jnp.full((1, 1, 1, 6), 5.0), train=True, mutable=["batch_stats"])
    assert np.array_equal(made, np.zeros((1, 1, 1, 6)))
    np.testing.assert_allclose(updates["batch_stats"]["BatchNorm_0"]["var"], np.full(6, 0.9), rtol=1e-6)
    np.testing.assert_allclose(updates["batch_stats"]["BatchNorm_0"]["mean"], np.full(6, 0.5), rtol=1e-6)
