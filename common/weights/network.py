"""From a path to the trained network that it names, and to what belongs to that: the one answer for every command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from common.arch.spec import Arch, Size
from common.arch.zoo import ARCHS, get_arch
from common.data.spec import DATASETS
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.spec import Recipe
from common.recipes.zoo import get_recipe
from common.runs.folder import RunFolder
from common.weights import exchange

ClassNames = Callable[[], tuple[str, ...]]


@dataclass(frozen=True)
class Network:
    """What it takes to run a trained network on images.

    Attributes:
        path: a checkpoint or a .safetensors file; None for torchvision's pretrained weights, wherever the framework
            finds them.
        arch: of the network.
        known: how images become its input, and the precision; None where nobody says.
        class_names: in label order; empty where nobody says.
    """

    path: Path | None
    arch: Arch
    known: Recipe | None
    class_names: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """`known`, of a network that is run on images; see `complete`."""
        assert self.known, f"{self.title}: nobody says how images become its input"
        return self.known

    @property
    def param_dtype(self) -> str:
        """Of its parameters."""
        return self.known.param_dtype if self.known else "float32"

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


def networks_at(
    path: Path, framework: Framework, command: str, *, arch: str | None = None, recipe: str | None = None
) -> list[Network]:
    """The networks that a path names: every checkpoint of a run folder, oldest first, or the one file.

    Args:
        path: a run folder, a checkpoint of `framework` inside one, or a .safetensors file.
        framework: that reads it.
        command: that reads it, named where the other framework's must be used instead.
        arch: the architecture of a .safetensors file that does not say.
        recipe: whose preprocessing belongs to a .safetensors file outside a run folder.

    Raises:
        UserError: it is not there, not finished, of the other framework, or does not say what it is.
    """
    if not path.exists():
        raise UserError(f"There is no run folder, checkpoint or .safetensors file {path}.")
    if path.suffix == ".safetensors" and not RunFolder.is_at(path.absolute().parent):
        return [_alone(path, arch, recipe)]
    run = RunFolder.open(path)
    for name, value in (("arch", arch), ("recipe", recipe)):
        if value is not None:
            raise UserError(f"--{name} {value}: leave it out, the run folder {run.path} says what its network is.")
    if path.samefile(run.path):
        found = run.checkpoints(framework, command)
    else:
        found = [path]
        if path.suffix != ".safetensors":
            run.check_framework(framework, command)
    if not found:
        raise UserError(f"{run.path} has no finished checkpoint yet.")
    return [Network(file, run.arch, run.recipe, tuple(run.class_names)) for file in found]


def result_at(
    path: Path, framework: Framework, command: str, *, arch: str | None = None, recipe: str | None = None
) -> Network:
    """The one network that a path names; of a run folder its result, which either framework opens.

    Of a run that has no result yet, the newest checkpoint. Arguments and errors as of `networks_at`.
    """
    result = path / "model.safetensors"
    return networks_at(result if result.is_file() else path, framework, command, arch=arch, recipe=recipe)[-1]


def complete(network: Network, names: ClassNames) -> Network:
    """A network that can be run on images: what nobody says is taken from its file's metadata, or is ImageNet's.

    Args:
        network: of a .safetensors file.
        names: gives ImageNet's classes, for a file of `alexnet` with 1,000 classes that does not name them.

    Raises:
        UserError: nobody says how images become the network's input.
    """
    if network.known or network.path is None:
        return network
    arch, path = network.arch, network.path
    preprocess = exchange.read_preprocess(exchange.read_metadata(path)[0], str(path))
    imagenet = arch.classes == DATASETS["imagenet2012"].classes and arch.name == "alexnet"
    if preprocess is None and not imagenet:
        raise UserError(
            f"{path} does not say how images become the input of {arch.name}: name the run that it is of, with --run."
        )
    like = get_recipe("imagenet")
    recipe = replace(
        like, arch=arch.name if arch.name in ARCHS else like.arch, preprocess=preprocess or like.preprocess
    )
    numbered = tuple(f"class {label}" for label in range(arch.classes))
    return replace(network, known=recipe, class_names=network.class_names or (names() if imagenet else numbered))


def _alone(path: Path, arch: str | None, recipe: str | None) -> Network:
    """A .safetensors file outside a run folder."""
    tensors, metadata = exchange.read(path)
    if "arch" in metadata:
        found = exchange.read_arch(metadata, str(path))
        if arch not in (None, found.name):
            raise UserError(f"--arch {arch}: {path} says that it holds {found.name}.")
    elif arch:
        found = exchange.fit_classes(tensors, get_arch(arch))
    elif set(exchange.rename(tensors).values()) == set(exchange.shapes(get_arch("alexnet"))):
        found = exchange.fit_classes(tensors, get_arch("alexnet"))
    else:
        raise UserError(
            f"{path} does not say which architecture it holds, and its tensors are not torchvision's: convert it, "
            f"`python -m torch_impl.weights {path} DEST.safetensors --arch NAME`."
        )
    names = exchange.read_class_names(metadata, found, str(path))
    return Network(path, found, get_recipe(recipe) if recipe else None, names)
