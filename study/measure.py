"""What the networks do to one real image: shapes, statistics, and how far the two frameworks are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from PIL import Image

import flax_impl
import flax_impl.evaluate
import flax_impl.features
import flax_impl.preprocess
import torch_impl
import torch_impl.evaluate
import torch_impl.features
import torch_impl.preprocess
from common.arch.initializers import get_init
from common.arch.spec import Arch, AvgPool, ConvSpec, MaxPool
from common.arch.zoo import get_arch
from common.data.batch import Batch
from common.data.crops import central_square
from common.data.load import load_dataset
from common.data.photos import open_image
from common.data.spec import DATASETS
from common.errors import UserError
from common.recipes.zoo import RECIPES, get_recipe
from common.reports.predictions import find_images, to_batch, to_pixels
from common.weights import exchange
from common.weights.network import Network
from flax_impl import convert
from flax_impl import feed as flax_feed
from study.anatomy import shares
from torch_impl import feed as torch_feed
from torch_impl import init, pth, weights

PRECISIONS = ("float32", "float64")
TOP = 5
IMAGES = 4  # of a folder, or of ours, that Grad-CAM is shown of
Arrays = dict[str, np.ndarray]
Picture = tuple[np.ndarray, str]  # uint8 (height, width, channels), and what it shows

_PHOTOGRAPHS = ("china.jpg", "flower.jpg")


@dataclass(frozen=True)
class Subject:
    """What is measured: a network with its weights, and an image as its dataset would store it.

    Attributes:
        network: its arch, recipe and class names.
        tensors: the weights, by our names in PyTorch's layout; None draws the recipe's initial ones.
        weights: where they are from, in words.
        pixels: uint8 (height, width, channels).
        image: what the pixels show, in words.
        fresh: layers whose weights nobody trained; None: all.
        more: other images like it.
    """

    network: Network
    tensors: Arrays | None
    weights: str
    pixels: np.ndarray
    image: str
    fresh: tuple[str, ...] | None = None
    more: tuple[Picture, ...] = ()

    @property
    def batch(self) -> Batch:
        """The image alone, as an evaluation reads it."""
        return to_batch([self.pixels], self.network)


def fresh_network(recipe_name: str, arch_name: str | None = None) -> Network:
    """A recipe's network, or a named architecture under a recipe that is made for it.

    Raises:
        UserError: there is no such recipe or architecture, or the two do not fit.
    """
    recipe = get_recipe(recipe_name)
    if arch_name and arch_name != recipe.arch:
        arch = get_arch(arch_name)
        shown = [known for known in RECIPES.values() if known.dataset in DATASETS]
        fitting = [known for known in shown if known.arch == arch.name]
        like = fitting or [known for known in shown if get_arch(known.arch).image == arch.image]
        recipe = replace((like or [recipe])[0], arch=arch.name)
    if recipe.dataset not in DATASETS:
        raise UserError(f"The recipe {recipe.name!r} is of {recipe.dataset}: name a run of it, RUN_TORCH or RUN_FLAX.")
    spec = DATASETS[recipe.dataset]
    arch = recipe.model_arch(spec.image, spec.classes)
    if recipe.dataset == "digits":
        names = load_dataset("digits")[1].class_names
    elif recipe.dataset == "imagenet2012":
        names = weights.class_names()
    else:
        names = tuple(f"class {label}" for label in range(arch.classes))
    return Network(None, arch, recipe, names)


def with_weights(network: Network, file: Path) -> tuple[Arrays, tuple[str, ...]]:
    """A file's tensors, of a whole network or of its convolutions alone; the rest is the recipe's initial weights.

    Returns:
        Every tensor, and the layers that the file does not hold.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    model = torch_impl.build(network.arch)
    init.initialize(model, get_init(network.recipe.init), network.recipe.seed)
    fresh = weights.load_partial(file, model, network.arch)
    return {name: t.numpy() for name, t in model.state_dict().items() if exchange.COUNTER not in name}, fresh


def images_for(network: Network, place: Path | None = None) -> list[Picture]:
    """The image of a file, the first images of a folder, or some of scikit-learn's; see `image_for`.

    Raises:
        UserError: there are none, or one cannot be read, or is too narrow.
    """
    if place:
        return [image_for(network, file) for file in find_images(str(place))[1][:IMAGES]]
    return [image_for(network, which=which) for which in range(IMAGES if network.stored[2] == 1 else len(_PHOTOGRAPHS))]


