"""Checkpoints in PyTorch: one `torch.save` dict, opened without unpickling. Read next to `flax_impl/checkpoint.py`."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile

import torch

from common.arch.spec import Arch
from common.config import to_dict
from common.errors import DamagedError, NonFiniteError, UserError, first_line
from common.runs.files import atomic, missing
from common.runs.progress import Progress
from torch_impl.model import AlexNet, LeNet, build
from torch_impl.optim import OPTIMIZERS
from torch_impl.state import TrainState


def save(path: Path, state: TrainState, progress: Progress) -> None:
    """Write everything that a step changes, whole or not at all.

    Raises:
        NonFiniteError: a parameter is NaN or infinite.
        UserError: it cannot be written.
    """
    extremes = (torch.stack(parameter.detach().aminmax()) for parameter in state.model.parameters())  # NaN is both
    if not all(bool(pair.isfinite().all()) for pair in extremes):  # `isfinite` of all would take a copy's memory
        raise NonFiniteError("a parameter is not finite", state.step)
    content = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "scaler": state.scaler.state_dict(),
        "step": state.step,
        "progress": to_dict(progress),
    }
    with atomic(path) as part, part.open("wb") as file:
        torch.save(content, file)


def size(state: TrainState) -> int:
    """The bytes of a checkpoint's tensors, those included that Adam makes in its first step."""
    spec, parameters = state.recipe.optimizer, list(state.model.parameters())
    slots = 0 if spec.name == "sgd" and not spec.momentum else len(OPTIMIZERS[spec.name].slots)
    return sum(tensor.nbytes for tensor in (*state.model.state_dict().values(), *slots * parameters))


def load(path: Path, state: TrainState) -> Progress:
    """Put a checkpoint back into a state of the same recipe.

    Returns:
        Where in the run it was written.

    Raises:
        DamagedError: the file is not as it was written.
        UserError: it is of another recipe or architecture.
    """
    content = _read(path)
    progress = Progress.read(content.get("progress"), state.recipe, state.model.arch, path)
    try:
        state.model.load_state_dict(content["model"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.schedule.load_state_dict(content["schedule"])
        state.scaler.load_state_dict(content["scaler"])
    except Exception as error:  # of any kind, from what a whole file of another origin may hold
        raise UserError(f"{path} is not a checkpoint of this recipe: {first_line(error)}.") from error
    state.step = progress.step
    return progress


def load_model(path: Path, arch: Arch) -> AlexNet | LeNet:
    """The network alone, in the dtype that the checkpoint has, on the CPU.

    Raises:
        UserError: the file cannot be read or does not fit `arch`.
    """
    content = _read(path)
    with torch.device("meta"):  # draws no weights, for the file's take their places
        model = build(arch)
    try:
        model.load_state_dict(content["model"], assign=True)
    except Exception as error:  # as above
        raise UserError(f"{path} is not a checkpoint of {arch.name}: {first_line(error)}.") from error
    return model


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise missing(path)
    try:
        with ZipFile(path) as archive:
            if packed := [entry.filename for entry in archive.infolist() if entry.compress_type != ZIP_STORED]:
                raise DamagedError(f"{path} is no checkpoint: {packed[0]} in it is compressed, which no tensor is.")
            if damaged := archive.testzip():  # which torch.load does not look for
                raise DamagedError(f"{path} is damaged: the checksum of {damaged} is wrong.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, so it is not opened: it could run code.") from error
    except Exception as error:  # of any kind, from what damaged bytes can mean
        raise DamagedError(f"{path} is damaged or not a checkpoint: {first_line(error)}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise DamagedError(f"{path} is damaged or not a checkpoint: it holds no model.")
    return content
