"""Weights from elsewhere: torchvision's download, .pth files and the exchange format. Nothing is unpickled."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from common import exchange
from common.arch import Arch, get_arch
from common.cli import guard
from common.errors import UserError
from common.recipes import Preprocess, get_recipe

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


def class_names() -> tuple[str, ...]:
    """ImageNet's 1,000 classes by the names that torchvision gives them, in label order."""
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights[PRETRAINED].meta["categories"])


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


def save(path: Path, model: nn.Module, arch: Arch, batches_tracked: int = 0, **about: Any) -> None:
    """Write a model in the exchange format, which `flax_impl` opens; `about` as for `exchange.write`.

    Raises:
        UserError: a tensor is not finite.
    """
    state = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    exchange.write(path, exchange.check(state, arch, "The model"), arch, batches_tracked, **about)


def load(path: Path | str, model: nn.Module, arch: Arch) -> None:
    """Load a whole network from a .safetensors or .pth file, ours or with torchvision's names.

    Raises:
        UserError: the file cannot be read, holds another network, or not exactly these tensors; the model is then
            untouched.
    """
    path = Path(path)
    state = exchange.read_for(path, arch) if path.suffix == ".safetensors" else read_pth(path)
    fill(model, exchange.check(state, arch, str(path)))


def load_partial(path: Path | str, model: nn.Module, arch: Arch) -> tuple[str, ...]:
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


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> exchange.OptimizerState:
    """An optimizer's memory by our names; Adam's is empty before its first step, when PyTorch has made none."""
    named = dict(model.named_parameters())
    slots: dict[str, exchange.Tensors] = {}
    steps = dict.fromkeys(named, 0)
    for name, parameter in named.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if slot == "step":
                steps[name] = int(value)
            elif value is not None:
                slots.setdefault(slot, {})[name] = value.detach().cpu().numpy().copy()
    for slot, rows in slots.items():  # Adam makes no memory for a parameter while it is frozen
        slots[slot] = {name: rows.get(name, np.zeros_like(p.numpy(force=True))) for name, p in named.items()}
    last = max(steps.values())
    return exchange.OptimizerState(last, slots, {name: last - step for name, step in steps.items() if step < last})


def load_optimizer(state: exchange.OptimizerState, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Give an optimizer the memory that another one had, of either framework.

    Raises:
        UserError: a tensor is missing, unknown or mis-shaped; the optimizer is then untouched.
    """
    parameters = dict(model.named_parameters())
    wanted = {slot: {name: p.detach().numpy(force=True) for name, p in parameters.items()} for slot in state.slots}
    exchange.check_optimizer(state, exchange.OptimizerState(state.step, wanted))
    for name, parameter in parameters.items():
        # In the parameter's memory layout, which may be channels last: fused optimizers go through both as they lie.
        memory = {slot: torch.empty_like(parameter) for slot in state.slots}
        for slot, rows in state.slots.items():
            memory[slot].copy_(torch.from_numpy(rows[name]))
        if "exp_avg" in memory:
            memory["step"] = torch.tensor(float(state.step - state.frozen.get(name, 0)), device=parameter.device)
        optimizer.state[parameter] = memory


def load_pretrained(model: nn.Module, arch: Arch, *, backbone: bool = False) -> tuple[str, ...]:
    """Load torchvision's ImageNet weights; the last layer stays fresh for another number of classes.

    Args:
        model: changed in place.
        arch: of the model.
        backbone: load the convolutions alone; the dense layers stay fresh.

    Returns:
        The names of the layers that stayed fresh.

    Raises:
        UserError: the weights cannot be had, or `arch` is another network.
    """
    state = exchange.backbone(download(), arch) if backbone else download()
    loaded = exchange.check_partial(state, arch, "torchvision's pretrained AlexNet")
    fill(model, loaded.tensors)
    return loaded.fresh


@dataclass(frozen=True)
class _Command:
    """Convert weights into the exchange format, which both frameworks open.

    Attributes:
        source: a .pth or .safetensors file, ours or with torchvision's names, or IMAGENET1K_V1 to download
            torchvision's.
        dest: the .safetensors file to write.
        arch: the network they are of; without it, what a .safetensors file says of itself, or alexnet.
        backbone: the source holds the convolutions alone.
    """

    source: Annotated[str, tyro.conf.Positional] = PRETRAINED
    dest: Annotated[Path, tyro.conf.Positional] = field(default_factory=exchange.pretrained_path)
    arch: str | None = None
    backbone: bool = False


def main() -> None:
    """`python -m torch_impl.weights [SOURCE] [DEST.safetensors]`.

    Raises:
        UserError: the source cannot be had, read or accepted; then nothing is written.
    """
    command = tyro.cli(_Command, prog="python -m torch_impl.weights")
    exchange.check_destination(command.dest)
    state = download() if command.source == PRETRAINED else read(command.source)
    metadata = exchange.read_metadata(Path(command.source))[0] if command.source.endswith(".safetensors") else {}
    arch = _arch(metadata, command, state)
    check = exchange.check_backbone if command.backbone else exchange.check
    tensors = check(state, arch, command.source)
    names, preprocess = _about(metadata, command.source, arch)
    exchange.write(command.dest, tensors, arch, class_names=names, preprocess=preprocess)
    print(f"{command.dest}: {len(tensors)} tensors of {arch.name}, {arch.classes} classes")


def _arch(metadata: Mapping[str, str], command: _Command, state: Mapping[str, Any]) -> Arch:
    """What the source says of itself, else what the command says."""
    if "arch" not in metadata:
        return exchange.fit_classes(state, get_arch(command.arch or "alexnet"))
    arch = exchange.read_arch(metadata, command.source)
    if command.arch not in (None, arch.name):
        raise UserError(f"{command.source} says that it holds {arch.name}, not {command.arch}: leave out --arch.")
    return arch


def _about(metadata: Mapping[str, str], source: str, arch: Arch) -> tuple[tuple[str, ...], Preprocess | None]:
    """Class names and preprocessing: of torchvision's weights, also from their file, or as a .safetensors has them."""
    from torchvision.models import AlexNet_Weights

    if source == PRETRAINED or Path(source).name == Path(AlexNet_Weights[PRETRAINED].url).name:
        return class_names(), get_recipe("imagenet").preprocess
    return exchange.read_class_names(metadata, arch, source), exchange.read_preprocess(metadata, source)


if __name__ == "__main__":
    guard(main)
