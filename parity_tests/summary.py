"""Print both networks side by side, as they are built: `python -m parity_tests.summary alexnet_2012`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
import tyro
from rich.console import Console
from rich.table import Table

import flax_impl
import torch_impl
from common.arch.spec import After, Arch, LocalResponseNorm, MaxPool
from common.commands.shell import guard
from common.errors import UserError
from common.recipes.own import choose_arch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """Print both networks of an architecture side by side: kernels, shapes, parameters, multiply-adds, memory.

    Attributes:
        arch: to show (default: alexnet, or the recipe file's).
        recipe_file: a Python file with recipes and architectures of your own, which the name may be of.
    """

    arch: Annotated[str | None, tyro.conf.Positional] = None
    recipe_file: Path | None = None


@dataclass(frozen=True)
class Row:
    """One layer of one network: its output without the batch, and its parameters."""

    output: Shape
    parameters: int


def torch_rows(arch: Arch) -> dict[str, Row]:
    """The layers of the PyTorch network by name, found by running it on the meta device."""
    rows: dict[str, Row] = {}

    def hook(name: str) -> Any:
        def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            rows[name] = Row(tuple(output.shape[1:]), sum(p.numel() for p in module.parameters()))

        return note

    with torch.device("meta"):
        model = torch_impl.build(arch)
        for name, module in model.named_children():
            if name in _layers(arch):
                module.register_forward_hook(hook(name))
        height, width, channels = arch.image
        model(torch.empty(1, channels, height, width))
    return rows


def flax_rows(arch: Arch) -> dict[str, Row]:
    """The layers of the Flax network by name, found by tracing it."""
    model = flax_impl.build(arch)

    def trace() -> Any:
        images = jnp.zeros((1, *arch.image))
        variables = model.init(jax.random.key(0), images, train=False)
        _, captured = model.apply(variables, images, train=False, capture_intermediates=_is_layer)
        return variables["params"], captured["intermediates"]

    params, outputs = jax.eval_shape(trace)
    return {
        name: Row(outputs[name]["__call__"][0].shape[1:], sum(leaf.size for leaf in jax.tree.leaves(params[name])))
        for name in _layers(arch)
    }


def table(arch: Arch) -> Table:
    """Both networks, a layer a row; PyTorch's sizes are channels first, Flax's channels last.

    Raises:
        UserError: the two have not equally many parameters.
    """
    left, right = torch_rows(arch), flax_rows(arch)
    costs = {name: sum(layer.multiply_adds for layer in arch.layers() if layer.name == name) for name in left}
    grid = Table(title=f"{arch.name}: input {_size(arch.image)} (height, width, channels)")
    for column in ("layer", "what it is", "PyTorch output", "Flax output", "parameters", "", "multiply-adds", ""):
        grid.add_column(column, justify="left" if column in ("layer", "what it is") else "right")
    for name, what in descriptions(arch).items():
        ours, theirs = left[name], right[name]
        if ours.parameters != theirs.parameters:
            raise UserError(f"{name} has {ours.parameters:,} parameters in PyTorch and {theirs.parameters:,} in Flax.")
        shares = _share(ours.parameters, arch.parameters), _share(costs[name], arch.multiply_adds)
        parameters, cost = f"{ours.parameters:,}", f"{costs[name]:,}"
        grid.add_row(name, what, _size(ours.output), _size(theirs.output), parameters, shares[0], cost, shares[1])
    grid.add_section()
    grid.add_row("total", "", "", "", f"{arch.parameters:,}", "", f"{arch.multiply_adds:,}", "")
    return grid


def descriptions(arch: Arch) -> dict[str, str]:
    """Each layer in words: kernel, stride, padding, groups, and what follows before the next layer."""
    told = {}
    for name, conv in arch.named_convs():
        parts = [f"{conv.kernel}x{conv.kernel}", f"stride {conv.stride}", f"padding {conv.padding}"]
        parts += [f"{conv.groups} groups"] * (conv.groups > 1) + ["batch norm"] * bool(conv.norm)
        told[name] = ", ".join([*parts, arch.activation, *map(_window, conv.after)])
    *_, (last, _) = arch.named_dense()
    for name, dense in arch.named_dense():
        dropout = [f"dropout {dense.dropout:g} before"] * bool(dense.dropout)
        told[name] = ", ".join([*dropout, "logits" if name == last else arch.activation])
    return told


def memory(arch: Arch) -> str:
    """What float32 numbers take, in a sentence: of the parameters, in training, and of what one image leaves."""
    kept = sum(row.output[0] * row.output[1] * row.output[2] for row in arch.layers())
    sizes = (f"{4 * count / 2**20:,.1f} MiB" for count in (arch.parameters, 3 * arch.parameters, kept))
    return "In float32 its parameters take {}, with gradients and momentum {}; the outputs of one image {}.".format(
        *sizes
    )


def _window(step: After) -> str:
    if isinstance(step, LocalResponseNorm):
        return f"local response norm over {step.size}"
    kind = "max pool" if isinstance(step, MaxPool) else "mean pool"
    return f"{kind} {step.size}x{step.size} stride {step.stride}" + f" padding {step.padding}" * bool(step.padding)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def _layers(arch: Arch) -> list[str]:
    return [name for name, _ in arch.named_convs()] + [name for name, _ in arch.named_dense()]


def _is_layer(module: nn.Module, method: str) -> bool:
    return method == "__call__" and len(module.path) == 1


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def main() -> None:
    """Print the table of the architecture named on the command line."""
    options = tyro.cli(Options, prog="python -m parity_tests.summary")
    arch = choose_arch(options.arch, options.recipe_file)
    Console(width=max(160, shutil.get_terminal_size().columns)).print(table(arch), memory(arch), sep="\n")


if __name__ == "__main__":
    guard(main)
