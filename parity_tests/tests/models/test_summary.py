"""The table of an architecture's layers."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from common.arch.zoo import ABLATIONS, ARCHS, get_arch
from common.errors import UserError
from parity_tests import summary


def test_layers_in_words() -> None:
    """Of the 2012 network, as sections 3.5 and 4.2 of its paper describe it."""
    assert summary.descriptions(ARCHS["alexnet_2012"]) == {
        "conv1": "11x11, stride 4, padding 0, relu, local response norm over 5, max pool 3x3 stride 2",
        "conv2": "5x5, stride 1, padding 2, 2 groups, relu, local response norm over 5, max pool 3x3 stride 2",
        "conv3": "3x3, stride 1, padding 1, relu",
        "conv4": "3x3, stride 1, padding 1, 2 groups, relu",
        "conv5": "3x3, stride 1, padding 1, 2 groups, relu, max pool 3x3 stride 2",
        "fc6": "relu",
        "fc7": "dropout 0.5 before, relu",
        "fc8": "dropout 0.5 before, logits",
    }
    assert summary.descriptions(ABLATIONS["alexnet_cifar_avgpool"])["conv1"].endswith("relu, mean pool 2x2 stride 2")
    assert summary.descriptions(ABLATIONS["alexnet_cifar_overlap"])["conv1"].endswith("3x3 stride 2 padding 1")
    assert "batch norm, relu" in summary.descriptions(ABLATIONS["alexnet_cifar_bn"])["conv2"]


@pytest.mark.parametrize("name", [*ARCHS, *ABLATIONS])
def test_every_architecture_has_a_table(name: str) -> None:
    """On a terminal of any width, with the sums that the networks have as they are built."""
    arch, console = get_arch(name), Console(width=160, file=io.StringIO())
    console.print(summary.table(arch))
    total = console.file.getvalue().splitlines()[-2]  # type: ignore[attr-defined]
    built = sum(row.parameters for row in summary.torch_rows(arch).values())
    assert f"{built:,}" in total
    assert f"{arch.multiply_adds:,}" in total


def test_memory() -> None:
    """61,100,840 parameters of four bytes."""
    assert "take 233.1 MiB, with gradients and momentum 699.2 MiB; " in summary.memory(ARCHS["alexnet"])


def test_networks_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    flax_rows: Any = summary.flax_rows

    def planted(arch: Any) -> Any:
        rows = flax_rows(arch)
        return rows | {"conv2": replace(rows["conv2"], parameters=7)}

    monkeypatch.setattr(summary, "flax_rows", planted)
    with pytest.raises(UserError, match="conv2 has 9,050 parameters in PyTorch and 7 in Flax"):
        summary.table(ARCHS["lenet"])
