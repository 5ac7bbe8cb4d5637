"""Every architecture, initialisation and default against its source, field by field.

Both frameworks are built from one `Arch`, so no comparison between them can see a wrong one. The tables below are read
off the sources that they name, not off `common`, and hold every field: one that is changed, dropped or added fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import field, make_dataclass, replace
from typing import Any

import optax
import pytest
import torch
from torch import nn
from torchvision.models import AlexNet_Weights
from torchvision.models import alexnet as torchvision_alexnet

from common.arch.initializers import INITS, Init
from common.arch.spec import Arch, AvgPool, BatchNorm, ConvSpec, DenseSpec, LocalResponseNorm, MaxPool
from common.arch.zoo import ABLATIONS, ARCHS
from common.recipes.spec import FineTune, LossScale, Mix, Optimizer, Preprocess, Recipe, Schedule
from parity_tests.published import KIND, Table, defaults, differences, faults, leaves, unnamed

Row = dict[str, Any]

# What stands behind a block's activation. Each gives every field of its class.


def max_pool(size: int, stride: int, padding: int) -> Row:
    return {KIND: "MaxPool", "size": size, "stride": stride, "padding": padding}


def avg_pool(window: int, stride: int) -> Row:
    return {KIND: "AvgPool", "window": window, "stride": stride}


def response_norm(size: int, k: float, alpha: float, beta: float) -> Row:
    return {KIND: "LocalResponseNorm", "size": size, "k": k, "alpha": alpha, "beta": beta}


OVERLAPPING = max_pool(3, 2, 0)  # 2012 paper, section 3.4: z 3, s 2
PLAIN = max_pool(2, 2, 0)  # nn.MaxPool2d(2)
PAPER_NORM = response_norm(5, 2, 0.0001, 0.75)  # 2012 paper, section 3.3: n 5, k 2, alpha 1e-4, beta 0.75
TORCH_NORM = response_norm(5, 1, 0.00002, 0.75)  # nn.LocalResponseNorm(5): its alpha of 1e-4 is divided by the size
BATCH_NORM = {"momentum": 0.1, "eps": 0.00001}  # nn.BatchNorm2d's defaults

# A line for each convolution: features, kernel, stride, padding, groups; then what follows.
Conv = tuple[int, int, int, int, int, tuple[Row, ...]]


def network(
    image: tuple[int, int, int],
    convs: Sequence[Conv],
    dense: Sequence[tuple[int, float]],
    adaptive_pool: int | None,
    activation: str,
    norm: Row | None = None,
) -> Row:
    """Every field of an `Arch` but its name; a convolution before a batch norm has no bias."""
    blocks = tuple(
        {
            KIND: "ConvSpec",
            "features": features,
            "kernel": kernel,
            "stride": stride,
            "padding": padding,
            "groups": groups,
            "bias": norm is None,
            "norm": norm,
            "after": after,
        }
        for features, kernel, stride, padding, groups, after in convs
    )
    layers = tuple({KIND: "DenseSpec", "features": features, "dropout": dropout} for features, dropout in dense)
    return {
        "image": image,
        "convs": blocks,
        "dense": layers,
        "adaptive_pool": adaptive_pool,
        "activation": activation,
    }


def torchvision_network(after: tuple[Row, ...], norm: Row | None) -> Row:
    """torchvision/models/alexnet.py: the features of arXiv:1404.5997; dropout stands before both hidden layers."""
    return network(
        (224, 224, 3),
        [
            (64, 11, 4, 2, 1, after),
            (192, 5, 1, 2, 1, after),
            (384, 3, 1, 1, 1, ()),
            (256, 3, 1, 1, 1, ()),
            (256, 3, 1, 1, 1, after),
        ],
        [(4096, 0.5), (4096, 0.5), (1000, 0)],
        6,
        "relu",
        norm,
    )


def cifar_network(
    after: tuple[Row, ...] = (PLAIN,), activation: str = "relu", rate: float = 0.5, norm: Row | None = None
) -> Row:
    """The CIFAR tutorials' features and classifier of 256 * 2 * 2; their nn.Dropout() has a rate of 0.5."""
    return network(
        (32, 32, 3),
        [
            (64, 3, 2, 1, 1, after),
            (192, 3, 1, 1, 1, after),
            (384, 3, 1, 1, 1, ()),
            (256, 3, 1, 1, 1, ()),
            (256, 3, 1, 1, 1, after),
        ],
        [(4096, rate), (4096, rate), (10, 0)],
        None,
        activation,
        norm,
    )


