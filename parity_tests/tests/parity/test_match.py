"""Pairing: by order, kind and shape, put right by values; weights carried both ways; what has no partner."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from parity import pairing
from parity_tests.tests.parity.pairs import NET, TAIL, LinenTail, Planned, TorchTail, batches, mixed

pytestmark = pytest.mark.usefixtures("x64")


def _matched(planned: Planned = NET, **options: Any) -> parity.Match:
    return parity.match(*planned.sides(), batches(planned.shape)[0], **options)


def test_the_table_says_what_was_decided() -> None:
    found = _matched()
    lines = str(found).splitlines()
    assert lines[0].split() == ["PyTorch", "Flax", "kind", "shape", "paired", "by", "tried"]
    assert lines[1].split()[:4] == ["stem", "Conv_0", "conv", "4x3x3x3"]
    assert "8x96 of 6x4x4 flattened" in str(found)
    assert [(pair.left, pair.right, pair.tried) for pair in found.pairs] == [
        ("stem", "Conv_0", "agrees"),
        ("norm", "BatchNorm_0", "agrees"),
        ("mid", "Conv_1", "agrees"),
        ("wide", "Dense_0", "agrees"),
        ("layer_norm", "LayerNorm_0", "agrees"),
        ("head", "Dense_1", "agrees"),
    ]


def test_gradients_are_compared_backwards() -> None:
    """From the loss on, as they are made: the first that differs is nearest to its cause."""
    found = _matched(values=False)
    ours, theirs = (dict.fromkeys(("gradient", "parameter"), model.parameters) for model in found.models)
    one, other = found.translated(ours, theirs)
    for trace in (one, other):
        forward, backward = ([*dict.fromkeys(n.split(".")[0] for n in trace[p])] for p in ("parameter", "gradient"))
        assert forward == ["stem", "norm", "mid", "wide", "layer_norm", "head"]
        assert backward == forward[::-1]


class _Every(nn.Module):
    """Every kind of layer that has an axis to turn."""

    @nn.compact
    def __call__(self, x: Any, words: Any) -> Any:
        x = nn.Conv(6, (3, 2), padding="VALID", feature_group_count=2)(x)
        x = nn.Conv(12, (3, 3), padding=1, feature_group_count=6)(x)
        x = nn.GroupNorm(3, epsilon=1e-5)(x)
        x = nn.ConvTranspose(5, (2, 2), (2, 2), padding="VALID")(x).mean((1, 2))
        y = nn.Conv(5, (3,), padding=1)(nn.Embed(11, 4)(words)).mean(1)
        return nn.DenseGeneral((2, 3))(x + y).reshape(len(x), -1)


class _EveryTorch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = torch.nn.Conv2d(4, 6, (3, 2), groups=2)
        self.depthwise = torch.nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.norm = torch.nn.GroupNorm(3, 12)
        self.up = torch.nn.ConvTranspose2d(12, 5, 2, 2)
        self.words = torch.nn.Embedding(11, 4)
        self.line = torch.nn.Conv1d(4, 5, 3, padding=1)
        self.out = torch.nn.Linear(5, 6)

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        x = self.up(self.norm(self.depthwise(self.grouped(x)))).mean((2, 3))
        return self.out(x + self.line(self.words(words).transpose(1, 2)).mean(2))


def _every() -> tuple[Any, Any, Any]:
    torch.manual_seed(1)
    rng = np.random.default_rng(2)
    inputs = (rng.standard_normal((3, 4, 6, 7)), rng.integers(0, 11, (3, 5)))
    last = (jnp.zeros((3, 6, 7, 4)), jnp.zeros((3, 5), int))
    variables = jax.eval_shape(_Every().init, jax.random.key(0), *last)
    return parity.torch.Side(_EveryTorch().double()), parity.linen.Side(_Every(), variables), (inputs, None)


def test_every_kind_of_kernel_is_turned_and_comes_back_bit_for_bit() -> None:
    left, right, batch = _every()
    found = parity.match(left, right, batch)
    assert {pair.tried for pair in found.pairs} == {"agrees"}
    start = {name: values.copy() for name, values in left.model().tensors.items()}
    carried = {name: values.copy() for name, values in right.model().tensors.items()}
    left.load({name: values * 0 for name, values in start.items()})
    found.carry("left")
    assert all(np.array_equal(values, start[name]) for name, values in left.model().tensors.items())
    right.load({name: values * 0 for name, values in carried.items()})
    found.carry("right")
    assert all(np.array_equal(values, carried[name]) for name, values in right.model().tensors.items())
    verdict = parity.check(left, right, [batch], pairs=found, mode="forward", noise=False)
    assert verdict, verdict


@pytest.mark.parametrize("first", ["key", "value"])
def test_a_wrong_order_of_equal_shapes_is_found_by_values(first: str) -> None:
    """Query, key and value have one shape and one input: only what is made of them tells."""
    found = _matched(replace(TAIL, linen=LinenTail(first=first)))
    assert {pair.left: pair.right for pair in found.pairs} == {"q": "query", "k": "key", "v": "value", "out": "Dense_0"}
    assert {pair.tried for pair in found.pairs} == {"agrees"}
    assert "their values" in {pair.how for pair in found.pairs}
    blind = _matched(replace(TAIL, linen=LinenTail(first=first)), values=False)
    assert blind.pairs[0].right == first


def test_projections_with_an_axis_for_heads_are_compared_flat() -> None:
    class General(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.MultiHeadDotProductAttention(2)(x).mean(1)

    verdict = replace(TAIL, linen=General()).check(noise=False)
    assert verdict, verdict
    assert verdict.pairing is not None
    assert {pair.tried for pair in verdict.pairing.pairs} == {"agrees"}
    assert {("activation", name) for name in ("q", "k", "v", "out (input)")} < verdict.report.worst.keys()


def test_a_layer_with_other_settings_does_not_disturb_the_pairing() -> None:
    """What differs before query, key and value is taken over, and they stay in their places."""

    class Normed(nn.Module):
        epsilon: float = 1e-3

        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = mixed(nn.LayerNorm(epsilon=self.epsilon)(x))
            return nn.LayerNorm(epsilon=1e-5)(x).mean(1)

    class Ours(TorchTail):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.LayerNorm(8), torch.nn.LayerNorm(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.mixed(self.first(x))).mean(1)

    found = _matched(replace(TAIL, torch=Ours, linen=Normed()))
    assert {pair.left: (pair.right, pair.tried) for pair in found.pairs} == {
        "first": ("LayerNorm_0", "differs"),
        "q": ("query", "agrees"),
        "k": ("key", "agrees"),
        "v": ("value", "agrees"),
        "out": ("Dense_0", "agrees"),
        "last": ("LayerNorm_1", "agrees"),
    }


class _Swapped(nn.Module):
    """Two branches of one shape, called in another order than PyTorch calls them."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.Dense(4, name="right")(jnp.tanh(x))
        return nn.Dense(4, name="left")(x) * 2 - y


