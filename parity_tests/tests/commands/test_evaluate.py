"""Evaluation: ten crops and pretrained weights against torchvision, and what the command prints and leaves."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images
from sklearn.metrics import precision_recall_fscore_support
from torch import nn
from torchvision.models import AlexNet_Weights, alexnet
from torchvision.transforms import v2

import flax_impl.evaluate
import flax_impl.predict
import flax_impl.preprocess
import flax_impl.train
import torch_impl.evaluate
import torch_impl.predict
import torch_impl.preprocess
import torch_impl.train
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.commands.evaluate import run_evaluate
from common.commands.predict import run_predict
from common.commands.train import run_train
from common.data.batch import Batch
from common.data.crops import central_square
from common.data.dataset import Dataset, whole
from common.data.load import load_dataset, load_split, relabel
from common.data.pipeline import batches
from common.data.sources import Arrays, Photographs
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.spec import Preprocess, Recipe
from common.recipes.zoo import IMAGENET_MEAN, IMAGENET_STD, get_recipe
from common.reports import evaluation, features
from common.reports.evaluation import Recorder, Report, Row, draw_confusion, marks, write_probabilities
from common.runs.choice import UNFAIR
from common.runs.files import write_json
from common.runs.folder import RunFolder
from common.runs.scores import Scores
from common.weights import exchange
from common.weights import network as networks
from common.weights.network import Network
from flax_impl import feed as flax_feed
from flax_impl.convert import from_torch
from parity_tests.material import narrow
from torch_impl import feed as torch_feed
from torch_impl import pth, weights

FRAMEWORKS: tuple[Framework, ...] = ("torch", "flax")
EVALUATE: dict[str, ModuleType] = {"torch": torch_impl.evaluate, "flax": flax_impl.evaluate}
TRAIN: dict[str, ModuleType] = {"torch": torch_impl.train, "flax": flax_impl.train}
CROPPED = ("digits", "--arch", "lenet", "--preprocess.crop", "7", "--preprocess.resize", "16", "--device", "cpu")

both = pytest.mark.parametrize("framework", FRAMEWORKS)


def photographs() -> list[Image.Image]:
    """scikit-learn's two, and pieces of them: upright and of odd sizes, where rounding of the crop's place shows."""
    china, flower = map(Image.fromarray, load_sample_images().images)
    return [china, flower, china.rotate(90, expand=True), flower.crop((17, 5, 318, 406)), china.crop((3, 0, 638, 333))]


def imagenet_batch(images: list[Image.Image], recipe: Recipe | None = None) -> Batch:
    """What the imagenet recipe makes of photographs in evaluation."""
    names = tuple(str(label) for label in range(1000))
    source = Photographs(lambda index: nullcontext((images[index], index)))
    data = Dataset("photographs", "test", None, names, source, np.arange(len(images)))
    (batch,) = batches(data, recipe or get_recipe("imagenet"), 0, train=False)
    return batch


def crops_of_torchvision(images: np.ndarray, side: int, pad: int = 0) -> np.ndarray:
    """uint8 (N, H, W, C) -> (10, N, side, side, C)."""
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return torch.stack(v2.TenCrop(side)(torch.tensor(padded).permute(0, 3, 1, 2))).permute(0, 1, 3, 4, 2).numpy()


def crops_of(framework: Framework, images: np.ndarray, side: int, pad: int = 0) -> np.ndarray:
    if framework == "torch":
        return torch_impl.evaluate.ten_crop(torch.tensor(images), side, pad).numpy()
    return np.asarray(flax_impl.evaluate.ten_crop(jnp.asarray(images), side, pad))


class TestTenCrops:
    IMAGES = np.random.default_rng(0).integers(0, 256, (3, 37, 44, 3), np.uint8)

    @both
    @pytest.mark.parametrize(("side", "pad"), [(37, 0), (32, 0), (24, 0), (31, 0), (24, 3), (41, 4)])
    def test_are_torchvisions_in_its_order(self, framework: Framework, side: int, pad: int) -> None:
        ours = crops_of(framework, self.IMAGES, side, pad)
        np.testing.assert_array_equal(ours, crops_of_torchvision(self.IMAGES, side, pad))
        assert ours.dtype == np.uint8

    @both
    @pytest.mark.parametrize("side", [224, 227])
    def test_of_the_central_square(self, framework: Framework, side: int) -> None:
        """29 rows of room are halved to 14, as torchvision rounds."""
        squares = np.stack([central_square(image, 256) for image in photographs()])
        np.testing.assert_array_equal(crops_of(framework, squares, side), crops_of_torchvision(squares, side))

    def test_another_order_is_seen(self) -> None:
        """Each crop mirrored where it is, and mirror images first: the same ten crops, at other places."""
        ours = crops_of("torch", self.IMAGES, 32)
        in_place = np.concatenate([ours[:5], ours[:5, :, :, ::-1]])
        assert {crop.tobytes() for crop in in_place} == {crop.tobytes() for crop in ours}
        for planted in (in_place, np.roll(ours, 5, 0)):
            with pytest.raises(AssertionError):
                np.testing.assert_array_equal(planted, crops_of_torchvision(self.IMAGES, 32))


def lively(model: nn.Module, seed: int = 0) -> None:
    """Random weights whose probabilities differ from class to class; PyTorch's own draws leave them all near 1/n."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            nn.init.normal_(parameter, std=0.1, generator=generator)


