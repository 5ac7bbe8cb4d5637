"""From a path to the trained network that it names, and to what belongs to that: the one answer for every command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.arch.spec import Arch, Size
from common.arch.zoo import ARCHS, get_arch
from common.data.classes import difference, in_channels, read_names
from common.data.dataset import Dataset
from common.data.load import wordnet_names
from common.data.spec import DATASETS
from common.errors import UserError
from common.frameworks import FRAMEWORKS, Framework
from common.recipes.spec import Recipe
from common.recipes.zoo import get_recipe
from common.runs.folder import RunFolder, result_of
from common.weights import exchange
from common.weights.exchange import About

ClassNames = Callable[[], tuple[str, ...]]
UNSAID = ""  # the dataset of a network that does not say on what it was trained
CONVERT = "Convert it: `python -m torch_impl.weights {} DEST.safetensors`"


@dataclass(frozen=True)
class Given:
    """What a command says of a .safetensors file, which then goes before what the file says of itself.

    Attributes:
        arch: its architecture, if the file does not say.
        recipe: whose preprocessing, data and precision belong to it.
        classes: its class names in label order: a list with commas between, or a file, see `read_names`.
    """

    arch: str | None = None
    recipe: str | None = None
    classes: str | None = None


NOTHING = Given()


@dataclass(frozen=True)
class Network:
    """What it takes to run a trained network on images.

    Attributes:
        path: a checkpoint or a .safetensors file; None for torchvision's pretrained weights, wherever the framework
            finds them.
        arch: of the network.
        known: how images become its input, and the precision; None where nobody says.
        class_names: in label order; empty where nobody says.
        image: size (height, width, channels) at which its data is stored; None for photographs, and for the size of
            its recipe's dataset.
        splits: fingerprints of the data that it was trained and tested on, as far as they are known.
    """

    path: Path | None
    arch: Arch
    known: Recipe | None
    class_names: tuple[str, ...]
    image: Size | None = None
    splits: Mapping[str, str] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """`known`, of a network that is run on images; see `complete`."""
        assert self.known, f"{self.title}: nobody says how images become its input"
        return self.known

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each class, by its number where there is none."""
        return self.class_names or tuple(f"class {label}" for label in range(self.arch.classes))

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
        side = self.recipe.preprocess.photo_side(self.arch)
        return self.image or image_of(self.recipe) or (side, side, self.arch.image[2])

    @property
    def on_dark(self) -> bool:
        """Whether it is known that its pictures are light on a dark ground, as handwritten digits are stored."""
        spec = DATASETS.get(self.recipe.dataset)
        return bool(spec and spec.dark)

    def take(self, data: Dataset) -> tuple[Network, Dataset]:
        """The network and data so that each image becomes what an image of the network's own dataset is.

        Photographs are reduced to the size at which that is stored, and to its channels, as a prediction does it.

        Raises:
            UserError: the data is stored at another size.
        """
        own, (height, width, channels) = self.image or image_of(self.recipe), self.stored
        if data.image == own and (own or channels == 3):
            return self, data
        if data.image is not None or height != width:
            size = "photographs" if data.image is None else "images of {}x{}x{}".format(*data.image)
            raise UserError(
                f"{data.name} holds {size}, and {self.title} was trained on images of {height}x{width}x{channels}: "
                f"give it a dataset of these, or a folder of photographs."
            )
        spec = replace(self.recipe.preprocess, host_resize=height)
        return replace(self, known=replace(self.recipe, preprocess=spec)), in_channels(data, channels)


def image_of(recipe: Recipe) -> Size | None:
    """The size at which a recipe's dataset is stored; None for photographs."""
    spec = DATASETS.get(recipe.dataset)
    return spec.image if spec else None


def about(run: RunFolder) -> About:
    """What the file of a run's network says of it."""
    recorded = run.manifest.get("data")
    splits = recorded if isinstance(recorded, dict) else {}
    prints = {name: part["sha256"] for name, part in splits.items() if isinstance(part, dict) and "sha256" in part}
    return About(tuple(run.class_names), run.recipe, image_of(run.recipe), prints)


