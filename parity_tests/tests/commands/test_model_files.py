"""A model is its file: a copy elsewhere answers as the run does, and classes go by name, not by their number."""

from __future__ import annotations

import csv
import io
import json
import shutil
import unicodedata
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import flax_impl.evaluate
import flax_impl.export
import flax_impl.predict
import flax_impl.weights
import torch_impl.evaluate
import torch_impl.export
import torch_impl.model
import torch_impl.predict
import torch_impl.weights
from common.arch.zoo import ARCHS
from common.commands.evaluate import run_evaluate
from common.commands.export import run_export
from common.commands.predict import run_predict
from common.data.classes import difference, read_names
from common.data.load import load_dataset, load_splits
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.spec import Preprocess, Recipe
from common.recipes.zoo import get_recipe
from common.runs.folder import RunFolder
from common.runs.manifest import write_manifest
from common.weights import exchange
from common.weights.examples import examples
from common.weights.network import (
    UNSAID,
    Given,
    Network,
    about,
    complete,
    networks_at,
    note_other_classes,
    result_at,
    with_given,
)
from flax_impl import convert
from parity_tests.material import narrow

NAMES = ("ants", "bees", "caf\u00e9")
FRAMEWORKS: tuple[Framework, ...] = ("torch", "flax")
EVALUATE: dict[str, ModuleType] = {"torch": torch_impl.evaluate, "flax": flax_impl.evaluate}
PREDICT: dict[str, ModuleType] = {"torch": torch_impl.predict, "flax": flax_impl.predict}
EXPORT: dict[str, ModuleType] = {"torch": torch_impl.export, "flax": flax_impl.export}

both = pytest.mark.parametrize("framework", FRAMEWORKS)