def log_probabilities(
    framework: Framework, model: Any, arch: Arch, batch: Batch, recipe: Recipe, *, ten: bool
) -> np.ndarray:
    """Of one PyTorch model, by either framework's `log_probabilities`."""
    if framework == "torch":
        inputs = torch_feed.to_device(batch, torch.device("cpu"))
        return torch_impl.evaluate.log_probabilities(model, inputs, recipe, ten=ten).numpy()
    network, variables = flax_impl.model.build(arch), from_torch(model.state_dict(), arch)
    given = flax_feed.to_device(batch, jax.devices("cpu")[0])
    return np.asarray(flax_impl.evaluate.log_probabilities(network, variables, given, recipe, ten=ten))


@pytest.fixture(scope="module")
def arch() -> Arch:
    return narrow(ARCHS["alexnet"])


@pytest.fixture(scope="module")
def model(arch: Arch) -> Any:
    """A narrow AlexNet of random weights."""
    model = torch_impl.model.build(arch)
    lively(model)
    return model.eval()


@pytest.fixture
def batch() -> Batch:
    return imagenet_batch(photographs())


class TestProbabilities:
    """On a narrow AlexNet; torchvision crops, scales and normalises for the other side."""

    @torch.no_grad()
    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """(10, N, classes), by torchvision's transforms."""
        crops = v2.TenCrop(224)(torch.tensor(batch.images).permute(0, 3, 1, 2))
        ready = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
        return torch.stack([model(ready(crop)) for crop in crops])

    @both
    def test_ten_crops_are_averaged(self, framework: Framework, model: Any, arch: Arch, batch: Batch) -> None:
        expected = self.logits(model, batch).softmax(2).mean(0).numpy()
        ours = np.exp(log_probabilities(framework, model, arch, batch, get_recipe("imagenet"), ten=True))
        assert expected.max() > 0.1, "too even to tell anything"
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)

    @both
    def test_one_crop_is_central(self, framework: Framework, model: Any, arch: Arch, batch: Batch) -> None:
        expected = self.logits(model, batch)[4].softmax(1).numpy()
        ours = np.exp(log_probabilities(framework, model, arch, batch, get_recipe("imagenet"), ten=False))
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-7)

    def test_other_averages_are_seen(self, model: Any, arch: Arch, batch: Batch) -> None:
        """Of logits, of five crops only, or the centre alone."""
        ours = np.exp(log_probabilities("torch", model, arch, batch, get_recipe("imagenet"), ten=True))
        logits = self.logits(model, batch)
        for planted in (logits.mean(0).softmax(1), logits[:5].softmax(2).mean(0), logits[4].softmax(1)):
            with pytest.raises(AssertionError):
                np.testing.assert_allclose(ours, planted.numpy(), rtol=1e-2, atol=1e-5)


