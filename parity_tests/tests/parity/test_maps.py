"""Maps made larger, joined and scaled: transposed convolutions, skips, and scales of other shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import parity
import parity.linen
import parity.nnx
import parity.torch
from parity.model import same_stretched
from parity_tests.tests.parity.pairs import NET, Planned, batches

pytestmark = pytest.mark.usefixtures("x64")


class _Torch(torch.nn.Module):
    """Down, up again, a skip, and a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.mid = torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(6, 8, 3, padding=1)
        self.up = torch.nn.ConvTranspose2d(8, 12, 4, 2, 1)
        self.scale = torch.nn.Parameter(torch.rand(18, 1, 1))
        self.out = torch.nn.Conv2d(18, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.down(x))
        y = self.up(F.silu(self.mid(F.max_pool2d(x, 2))))
        return self.out(torch.cat([x, y], 1)).mean((2, 3)) * self.scale[:5, 0, 0]


class _Linen(nn.Module):
    """The same."""

    padding: Any = "SAME"
    skip_first: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.silu(nn.Conv(6, (3, 3))(x))
        y = nn.silu(nn.Conv(8, (3, 3))(nn.max_pool(x, (2, 2), (2, 2))))
        y = nn.ConvTranspose(12, (4, 4), (2, 2), self.padding)(y)[:, : x.shape[1], : x.shape[2]]
        scale = self.param("gamma", nn.initializers.ones, (18,))
        x = nn.Conv(5, (1, 1))(jnp.concatenate([x, y] if self.skip_first else [y, x], -1))
        return x.mean((1, 2)) * scale[:5]


def _planned(linen: nn.Module) -> Planned:
    return replace(NET, torch=_Torch, linen=linen, shape=(2, 3, 8, 8))


def test_the_same_agree() -> None:
    verdict = _planned(_Linen()).check(noise=False)
    assert verdict, verdict
    assert verdict.pairing is not None
    assert [pair.right for pair in verdict.pairing.pairs if ("scale", "gamma") in pair.tensors] == [""]


@pytest.mark.parametrize(("padding", "told"), [("VALID", "(3, 3) (3, 3)"), (((1, 3), (1, 3)), "(1, 3) (1, 3)")])
def test_another_padding_of_a_transposed_convolution_is_named(padding: Any, told: str) -> None:
    """Also where it gives maps of another size, which cannot be taken over."""
    verdict = _planned(_Linen(padding)).check(noise=False)
    [finding] = verdict.findings
    assert finding.tensors == ("up",)
    assert finding.cause.endswith(
        f"The padding of the stretched input, before and after each axis, is PyTorch's (2, 2) (2, 2), Flax's {told}."
    )


def test_another_order_of_what_is_joined_is_named() -> None:
    [finding] = _planned(_Linen(skip_first=False)).check(noise=False).findings
    assert finding.tensors == ("out (input)",)
    assert finding.cause == (
        "Of what came before PyTorch computes a join of SiLU of down and up, "
        "Flax computes a join of up and SiLU of down."
    )


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (4, 2), (3, 1), (2, 3), (5, 3)])
def test_what_a_stretched_input_is_padded_by(kernel: int, stride: int, same: bool) -> None:
    values, weight = jnp.arange(1.0, 6.0).reshape(1, 5, 1), jnp.arange(1.0, kernel + 1.0).reshape(kernel, 1, 1)
    made = jax.lax.conv_transpose(values, weight, (stride,), "SAME" if same else "VALID", dimension_numbers=_NAMES)
    pads = same_stretched(kernel, stride, same)
    own = jax.lax.conv_transpose(values, weight, (stride,), [pads], dimension_numbers=_NAMES)
    assert np.array_equal(made, own)


_NAMES = ("NHC", "HIO", "NHC")


def test_an_nnx_layers_padding_is_read() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up = nnx.ConvTranspose(3, 5, (4, 4), (2, 2), padding=((1, 3), (1, 3)), rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.up(x)

    left = parity.torch.Side(torch.nn.ConvTranspose2d(3, 5, 4, 2, 1).double())
    given = [(batches((2, 3, 4, 4))[0][0], None)]
    verdict = parity.check(left, parity.nnx.Side(Net(nnx.Rngs(0))), given, mode="forward", noise=False)
    assert "PyTorch's (2, 2) (2, 2), NNX's (1, 3) (1, 3)." in verdict.sentence
