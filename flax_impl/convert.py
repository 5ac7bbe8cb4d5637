"""PyTorch's weights as Flax variables and back: transposed, and fc6's inputs reordered, bit for bit. numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from common.arch.spec import Arch
from common.weights import exchange

_TO_FLAX = {
    ("conv", "weight"): ("params", "kernel"),
    ("norm", "weight"): ("params", "scale"),
    ("norm", "running_mean"): ("batch_stats", "mean"),
    ("norm", "running_var"): ("batch_stats", "var"),
}


def from_torch(state_dict: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """A PyTorch state dict -> Flax variables.

    Args:
        state_dict: every tensor of the network by name, ours or torchvision's: numpy arrays or CPU tensors.
        arch: of the network.

    Returns:
        {"params": ...} and, with batch norm, "batch_stats": numpy arrays of the dtypes given.

    Raises:
        UserError: lists every missing, unknown, mis-shaped and non-finite tensor.
    """
    tensors = exchange.check(state_dict, arch, "The state dict")
    # Copies: PyTorch updates its tensors in place, and a view would follow.
    copies = {name: np.array(to_flax_layout(name, array, arch), order="C") for name, array in tensors.items()}
    return unflatten_dict({flax_path(name): array for name, array in copies.items()})


def to_torch(variables: Mapping[str, Any], arch: Arch) -> dict[str, np.ndarray]:
    """Flax variables -> a PyTorch state dict with our names; `load_state_dict` takes it after `torch.from_numpy`.

    Args:
        variables: {"params": ...} and, with batch norm, "batch_stats".
        arch: of the network.

    Raises:
        UserError: lists every missing, unknown, mis-shaped and non-finite tensor.
    """
    return exchange.check(named(variables, arch), arch, "The tree of variables")


def named(variables: Mapping[str, Any], arch: Arch) -> dict[str, np.ndarray]:
    """Any tree shaped like the variables, or its "params" alone, by our names in PyTorch's layout, unchecked.

    A leaf that the architecture does not have keeps its path as its name.
    """
    expected = {flax_path(name): name for name in exchange.shapes(arch)}
    tensors = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        name = expected.get(path, "/".join(path))
        array = np.asarray(leaf)
        tensors[name] = np.array(to_torch_layout(name, array, arch), order="C") if path in expected else array
    return tensors


def flax_path(name: str) -> tuple[str, ...]:
    """`conv1.norm.running_var` -> ("batch_stats", "conv1", "norm", "var")."""
    *layer, part = name.split(".")
    kind = layer[-1] if layer[-1] in ("conv", "norm") else "conv"  # a dense layer's weight is a kernel too
    collection, leaf = _TO_FLAX.get((kind, part), ("params", part))
    return (collection, *layer, leaf)


def to_flax_layout(name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    """(O, I, H, W) -> (H, W, I, O); (out, in) -> (in, out), the first dense layer's inputs from C, H, W to H, W, C."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and name == _first_dense(arch):
        height, width, channels = arch.feature_size
        return array.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(array.shape[::-1])
    return array.T


def to_torch_layout(name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    """The inverse of `to_flax_layout`. An array of a shape that does not fit is left for the caller to refuse."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    height, width, channels = arch.feature_size
    if array.ndim == 2 and name == _first_dense(arch) and len(array) == height * width * channels:
        return array.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(array.shape[::-1])
    return array.T


def _first_dense(arch: Arch) -> str:
    return f"{next(arch.named_dense())[0]}.weight"
