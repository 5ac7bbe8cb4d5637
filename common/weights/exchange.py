"""The exchange format: one safetensors file, the layers' own names, PyTorch's layout. Strict on the way in.

A model trained in either framework is written as `conv1.conv.weight` (out, in, height, width), `fc6.weight`
(out, channels * height * width) and so on, with its `Arch` as JSON in the metadata, and all else that its answers
depend on where that is known; see `About`. torchvision's names are understood too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.arch.spec import Arch, Size
from common.arch.zoo import know_arch
from common.config import from_dict, to_dict
from common.errors import UserError
from common.recipes.spec import Preprocess, Recipe
from common.runs.files import atomic
from common.system import cache_folder

Tensors = dict[str, np.ndarray]

COUNTER = "num_batches_tracked"  # PyTorch's batch norm counts its updates; Flax has no such tensor

# torchvision/models/alexnet.py numbers the modules of two nn.Sequentials, ReLUs, pools and dropouts included.
TORCHVISION_LAYERS = {
    "features.0": "conv1.conv",
    "features.3": "conv2.conv",
    "features.6": "conv3.conv",
    "features.8": "conv4.conv",
    "features.10": "conv5.conv",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}


@dataclass(frozen=True)
class Loaded:
    """Tensors to load into a model, and the layers that a file does not give and that stay fresh."""

    tensors: Tensors
    fresh: tuple[str, ...]


@dataclass(frozen=True)
class About:
    """What a file says of its model besides the architecture.

    Attributes:
        class_names: in label order; empty if the file does not say.
        recipe: of its training: preprocessing, precision, data; None if the file does not say.
        stored: size (height, width, channels) of the images that the preprocessing starts from; None: photographs.
        splits: the fingerprint of each split of the data that it was trained and tested on, see `Dataset.fingerprint`.
        preprocess: how images become the model's input, of an older file, which has no recipe.
    """

    class_names: tuple[str, ...] = ()
    recipe: Recipe | None = None
    stored: Size | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers.

    Attributes:
        step: steps done.
        slots: in each (`momentum_buffer`, ...) a tensor per parameter.
        frozen: the steps, out of these, during which a parameter was frozen, where there were any.
    """

    step: int
    slots: dict[str, Tensors]
    frozen: dict[str, int] = field(default_factory=dict)


def shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an architecture, in the order of the layers."""
    table: dict[str, tuple[int, ...]] = {}
    channels = arch.image[2]
    for name, conv in arch.named_convs():
        table[f"{name}.conv.weight"] = (conv.features, channels // conv.groups, conv.kernel, conv.kernel)
        if conv.bias:
            table[f"{name}.conv.bias"] = (conv.features,)
        if conv.norm:
            for part in ("weight", "bias", "running_mean", "running_var"):
                table[f"{name}.norm.{part}"] = (conv.features,)
        channels = conv.features
    height, width, channels = arch.feature_size
    inputs = height * width * channels
    for name, dense in arch.named_dense():
        table[f"{name}.weight"] = (dense.features, inputs)
        table[f"{name}.bias"] = (dense.features,)
        inputs = dense.features
    return table


def rename(names: Iterable[str]) -> dict[str, str]:
    """Map each name to ours: torchvision's are translated, others stay.

    Raises:
        UserError: a name is not a text.
    """
    table = {}
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"Tensors go by names such as conv1.conv.weight; {name!r} is none.")
        layer, _, part = name.rpartition(".")
        table[name] = f"{TORCHVISION_LAYERS[layer]}.{part}" if layer in TORCHVISION_LAYERS else name
    return table


def to_torchvision(name: str) -> str:
    """Our name of a tensor of `alexnet` -> torchvision's.

    Raises:
        UserError: torchvision's network has no such layer.
    """
    layer, _, part = name.rpartition(".")
    back = {ours: theirs for theirs, ours in TORCHVISION_LAYERS.items()}
    if layer not in back:
        raise UserError(f"torchvision's AlexNet has no layer {layer!r}.")
    return f"{back[layer]}.{part}"


def check(state: Mapping[str, Any], arch: Arch, where: str) -> Tensors:
    """Accept a complete set of tensors for `arch`, or refuse it whole.

    Args:
        state: arrays by name, ours or torchvision's; anything that numpy can view, in PyTorch's layout.
        arch: which the tensors must fit exactly; nothing is reshaped or transposed to fit.
        where: what holds them, for the message.

    Returns:
        The tensors under our names, in the order of the layers. PyTorch's batch counters are left out.

    Raises:
        UserError: lists every tensor that is missing, unknown, mis-shaped, there twice, not floating-point or not
            finite.
    """
    return _accept(state, shapes(arch), arch, where)


def check_backbone(state: Mapping[str, Any], arch: Arch, where: str) -> Tensors:
    """As `check`, for the convolution blocks alone.

    Raises:
        UserError: the state holds anything else, or less.
    """
    blocks = {name for name, _ in arch.named_convs()}
    wanted = {name: shape for name, shape in shapes(arch).items() if name.split(".")[0] in blocks}
    return _accept(state, wanted, arch, where)


def backbone(state: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """The tensors of the convolution blocks alone, under the names that they have."""
    blocks = {name for name, _ in arch.named_convs()}
    ours = rename(state)
    return {name: tensor for name, tensor in state.items() if ours[name].split(".")[0] in blocks}


def fit(state: Mapping[str, Any], arch: Arch) -> Arch:
    """`arch` with as many channels and classes as the first and last layer in `state` have, where it has these."""
    ours = {name: np.shape(state[given]) for given, name in rename(state).items()}
    (first, conv), *_ = arch.named_convs()
    *_, (last, _) = arch.named_dense()
    kernel, bias = ours.get(f"{first}.conv.weight", ()), ours.get(f"{last}.bias", ())
    return arch.adapt(
        channels=kernel[1] * conv.groups if len(kernel) == 4 and kernel[1] else None,
        classes=bias[0] if bias and bias[0] else None,
    )


def check_optimizer(state: OptimizerState, wanted: OptimizerState) -> None:
    """Refuse an optimizer's state that does not have exactly the slots and tensors of another.

    Raises:
        UserError: lists every slot or tensor that is missing, unknown or mis-shaped.
    """
    given = {f"{slot}/{name}": array.shape for slot, rows in state.slots.items() for name, array in rows.items()}
    needed = {f"{slot}/{name}": array.shape for slot, rows in wanted.slots.items() for name, array in rows.items()}
    problems = [f"{name} {shape} is missing" for name, shape in needed.items() if name not in given]
    problems += [f"{name} {shape} is unknown" for name, shape in given.items() if name not in needed]
    problems += [f"{n} is {given[n]}, not {needed[n]}" for n in given.keys() & needed.keys() if given[n] != needed[n]]
    if problems:
        raise UserError(f"The optimizer's state does not fit: {'; '.join(sorted(problems))}.")


def check_partial(state: Mapping[str, Any], arch: Arch, where: str) -> Loaded:
    """As `check`, for starting a run: the classifier may be absent, or its last layer made for other classes.

    Raises:
        UserError: anything else is missing, unknown, mis-shaped or not finite.
    """
    wanted = shapes(arch)
    names = rename(state)
    given = {names[name]: tuple(np.shape(array)) for name, array in state.items()}
    dense = [name for name, _ in arch.named_dense()]
    fresh: list[str] = []
    if not any(name.split(".")[0] in dense for name in given):
        fresh = dense
    elif given.get(f"{dense[-1]}.weight", ())[:1] != (arch.classes,):
        fresh = dense[-1:]
        state = {name: array for name, array in state.items() if names[name].split(".")[0] not in fresh}
    wanted = {name: shape for name, shape in wanted.items() if name.split(".")[0] not in fresh}
    return Loaded(_accept(state, wanted, arch, where), tuple(fresh))


def _accept(state: Mapping[str, Any], wanted: dict[str, tuple[int, ...]], arch: Arch, where: str) -> Tensors:
    ours = rename(state)
    counters = {f"{name}.norm.{COUNTER}" for name, conv in arch.named_convs() if conv.norm}
    times = Counter(ours.values())
    problems = [f"{name} is there twice, under two names" for name, count in times.items() if count > 1]
    problems += [f"{name} {shape} is missing" for name, shape in wanted.items() if name not in times]
    tensors: Tensors = {}
    for given, value in state.items():
        name = ours[given]
        if name in counters:
            continue
        if name not in wanted:
            problems.append(f"{name} {tuple(np.shape(value))} is unknown")
        elif problem := _take(value, wanted[name], tensors, name):
            problems.append(f"{name} {problem}")
    if problems:
        wrapped = bool(state) and all(name.startswith("module.") for name in state)
        hint = " The names begin with 'module.', which DataParallel puts there: torch_impl.weights strips it." * wrapped
        fault = "; ".join(sorted(problems))
        raise UserError(f"{where} does not fit {arch.name} with {arch.classes} classes: {fault}.{hint}")
    return {name: tensors[name] for name in wanted}


def _take(value: Any, shape: tuple[int, ...], tensors: Tensors, name: str) -> str:
    """Put a value among the tensors, or say what is wrong with it."""
    if hasattr(value, "detach"):
        value = value.detach()  # PyTorch's, of a model in training
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"cannot become a numpy array ({str(error).splitlines()[0].rstrip('.')})"
    if array.shape != shape:
        return f"is {array.shape}, not {shape}"
    if array.dtype.kind != "f":
        return f"is {array.dtype}; float16, float32 and float64 are taken"
    if not np.isfinite(array).all():
        return "holds NaN or infinity"
    tensors[name] = array
    return ""


def pretrained_path() -> Path:
    """Where `make weights` puts torchvision's ImageNet weights in the exchange format."""
    return cache_folder() / "alexnet_imagenet1k_v1.safetensors"