class _SwappedTorch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) * 2 - self.right(torch.tanh(x))


def test_layers_that_are_given_something_else_are_exchanged() -> None:
    found = _matched(replace(NET, torch=_SwappedTorch, linen=_Swapped(), shape=(3, 4)))
    assert {pair.left: pair.right for pair in found.pairs} == {"left": "left", "right": "right"}


class _Wider(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(4)(nn.Dense(7, name="odd")(x))


class _Oblong(nn.Module):
    """Maps of 3 x 4 x 5 and 4 x 3 x 5 numbers, of which the second is flattened."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(5)(nn.tanh(nn.Conv(4, (2, 1), padding="VALID")(x)).reshape(len(x), -1))


def _oblong() -> torch.nn.Module:
    parts = torch.nn.Conv2d(3, 4, (2, 1)), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(60, 5)
    return torch.nn.Sequential(*parts)


@pytest.mark.parametrize("turned", [False, True])
def test_the_map_that_was_flattened_need_not_be_square(turned: bool) -> None:
    """Nor the only one of its size; whichever side is the left."""
    planned = replace(NET, torch=_oblong, linen=_Oblong(), shape=(2, 3, 4, 5))
    left: Any
    right: Any
    left, right = planned.sides()
    given = batches(planned.shape)
    if turned:
        right.load(_numbers(right))
        left, right = right, left
        given = [(np.moveaxis(images, 1, -1), labels) for images, labels in given]
    found = parity.match(left, right, given[0])
    assert [pair.flatten for pair in found.pairs] == [None, (4, 3, 5)]
    assert [pair.tried for pair in found.pairs] == ["agrees", "agrees"]
    assert (verdict := parity.check(left, right, given, pairs=found, noise=False)), verdict


class _Volume(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Conv(5, (2, 3, 1), padding=((0, 0), (1, 1), (0, 0)))(x).mean((1, 2, 3))


class _TorchVolume(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(3, 5, (2, 3, 1), padding=(0, 1, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3, 4))


def test_volumes_are_laid_out_as_images_are() -> None:
    left = parity.torch.Side(_TorchVolume().double())
    images = np.random.default_rng(1).standard_normal((2, 3, 4, 5, 6))
    variables = jax.eval_shape(_Volume().init, jax.random.key(0), np.moveaxis(images, 1, -1))
    verdict = parity.check(left, parity.linen.Side(_Volume(), variables), [(images, None)], mode="forward", noise=False)
    assert verdict, verdict
    assert verdict.report.worst["activation", "conv"].relative < 1e-13


def _numbers(side: Any) -> dict[str, np.ndarray]:
    """In place of shapes alone."""
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(leaf.shape) / 4 for name, leaf in side.names(side.params, False).items()}


def test_what_has_no_partner_is_named() -> None:
    with pytest.raises(parity.Unmatched) as caught:
        _matched(replace(NET, torch=_SwappedTorch, linen=_Wider(), shape=(3, 4)))
    for part in ("PyTorch's", "right.weight (4x4)", "Flax's", "odd.kernel (7x4)"):
        assert part in str(caught.value)


def test_a_pairing_is_kept_and_edited(tmp_path: Path) -> None:
    found = _matched(replace(TAIL, linen=LinenTail(first="key")), values=False)
    found.save(tmp_path / "pairs.json")
    rows = json.loads((tmp_path / "pairs.json").read_text("utf-8"))
    assert rows[0]["left"] == "q"
    assert rows[0]["right"] == "key"
    names = {"q": "query", "k": "key", "v": "value", "out": "Dense_0"}
    for row in rows:
        row["right"] = names[row["left"]]
        row["tensors"] = [[left, f"{row['right']}.{right.split('.')[1]}"] for left, right in row["tensors"]]
    (tmp_path / "edited.json").write_text(json.dumps(rows), "utf-8")
    edited = _matched(TAIL, pairs=tmp_path / "edited.json")
    assert {pair.tried for pair in edited.pairs} == {"agrees"}
    rows[0]["tensors"][0][1] = "key.kernel"
    (tmp_path / "wrong.json").write_text(json.dumps(rows), "utf-8")
    with pytest.raises(parity.Unmatched, match=r"key\.kernel, query\.kernel of Flax must be named once"):
        _matched(TAIL, pairs=tmp_path / "wrong.json")
    again = json.loads((tmp_path / "edited.json").read_text("utf-8"))
    (tmp_path / "twice.json").write_text(json.dumps([*again, again[0]]), "utf-8")
    with pytest.raises(parity.Unmatched, match=r"q\.bias, q\.weight of PyTorch must be named once"):
        pairing._read(tmp_path / "twice.json", edited.models)


class _Encoder(nn.Module):
    """linen's attention, and tensors that belong to no layer."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = x + self.param("places", nn.initializers.normal(), (1, 6, 8))
        for _ in range(2):
            x = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=False)(x)
        return nn.Dense(5)(nn.LayerNorm(epsilon=1e-5)(x).mean(1))


