"""Exports: reloaded, in a process without our code too, they give the source's logits; a wrong one is not written."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

import flax_impl.checkpoint
import flax_impl.export
import flax_impl.model
import flax_impl.predict
import flax_impl.weights
import torch_impl.checkpoint
import torch_impl.export
import torch_impl.predict
import torch_impl.weights
from common.arch.spec import Arch, BatchNorm, MaxPool
from common.arch.zoo import ARCHS, get_arch
from common.commands.export import run_export
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.zoo import RECIPES, get_recipe
from common.reports import predictions
from common.runs.folder import RunFolder
from common.runs.manifest import write_manifest
from common.runs.progress import Progress
from common.weights import exchange
from common.weights import export as exports
from common.weights.network import result_at
from parity_tests.material import narrow
from parity_tests.results import ROOT

ONNX_PYTHON = ROOT / ".venv-onnx" / "bin" / "python"

MODULES: dict[Framework, Any] = {"torch": torch_impl.export, "flax": flax_impl.export}
PREDICT: dict[Framework, Any] = {"torch": torch_impl.predict, "flax": flax_impl.predict}
FRAMEWORKS: tuple[Framework, ...] = ("torch", "flax")
SUFFIXES: dict[str, Framework] = {".pt2": "torch", ".onnx": "torch", ".pt": "torch", ".stablehlo": "flax"}

SUFFIX: dict[Framework, str] = {"torch": ".pt2", "flax": ".stablehlo"}  # of its own format

# Groups, local response norm, batch norm and adaptive bins of unequal sizes in one network.
EVERYTHING = replace(
    narrow(ARCHS["alexnet_2012"].adapt(height=240, width=260, classes=7)),
    name="everything",
    convs=tuple(replace(spec, norm=BatchNorm()) for spec in narrow(ARCHS["alexnet_2012"]).convs),
    adaptive_pool=5,
)
NETWORKS = {name: narrow(arch) for name, arch in ARCHS.items()} | {"everything": EVERYTHING}
AT_ONCE = ("everything", "lenet", "alexnet")  # what there is of layers

# What a user of a file writes. The finder in front proves that none of our code is needed.
OPEN = {
    ".pt2": """
import torch
model = torch.export.load(path).module()
run = lambda images: model(torch.from_numpy(images)).detach().numpy()
""",
    ".pt": """
import torch
model = torch.jit.load(path)
run = lambda images: model(torch.from_numpy(images)).detach().numpy()
""",
    ".stablehlo": """
from jax import export
run = export.deserialize(bytearray(open(path, "rb").read())).call
""",
    ".onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
run = lambda images: session.run(["logits"], {"images": images})[0]
""",
}
FRESH = """
import sys

class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("common", "torch_impl", "flax_impl", "parity_tests"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import numpy as np
path, given, made = sys.argv[1:]
{open}
np.savez(made, **{{name: np.asarray(run(images)) for name, images in np.load(given).items()}})
"""


