"""Every architecture against its published parameter count and a plain transcription of its source."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import alexnet as torchvision_alexnet

import flax_impl
import torch_impl
from common.arch.spec import Arch, BatchNorm, ConvSpec, DenseSpec, LocalResponseNorm, MaxPool
from common.arch.zoo import ARCHS, get_arch
from common.config import from_dict, to_dict
from common.errors import UserError
from flax_impl.convert import from_torch
from parity_tests.material import narrow

PARAMETERS = {
    "alexnet": 61_100_840,
    "alexnet_2012": 60_965_224,
    "alexnet_lrn": 61_100_840,
    "alexnet_bn": 61_101_992,
    "alexnet_fashion": 46_764_746,
    "alexnet_cifar": 23_272_266,
    "lenet": 170_988,
}
CASES = [pytest.param(ARCHS[name], count, id=name) for name, count in PARAMETERS.items() if name in ARCHS]
CASES.append(pytest.param(ARCHS["alexnet_cifar"].adapt(channels=1), 23_271_114, id="alexnet_cifar-grey"))
HIDDEN = 64  # width of the hidden dense layers where the published one would only take time
CPU = jax.devices("cpu")[0]


class PaperResponseNorm(nn.Module):
    """Section 3.3 of the 2012 paper, channel by channel: n 5, k 2, alpha 1e-4, beta 0.75."""

    def forward(self, a: Tensor) -> Tensor:
        last = a.shape[1] - 1
        sums = [a[:, max(0, i - 2) : min(last, i + 2) + 1].square().sum(1) for i in range(last + 1)]
        return a / (2 + 1e-4 * torch.stack(sums, 1)) ** 0.75


def alexnet_2012(hidden: int = 4096) -> nn.Module:
    """Krizhevsky, Sutskever, Hinton, 2012: figure 2, sections 3.3 to 3.5 and 4.2."""
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(), PaperResponseNorm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), PaperResponseNorm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        nn.Flatten(),
        *(nn.Linear(256 * 6 * 6, hidden), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(hidden, 1000),
    )


def alexnet_lrn(hidden: int = 4096) -> nn.Module:
    """torchvision's layers, with PyTorch's response norm after each pool."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(5)),
        *(nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(256 * 6 * 6, hidden), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, 1000),
    )


