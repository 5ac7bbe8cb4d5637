"""PyTorch's own weights: torchvision's download and .pth files, without unpickling, and into a model's tensors."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.weights import exchange, foreign

PRETRAINED = "IMAGENET1K_V1"
ATTRIBUTES = (  # where Lightning's releases have had their class of settings
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
    "lightning_fabric.utilities.types",
    "pytorch_lightning.utilities.parsing",
    "lightning.pytorch.utilities.parsing",
)


def cached() -> Path:
    """Where torchvision keeps its ImageNet weights of AlexNet once they are downloaded."""
    from torchvision.models import AlexNet_Weights

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights[PRETRAINED].url).name


def download() -> dict[str, Tensor]:
    """torchvision's ImageNet weights of AlexNet, from its cache or the network, checked against its hash.

    Raises:
        UserError: they are in neither place; says where the file is looked for and how to get it.
    """
    from torchvision.models import AlexNet_Weights

    weights = AlexNet_Weights[PRETRAINED]
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's pretrained AlexNet is not in {cached()} and cannot be downloaded ({error}). "
            f"Put {weights.url} there, or give a file you have: --init-from FILE to start from (predict: --weights "
            f"FILE)."
        ) from error


class _Fields(dict[str, Any]):
    """Stands for a class of settings that other programs keep beside their weights."""


# Beside the weights in what training programs write, and unable to run anything; torch.load allows tensors alone.
HARMLESS: list[Any] = [
    argparse.Namespace,
    defaultdict,
    PurePosixPath,
    PurePath,
    (PurePosixPath, "pathlib.PosixPath"),
    (PurePosixPath, "pathlib._local.PosixPath"),
    *((_Fields, f"{package}.AttributeDict") for package in ATTRIBUTES),
]


def read_pth(path: Path) -> dict[Any, Any]:
    """Read what `torch.save` wrote of tensors, numbers and texts, without running any code that the file may hold.

    Raises:
        UserError: no such file, or one that holds more.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path.absolute()}.")
    with path.open("rb") as file:
        head = file.read(9)
    if not exchange.is_pth(head):
        what = "is a .safetensors file: give it that suffix" if head[8:] == b"{" else "is not one that torch.save wrote"
        raise UserError(f"{path} {what if head else 'is empty'}.")
    again = "and convert that file"
    try:
        # Of what the error says better, warnings too.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(HARMLESS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors{_what(error)}, so it is not opened: it could run code. Where it was "
            f"written, save the weights alone, `torch.save(model.state_dict(), 'weights.pth')`, {again}."
        ) from error
    except Exception as error:  # of whatever kind PyTorch's reader meets in a damaged file
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript program: `torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')` "
                f"takes its weights out; do that {again}."
            ) from error
        raise UserError(f"{path} is not a file that torch.save wrote, or it is damaged or cut short.") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, not a state dict (names to tensors).")
    return dict(state)


def _what(error: Exception) -> str:
    """The class that PyTorch's reader has stumbled over, where it says so."""
    found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    return f" ({found[1]})" if found else ""


def read(path: Path | str, part: str | None = None) -> tuple[dict[str, Tensor | np.ndarray], list[str]]:
    """Read the network in a .safetensors or .pth file, other people's too.

    Args:
        path: of the file.
        part: which, where the file holds several; see `foreign.choose`.

    Returns:
        Its tensors by name, float32 where they had fewer bits, and what was done for that, in words.

    Raises:
        UserError: as `exchange.read`, `read_pth` and `foreign.choose`.
    """
    path = Path(path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_pth(path)
    try:
        chosen, said = foreign.choose(content, str(path), part)
    except RecursionError as error:
        raise UserError(f"{path} is no file of weights: it is nested without end.") from error
    state = chosen.state
    narrow = {value.dtype for value in state.values() if value.dtype in (torch.bfloat16, torch.float16)}
    if narrow:
        said.append(f"made float32 of {' and '.join(sorted(str(kind).removeprefix('torch.') for kind in narrow))}")
        state = {name: value.float() if value.dtype in narrow else value for name, value in state.items()}
    return state, said


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """PyTorch's own reader takes bfloat16, which numpy lacks; where it fails, numpy's says why."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception:  # of any kind, as above
        exchange.read(path)
        raise


@torch.no_grad()
def fill(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> None:
    """Copy checked tensors into a model's parameters and buffers, in their dtype and on their device."""
    own = model.state_dict()
    for name, array in tensors.items():
        own[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))