def image_for(network: Network, file: Path | None = None, which: int = 0) -> Picture:
    """The image of a file; without one a digit for networks of one channel, else a photograph, both scikit-learn's.

    Args:
        network: whose dataset would store it.
        file: of the image.
        which: of scikit-learn's.

    Raises:
        UserError: the file cannot be read as an image, or is too narrow.
    """
    height, _, channels = network.stored
    if file:
        image = open_image(file, channels)
        try:
            return to_pixels(image, network), file.name
        except UserError as error:
            raise UserError(f"{file}: {error}.") from error
    if channels == 1:
        digits = load_dataset("digits")[1]
        images, labels = digits.source.read(digits.ids[[which]], None)
        picture = Image.fromarray(images[0, :, :, 0]).resize((height, height), Image.Resampling.BILINEAR)
        shows = f"a handwritten {labels[0]} from scikit-learn's digits (test split, example {which})"
    else:
        from sklearn.datasets import load_sample_image

        picture = Image.fromarray(load_sample_image(_PHOTOGRAPHS[which]))
        shows = f"{_PHOTOGRAPHS[which]}, a sample photograph of scikit-learn"
    return central_square(picture, height).reshape(height, height, channels), shows


def _torch_model(subject: Subject) -> Any:
    model = torch_impl.build(subject.network.arch)
    if subject.tensors is None:
        init.initialize(model, get_init(subject.network.recipe.init), subject.network.recipe.seed)
    else:
        pth.fill(model, subject.tensors)
    return model.eval()


def torch_activations(subject: Subject, precision: str) -> tuple[Arrays, Arrays]:
    """The input and every layer's output in PyTorch, in evaluation; and the weights they were made with."""
    network, model = subject.network, _torch_model(subject).to(getattr(torch, precision))
    seen: Arrays = {}

    def hook(name: str) -> Any:
        def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            seen[name] = output.detach().numpy().copy()

        return note

    for name, module in model.named_children():
        module.register_forward_hook(hook(name))
    images, _, draws, _ = torch_feed.to_device(subject.batch, torch.device("cpu"))
    with torch.no_grad():
        x = torch_impl.preprocess.preprocess(images, draws, network.recipe.preprocess, getattr(torch, precision))
        model(x)
    state = {name: t.numpy() for name, t in model.state_dict().items() if exchange.COUNTER not in name}
    return _with_flat({"input": x.numpy(), **seen}, network.arch), state


def flax_activations(subject: Subject, state: Mapping[str, np.ndarray], precision: str) -> tuple[Arrays, Arrays]:
    """The same in Flax with PyTorch's weights, in PyTorch's layout; and the variables by path."""
    network, arch = subject.network, subject.network.arch
    with jax.enable_x64(precision == "float64"), jax.default_device(jax.devices("cpu")[0]):
        variables = convert.from_torch(state, arch)
        model = flax_impl.build(arch, param_dtype=np.dtype(precision))
        images, _, draws, _ = flax_feed.to_device(subject.batch, jax.devices("cpu")[0])
        x = flax_impl.preprocess.preprocess(images, draws, network.recipe.preprocess, np.dtype(precision))
        _, kept = model.apply(variables, x, train=False, capture_intermediates=_is_layer)
        seen = {"input": np.asarray(x)}
        for name, calls in kept["intermediates"].items():
            if "__call__" in calls and name != "__call__":
                seen[name] = np.asarray(calls["__call__"][0])
    flat = {"/".join(path): array for path, array in flatten_dict(variables).items()}
    return _with_flat({name: _channels_first(name, array, arch) for name, array in seen.items()}, arch), flat