# By name: the source, and what it gives.
NETWORKS: dict[str, tuple[str, Row]] = {
    "alexnet": ("torchvision, models/alexnet.py", torchvision_network((OVERLAPPING,), None)),
    "alexnet_2012": (
        "Krizhevsky et al., NIPS 2012, figure 2, sections 3.1 to 3.5 and 4.2 (dropout on the hidden layers' outputs); "
        "55 x 55 outputs need 227 pixels",
        network(
            (227, 227, 3),
            [
                (96, 11, 4, 0, 1, (PAPER_NORM, OVERLAPPING)),
                (256, 5, 1, 2, 2, (PAPER_NORM, OVERLAPPING)),
                (384, 3, 1, 1, 1, ()),
                (384, 3, 1, 1, 2, ()),
                (256, 3, 1, 1, 2, (OVERLAPPING,)),
            ],
            [(4096, 0), (4096, 0.5), (1000, 0.5)],
            None,
            "relu",
        ),
    ),
    "alexnet_lrn": (
        "torchvision, models/alexnet.py, with torch.nn.LocalResponseNorm(5) behind each pool",
        torchvision_network((OVERLAPPING, TORCH_NORM), None),
    ),
    "alexnet_bn": (
        "torchvision, models/alexnet.py, with torch.nn.BatchNorm2d after each convolution (arXiv:1502.03167, 3.2)",
        torchvision_network((OVERLAPPING,), BATCH_NORM),
    ),
    "alexnet_fashion": (
        "Dive into Deep Learning, Gluon version, chapter_convolutional-modern/alexnet.md",
        network(
            (224, 224, 1),
            [
                (96, 11, 4, 0, 1, (OVERLAPPING,)),
                (256, 5, 1, 2, 1, (OVERLAPPING,)),
                (384, 3, 1, 1, 1, ()),
                (384, 3, 1, 1, 1, ()),
                (256, 3, 1, 1, 1, (OVERLAPPING,)),
            ],
            [(4096, 0), (4096, 0.5), (10, 0.5)],
            None,
            "relu",
        ),
    ),
    "alexnet_cifar": ("the CIFAR tutorials' classifier of 256 * 2 * 2", cifar_network()),
    "lenet": (
        "the tutorials' LeNet of 20 and 50 kernels, after LeCun et al., Proc. IEEE 1998",
        network(
            (28, 28, 1), [(20, 5, 1, 0, 1, (PLAIN,)), (50, 3, 1, 0, 1, (PLAIN,))], [(128, 0), (10, 0)], None, "relu"
        ),
    ),
    "alexnet_cifar_tanh": ("ours: alexnet_cifar with tanh (2012 paper, 3.1)", cifar_network(activation="tanh")),
    "alexnet_cifar_sigmoid": (
        "ours: alexnet_cifar with the logistic function (2012 paper, 3.1)",
        cifar_network(activation="sigmoid"),
    ),
    "alexnet_cifar_overlap": (
        "ours: alexnet_cifar with z 3, s 2 (2012 paper, 3.4), padded to the same sizes",
        cifar_network((max_pool(3, 2, 1),)),
    ),
    "alexnet_cifar_avgpool": ("ours: alexnet_cifar with nn.AvgPool2d(2)", cifar_network((avg_pool(2, 2),))),
    "alexnet_cifar_lrn": (
        "ours: alexnet_cifar with the response norm of the 2012 paper, 3.3, before each pool",
        cifar_network((PAPER_NORM, PLAIN)),
    ),
    "alexnet_cifar_bn": ("ours: alexnet_cifar with torch.nn.BatchNorm2d", cifar_network(norm=BATCH_NORM)),
    "alexnet_cifar_nodropout": ("ours: alexnet_cifar without dropout (2012 paper, 4.2)", cifar_network(rate=0)),
    "alexnet_cifar_best": (
        "ours: the 2012 paper's widths on 32 x 32, batch norm, 4 x 4 into fc6; no result measured with it yet",
        network(
            (32, 32, 3),
            [
                (96, 3, 1, 1, 1, (PLAIN,)),
                (256, 3, 1, 1, 1, (PLAIN,)),
                (384, 3, 1, 1, 1, ()),
                (384, 3, 1, 1, 1, ()),
                (256, 3, 1, 1, 1, (PLAIN,)),
            ],
            [(1024, 0.3), (1024, 0.3), (10, 0)],
            None,
            "relu",
            BATCH_NORM,
        ),
    ),
}


