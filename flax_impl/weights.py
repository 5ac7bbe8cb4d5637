"""Weights from files and to files: torchvision's, checkpoints, the exchange format. Beside `torch_impl/weights.py`.

torch is not needed: `torch_impl.weights` turns other formats into .safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from flax.traverse_util import flatten_dict, unflatten_dict

from common.arch.spec import Arch
from common.arch.zoo import get_arch
from common.commands.shell import guard
from common.errors import UserError
from common.runs.folder import result_of
from common.weights import exchange
from common.weights.exchange import About
from common.weights.network import Given, result_at, run_at
from flax_impl.convert import flax_path, from_torch, to_flax_layout, to_torch


def class_names(path: Path | None = None) -> tuple[str, ...]:
    """ImageNet's 1,000 classes by torchvision's names, in label order, from the file that `make weights` writes.

    Raises:
        UserError: there is no such file, or it was written before files carried names.
    """
    path = exchange.pretrained_file(path)
    metadata, _ = exchange.read_metadata(path)
    names = exchange.read_class_names(metadata, get_arch("alexnet"), str(path))
    if not names:
        raise UserError(f"{path} does not name its classes. `make weights` writes it anew (needs PyTorch, once).")
    return names


def at_hand() -> Path | None:
    """torchvision's ImageNet weights where this machine has them: what `make weights` wrote."""
    file = exchange.pretrained_path()
    return file if file.is_file() else None


def save(path: Path, variables: Mapping[str, Any], arch: Arch, batches_tracked: int = 0, **about: Any) -> None:
    """Write variables in the exchange format, which `torch_impl` opens; `about` as for `exchange.write`.

    Raises:
        UserError: as `to_torch`.
    """
    exchange.write(path, to_torch(variables, arch), arch, batches_tracked, **about)


def load(path: Path | str, arch: Arch) -> dict[str, Any]:
    """Read variables of `arch` from a .safetensors file, ours or with torchvision's names.

    Raises:
        UserError: the file cannot be read, holds another network, or not exactly these tensors.
    """
    return from_torch(exchange.check(exchange.read_for(path, arch), arch, str(path)), arch)


def load_variables(path: Path, arch: Arch, precision: str = "float32") -> dict[str, Any]:
    """The network's variables, of a checkpoint in this precision or of a .safetensors file.

    Raises:
        UserError: the file cannot be read or does not fit `arch`.
    """
    if path.suffix == ".safetensors":
        return load(path, arch)
    from flax_impl import checkpoint  # orbax: where ONNX is written there may be another version

    return checkpoint.load_variables(path, arch, precision)


def load_partial(
    path: Path | str, variables: dict[str, Any], arch: Arch, *, backbone: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Start from a file: a whole network, one with another last layer, or a backbone alone.

    Args:
        path: of a .safetensors file, a run folder or a Flax checkpoint in one.
        variables: to replace.
        arch: of the network.
        backbone: load the convolutions alone, whatever else the file holds.

    Returns:
        The variables, and the names of the layers that stayed as they were.

    Raises:
        UserError: the file cannot be read, or more is missing than the classifier.
    """
    path = result_of(Path(path))
    state: Mapping[str, Any]
    if path.suffix == ".safetensors":
        state, _ = exchange.read(path)
    elif run_at(path):
        network = result_at(path, "flax", f"weights {path} DEST.safetensors")
        state = to_torch(load_variables(path, network.arch, network.param_dtype), network.arch)
    else:
        raise UserError(f"Flax reads .safetensors only. Convert: python -m torch_impl.weights {path} DEST.safetensors")
    loaded = exchange.check_partial(exchange.backbone(state, arch) if backbone else state, arch, str(path))
    flat = flatten_dict(variables)
    for name, array in loaded.tensors.items():
        old = flat[flax_path(name)]
        flat[flax_path(name)] = to_flax_layout(name, array, arch).astype(old.dtype)
    return unflatten_dict(flat), loaded.fresh


def load_pretrained(
    variables: dict[str, Any], arch: Arch, path: Path | None = None, *, backbone: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Load torchvision's ImageNet weights; the last layer stays fresh for another number of classes.

    Args:
        variables: to replace.
        arch: of the network.
        path: of the .safetensors file; the one that `make weights` writes when not given.
        backbone: load the convolutions alone; the dense layers stay fresh.

    Returns:
        The variables, and the names of the layers that stayed as they were.

    Raises:
        UserError: there is no such file, or `arch` is another network.
    """
    return load_partial(exchange.pretrained_file(path), variables, arch, backbone=backbone)


@dataclass(frozen=True)
class _Command:
    """Write a Flax checkpoint, or a .safetensors file of ours, as .safetensors in PyTorch's layout.

    Attributes:
        source: a run folder, a checkpoint in one, or a .safetensors file that one of this project's commands wrote.
        dest: the .safetensors file to write.
        names: of the tensors in it: ours, which both frameworks here open, or torchvision's.
        arch: the network they are of, for a file that does not say.
        recipe: of its training: it says how images become the network's input.
        classes: class names in label order: a list with commas between, or a file of lines.
    """

    source: Annotated[Path, tyro.conf.Positional]
    dest: Annotated[Path, tyro.conf.Positional]
    names: Literal["ours", "torchvision"] = "ours"
    arch: str | None = None
    recipe: str | None = None
    classes: str | None = None


def main() -> None:
    """`python -m flax_impl.weights SOURCE DEST.safetensors`.

    Raises:
        UserError: the source cannot be read, or has no counterpart in torchvision; then nothing is written.
    """
    command = tyro.cli(_Command, prog="python -m flax_impl.weights")
    exchange.check_destination(command.dest)
    if command.source.suffix in (".pth", ".pt"):
        raise UserError(f"{command.source} is PyTorch's: python -m torch_impl.weights {command.source} {command.dest}")
    given = Given(command.arch, command.recipe, command.classes)
    network = result_at(command.source, "flax", f"weights {command.source} {command.dest}", given)
    assert network.path
    arch, about = network.arch, About(network.class_names, network.known, network.image, network.splits)
    if network.path.suffix == ".safetensors":
        given_tensors, metadata = exchange.read(network.path)
        tensors = exchange.check(given_tensors, arch, str(network.path))
        about = replace(about, preprocess=exchange.read_preprocess(metadata, str(network.path)))
    else:
        tensors = to_torch(load_variables(network.path, arch, network.param_dtype), arch)
    if command.names == "torchvision":
        tensors = {exchange.to_torchvision(name): array for name, array in tensors.items()}
    exchange.write(command.dest, tensors, arch, **vars(about))
    print(f"{command.dest}: {len(tensors)} tensors of {arch.name}, {arch.classes} classes")


if __name__ == "__main__":
    guard(main)
