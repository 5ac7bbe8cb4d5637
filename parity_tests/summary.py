"""Print both networks side by side, as they are built: `python -m parity_tests.summary alexnet_2012`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import torch
from rich.console import Console
from rich.table import Table

import flax_impl
import torch_impl
from common.arch.spec import Arch
from common.arch.zoo import get_arch
from common.commands.shell import guard

Shape = tuple[int, ...]


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
    """Both networks, a layer a row; PyTorch's sizes are channels first, Flax's channels last."""
    left, right = torch_rows(arch), flax_rows(arch)
    grid = Table(title=f"{arch.name}: input {_size(arch.image)}, {arch.multiply_adds:,} multiply-adds")
    for column in ("layer", "PyTorch output", "Flax output", "PyTorch parameters", "Flax parameters"):
        grid.add_column(column, justify="left" if column == "layer" else "right")
    for name in _layers(arch):
        ours, theirs = left[name], right[name]
        grid.add_row(name, _size(ours.output), _size(theirs.output), f"{ours.parameters:,}", f"{theirs.parameters:,}")
    totals = [sum(row.parameters for row in rows.values()) for rows in (left, right)]
    grid.add_section()
    grid.add_row("total", "", "", *(f"{total:,}" for total in totals))
    return grid


def _layers(arch: Arch) -> list[str]:
    return [name for name, _ in arch.named_convs()] + [name for name, _ in arch.named_dense()]


def _is_layer(module: nn.Module, method: str) -> bool:
    return method == "__call__" and len(module.path) == 1


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def main() -> None:
    """Print the table of the architecture named on the command line."""
    Console(width=110).print(table(get_arch(sys.argv[1] if len(sys.argv) > 1 else "alexnet")))


if __name__ == "__main__":
    guard(main)