def table_of(name: str) -> Table:
    source, row = NETWORKS[name]
    return {source: {"name": name, **leaves(row)}}


def test_no_architecture_is_without_a_table() -> None:
    assert NETWORKS.keys() == (ARCHS | ABLATIONS).keys()
    assert not ARCHS.keys() & ABLATIONS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_field_of_an_architecture_is_its_sources(name: str) -> None:
    problems = differences(name, leaves((ARCHS | ABLATIONS)[name]), table_of(name))
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_change_of_any_field_is_named(name: str) -> None:
    arch = (ARCHS | ABLATIONS)[name]
    assert not unnamed(name, arch, table_of(name))
    assert {path for path, _ in faults(arch)} == {path for path in leaves(arch) if not path.endswith(f".{KIND}")}


def _with_convs(arch: Arch, *convs: Any) -> Arch:
    wrong = replace(arch)
    object.__setattr__(wrong, "convs", convs)
    return wrong


def test_a_change_of_the_layers_is_named() -> None:
    arch = ARCHS["alexnet"]
    first, *rest = arch.convs
    pool = first.after[0]
    cases: list[tuple[str, Arch]] = [
        ("convs[4].features is gone", _with_convs(arch, *arch.convs[:4])),
        ("convs[5].features is 256, and no source", _with_convs(arch, *arch.convs, arch.convs[4])),
        ("convs[0].after is ()", _with_convs(arch, replace(first, after=()), *rest)),
        ("convs[0].after[1].kind is 'MaxPool'", _with_convs(arch, replace(first, after=(pool, pool)), *rest)),
        ("convs[0].after[0].kind is 'AvgPool'", _with_convs(arch, replace(first, after=(AvgPool(3, 2),)), *rest)),
        ("convs[0].norm.eps is 1e-05, and", _with_convs(arch, replace(first, norm=BatchNorm()), *rest)),
    ]
    for expected, wrong in cases:
        problems = differences("alexnet", leaves(wrong), table_of("alexnet"))
        assert any(problem.startswith(f"alexnet: {expected}") for problem in problems), (expected, problems)


def test_a_field_that_no_table_has_is_named() -> None:
    wider = make_dataclass("Wider", [("dilation", int, field(default=1))], bases=(ConvSpec,), frozen=True)
    arch = ARCHS["lenet"]
    convs = [wider(**vars(conv)) for conv in arch.convs]
    problems = differences("lenet", leaves(_with_convs(arch, *convs)), table_of("lenet"))
    assert "lenet: convs[0].dilation is 1, and no source in the table says what it must be." in problems
    tagged = make_dataclass("Tagged", [("tied", bool, field(default=False))], bases=(Arch,), frozen=True)
    problems = differences("lenet", leaves(tagged(**vars(arch))), table_of("lenet"))
    assert problems == ["lenet: tied is False, and no source in the table says what it must be."]


def test_true_is_no_number() -> None:
    table: Table = {"a source": {"flip": True, "place": (0, 1)}}
    assert differences("one", {"flip": True, "place": (0.0, 1)}, table) == []
    assert differences("one", {"flip": 1, "place": (0, True)}, table) == [
        "one: flip is 1; a source: True.",
        "one: place is (0, True); a source: (0, 1).",
    ]


def test_the_tables_alexnet_is_torchvisions_own() -> None:
    """The transcription itself, against the layers that torchvision builds."""
    with torch.device("meta"):
        layers = list(torchvision_alexnet().modules())
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    rows = NETWORKS["alexnet"][1]["convs"]
    for conv, row in zip(convs, rows, strict=True):
        assert (conv.out_channels, conv.groups, conv.bias is not None) == (row["features"], row["groups"], row["bias"])
        sizes = tuple((row[name],) * 2 for name in ("kernel", "stride", "padding"))
        assert (conv.kernel_size, conv.stride, conv.padding) == sizes
    pools = [layer for layer in layers if isinstance(layer, nn.MaxPool2d)]
    for pool, after in zip(pools, (after for row in rows for after in row["after"]), strict=True):
        assert (pool.kernel_size, pool.stride, pool.padding) == (after["size"], after["stride"], after["padding"])
    dense = NETWORKS["alexnet"][1]["dense"]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [
        row["features"] for row in dense
    ]
    rates = [layer.p for layer in layers if isinstance(layer, nn.Dropout)]
    assert rates == [row["dropout"] for row in dense if row["dropout"]]
    assert isinstance(layers[-1], nn.Linear)
    assert AlexNet_Weights.IMAGENET1K_V1.meta["num_params"] == ARCHS["alexnet"].parameters