def pictures(root: Path, names: tuple[str, ...] = NAMES, count: int = 5) -> Path:
    """Noise of a colour for each class, and folders in `root`."""
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 60, (40, 48, 3)) + rng.integers(0, 195, 3)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def network_at(folder: Path, recipe: Recipe, names: tuple[str, ...] = NAMES) -> RunFolder:
    """A run as training leaves it, whose narrow network tells pictures apart."""
    train, test = load_dataset(recipe.dataset)
    full = recipe.model_arch(train.image, len(train.class_names))
    arch = full if recipe.arch == "lenet" else narrow(full)
    run = RunFolder.create(folder, recipe)
    write_manifest(run, "torch", "cpu", arch, names, data={"train": train, "test": test})
    torch.manual_seed(0)
    model = torch_impl.model.build(arch)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    torch_impl.weights.save(run.path / "model.safetensors", model, arch, **vars(about(run)))
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Of photographs; trained on a folder that is still there, in bfloat16 and small batches."""
    data = pictures(tmp_path / "data")
    spec = Preprocess(host_resize=36, crop=32, mean=(0.5,), std=(0.25,))
    recipe = Recipe("own", f"folder:{data}", "alexnet_cifar", "he", 1, 2, preprocess=spec, precision="bfloat16")
    return network_at(tmp_path / "run", recipe)


def evaluated(framework: Framework, *words: object) -> str:
    side = EVALUATE[framework]
    with redirect_stdout(io.StringIO()) as out:
        run_evaluate(framework, side.evaluate_network, side.class_names, ["--device", "cpu", *map(str, words)])
    return out.getvalue()


def refused(framework: Framework, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        evaluated(framework, *words)
    said = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert said.count("\n") == 1
    return said


def probabilities(framework: Framework, path: Path, out: Path, *words: object) -> dict[str, np.ndarray]:
    evaluated(framework, path, "--probabilities", "--out", out, *words)
    [file] = out.glob("*.npz")
    with np.load(file) as arrays:
        found = dict(arrays)
    shutil.rmtree(out)
    return found


def alike(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in ("ids", "labels", "probabilities", "class_names"):
        np.testing.assert_array_equal(one[name], other[name])
    assert np.ptp(one["probabilities"], axis=0).max() > 1e-3, "too even to tell anything"


@both
def test_a_copy_answers_as_the_run_does(framework: Framework, run: RunFolder, tmp_path: Path) -> None:
    """Bit for bit, after a way through either converter too."""
    copies = [tmp_path / "copies" / f"{name}.safetensors" for name in ("plain", "torch", "flax")]
    copies[0].parent.mkdir()
    shutil.copy(run.path / "model.safetensors", copies[0])
    for module, dest in ((torch_impl.weights, copies[1]), (flax_impl.weights, copies[2])):
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
            patch.setattr("sys.argv", ["weights", str(copies[0]), str(dest)])
            module.main()
    side, image = PREDICT[framework], tmp_path / "data" / "bees" / "3.png"
    sources = [run.path / "model.safetensors", *copies]
    found = [probabilities(framework, path, tmp_path / "out") for path in sources]
    assert len(found[0]["ids"]) == 3  # of each class the first of five
    guessed, notes = [], []
    for path in sources:
        words = ["--weights", str(path), "--device", "cpu", "--out", str(tmp_path / "out")]
        with redirect_stdout(io.StringIO()):
            run_predict(framework, side.predictor, side.class_names, [str(image.parent), *words])
        guessed.append((tmp_path / "out" / "predictions.csv").read_bytes())
        dest = tmp_path / ("x.pt2" if framework == "torch" else "x.stablehlo")
        with redirect_stdout(io.StringIO()):
            run_export(framework, EXPORT[framework].FORMATS, EXPORT[framework].export, [str(path), str(dest)])
        note = json.loads((tmp_path / f"{dest.name}.json").read_text())
        assert note.pop("source") == str(path)
        notes.append(note)
    for other in range(1, len(sources)):
        alike(found[0], found[other])
        assert guessed[other] == guessed[0]
        assert notes[other] == notes[0]
    assert [step["shorter_side"] for step in notes[0]["preprocess"] if "shorter_side" in step] == [36]


def test_a_copy_knows_the_size_of_its_data(tmp_path: Path) -> None:
    """A digit becomes 8x8 pixels before it is enlarged; a file from before that was said is told of, not guessed."""
    digits = get_recipe("digits")
    run = network_at(tmp_path / "run", digits, tuple("0123456789"))
    shutil.copy(run.path / "model.safetensors", tmp_path / "copy.safetensors")
    copy = complete(result_at(tmp_path / "copy.safetensors", "flax", "predict"), pytest.fail)
    own = result_at(run.path, "torch", "predict")
    assert copy.stored == own.stored == (8, 8, 1)
    assert (copy.known, copy.class_names, copy.splits) == (own.known, own.class_names, own.splits)
    tensors, _ = exchange.read(run.path / "model.safetensors")
    names = tuple("0123456789")
    exchange.write(tmp_path / "old.safetensors", tensors, run.arch, 0, names, digits.preprocess)
    old = complete(result_at(tmp_path / "old.safetensors", "torch", "predict"), pytest.fail)
    assert (old.recipe.preprocess, old.stored, old.class_names) == (digits.preprocess, (32, 32, 1), names)


def test_another_model_in_a_run_folder_speaks_for_itself(run: RunFolder, tmp_path: Path) -> None:
    other = network_at(tmp_path / "other", get_recipe("digits"), tuple("0123456789"))
    shutil.copy(other.path / "model.safetensors", run.path / "guest.safetensors")
    assert result_at(run.path / "guest.safetensors", "torch", "predict").class_names == tuple("0123456789")


@both
def test_labels_go_by_name(
    framework: Framework, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest's order is that of the logits: with another one the same pictures have other labels."""
    straight = probabilities(framework, run.path / "model.safetensors", tmp_path / "out")
    manifest = json.loads((run.path / "manifest.json").read_text())
    manifest["class_names"] = ["bees", NAMES[2], "ants"]
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    turned = probabilities(framework, run.path / "model.safetensors", tmp_path / "out")
    np.testing.assert_array_equal(turned["probabilities"], straight["probabilities"])
    assert straight["labels"].tolist() == [0, 1, 2]
    assert turned["labels"].tolist() == [2, 0, 1]
    assert turned["class_names"].tolist() == manifest["class_names"]
    evaluated(framework, run.path / "model.safetensors", "--confusion", "--out", tmp_path / "out")
    with (tmp_path / "out" / "test-model-confusion.csv").open(encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)][1:] == manifest["class_names"]
    decomposed = unicodedata.normalize("NFD", NAMES[2])
    for renamed, told in (
        ("wasps", "the network does not know 'wasps' and the data lacks 'ants'"),
        ("Ants", "only the spelling differs, the data has 'Ants' for 'ants'"),
    ):
        (tmp_path / "data" / "ants").rename(tmp_path / "data" / renamed)
        assert told in refused(framework, capsys, run.path / "model.safetensors")
        (tmp_path / "data" / renamed).rename(tmp_path / "data" / "ants")
    (tmp_path / "data" / NAMES[2]).rename(tmp_path / "data" / decomposed)
    assert "NFC and NFD" in refused(framework, capsys, run.path / "model.safetensors")
    pictures(tmp_path / "data" / "..", ("data/wasps",))
    shutil.rmtree(tmp_path / "data" / decomposed)
    assert "does not know 'wasps'" in refused(framework, capsys, run.path / "model.safetensors")
    assert not (run.path / "evaluation").exists()