def speaks(subject: Subject) -> tuple[list[dict[str, Any]], list[dict[str, np.ndarray]]]:
    """Where each image shows what speaks for its most probable class, in both frameworks: Grad-CAM's maps.

    Returns:
        For each image what it shows, that class by name, its probability in both, and how far the maps are apart; and
        the square that the network sees, uint8 (height, width, channels), with both maps, by "image" and titles.
    """
    network, pixels = subject.network, [subject.pixels, *(pixels for pixels, _ in subject.more)]
    recipe, batch, model = (
        replace(network.recipe, precision="float32"),
        to_batch(pixels, network),
        _torch_model(subject),
    )
    ours = torch_feed.to_device(batch, torch.device("cpu"))
    state = {name: t.numpy() for name, t in model.state_dict().items() if exchange.COUNTER not in name}
    with torch.no_grad():
        rows = {"PyTorch": torch_impl.evaluate.log_probabilities(model, ours, recipe).exp().numpy()}
    labels = rows["PyTorch"].argmax(1)
    maps = {"PyTorch": torch_impl.features.grad_cam(model, ours, recipe, torch.from_numpy(labels)).numpy()}
    with jax.default_device(jax.devices("cpu")[0]):
        variables = convert.from_torch(state, network.arch)
        theirs, twin = flax_feed.to_device(batch, jax.devices("cpu")[0]), flax_impl.build(network.arch)
        rows["Flax"] = np.exp(flax_impl.evaluate.log_probabilities(twin, variables, theirs, recipe))
        maps["Flax"] = np.asarray(flax_impl.features.grad_cam(twin, variables, theirs, recipe, labels.astype(np.int32)))
    found, shown = [], []
    side = recipe.preprocess.crop or network.stored[0]
    edge = max(network.stored[0] - side, 0) // 2
    for place, (label, words) in enumerate(zip(labels, [subject.image, *(w for _, w in subject.more)], strict=True)):
        heats = {title: array[place] for title, array in maps.items()}
        probability = {title: float(array[place, label]) for title, array in rows.items()}
        about = {"shown": words, "label": network.names[label], "probability": probability}
        found.append(about | {"difference": difference(*heats.values())})
        shown.append({"image": pixels[place][edge : edge + side, edge : edge + side], **heats})
    return found, shown


def measure(subject: Subject) -> tuple[dict[str, Any], Arrays, Arrays, Arrays]:
    """Everything that the pages show of a network, as data.json holds it; for pictures PyTorch's activations, Flax's,
    and the weights."""
    arch = subject.network.arch
    outputs: dict[str, tuple[Arrays, Arrays]] = {}
    for precision in PRECISIONS:
        ours, state = torch_activations(subject, precision)
        theirs, variables = flax_activations(subject, state, precision)
        outputs[precision] = (ours, theirs)
        if precision == "float32":
            names = mapping(arch, state, variables)
            weights_seen = state
    layers = []
    ours, theirs = outputs["float32"]
    for name, facts in costs(arch).items():
        row = {"name": name, **facts, "parameter_names": names.get(name, [])}
        row["parameter_share"] = facts["parameters"] / arch.parameters
        row["multiply_add_share"] = facts["multiply_adds"] / arch.multiply_adds
        row["statistics"] = {"PyTorch": statistics(ours[name]), "Flax": statistics(theirs[name])}
        row["difference"] = {key: difference(a[name], b[name]) for key, (a, b) in outputs.items()}
        layers.append(row)
    last = layers[-1]["name"]
    return (
        {
            "arch": arch.name,
            "image": list(arch.image),
            "parameters": arch.parameters,
            "multiply_adds": arch.multiply_adds,
            "shares": shares(arch),
            "recipe": subject.network.recipe.name,
            "weights": subject.weights,
            "fresh": [*costs(arch)] if subject.fresh is None else list(subject.fresh),
            "shown": subject.image,
            "input": {
                "statistics": {"PyTorch": statistics(ours["input"]), "Flax": statistics(theirs["input"])},
                "difference": {key: difference(a["input"], b["input"]) for key, (a, b) in outputs.items()},
            },
            "layers": layers,
            "top": {"PyTorch": top(ours[last], subject), "Flax": top(theirs[last], subject)},
        },
        ours,
        theirs,
        weights_seen,
    )


def costs(arch: Arch) -> dict[str, dict[str, Any]]:
    """Per named layer: kind, shapes in both layouts, parameters, multiply-adds and receptive field."""
    rows = {layer.name: layer for layer in arch.layers()}
    found: dict[str, dict[str, Any]] = {}
    field, jump, size = 1, 1, arch.image
    for number, (name, spec) in enumerate(arch.named_convs(), 1):
        inside = [row for key, row in rows.items() if key in (name, *(f"{p}{number}" for p in ("norm", "pool", "lrn")))]
        for window in (spec, *spec.after):
            if isinstance(window, ConvSpec | MaxPool | AvgPool):
                extent = window.kernel if isinstance(window, ConvSpec) else window.size
                field, jump = field + (extent - 1) * jump, jump * window.stride
        output = inside[-1].output
        found[name] = _facts("convolution block", size, output, inside) | {"receptive_field": field}
        size = output
    pooled = rows["pool"].output if arch.adaptive_pool else size
    kind = "adaptive average pool" if arch.adaptive_pool else "not used by this architecture"
    found["pool"] = _facts(kind, size, pooled, []) | {"receptive_field": None}
    size = pooled
    flat = (size[0] * size[1] * size[2],)
    found["flatten"] = _facts("flatten", size, flat, []) | {"receptive_field": None}
    inputs = flat
    for name, dense in arch.named_dense():
        drop = _facts(f"dropout, rate {dense.dropout:g}", inputs, inputs, [])
        found[name.replace("fc", "drop")] = drop | {"receptive_field": None}
        found[name] = _facts("dense layer", inputs, (dense.features,), [rows[name]]) | {"receptive_field": None}
        inputs = (dense.features,)
    return found