def pretrained(class_names: tuple[str, ...]) -> Network:
    """torchvision's ImageNet weights, with the preprocessing that they were published with."""
    return Network(None, get_arch("alexnet"), get_recipe("imagenet"), class_names)


def networks_at(path: Path, framework: Framework, command: str, given: Given = NOTHING) -> list[Network]:
    """The networks that a path names: every checkpoint of a run folder, oldest first, or the one file.

    Args:
        path: a run folder, a checkpoint of `framework` inside one, or a .safetensors file.
        framework: that reads it.
        command: that reads it, named where the other framework's must be used instead.
        given: for a .safetensors file outside a run folder.

    Raises:
        UserError: it is not there, not finished, of the other framework, or does not say what it is.
    """
    if path.suffix in (".pth", ".pt") and not run_at(path):
        raise UserError(f"{path} is no .safetensors file. {CONVERT.format(path)}.")
    if not path.exists():
        raise UserError(f"There is no run folder, checkpoint or .safetensors file {path}.")
    run = run_at(path)
    if path.suffix == ".safetensors" and not run:
        return [_alone(path, given)]
    run = run or RunFolder.open(path)
    for name, value in vars(given).items():
        if value is not None:
            raise UserError(f"--{name} {value}: leave it out, the run folder {run.path} says what its network is.")
    found = _files(path, run, framework, command)
    arch, said = run.arch, about(run)
    if len(said.class_names) != arch.classes:
        raise UserError(
            f"{run.path / 'manifest.json'} names {len(said.class_names)} classes of a network that has {arch.classes}."
        )
    return [Network(file, arch, said.recipe, said.class_names, said.stored, said.splits) for file in found]


def _files(path: Path, run: RunFolder, framework: Framework, command: str) -> list[Path]:
    """The files of networks that a path in a run names; errors as of `networks_at`."""
    if path.samefile(run.path):
        if found := run.checkpoints(framework, command):
            return found
        raise UserError(f"{run.path} has no finished checkpoint yet.")
    if path.is_dir() and path.suffix not in [each.suffix for each in FRAMEWORKS.values()]:
        raise UserError(f"{path} is a folder in the run {run.path}: name {run.path} itself, or one of its checkpoints.")
    if path.suffix != ".safetensors":
        run.check_framework(framework, command)
    return [path]


def result_at(path: Path, framework: Framework, command: str, given: Given = NOTHING) -> Network:
    """The one network that a path names; of a run folder its result, which either framework opens.

    Of a run that has no result yet, the newest checkpoint. Arguments and errors as of `networks_at`.
    """
    result = path / "model.safetensors"
    return networks_at(result if result.is_file() else path, framework, command, given)[-1]


def complete(network: Network, names: ClassNames) -> Network:
    """A network that can be run on images: what nobody says is taken from its file's metadata, or is torchvision's.

    Args:
        network: of a .safetensors file.
        names: gives ImageNet's classes, for a file of `alexnet` with 1,000 classes that does not name them.

    Raises:
        UserError: nobody says how images become the network's input.
    """
    if network.path is None:
        return network
    arch, path = network.arch, network.path
    imagenet = arch.classes == DATASETS["imagenet2012"].classes and arch.name == "alexnet"
    if imagenet and not network.class_names:
        network = replace(network, class_names=_imagenet_names(names))
    if network.known:
        return network
    preprocess = exchange.read_preprocess(exchange.read_metadata(path)[0], str(path))
    if preprocess is None and arch.name != "alexnet":
        raise UserError(
            f"{path} does not say how images become the input of {arch.name}: give the recipe of its training, "
            f"--recipe NAME, or the run that it is of."
        )
    like = get_recipe("imagenet")
    if preprocess:
        _note(f"{path} does not say at which size its images were stored: a recipe does, --recipe NAME")
    elif not imagenet:
        _note(f"{path} does not say how images become its input: taken to be as torchvision's, or say --recipe NAME")
    recipe = replace(
        like,
        arch=arch.name if arch.name in ARCHS else like.arch,
        preprocess=preprocess or like.preprocess,
        dataset=like.dataset if imagenet else UNSAID,
    )
    exchange.check_recipe(recipe, None, arch, str(path))
    return replace(network, known=recipe)


