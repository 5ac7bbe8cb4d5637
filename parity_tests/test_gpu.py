"""The same proof on a GPU that both frameworks see: strict float32 and float64, and a probe of the precision mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.arch import ARCHS
from common.recipes import RECIPES
from parity_tests.compare import Bounds, compare_run
from parity_tests.material import data_for, first_batches, narrow
from parity_tests.sides import make_pair

BOTH = torch.cuda.is_available() and jax.default_backend() == "gpu"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not BOTH, reason="no GPU that both PyTorch and JAX see")]

EXACT = 1 + 2.0**-20  # survives a float32 product with 1; TF32's ten bits round it to 1


@pytest.fixture(params=["strict", "tf32"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    """Either framework's switch for float32 products, set back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    fast = request.param == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    with jax.default_matmul_precision("tensorfloat32" if fast else "highest"):
        yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_the_mode_takes_effect(mode: str) -> None:
    """A dense product and a convolution in each framework keep or lose a bit that TF32 does not have."""
    matrix = np.zeros((256, 256), np.float32)
    np.fill_diagonal(matrix, 1)
    ours = torch.full((256, 256), EXACT, device="cuda") @ torch.tensor(matrix, device="cuda")
    theirs = jnp.full((256, 256), EXACT, jnp.float32) @ jnp.asarray(matrix)
    kernel = torch.zeros(64, 64, 3, 3, device="cuda")
    kernel[range(64), range(64), 1, 1] = 1
    filtered = torch.nn.functional.conv2d(torch.full((8, 64, 32, 32), EXACT, device="cuda"), kernel, padding=1)
    image = jnp.full((8, 32, 32, 64), EXACT, jnp.float32)
    weights = jnp.asarray(kernel.permute(2, 3, 1, 0).cpu().numpy())
    dims = ("NHWC", "HWIO", "NHWC")
    theirs_filtered = jax.lax.conv_general_dilated(image, weights, (1, 1), "SAME", dimension_numbers=dims)
    kept = [float(x) == np.float32(EXACT) for x in (ours[0, 0], theirs[0, 0], filtered[0, 0, 9, 9])]
    kept.append(float(theirs_filtered[0, 9, 9, 0]) == np.float32(EXACT))
    assert kept == [mode == "strict"] * 4


@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-11), ("float32", 2e-5)])
@pytest.mark.parametrize("name", ARCHS)
def test_steps(name: str, precision: Literal["float64", "float32"], bound: float) -> None:
    """Three steps of narrow networks; float32 in strict mode."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    recipe = replace(RECIPES["cifar10"], precision=precision, batch_size=8)
    side = max(ARCHS[name].smallest(), 32)
    recipe = replace(recipe, arch=name, preprocess=replace(recipe.preprocess, resize=side))
    data = data_for(recipe)
    arch = narrow(recipe.model_arch(data.image, 10))
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        left, right = make_pair(recipe, arch, 10, device="gpu")
        ours, theirs = (first_batches(data, recipe, 3) for _ in range(2))
        compare_run(left, right, ours, theirs, Bounds(bound))
