"""Weights from elsewhere: torchvision's download, .pth files and the exchange format. Nothing is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import exchange
from common.arch import Arch
from common.errors import UserError

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
            f"Put {weights.url} there, or start from a file you have with --init-from FILE."
        ) from error


def read_pth(path: Path) -> dict[str, Tensor]:
    """Read a state dict saved by `torch.save`, without running any code that the file may hold.

    Raises:
        UserError: no such file, no state dict, or one that holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path.absolute()}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, so it is not opened: it could run code.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a file that torch.save wrote, or is damaged: {error}.") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict (names to tensors).")
    return dict(state)


def read(path: Path) -> Mapping[str, Tensor | np.ndarray]:
    """Read the tensors of a .safetensors or .pth file by name.

    Raises:
        UserError: as `exchange.read` and `read_pth`.
    """
    return exchange.read(path)[0] if path.suffix == ".safetensors" else read_pth(path)


def save(path: Path, model: nn.Module, arch: Arch, batches_tracked: int = 0) -> None:
    """Write a model in the exchange format, which `flax_impl` opens.

    Raises:
        UserError: a tensor is not finite.
    """
    state = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    exchange.write(path, exchange.check(state, arch, "The model"), arch, batches_tracked)


def load(path: Path, model: nn.Module, arch: Arch) -> None:
    """Load a whole network from a .safetensors or .pth file, ours or with torchvision's names.

    Raises:
        UserError: the file cannot be read, or does not hold exactly these tensors; the model is then untouched.
    """
    fill(model, exchange.check(read(path), arch, str(path)))


def load_partial(path: Path, model: nn.Module, arch: Arch) -> tuple[str, ...]:
    """Start from a file: a whole network, one with another last layer, or a backbone alone.

    Returns:
        The names of the layers that stayed as they were.

    Raises:
        UserError: the file cannot be read, or more is missing than the classifier; the model is then untouched.
    """
    loaded = exchange.check_partial(read(path), arch, str(path))
    fill(model, loaded.tensors)
    return loaded.fresh


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy checked tensors into a model's parameters and buffers, in their dtype and on their device."""
    own = model.state_dict()
    for name, array in tensors.items():
        own[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))


def load_pretrained(model: nn.Module, arch: Arch) -> tuple[str, ...]:
    """Load torchvision's ImageNet weights; the last layer stays fresh for another number of classes.

    Returns:
        The names of the layers that stayed fresh.

    Raises:
        UserError: the weights cannot be had, or `arch` is another network.
    """
    loaded = exchange.check_partial(download(), arch, "torchvision's pretrained AlexNet")
    fill(model, loaded.tensors)
    return loaded.fresh
