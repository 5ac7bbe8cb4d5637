"""What layers give, and Grad-CAM: torchvision's own network says what is right, and both frameworks agree."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.models.feature_extraction import create_feature_extractor

import flax_impl.features
import flax_impl.model
import flax_impl.predict
import torch_impl.features
import torch_impl.model
import torch_impl.predict
from common.arch.spec import Arch
from common.arch.zoo import ARCHS, get_arch
from common.commands.features import run_features
from common.commands.predict import run_predict
from common.data.batch import NO_FACTS, Batch
from common.frameworks import Framework
from common.recipes.spec import Preprocess, Recipe
from common.recipes.zoo import get_recipe
from common.weights import exchange
from flax_impl import feed as flax_feed
from flax_impl.convert import from_torch
from parity_tests.material import narrow
from torch_impl import feed as torch_feed

FRAMEWORKS: tuple[Framework, ...] = ("torch", "flax")
FEATURES: dict[str, ModuleType] = {"torch": torch_impl.features, "flax": flax_impl.features}
PREDICT: dict[str, ModuleType] = {"torch": torch_impl.predict, "flax": flax_impl.predict}
PLAIN = replace(get_recipe("digits"), preprocess=Preprocess())

both = pytest.mark.parametrize("framework", FRAMEWORKS)


def a_batch(arch: Arch, count: int = 2) -> Batch:
    """Noise in the size that the architecture takes, and a class for each."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, arch.classes, count).astype(np.int32)
    return Batch(rng.integers(0, 256, (count, *arch.image), np.uint8), labels, {}, np.arange(count), NO_FACTS)


def lively(model: Any) -> None:
    """Weights whose maps and gradients are of all sizes, with biases and statistics that count."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            spread = (2 / tensor[0].numel()) ** 0.5 if tensor.ndim > 1 else 0.1
            tensor.normal_(0, spread, generator=generator)
            if "var" in name:
                tensor.abs_().add_(0.5)


class Pair:
    """One network in both frameworks, and what they make of a batch, channels first."""

    def __init__(self, arch: Arch, recipe: Recipe = PLAIN) -> None:
        self.recipe, self.arch = recipe, arch
        dtype = getattr(torch, recipe.param_dtype)
        self.model = torch_impl.model.build(arch)
        lively(self.model)
        self.model.to(dtype)
        flax_impl.device.set_precision(recipe.precision)
        types = flax_impl.device.model_dtypes(recipe)
        self.linen = flax_impl.model.build(arch, **types), from_torch(self.model.state_dict(), arch)

    def layer_output(self, framework: Framework, batch: Batch, layer: str) -> np.ndarray:
        if framework == "torch":
            inputs = torch_feed.to_device(batch, torch.device("cpu"))
            return torch_impl.features.layer_output(self.model, inputs, self.recipe, layer).numpy()
        given = flax_feed.to_device(batch, jax.devices("cpu")[0])
        return np.moveaxis(np.asarray(flax_impl.features.layer_output(*self.linen, given, self.recipe, layer)), -1, 1)

    def grad_cam(self, framework: Framework, batch: Batch) -> np.ndarray:
        if framework == "torch":
            inputs = torch_feed.to_device(batch, torch.device("cpu"))
            return torch_impl.features.grad_cam(self.model, inputs, self.recipe, inputs.labels).numpy()
        given = flax_feed.to_device(batch, jax.devices("cpu")[0])
        return np.asarray(flax_impl.features.grad_cam(*self.linen, given, self.recipe, given.labels))


@pytest.fixture(scope="module")
def alexnet() -> Pair:
    return Pair(ARCHS["alexnet"])


@pytest.fixture(scope="module")
def theirs(alexnet: Pair) -> Any:
    """torchvision's network with the same weights, by the names that it has for them."""
    model = torchvision.models.alexnet().eval()
    model.load_state_dict({exchange.to_torchvision(name): value for name, value in alexnet.model.state_dict().items()})
    return model


def pixels(batch: Batch) -> torch.Tensor:
    return torch.tensor(batch.images).permute(0, 3, 1, 2) / 255


# What torchvision calls the output of each of our layers: of its numbered modules the last one that is ours.
NODES = {
    "conv1": "features.2",
    "conv4": "features.9",
    "conv5": "features.12",
    "fc6": "classifier.2",
    "fc7": "classifier.5",
}


@both
@pytest.mark.parametrize("layer", [*NODES, "fc8"])
def test_layers_are_torchvisions(framework: Framework, layer: str, alexnet: Pair, theirs: Any) -> None:
    batch, node = a_batch(alexnet.arch), (NODES | {"fc8": "classifier.6"})[layer]
    with torch.no_grad():
        expected = create_feature_extractor(theirs, [node])(pixels(batch))[node].numpy()
    ours = alexnet.layer_output(framework, batch, layer)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))
    assert (ours < 0).any() == (layer == "fc8"), "before or after its activation"


def grad_cam_of_torchvision(theirs: Any, batch: Batch) -> np.ndarray:
    """By the paper's two equations, on torchvision's numbered modules."""
    maps = theirs.features[:12](pixels(batch)).detach().requires_grad_()
    scores = theirs.classifier(theirs.avgpool(theirs.features[12](maps)).flatten(1))
    for row, label in enumerate(batch.labels.tolist()):
        scores[row, label].backward(retain_graph=True)
    assert maps.grad is not None
    found = torch.einsum("nchw,nc->nhw", maps, maps.grad.sum((2, 3)) / maps[0, 0].numel()).clamp(min=0)
    return np.asarray(found.detach())