def alexnet_bn(hidden: int = 4096) -> nn.Module:
    """torchvision's layers, with batch norm before each ReLU of the convolutions, which have no bias."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2, bias=False), nn.BatchNorm2d(192), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1, bias=False), nn.BatchNorm2d(384), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.AdaptiveAvgPool2d((6, 6)), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(256 * 6 * 6, hidden), nn.ReLU()),
        *(nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, 1000),
    )


def alexnet_fashion(hidden: int = 4096) -> nn.Module:
    """Dive into Deep Learning, Gluon version, on 1 x 224 x 224."""
    return nn.Sequential(
        *(nn.Conv2d(1, 96, kernel_size=11, stride=4), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2)),
        *(nn.Conv2d(96, 256, kernel_size=5, padding=2), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2)),
        *(nn.Conv2d(256, 384, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(kernel_size=3, stride=2)),
        nn.Flatten(),
        *(nn.Linear(256 * 5 * 5, hidden), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(hidden, 10),
    )


def alexnet_cifar(hidden: int = 4096, channels: int = 3) -> nn.Module:
    """The CIFAR tutorials' network for 32 x 32."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 64, kernel_size=3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(kernel_size=2)),
        *(nn.Conv2d(64, 192, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(kernel_size=2)),
        *(nn.Conv2d(192, 384, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, kernel_size=3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(kernel_size=2)),
        nn.Flatten(),
        *(nn.Dropout(), nn.Linear(256 * 2 * 2, hidden), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU()),
        nn.Linear(hidden, 10),
    )


def lenet(hidden: int = 128) -> nn.Module:
    """The tutorials' LeNet on 1 x 28 x 28."""
    return nn.Sequential(
        *(nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(50 * 5 * 5, hidden), nn.ReLU(), nn.Linear(hidden, 10)),
    )


TRANSCRIPTIONS: dict[str, Callable[..., nn.Module]] = {
    "alexnet": lambda hidden=None: torchvision_alexnet(),  # the source itself, at its own width
    "alexnet_2012": alexnet_2012,
    "alexnet_lrn": alexnet_lrn,
    "alexnet_bn": alexnet_bn,
    "alexnet_fashion": alexnet_fashion,
    "alexnet_cifar": alexnet_cifar,
    "lenet": lenet,
}


@torch.no_grad()
def transcription(name: str, size: tuple[int, int] | None = None) -> tuple[Arch, nn.Module, Tensor]:
    """A narrow architecture, its transcription with weights that keep signals in scale, and two images, in float64."""
    arch = ARCHS[name] if name == "alexnet" else narrow(ARCHS[name], conv=1, dense=HIDDEN)
    model = TRANSCRIPTIONS[name](HIDDEN).double().eval()
    generator = torch.Generator().manual_seed(0)
    for tensor_name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor_name.endswith("bias"):
            tensor.normal_(0, 0.1, generator=generator)
        elif tensor.is_floating_point():  # of batch norm: scale, mean and variance
            tensor.uniform_(0.5, 1.5, generator=generator)
    height, width = size or arch.image[:2]
    images = torch.randn(2, arch.image[2], height, width, dtype=torch.float64, generator=generator)
    return arch, model, images


def carry_over(source: nn.Module, arch: Arch) -> nn.Module:
    """`torch_impl`'s network with a transcription's tensors, paired by their order."""
    with torch.device("meta"):
        model = torch_impl.build(arch)
    pairs = zip(model.state_dict(), source.state_dict().values(), strict=True)
    model.load_state_dict(dict(pairs), assign=True)
    return model.eval()


def logits_in_flax(state: dict[str, Tensor], arch: Arch, images: Tensor) -> np.ndarray:
    with jax.enable_x64(True), jax.default_device(CPU):
        apply = jax.jit(partial(flax_impl.build(arch).apply, train=False))
        return np.asarray(apply(from_torch(state, arch), images.permute(0, 2, 3, 1).numpy()))


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.float64
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def test_no_architecture_is_forgotten() -> None:
    assert PARAMETERS.keys() == ARCHS.keys() == TRANSCRIPTIONS.keys()
    assert all(name == arch.name for name, arch in ARCHS.items())


@pytest.mark.parametrize(("arch", "count"), CASES)
def test_parameter_count(arch: Arch, count: int) -> None:
    with torch.device("meta"):
        in_torch = sum(parameter.numel() for parameter in torch_impl.build(arch).parameters())
    images = jnp.zeros((1, *arch.image))
    variables = jax.eval_shape(lambda: flax_impl.build(arch).init(jax.random.key(0), images, train=False))
    in_flax = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert (arch.parameters, in_torch, in_flax) == (count, count, count)


@pytest.mark.parametrize("name", TRANSCRIPTIONS)
def test_published_size(name: str) -> None:
    """At full width, on the meta device: parameters, logits and multiply-adds of the transcription."""
    arch = ARCHS[name]
    height, width, channels = arch.image
    with torch.device("meta"):
        model, images = TRANSCRIPTIONS[name](), torch.empty(1, channels, height, width)
    with FlopCounterMode(display=False) as counter:
        logits = model.eval()(images)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert logits.shape == (1, arch.classes)
    assert counter.get_total_flops() == 2 * arch.multiply_adds


def check_logits(arch: Arch, theirs: nn.Module, images: Tensor) -> None:
    ours = carry_over(theirs, arch)
    with torch.inference_mode():
        expected = theirs(images).numpy()
        in_torch = ours(images).numpy()
    assert relative(in_torch, expected) < 1e-12
    assert relative(logits_in_flax(ours.state_dict(), arch, images), expected) < 1e-12


@pytest.mark.parametrize("name", TRANSCRIPTIONS)
def test_logits_equal_the_transcription(name: str) -> None:
    check_logits(*transcription(name))


@pytest.mark.parametrize("size", [(63, 100), (127, 190), (260, 225)])
def test_logits_equal_the_transcription_at_other_sizes(size: tuple[int, int]) -> None:
    """The last pool gives 1 x 2, 3 x 4 and 7 x 6 there, which the adaptive pool averages or repeats to 6 x 6."""
    check_logits(*transcription("alexnet_bn", size))


@pytest.mark.parametrize("name", TRANSCRIPTIONS)
def test_dropout_is_where_the_transcription_has_it(name: str) -> None:
    """In training mode, where both draw from PyTorch's global generator in the order of their layers."""
    arch, theirs, images = transcription(name)
    ours = carry_over(theirs, arch)
    logits = []
    for model in (theirs, ours):
        torch.manual_seed(0)
        with torch.no_grad():
            logits.append(model.train()(images).numpy())
    assert relative(logits[1], logits[0]) < 1e-12


@pytest.mark.parametrize("name", [name for name in ARCHS if name != "lenet"])
def test_flax_dropout_has_the_rates_of_the_arch(name: str) -> None:
    """Each dropout's output against its input: zeros at its rate, and the rest scaled up."""
    arch = narrow(ARCHS[name], conv=1, dense=256)
    arch = replace(arch, image=(arch.smallest(), arch.smallest(), arch.image[2]))
    model, rng = flax_impl.build(arch), np.random.default_rng(0)
    images = rng.standard_normal((8, *arch.image), np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    # Positive weights, so that no ReLU makes zeros.
    positive = jax.tree.map(lambda leaf: 0.1 * rng.random(leaf.shape, np.float32), shapes)

    def run(variables: Any) -> Any:
        rngs = {"dropout": jax.random.key(1)}
        _, captured = model.apply(
            variables, images, train=True, rngs=rngs, mutable=["batch_stats"], capture_intermediates=True
        )
        return captured["intermediates"]

    outputs = jax.jit(run)(positive)
    names = [layer for layer, _ in arch.named_dense()]
    for before, layer, spec in zip([None, *names], names, arch.dense, strict=False):
        dropped = np.asarray(outputs[layer.replace("fc", "drop")]["__call__"][0])
        assert np.mean(dropped == 0) == pytest.approx(spec.dropout, abs=0.1 if spec.dropout else 0), layer
        if before:
            inputs, kept = np.asarray(outputs[before]["__call__"][0]), dropped != 0
            np.testing.assert_allclose(dropped[kept], inputs[kept] / (1 - spec.dropout), rtol=1e-6)


def wrong(arch: Arch, number: int, **fields: Any) -> Arch:
    """`arch` with some fields of one convolution changed."""
    convs = list(arch.convs)
    convs[number - 1] = replace(convs[number - 1], **fields)
    return replace(arch, convs=tuple(convs))


POOL = MaxPool(3, 2)
PAPER = LocalResponseNorm()


@pytest.mark.parametrize(
    ("name", "number", "fields"),
    [
        pytest.param("alexnet_2012", 1, {"after": (POOL, PAPER)}, id="pool before norm"),
        pytest.param("alexnet_2012", 1, {"after": (replace(PAPER, alpha=1e-4 / 5), POOL)}, id="alpha divided"),
        pytest.param("alexnet_2012", 2, {"after": (replace(PAPER, k=1), POOL)}, id="k 1"),
        pytest.param("alexnet_lrn", 5, {"after": (POOL, replace(PAPER, k=1))}, id="alpha not divided"),
        pytest.param("alexnet_lrn", 2, {"after": (POOL, LocalResponseNorm(3, 1, 1e-4 / 5))}, id="window"),
        pytest.param("alexnet_bn", 3, {"norm": BatchNorm(eps=1e-3)}, id="epsilon"),
        pytest.param("alexnet_cifar", 5, {"after": (MaxPool(3, 2, 1),)}, id="pool of 3"),
    ],
)
def test_a_wrong_architecture_gives_other_logits(name: str, number: int, fields: dict[str, Any]) -> None:
    """Faults that leave every shape as it was, so that only values can tell."""
    arch, theirs, images = transcription(name)
    planted = carry_over(theirs, wrong(arch, number, **fields))
    with torch.inference_mode():
        assert relative(planted(images).numpy(), theirs(images).numpy()) > 1e-9


def _sizes(name: str) -> list[Arch]:
    arch = narrow(ARCHS[name], conv=1, dense=HIDDEN)
    return [arch, arch.adapt(height=arch.smallest(), width=arch.smallest() + 13)]


SIZES = [pytest.param(arch, id=f"{name}-{arch.image[0]}x{arch.image[1]}") for name in ARCHS for arch in _sizes(name)]


@pytest.mark.parametrize("arch", SIZES)
def test_layer_sizes_are_those_of_torch(arch: Arch) -> None:
    found: list[tuple[int, ...]] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.append(tuple(output.shape[1:]))

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.LocalResponseNorm, nn.AdaptiveAvgPool2d, nn.Linear)
    model = torch_impl.build(arch).eval()
    for module in model.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(note)
    height, width, channels = arch.image
    with torch.inference_mode():
        model(torch.zeros(1, channels, height, width))
    expected = [(f,) if row.kind == "dense" else (f, h, w) for row in arch.layers() for h, w, f in [row.output]]
    assert found == expected


@pytest.mark.parametrize("arch", SIZES)
def test_layer_sizes_are_those_of_flax(arch: Arch) -> None:
    """Pools and response norms are functions there: the last one's size is its block's, the pool's is fc6's input."""
    model = flax_impl.build(arch)

    def run() -> Any:
        _, captured = model.init_with_output(
            jax.random.key(0), jnp.zeros((1, *arch.image)), train=False, capture_intermediates=True
        )
        return captured["intermediates"]

    outputs = jax.eval_shape(run)
    rows = {row.name: row.output for row in arch.layers()}
    for number, (name, spec) in enumerate(arch.named_convs(), 1):
        block = [row.output for row in arch.layers() if row.name.endswith(str(number)) and row.kind != "dense"]
        assert outputs[name]["conv"]["__call__"][0].shape[1:] == rows[name] == block[0]
        assert outputs[name]["__call__"][0].shape[1:] == block[-1]
        assert ("norm" in outputs[name]) == (f"norm{number}" in rows) == (spec.norm is not None)
    first = f"drop{len(arch.convs) + 1}"
    assert outputs[first]["__call__"][0].shape[1:] == (prod(arch.feature_size),)
    for name, _ in arch.named_dense():
        assert (1, 1, *outputs[name]["__call__"][0].shape[1:]) == rows[name]


@pytest.mark.parametrize("name", ARCHS)
def test_smallest_image_is_the_smallest(name: str) -> None:
    """Every side from 1 up, through the transcription's own convolutions and pools."""
    arch = ARCHS[name]
    with torch.device("meta"):
        model = TRANSCRIPTIONS[name]()
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.MaxPool2d)]
        model.eval()

        def works(side: int) -> bool:
            x = torch.empty(1, arch.image[2], side, side)
            try:
                for layer in layers:
                    x = layer(x)
            except RuntimeError:
                return False
            return True

        assert [works(side) for side in range(1, 2 * arch.smallest())] == [
            side >= arch.smallest() for side in range(1, 2 * arch.smallest())
        ]
    arch.adapt(height=arch.smallest(), width=arch.smallest())
    for side in range(1, arch.smallest()):
        with pytest.raises(UserError, match=rf"smallest size that works is {arch.smallest()}x{arch.smallest()}\."):
            arch.adapt(height=side, width=side)


