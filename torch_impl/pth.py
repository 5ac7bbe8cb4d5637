"""PyTorch's own weights: torchvision's download and .pth files, without unpickling, and into a model's tensors."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.weights import exchange

PRETRAINED = "IMAGENET1K_V1"


def download() -> dict[str, Tensor]:
    """torchvision's ImageNet weights of AlexNet, from its cache or the network, checked against its hash.

    Raises:
        UserError: they are in neither place; says where the file is looked for and how to get it.
    """
    from torchvision.models import AlexNet_Weights

    weights = AlexNet_Weights[PRETRAINED]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's pretrained AlexNet is not in {cached} and cannot be downloaded ({error}). "
            f"Put {weights.url} there, or give a file you have: --init-from FILE to start from (predict: --weights "
            f"FILE)."
        ) from error


def read_pth(path: Path) -> dict[str, Tensor]:
    """Read a state dict saved by `torch.save`, without running any code that the file may hold.

    Raises:
        UserError: no such file, no state dict, or one that holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path.absolute()}.")
    with path.open("rb") as file:
        head = file.read(9)
    if not exchange.is_pth(head):
        what = "is a .safetensors file: give it that suffix" if head[8:] == b"{" else "is not one that torch.save wrote"
        raise UserError(f"{path} {what if head else 'is empty'}.")
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the error says better
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, so it is not opened: it could run code.") from error
    except Exception as error:  # of whatever kind PyTorch's reader meets in a damaged file
        raise UserError(f"{path} is not a file that torch.save wrote, or it is damaged or cut short.") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict (names to tensors).")
    if other := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        hint = next((f" Save that alone: {name!r}." for name, v in state.items() if isinstance(v, Mapping)), "")
        raise UserError(f"{path} is not a state dict: {', '.join(other[:5])} is no tensor.{hint}")
    return dict(state)


def read(path: Path | str) -> Mapping[str, Tensor | np.ndarray]:
    """Read the tensors of a .safetensors or .pth file by name.

    Raises:
        UserError: as `exchange.read` and `read_pth`.
    """
    return exchange.read(path)[0] if Path(path).suffix == ".safetensors" else read_pth(Path(path))


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy checked tensors into a model's parameters and buffers, in their dtype and on their device."""
    own = model.state_dict()
    for name, array in tensors.items():
        own[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))