def pretrained_file(path: Path | None = None) -> Path:
    """The file that `make weights` writes, or the one named.

    Raises:
        UserError: it is not there; says how to get it.
    """
    path = path or pretrained_path()
    if not path.is_file():
        raise UserError(
            f"torchvision's pretrained AlexNet is not in {path}. `make weights` puts it there (needs PyTorch, once), "
            f"or give a file you have: --init-from FILE to start from (predict: --weights FILE)."
        )
    return path


def write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    arch: Arch,
    batches_tracked: int = 0,
    class_names: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    recipe: Recipe | None = None,
    stored: Size | None = None,
    splits: Mapping[str, str] | None = None,
    epoch: int | None = None,
) -> None:
    """Write a model to a .safetensors file, whole or not at all.

    Args:
        path: of the file.
        tensors: by our names, in PyTorch's layout.
        arch: goes into the metadata.
        batches_tracked: updates of the running statistics so far, for PyTorch.
        class_names: in label order; goes into the metadata where there are any.
        preprocess: how images become the model's input, where that alone is known; goes into the metadata.
        recipe, stored, splits: see `About`; they go into the metadata where there is a recipe.
        epoch: of its run, counted from 1, where it is a run's result; goes into the metadata.

    Raises:
        UserError: there are class names, but not one for each class, or the file cannot be written.
    """
    from safetensors.numpy import save_file

    metadata = {"arch": json.dumps(to_dict(arch)), COUNTER: str(batches_tracked)}
    if class_names:
        check_names(class_names, arch, str(path))
        metadata["class_names"] = json.dumps(list(class_names))
    if recipe:
        metadata["recipe"], metadata["stored"] = json.dumps(to_dict(recipe)), json.dumps(stored)
        metadata["splits"] = json.dumps(dict(splits or {}))
    elif preprocess:
        metadata["preprocess"] = json.dumps(to_dict(preprocess))
    if epoch is not None:
        metadata["epoch"] = json.dumps(epoch)
    check_destination(path)
    with atomic(path) as part:
        # safetensors writes the memory as it lies: a transposed view must be copied first.
        save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, part, metadata)
        _sort_metadata(part)


def _sort_metadata(file: Path) -> None:
    """Make equal content equal bytes: safetensors writes its metadata in an order that changes from file to file."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(encoded) <= size:  # the same fields, in the same format
            stream.seek(8)
            stream.write(encoded.ljust(size))


def check_destination(path: Path) -> None:
    """Make the folder of a file that is going to be written.

    Raises:
        UserError: it cannot be a .safetensors file, or its folder cannot be made.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors, the format that both frameworks open.")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {path.parent}: {error.strerror}.") from error