# The schemes by which fresh weights are drawn. `std` counts for `normal` alone; elsewhere it is as it comes.
SCHEMES: dict[str, Table] = {
    "torch": {
        "torch.nn.Conv2d and torch.nn.Linear, reset_parameters()": {
            "conv": "fan_in_uniform",
            "dense": "fan_in_uniform",
            "bias": "fan_in_uniform",
            "ones": (),
        },
        "not used": {"std": 0.01},
    },
    "normal_2012": {
        "Krizhevsky et al., NIPS 2012, section 5": {
            "conv": "normal",
            "dense": "normal",
            "std": 0.01,
            "bias": "zeros",
            "ones": ("conv2", "conv4", "conv5", "fc6", "fc7"),
        },
    },
    "kaiming": {
        'the CIFAR tutorials: kaiming_normal_(mode="fan_out"), normal_(0, 0.01), constant_(0)': {
            "conv": "he_fan_out",
            "dense": "normal",
            "std": 0.01,
            "bias": "zeros",
            "ones": (),
        },
    },
    "he": {
        "He et al., arXiv:1502.01852, equation 10 and section 2.2: b = 0": {
            "conv": "he_fan_in",
            "dense": "he_fan_in",
            "bias": "zeros",
            "ones": (),
        },
        "not used": {"std": 0.01},
    },
    "xavier": {
        "mxnet.initializer.Xavier(): uniform, magnitude 3, averaged fans; gluon's biases start at zero": {
            "conv": "xavier_uniform",
            "dense": "xavier_uniform",
            "bias": "zeros",
            "ones": (),
        },
        "not used": {"std": 0.01},
    },
}


def test_no_initialisation_is_without_a_table() -> None:
    assert SCHEMES.keys() == INITS.keys()


@pytest.mark.parametrize("name", SCHEMES)
def test_every_field_of_an_initialisation_is_its_sources(name: str) -> None:
    problems = differences(name, leaves(INITS[name]), SCHEMES[name])
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_change_of_any_field_of_an_initialisation_is_named(name: str) -> None:
    assert not unnamed(name, INITS[name], SCHEMES[name])