def weights(arch: Arch, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights that keep activations in scale, with statistics and biases far from their fresh values."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in exchange.shapes(arch).items():
        draw = rng.standard_normal(shape).astype(np.float32)
        positive = name.endswith(("running_var", "norm.weight"))
        tensors[name] = 0.5 + np.abs(draw) if positive else draw * np.float32(np.sqrt(2 / max(prod(shape[1:]), 8)))
    return tensors


def saved(folder: Path, arch: Arch) -> Path:
    """A network on disk that both frameworks open."""
    path = folder / f"{arch.name}.safetensors"
    exchange.write(path, weights(arch), arch)
    return path


def finished_run(path: Path, framework: Framework, recipe: str, arch: Arch) -> RunFolder:
    """A run folder such as training leaves."""
    run = RunFolder.create(path, get_recipe(recipe))
    write_manifest(run, framework, "cpu", arch, tuple(f"class {label}" for label in range(arch.classes)))
    exchange.write(run.path / "model.safetensors", weights(arch), arch)
    return run


def command(framework: Framework, *words: object) -> None:
    """The command line."""
    run_export(framework, MODULES[framework].FORMATS, MODULES[framework].export, list(map(str, words)))


def refused(capsys: pytest.CaptureFixture[str], framework: Framework, *words: object) -> str:
    """The one sentence of a command that refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        command(framework, *words)
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def batches(arch: Arch) -> dict[str, np.ndarray]:
    """Images (N, H, W, C) of several N."""
    rng = np.random.default_rng(1)
    return {f"batch{n}": rng.standard_normal((n, *arch.image), np.float32) for n in (1, 3, 4)}


def expected(framework: Framework, path: Path, arch: Arch) -> dict[str, np.ndarray]:
    """The logits of the source, in its own framework, for `batches`."""
    run: exports.Predict
    if framework == "torch":
        model = torch_impl.weights.load_model(path, arch).eval()
        return {name: torch_impl.export.logits(model, nchw(images)) for name, images in batches(arch).items()}
    run = partial(flax_impl.export.logits, flax_impl.model.build(arch), flax_impl.weights.load(path, arch))
    return {name: run(images) for name, images in batches(arch).items()}


def nchw(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def in_a_fresh_process(file: Path, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The logits that a process without our code gets from a file."""
    given, made = file.with_suffix(".given.npz"), file.with_suffix(".made.npz")
    np.savez(given, **images)  # type: ignore[arg-type]
    code = FRESH.format(open=OPEN[file.suffix])
    words = [sys.executable, "-c", code, str(file), str(given), str(made)]
    done = subprocess.run(words, cwd=file.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(made))


def worst(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    assert list(got) == list(wanted)
    return max(exports.difference(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name", [name if name in AT_ONCE else pytest.param(name, marks=pytest.mark.full) for name in NETWORKS]
)
def test_every_architecture_is_exported(name: str, suffix: str, tmp_path: Path) -> None:
    framework, arch = SUFFIXES[suffix], NETWORKS[name]
    kind = exports.pick_format(Path("file" + suffix), None, MODULES[framework].FORMATS)
    source = result_at(saved(tmp_path, arch), framework, "export")
    assert source.arch == arch
    assert MODULES[framework].export(source, tmp_path / f"file{suffix}", kind) <= exports.TOLERANCE


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_process_without_our_code_gets_the_same_logits(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    framework = SUFFIXES[suffix]
    source, file = saved(tmp_path, EVERYTHING), tmp_path / "made" / f"network{suffix}"
    command(framework, source, file)
    assert "its logits differ by at most" in capsys.readouterr().out
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name, f"{file.name}.json"]
    told = json.loads((file.parent / f"{file.name}.json").read_text())
    assert told["input"]["layout"] == ("NCHW" if framework == "torch" else "NHWC")
    images = batches(EVERYTHING)
    laid_out = {name: nchw(array) if framework == "torch" else array for name, array in images.items()}
    assert [list(array.shape[1:]) for array in laid_out.values()] == [told["input"]["shape"][1:]] * 3
    got = in_a_fresh_process(file, laid_out)
    for maker in FRAMEWORKS:  # the source's logits, in either framework
        assert worst(got, expected(maker, source, EVERYTHING)) <= exports.TOLERANCE
    other = worst(got, expected("torch", altered(source, "fc8.bias"), EVERYTHING))
    assert other > exports.TOLERANCE, "one bias altered by a thousandth must be seen"


def altered(source: Path, name: str) -> Path:
    """The same network with one number of one tensor changed by a thousandth of the tensor's largest."""
    tensors, metadata = exchange.read(source)
    tensors[name].flat[0] += np.abs(tensors[name]).max() / 1000
    path = source.with_name("altered.safetensors")
    exchange.write(path, tensors, exchange.read_arch(metadata, "source"))
    return path


EXPORT_ALL = """
import sys
from common.commands.export import run_export
from flax_impl.export import FORMATS, export
for source in sys.argv[1:]:
    run_export("flax", FORMATS, export, [source, source.replace(".safetensors", ".flax.onnx")])
"""


@pytest.mark.skipif(not ONNX_PYTHON.is_file(), reason="no .venv-onnx: make export-flax TO=FILE.onnx makes it")
@pytest.mark.parametrize("names", [AT_ONCE, pytest.param(NETWORKS.keys() - {*AT_ONCE}, marks=pytest.mark.full)])
def test_both_onnx_files_give_the_same_answers(names: Collection[str], tmp_path: Path) -> None:
    sources = {name: saved(tmp_path, NETWORKS[name]) for name in sorted(names)}
    words = [str(ONNX_PYTHON), "-c", EXPORT_ALL, *map(str, sources.values())]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, source in sources.items():
        arch, ours, theirs = NETWORKS[name], source.with_suffix(".onnx"), source.with_suffix(".flax.onnx")
        command("torch", source, ours)
        images = batches(arch)
        laid_out = {key: nchw(array) for key, array in images.items()}
        # onnxruntime holds none of our code in this process either; one network shows it.
        open_ = in_a_fresh_process if name == "everything" else _run_here
        from_flax, from_torch = open_(theirs, images), open_(ours, laid_out)
        assert worst(from_flax, expected("flax", source, arch)) <= exports.TOLERANCE, name
        assert worst(from_flax, from_torch) <= exports.TOLERANCE, name
        unpermuted = open_(ours, {key: array.reshape(laid_out[key].shape) for key, array in images.items()})
        assert worst(from_flax, unpermuted) > exports.TOLERANCE or arch.image[2] == 1, "the layout must matter"


def _run_here(file: Path, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    run = exports.run_onnx(file.read_bytes())
    return {name: run(array) for name, array in images.items()}


@pytest.mark.skipif(not ONNX_PYTHON.is_file(), reason="no .venv-onnx: make export-flax TO=FILE.onnx makes it")
def test_what_jax2onnx_cannot_write_is_refused(tmp_path: Path) -> None:
    padded = replace(NETWORKS["lenet"], name="padded")
    padded = replace(padded, convs=(replace(padded.convs[0], after=(MaxPool(3, 2, 1),)), padded.convs[1]))
    for arch, words, message in (
        (padded, (), "padded pads before a pool, which jax2onnx leaves out"),
        (NETWORKS["lenet"], ("--opset", "11"), "--opset 11 lacks an operator"),
    ):
        line = ["-m", "flax_impl.export", str(saved(tmp_path, arch)), str(tmp_path / "made" / "no.onnx"), *words]
        done = subprocess.run([str(ONNX_PYTHON), *line], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "made").exists()


def test_without_jax2onnx_the_command_names_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "flax", saved(tmp_path, NETWORKS["lenet"]), tmp_path / "made" / "no.onnx")
    assert "make export-flax RUN=... TO=FILE.onnx" in message
    assert not (tmp_path / "made").exists()


def _altered_weight(serialize: Callable[..., bytes], model: Any, *rest: Any) -> bytes:
    """One weight of 1,000 changed by a thousandth of the largest."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    row = model.state_dict()["fc4.bias"]
    row[0] += row.abs().max() / 1000
    content = serialize(model, *rest)
    model.load_state_dict(state)
    return content


def _in_training(serialize: Callable[..., bytes], model: Any, *rest: Any) -> bytes:
    """Batch norm takes the batch's own statistics."""
    content = serialize(model.train(), *rest)
    model.eval()
    return content


def _other_layout(serialize: Callable[..., bytes], model: Any, variables: Any, *rest: Any) -> bytes:
    """The first dense layer transposed, but its inputs left in PyTorch's order."""
    name, (height, width, channels) = "fc3", model.arch.feature_size
    kernel = variables["params"][name]["kernel"]
    moved = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    params = variables["params"] | {name: variables["params"][name] | {"kernel": moved}}
    return serialize(model, {**variables, "params": params}, *rest)


@pytest.mark.parametrize(
    ("framework", "suffix", "fault"),
    [
        *(("torch", suffix, _altered_weight) for suffix in (".pt2", ".onnx", ".pt")),
        *(("torch", suffix, _in_training) for suffix in (".pt2", ".pt")),
        ("flax", ".stablehlo", _other_layout),
    ],
)
def test_a_wrong_export_is_not_written(
    framework: Framework,
    suffix: str,
    fault: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arch = NETWORKS["lenet"]
    arch = replace(arch, convs=tuple(replace(spec, norm=BatchNorm()) for spec in arch.convs))
    module = MODULES[framework]
    monkeypatch.setattr(module, "serialize", partial(fault, module.serialize))
    old = tmp_path / f"old{suffix}"
    old.write_bytes(b"an earlier export")
    assert "Not written: the export's logits differ" in refused(capsys, framework, saved(tmp_path, arch), old)
    assert old.read_bytes() == b"an earlier export"
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("got", [np.zeros((2, 3)), np.zeros((1, 2), np.float64), np.array([[np.nan, 0]], np.float32)])
def test_the_comparison_cannot_be_passed_by(got: np.ndarray) -> None:
    right = np.zeros((1, 2), np.float32)
    assert exports.difference(right, right) == 0
    for pair in ((got, right), (right, got)):
        assert exports.difference(*pair) == float("inf")
    with pytest.raises(UserError, match="differ"):
        exports.prove(lambda images: right, lambda images: got, (2,))


@pytest.mark.parametrize("alone", [True, False])
def test_what_is_right_for_one_image_or_for_several_alone_is_refused(alone: bool) -> None:
    """As of a file whose number of images is a constant, or that normalises over them."""
    with pytest.raises(UserError, match="differ"):
        exports.prove(lambda images: images, lambda images: images * (1 + ((len(images) == 1) != alone)), (2,))


def test_an_export_that_the_disk_has_no_room_for_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its note: both are as they were until both are written."""
    write, dest = Path.write_bytes, tmp_path / "model.pt2"
    exports.write(dest, b"an earlier export", {"earlier": True})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["model.pt2", "model.pt2.json"]

    def fill(path: Path, content: bytes) -> int:
        written = write(path, content[:100])
        if len(content) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(UserError, match=r"Cannot write .*model\.pt2: No space left on device\."):
        exports.write(dest, bytes(200), {"earlier": False})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


BAD: list[tuple[Framework, tuple[str, ...], str]] = [
    ("torch", ("lenet.safetensors", "no.tflite"), r"no\.tflite names no format\. Known: \.pt2 \(pt2\), \.onnx"),
    ("flax", ("lenet.safetensors", "no.pt2"), r"no\.pt2 names no format\. Known: \.stablehlo \(stablehlo\)"),
    ("torch", ("lenet.safetensors", "no", "--format", "onx"), r"no format 'onx'\. Did you mean 'onnx'\?"),
    ("flax", ("lenet.safetensors", "no", "--format", "pt2"), r"no format 'pt2'.*Known: onnx, stablehlo"),
    ("torch", ("lenet.safetensors", "no.pt2", "--opset", "18"), r"--opset 18 is for ONNX; .*no\.pt2 becomes pt2"),
    ("torch", ("lenet.safetensors", "no.onnx", "--opset", "11"), r"--opset 11 lacks operators .* Take 18"),
    ("torch", ("lenet.safetensors", "no.onnx", "--opset", "999"), r"--opset 999: onnx .* knows 1 to "),
    ("torch", ("lenet.safetensors", "no.onnx", "--opset", "0"), r"--opset 0: onnx .* knows 1 to "),
    ("torch", ("lenet.safetensors", "folder", "--format", "pt2"), r"folder is a folder: name the file"),
    ("flax", ("lenet.safetensors", "lenet.safetensors/no.stablehlo"), r"Cannot write .*no\.stablehlo: "),
    ("torch", ("absent.safetensors", "no.pt2"), r"There is no run folder, checkpoint or \.safetensors file .*absent"),
    ("flax", ("absent", "no.stablehlo"), r"There is no run folder, checkpoint or \.safetensors file .*absent"),
    ("torch", ("folder", "no.pt2"), r"folder is not a run folder"),
    ("torch", ("cut.safetensors", "no.pt2"), r"cut\.safetensors is not a readable \.safetensors file"),
    ("torch", ("nameless.safetensors", "no.pt2"), r"does not say which architecture.*--arch"),
    ("flax", ("nameless.safetensors", "no.stablehlo", "--arch", "alexnte"), r"no architecture 'alexnte'"),
    ("flax", ("nameless.safetensors", "no.stablehlo", "--arch", "alexnet"), r"does not fit alexnet.*is missing"),
    ("torch", ("lenet.safetensors", "no.pt2", "--arch", "alexnet"), r"--arch alexnet: .* holds lenet"),
    ("torch", ("lenet.safetensors", "no.pt2", "--recipe", "imagnet"), r"no recipe 'imagnet'. Did you mean 'imagenet'"),
    ("torch", ("flax-run", "no.pt2"), r"trained with flax_impl: use `python -m flax_impl\.export`"),
    ("flax", ("flax-run", "no.stablehlo", "--arch", "lenet"), r"--arch lenet: leave it out, the run folder"),
    ("flax", ("unfinished", "no.stablehlo"), r"unfinished has no model\.safetensors yet: finish the run"),
]


@pytest.mark.parametrize(("framework", "words", "message"), BAD, ids=[" ".join((f, *words)) for f, words, _ in BAD])
def test_bad_input_gets_a_sentence(
    framework: Framework, words: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = NETWORKS["lenet"]
    (tmp_path / "cut.safetensors").write_bytes(saved(tmp_path, arch).read_bytes()[:100])
    (tmp_path / "folder").mkdir()
    _nameless(tmp_path / "nameless.safetensors", arch)
    finished_run(tmp_path / "flax-run", "flax", "fashion_mnist_lenet", arch)
    (finished_run(tmp_path / "unfinished", "flax", "digits", arch).path / "model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    said = refused(capsys, framework, tmp_path / words[0], tmp_path / words[1], *words[2:])
    assert re.search(message, said), said
    assert sorted(tmp_path.rglob("*")) == before


def _nameless(path: Path, arch: Arch) -> None:
    """As others write a .safetensors file: without an architecture."""
    from safetensors.numpy import save_file

    save_file(weights(arch), path)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_nameless_file_needs_the_architecture_alone(framework: Framework, tmp_path: Path) -> None:
    arch = ARCHS["lenet"].adapt(classes=3)
    _nameless(tmp_path / "nameless.safetensors", arch)
    file = tmp_path / ("a" + SUFFIX[framework])
    command(framework, tmp_path / "nameless.safetensors", file, "--arch", "lenet")
    told = json.loads((tmp_path / f"{file.name}.json").read_text())
    assert told["output"]["shape"] == ["batch", 3]
    assert told["preprocess"] is None
    assert told["class_names"] is None


def test_torchvisions_file_is_exported_as_it_is(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {exchange.to_torchvision(name): array for name, array in weights(ARCHS["alexnet"]).items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    file = tmp_path / "a.pt2"
    command("torch", tmp_path / "theirs.safetensors", file, "--arch", "alexnet", "--recipe", "imagenet")
    told = json.loads((tmp_path / "a.pt2.json").read_text())
    assert told["preprocess"][-1] == {"step": "normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_tells_how_it_is_fed(framework: Framework, tmp_path: Path) -> None:
    arch = NETWORKS["lenet"]
    run = finished_run(tmp_path / "run", framework, "fashion_mnist_lenet", arch)
    suffix = SUFFIX[framework]
    for source in (run.path, run.path / "model.safetensors"):
        command(framework, source, tmp_path / f"made{suffix}")
        told = json.loads((tmp_path / f"made{suffix}.json").read_text())
        assert told["class_names"] == run.class_names
        assert told["arch"] == "lenet"
        assert told["preprocess"] == exports.preprocess_steps(run.recipe, arch)
        assert told["versions"]["numpy"] == np.__version__
        assert told["input"]["shape"] == ["batch", *({"torch": [1, 28, 28], "flax": [28, 28, 1]}[framework])]
    other: Framework = "flax" if framework == "torch" else "torch"  # the file, unlike the folder, either one opens
    command(
        other, run.path / "model.safetensors", tmp_path / ("other" + {"torch": ".pt2", "flax": ".stablehlo"}[other])
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_a_checkpoint_is_exported_in_float32(framework: Framework, precision: Any, tmp_path: Path) -> None:
    import jax

    arch, recipe = NETWORKS["lenet"], replace(get_recipe("fashion_mnist_lenet"), precision=precision)
    run = RunFolder.create(tmp_path / "run", recipe)
    write_manifest(run, framework, "cpu", arch, ("a",) * arch.classes)
    with jax.enable_x64(precision == "float64"):
        file = _checkpoint(run, framework, arch)
    suffix = SUFFIX[framework]
    command(framework, file, tmp_path / f"made{suffix}")
    kind = {"torch": "pt2", "flax": "stablehlo"}[framework]
    images = np.zeros((2, *({"torch": (1, 28, 28), "flax": (28, 28, 1)}[framework])), np.float32)
    assert MODULES[framework].reload((tmp_path / f"made{suffix}").read_bytes(), kind)(images).dtype == np.float32


def _checkpoint(run: RunFolder, framework: Framework, arch: Arch) -> Path:
    """A checkpoint of a fresh state."""
    import jax
    import torch

    from flax_impl.state import init_state as flax_state
    from torch_impl.state import init_state as torch_state

    path, progress = run.checkpoint(1, framework), Progress.start(run.recipe, arch)
    if framework == "torch":
        torch_impl.checkpoint.save(path, torch_state(run.recipe, arch, 1, torch.device("cpu")), progress)
    else:
        flax_impl.checkpoint.save(path, flax_state(run.recipe, arch, 1, jax.devices("cpu")[0]), progress)
    return path


def follow(steps: list[dict[str, Any]], image: Image.Image) -> np.ndarray:
    """What a reader of the note makes of a picture, with Pillow alone as far as it is 8 bit: float32 (H, W, C)."""
    import torch
    import torch.nn.functional as F

    x: np.ndarray = np.zeros(())
    for step in steps:
        match step:
            case {"step": "orient", "by": "EXIF orientation"}:
                image = ImageOps.exif_transpose(image)
            case {"step": "flatten", "background": colour}:
                over = Image.new("RGBA", image.size, (*colour, 255))
                image = Image.alpha_composite(over, image.convert("RGBA")) if image.mode == "RGBA" else image
            case {"step": "convert", "mode": mode, "dtype": "uint8"}:
                image = image.convert(mode)
            case {"step": "resize", "shorter_side": side, "mode": "bilinear", "antialias": True, "dtype": "uint8"}:
                size = [side * length // min(image.size) for length in image.size]
                image = image.resize((size[0], size[1]), Image.Resampling.BILINEAR)
            case {"step": "center_crop", "size": [height, width]}:
                left, top = round((image.width - width) / 2), round((image.height - height) / 2)
                image = image.crop((left, top, left + width, top + height))
            case {"step": "divide", "by": divisor}:
                x = np.atleast_3d(np.asarray(image, np.float32)) / np.float32(divisor)
            case {"step": "resize", "size": size, "mode": mode, "half_pixel_centers": True, "antialias": False}:
                given = torch.from_numpy(x).permute(2, 0, 1)[None]
                x = F.interpolate(given, size, mode=mode, align_corners=False)[0].permute(1, 2, 0).numpy()
            case {"step": "normalize", "mean": mean, "std": std}:
                x = ((x - np.array(mean)) / np.array(std)).astype(np.float32)
            case _:
                raise AssertionError(step)
    return x


def test_the_steps_are_those_of_evaluation() -> None:
    """A reader of the note alone gets the model's input, for every recipe on images of one size."""
    import torch

    from common.data.spec import DATASETS
    from torch_impl.preprocess import preprocess

    seen = 0
    for name in RECIPES:
        recipe = get_recipe(name)
        stored = DATASETS[recipe.dataset].image if recipe.dataset in DATASETS else None
        if stored is None:
            continue
        images = np.random.default_rng(0).integers(0, 256, (2, *stored), np.uint8)
        arch = recipe.model_arch(stored, 10)
        made = preprocess(torch.from_numpy(images), {}, recipe.preprocess, torch.float32)
        if recipe.preprocess.crop and recipe.preprocess.crop != stored[0]:
            continue
        steps = exports.preprocess_steps(recipe, arch)
        got = np.stack([follow(steps, Image.fromarray(image[..., 0] if stored[2] == 1 else image)) for image in images])
        np.testing.assert_allclose(nchw(got), made.numpy(), rtol=0, atol=1e-5, err_msg=name)
        seen += 1
    assert seen >= 3


def test_photographs_are_resized_and_cut_first() -> None:
    recipe = get_recipe("imagenet")
    *steps, resize, square, crop, divide, normalize = exports.preprocess_steps(recipe, ARCHS["alexnet"])
    assert [step["step"] for step in steps] == ["orient", "flatten", "convert"]
    assert resize["shorter_side"] == recipe.preprocess.host_resize
    assert [step["step"] for step in (square, crop, divide, normalize)] == [
        *["center_crop"] * 2,
        "divide",
        "normalize",
    ]
    assert crop["size"] == [224, 224]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["digits", "fashion_mnist_best", "cifar10", "photos_scratch"])
def test_who_follows_the_note_gets_what_a_prediction_says(name: str, framework: Framework, tmp_path: Path) -> None:
    """Of a picture of 230 x 200 pixels that lies on its side and is transparent in places."""
    recipe = get_recipe(name)
    channels = 3 if name in ("cifar10", "photos_scratch") else 1
    arch = narrow(get_arch(recipe.arch)).adapt(height=32, width=32, channels=channels, classes=7)
    run = finished_run(tmp_path / "run", framework, name, arch)
    pixels = np.random.default_rng(3).integers(0, 256, (10, 12, 4), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.fromarray(pixels).resize((230, 200), Image.Resampling.NEAREST)
    image.save(tmp_path / "picture.png", exif=exif)
    file = tmp_path / f"made{SUFFIX[framework]}"
    command(framework, run.path, file)
    steps = json.loads((tmp_path / f"{file.name}.json").read_text())["preprocess"]
    with Image.open(tmp_path / "picture.png") as image:
        images = follow(steps, image)[None]
    kind = {"torch": "pt2", "flax": "stablehlo"}[framework]
    fed = nchw(images) if framework == "torch" else images
    logits = np.asarray(MODULES[framework].reload(file.read_bytes(), kind)(fed), np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    network = result_at(run.path, framework, "predict")
    ready = PREDICT[framework].predictor(network, "cpu")
    [seen] = predictions.predictions(ready, network, tmp_path, [tmp_path / "picture.png"], 7, [])
    told = dict(seen.guesses)
    assert max(told.values()) < 0.999, "certain whatever it sees"
    np.testing.assert_allclose(shares[0], [told[each] for each in network.names], atol=1e-4)