@both
def test_grad_cam_is_the_papers(framework: Framework, alexnet: Pair, theirs: Any) -> None:
    batch = a_batch(alexnet.arch, 3)
    expected, ours = grad_cam_of_torchvision(theirs, batch), alexnet.grad_cam(framework, batch)
    assert ours.shape == (3, 13, 13)
    assert 0.1 < (expected > 0).mean() < 0.9, "too even to tell anything"
    np.testing.assert_allclose(ours, expected, atol=1e-5 * float(expected.max()))
    other = replace(batch, labels=(batch.labels + 1) % 1000)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(alexnet.grad_cam(framework, other), expected, atol=1e-2 * float(expected.max()))


@pytest.mark.parametrize("name", ["alexnet_2012", "alexnet_cifar_bn", "alexnet_cifar_tanh", "lenet"])
def test_frameworks_agree(name: str) -> None:
    """In float64, with groups, response norm, batch norm, tanh, one channel."""
    with jax.enable_x64(True):
        pair = Pair(narrow(get_arch(name)), replace(PLAIN, precision="float64"))
        batch = a_batch(pair.arch)
        first, last = pair.arch.named_convs().__next__()[0], list(pair.arch.named_dense())[-2][0]
        of: list[Any] = [partial(pair.layer_output, batch=batch, layer=layer) for layer in (first, last)]
        for compute in (*of, partial(pair.grad_cam, batch=batch)):
            ours, flax = compute("torch"), compute("flax")
            assert ours.dtype == flax.dtype == np.float64
            np.testing.assert_allclose(ours, flax, atol=1e-12 * float(np.abs(ours).max()))
            assert np.abs(ours).max() > 0


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A narrow network of photographs, as a file."""
    arch = narrow(ARCHS["alexnet"]).adapt(classes=3)
    model = torch_impl.model.build(arch)
    lively(model)
    file = tmp_path / "model.safetensors"
    tensors = {name: value.numpy() for name, value in model.state_dict().items()}
    exchange.write(
        file, tensors, arch, class_names=("cat", "dog", "bird"), preprocess=get_recipe("imagenet").preprocess
    )
    return file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, array in zip(("a.png", "b.jpg"), load_sample_images().images, strict=True):
        Image.fromarray(array).save(folder / name)
    return folder


def run(framework: Framework, command: str, *words: Any) -> str:
    out = io.StringIO()
    with redirect_stdout(out):
        arguments = [*map(str, words), "--device", "cpu"]
        if command == "features":
            side = FEATURES[framework]
            run_features(framework, side.features, side.class_names, arguments)
        else:
            side = PREDICT[framework]
            run_predict(framework, side.predictor, side.class_names, arguments)
    return out.getvalue()


def refused(framework: Framework, command: str, *words: Any) -> str:
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit) as stopped:
        run(framework, command, *words)
    assert stopped.value.code == 2
    return said.getvalue()


def test_grad_cam_of_a_folder(trained: Path, images: Path, tmp_path: Path) -> None:
    """A picture an image with a panel more, and the maps, the same in both frameworks to 1e-5 of their scale."""
    maps = {}
    for framework in FRAMEWORKS:
        out = tmp_path / framework
        said = run(framework, "predict", images, "--weights", trained, "--grad-cam", "--out", out)
        assert said.splitlines()[-1] == f"{out}: predictions.png, predictions.csv, 2 pictures, grad_cam.npz"
        with Image.open(out / "a.png.png") as picture:
            assert picture.width == 2016
        with np.load(out / "grad_cam.npz") as file:
            assert file["files"].tolist() == ["a.png", "b.jpg"]
            assert set(file["classes"]) <= {"cat", "dog", "bird"}
            maps[framework] = file["maps"]
    assert maps["torch"].shape == (2, 13, 13)
    np.testing.assert_allclose(maps["torch"], maps["flax"], atol=1e-5 * float(maps["torch"].max()))
    assert maps["torch"].max((1, 2)).min() > 0


@pytest.mark.parametrize("layer", ["fc7", "conv5"])
def test_features_of_a_folder(layer: str, trained: Path, images: Path) -> None:
    found = {}
    for framework in FRAMEWORKS:
        out = images.parent / f"{framework}.npz"
        said = run(framework, "features", trained, images, "--layer", layer, "--out", out)
        with np.load(out) as file:
            found[framework] = file["features"]
            assert file["files"].tolist() == ["a.png", "b.jpg"]
            assert str(file["layer"]) == layer
        assert said == f"{out}: {layer} of {images}, {' x '.join(map(str, found[framework].shape))}\n"
    ours, theirs = found.values()
    arch = narrow(ARCHS["alexnet"])
    shapes = {"fc7": (arch.dense[1].features,), "conv5": (arch.convs[4].features, 6, 6)}
    assert ours.shape == (2, *shapes[layer])
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(np.abs(ours).max()))


def test_features_that_cannot_be_had(trained: Path, images: Path) -> None:
    said = refused("torch", "features", trained, images, "--layer", "fc9")
    assert "fc9" in said
    assert "fc8" in said
    assert "name a file that ends in .npz" in refused("flax", "features", trained, images, "--out", images / "x.csv")
    (images / "c.png").write_bytes(b"none")
    out = images.parent / "some.npz"
    said = refused("torch", "features", trained, images, "--out", out)
    assert "c.png" in said
    assert "1 of 3 images could not be read and have no row" in said
    with np.load(out) as file:
        assert file["files"].tolist() == ["a.png", "b.jpg"]