# What a field is when nobody sets it. "off" is a technique that does nothing.
REQUIRED, OFF = "somebody must say it", "off, as long as nobody asks for it"
BY_DEFAULT: dict[type, Table] = {
    Optimizer: {
        "the 2012 paper's rate, section 5": {"lr": 0.01},
        "Kingma and Ba, arXiv:1412.6980, section 2": {"beta1": 0.9, "beta2": 0.999, "eps": 0.00000001},
        "torch.optim.SGD": {"name": "sgd", "momentum": 0, "nesterov": False, "weight_decay": 0, "decay_biases": True},
        OFF: {"clip_norm": 0},
    },
    Schedule: {
        "torch.optim.lr_scheduler.MultiStepLR": {"name": "step", "gamma": 0.1},
        "arXiv:1608.03983, and CosineAnnealingLR": {"final": 0},
        OFF: {"milestones": (), "warmup_epochs": 0},
    },
    LossScale: {"torch.amp.GradScaler": {"initial": 2**16, "growth": 2, "backoff": 0.5, "interval": 2000}},
    Mix: {OFF: {"mixup": 0, "cutmix": 0}},
    FineTune: {OFF: {"head": "all", "freeze_epochs": 0, "backbone_lr": 1}},
    Preprocess: {
        OFF: {
            "host_resize": None,
            "random_resized_crop": False,
            "pad": 0,
            "crop": None,
            "flip": False,
            "resize": None,
            "brightness": 0,
            "contrast": 0,
            "saturation": 0,
            "pca_std": 0,
            "mean": (0,),
            "std": (1,),
        },
    },
    Recipe: {
        REQUIRED: dict.fromkeys(("name", "dataset", "arch", "init", "epochs", "batch_size"), "required"),
        OFF: {
            "accumulate": 1,
            "label_smoothing": 0,
            "class_weights": "equal",
            "pretrained": "no",
            "val_fraction": 0,
            "patience": 0,
            "precision": "float32",
            "seed": 0,
        },
    },
    MaxPool: {REQUIRED: {"size": "required", "stride": "required"}, "torch.nn.MaxPool2d": {"padding": 0}},
    AvgPool: {REQUIRED: {"window": "required", "stride": "required"}},
    LocalResponseNorm: {"2012 paper, section 3.3": {"size": 5, "k": 2, "alpha": 0.0001, "beta": 0.75}},
    BatchNorm: {"torch.nn.BatchNorm2d": BATCH_NORM},
    ConvSpec: {
        REQUIRED: {"features": "required", "kernel": "required"},
        "torch.nn.Conv2d": {"stride": 1, "padding": 0, "groups": 1, "bias": True},
        OFF: {"norm": None, "after": ()},
    },
    DenseSpec: {REQUIRED: {"features": "required"}, OFF: {"dropout": 0}},
    Arch: {
        REQUIRED: dict.fromkeys(("name", "image", "convs", "dense"), "required"),
        "2012 paper, section 3.1": {"activation": "relu"},
        OFF: {"adaptive_pool": None},
    },
    Init: {
        REQUIRED: {"conv": "required", "dense": "required"},
        "2012 paper, section 5": {"std": 0.01},
        OFF: {"bias": "zeros", "ones": ()},
    },
}
NESTED = {"optimizer": Optimizer, "schedule": Schedule, "preprocess": Preprocess, "mix": Mix}
NESTED |= {"loss_scale": LossScale, "finetune": FineTune}


def whole(kind: type) -> Table:
    """A recipe's own fields, and those of its parts."""
    if kind is not Recipe:
        return BY_DEFAULT[kind]
    parts = {
        f"{part.__name__}, {source}": {f"{name}.{key}": value for key, value in values.items()}
        for name, part in NESTED.items()
        for source, values in BY_DEFAULT[part].items()
    }
    return {**BY_DEFAULT[Recipe], **parts}


@pytest.mark.parametrize("kind", BY_DEFAULT, ids=lambda kind: kind.__name__)
def test_every_default_is_its_sources(kind: type) -> None:
    problems = differences(kind.__name__, defaults(kind), whole(kind))
    assert not problems, "\n".join(problems)
    assert AvgPool.padding == 0  # torch.nn.AvgPool2d's; a constant of the class, no field


def default_of(function: Callable[..., Any], name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def test_the_tables_defaults_are_the_frameworks_own() -> None:
    """What the installed frameworks themselves take, wherever the table names them."""
    scaler = torch.amp.GradScaler
    given = {name: default_of(scaler, f"{name}_factor") for name in ("growth", "backoff")}
    given |= {"initial": default_of(scaler, "init_scale"), "interval": default_of(scaler, "growth_interval")}
    assert BY_DEFAULT[LossScale]["torch.amp.GradScaler"] == given
    adam = BY_DEFAULT[Optimizer]["Kingma and Ba, arXiv:1412.6980, section 2"]
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        assert (*default_of(kind, "betas"), default_of(kind, "eps")) == tuple(adam.values())
    for make in (optax.adam, optax.adamw):
        assert [default_of(make, name) for name in ("b1", "b2", "eps")] == list(adam.values())
    for name in ("momentum", "nesterov", "weight_decay"):
        assert BY_DEFAULT[Optimizer]["torch.optim.SGD"][name] == default_of(torch.optim.SGD, name)
    steps, cosine = torch.optim.lr_scheduler.MultiStepLR, torch.optim.lr_scheduler.CosineAnnealingLR
    assert (default_of(steps, "gamma"), default_of(cosine, "eta_min")) == (0.1, 0)
    norm, response = nn.BatchNorm2d(1), nn.LocalResponseNorm(5)
    assert {"momentum": norm.momentum, "eps": norm.eps} == BATCH_NORM
    divided = response_norm(response.size, response.k, response.alpha / response.size, response.beta)
    assert divided == {**TORCH_NORM, "alpha": pytest.approx(TORCH_NORM["alpha"], rel=1e-15)}