class _EncoderTorch(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = torch.nn.Parameter(torch.randn(1, 6, 8))
        parts = (torch.nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True) for _ in range(2))
        self.attention = torch.nn.ModuleList(parts)
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.position
        for layer in self.attention:
            x = layer(x, x, x, need_weights=False)[0]
        return self.head(self.norm(x).mean(1))


def test_fused_attention_is_taken_apart_and_trains_alike_without_dropout() -> None:
    planned = replace(NET, torch=_EncoderTorch, linen=_Encoder(), shape=(3, 6, 8))
    verdict = planned.check(noise=False)
    assert verdict, verdict
    assert verdict.pairing is not None
    named = {left: right for pair in verdict.pairing.pairs for left, right in pair.tensors}
    assert named["attention.1.in_proj_weight[1]"] == "MultiHeadDotProductAttention_1.key.kernel"
    assert named["attention.0.out_proj.bias"] == "MultiHeadDotProductAttention_0.out.bias"
    assert ("activation", "attention.1") in verdict.report.worst
    assert named["position"] == "places"


def test_layers_in_a_module_list_are_called_more_than_once() -> None:
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            layer = nn.Dense(5)
            return layer(nn.relu(layer(x)))

    def ours() -> torch.nn.Module:
        layer = torch.nn.Linear(5, 5)
        return torch.nn.Sequential(OrderedDict(one=layer, act=torch.nn.ReLU(inplace=True), two=layer))

    verdict = replace(NET, torch=ours, linen=Shared(), shape=(3, 5)).check(noise=False)
    assert verdict, verdict
    assert ("activation", "one:2") in verdict.report.worst
