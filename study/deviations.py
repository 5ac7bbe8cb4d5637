"""Where every architecture differs from the 2012 paper and from torchvision, field by field, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from common.arch.spec import Arch, AvgPool, BatchNorm, LocalResponseNorm, MaxPool
from common.arch.zoo import ABLATIONS, ARCHS

REFERENCES = {"paper": ARCHS["alexnet_2012"], "torchvision": ARCHS["alexnet"]}
NONE = "no such layer"
TITLES = {"paper": "the 2012 paper", "torchvision": "torchvision's AlexNet"}

ABOUT = {
    "paper": "Krizhevsky, Sutskever, Hinton, “ImageNet classification with deep convolutional neural networks”, NIPS "
    "2012, sections 3.3 to 4.2, as alexnet_2012 transcribes it. The paper's text says 224 pixels; its 55 x 55 outputs "
    "of conv1 need 227, so 227 is what is compared with.",
    "torchvision": "torchvision/models/alexnet.py, after Krizhevsky, “One weird trick for parallelizing convolutional "
    "neural networks”, arXiv:1404.5997, as alexnet transcribes it.",
}

# What an architecture is made from: a difference without a reason of its own has that one's.
BASES = {"alexnet_lrn": "alexnet", "alexnet_bn": "alexnet"} | {
    name: "alexnet_cifar" for name in ABLATIONS if name != "alexnet_cifar_best"
}

_TINY = "The input is 32 x 32: the 11 x 11 kernels with a stride of 4 would leave the last pool 1 x 1 pixel."
_SMALL_POOLS = (
    "2 x 2 pools: conv5's reaches 2 x 2 pixels, which the 256 * 2 * 2 classifier of the CIFAR tutorials takes."
)
_ONE_GPU = "The 2014 network runs on one GPU; the paper's two groups are its two GPUs (section 3.2)."
_NO_LRN = "The 2014 network leaves local response norm out."
_TORCH_DROPOUT = (
    "torchvision drops the inputs of fc6 and fc7, the paper the outputs of fc6 and fc7, before fc7 and fc8."
)
_2014 = "The widths of the 2014 network, figure and text of arXiv:1404.5997."
_PAPER = "As the 2012 paper has it (figure 2)."
_D2L = "As Dive into Deep Learning prints it, Gluon version."
_TEN = "The datasets that it is for have ten classes."
_LENET = "LeNet has two convolutions and two dense layers (LeCun et al. 1998), here with ReLU and max pooling."

# By architecture: pattern of the field, and the reason. The first pattern that fits counts.
REASONS: dict[str, tuple[tuple[str, str], ...]] = {
    "alexnet": (
        ("image", "224, as the paper's text says; a padding of 2 in conv1 makes up for the missing pixels."),
        ("conv1.padding", "Padding 2 lets 224 pixels give 55 x 55 outputs, as 227 do without."),
        ("conv?.groups", _ONE_GPU),
        ("conv?.after", _NO_LRN),
        ("conv?.features", _2014),
        ("fc?.dropout", _TORCH_DROPOUT),
        ("adaptive_pool", "torchvision averages to 6 x 6 so that larger images pass; at 224 it changes nothing."),
    ),
    "alexnet_2012": (
        ("image", "55 x 55 outputs of conv1 without padding need 227 pixels, whatever the paper's text says."),
        ("conv1.padding", "The paper does not pad conv1."),
        ("conv?.groups", "Convolutions 2, 4 and 5 see the half of the channels on their own GPU (section 3.2)."),
        ("conv?.after", "Local response norm after conv1 and conv2, before their pools (sections 3.3 and 3.5)."),
        ("conv?.features", _PAPER),
        ("fc?.dropout", "Dropout acts on the outputs of the first two dense layers (section 4.2), before fc7 and fc8."),
        ("adaptive_pool", "The paper flattens conv5's pool as it is; 227 pixels leave 6 x 6."),
    ),
    "alexnet_lrn": (
        (
            "conv?.after",
            "torch.nn.LocalResponseNorm(5) after each of the three pools, as tutorials add it to torchvision's.",
        ),
    ),
    "alexnet_bn": (
        ("conv?.bias", "Batch norm's shift makes the bias redundant (Ioffe and Szegedy, section 3.2)."),
        ("conv?.norm", "Batch norm in every block is what this variant is for (arXiv:1502.03167)."),
    ),
    "alexnet_fashion": (
        ("image", "One channel, for Fashion-MNIST enlarged to 224 x 224."),
        (
            "conv1.padding",
            "Dive into Deep Learning's Gluon version does not pad conv1, so that 5 x 5 pixels reach fc6.",
        ),
        ("conv?.groups", "Dive into Deep Learning has no groups: one GPU holds the network."),
        ("conv?.after", "Dive into Deep Learning leaves local response norm out."),
        ("conv?.features", "Dive into Deep Learning keeps the 2012 paper's widths."),
        (
            "fc?.dropout",
            "Dropout before the second and third dense layer, as the paper and Dive into Deep Learning have it.",
        ),
        ("fc8.features", _TEN),
        ("adaptive_pool", _D2L + " It flattens conv5's pool as it is."),
    ),
    "alexnet_cifar": (
        ("image", "The size of CIFAR-10's images; other datasets are resized to it."),
        ("conv?.features", "torchvision's widths."),
        ("conv?.after", _SMALL_POOLS),
        ("conv1.padding", "A padding of 1 lets a 3 x 3 kernel see the edge: 32 pixels give 16 x 16 outputs."),
        ("conv1.*", _TINY),
        ("conv2.kernel", _TINY),
        ("conv2.padding", "A padding of 1 keeps the size under a 3 x 3 kernel, as 2 does under 5 x 5."),
        ("conv?.groups", "As torchvision's: one GPU holds the network."),
        ("fc?.dropout", "Dropout before fc6 and fc7, as torchvision's."),
        ("fc8.features", _TEN),
        ("adaptive_pool", "The image has one size, so nothing is left to adapt."),
    ),
    "alexnet_cifar_tanh": (("activation", "An ablation: the saturating unit that section 3.1 compares ReLU with."),),
    "alexnet_cifar_sigmoid": (("activation", "An ablation: the older saturating unit that ReLU replaced."),),
    "alexnet_cifar_overlap": (
        ("conv?.after", "An ablation: overlapping 3 x 3 pools (section 3.4), padded so that the sizes stay."),
    ),
    "alexnet_cifar_avgpool": (("conv?.after", "An ablation: mean for maximum."),),
    "alexnet_cifar_lrn": (
        ("conv?.after", "An ablation: the paper's local response norm (section 3.3) before each pool."),
    ),
    "alexnet_cifar_bn": (
        ("conv?.bias", "An ablation with batch norm, whose shift makes the bias redundant."),
        ("conv?.norm", "An ablation: batch norm in every block (arXiv:1502.03167)."),
    ),
    "alexnet_cifar_nodropout": (("fc?.dropout", "An ablation: no dropout at all (section 4.2)."),),
    "alexnet_cifar_best": (
        ("conv?.after", "2 x 2 pools, which leave 4 x 4 pixels for fc6."),
        ("conv?.groups", "One GPU holds the network."),
        ("conv?.features", "The 2012 paper's widths."),
        ("conv?.norm", "Batch norm in every block (arXiv:1502.03167)."),
        ("conv?.bias", "Batch norm's shift makes the bias redundant."),
        ("conv1.*", "A padded 3 x 3 kernel without a stride keeps the 32 x 32 pixels up to the first pool."),
        ("conv2.*", "A padded 3 x 3 kernel suits 16 x 16 pixels."),
        ("fc?.dropout", "A lower rate, 0.3, before fc6 and fc7, whose layers are narrower; none before fc8."),
        ("fc8.features", _TEN),
        ("fc?.features", "1,024 outputs are enough for ten classes."),
        ("image", "It is for CIFAR-10's 32 x 32 pixels."),
        ("adaptive_pool", "The image has one size, so nothing is left to adapt."),
    ),
    "lenet": (
        ("image", "Fashion-MNIST's own 28 x 28 pixels, one channel."),
        ("adaptive_pool", "The image has one size, so nothing is left to adapt."),
        ("*", _LENET),
    ),
}


@dataclass(frozen=True)
class Deviation:
    """One field of an architecture that differs from a reference; `reason` is "" where none is known."""

    field: str
    value: str
    reference: str
    reason: str


def numbers(arch: Arch) -> dict[str, str]:
    """Every field of an architecture but its name, by layer, as text."""
    table = {"image": " x ".join(map(str, arch.image)), "activation": arch.activation}
    table["adaptive_pool"] = f"{arch.adaptive_pool} x {arch.adaptive_pool}" if arch.adaptive_pool else "none"
    layers: list[tuple[str, Any]] = [*arch.named_convs(), *arch.named_dense()]
    for name, spec in layers:
        for entry in fields(spec):
            table[f"{name}.{entry.name}"] = _text(getattr(spec, entry.name))
    return table


def deviations(arch: Arch, reference: Arch) -> Iterator[Deviation]:
    """Every field whose value differs, in the order of the fields; a layer that one lacks counts as "none"."""
    ours, theirs = numbers(arch), numbers(reference)
    for field in dict.fromkeys((*ours, *theirs)):
        value, other = ours.get(field, NONE), theirs.get(field, NONE)
        if value != other:
            yield Deviation(field, value, other, reason(arch.name, field))


def reason(name: str, field: str) -> str:
    """Why an architecture has its own value of a field, or "" where no reason is given."""
    owner, pattern = found(name, field)
    return dict(REASONS[owner])[pattern] if pattern else ""


def found(name: str, field: str) -> tuple[str, str]:
    """The architecture, this one or what it is made from, and the pattern that give the reason; "" for none."""
    for pattern, _ in REASONS.get(name, ()):
        if fnmatchcase(field, pattern):
            return name, pattern
    return found(BASES[name], field) if name in BASES else (name, "")


def grids() -> list[dict[str, Any]]:
    """Architectures as columns, and as rows the fields in which they differ: each value, and the reason for one that
    is not the first column's."""
    alexnets = [name for name in ("alexnet_2012", *ARCHS) if name != "lenet"]
    columns = {
        "The AlexNets": list(dict.fromkeys(alexnets)),
        "Ablations of alexnet_cifar, one part changed at a time": ["alexnet_cifar", *ABLATIONS],
        "LeNet beside AlexNet": ["alexnet_2012", "lenet"],
    }
    return [{"title": title, "archs": names, "rows": list(_rows(names))} for title, names in columns.items()]