class TestAgainstTorchvision:
    """Its transforms and its own full-width alexnet, on photographs: what published top-1 and top-5 rest on."""

    @both
    def test_the_input_is_the_same_picture(self, framework: Framework) -> None:
        """Bytes are resized and cropped alike; what is left is the rounding of one division in float32."""
        batch = imagenet_batch(photographs())
        assert self.levels(self.input_of(framework, batch)).max() < 1e-3

    @pytest.mark.parametrize("fault", ["a pixel aside", "not antialiased", "squeezed"])
    def test_another_picture_is_seen(self, fault: str) -> None:
        """By more than one grey level, which is what decoders and resizers may differ by."""
        images = photographs()
        batch = imagenet_batch(images)
        if fault == "a pixel aside":
            batch.draws["crop"][:, 1] += 1
        elif fault == "not antialiased":
            sizes = [(int(256 * i.width / min(i.size)), int(256 * i.height / min(i.size))) for i in images]
            thin = [i.resize(size, Image.Resampling.NEAREST) for i, size in zip(images, sizes, strict=True)]
            batch.images[:] = [central_square(image, 256) for image in thin]
        else:
            batch.images[:] = [np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR)) for image in images]
        assert self.levels(self.input_of("torch", batch)).max() > 1

    def input_of(self, framework: Framework, batch: Batch) -> np.ndarray:
        """(N, 224, 224, 3)."""
        spec = get_recipe("imagenet").preprocess
        if framework == "torch":
            draws = {name: torch.tensor(array) for name, array in batch.draws.items()}
            x = torch_impl.preprocess.preprocess(torch.tensor(batch.images), draws, spec, torch.float32)
            return x.permute(0, 2, 3, 1).numpy()
        moved = {name: jnp.asarray(array) for name, array in batch.draws.items()}
        return np.asarray(flax_impl.preprocess.preprocess(jnp.asarray(batch.images), moved, spec, jnp.float32))

    def levels(self, ours: np.ndarray) -> np.ndarray:
        """Differences from torchvision's input in grey levels of 256."""
        transforms = AlexNet_Weights.IMAGENET1K_V1.transforms()
        theirs = torch.stack([transforms(image) for image in photographs()]).permute(0, 2, 3, 1).numpy()
        assert theirs.shape == ours.shape
        return np.abs(ours - theirs) * np.array(IMAGENET_STD) * 255

    def test_the_probabilities_follow(self, tmp_path: Path) -> None:
        """The same random weights by torchvision's names, as a file, in both frameworks."""
        oracle = alexnet(weights=None).eval()
        lively(oracle)
        path = tmp_path / "weights.safetensors"
        save_file({name: tensor.numpy() for name, tensor in oracle.state_dict().items()}, path)
        transforms = AlexNet_Weights.IMAGENET1K_V1.transforms()
        with torch.no_grad():
            theirs = oracle(torch.stack([transforms(image) for image in photographs()])).softmax(1).numpy()
        assert theirs.max() > 0.1, "too even to tell anything"
        network = networks.complete(networks.result_at(path, "torch", "predict"), weights.class_names)
        assert network.class_names == tuple(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])
        batch = imagenet_batch(photographs())
        for predictor in (torch_impl.predict.predictor, flax_impl.predict.predictor):
            ours = predictor(network, "cpu").probabilities(batch)
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)
            with pytest.raises(AssertionError):
                np.testing.assert_allclose(ours[::-1], theirs, rtol=1e-3, atol=1e-6)


def run_evaluation(framework: Framework, *words: object) -> str:
    """What the command prints."""
    side = EVALUATE[framework]
    with redirect_stdout(io.StringIO()) as out:
        run_evaluate(framework, side.evaluate_network, side.class_names, ["--device", "cpu", *map(str, words)])
    return out.getvalue()


