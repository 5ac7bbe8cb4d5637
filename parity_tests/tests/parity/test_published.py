"""torchvision's networks against plain ones in linen: matched, weights carried, five training steps in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import flax.linen as nn
import numpy as np
import optax
import pytest
import torch
from torchvision import models
from torchvision.models.resnet import BasicBlock

import parity
from parity_tests.tests.parity.pairs import MOMENTUM, NET, RATE, batches
from parity_tests.tests.parity.published import Mobile, ResNet, Vgg

pytestmark = pytest.mark.usefixtures("x64")

FREE = parity.Bounds(1e-10, share=1e-4, tensor={"*.running_var": np.inf})  # divided by n - 1 and by n


def _short() -> torch.nn.Module:
    return models.resnet.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def _vgg() -> torch.nn.Module:
    """With narrower dense layers: a hundred million weights four times over would not fit."""
    model = models.vgg11_bn(num_classes=10)
    for place, (given, wide) in {0: (512 * 7 * 7, 24), 3: (24, 24), 6: (24, 10)}.items():
        model.classifier[place] = torch.nn.Linear(given, wide)
    return model


def _compared(ours: Callable[[], torch.nn.Module], theirs: nn.Module, shape: tuple[int, ...]) -> parity.Verdict:
    pair = replace(NET, torch=ours, linen=theirs, shape=shape, tx=optax.sgd(RATE, MOMENTUM))
    return parity.check(*pair.sides(), batches(shape, 10, 5), bounds=FREE)


def test_a_short_resnet_agrees_over_five_steps() -> None:
    verdict = _compared(_short, ResNet((1, 1, 1, 1)), (4, 3, 64, 64))
    print(verdict)
    assert verdict, verdict
    assert verdict.steps == 5
    assert verdict.report.largest().relative < 1e-10
    assert {pair.tried for pair in verdict.pairing.pairs} == {"agrees"}  # type: ignore[union-attr]
    assert len(verdict.pairing.pairs) == 2 + 4 * 4 + 3 * 2 + 1  # type: ignore[union-attr]


@pytest.mark.full
@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        pytest.param(lambda: models.resnet18(num_classes=10), ResNet(), (4, 3, 64, 64), id="resnet18"),
        pytest.param(_vgg, Vgg(width=24), (4, 3, 32, 32), id="vgg11_bn"),
        pytest.param(
            lambda: models.mobilenet_v2(num_classes=10, width_mult=0.25),
            Mobile(width=0.25),
            (8, 3, 64, 64),
            id="mobilenet_v2",
        ),
    ],
)
def test_a_published_network_agrees_over_five_steps(
    ours: Callable[[], torch.nn.Module], theirs: nn.Module, shape: tuple[int, ...]
) -> None:
    verdict = _compared(ours, theirs, shape)
    print(verdict)
    assert verdict, verdict
    assert verdict.steps == 5
    assert verdict.report.largest().relative < 1e-10
