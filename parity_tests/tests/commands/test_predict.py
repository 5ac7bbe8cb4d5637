"""Predicting photographs: every kind of image file, the same probabilities in both frameworks, bad input."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import flax_impl.evaluate
import flax_impl.predict
import flax_impl.train
import torch_impl.evaluate
import torch_impl.model
import torch_impl.predict
import torch_impl.train
from common.arch.zoo import ARCHS
from common.commands.evaluate import run_evaluate
from common.commands.predict import run_predict
from common.commands.train import run_train
from common.data.batch import Batch
from common.data.load import load_dataset, load_unseen
from common.data.photos import flatten, open_image
from common.data.pipeline import batches
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.spec import Preprocess, Recipe
from common.recipes.zoo import get_recipe
from common.reports import predictions, sheets
from common.reports.predictions import Predictor
from common.reports.sheets import Cell
from common.runs.folder import RunFolder
from common.runs.manifest import write_manifest
from common.weights import exchange
from common.weights import network as networks
from common.weights.network import Network
from parity_tests.material import narrow
from parity_tests.results import ROOT
from torch_impl import weights

FRAMEWORKS: tuple[Framework, ...] = ("torch", "flax")
PREDICT: dict[str, ModuleType] = {"torch": torch_impl.predict, "flax": flax_impl.predict}
NAMES = ("cat", "dog", "a bird of $paradise$")

both = pytest.mark.parametrize("framework", FRAMEWORKS)


def china() -> Image.Image:
    return Image.fromarray(load_sample_images().images[0])


class TestModes:
    """Each mode's black, white and a colour between, as RGB and as grey."""

    RED = (200, 30, 40)

    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "P"])
    def test_colours_stay(self, mode: str) -> None:
        image = Image.new("RGB", (4, 4), self.RED)
        image = image.quantize(4) if mode == "P" else image.convert(mode)
        shown = np.asarray(flatten(image))
        assert shown.shape == (4, 4, 3)
        assert np.abs(shown.astype(int) - self.RED).max() <= 3
        grey = np.asarray(flatten(image, 1))
        assert grey.shape == (4, 4)
        assert np.abs(grey.astype(int) - np.asarray(Image.new("RGB", (4, 4), self.RED).convert("L"))).max() <= 2

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I", "RGB", "CMYK", "YCbCr"])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_black_and_white_stay(self, mode: str, channels: int) -> None:
        source = Image.fromarray(np.array([[0, 255]], np.uint8))
        deep = Image.fromarray(np.array([[0, 65535]], np.int32))
        shown = np.asarray(flatten(deep if mode == "I" else source.convert(mode), channels))
        assert shown.reshape(2, -1).tolist() == [[0] * channels, [255] * channels]

    @pytest.mark.parametrize("suffix", ["png", "tiff"])
    def test_16_bits_keep_their_upper_8(self, suffix: str, tmp_path: Path) -> None:
        """Pillow's own conversion would make white of everything above 255."""
        values = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
        Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
        assert np.asarray(open_image(tmp_path / f"deep.{suffix}", 1)).tolist() == [[0, 0, 1, 127, 255]]
        assert np.asarray(open_image(tmp_path / f"deep.{suffix}"))[0, :, 2].tolist() == [0, 0, 1, 127, 255]
        clipped = np.asarray(Image.fromarray(values).convert("I").convert("L"))[0]
        assert clipped.tolist() != [0, 0, 1, 127, 255], "Pillow does it by itself now"

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGBa", "La"])
    def test_what_is_transparent_is_white(self, mode: str) -> None:
        """Also in a palette of four channels, and in premultiplied colours."""
        base = {"LA": "L", "La": "L", "PA": "P"}.get(mode, "RGB")
        image = Image.new("L", (3, 1), 100).convert(base)
        image.putalpha(Image.fromarray(np.array([[0, 128, 255]], np.uint8)))
        if mode == "P":
            image = image.quantize(4)
        elif mode in ("RGBa", "La"):
            image = image.convert(mode)
        assert image.mode == mode
        for channels in (1, 3):
            shown = np.asarray(flatten(image, channels)).reshape(3, channels)
            assert np.abs(shown.astype(int) - [[255], [177], [100]]).max() <= 1

    @pytest.mark.parametrize("suffix", ["png", "gif"])
    def test_a_palette_with_a_transparent_colour(self, suffix: str, tmp_path: Path) -> None:
        image = Image.new("P", (3, 1))
        image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 750)
        image.putpixel((1, 0), 1)
        for transparent, expected in ((None, [10, 20, 30]), (0, [255, 255, 255])):
            if transparent is not None:
                image.info["transparency"] = transparent
            image.save(tmp_path / f"palette.{suffix}")
            shown = np.asarray(open_image(tmp_path / f"palette.{suffix}"))
            assert shown[0].tolist() == [expected, [200, 100, 50], expected]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_images_are_turned_upright(self, orientation: int, tmp_path: Path) -> None:
        """The file holds what a camera would have written that was held in each of the eight ways."""
        turns = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        upright = china().crop((0, 0, 60, 40))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = upright.transpose(turns[orientation]) if orientation > 1 else upright
        stored.save(tmp_path / "image.png", exif=exif)
        np.testing.assert_array_equal(open_image(tmp_path / "image.png"), upright)
        if orientation > 1:
            assert not np.array_equal(np.asarray(stored.resize(upright.size)), np.asarray(upright))

    def test_floating_point_is_refused(self, tmp_path: Path) -> None:
        Image.new("F", (3, 3), 0.5).save(tmp_path / "f.tiff")
        with pytest.raises(UserError, match=r"Cannot read the image .*f\.tiff: its pixels are floating point numbers"):
            open_image(tmp_path / "f.tiff")

    def test_grey_beyond_16_bits_is_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "i.tiff")
        with pytest.raises(UserError, match="its grey values lie outside 16 bits"):
            open_image(tmp_path / "i.tiff")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the digits, in PyTorch."""
    folder, threads = tmp_path_factory.mktemp("runs") / "digits", torch.get_num_threads()
    torch.set_num_threads(1)
    words = ["digits", "--arch", "lenet", "--preprocess.resize", "16", "--epochs", "1", "--device", "cpu"]
    with redirect_stdout(io.StringIO()):
        run_train(torch_impl.train.fit, [*words, "--out", str(folder)])
    torch.set_num_threads(threads)
    return folder


def colour_run(folder: Path, framework: Framework = "torch") -> RunFolder:
    """A run folder as training leaves it, of a narrow network on photographs of three classes."""
    recipe = Recipe(
        name="photographs",
        dataset="folder:photographs",
        arch="alexnet_cifar",
        init="he",
        epochs=1,
        batch_size=4,
        preprocess=Preprocess(host_resize=40, crop=32, flip=True, mean=(0.5,), std=(0.25,)),
    )
    arch = narrow(ARCHS["alexnet_cifar"]).adapt(classes=3)
    run = RunFolder.create(folder, recipe)
    write_manifest(run, framework, "cpu", arch, NAMES)
    torch.manual_seed(0)
    model = torch_impl.model.build(arch)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    weights.save(run.path / "model.safetensors", model, arch)
    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four photographs, one of them below, and what is none of its business."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    china().save(folder / "a.jpg")
    china().convert("CMYK").rotate(90, expand=True).save(folder / "a.tif")
    china().crop((0, 0, 90, 300)).save(folder / "narrow $x$.png")
    china().convert("L").save(folder / "below" / "a.jpg")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.jpg").write_bytes(b"not an image either")
    return folder


def run_prediction(framework: Framework, *words: object) -> str:
    """What the command prints."""
    side = PREDICT[framework]
    with redirect_stdout(io.StringIO()) as out:
        run_predict(framework, side.predictor, side.class_names, [*map(str, words), "--device", "cpu"])
    return out.getvalue()


def refused(framework: Framework, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        run_prediction(framework, *words)
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert "Traceback" not in printed.err
    return printed.err


class TestPixels:
    def test_are_those_of_an_evaluation(self, images: Path, tmp_path: Path) -> None:
        """Of a folder of photographs, byte for byte and with the same crop."""
        for name in ("one", "two"):
            (tmp_path / "data" / name).mkdir(parents=True)
            china().resize((90, 77)).save(tmp_path / "data" / name / "0.png")
            (images / "narrow $x$.png").replace(tmp_path / "data" / name / "1.png") if name == "one" else None
        run = colour_run(tmp_path / "run")
        data = load_unseen(f"folder:{tmp_path / 'data'}")
        (expected,) = batches(data, run.recipe, 0, train=False)
        network = networks.result_at(run.path, "torch", "predict")
        found = [predictions.to_pixels(open_image(Path(path)), network) for path in data.files]
        batch = predictions.to_batch(found, network)
        np.testing.assert_array_equal(batch.images, expected.images)
        assert batch.draws.keys() == expected.draws.keys() == {"crop"}
        np.testing.assert_array_equal(batch.draws["crop"], expected.draws["crop"])

    @both
    def test_a_digit_as_a_file_gets_its_evaluations_probabilities(
        self, framework: Framework, digits: Path, tmp_path: Path
    ) -> None:
        side = {"torch": torch_impl.evaluate, "flax": flax_impl.evaluate}[framework]
        words = [digits / "model.safetensors", "--probabilities", "--out", tmp_path, "--device", "cpu"]
        with redirect_stdout(io.StringIO()):
            run_evaluate(framework, side.evaluate_network, side.class_names, list(map(str, words)))
        with np.load(tmp_path / "test-model-probabilities.npz") as file:
            expected = file["probabilities"]
        _, test = load_dataset("digits")
        pixels, _ = test.source.read(test.ids[:3], None)
        for number, row in enumerate(pixels):
            Image.fromarray(row[..., 0]).convert("RGB").save(tmp_path / f"{number}.png")
            words = [tmp_path / f"{number}.png", "--run", digits, "--top", 10, "--out", tmp_path / "pictures"]
            found = probabilities(run_prediction(framework, *words))
            assert list(found) == [str(label) for label in np.argsort(-expected[number], kind="stable")]
            for label, share in enumerate(expected[number]):
                assert found[str(label)] == pytest.approx(share, abs=6e-5)  # four decimals are printed


def probabilities(printed: str) -> dict[str, float]:
    """Of the block that is printed for one image."""
    found = re.findall(r"^  (\d\.\d{4})  (.*)$", printed, re.MULTILINE)
    return {name: float(share) for share, name in found}


def read_predictions(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_both_frameworks_agree(images: Path, tmp_path: Path) -> None:
    """In every class of every image, to 1e-5 in float32; and the classes have their own names."""
    run, files = colour_run(tmp_path / "run"), predictions.find_images(str(images))[1]
    network = networks.result_at(run.path, "torch", "predict")
    assert network == networks.result_at(run.path, "flax", "predict")
    batch = predictions.to_batch([predictions.to_pixels(open_image(file), network) for file in files], network)
    ours, theirs = (PREDICT[framework].predictor(network, "cpu").probabilities(batch) for framework in FRAMEWORKS)
    assert ours.shape == (4, 3)
    assert ours.std(0).max() > 1e-3, "too even to tell anything"
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    batch.images[:] = batch.images[::-1].copy()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours, PREDICT["flax"].predictor(network, "cpu").probabilities(batch), atol=1e-5)


@both
def test_one_image(framework: Framework, images: Path, tmp_path: Path) -> None:
    """The other framework's run, as it has a model.safetensors."""
    run = colour_run(tmp_path / "run", "flax" if framework == "torch" else "torch")
    out = run_prediction(framework, images / "a.jpg", "--run", run.path, "--top", 2, "--out", tmp_path / "out")
    found = probabilities(out)
    assert out.splitlines()[0].endswith("model.safetensors is of epoch 1, the last: no validation split to choose by")
    assert out.splitlines()[1].startswith("a.jpg, by ")
    assert len(found) == 2
    assert set(found) < set(NAMES)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(
        probabilities(run_prediction(framework, images / "a.jpg", "--run", run.path, "--out", tmp_path)).values()
    ) == pytest.approx(1, abs=2e-4)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg.png"]
    with Image.open(tmp_path / "out" / "a.jpg.png") as picture:
        assert picture.width == 1512
    again = run_prediction(framework, images / "a.jpg", "--run", run.path, "--out", tmp_path / "out")
    assert again.splitlines()[-1] == f"{tmp_path}/out: a.jpg.png (replaced)"


