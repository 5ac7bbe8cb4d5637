"""What a layer's numbers come to: its settings, how its output's size follows, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from common.arch.spec import Arch, AvgPool, BatchNorm, ConvSpec, LocalResponseNorm, MaxPool
from common.errors import UserError

Window = ConvSpec | MaxPool | AvgPool


def layer_names(arch: Arch) -> list[str]:
    """Every layer that the pages show: convolution blocks, `pool`, `flatten`, then dropout and dense in turn."""
    last = [layer for name, _ in arch.named_dense() for layer in (name.replace("fc", "drop"), name)]
    return [*(name for name, _ in arch.named_convs()), "pool", "flatten", *last]


def kind(layer: str) -> str:
    """`conv1` -> `conv`."""
    return layer.rstrip("0123456789")


def sides(arch: Arch) -> dict[str, tuple[int, int, int]]:
    """What every row of `Arch.layers` receives: (height, width, channels), or (1, 1, inputs) of a dense layer."""
    found: dict[str, tuple[int, int, int]] = {}
    size = arch.image
    for row in arch.layers():
        if row.kind == "dense" and size[:2] != (1, 1):
            size = (1, 1, size[0] * size[1] * size[2])
        found[row.name], size = size, row.output
    return found


def settings(arch: Arch, layer: str) -> list[tuple[str, str]]:
    """What the architecture says of a layer, name and value: kernel, stride, padding, groups, pool, rate.

    Raises:
        UserError: the architecture has no such layer.
    """
    convs, dense = dict(arch.named_convs()), dict(arch.named_dense())
    match kind(layer):
        case "conv" if layer in convs:
            return list(_conv_settings(convs[layer], arch.activation))
        case "pool":
            bins = arch.adaptive_pool
            return [("output", f"{bins} × {bins} whatever comes in" if bins else "not used by this architecture")]
        case "flatten":
            return [("outputs", f"{_flat(arch):,}")]
        case "drop" if layer.replace("drop", "fc") in dense:
            rate = dense[layer.replace("drop", "fc")].dropout
            return [("rate", f"{rate:g}" if rate else "0: it does nothing in this architecture")]
        case "fc" if layer in dense:
            last = layer == [*dense][-1]
            return [("outputs", f"{dense[layer].features:,}"), ("then", "nothing: logits" if last else arch.activation)]
    raise UserError(f"{arch.name} has no layer {layer}.")


def _conv_settings(spec: ConvSpec, activation: str) -> Iterator[tuple[str, str]]:
    yield "kernels", f"{spec.features} of {spec.kernel} × {spec.kernel}"
    yield "stride", str(spec.stride)
    yield "padding", str(spec.padding)
    yield "groups", str(spec.groups)
    then = ["batch norm", activation] if spec.norm else [activation]
    yield "then", ", ".join([*then, *map(step_name, spec.after)])


def step_name(step: Any) -> str:
    """A pool or a norm in a few words."""
    match step:
        case MaxPool() | AvgPool():
            what = "max pool" if isinstance(step, MaxPool) else "average pool"
            padding = f", padding {step.padding}" if step.padding else ""
            return f"{what} {step.size} × {step.size} with stride {step.stride}{padding}"
        case LocalResponseNorm():
            return f"local response norm (n {step.size}, k {step.k:g}, α {step.alpha:g}, β {step.beta:g})"
        case BatchNorm():
            return "batch norm"
    raise UserError(f"The pages have no words for {type(step).__name__}: add some to study/anatomy.py.")


def follows(arch: Arch, layer: str) -> list[tuple[str, str]]:
    """How the size of a layer's output follows from its input: what acts, and the sum with this layer's numbers."""
    into = sides(arch)
    rows = {row.name: row for row in arch.layers()}
    if kind(layer) == "conv":
        number, spec = layer.removeprefix("conv"), dict(arch.named_convs())[layer]
        steps = [("convolution", _slid(spec, into[layer]))]
        steps += [
            (step_name(step).split(" with")[0], _slid(step, into[f"pool{number}"]))
            for step in spec.after
            if isinstance(step, MaxPool | AvgPool)
        ]
        return [*steps, ("channels", f"one for each kernel: {rows[layer].output[2]}")]
    if layer == "flatten":
        height, width, channels = arch.feature_size
        return [("all numbers in a row", f"{height} · {width} · {channels} = {_flat(arch):,}")]
    if layer == "pool" and arch.adaptive_pool:
        before = " × ".join(map(str, into["pool"][:2]))
        return [("mean of each part", f"{before} → {arch.adaptive_pool} × {arch.adaptive_pool}")]
    return []


def _slid(window: Window, size: tuple[int, int, int]) -> str:
    """floor((extent + 2 · padding - kernel) / stride) + 1 with its numbers; for each axis where they differ."""
    kernel = window.kernel if isinstance(window, ConvSpec) else window.size
    sums = []
    for extent in dict.fromkeys(size[:2]):
        out = (extent + 2 * window.padding - kernel) // window.stride + 1
        sums.append(f"floor(({extent} + 2·{window.padding} − {kernel}) / {window.stride}) + 1 = {out}")
    return "; ".join(sums)


def cost_sums(arch: Arch, layer: str) -> dict[str, str]:
    """How a layer's parameters and multiply-adds come about, where it has any; shares are in `shares`."""
    rows, into = {row.name: row for row in arch.layers()}, sides(arch)
    if kind(layer) == "conv":
        spec = dict(arch.named_convs())[layer]
        height, width, features = rows[layer].output
        each = f"{spec.kernel}·{spec.kernel}·{into[layer][2] // spec.groups}"
        extras = " + one bias a kernel" * spec.bias + " + batch norm's scale and shift" * bool(spec.norm)
        return {
            "parameters": f"{each} weights · {features} kernels{extras}",
            "multiply_adds": f"{each}·{features} at {height}·{width} places",
        }
    if kind(layer) == "fc":
        inputs, outputs = into[layer][2], rows[layer].output[2]
        return {
            "parameters": f"{inputs:,} inputs · {outputs:,} outputs + one bias an output",
            "multiply_adds": f"{inputs:,}·{outputs:,}, each weight once",
        }
    return {"parameters": "", "multiply_adds": ""}


def shares(arch: Arch) -> dict[str, float]:
    """Of the whole network, [0, 1]: what dense layers hold of the parameters, and convolutions of the multiply-adds."""
    rows = arch.layers()
    dense = sum(row.parameters for row in rows if row.kind == "dense")
    convs = sum(row.multiply_adds for row in rows if row.kind == "conv")
    return {"dense_parameters": dense / arch.parameters, "conv_multiply_adds": convs / arch.multiply_adds}


def _flat(arch: Arch) -> int:
    height, width, channels = arch.feature_size
    return height * width * channels
