"""torchvision's networks against plain ones in linen: matched, weights carried, five training steps in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
import torch
from torchvision import models
from torchvision.models.resnet import BasicBlock

import parity
from parity_tests.tests.parity.pairs import MOMENTUM, NET, RATE, Planned, batches, flax_loss
from parity_tests.tests.parity.published import Mobile, ResNet, Vgg

pytestmark = pytest.mark.usefixtures("x64")

FREE = parity.Bounds(1e-10, share=1e-4, tensor={"*.running_var": np.inf})  # divided by n - 1 and by n
NARROW = (4, 8, 12, 12, 16, 16, 16, 16)


def _vgg(widths: tuple[int, ...] = (64, 128, 256, 256, 512, 512, 512, 512)) -> torch.nn.Module:
    """VGG-11 with batch norm, and narrower dense layers: a hundred million weights four times over would not fit."""
    first, second, *others = widths
    layers = [first, "M", second, "M", *others[:2], "M", *others[2:4], "M", *others[4:], "M"]
    model = models.vgg.VGG(models.vgg.make_layers(layers, batch_norm=True), num_classes=10)
    for place, (given, wide) in {0: (widths[-1] * 7 * 7, 24), 3: (24, 24), 6: (24, 10)}.items():
        model.classifier[place] = torch.nn.Linear(given, wide)
    return model


def _resnet(blocks: int) -> torch.nn.Module:
    return models.resnet.ResNet(BasicBlock, [blocks] * 4, num_classes=10)


def _compared(planned: Planned, steps: int = 5, **options: Any) -> parity.Verdict:
    return parity.check(*planned.sides(), batches(planned.shape, 10, steps), **{"bounds": FREE, **options})


def test_a_narrow_vgg_agrees_over_five_steps() -> None:
    """Convolutions with biases before norms, and a map that is flattened."""
    verdict = _compared(
        replace(NET, torch=lambda: _vgg(NARROW), linen=Vgg(24, NARROW), shape=(4, 3, 64, 64)), noise=False
    )
    assert verdict, verdict
    assert verdict.steps == len(verdict.report.losses) == 5
    assert verdict.report.largest().relative < 1e-10
    assert verdict.pairing is not None
    assert {pair.tried for pair in verdict.pairing.pairs} == {"agrees"}
    assert [pair.flatten for pair in verdict.pairing.pairs if pair.kind == "dense"] == [(16, 7, 7), None, None]


@pytest.mark.full
@pytest.mark.parametrize(
    ("ours", "theirs", "shape", "steps"),
    [
        pytest.param(lambda: models.resnet18(num_classes=10), ResNet(), (4, 3, 64, 64), 5, id="resnet18"),
        pytest.param(_vgg, Vgg(24), (4, 3, 64, 64), 5, id="vgg11_bn"),
        pytest.param(
            lambda: models.mobilenet_v2(num_classes=10, width_mult=0.25),
            Mobile(width=0.25),
            (8, 3, 64, 64),
            2,  # by the fifth its own noise comes to 1e-7
            id="mobilenet_v2",
        ),
    ],
)
def test_a_published_network_agrees_in_training(
    ours: Callable[[], torch.nn.Module], theirs: nn.Module, shape: tuple[int, ...], steps: int
) -> None:
    verdict = _compared(replace(NET, torch=ours, linen=theirs, shape=shape), steps)
    print(verdict)
    assert verdict, verdict
    assert verdict.steps == steps
    assert verdict.report.largest().relative < 1e-10


def _penalty(output: Any, target: Any, params: Any) -> Any:
    return flax_loss(output, target) + 1e-4 / 2 * sum((p**2).sum() for p in jax.tree.leaves(params) if p.ndim > 1)


@pytest.mark.full
def test_all_differences_of_a_resnet_are_named_in_one_run() -> None:
    """Those between torchvision's and the one of Flax's own ImageNet example."""
    planned = replace(
        NET,
        torch=lambda: _resnet(1),
        linen=ResNet((1, 1, 1, 1), padding="SAME", axis="batch"),
        shape=(4, 3, 32, 32),
        losses=(NET.losses[0], _penalty),
        tx=optax.sgd(RATE, MOMENTUM, nesterov=True),
        decay=1e-4,
    )
    verdict = parity.check(*planned.sides(), batches(planned.shape, 10, 2), go_on=True, noise=False)
    print(verdict)
    found = [(finding.difference.phase, finding.tensors[0], finding.cause) for finding in verdict.findings]
    assert [(phase, tensor) for phase, tensor, _ in found] == [
        ("activation", "layer1.0.conv1 (input)"),
        ("activation", "layer2.0.conv1"),
        ("loss", "loss"),
        ("optimizer", "momentum_buffer/conv1.weight"),
        ("parameter", "conv1.weight"),
        ("statistic", "bn1.running_var"),
    ]
    words = ("max pool", "padding", "decay", "decay", "Nesterov's step, that Flax takes", "unbiased")
    for said, (_, _, cause) in zip(words, found, strict=True):
        assert said in cause
    assert verdict.findings[1].tensors == ("layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1")
