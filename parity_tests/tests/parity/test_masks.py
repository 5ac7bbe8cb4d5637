"""Attention's masks: read where a layer is given them, and told from the numbers where it is written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import nnx

import parity
import parity.linen
import parity.nnx
import parity.torch
from parity.forms import explain, mask_words
from parity_tests.tests.parity.pairs import QUICK, RATE, flax_loss, torch_loss

pytestmark = pytest.mark.usefixtures("x64")
LENGTHS = (6, 4, 3)


def _words() -> list[parity.model.Batch]:
    """Sequences that end in zeros, which are padding, and labels."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, 20, (len(LENGTHS), max(LENGTHS)))
    for row, length in enumerate(LENGTHS):
        words[row, length:] = 0
    return [(words, rng.integers(0, 5, len(LENGTHS)))]


class _Torch(torch.nn.Module):
    """An encoder layer over words, of which padding is neither seen nor averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(20, 8)
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True, norm_first=True)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        later = torch.ones(words.shape[1], words.shape[1]).triu(1).bool()
        x = self.layer(self.words(words), later, src_key_padding_mask=words == 0)
        keep = (words != 0)[..., None]
        return self.head((x * keep).sum(1) / keep.sum(1))


def _both(words: Any) -> Any:
    keep = words != 0
    return nn.combine_masks(nn.make_causal_mask(words), nn.make_attention_mask(jnp.ones_like(words), keep))


class _Linen(nn.Module):
    """The same, by linen's own masks."""

    mask: Callable[[Any], Any] = _both
    average: bool = True

    @nn.compact
    def __call__(self, words: Any) -> Any:
        x = nn.Embed(20, 8)(words)
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm(epsilon=1e-5)(x), mask=self.mask(words))
        y = nn.Dense(12)(nn.LayerNorm(epsilon=1e-5)(x))
        x = x + nn.Dense(8)(nn.gelu(y, approximate=False))
        keep = (words != 0)[..., None]
        return nn.Dense(5)((x * keep).sum(1) / keep.sum(1) if self.average else x.mean(1))


def _checked(right: nn.Module) -> parity.Verdict:
    torch.manual_seed(0)
    model = _Torch().double()
    left = parity.torch.Side(model, torch_loss, torch.optim.SGD(model.parameters(), RATE))
    variables = jax.eval_shape(right.init, jax.random.key(0), np.ones((3, 6), int))
    other = parity.linen.Side(right, variables, flax_loss, optax.sgd(RATE), compiler_options=QUICK)
    return parity.check(left, other, _words(), noise=False)


def test_the_same_masks_agree() -> None:
    assert (verdict := _checked(_Linen())), verdict


PLANTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "none": (lambda words: None, "Flax hides nothing."),
    "padding alone": (
        lambda words: nn.make_attention_mask(jnp.ones_like(words), words != 0),
        "Flax hides 28% of the keys, as of padding.",
    ),
    "causal alone": (lambda words: nn.make_causal_mask(words), "Flax hides what comes later."),
    "the wrong way round": (
        lambda words: jnp.swapaxes(nn.make_causal_mask(words), -1, -2),
        "Flax hides what came before.",
    ),
    "inverted padding": (
        lambda words: nn.combine_masks(
            nn.make_causal_mask(words), nn.make_attention_mask(jnp.ones_like(words), words == 0)
        ),
        "Flax hides what comes later and 72% of the keys, as of padding (the opposite ones).",
    ),
    "of queries, too": (
        lambda words: nn.combine_masks(nn.make_causal_mask(words), nn.make_attention_mask(words != 0, words != 0)),
        "Flax hides what comes later and 28% of the keys, as of padding, and from queries there everything.",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_mask_that_differs_is_named(name: str) -> None:
    mask, told = PLANTED[name]
    [finding] = _checked(_Linen(mask)).findings
    assert finding.tensors == ("layer.self_attn",)
    ours = "The attention mask: PyTorch hides what comes later and 28% of the keys, as of padding, "
    assert finding.cause == ours + told


def test_an_average_over_padding_is_named() -> None:
    [finding] = _checked(_Linen(average=False)).findings
    assert finding.tensors == ("head (input)",)
    assert "the mean over the first 3 of 6 positions" in finding.cause
    assert finding.cause.endswith("Flax computes the mean over positions.")


def test_an_nnx_layers_mask_is_read() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.mixed = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.mixed(x, mask=nn.make_causal_mask(x[..., 0]))

    class Ours(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixed = torch.nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mixed(x, x, x, key_padding_mask=x[..., 0] > 0.5)[0]

    left, right = parity.torch.Side(Ours().double()), parity.nnx.Side(Net(nnx.Rngs(0)))
    given = np.random.default_rng(1).standard_normal((3, 5, 8))
    given[:, 0, 0] = 0
    verdict = parity.check(left, right, [(given, None)], mode="forward", noise=False)
    hidden = (given[..., 0] > 0.5).mean()
    assert f"PyTorch hides {hidden:.0%} of the keys, as of padding, NNX hides what comes later." in verdict.sentence


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.arange(5) < 3, ", of the first 3 of 5 keys alone"),
        (np.arange(5) >= 2, ", of the keys after the first 2 alone"),
        (np.tril(np.ones((5, 5), bool)) & (np.arange(5) < 4), ", causal, of the first 4 of 5 keys alone"),
        (np.triu(np.ones((5, 5), bool)), ", causal the wrong way round"),
    ],
)
def test_masks_of_attention_written_out_are_told(mask: Any, told: str) -> None:
    """Of the example that differs, not of the first."""
    q, k, v = np.random.default_rng(2).standard_normal((3, 2, 5, 12))
    one, two, three = (torch.from_numpy(a).view(2, 5, 3, 4).transpose(1, 2) for a in (q, k, v))
    plain = F.scaled_dot_product_attention(one, two, three).transpose(1, 2).reshape(2, 5, 12).numpy()
    masked = F.scaled_dot_product_attention(one, two, three, torch.from_numpy(np.broadcast_to(mask, (5, 5)).copy()))
    other = plain.copy()
    other[1] = masked.transpose(1, 2).reshape(2, 5, 12).numpy()[1]
    words = "attention in 3 heads, its products scaled by 1 / sqrt(head size)"
    assert explain(plain, other, {"v": v, "k": k, "q": q})[1:] == (words, words + told)


def test_a_mask_of_another_kind_is_told_by_its_share() -> None:
    seen = np.random.default_rng(3).random((2, 4, 5)) < 0.5
    assert mask_words(seen)[0] == f"hides {1 - seen.mean():.0%} of the pairs of query and key"


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("additive", [True, False])
def test_a_mask_is_of_examples_queries_and_keys(batch_first: bool, additive: bool) -> None:
    """However PyTorch's layer is given them: what is padding, and what comes later, is not seen."""
    queries, keys = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
    if not batch_first:
        queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)
    padding = torch.tensor([[False] * 4 + [True], [False] * 2 + [True] * 3])
    later = torch.ones(3, 5).triu(1).bool()
    mask = torch.zeros(3, 5).masked_fill(later, -torch.inf) if additive else later
    layer = torch.nn.MultiheadAttention(4, 2, batch_first=batch_first)
    seen = parity.torch._mask(layer, queries, keys, keys, padding, attn_mask=mask)
    assert np.array_equal(seen, ~(padding[:, None] | later[None]).numpy())
