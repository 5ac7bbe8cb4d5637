"""The same proof on a GPU that both frameworks see: float64, strict float32, TF32 and bfloat16, and a probe that the
precision mode took effect.

What rounding alone does on the device is measured on the spot, each framework against PyTorch in float64, and bounds
the reduced precisions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.arch.zoo import ARCHS
from common.recipes.spec import Precision
from common.recipes.zoo import RECIPES
from common.system import package_versions
from parity.compare import Bounds, Report
from parity_tests import curves
from parity_tests.results import Record
from parity_tests.single_step import compare_step, rounding

pytestmark = pytest.mark.gpu

BETWEEN = 1 + 2.0**-12  # survives a float32 product with 1, to a few of its last places; TF32's ten bits round it to 1
NEAR = 2.0**-16
FACTOR = 4


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    need_gpu(torch.cuda.is_available() and jax.default_backend() == "gpu", asked=os.environ.get("GPU") == "required")


def need_gpu(there: bool, *, asked: bool) -> None:
    """Skip where there is none; fail where one was asked for, as `make test-gpu` does: all skipped is no proof."""
    if not there:
        (pytest.fail if asked else pytest.skip)("no GPU that both PyTorch and JAX see")


@contextmanager
def products(fast: bool) -> Iterator[None]:
    """Either framework's switch for float32 products: TF32 or strict. Set back afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = fast
    with jax.default_matmul_precision("tensorfloat32" if fast else "highest"):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("fast", [False, True], ids=["strict", "tf32"])
def test_the_mode_takes_effect(fast: bool) -> None:
    """A dense product and a convolution in each framework keep or lose a bit that TF32 does not have.

    Not to the last place: the convolution may be computed in another domain (Winograd's, Fourier's), whose sums round.
    """
    with products(fast):
        kept = _probe()
    assert kept == [not fast] * 4


def _probe() -> list[bool]:
    matrix = np.zeros((256, 256), np.float32)
    np.fill_diagonal(matrix, 1)
    ours = torch.full((256, 256), BETWEEN, device="cuda") @ torch.tensor(matrix, device="cuda")
    theirs = jnp.full((256, 256), BETWEEN, jnp.float32) @ jnp.asarray(matrix)
    kernel = torch.zeros(64, 64, 3, 3, device="cuda")
    kernel[range(64), range(64), 1, 1] = 1
    filtered = torch.nn.functional.conv2d(torch.full((8, 64, 32, 32), BETWEEN, device="cuda"), kernel, padding=1)
    image = jnp.full((8, 32, 32, 64), BETWEEN, jnp.float32)
    weights = jnp.asarray(kernel.permute(2, 3, 1, 0).cpu().numpy())
    dims = ("NHWC", "HWIO", "NHWC")
    theirs_filtered = jax.lax.conv_general_dilated(image, weights, (1, 1), "SAME", dimension_numbers=dims)
    results = ours[0, 0], theirs[0, 0], filtered[0, 0, 9, 9], theirs_filtered[0, 9, 9, 0]
    return [abs(float(x) - BETWEEN) < NEAR for x in results]


@pytest.mark.parametrize("name", ARCHS)
def test_float64(name: str, record: Record) -> None:
    with jax.enable_x64(True):
        report = compare_step(name, "float64", device="gpu")
    record(f"gpu-float64-{name}", _filed(report))


@pytest.mark.parametrize(
    ("mode", "precision", "unit"),
    [("strict", "float32", "ulp"), ("tf32", "float32", "norm"), ("bfloat16", "bfloat16", "norm")],
)
@pytest.mark.parametrize("name", ARCHS)
def test_reduced(name: str, mode: str, precision: Precision, unit: Any, record: Record) -> None:
    """Every phase differs by at most four times what rounding alone moves it by, or 32 ULP."""
    kinks = mode == "strict"
    with products(mode == "tf32"):
        found = compare_step(name, precision, Bounds(inf, unit=unit), "gpu", avoid_kinks=kinks)
        alone = rounding(name, precision, unit, "gpu", avoid_kinks=kinks)
    record(f"gpu-{mode}-{name}", _filed(found) | {"rounding": _filed(alone)["largest"]})
    least = {"ulp": 32.0, "norm": 1e-3}[unit]
    for phase in found.phases():
        assert found.largest(phase).size <= max(FACTOR * alone.largest(phase).size, least), found.largest(phase)


@pytest.mark.parametrize("name", RECIPES)
def test_curve(name: str, record: Record) -> None:
    with jax.enable_x64(True):
        report = curves.narrow_run(name, 12, device="gpu")
    record(f"gpu-curve-{name}", _filed(report))


def _filed(report: Report) -> dict[str, Any]:
    largest = {phase: asdict(report.largest(phase)) for phase in report.phases()}
    return {"device": torch.cuda.get_device_name(), "versions": package_versions(), "largest": largest}