PADDED = {  # what no named architecture with its own image has: padded pools, and padding as wide as the kernel
    "pools": (ConvSpec(4, kernel=3, stride=2, after=(MaxPool(5, 2, padding=2), MaxPool(4, 3, padding=1))),),
    "kernels": (ConvSpec(4, kernel=4, stride=3), ConvSpec(4, kernel=1, padding=1), ConvSpec(4, kernel=2, padding=1)),
}


@pytest.mark.parametrize("name", PADDED)
def test_smallest_image_counts_the_padding(name: str) -> None:
    convs, channels, layers = PADDED[name], 3, list[nn.Module]()
    for conv in convs:
        layers.append(nn.Conv2d(channels, conv.features, conv.kernel, conv.stride, conv.padding, device="meta"))
        layers += [nn.MaxPool2d(p.size, p.stride, p.padding) for p in conv.after if isinstance(p, MaxPool)]
        channels = conv.features
    arch, model = Arch(name, (64, 64, 3), convs, (DenseSpec(3),)), nn.Sequential(*layers)
    model(torch.empty(1, 3, arch.smallest(), arch.smallest(), device="meta"))
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size|too small"):
        model(torch.empty(1, 3, arch.smallest() - 1, arch.smallest() - 1, device="meta"))


@pytest.mark.parametrize(
    ("name", "height", "width", "message"),
    [
        ("alexnet", 62, 62, "image of 62x62 is too small: pool5 needs 3x3 and receives 2x2. .* 63x63"),
        ("alexnet", 224, 26, "image of 224x26 is too small: pool2 needs 3x3 and receives 27x2. .* 63x63"),
        ("alexnet", 6, 6, "image of 6x6 is too small: conv1 needs 7x7 and receives 6x6. .* 63x63"),
        ("alexnet", 32, 32, "image of 32x32 is too small: pool5 needs 3x3 and receives 1x1. .* 63x63"),
        ("alexnet_2012", 10, 300, "image of 10x300 is too small: conv1 needs 11x11 and receives 10x300. .* 67x67"),
        ("alexnet_fashion", 28, 28, "image of 28x28 is too small: pool2 needs 3x3 and receives 2x2. .* 67x67"),
        ("alexnet_cifar", 8, 8, "image of 8x8 is too small: pool5 needs 2x2 and receives 1x1. .* 15x15"),
        ("lenet", 9, 28, "image of 9x28 is too small: conv2 needs 3x3 and receives 2x12. .* 12x12"),
    ],
)
def test_too_small_an_image_is_refused(name: str, height: int, width: int, message: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: an {message}"):
        ARCHS[name].adapt(height=height, width=width)


def _forward(framework: str, arch: Arch, height: int, width: int, channels: int, make: str = "build") -> None:
    """Trace one image through the network that `torch_impl.MAKE(arch)` or `flax_impl.MAKE(arch)` gives."""
    if framework == "torch":
        with torch.device("meta"):
            getattr(torch_impl, make)(arch)(torch.empty(1, channels, height, width))
    else:
        images = jnp.zeros((1, height, width, channels))
        jax.eval_shape(lambda: getattr(flax_impl, make)(arch).init(jax.random.key(0), images, train=False))


@pytest.mark.parametrize("framework", ["torch", "flax"])
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("alexnet", (224, 224, 1), "the input has 1 channels, the network takes 3"),
        ("alexnet", (64, 40, 3), "an image of 64x40 is too small: pool5 needs 3x3 and receives 3x1"),
        ("alexnet_2012", (224, 224, 3), "the input is 224x224 and there is no adaptive pool.* takes 227x227 only"),
        ("alexnet_cifar", (28, 28, 3), "the input is 28x28 and there is no adaptive pool.* takes 32x32 only"),
        ("lenet", (32, 32, 1), "the input is 32x32 and there is no adaptive pool.* takes 28x28 only"),
    ],
)
def test_models_refuse_a_wrong_input(framework: str, name: str, size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _forward(framework, ARCHS[name], *size)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_adaptive_pool_takes_other_sizes(framework: str) -> None:
    _forward(framework, narrow(ARCHS["alexnet"], conv=1, dense=HIDDEN), 63, 120, 3)


@pytest.mark.parametrize("features", [96, 97])
def test_groups_must_divide(features: int) -> None:
    arch = wrong(ARCHS["alexnet_2012"], 1, features=96)
    groups = 2 if features % 2 else 5
    with pytest.raises(UserError, match=rf"conv2 cannot split {features} input and 256 output .* {groups} groups"):
        replace(arch, convs=(replace(arch.convs[0], features=features), replace(arch.convs[1], groups=groups)))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_must_be_a_rate(rate: float) -> None:
    with pytest.raises(UserError, match=f"dropout before fc4 is {rate}"):
        replace(ARCHS["lenet"], dense=(DenseSpec(8), DenseSpec(2, dropout=rate)))


@pytest.mark.parametrize("field", ["features", "kernel", "stride", "groups"])
def test_counts_must_be_positive(field: str) -> None:
    with pytest.raises(UserError, match=f"conv1.*{field}"):
        wrong(ARCHS["lenet"], 1, **{field: 0})


@pytest.mark.parametrize("framework", ["torch", "flax"])
@pytest.mark.parametrize(("kind", "name", "depth"), [("AlexNet", "lenet", "2 and 2"), ("LeNet", "alexnet", "5 and 3")])
def test_models_refuse_another_depth(framework: str, kind: str, name: str, depth: str) -> None:
    with pytest.raises(UserError, match=f"^{kind} takes . convolutions and . dense layers; {name} has {depth}"):
        _forward(framework, ARCHS[name], *ARCHS[name].image, kind)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_build_refuses_a_depth_that_no_model_has(framework: str) -> None:
    arch = replace(ARCHS["lenet"], name="mine", convs=(ConvSpec(4, 3), ConvSpec(4, 3), ConvSpec(4, 3)))
    with pytest.raises(UserError, match="mine has 3 and 2"):
        _forward(framework, arch, *arch.image)


@pytest.mark.parametrize("find", [get_arch, torch_impl.create, flax_impl.create])
def test_unknown_name_gives_the_nearest(find: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match=r"no architecture 'alexnet_cifr'\. Did you mean 'alexnet_cifar'\? Known: "):
        find("alexnet_cifr")


@pytest.mark.parametrize("name", ARCHS)
def test_json_round_trip(name: str) -> None:
    arch = ARCHS[name]
    assert from_dict(json.loads(json.dumps(to_dict(arch))), Arch, "a file") == arch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "a file does not describe a Arch: .*colour"),
        ({"image": None}, "a file does not describe a Arch: .*image"),
        ({"convs": [{"features": 3, "kernal": 3}]}, "a file does not describe a Arch: .*kern[ae]l"),
    ],
)
def test_json_is_read_strictly(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(to_dict(ARCHS["lenet"]) | change, Arch, "a file")


def test_a_missing_field_is_named() -> None:
    fields = to_dict(ARCHS["lenet"])
    del fields["dense"]
    with pytest.raises(UserError, match=r"a file does not describe a Arch: .*dense"):
        from_dict(fields, Arch, "a file")


def test_the_classes_can_be_changed() -> None:
    arch = ARCHS["alexnet"].adapt(classes=10)
    assert arch.classes == 10
    assert arch.parameters == PARAMETERS["alexnet"] - 990 * 4097
    assert arch.convs == ARCHS["alexnet"].convs
