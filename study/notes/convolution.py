"""Convolution blocks: kernels, stride, groups; what follows each convolution has a file of its own."""

from __future__ import annotations

from common.arch.spec import Arch, AvgPool, ConvSpec, MaxPool
from study.anatomy import sides
from study.notes import activation, batch_norm, pooling, response_norm
from study.notes.note import PAPER, TORCHVISION, Note, listed

_PARTS = (
    "PyTorch's activations are (N, C, H, W), Flax's (N, H, W, C); in memory both are channels last.",
    "PyTorch's Conv2d is told its input channels, Flax's Conv finds them when it is initialised.",
    'Padding is given in pixels: "SAME", Flax\'s default, pads a strided window unevenly, which PyTorch cannot.',
    "Flax is told on each call whether it trains (train=train); PyTorch's module remembers .train() or .eval().",
)


def note(arch: Arch, layer: str) -> Note:
    """Of a block, with its activation, norms and pools."""
    spec = dict(arch.named_convs())[layer]
    found = Note(_lead(arch, layer, spec), (*_why(arch, layer, spec),), _PARTS)
    found += activation.note(arch)
    if spec.norm:
        found += batch_norm.note()
    found += response_norm.note(arch, layer)
    if any(isinstance(step, MaxPool | AvgPool) for step in spec.after):
        found += pooling.note(arch, layer)
    return found


def _lead(arch: Arch, layer: str, spec: ConvSpec) -> str:
    names, channels = [name for name, _ in arch.named_convs()], sides(arch)[layer][2]
    side = f"{spec.kernel} × {spec.kernel}"
    if layer == names[0]:
        apart = f", {spec.stride} pixels apart" if spec.stride > 1 else ""
        return (
            f"Looks at the image through windows of {side} pixels{apart}, and asks {spec.features} questions at each: "
            "how much of this edge, this stripe, this blot of colour is here?"
        )
    seen = f"all {channels} maps" if spec.groups == 1 else f"the {channels // spec.groups} maps of its own half"
    if layer == names[1]:
        return (
            f"Combines the edges and colours below it into {spec.features} textures and corners: {side} places of "
            f"{seen} at a time."
        )
    if layer == names[-1]:
        return (
            f"The last layer that still knows where things are: it combines {side} places of {seen} into "
            f"{spec.features} maps, which the dense layers judge."
        )
    return (
        f"Combines {side} places of {seen} into {spec.features} maps of larger patterns: parts of things rather than "
        "textures."
    )


def _why(arch: Arch, layer: str, spec: ConvSpec) -> list[str]:
    found = []
    if layer == "conv1" and spec.stride > 1:
        height, width, _ = arch.image
        dense = (height + 2 * spec.padding - spec.kernel + 1, width + 2 * spec.padding - spec.kernel + 1)
        rows = {row.name: row.output for row in arch.layers()}
        found.append(
            f"The stride of {spec.stride} makes the image affordable: {rows[layer][0]} × {rows[layer][1]} places "
            f"instead of {dense[0]} × {dense[1]} (section 3.5)."
        )
    if layer == "conv1" and (spec.kernel, spec.stride) == (PAPER.convs[0].kernel, PAPER.convs[0].stride):
        found.append(two_hundred_and_twenty_four())
    grouped = [name for name, conv in arch.named_convs() if conv.groups > 1]
    if spec.groups > 1:
        found.append(
            f"Groups: the paper's network lay on two GPUs, which had 3 GB each; {listed(grouped)} see only the maps on "
            f"their own (section 3.2). {spec.groups} groups need 1/{spec.groups} of the weights."
        )
    elif grouped and layer != "conv1" and not dict(PAPER.named_convs())[layer].groups > 1:
        found.append("It has one group: here each of the paper's two GPUs saw the maps of both (section 3.2).")
    elif layer in [name for name, conv in PAPER.named_convs() if conv.groups > 1] and len(arch.convs) == len(
        PAPER.convs
    ):
        found.append(
            "The paper split this layer over two GPUs, each of which saw half of the maps (section 3.2); one GPU holds "
            "it today, as in Krizhevsky 2014, so there is one group."
        )
    return found


def two_hundred_and_twenty_four() -> str:
    """Why 55 x 55, from the numbers of both networks."""
    ours, theirs = PAPER.convs[0], TORCHVISION.convs[0]
    side = PAPER.layers()[0].output[0]
    assert side == TORCHVISION.layers()[0].output[0]
    text = TORCHVISION.image[0]
    bare = (text - ours.kernel) / ours.stride + 1
    return (
        f"The paper's text says {text} pixels, but ({text} − {ours.kernel}) / {ours.stride} + 1 = {bare:g} is no whole "
        f"number. Its {side} × {side} outputs come of {PAPER.image[0]} pixels without padding, or of {text} with a "
        f"padding of {theirs.padding}, as torchvision has it."
    )