def _rows(names: list[str]) -> Iterator[dict[str, Any]]:
    values = {name: numbers((ARCHS | ABLATIONS)[name]) for name in names}
    for field in dict.fromkeys(field for table in values.values() for field in table):
        row = [table.get(field, NONE) for table in values.values()]
        if len(set(row)) > 1:
            cells = [
                {"value": value, "reason": reason(name, field) if value != row[0] else ""}
                for name, value in zip(names, row, strict=True)
            ]
            yield {"field": field, "cells": cells}


def tables() -> list[dict[str, Any]]:
    """For every architecture its deviations from each reference, for the page and for data.json."""
    entries = []
    for name, arch in (ARCHS | ABLATIONS).items():
        for key, reference in REFERENCES.items():
            rows = [vars(deviation) for deviation in deviations(arch, reference)]
            entries.append({"arch": name, "against": key, "title": TITLES[key], "rows": rows})
    return entries


def _text(value: Any) -> str:
    """A field in a few words."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case MaxPool():
            padding = f", padding {value.padding}" if value.padding else ""
            return f"max pool {value.size} x {value.size}, stride {value.stride}{padding}"
        case AvgPool():
            return f"average pool {value.size} x {value.size}, stride {value.stride}"
        case LocalResponseNorm():
            return f"local response norm n {value.size}, k {value.k:g}, alpha {value.alpha:g}, beta {value.beta:g}"
        case BatchNorm():
            return f"batch norm, momentum {value.momentum:g}, eps {value.eps:g}"
        case tuple():
            return "; ".join(map(_text, value)) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)