@both
def test_a_folder(framework: Framework, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = colour_run(tmp_path / "run"), tmp_path / "out"
    _, *lines = run_prediction(framework, images, "--run", run.path, "--out", out).splitlines()
    names = ["a.jpg", "a.tif", "below/a.jpg", "narrow $x$.png"]
    assert [line.split("  ")[0] for line in lines[:-1]] == names
    assert lines[-1] == f"{out}: predictions.png, predictions.csv"
    rows = read_predictions(out / "predictions.csv")
    assert [row["image"] for row in rows] == [name for name in names for _ in range(3)]
    assert [row["rank"] for row in rows] == ["1", "2", "3"] * 4
    assert lines[0] == "  ".join(["a.jpg", *(f"{float(row['probability']):.4f} {row['class']}" for row in rows[:3])])
    assert [path.name for path in out.rglob("*.png")] == ["predictions.png"]
    *_, last = run_prediction(framework, images, "--run", run.path, "--out", out, "--each").splitlines()
    assert last == f"{out}: predictions.png (replaced), predictions.csv (replaced), 4 pictures"
    pictures = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    assert pictures == {f"{name}.png" for name in names} | {"predictions.png"}
    (out / "a.tif.png").unlink()
    *_, last = run_prediction(framework, images, "--run", run.path, "--out", out, "--grad-cam").splitlines()
    assert last.endswith("(replaced), 4 pictures (3 of them replaced), grad_cam.npz")

    (images / "cut.jpg").write_bytes((images / "a.jpg").read_bytes()[:3000])
    (images / "none.png").write_bytes(b"no image")
    said = refused(framework, capsys, images, "--run", run.path, "--out", tmp_path / "again")
    assert f"Cannot read the image {images}/cut.jpg: image file is truncated" in said
    assert f"Cannot read the image {images}/none.png: it is not an image of a known format." in said
    assert said.endswith("error: 2 of 6 images could not be predicted.\n")
    assert read_predictions(tmp_path / "again" / "predictions.csv") == rows


def test_images_come_in_pieces(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many are predicted at a time, and with a bad one between, the answers are the same."""
    run = colour_run(tmp_path / "run")
    run_prediction("torch", images, "--run", run.path, "--out", tmp_path / "whole")
    monkeypatch.setattr(predictions, "_CHUNK", 2)
    (images / "a.gif").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        run_prediction("torch", images, "--run", run.path, "--out", tmp_path / "pieces")
    whole, pieces = (read_predictions(tmp_path / name / "predictions.csv") for name in ("whole", "pieces"))
    assert [(row["image"], row["class"]) for row in whole] == [(row["image"], row["class"]) for row in pieces]
    for row, other in zip(whole, pieces, strict=True):
        assert float(row["probability"]) == pytest.approx(float(other["probability"]), abs=1e-5)


def test_a_terminal_gets_a_table(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    out = run_prediction("torch", images, "--run", colour_run(tmp_path / "run").path, "--out", tmp_path / "out")
    for part in ("image", "probability", "then", "narrow $x$.png", *NAMES):
        assert part in out


class TestBadInput:
    @both
    @pytest.mark.parametrize(
        ("image", "message"),
        [
            ("https://example.org/cat.jpg", "https://example.org/cat.jpg is a URL: download the image"),
            ("data:image/png;base64,iVBORw0KGgo=", "is a URL"),
            ("", "Name an image, or a folder of images: make predict IMAGE=cat.jpg."),
            ("nowhere.jpg", "There is no image and no folder "),
            ("empty", "/empty holds no images (.bmp, "),
            ("text.jpg", "Cannot read the image text.jpg: it is not an image of a known format. Mend or remove it."),
            ("cut.jpg", "Cannot read the image cut.jpg: image file is truncated"),
            ("cut.png", "Cannot read the image cut.png: "),
            ("nothing.png", "Cannot read the image nothing.png: it is not an image of a known format."),
            ("needle.png", "Cannot take the image needle.png: it measures 3 x 999 pixels, too narrow to be resized."),
        ],
    )
    def test_gets_a_sentence(
        self,
        framework: Framework,
        image: str,
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.jpg").write_text("not an image")
        (tmp_path / "nothing.png").touch()
        Image.new("RGB", (3, 999)).save("needle.png")
        for suffix in ("jpg", "png"):
            china().save(f"cut.{suffix}")
            Path(f"cut.{suffix}").write_bytes(Path(f"cut.{suffix}").read_bytes()[:5000])
        said = refused(framework, capsys, image, "--run", colour_run(tmp_path / "run").path)
        assert message in said
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert not (tmp_path / "predictions").exists()

    @both
    def test_a_decompression_bomb(
        self,
        framework: Framework,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Only what is beyond twice Pillow's limit, as Pillow itself has it."""
        run = colour_run(tmp_path / "run")
        Image.new("L", (101, 100)).save(tmp_path / "bomb.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
        said = refused(framework, capsys, tmp_path / "bomb.png", "--run", run.path)
        assert said == f"error: Cannot read the image {tmp_path}/bomb.png: it has more than 10,000 pixels. " + (
            "Mend or remove it.\n"
        )

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_any_damage(self, tmp_path: Path) -> None:
        """Bytes changed at random: an image or a sentence, never another exception."""
        rng, outcomes = np.random.default_rng(0), set()
        for suffix in ("png", "jpg", "gif", "tiff", "bmp", "webp"):
            path = tmp_path / f"image.{suffix}"
            china().crop((0, 0, 60, 50)).save(path)
            whole = np.frombuffer(path.read_bytes(), np.uint8)
            for _ in range(25):
                damaged = whole.copy()
                places = rng.integers(0, min(400, len(whole)), 6)
                damaged[places] = rng.integers(0, 256, 6, np.uint8)
                path.write_bytes(damaged.tobytes())
                try:
                    outcomes.add(open_image(path).mode)
                except UserError as error:
                    outcomes.add(str(error).split()[0])
        assert outcomes == {"RGB", "Cannot"}

    def test_an_unreadable_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(*arguments: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied", "image.png")

        monkeypatch.setattr(Image, "open", denied)
        with pytest.raises(UserError, match=r"Cannot read the image image\.png: Permission denied\. Mend or remove"):
            open_image(Path("image.png"))

    @both
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--top", 0), "--top is 0; it must be at least 1."),
            (("--run", "run", "--weights", "x.safetensors"), "--run and --weights exclude each other"),
            (("--run", "nowhere"), "There is no run folder, checkpoint or .safetensors file nowhere."),
            (("--run", "images"), "images is not a run folder"),
            (("--weights", "nowhere.safetensors"), "There is no run folder, checkpoint or .safetensors file "),
            (("--weights", "x.pth"), "python -m torch_impl.weights x.pth DEST.safetensors"),
            (("--weights", "cut.safetensors"), "cut.safetensors is not a readable .safetensors file"),
            (("--weights", "alone.safetensors"), "does not say how images become the input of alexnet_cifar"),
            (("--run", "run", "--out", "notes"), "Cannot write to notes: "),
        ],
    )
    def test_of_other_kinds(
        self,
        framework: Framework,
        words: tuple[object, ...],
        message: str,
        images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        content = (colour_run(tmp_path / "run").path / "model.safetensors").read_bytes()
        Path("alone.safetensors").write_bytes(content)
        Path("cut.safetensors").write_bytes(content[:1000])
        Path("notes").touch()
        assert message in refused(framework, capsys, images / "a.jpg", *words)

    @both
    def test_without_pretrained_weights(
        self,
        framework: Framework,
        images: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def offline(*arguments: object, **options: object) -> None:
            raise OSError("offline")

        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        monkeypatch.setattr(torch.hub, "urlopen", offline)
        monkeypatch.setitem(ARCHS, "alexnet", narrow(ARCHS["alexnet"]))
        said = refused(framework, capsys, images / "a.jpg")
        assert f"torchvision's pretrained AlexNet is not in {tmp_path}" in said
        assert "--weights FILE" in said

    def test_modules_are_commands(self) -> None:
        for framework in FRAMEWORKS:
            command = [sys.executable, "-m", f"{framework}_impl.predict", "https://example.org/cat.jpg"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout) == (2, "")
            said = "error: https://example.org/cat.jpg is a URL: download the image, then name the file."
            assert done.stderr.splitlines()[-1] == said


class TestWeights:
    """A file alone: what its metadata says, strictly; files written before there was any stay good."""

    ARCH = narrow(ARCHS["alexnet"])

    @pytest.fixture
    def tensors(self) -> exchange.Tensors:
        model = torch_impl.model.build(self.ARCH)
        return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}

    def test_names_and_preprocessing_travel(self, tensors: exchange.Tensors, tmp_path: Path) -> None:
        path, arch = tmp_path / "x.safetensors", self.ARCH
        names = tuple(f"class ä {label}" for label in range(arch.classes))
        preprocess = Preprocess(host_resize=70, crop=64)
        exchange.write(path, tensors, arch, class_names=names, preprocess=preprocess)
        network = networks.complete(networks.result_at(path, "torch", "predict"), pytest.fail)
        assert (network.class_names, network.recipe.preprocess, network.arch) == (names, preprocess, arch)
        assert exchange.read(path)[0].keys() == tensors.keys()

    def test_an_older_file_of_imagenet(self, tensors: exchange.Tensors, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        exchange.write(path, tensors, self.ARCH)
        assert exchange.read_class_names(exchange.read(path)[1], self.ARCH, "it") == ()
        network = networks.complete(networks.result_at(path, "torch", "predict"), weights.class_names)
        assert network.class_names[281] == "tabby"
        assert network.recipe.preprocess == get_recipe("imagenet").preprocess

    def test_the_number_of_names_is_checked(self, tensors: exchange.Tensors, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        with pytest.raises(UserError, match="names 3 classes of a network that has 1000"):
            exchange.write(path, tensors, self.ARCH, class_names=NAMES)
        assert not path.exists()
        for planted, message in (
            (json.dumps(NAMES), "names 3 classes of a network that has 1000"),
            ('"cat"', "not a list of texts"),
            ("[1, 2", "not valid JSON"),
        ):
            with pytest.raises(UserError, match=message):
                exchange.read_class_names({"class_names": planted}, self.ARCH, "it")
        for planted in ('{"crop": 3, "crap": 4}', "[3", "[]"):
            with pytest.raises(UserError, match="it "):
                exchange.read_preprocess({"preprocess": planted}, "it")

    def test_a_runs_file_stays_its_runs(self, tmp_path: Path) -> None:
        run = colour_run(tmp_path / "run")
        network = networks.complete(networks.result_at(run.path / "model.safetensors", "torch", "predict"), pytest.fail)
        assert network == networks.result_at(run.path, "torch", "predict")
        assert network.class_names == NAMES


def test_an_unfinished_run_gives_its_newest_checkpoint(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("recipe.json", "manifest.json", "checkpoints/epoch_0001.pt"):
        (tmp_path / "run" / name).write_bytes((digits / name).read_bytes())
    assert (
        networks.result_at(tmp_path / "run", "torch", "predict").path
        == tmp_path / "run" / "checkpoints" / "epoch_0001.pt"
    )
    with pytest.raises(UserError, match="was trained with torch_impl"):
        networks.result_at(tmp_path / "run", "flax", "predict")
    with pytest.raises(UserError, match="was trained with torch_impl"):
        networks.result_at(tmp_path / "run" / "checkpoints" / "epoch_0001.pt", "flax", "predict")
    (tmp_path / "run" / "checkpoints" / "epoch_0001.pt").unlink()
    with pytest.raises(UserError, match="has no finished checkpoint yet"):
        networks.result_at(tmp_path / "run", "torch", "predict")


@pytest.mark.parametrize(("top", "size"), [(1, (300, 200)), (5, (20, 30)), (40, (200, 900))])
def test_pictures_of_any_shape(top: int, size: tuple[int, int], tmp_path: Path) -> None:
    guesses = tuple((f"a class of quite a long name, number {rank}", 0.999 / 2**rank) for rank in range(top))
    pixels = np.zeros((8, 8, 3), np.float32)
    prediction = predictions.Prediction("x" * 60 + ".jpg", china().resize(size), 0.875, pixels, guesses)
    predictions.draw(tmp_path / "picture.png", prediction, "runs/" + "y" * 80 + "/model.safetensors")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width == 1512


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 2), (5, 5), (9, 9)])
def test_guesses_have_a_bar_each_and_no_empty_rows(count: int, rows: int, tmp_path: Path) -> None:
    guesses = tuple((f"class {rank}", 1 / 2**rank) for rank in range(1, count + 1))
    prediction = predictions.Prediction("x.jpg", china(), 1.0, np.zeros((8, 8, 1), np.float32), guesses)
    kept: list[Any] = []
    with mock.patch.object(predictions, "save_figure", lambda figure, path, dpi: kept.append(figure)):
        predictions.draw(tmp_path / "picture.png", prediction, "digits in PyTorch, run")
    *_, bars = kept[0].axes
    assert abs(np.diff(bars.get_ylim())[0]) == rows == len(bars.patches)


@both
def test_the_picture_shows_what_the_network_gets(framework: Framework, images: Path, tmp_path: Path) -> None:
    """To the bit what an evaluation's preprocessing gives but for mean and deviation; before that the host's crop."""
    run = colour_run(tmp_path / "run")
    network = networks.result_at(run.path, framework, "predict")
    pixels = predictions.to_pixels(open_image(images / "a.jpg"), network)
    kept: list[Any] = []
    with mock.patch.object(predictions, "save_figure", lambda figure, path, dpi: kept.append(figure)):
        run_prediction(framework, images / "a.jpg", "--run", run.path, "--out", tmp_path / "out")
        run_prediction(framework, images / "a.jpg", "--run", run.path, "--out", tmp_path / "out", "--invert")
    shown, inverted = (np.asarray(figure.axes[1].images[0].get_array()) for figure in kept)
    np.testing.assert_array_equal(np.rint(shown * 255).astype(np.uint8), pixels[4:36, 4:36])
    np.testing.assert_array_equal(np.rint(inverted * 255).astype(np.uint8), 255 - pixels[4:36, 4:36])
    assert [figure.axes[1].get_title() for figure in kept] == ["what the network sees: 32 x 32 pixels"] * 2
    height, width = np.asarray(kept[0].axes[0].images[0].get_array()).shape[:2]
    for frame in kept[0].axes[0].patches:  # 32 of the 40 pixels that the shorter side became, around the middle
        assert frame.get_width() == frame.get_height() == pytest.approx(0.8 * min(height, width))
        assert frame.get_center() == pytest.approx(((width - 1) / 2, (height - 1) / 2))
    assert kept[0].axes[-1].get_title() == "by photographs in PyTorch, run"


def test_grad_cam_is_asked_for_the_first_guess(images: Path, tmp_path: Path) -> None:
    network = networks.result_at(colour_run(tmp_path / "run").path, "torch", "predict")
    root, files, _ = predictions.find_images(str(images))
    shares = np.array([[0.2, 0.7, 0.1], [0.5, 0.2, 0.3], [0.1, 0.3, 0.6], [0.3, 0.4, 0.3]])
    asked: list[list[int]] = []

    def grad_cam(batch: Batch) -> np.ndarray:
        asked.append(batch.labels.tolist())
        return np.zeros((4, 3, 3))

    fake = Predictor(lambda batch: shares, grad_cam, lambda batch: np.zeros((4, 32, 32, 3), np.float32))
    found = [*predictions.predictions(fake, network, root, files, 2, [], grad_cam=True)]
    assert asked == [[1, 0, 2, 1]]
    assert [each.guesses[0] for each in found] == [(NAMES[1], 0.7), (NAMES[0], 0.5), (NAMES[2], 0.6), (NAMES[1], 0.4)]
    assert [each.guesses[1] for each in found[:3]] == [(NAMES[0], 0.2), (NAMES[2], 0.3), (NAMES[1], 0.3)]


@both
def test_a_sheet_holds_as_many_as_it_says(
    framework: Framework, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells: list[tuple[str, ...]] = []
    titles: list[str] = []

    def keep(path: Path, given: Sequence[Cell], title: str) -> None:
        cells.extend(cell.lines for cell in given)
        titles.append(title)

    run = colour_run(tmp_path / "run")
    monkeypatch.setattr(predictions, "SHEET", 3)
    monkeypatch.setattr(predictions, "draw_sheet", keep)
    *_, last = run_prediction(framework, images, "--run", run.path, "--out", tmp_path / "out").splitlines()
    assert last == f"{tmp_path}/out: predictions.png of the first 3 of 4, predictions.csv"
    assert titles == ["The first 3 of 4 images, by photographs in PyTorch, run"]
    rows = [row for row in read_predictions(tmp_path / "out" / "predictions.csv") if row["rank"] == "1"]
    assert cells == [(f"{100 * float(row['probability']):.1f} % {row['class']}", row["image"]) for row in rows[:3]]


@pytest.mark.parametrize("count", [1, 7, 13])
def test_thumbnails_stand_in_rows(count: int, tmp_path: Path) -> None:
    """Each shows its own picture: grey levels are found where the rows have them."""
    sheets.draw_sheet(
        tmp_path / "sheet.png",
        [sheets.Cell(Image.new("L", (30, 20), 10 * place), ("a $name$ " * 9, "ä")) for place in range(count)],
        "a title " * 60,
    )
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture.convert("L"))
    columns = [12 + place * (sheets.SIDE + 12) + sheets.SIDE // 2 for place in range(min(count, sheets.COLUMNS))]
    rows = -(-count // len(columns))
    centres = [46 + place * (sheets.SIDE + 2 * 17 + 12) + sheets.SIDE // 2 for place in range(rows)]
    levels = [int(sheet[y, x]) for y in centres for x in columns]
    assert levels == [10 * place for place in range(count)] + [255] * (len(levels) - count)


@pytest.mark.parametrize("light", [False, True])
def test_a_border_is_what_lies_outermost(light: bool) -> None:
    pixels = np.full((9, 7, 1), 0 if light else 255, np.uint8)
    pixels[[0, -1]] = pixels[:, [0, -1]] = 255 if light else 0
    assert predictions.has_light_border(pixels) == light


@pytest.mark.parametrize("turns", range(4))
def test_all_four_edges_are_the_border(turns: int) -> None:
    """Two of them light, 13 of 24 pixels, and one of them, which is 7."""
    pixels = np.zeros((7, 7, 1), np.uint8)
    pixels[0], pixels[:, -1] = 255, 255
    assert predictions.has_light_border(np.rot90(pixels, turns))
    pixels[1:, -1] = 0
    assert not predictions.has_light_border(np.rot90(pixels, turns))


@both
def test_ink_on_paper_is_told_of_and_turned_round(
    framework: Framework, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of digits that are light on dark; others, and pictures that fit, get no word."""
    folder = tmp_path / "images"
    folder.mkdir()
    _, test = load_dataset("digits")
    pixels, labels = test.source.read(test.ids[:1], None)
    Image.fromarray(pixels[0, ..., 0]).save(folder / "chalk.png")
    Image.fromarray(255 - pixels[0, ..., 0]).save(folder / "ink.png")

    def said(*words: object) -> tuple[str, dict[str, float]]:
        capsys.readouterr()
        out = run_prediction(framework, *words, "--out", tmp_path / "out")
        return capsys.readouterr().err, probabilities(out)

    note, chalk = said(folder / "chalk.png", "--run", digits)
    assert note == ""
    note, ink = said(folder / "ink.png", "--run", digits)
    assert note == (
        "note: ink.png is dark on a light ground as the network sees it, which was trained on digits, light on dark: "
        "its guesses mean little; --invert exchanges dark and light\n"
    )
    note, inverted = said(folder / "ink.png", "--run", digits, "--invert")
    assert (note, inverted) == ("", chalk)
    assert inverted != ink
    assert next(iter(chalk)) == str(labels[0])
    note, _ = said(folder / "chalk.png", "--run", digits, "--invert")
    assert note.endswith("leave --invert out\n")
    assert "1 of 2 images (ink.png ...) are dark" in said(folder, "--run", digits)[0]
    assert said(folder / "ink.png", "--run", colour_run(tmp_path / "run").path)[0] == ""


def test_a_network_without_a_file_is_torchvisions() -> None:
    network: Network = networks.pretrained(weights.class_names())
    assert network.title == "torchvision's pretrained AlexNet"
    assert (network.arch, network.recipe) == (ARCHS["alexnet"], get_recipe("imagenet"))
