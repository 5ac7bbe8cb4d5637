"""Trained networks and what belongs to them: a run's, a file of weights, or torchvision's pretrained AlexNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common import exchange
from common.arch import ARCHS, Arch, Size, get_arch
from common.datasets import DATASETS
from common.errors import UserError
from common.recipes import Preprocess, Recipe, get_recipe
from common.run import Framework, RunFolder

ClassNames = Callable[[], tuple[str, ...]]


@dataclass(frozen=True)
class Network:
    """What it takes to run a trained network on images.

    Attributes:
        path: a checkpoint or a .safetensors file; None for torchvision's pretrained weights, wherever the framework
            finds them.
        arch: of the network.
        recipe: how images become its input, and the precision.
        class_names: in label order.
    """

    path: Path | None
    arch: Arch
    recipe: Recipe
    class_names: tuple[str, ...]

    @property
    def title(self) -> str:
        """The network in a few words."""
        return str(self.path) if self.path else "torchvision's pretrained AlexNet"

    @property
    def stored(self) -> Size:
        """The size (height, width, channels) of the pixels that its recipe's preprocessing starts from."""
        spec = DATASETS.get(self.recipe.dataset)
        side = self.recipe.preprocess.photo_side(self.arch)
        return (spec.image if spec else None) or (side, side, self.arch.image[2])


def pretrained(class_names: tuple[str, ...]) -> Network:
    """torchvision's ImageNet weights, with the preprocessing that they were published with."""
    return Network(None, get_arch("alexnet"), get_recipe("imagenet"), class_names)


def of_run(path: Path, framework: Framework) -> Network:
    """The result of a run, of either framework; of an unfinished one, the newest checkpoint. Or one checkpoint.

    Raises:
        UserError: there is no run, or nothing in it that this framework opens.
    """
    if not path.exists():
        raise UserError(f"There is no run folder and no checkpoint {path}.")
    folder = RunFolder.open(path)
    if path.samefile(folder.path):
        result = folder.path / "model.safetensors"
        found = [result] if result.is_file() else folder.checkpoints(framework)
        if not found:
            raise UserError(f"{folder.path} has no finished checkpoint yet.")
        path = found[-1]
    elif path.suffix != ".safetensors":
        folder.check_framework(framework)
    return Network(path, folder.arch, folder.recipe, tuple(folder.class_names))


def of_weights(path: Path, names: ClassNames) -> Network:
    """A .safetensors file: inside a run folder, that run's; else what its metadata says, or ImageNet's.

    Args:
        path: of the file, with our names or torchvision's.
        names: gives ImageNet's, for a file of `alexnet` with 1,000 classes that does not name them.

    Raises:
        UserError: it is no such file, or does not say how images become the network's input.
    """
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no .safetensors file. Convert: python -m torch_impl.weights {path} DEST.safetensors"
        )
    metadata, shapes = exchange.read_metadata(path)
    if (path.absolute().parent / "recipe.json").is_file():
        folder = RunFolder.open(path)
        return Network(path, folder.arch, folder.recipe, tuple(folder.class_names))
    if "arch" in metadata:
        arch = exchange.read_arch(metadata, str(path))
    elif set(exchange.rename(shapes).values()) == set(exchange.shapes(get_arch("alexnet"))):
        arch = get_arch("alexnet")
    else:
        raise UserError(f"{path} does not say which architecture it holds, and its tensors are not torchvision's.")
    preprocess = exchange.read_preprocess(metadata, str(path))
    imagenet = arch.classes == DATASETS["imagenet2012"].classes and arch.name == "alexnet"
    if preprocess is None and not imagenet:
        raise UserError(
            f"{path} does not say how images become the input of {arch.name}: name the run that it is of, with --run."
        )
    class_names = exchange.read_class_names(metadata, arch, str(path)) or (names() if imagenet else _numbered(arch))
    return Network(path, arch, _imagenet_like(arch, preprocess), class_names)


def _imagenet_like(arch: Arch, preprocess: Preprocess | None) -> Recipe:
    recipe = get_recipe("imagenet")
    name = arch.name if arch.name in ARCHS else recipe.arch
    return replace(recipe, arch=name, preprocess=preprocess or recipe.preprocess)


def _numbered(arch: Arch) -> tuple[str, ...]:
    return tuple(f"class {label}" for label in range(arch.classes))