def read(path: Path | str) -> tuple[Tensors, dict[str, str]]:
    """Read the tensors and metadata of a .safetensors file.

    Raises:
        UserError: no such file, or it is truncated, corrupt or of another format.
    """
    with _opened(Path(path)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_metadata(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Read the metadata of a .safetensors file and the shapes of its tensors by name, without their values.

    Raises:
        UserError: as `read`.
    """
    with _opened(path) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return dict(file.metadata() or {}), shapes


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"There is no file {path.absolute()}.")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise UserError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(9)
    if is_pth(head):
        return (
            f"{path} is a file that torch.save wrote, whatever its name says. Convert it: name it .pth, then "
            f"`python -m torch_impl.weights SOURCE.pth DEST.safetensors`."
        )
    if head[8:] == b"{":  # a header's length, then JSON: another dtype than numpy's, or cut off further down
        return f"{path} is not a readable .safetensors file: {error}. float16, float32 and float64 are taken."
    return f"{path} is not a readable .safetensors file: {'it is cut short' if head else 'it is empty'}, or another's."


def is_pth(head: bytes) -> bool:
    """Whether a file that begins so may be one that torch.save wrote: a zip archive, or a bare pickle of before 1.6."""
    return head.startswith((b"PK\x03\x04", b"\x80\x02"))


def read_for(path: Path | str, arch: Arch) -> Tensors:
    """Read the tensors of a .safetensors file for a network.

    Raises:
        UserError: as `read`, or the file says that it holds another network.
    """
    tensors, metadata = read(path)
    if "arch" in metadata:
        held = read_arch(metadata, str(path))
        if (held.convs, held.adaptive_pool, held.activation) != (arch.convs, arch.adaptive_pool, arch.activation):
            raise UserError(
                f"{path} holds {held.name}, whose blocks, pools or activation are not those of {arch.name}."
            )
    return tensors


def read_arch(metadata: Mapping[str, str], where: str) -> Arch:
    """The architecture that a file of ours carries.

    Raises:
        UserError: it carries none, or a damaged one.
    """
    if "arch" not in metadata:
        raise UserError(f"{where} does not say which architecture it holds.")
    return from_dict(_field(metadata, "arch", where), Arch, where)


def read_class_names(metadata: Mapping[str, str], arch: Arch, where: str) -> tuple[str, ...]:
    """The class names that a file of ours carries, in label order; none if it was written without them.

    Raises:
        UserError: they are damaged, or not one for each class.
    """
    names = _field(metadata, "class_names", where) if "class_names" in metadata else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where} has class names that are not a list of texts.")
    return check_names(names, arch, where) if "class_names" in metadata else ()


def read_preprocess(metadata: Mapping[str, str], where: str) -> Preprocess | None:
    """How images become the input of a file's model; None if the file does not say.

    Raises:
        UserError: what it says is damaged.
    """
    if "recipe" in metadata:
        return from_dict(_field(metadata, "recipe", where), Recipe, where).preprocess
    return from_dict(_field(metadata, "preprocess", where), Preprocess, where) if "preprocess" in metadata else None


def read_epoch(metadata: Mapping[str, str], where: str) -> int | None:
    """The epoch that a run's result is of, counted from 1; None of another file, and of one of an older version.

    Raises:
        UserError: what it says is damaged.
    """
    epoch = _field(metadata, "epoch", where) if "epoch" in metadata else None
    if epoch is not None and (type(epoch) is not int or epoch < 1):
        raise UserError(f"{where} says that it is of the epoch {epoch!r}: that is none.")
    return epoch


def read_about(metadata: Mapping[str, str], arch: Arch, where: str) -> About:
    """What a file of ours says of its model besides the architecture; older files say less.

    Raises:
        UserError: what it says is damaged, or of another network than `arch`.
    """
    names = read_class_names(metadata, arch, where)
    if "recipe" not in metadata:
        return About(names, preprocess=read_preprocess(metadata, where))
    recipe = from_dict(_field(metadata, "recipe", where), Recipe, where)
    if recipe.arch == arch.name:
        know_arch(arch)
    stored, splits = _field(metadata, "stored", where), _field(metadata, "splits", where)
    if stored is not None:
        if (
            not isinstance(stored, list)
            or len(stored) != 3
            or not all(type(size) is int and size > 0 for size in stored)
        ):
            raise UserError(
                f"{where} says that its images are stored at {stored!r}: that is no height, width, channels."
            )
        stored = (stored[0], stored[1], stored[2])
    if not isinstance(splits, dict) or not all(isinstance(value, str) for value in splits.values()):
        raise UserError(f"{where} has fingerprints of its data that are not texts by the name of a split.")
    check_recipe(recipe, stored, arch, where)
    return About(names, recipe, stored, splits)


def check_recipe(recipe: Recipe, stored: Size | None, arch: Arch, where: str) -> None:
    """Refuse a recipe that does not make a network's input of images stored at this size (None: photographs).

    Raises:
        UserError: a value of the recipe is impossible, or its images do not fit the network.
    """
    try:
        recipe.check()
        side = recipe.preprocess.photo_side(arch)
        arch.check_size(*recipe.preprocess.input_size(stored or (side, side, arch.image[2]), arch))
    except UserError as error:
        raise UserError(f"The recipe {recipe.name!r} does not go with {where}: {error}") from error


def _field(metadata: Mapping[str, str], name: str, where: str) -> Any:
    """A field of the metadata, out of JSON.

    Raises:
        UserError: it is not there, or no JSON.
    """
    what = {"arch": "an architecture", "preprocess": "a preprocessing"}.get(name, name.replace("_", " "))
    if name not in metadata:
        raise UserError(f"{where} is damaged: it has no {what}.")
    try:
        return json.loads(metadata[name])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} has {what} that is not valid JSON: {error}.") from error


def check_names(names: Sequence[str], arch: Arch, where: str) -> tuple[str, ...]:
    """Class names, one for each class.

    Raises:
        UserError: there are more or fewer.
    """
    if len(names) != arch.classes:
        raise UserError(f"{where} names {len(names)} classes of a network that has {arch.classes}.")
    return tuple(names)
