"""Checkpoints in PyTorch: one `torch.save` dict, opened without unpickling. Read next to `flax_impl/checkpoint.py`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.arch import Arch
from common.errors import UserError
from common.run import RunFolder
from torch_impl import weights
from torch_impl.model import AlexNet, LeNet, build

if TYPE_CHECKING:
    from torch_impl.train import TrainState


def save(path: Path, state: TrainState) -> None:
    """Write everything that a step changes, whole or not at all."""
    part = path.with_name(path.name + ".part")
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
    }
    torch.save(content, part)
    part.replace(path)


def load(path: Path, state: TrainState) -> None:
    """Put a checkpoint back into a state of the same recipe.

    Raises:
        UserError: the file cannot be read, or is of another recipe.
    """
    content = _read(path)
    try:
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.schedule.load_state_dict(content["schedule"])
        state.scaler.load_state_dict(content["scaler"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint of this recipe: {error}.") from error
    state.step = content["step"]


def load_model(path: Path, arch: Arch, precision: str = "float32") -> AlexNet | LeNet:
    """The network alone, from a checkpoint or into this precision from a .safetensors file, on the CPU.

    Raises:
        UserError: the file cannot be read or does not fit `arch`.
    """
    model = build(arch)
    if path.suffix == ".safetensors":
        weights.load(path, model.to(getattr(torch, precision)), arch)
        return model
    content = _read(path)
    try:
        model.to(next(iter(content["model"].values())).dtype).load_state_dict(content["model"])
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} is not a checkpoint of {arch.name}: {error}.") from error
    return model


def latest(run: RunFolder) -> Path | None:
    """The newest checkpoint of a run."""
    found = run.checkpoints("torch")
    return found[-1] if found else None


def resume(run: RunFolder, state: TrainState) -> int:
    """Load the newest checkpoint of a run and drop the metrics written after it.

    Returns:
        The epochs that are finished.
    """
    path = latest(run)
    if path is None:
        run.forget_after(0)
        return 0
    load(path, state)
    epoch = run.epoch_of(path)
    run.forget_after(epoch)
    return epoch


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, so it is not opened: it could run code.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged or not a checkpoint: {error}.") from error