@both
def test_data_that_moved_and_other_data(framework: Framework, run: RunFolder, tmp_path: Path) -> None:
    """Of the training's own folder, wherever it lies, the fifth that was held out; of another, all."""
    shutil.copy(run.path / "model.safetensors", tmp_path / "copy.safetensors")
    straight = probabilities(framework, run.path / "model.safetensors", tmp_path / "out")
    (tmp_path / "data").rename(tmp_path / "moved")
    pictures(tmp_path / "new", NAMES, 2)
    for path in (run.path / "model.safetensors", tmp_path / "copy.safetensors"):
        words = ("--dataset", f"folder:{tmp_path / 'moved'}")
        alike(straight, probabilities(framework, path, tmp_path / "out", *words))
        assert "/6  top-5" in evaluated(framework, path, "--dataset", f"folder:{tmp_path / 'new'}")
    assert (run.path / "evaluation" / "test-on-new-model.csv").is_file()
    assert (tmp_path / "evaluation" / "test-on-new-copy.csv").is_file()


@both
def test_a_folder_that_has_grown_is_no_longer_what_was_held_out(
    framework: Framework, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One more picture moves every later one, from those that were trained on to those that are scored."""
    path, data = run.path / "model.safetensors", tmp_path / "data"
    evaluated(framework, path)
    shutil.copytree(data, tmp_path / "copy")
    for folder in (data, tmp_path / "copy"):
        shutil.copy(folder / "bees" / "1.png", folder / "bees" / "0a.png")
    assert f"folder:{data} is not as it was when {path} was trained on it" in refused(framework, capsys, path)
    capsys.readouterr()
    evaluated(framework, path, "--dataset", f"folder:{tmp_path / 'copy'}")
    assert f"not trained on pictures of folder:{tmp_path / 'copy'} is taken on trust" in capsys.readouterr().err
    (data / "bees" / "0a.png").unlink()
    evaluated(framework, path)


def test_a_folder_to_test_on_alone_is_scored(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no part to train on, which is what would tell whether it is the training's own."""
    pictures(tmp_path / "only" / "test", count=4)
    assert "/12  top-5" in evaluated(
        "torch", run.path / "model.safetensors", "--dataset", f"folder:{tmp_path / 'only'}"
    )
    assert "is taken on trust" in capsys.readouterr().err


def test_a_split_of_its_own_may_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where pictures to test on have a folder, those that were trained on are in another."""
    for split in ("train", "test"):
        pictures(tmp_path / "data" / split)
    spec = Preprocess(host_resize=36, crop=32, mean=(0.5,), std=(0.25,))
    recipe = Recipe("own", f"folder:{tmp_path / 'data'}", "alexnet_cifar", "he", 1, 2, preprocess=spec)
    run = network_at(tmp_path / "run", recipe)
    shutil.copy(tmp_path / "data" / "test" / "bees" / "1.png", tmp_path / "data" / "test" / "bees" / "9.png")
    assert "/16  top-5" in evaluated("torch", run.path / "model.safetensors")
    shutil.copy(tmp_path / "data" / "test" / "bees" / "1.png", tmp_path / "data" / "train" / "bees" / "9.png")
    assert "is not as it was when" in refused("torch", capsys, run.path / "model.safetensors")


@both
def test_a_folder_becomes_what_the_training_data_was(framework: Framework, tmp_path: Path) -> None:
    """Digits as files: reduced to 8x8 pixels of one channel, and scored as the digits themselves."""
    run = network_at(tmp_path / "run", get_recipe("digits"), tuple("0123456789"))
    _, test = load_dataset("digits")
    pixels, labels = test.source.read(test.ids[:40], None)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "files" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).convert("RGB").save(tmp_path / "files" / str(label) / f"{number:02d}.png")
    whole = probabilities(framework, run.path / "model.safetensors", tmp_path / "out")
    words = ("--dataset", f"folder:{tmp_path / 'files'}")
    found = probabilities(framework, run.path / "model.safetensors", tmp_path / "out", *words)
    places = [int(Path(name).stem) for name in found["files"]]
    assert sorted(places) == list(range(40))
    np.testing.assert_array_equal(found["labels"], whole["labels"][places])
    np.testing.assert_allclose(found["probabilities"], whole["probabilities"][places], atol=1e-6)


@both
def test_a_file_without_names(
    framework: Framework, run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder's names in their order, as other programs number them, and that is said; or those that are given."""
    path, data = tmp_path / "x.safetensors", f"folder:{tmp_path / 'data'}"
    exchange.write(path, exchange.read(run.path / "model.safetensors")[0], run.arch)
    said = refused(framework, capsys, path, "--dataset", data)
    assert "does not say how images become the input of alexnet_cifar: give the recipe" in said
    words = (path, "--recipe", "cifar10", "--dataset", data)
    (tmp_path / "names.txt").write_text("bees\ncaf\u00e9\nants\n", "utf-8")
    plain = probabilities(framework, *words[:1], tmp_path / "out", *words[1:])
    assert "does not name its classes: taken to be, in this order, ants,bees,caf" in capsys.readouterr().err
    given = probabilities(framework, path, tmp_path / "out", *words[1:], "--classes", tmp_path / "names.txt")
    assert plain["labels"].tolist() == [label for label in range(3) for _ in range(5)]
    assert given["labels"].tolist() == [label for label in (2, 0, 1) for _ in range(5)]
    np.testing.assert_array_equal(given["probabilities"], plain["probabilities"])
    pictures(tmp_path / "two", ("ants", "bees"))
    said = refused(framework, capsys, *words[:3], "--dataset", f"folder:{tmp_path / 'two'}")
    assert "has 3 classes, without names" in said
    said = refused(framework, capsys, path, "--recipe", "digits", "--dataset", data)
    assert "The recipe 'digits' does not go with" in said
    assert "--classes a,b: leave it out" in refused(framework, capsys, run.path, "--classes", "a,b")


def test_imagenets_names_are_wordnets_where_torchvisions_are_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flax has them from the file that `make weights` writes: a file without names is no dead end."""
    monkeypatch.setenv("HOME", str(tmp_path))
    arch = narrow(ARCHS["alexnet"])
    state = torch_impl.model.build(arch).state_dict()
    exchange.write(tmp_path / "x.safetensors", {name: tensor.numpy() for name, tensor in state.items()}, arch)
    network = result_at(tmp_path / "x.safetensors", "flax", "predict")
    assert complete(network, flax_impl.evaluate.class_names).class_names[281] == "n02123045"
    assert "the classes go by WordNet's names" in capsys.readouterr().err
    assert complete(network, torch_impl.evaluate.class_names).class_names[281] == "tabby"


def test_a_files_recipe_must_go_with_its_network(tmp_path: Path) -> None:
    """LeNet takes 28 by 28 pixels; the recipe makes 32 by 32 of the digits."""
    arch, file = narrow(ARCHS["lenet"]), tmp_path / "x.safetensors"
    tensors = {name: np.zeros(shape, np.float32) for name, shape in exchange.shapes(arch).items()}
    for recipe, stored in ((get_recipe("fashion_mnist_lenet"), (28, 28, 1)), (get_recipe("digits"), (8, 8, 1))):
        exchange.write(file, tensors, arch, recipe=recipe, stored=stored)
        metadata, _ = exchange.read_metadata(file)
        with nullcontext() if stored[0] == 28 else pytest.raises(UserError, match="'digits' does not go with"):
            assert exchange.read_about(metadata, arch, str(file)) == exchange.About(recipe=recipe, stored=stored)


def test_a_recipe_that_is_given_brings_its_own_data() -> None:
    """Not the fingerprints of other data, by which pictures would be taken for those of its training."""
    arch = ARCHS["lenet"]
    said = exchange.About(recipe=get_recipe("digits"), stored=(9, 9, 3), splits={"train": "those of another folder"})
    given = with_given(said, Given(recipe="fashion_mnist_lenet"), arch, "a file")
    assert given == exchange.About(recipe=get_recipe("fashion_mnist_lenet"), stored=(28, 28, 1))
    assert with_given(said, Given(), arch, "a file") == said


def test_names_as_people_give_them(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('["a", "b c"]')
    assert read_names(str(tmp_path / "names.json")) == read_names("a, b c") == ("a", "b c")
    for given, told in (("a,,b", "class 1 is empty"), ("a,b,a", "'a' is there more than once"), ("no.txt", "cannot")):
        with pytest.raises(UserError, match=told):
            read_names(given)
    for text in ('"ab"', '{"a": 0}', '["a", 1]'):
        (tmp_path / "names.json").write_text(text)
        with pytest.raises(UserError, match="is not a list of names"):
            read_names(str(tmp_path / "names.json"))
    assert difference(["a", "b"], ["b", "a"]) == ""
    assert difference([*"abcdefg"], []) == "the network does not know 'a', 'b', 'c', 'd', 'e' and 2 more"
    assert "more than one class called 'a'" in difference(["a", "a"], ["a", "b"])


@both
def test_a_start_from_a_run_of_either_framework(framework: Framework, run: RunFolder, tmp_path: Path) -> None:
    """Its folder stands for its result."""
    variables = flax_impl.weights.load(run.path / "model.safetensors", run.arch)
    if framework == "torch":
        model = torch_impl.model.build(run.arch)
        assert torch_impl.weights.load_partial(run.path, model, run.arch) == ()
        found = model.state_dict()["fc8.bias"].numpy()
    else:
        tensors, _ = exchange.read(run.path / "model.safetensors")
        zeros = convert.from_torch({name: 0 * tensor for name, tensor in tensors.items()}, run.arch)
        loaded, fresh = flax_impl.weights.load_partial(run.path, zeros, run.arch)
        assert fresh == ()
        found = np.asarray(loaded["params"]["fc8"]["bias"])
    np.testing.assert_array_equal(found, variables["params"]["fc8"]["bias"])
    (run.path / "model.safetensors").unlink()
    start: Any = torch_impl.weights.load_partial if framework == "torch" else flax_impl.weights.load_partial
    with pytest.raises(UserError, match=r"has no model\.safetensors yet: finish the run, or name one of its checkp"):
        start(run.path, {}, run.arch)


def test_a_start_from_other_classes_is_said(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the last layer fits by its size alone; nothing is said where the classes are the same."""
    model, names = run.path / "model.safetensors", list(run.class_names)
    note_other_classes(model, names)
    assert not capsys.readouterr().err
    note_other_classes(model, [*names[:-1], "another"])
    said = capsys.readouterr().err
    assert f"the last layer of {model} is kept, whose classes were others: the network does not know 'another'" in said
    note_other_classes(model, names[::-1])
    assert "their order is another" in capsys.readouterr().err


@both
@pytest.mark.parametrize("folder", ["checkpoints", "evaluation"])
def test_a_folder_in_a_run_is_no_damaged_checkpoint(
    folder: str, framework: Framework, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run.path / folder
    place.mkdir(exist_ok=True)
    sentence = f"error: {place} is a folder in the run {run.path}: name {run.path} itself, or one of its checkpoints.\n"
    assert refused(framework, capsys, place) == sentence
    for suffix in (".pt", ".orbax"):  # these are told of as checkpoints
        (run.path / "checkpoints" / f"epoch_0001{suffix}").mkdir()
        assert "is a folder in" not in refused(framework, capsys, run.path / "checkpoints" / f"epoch_0001{suffix}")


@pytest.mark.parametrize(("classes", "dataset"), [(1000, "imagenet2012"), (999, UNSAID), (5, UNSAID)])
def test_only_of_a_thousand_classes_a_file_without_a_word_is_imagenets(
    classes: int, dataset: str, tmp_path: Path
) -> None:
    arch = narrow(ARCHS["alexnet"], conv=32, dense=4).adapt(classes=classes)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in exchange.shapes(arch).items()}
    exchange.write(tmp_path / "bare.safetensors", tensors, arch)
    [network] = networks_at(tmp_path / "bare.safetensors", "torch", "evaluate")
    found = complete(network, lambda: tuple(f"class {label}" for label in range(1000)))
    assert found.recipe.dataset == dataset
    assert found.recipe.preprocess == get_recipe("imagenet").preprocess
    assert len(found.class_names) == (1000 if classes == 1000 else 0)


def test_of_other_data_nothing_is_held_out() -> None:
    """The share that a recipe holds out is of its own data alone; of these it is the run's."""
    recipe = replace(get_recipe("digits"), val_fraction=0.25)
    network = Network(Path("x.safetensors"), ARCHS["lenet"], replace(recipe, dataset="mnist"), tuple("0123456789"))
    assert len(examples(network, None, "digits", "train")) == 1437
    own = replace(network, known=recipe)
    assert [len(examples(own, None, None, split)) for split in ("train", "val", "test")] == [1078, 359, 360]


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_a_run_has_skipped_it_does_not_see_again(split: Any, tmp_path: Path) -> None:
    """Ten pictures of each class, the first and every fifth of them to test on, two of which cannot be read."""
    for place in range(20):
        path = tmp_path / "data" / "ab"[place % 2] / f"{place:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    bad = ["a/02.png", "b/01.png"]
    for name in bad:
        (tmp_path / "data" / name).write_bytes(b"nothing")
    recipe = replace(get_recipe("photos_scratch"), dataset=f"folder:{tmp_path / 'data'}", val_fraction=0.0, patience=0)
    run, splits = RunFolder.create(tmp_path / "run", recipe), load_splits(recipe, None, bad)
    write_manifest(run, "torch", "cpu", ARCHS["lenet"], ("a", "b"), data=splits, skipped=bad)
    network = Network(run.path / "x.pt", ARCHS["lenet"], recipe, ("a", "b"), splits=about(run).splits)
    found = examples(network, run.path, None, split)
    assert found.fingerprint() == splits[split].fingerprint()
    assert sum(map(len, splits.values())) == 18
    assert not {Path(file).relative_to(tmp_path / "data").as_posix() for file in found.files} & {*bad}


def test_photographs_become_what_the_networks_data_is_and_nothing_else_changes(tmp_path: Path) -> None:
    recipe = get_recipe("fashion_mnist_best")
    network = Network(tmp_path / "x.pt", recipe.model_arch((28, 28, 1), 10), recipe, ())
    digits, _ = load_dataset("digits")
    taken, _ = network.take(replace(digits, image=None))
    assert taken == replace(network, known=replace(recipe, preprocess=replace(recipe.preprocess, host_resize=28)))
