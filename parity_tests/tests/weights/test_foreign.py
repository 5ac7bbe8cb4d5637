"""Other people's weights: what their programs write, taken for what it is, refused where it is more than that."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import flax_impl.weights
import torch_impl.weights
from common.arch.zoo import ARCHS
from common.errors import UserError
from common.recipes.spec import Preprocess
from common.recipes.zoo import get_recipe
from common.weights import exchange, foreign
from common.weights.network import complete, result_at
from parity_tests.material import narrow
from torch_impl import pth

State = dict[str, torch.Tensor]
SMALL = narrow(ARCHS["alexnet"]).adapt(classes=4)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHS, "alexnet", narrow(ARCHS["alexnet"]))


def theirs(seed: int = 0) -> State:
    """A state dict by torchvision's names."""
    torch.manual_seed(seed)
    state = torch_impl.build(SMALL).state_dict()
    return {exchange.to_torchvision(name): tensor for name, tensor in state.items()}


def named(state: State, change: Callable[[str], str]) -> State:
    return {change(name): tensor for name, tensor in state.items()}


def convert(source: Path, dest: Path, *words: str) -> str:
    """What the command prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr("sys.argv", ["weights", str(source), str(dest), *words])
        torch_impl.weights.main()
    return out.getvalue()


KINDS: dict[str, tuple[Callable[[State], Mapping[str, Any]], str]] = {
    "bare": (lambda state: state, ""),
    "parallel": (lambda state: named(state, "module.{}".format), "took 'module.' off"),
    "parallel inside": (lambda state: named(state, lambda n: n.replace("features.", "features.module.")), "'module.'"),
    "compiled": (lambda state: named(state, "_orig_mod.{}".format), "took '_orig_mod.' off"),
    "both": (lambda state: named(state, "_orig_mod.module.{}".format), "took '_orig_mod.', 'module.' off"),
    "attribute": (lambda state: named(state, "backbone.net.{}".format), "took 'backbone.net'"),
    "wrapped": (lambda state: {"epoch": 3, "best": 0.5, "state_dict": state}, "took 'state_dict'"),
    "twice wrapped": (lambda state: {"checkpoint": {"weights": state}}, "took 'checkpoint.weights'"),
    "averaged": (
        lambda state: {"n_averaged": torch.tensor(7), **named(state, "module.{}".format)},
        "took 'module.' off",
    ),
    "torchvision's training script": (
        lambda state: {
            "model": state,
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            "lr_scheduler": {"last_epoch": 3},
            "epoch": 3,
            "args": argparse.Namespace(model="alexnet", output_dir=Path("out")),
            "model_ema": {
                "n_averaged": torch.tensor(7),
                **named({name: tensor + 1 for name, tensor in state.items()}, "module.{}".format),
            },
        },
        "left model_ema (a running mean of the weights): --part takes another",
    ),
    "Lightning": (
        lambda state: {
            "epoch": 3,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": named(state, "model.{}".format),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
            "hyper_parameters": {"lr": 0.1},
        },
        "took 'state_dict.model'",
    ),
    "half": (lambda state: {name: tensor.half() for name, tensor in state.items()}, "made float32 of float16"),
    "bfloat16": (lambda state: {name: tensor.bfloat16() for name, tensor in state.items()}, "float32 of bfloat16"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_people_have_is_taken_and_said(kind: str, tmp_path: Path) -> None:
    wrap, said = KINDS[kind]
    state = theirs()
    torch.save(wrap(state), tmp_path / "x.pth")
    assert said in convert(tmp_path / "x.pth", tmp_path / "x.safetensors", "--classes", "a,b,c,d")
    tensors, metadata = exchange.read(tmp_path / "x.safetensors")
    assert exchange.read_arch(metadata, "x") == SMALL
    assert exchange.read_class_names(metadata, SMALL, "x") == ("a", "b", "c", "d")
    rounded = {"half": torch.float16, "bfloat16": torch.bfloat16}.get(kind, torch.float32)
    for name, tensor in state.items():
        taken = tensors[exchange.rename([name])[name]]
        assert taken.dtype == np.float32
        np.testing.assert_array_equal(taken, tensor.to(rounded).float().numpy())
    model = torch_impl.build(SMALL)
    torch_impl.weights.load(tmp_path / "x.pth", model, SMALL)
    assert torch_impl.weights.load_partial(tmp_path / "x.pth", model, SMALL) == ()
    assert torch.equal(model.state_dict()["fc8.bias"], state["classifier.6.bias"].to(rounded).float())
    assert flax_impl.weights.load(tmp_path / "x.safetensors", SMALL)["params"]["fc8"]["bias"].shape == (4,)


def test_a_safetensors_file_in_bfloat16(tmp_path: Path) -> None:
    """numpy has no such numbers."""
    save_file(named({n: t.bfloat16() for n, t in theirs().items()}, "model.{}".format), tmp_path / "x.safetensors")
    assert "made float32 of bfloat16" in convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert exchange.read(tmp_path / "y.safetensors")[0]["fc8.bias"].dtype == np.float32


def test_the_part_is_chosen(tmp_path: Path) -> None:
    first, second = theirs(0), theirs(1)
    torch.save({"last": first, "best": second}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"holds several networks: last, best\. Say which, with --part last"):
        convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"--part worst: .* has no network there\. It has last, best"):
        convert(tmp_path / "x.pth", tmp_path / "x.safetensors", "--part", "worst")
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors", "--part", "best")
    np.testing.assert_array_equal(
        exchange.read(tmp_path / "x.safetensors")[0]["fc8.bias"], second["classifier.6.bias"].numpy()
    )
    torch.save({**named(first, "model.{}".format), **named(second, "ema_model.{}".format)}, tmp_path / "x.pth")
    assert "left ema_model (a running mean" in convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
    np.testing.assert_array_equal(
        exchange.read(tmp_path / "x.safetensors")[0]["fc8.bias"], first["classifier.6.bias"].numpy()
    )


@pytest.mark.parametrize("place", ["ema", "model_ema", "state_dict_ema", "averaged_model", "swa_model", "SWA"])
@pytest.mark.parametrize("first", [True, False])
def test_a_running_mean_goes_behind_what_it_is_of(place: str, first: bool) -> None:
    """By the names that timm, Lightning and `torch.optim.swa_utils` give it, wherever it stands."""
    parts = {"model": theirs(0), place: theirs(1)}
    part, _ = foreign.choose(parts if first else dict(reversed(parts.items())), "a file")
    assert part.place == "model"
    part, _ = foreign.choose({place: parts[place]}, "a file")
    assert part.place == place, "where there is nothing else, it is taken"


def test_the_rest_is_strict(tmp_path: Path) -> None:
    lacking = theirs()
    del lacking["features.3.bias"]
    for state, told in (
        ({**theirs(), "criterion.weight": torch.ones(4)}, r"criterion\.weight \(4,\) is unknown"),
        (lacking, r"conv2\.conv\.bias \(24,\) is missing"),
        ({**theirs(), "module.features.0.bias": torch.ones(8)}, r"features\.0\.bias is there twice"),
        ({"layer1.weight": torch.ones(2)}, "holds no tensor by the name of one of torchvision's AlexNet"),
        ({"epoch": 3}, "holds no tensor by the name"),
    ):
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(UserError, match=told):
            convert(tmp_path / "x.pth", tmp_path / "x.safetensors")
        assert not (tmp_path / "x.safetensors").exists()


def test_a_pickled_module_gets_a_way_on(tmp_path: Path) -> None:
    torch.save(torch_impl.build(SMALL), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"model\.AlexNet\).*could run code.*torch\.save\(model\.state_dict"):
        pth.read_pth(tmp_path / "x.pth")


def test_an_architecture_is_known_by_its_shapes(tmp_path: Path) -> None:
    """With a recipe, also by the image that it makes; then the file says all that a prediction needs."""
    arch = ARCHS["lenet"].adapt(height=16, width=16, classes=3)
    torch.save(torch_impl.build(arch).state_dict(), tmp_path / "x.pth")
    words = ["--arch", "lenet", "--recipe", "fashion_mnist_lenet"]
    with pytest.raises(UserError, match=r"fc3\.weight is \(128, 200\), not \(128, 1250\)"):
        convert(tmp_path / "x.pth", tmp_path / "x.safetensors", *words)
    torch.save(torch_impl.build(ARCHS["lenet"].adapt(classes=3)).state_dict(), tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "x.safetensors", *words[2:])
    network = complete(result_at(tmp_path / "x.safetensors", "flax", "predict"), pytest.fail)
    assert (network.arch, network.recipe.name) == (ARCHS["lenet"].adapt(classes=3), "fashion_mnist_lenet")
    assert (network.stored, network.names) == ((28, 28, 1), ("class 0", "class 1", "class 2"))


@pytest.mark.parametrize("name", ["alexnet_cifar", None])
@pytest.mark.parametrize("resize", [48, 32])
def test_a_network_is_for_the_images_of_its_recipe(name: str | None, resize: int, monkeypatch: Any) -> None:
    """Without an adaptive pool its first dense layer is made for them."""
    monkeypatch.setitem(ARCHS, "alexnet_cifar", narrow(ARCHS["alexnet_cifar"]))
    recipe = replace(get_recipe("cifar10"), preprocess=Preprocess(resize=resize))
    arch = ARCHS["alexnet_cifar"].adapt(height=resize, width=resize, classes=4)
    state = {name: np.zeros(shape, np.float32) for name, shape in exchange.shapes(arch).items()}
    assert foreign.fit(state, name, recipe) == arch
