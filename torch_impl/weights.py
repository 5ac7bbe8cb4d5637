"""Weights from files and to files: torchvision's, checkpoints, the exchange format. Beside `flax_impl/weights.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from common.arch.spec import Arch
from common.commands.shell import guard
from common.errors import UserError
from common.recipes.zoo import get_recipe
from common.runs.folder import result_of
from common.weights import exchange, foreign
from common.weights.exchange import About
from common.weights.network import Given, result_at, run_at, with_given
from torch_impl import checkpoint, pth
from torch_impl.model import AlexNet, LeNet, build


def class_names() -> tuple[str, ...]:
    """ImageNet's 1,000 classes by the names that torchvision gives them, in label order."""
    from torchvision.models import AlexNet_Weights

    return tuple(AlexNet_Weights[pth.PRETRAINED].meta["categories"])


def at_hand() -> Path | None:
    """torchvision's ImageNet weights where this machine has them: its own download, or what `make weights` wrote."""
    return next((file for file in (pth.cached(), exchange.pretrained_path()) if file.is_file()), None)


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
    state = exchange.read_for(path, arch) if path.suffix == ".safetensors" else pth.read(path)[0]
    pth.fill(model, exchange.check(state, arch, str(path)))


def load_model(path: Path, arch: Arch, precision: str = "float32") -> AlexNet | LeNet:
    """The network of a checkpoint, or of a .safetensors file in this precision, on the CPU.

    Raises:
        UserError: the file cannot be read or does not fit `arch`.
    """
    if path.suffix != ".safetensors":
        return checkpoint.load_model(path, arch)
    with torch.device("meta"):  # draws no weights, for the file's take their places
        model = build(arch)
    given = exchange.check(exchange.read_for(path, arch), arch, str(path))
    state = {name: torch.from_numpy(array).to(getattr(torch, precision)) for name, array in given.items()}
    counters = [name for name in model.state_dict() if name.endswith(exchange.COUNTER)]
    model.load_state_dict(state | {name: torch.zeros((), dtype=torch.long) for name in counters}, assign=True)
    return model


def load_partial(path: Path | str, model: nn.Module, arch: Arch) -> tuple[str, ...]:
    """Start from a file: a whole network, one with another last layer, or a backbone alone.

    Args:
        path: of a .safetensors or .pth file, a run folder or a PyTorch checkpoint in one.
        model: changed in place.
        arch: of the model.

    Returns:
        The names of the layers that stayed as they were.

    Raises:
        UserError: the file cannot be read, or more is missing than the classifier; the model is then untouched.
    """
    path = result_of(Path(path))
    state: Mapping[str, Any]
    if path.suffix != ".safetensors" and run_at(path):
        network = result_at(path, "torch", f"weights {path} DEST.safetensors")
        state = load_model(path, network.arch).state_dict()
    else:
        state = pth.read(path)[0]
    loaded = exchange.check_partial(state, arch, str(path))
    pth.fill(model, loaded.tensors)
    return loaded.fresh


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
    state = exchange.backbone(pth.download(), arch) if backbone else pth.download()
    loaded = exchange.check_partial(state, arch, "torchvision's pretrained AlexNet")
    pth.fill(model, loaded.tensors)
    return loaded.fresh


@dataclass(frozen=True)
class _Command:
    """Convert weights into the exchange format, which both frameworks open.

    Attributes:
        source: a .pth or .safetensors file, ours, torchvision's or of a program that trained torchvision's network; a
            checkpoint in a run folder; or IMAGENET1K_V1 to download torchvision's.
        dest: the .safetensors file to write.
        arch: the network they are of; without it, what a file says of itself, or the first that fits.
        recipe: of its training: it says how images become the network's input.
        classes: class names in label order: a list with commas between, or a file of lines.
        part: which network to take, of a file that holds several.
        backbone: the source holds the convolutions alone.
    """

    source: Annotated[str, tyro.conf.Positional] = pth.PRETRAINED
    dest: Annotated[Path, tyro.conf.Positional] = field(default_factory=exchange.pretrained_path)
    arch: str | None = None
    recipe: str | None = None
    classes: str | None = None
    part: str | None = None
    backbone: bool = False


def main() -> None:
    """`python -m torch_impl.weights [SOURCE] [DEST.safetensors]`.

    Raises:
        UserError: the source cannot be had, read or accepted; then nothing is written.
    """
    command = tyro.cli(_Command, prog="python -m torch_impl.weights")
    exchange.check_destination(command.dest)
    given = Given(command.arch, command.recipe, command.classes)
    done: list[str] = []
    if run_at(Path(command.source)):
        tensors, arch, said = _of_run(command, given)
    else:
        tensors, arch, said, done = _of_file(command, given)
    exchange.write(command.dest, tensors, arch, **vars(said))
    for sentence in done:
        print(f"{command.source}: {sentence}")
    print(f"{command.dest}: {len(tensors)} tensors of {arch.name}, {arch.classes} classes")
    for field_name, lacking in (("classes", not said.class_names), ("recipe", said.recipe is None)):
        if lacking and not command.backbone:
            print(f"{command.dest}: it does not say its {field_name}; --{field_name} here or where it is used does")


def _of_run(command: _Command, given: Given) -> tuple[exchange.Tensors, Arch, About]:
    """A checkpoint's tensors, and what its run says of it."""
    network = result_at(Path(command.source), "torch", f"weights {command.source} {command.dest}", given)
    assert network.path
    model = load_model(network.path, network.arch, network.param_dtype)
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    said = About(network.class_names, network.known, network.image, network.splits)
    return exchange.check(state, network.arch, command.source), network.arch, said


def _of_file(command: _Command, given: Given) -> tuple[exchange.Tensors, Arch, About, list[str]]:
    """A file's tensors, what is known of them, and what was done to read them."""
    source, metadata = command.source, dict[str, str]()
    if source == pth.PRETRAINED:
        state, done = dict[str, Any](pth.download()), list[str]()
    else:
        state, done = pth.read(source, command.part)
        metadata = exchange.read_metadata(Path(source))[0] if source.endswith(".safetensors") else {}
    arch = _arch(metadata, command, state)
    check = exchange.check_backbone if command.backbone else exchange.check
    tensors = check(state, arch, source)
    return tensors, arch, with_given(_about(metadata, source, arch), given, arch, source), done


def _arch(metadata: Mapping[str, str], command: _Command, state: Mapping[str, Any]) -> Arch:
    """What the source says of itself, else what the command says."""
    if "arch" not in metadata:
        return foreign.fit(state, command.arch, get_recipe(command.recipe) if command.recipe else None)
    arch = exchange.read_arch(metadata, command.source)
    if command.arch not in (None, arch.name):
        raise UserError(f"{command.source} says that it holds {arch.name}, not {command.arch}: leave out --arch.")
    return arch


def _about(metadata: Mapping[str, str], source: str, arch: Arch) -> About:
    """Classes and recipe: of torchvision's weights, also from their file, or as a .safetensors has them."""
    from torchvision.models import AlexNet_Weights

    if source == pth.PRETRAINED or Path(source).name == Path(AlexNet_Weights[pth.PRETRAINED].url).name:
        return About(class_names(), get_recipe("imagenet"))
    return exchange.read_about(metadata, arch, source)


if __name__ == "__main__":
    guard(main)