def _imagenet_names(names: ClassNames) -> tuple[str, ...]:
    """As people know the classes; by their WordNet names where those are not at hand."""
    try:
        return names()
    except UserError:
        _note("the classes go by WordNet's names: `make weights` brings torchvision's, or give them with --classes")
        return wordnet_names()


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def note_other_classes(path: Path, names: Sequence[str]) -> None:
    """Say where training starts from a last layer whose classes are called otherwise than those it will tell apart.

    Args:
        path: that training starts from; checkpoints of PyTorch do not name their classes.
        names: of the classes to come, in label order.
    """
    file = result_of(path)
    if file.suffix == ".safetensors":
        metadata, _ = exchange.read_metadata(file)
        before = json.loads(metadata.get("class_names", "[]"))
        if before and tuple(before) != tuple(names):
            told = difference(names, before) or "their order is another"
            _note(f"the last layer of {path} is kept, whose classes were others: {told}")


def other_photographs(path: Path, trained_on: str) -> str:
    """What to say where training starts from a network that has seen photographs of its own; empty where it has not.

    Args:
        path: that training starts from; a file that is gone, or of another format, says nothing.
        trained_on: the fingerprint of what is trained on now, see `Dataset.fingerprint`.
    """
    try:
        metadata, _ = exchange.read_metadata(file := result_of(path))
        said = exchange.read_about(metadata, exchange.read_arch(metadata, str(file)), str(file))
    except UserError:
        return ""
    if not said.recipe or not said.recipe.dataset.startswith("folder:") or said.splits.get("train") == trained_on:
        return ""
    return f"{path} had been trained on photographs, too: if some of them are tested on here, the accuracy is too good"


def run_at(path: Path) -> RunFolder | None:
    """The run that a folder, a checkpoint or a result belongs to; None of a file that speaks for itself."""
    if path.suffix == ".pth" or (path.suffix == ".safetensors" and not _is_result(path)):
        return None
    found = [folder for folder in (path, *path.absolute().parents[:2]) if RunFolder.is_at(folder)]
    return RunFolder(found[0]) if found else None


def _is_result(path: Path) -> bool:
    """Whether a .safetensors file is a run's: another model that lies in its folder speaks for itself."""
    if not RunFolder.is_at(path.absolute().parent):
        return False
    return path.name == "model.safetensors" or "recipe" not in exchange.read_metadata(path)[0]


def _alone(path: Path, given: Given) -> Network:
    """A .safetensors file outside a run folder."""
    tensors, metadata = exchange.read(path)
    if "arch" in metadata:
        arch = exchange.read_arch(metadata, str(path))
        if given.arch not in (None, arch.name):
            raise UserError(f"--arch {given.arch}: {path} says that it holds {arch.name}.")
    elif given.arch:
        arch = exchange.fit(tensors, get_arch(given.arch))
    elif set(exchange.rename(tensors).values()) == set(exchange.shapes(get_arch("alexnet"))):
        arch = exchange.fit(tensors, get_arch("alexnet"))
    else:
        raise UserError(
            f"{path} does not say which architecture it holds, and its tensors are not torchvision's: convert it, "
            f"`python -m torch_impl.weights {path} DEST.safetensors --arch NAME`."
        )
    said = with_given(exchange.read_about(metadata, arch, str(path)), given, arch, str(path))
    return Network(path, arch, said.recipe, said.class_names, said.stored, said.splits)


def with_given(said: About, given: Given, arch: Arch, where: str) -> About:
    """What a file says of its network, or a command in its place.

    Raises:
        UserError: the names are not one for each class, or the recipe's images do not fit the network.
    """
    if given.classes is not None:
        said = replace(said, class_names=exchange.check_names(read_names(given.classes), arch, where))
    if given.recipe is not None:
        recipe = get_recipe(given.recipe)
        exchange.check_recipe(recipe, image_of(recipe), arch, where)
        said = replace(said, recipe=recipe, stored=image_of(recipe), splits={})
    return said
