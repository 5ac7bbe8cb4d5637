"""Two models that are not this project's to a verdict: matched, carried, trained, and told apart by cause."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from parity_tests.tests.parity.pairs import (
    MOMENTUM,
    NET,
    RATE,
    TAIL,
    ZOOM,
    LinenNet,
    LinenTail,
    LinenZoom,
    Planned,
    TorchZoom,
    flax_loss,
)

pytestmark = pytest.mark.usefixtures("x64")


def _smooth(output: Any, target: Any) -> Any:
    labels = optax.smooth_labels(jax.nn.one_hot(target, 5), 0.1)
    return optax.softmax_cross_entropy(output, labels).mean()


def _sum(output: Any, target: Any) -> Any:
    return flax_loss(output, target) * len(output)


def _penalty(output: Any, target: Any, params: Any) -> Any:
    return flax_loss(output, target) + 5e-3 / 2 * sum((p**2).sum() for p in jax.tree.leaves(params) if p.ndim > 1)


def _constants(images: Any) -> Any:
    """From torchvision's constants to values from 0 to 1."""
    return images * np.array([0.229, 0.224, 0.225]) + np.array([0.485, 0.456, 0.406])


def _kernels_alone(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _decayed(mask: Any = None) -> Any:
    return optax.chain(optax.add_decayed_weights(1e-2, mask), optax.sgd(RATE, MOMENTUM))


PLANTED: dict[str, tuple[Planned, str, str, str]] = {
    "SAME": (
        replace(NET, linen=LinenNet(padding="SAME")),
        "activation",
        "stem",
        r"padding .* \(1, 1\) \(1, 1\), Flax's \(0, 1\) \(0, 1\): Flax's SAME",
    ),
    "pool": (
        replace(NET, linen=LinenNet(pool="SAME")),
        "activation",
        "mid (input)",
        r"Of norm PyTorch .* max pool 3x3 with stride 2, padded by 1 before and 1 after, Flax .* 0 before and 1 after",
    ),
    "epsilon": (
        replace(NET, linen=LinenNet(epsilon=1e-3)),
        "activation",
        "norm",
        r"epsilon is PyTorch's 1e-05, Flax's 0\.001",
    ),
    "momentum": (
        replace(NET, linen=LinenNet(momentum=0.99)),
        "statistic",
        "norm.running_mean",
        r"PyTorch keeps 0\.9, Flax 0\.99",
    ),
    "GELU": (
        replace(NET, linen=LinenNet(tanh=True)),
        "activation",
        "wide (input)",
        "Of mid PyTorch computes GELU by the error function, Flax computes GELU by tanh",
    ),
    "layer norm": (
        replace(NET, linen=LinenNet(layer_epsilon=1e-6)),
        "activation",
        "layer_norm",
        "epsilon is PyTorch's 1e-05, Flax's 1e-06",
    ),
    "attention": (
        replace(TAIL, linen=LinenTail(scale=1.0)),
        "activation",
        "out (input)",
        r"PyTorch computes attention in 2 heads, its products scaled by 1 / sqrt\(head size\), Flax .* scaled by 1\.",
    ),
    "antialias": (
        replace(ZOOM, linen=LinenZoom(antialias=True)),
        "activation",
        "two (input)",
        "PyTorch computes bilinear resize, Flax computes bilinear resize with antialias",
    ),
    "align_corners": (
        replace(ZOOM, torch=lambda: TorchZoom(align_corners=True)),
        "activation",
        "two (input)",
        "PyTorch computes bilinear resize that aligns corners, Flax computes bilinear resize",
    ),
    "channel order": (
        replace(NET, prepare=lambda x: x[..., ::-1]),
        "input",
        "input",
        "channels are in the opposite order",
    ),
    "constants": (
        replace(NET, prepare=_constants),
        "input",
        "input",
        "PyTorch's images have ImageNet's mean and standard deviation, Flax's values from 0 to 1",
    ),
    "smoothing": (
        replace(NET, losses=(NET.losses[0], _smooth)),
        "loss",
        "loss",
        r"PyTorch's averaged, Flax's averaged with label smoothing 0\.1",
    ),
    "reduction": (replace(NET, losses=(NET.losses[0], _sum)), "loss", "loss", "PyTorch's averaged, Flax's summed"),
    "decay in the loss": (
        replace(NET, losses=(NET.losses[0], _penalty)),
        "loss",
        "loss",
        r"Flax's loss holds weight decay: 0\.005 / 2 times the squares of the parameters of two axes",
    ),
    "decay on norms": (
        replace(NET, decay=1e-2, tx=_decayed(_kernels_alone)),
        "optimizer",
        "momentum_buffer/stem.bias",
        r"PyTorch's memory holds 0\.01 times the parameter more",
    ),
    "clipping": (
        replace(NET, tx=optax.chain(optax.clip_by_global_norm(0.25), optax.sgd(RATE, MOMENTUM))),
        "optimizer",
        "momentum_buffer/stem.weight",
        r"Flax clips gradients, of norm [\d.]+, to 0\.25",
    ),
    "rate": (
        replace(NET, tx=optax.sgd(RATE / 2, MOMENTUM)),
        "parameter",
        "stem.weight",
        r"Flax's update is 0\.5 times PyTorch's: the learning rate",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_named(name: str) -> None:
    planned, phase, tensor, cause = PLANTED[name]
    verdict = planned.check(noise=False)
    assert not verdict
    [finding] = verdict.findings
    assert (finding.difference.step, finding.difference.phase, finding.tensors[0]) == (0, phase, tensor)
    assert __import__("re").search(cause, finding.cause), finding.cause


@pytest.mark.parametrize("planned", [NET, TAIL, ZOOM, replace(NET, decay=1e-2, tx=_decayed())])
def test_the_same_models_agree(planned: Planned) -> None:
    verdict = planned.check()
    assert verdict, verdict
    assert verdict.report.largest().relative < 1e-11
    print(verdict)