def _facts(kind: str, before: tuple[int, ...], after: tuple[int, ...], rows: list[Any]) -> dict[str, Any]:
    return {
        "kind": kind,
        "input": {"PyTorch": _layout(before, "torch"), "Flax": _layout(before, "flax")},
        "output": {"PyTorch": _layout(after, "torch"), "Flax": _layout(after, "flax")},
        "parameters": sum(row.parameters for row in rows),
        "multiply_adds": sum(row.multiply_adds for row in rows),
    }


def _layout(size: tuple[int, ...], framework: str) -> str:
    """(H, W, C) with a batch in front, in a framework's order."""
    ordered = (size[2], size[0], size[1]) if framework == "torch" and len(size) == 3 else size
    return f"({', '.join(['N', *map(str, ordered)])})"


def mapping(arch: Arch, state: Mapping[str, np.ndarray], variables: Arrays) -> dict[str, list[dict[str, Any]]]:
    """Per layer: each tensor's name and shape in both, how the converter turns it, and whether the values agree."""
    first = next(arch.named_dense())[0]
    found: dict[str, list[dict[str, Any]]] = {}
    for name, array in state.items():
        path = "/".join(convert.flax_path(name))
        if array.ndim == 4:
            how = "transposed (2, 3, 1, 0): out, in, height, width to height, width, in, out"
        elif array.ndim == 2 and name == f"{first}.weight":
            how = "transposed, and the inputs reordered from C, H, W to H, W, C"
        else:
            how = "transposed: out, in to in, out" if array.ndim == 2 else "as it is"
        found.setdefault(name.split(".")[0], []).append(
            {
                "torch": name,
                "torch_shape": list(array.shape),
                "flax": path,
                "flax_shape": list(variables[path].shape),
                "how": how,
            }
        )
    return found


def statistics(array: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation, extremes and the share of exact zeros."""
    wide = array.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    return {
        "mean": float(wide.mean()),
        "std": float(wide.std()),
        "min": low,
        "max": high,
        "zeros": float((wide == 0).mean()),
    }


def difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """The largest absolute difference, and the same over the largest magnitude.

    Raises:
        AssertionError: shape or dtype differ, or there is a NaN.
    """
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert ours.dtype == theirs.dtype, (ours.dtype, theirs.dtype)
    largest = float(np.abs(ours - theirs).max())
    assert np.isfinite(largest)
    return {"absolute": largest, "relative": largest / (float(np.abs(ours).max()) or 1.0)}


def top(logits: np.ndarray, subject: Subject) -> list[dict[str, Any]]:
    """The most probable classes by name, with their probabilities."""
    wide = logits[0].astype(np.float64)
    shares = np.exp(wide - wide.max())
    shares /= shares.sum()
    names = subject.network.class_names
    return [{"label": names[i], "probability": float(shares[i])} for i in np.argsort(-shares, kind="stable")[:TOP]]


def _is_layer(module: Any, method: str) -> bool:
    return method == "__call__" and len(module.path) == 1


def _with_flat(seen: Arrays, arch: Arch) -> Arrays:
    """Add what is no module in Flax: in evaluation the first dropout hands on what was flattened, and that the pool's.

    So both are taken where the next layer has received them, in both frameworks.
    """
    flat = seen[_first_dropout(arch)]
    height, width, channels = arch.feature_size
    return {**seen, "flatten": flat, "pool": flat.reshape(-1, channels, height, width)}


def _first_dropout(arch: Arch) -> str:
    return next(arch.named_dense())[0].replace("fc", "drop")


def _channels_first(name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    if name == _first_dropout(arch):
        return array.reshape(-1, *arch.feature_size).transpose(0, 3, 1, 2).reshape(array.shape)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array