def refused(framework: Framework, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as exit_info:
        run_evaluation(framework, *words)
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert "Traceback" not in printed.err
    return printed.err


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two epochs of LeNet on crops of the digits, in each framework."""
    folder, threads = tmp_path_factory.mktemp("runs"), torch.get_num_threads()
    torch.set_num_threads(1)
    for framework in FRAMEWORKS:
        with redirect_stdout(io.StringIO()):
            run_train(TRAIN[framework].fit, [*CROPPED, "--epochs", "2", "--out", str(folder / framework)])
    yield {framework: folder / framework for framework in FRAMEWORKS}
    torch.set_num_threads(threads)


class TestARun:
    @both
    def test_leaves_a_table_and_names_the_best(self, framework: Framework, runs: dict[str, Path]) -> None:
        lines = run_evaluation(framework, runs[framework]).splitlines()
        header, *rows = read_csv(runs[framework] / "evaluation" / "test.csv")
        found = [dict(zip(header, row, strict=True)) for row in rows]
        assert [row["checkpoint"] for row in found] == ["epoch_0001", "epoch_0002"]
        for line, row in zip(lines, found, strict=False):
            assert line.startswith(
                f"{row['checkpoint']}  accuracy {100 * float(row['top1']):.1f} % {row['right']}/360  top-5 "
            )
            assert (row["framework"], row["split"], row["crops"]) == (framework, "test", "1")
            assert float(row["top1"]) == int(row["right"]) / int(row["examples"])
        accurate = max(found, key=lambda row: int(row["right"]))
        share = f"{100 * float(accurate['top1']):.1f} %"
        assert lines[2] == f"best accuracy: {accurate['checkpoint']} {share}, {UNFAIR}"
        assert lines[3].startswith("lowest loss: epoch_000")
        assert lines[3].endswith(UNFAIR)
        share = f"{100 * float(found[1]['top1']):.1f} %"
        assert lines[4] == f"the run's result: epoch_0002 {share}, the last: no validation split to choose by"
        assert "best accuracy" in accurate["best"]
        assert lines[5:] == [f"{runs[framework] / 'evaluation'}: test.csv"]

    @both
    @pytest.mark.parametrize("ten", [False, True])
    def test_leaves_what_its_scores_are_made_of(self, framework: Framework, ten: bool, runs: dict[str, Path]) -> None:
        words = ["--confusion", "--probabilities", *(["--ten-crop"] if ten else [])]
        said = run_evaluation(framework, runs[framework], *words)
        folder, stem = runs[framework] / "evaluation", "test-ten-crop" if ten else "test"
        header, *rows = read_csv(folder / f"{stem}.csv")
        best = dict(zip(header, rows[-1], strict=True))  # the last epoch, which is the result
        assert best["crops"] == ("10" if ten else "1")
        one = f"{stem}-{best['checkpoint']}"
        _, test = load_dataset("digits")
        with np.load(folder / f"{one}-probabilities.npz") as file:
            labels, probabilities = file["labels"], file["probabilities"]
            assert file["class_names"].tolist() == [str(digit) for digit in range(10)]
            np.testing.assert_array_equal(file["ids"], test.ids)
        np.testing.assert_array_equal(labels, test.source.read(test.ids, None)[1])
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
        assert (probabilities.argmax(1) == labels).sum() == int(best["right"])
        loss = -np.log(probabilities[np.arange(360), labels]).mean()
        assert loss == pytest.approx(float(best["loss"]), rel=1e-5)
        names, *counts = read_csv(folder / f"{one}-confusion.csv")
        assert names[1:] == [row[0] for row in counts] == [str(digit) for digit in range(10)]
        confusion = np.array([row[1:] for row in counts], int)
        assert confusion.trace() == int(best["right"])
        np.testing.assert_array_equal(confusion.sum(1), np.bincount(labels))
        np.testing.assert_array_equal(confusion.sum(0), np.bincount(probabilities.argmax(1), minlength=10))
        with Image.open(folder / f"{one}-confusion.png") as picture:
            assert min(picture.size) > 500
        header, *classes, mean = read_csv(folder / f"{one}-classes.csv")
        assert header == ["class", "precision", "recall", "f1", "examples"]
        assert [row[0] for row in classes] == names[1:]
        expected = precision_recall_fscore_support(labels, probabilities.argmax(1), zero_division=0)
        np.testing.assert_allclose(np.array([row[1:] for row in classes], float).T, expected, rtol=1e-5)
        for line in (
            f"recall {100 * float(mean[2]):.1f} %  F1 {100 * float(mean[3]):.1f} %  360 macro average",
            "precision",
        ):
            assert line in said

    @pytest.mark.parametrize("words", [(), ("--ten-crop",)])
    def test_both_frameworks_give_the_same_probabilities(self, words: tuple[str, ...], runs: dict[str, Path]) -> None:
        found = []
        for framework in FRAMEWORKS:
            out = runs["torch"] / f"evaluation-{framework}"
            run_evaluation(
                framework, runs["torch"] / "model.safetensors", "--probabilities", "--confusion", "--out", out, *words
            )
            stem = "test-ten-crop-model" if words else "test-model"
            with np.load(out / f"{stem}-probabilities.npz") as file:
                found.append(file["probabilities"])
            assert (out / f"{stem}.csv").is_file()
        np.testing.assert_allclose(found[0], found[1], atol=1e-5)
        assert np.abs(found[0] - found[1][::-1]).max() > 0.1

    def test_ten_crops_differ_from_one(self, runs: dict[str, Path]) -> None:
        one, ten = (run_evaluation("torch", runs["torch"], *words) for words in ((), ("--ten-crop",)))
        assert one.splitlines()[:2] != ten.splitlines()[:2]

    @both
    def test_ten_crops_need_a_crop(
        self, framework: Framework, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        uncropped = RunFolder.create(tmp_path / "run", get_recipe("digits"))
        write_json(uncropped.path / "manifest.json", RunFolder(runs[framework]).manifest)
        said = refused(framework, capsys, tmp_path / "run" / "model.safetensors", "--ten-crop")
        assert "There is no run folder, checkpoint or .safetensors file" in said
        (tmp_path / "run" / "model.safetensors").touch()
        said = refused(framework, capsys, tmp_path / "run" / "model.safetensors", "--ten-crop")
        assert said == "error: --ten-crop needs a recipe with preprocess.crop; 'digits' takes images whole.\n"

    @both
    def test_files_that_cannot_be_written(
        self, framework: Framework, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        said = refused(framework, capsys, runs[framework], "--out", tmp_path / "file" / "below")
        assert f"Cannot write to {tmp_path / 'file' / 'below'}: Not a directory." in said

    @both
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ((), "Name a run folder or a checkpoint, or say --pretrained."),
            (("nowhere", "--pretrained"), "--pretrained scores torchvision's weights, so it goes without nowhere."),
            (("nowhere", "--dataset", "cifar10"), "There is no run folder, checkpoint or .safetensors file nowhere."),
            (("--pretrained", "--recipe", "digits"), "are for a .safetensors file, not for --pretrained."),
        ],
    )
    def test_what_does_not_go_together(
        self, framework: Framework, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in refused(framework, capsys, *words)


def test_the_best_are_told_apart() -> None:
    rows = [
        Row(name, Scores(loss, top1, 9, 10))
        for name, loss, top1 in (("a", 5.0, 7), ("b", 3.0, 7), ("c", 2.0, 6), ("d", 3.0, 7))
    ]
    assert [marks(row, rows) for row in rows] == ["", "best accuracy", "lowest loss", ""]
    assert marks(rows[0], rows[:1]) == ""


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with redirect_stdout(io.StringIO()) as out, Report("a title [with] brackets") as report:
        report.add(Row("epoch_0001", Scores(5.0, 7, 9, 10)))
        report.add(Row("epoch_0002", Scores(6.0, 8, 9, 10)))
    shown = out.getvalue()
    last = shown[shown.rindex("a title [with] brackets") :]
    for part in ("epoch_0001", "70.0 %", "7/10", "lowest loss", "epoch_0002", "8/10", "0.600", "best accuracy"):
        assert part in last


EACH = 2  # photographs of a class
NAMED = {"n01440764": "tench", "n01443537": "goldfish", "n02123045": "tabby"}


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A narrow `alexnet` in place of torchvision's, converted as `make weights` does; and photographs of 3 classes."""
    arch = narrow(ARCHS["alexnet"])
    model = torch_impl.model.build(arch)
    lively(model, 1)
    monkeypatch.setitem(ARCHS, "alexnet", arch)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pth, "download", lambda: {n: t.detach() for n, t in model.state_dict().items()})
    monkeypatch.setattr(sys, "argv", ["weights"])
    weights.main()
    images = photographs()
    for label, name in enumerate(NAMED):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number in range(EACH):
            left = 100 * number
            images[label].crop((left, 0, left + 300, 290)).save(tmp_path / "photographs" / name / f"{number}.png")
    return tmp_path


