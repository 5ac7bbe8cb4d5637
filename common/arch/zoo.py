"""The named architectures: every number with its source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from common.arch.spec import Arch, AvgPool, BatchNorm, ConvSpec, DenseSpec, LocalResponseNorm, MaxPool
from common.errors import lookup

POOL3 = MaxPool(size=3, stride=2)  # overlapping pooling, section 3.4 of the 2012 paper
POOL2 = MaxPool(size=2, stride=2)
LRN_2012 = LocalResponseNorm()  # section 3.3: n 5, k 2, alpha 1e-4, beta 0.75
LRN_TORCH = LocalResponseNorm(size=5, k=1.0, alpha=1e-4 / 5)  # torch.nn.LocalResponseNorm(5), alpha not yet divided
# Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997, as torchvision
# writes it (torchvision/models/alexnet.py). Dropout comes before fc6 and fc7, and conv4 has 256 features.
ALEXNET = Arch(
    name="alexnet",
    image=(224, 224, 3),
    convs=(
        ConvSpec(64, kernel=11, stride=4, padding=2, after=(POOL3,)),
        ConvSpec(192, kernel=5, padding=2, after=(POOL3,)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1, after=(POOL3,)),
    ),
    dense=(DenseSpec(4096, dropout=0.5), DenseSpec(4096, dropout=0.5), DenseSpec(1000)),
    adaptive_pool=6,
)
# Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012,
# sections 3.3 to 3.5 and figure 2. The text says 224 pixels; 55 x 55 outputs of conv1 need 227.
# Dropout acts on the outputs of the two hidden dense layers (section 4.2).
ALEXNET_2012 = Arch(
    name="alexnet_2012",
    image=(227, 227, 3),
    convs=(
        ConvSpec(96, kernel=11, stride=4, after=(LRN_2012, POOL3)),
        ConvSpec(256, kernel=5, padding=2, groups=2, after=(LRN_2012, POOL3)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(384, kernel=3, padding=1, groups=2),
        ConvSpec(256, kernel=3, padding=1, groups=2, after=(POOL3,)),
    ),
    dense=(DenseSpec(4096), DenseSpec(4096, dropout=0.5), DenseSpec(1000, dropout=0.5)),
)
# `alexnet` with torch.nn.LocalResponseNorm(5) after each of the three pools, as tutorials add it.
ALEXNET_LRN = replace(
    ALEXNET,
    name="alexnet_lrn",
    convs=tuple(replace(c, after=(*c.after, LRN_TORCH)) if c.after else c for c in ALEXNET.convs),
)
# `alexnet` with batch norm in every block; Ioffe and Szegedy, arXiv:1502.03167, section 3.2: the shift makes the
# convolution's bias redundant.
ALEXNET_BN = replace(
    ALEXNET,
    name="alexnet_bn",
    convs=tuple(replace(c, bias=False, norm=BatchNorm()) for c in ALEXNET.convs),
)
# Dive into Deep Learning, section "Deep Convolutional Neural Networks (AlexNet)", the Gluon version: one channel,
# conv1 without padding, so 5 x 5 x 256 reach fc6.
ALEXNET_FASHION = Arch(
    name="alexnet_fashion",
    image=(224, 224, 1),
    convs=(
        ConvSpec(96, kernel=11, stride=4, after=(POOL3,)),
        ConvSpec(256, kernel=5, padding=2, after=(POOL3,)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1, after=(POOL3,)),
    ),
    dense=(DenseSpec(4096), DenseSpec(4096, dropout=0.5), DenseSpec(10, dropout=0.5)),
)
# The network that the CIFAR tutorials' 256 * 2 * 2 classifier belongs to: 3 x 3 kernels, a stride of 2 in conv1 and
# 2 x 2 pools. The 11 x 11 network which they print above it cannot take 32 x 32 pixels.
ALEXNET_CIFAR = Arch(
    name="alexnet_cifar",
    image=(32, 32, 3),
    convs=(
        ConvSpec(64, kernel=3, stride=2, padding=1, after=(POOL2,)),
        ConvSpec(192, kernel=3, padding=1, after=(POOL2,)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1, after=(POOL2,)),
    ),
    dense=(DenseSpec(4096, dropout=0.5), DenseSpec(4096, dropout=0.5), DenseSpec(10)),
)
# The small network that tutorials set beside AlexNet on Fashion-MNIST; after LeCun et al., "Gradient-based learning
# applied to document recognition", Proc. IEEE 1998, with ReLU and max pooling.
LENET = Arch(
    name="lenet",
    image=(28, 28, 1),
    convs=(ConvSpec(20, kernel=5, after=(POOL2,)), ConvSpec(50, kernel=3, after=(POOL2,))),
    dense=(DenseSpec(128), DenseSpec(10)),
)
ARCHS: dict[str, Arch] = {
    arch.name: arch for arch in (ALEXNET, ALEXNET_2012, ALEXNET_LRN, ALEXNET_BN, ALEXNET_FASHION, ALEXNET_CIFAR, LENET)
}


def _ablation(name: str, **changes: Any) -> Arch:
    """`alexnet_cifar` with one thing changed; `after` and `norm` are changed in every block that pools."""
    convs = ALEXNET_CIFAR.convs
    if "after" in changes:
        convs = tuple(replace(conv, after=changes["after"]) if conv.after else conv for conv in convs)
    if "norm" in changes:
        convs = tuple(replace(conv, norm=changes["norm"], bias=False) for conv in convs)
    rest = {key: value for key, value in changes.items() if key not in ("after", "norm")}
    return replace(ALEXNET_CIFAR, name=f"alexnet_cifar_{name}", convs=convs, **rest)


# What the tutorials claim of AlexNet's parts, each against `alexnet_cifar`. `best` is the network of the improved
# recipes: the paper's widths, batch norm, and no stride before the first pool, so that fc6 sees 4 x 4.
ABLATIONS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        _ablation("tanh", activation="tanh"),
        _ablation("sigmoid", activation="sigmoid"),
        _ablation("overlap", after=(MaxPool(size=3, stride=2, padding=1),)),
        _ablation("avgpool", after=(AvgPool(window=2, stride=2),)),
        _ablation("lrn", after=(LRN_2012, POOL2)),
        _ablation("bn", norm=BatchNorm()),
        _ablation("nodropout", dense=tuple(replace(dense, dropout=0.0) for dense in ALEXNET_CIFAR.dense)),
        Arch(
            name="alexnet_cifar_best",
            image=(32, 32, 3),
            convs=(
                ConvSpec(96, kernel=3, padding=1, bias=False, norm=BatchNorm(), after=(POOL2,)),
                ConvSpec(256, kernel=3, padding=1, bias=False, norm=BatchNorm(), after=(POOL2,)),
                ConvSpec(384, kernel=3, padding=1, bias=False, norm=BatchNorm()),
                ConvSpec(384, kernel=3, padding=1, bias=False, norm=BatchNorm()),
                ConvSpec(256, kernel=3, padding=1, bias=False, norm=BatchNorm(), after=(POOL2,)),
            ),
            dense=(DenseSpec(1024, dropout=0.3), DenseSpec(1024, dropout=0.3), DenseSpec(10)),
        ),
    )
}


OWN: dict[str, Arch] = {}  # of recipe files, and of runs that were trained by one, in this process


def get_arch(name: str) -> Arch:
    """Look up a named architecture.

    Raises:
        UserError: there is none of this name; the message names the nearest.
    """
    return lookup(ARCHS | ABLATIONS | OWN, name, "architecture")


def know_arch(arch: Arch) -> None:
    """Let an architecture that a run or a file carries be found by its name, unless that is another's already."""
    if arch.name not in ARCHS | ABLATIONS:
        OWN.setdefault(arch.name, arch)