class TestPretrained:
    def test_weights_carry_names_and_preprocessing(self, pretrained: Path) -> None:
        metadata, shapes = exchange.read_metadata(exchange.pretrained_path())
        names = exchange.read_class_names(metadata, ARCHS["alexnet"], "it")
        assert names == weights.class_names() == flax_impl.evaluate.class_names()
        assert names[281] == "tabby"
        assert exchange.read_preprocess(metadata, "it") == get_recipe("imagenet").preprocess
        assert shapes == exchange.shapes(ARCHS["alexnet"])

    def test_a_folder_by_wordnet_names(self, pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of its images, in ImageNet's 1,000 labels, alike in both frameworks."""
        monkeypatch.chdir(pretrained)
        found = []
        for framework in FRAMEWORKS:
            words = ("--pretrained", "--dataset", f"folder:{pretrained / 'photographs'}", "--confusion")
            out = run_evaluation(framework, *words, "--probabilities", "--ten-crop")
            assert "\npretrained  accuracy " in out
            assert f"/{EACH * len(NAMED)}  top-5 " in out
            folder = pretrained / "runs" / "pretrained" / "evaluation"
            header, *rows = read_csv(folder / "test-ten-crop-pretrained-confusion.csv")
            assert header[1:] == list(weights.class_names())
            assert {row[0]: sum(map(int, row[1:])) for row in rows if any(map(int, row[1:]))} == dict.fromkeys(
                NAMED.values(), EACH
            )
            with np.load(folder / "test-ten-crop-pretrained-probabilities.npz") as file:
                found.append(file["probabilities"])
                assert [Path(name).parent.name for name in file["files"]] == [n for n in NAMED for _ in range(EACH)]
                assert file["labels"].tolist() == [label for label in (0, 1, 281) for _ in range(EACH)]
            with Image.open(folder / "test-ten-crop-pretrained-confusion.png") as picture:
                assert 1000 < min(picture.size) <= max(picture.size) < 4000
        np.testing.assert_allclose(found[0], found[1], atol=1e-5)
        assert np.abs(found[0][0] - found[1][-1]).max() > 1e-3

    def test_predictions_use_them_without_a_run(self, pretrained: Path) -> None:
        """With torchvision's names, which Flax has from the file; and the file may be named."""
        images, printed = pretrained / "photographs" / "n01443537", []
        for side in (torch_impl.predict, flax_impl.predict):
            for words in ((), ("--weights", exchange.pretrained_path())):
                framework: Framework = "torch" if side is torch_impl.predict else "flax"
                arguments = [images, *words, "--out", pretrained / "out", "--device", "cpu"]
                with redirect_stdout(io.StringIO()) as out:
                    run_predict(framework, side.predictor, side.class_names, list(map(str, arguments)))
                printed.append(out.getvalue().replace(" (replaced)", "").splitlines())
        assert len(printed[0]) == EACH + 1
        for line, *others in zip(*printed, strict=True):
            assert [re.sub(r"0\.\d+", "", other) for other in others] == [re.sub(r"0\.\d+", "", line)] * 3
        guesses = [re.sub(r"^0\.\d+ ", "", guess) for guess in printed[0][0].split("  ")[1:]]
        assert len(set(guesses)) == 5
        assert set(guesses) < set(AlexNet_Weights.IMAGENET1K_V1.meta["categories"])

    @both
    def test_other_classes_are_refused(
        self, framework: Framework, pretrained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (pretrained / "photographs" / "n01440764").rename(pretrained / "photographs" / "my fish")
        said = refused(framework, capsys, "--pretrained", "--dataset", f"folder:{pretrained / 'photographs'}")
        assert "has classes that the network does not know: my fish." in said
        assert "WordNet name (n01440764)" in said

    @both
    def test_a_split_folder_is_tested_on_its_test_part(self, framework: Framework, pretrained: Path) -> None:
        (pretrained / "data").mkdir()
        (pretrained / "photographs").rename(pretrained / "data" / "train")
        for name in NAMED:
            (pretrained / "data" / "val" / name).mkdir(parents=True)
            Image.new("RGB", (40, 50)).save(pretrained / "data" / "val" / name / "black.png")
        words = ("--pretrained", "--dataset", f"folder:{pretrained / 'data'}", "--out", pretrained / "out")
        assert "/3  top-5 " in run_evaluation(framework, *words)
        assert f"/{EACH * len(NAMED)}  top-5 " in run_evaluation(framework, *words, "--split", "train")

    def test_a_file_without_names_says_how_to_have_them(
        self, pretrained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = exchange.pretrained_path()
        exchange.write(path, exchange.read(path)[0], ARCHS["alexnet"])
        capsys.readouterr()
        said = refused("flax", capsys, "--pretrained", "--dataset", f"folder:{pretrained / 'photographs'}")
        assert f"{path} does not name its classes. `make weights` writes it anew" in said


class TestRelabelling:
    NAMES = ("cat", "dog", "eel")

    def data(self, *names: str) -> Dataset:
        source = Arrays(np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 1, 0], np.int32))
        return whole("four", "test", (2, 2, 1), names, source)

    def test_by_name(self) -> None:
        data = relabel(self.data("eel", "cat"), self.NAMES)
        assert data.source.read(data.ids, None)[1].tolist() == [2, 0, 0, 2]
        assert data.class_names == self.NAMES

    def test_wordnet_names_are_in_imagenets_order(self) -> None:
        names = weights.class_names()
        data = relabel(self.data("n02123045", "n15075141"), names)
        labels = data.source.read(data.ids, None)[1]
        assert [names[label] for label in labels[:2]] == ["tabby", "toilet tissue"]

    def test_unknown_names_are_listed(self) -> None:
        with pytest.raises(UserError, match="does not know: emu"):
            relabel(self.data("cat", "emu"), self.NAMES)
        with pytest.raises(UserError, match="does not know: n01440764, n01443537"):
            relabel(self.data("n01440764", "n01443537"), self.NAMES)


class TestConfusion:
    def test_is_true_by_guessed(self) -> None:
        recorder = Recorder(3, keep=True)
        recorder(np.array([0, 0], np.int32), np.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]))
        recorder(np.array([2], np.int32), np.array([[0.1, 0.8, 0.1]]))
        assert recorder.confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
        assert recorder.labels.tolist() == [0, 0, 2]
        assert recorder.probabilities.shape == (3, 3)

    def test_the_classes_of_the_lowest_recall_are_printed_first(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Of which fewest are found: b with one of four, c with three of six, a with all of two."""
        evaluation.show_classes(evaluation.class_scores(np.array([[2, 0, 0], [3, 1, 0], [0, 3, 3]]), "abc"))
        assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["b", "c", "a", "average"]

    def test_probabilities_are_kept_only_where_asked_for(self) -> None:
        recorder = Recorder(3, keep=False)
        recorder(np.array([0], np.int32), np.array([[0.1, 0.8, 0.1]]))
        assert recorder.confusion.sum() == 1
        with pytest.raises(ValueError, match="concatenate"):
            _ = recorder.probabilities

    def test_rows_are_found_by_the_examples_that_they_are_of(self, tmp_path: Path) -> None:
        """Of a part that was held out: of probabilities as of a layer's features."""
        recipe = replace(get_recipe("digits"), val_fraction=0.05, batch_size=32)
        held = load_split(recipe, "val", None)
        images, labels = held.source.read(held.ids, None)

        def compute(batch: Batch) -> np.ndarray:
            return np.asarray(batch.images, np.float64).mean((1, 2))

        recorder = Recorder(10, keep=True)
        for batch in batches(held, recipe, 0, train=False):
            recorder(batch.labels, np.eye(10)[batch.labels][:, ::-1])
        write_probabilities(tmp_path / "x.npz", recorder, held)
        network = Network(None, recipe.model_arch(held.image, 10), recipe, held.class_names)
        found = features.of_split(compute, network, held)
        np.testing.assert_array_equal(found["features"], images.astype(np.float64).mean((1, 2)))
        with np.load(tmp_path / "x.npz") as file:
            np.testing.assert_array_equal(file["probabilities"].argmax(1), 9 - labels)
            for arrays in (found, file):
                np.testing.assert_array_equal(arrays["ids"], held.ids)
                np.testing.assert_array_equal(arrays["labels"], labels)
                assert arrays["class_names"].tolist() == list(held.class_names)

    @pytest.mark.parametrize("classes", [2, 20, 45, 1000])
    def test_pictures_of_any_number_of_classes(self, classes: int, tmp_path: Path) -> None:
        confusion = np.random.default_rng(0).poisson(0.2, (classes, classes)) + 9 * np.eye(classes, dtype=int)
        confusion[1] = 0  # a class that has no examples
        names = [f"class $number${number} of a name that is rather long" for number in range(classes)]
        draw_confusion(tmp_path / "picture.png", confusion, names, "a $title")
        with Image.open(tmp_path / "picture.png") as picture:
            assert 500 < min(picture.size) <= max(picture.size) < 4000


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_recall_stands_beside_its_row(classes: int, tmp_path: Path) -> None:
    """A bar a class, level with the matrix's rows, with its percent where there is room."""
    confusion = np.random.default_rng(0).poisson(2, (classes, classes)) + 9 * np.eye(classes, dtype=int)
    confusion[0] = confusion[0, ::-1].copy()  # a class that is taken for another
    if classes > 2:
        confusion[1] = 0  # a class that has no examples
    kept: list[Any] = []
    with mock.patch.object(evaluation, "save_figure", lambda figure, path, dpi: kept.append(figure)):
        draw_confusion(tmp_path / "picture.png", confusion, [f"c{label}" for label in range(classes)], "")
    matrix, bars, _ = kept[0].axes
    recall = [100 * row[label] / row.sum() if row.sum() else 0 for label, row in enumerate(confusion)]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(recall)
    assert [bar.get_y() + bar.get_height() / 2 for bar in bars.patches] == pytest.approx(list(range(classes)))
    assert bars.get_ylim() == matrix.get_ylim()
    said = [text.get_text() for text in bars.texts]
    expected = [f"{share:.0f}" if row.sum() else "" for share, row in zip(recall, confusion, strict=True)]
    assert said == (expected if classes < 100 else [])
    kept[0].draw_without_rendering()
    (_, low), (_, high) = matrix.get_window_extent().get_points()
    assert bars.get_window_extent().get_points()[:, 1] == pytest.approx([low, high], abs=1)


def test_a_network_knows_the_size_that_its_data_has() -> None:
    recipe = get_recipe("digits")
    arch = recipe.model_arch((8, 8, 1), 10)
    assert Network(None, arch, recipe, ()).stored == (8, 8, 1)
    assert Network(None, arch, recipe, (), (16, 16, 1)).stored == (16, 16, 1), "what its file says goes before"
    folder = replace(recipe, dataset="folder:x", preprocess=Preprocess(crop=48))
    assert Network(None, folder.model_arch(None, 3), folder, ()).stored == (48, 48, 3)
    assert networks.pretrained(()).stored == (256, 256, 3)
