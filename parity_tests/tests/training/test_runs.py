"""Runs from the command line, end to end, in both frameworks: what they leave, resuming, evaluation, bad input."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock
from urllib.error import URLError

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import flax_impl.checkpoint
import flax_impl.engine
import flax_impl.evaluate
import flax_impl.feed
import flax_impl.train
import torch_impl.checkpoint
import torch_impl.engine
import torch_impl.evaluate
import torch_impl.feed
import torch_impl.train
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.commands.evaluate import run_evaluate
from common.commands.train import run_train
from common.data.batch import Batch
from common.data.load import load_dataset, load_split
from common.frameworks import Framework
from common.recipes.zoo import RECIPES, get_recipe
from common.runs.folder import RunFolder
from common.runs.journal import Journal
from common.runs.scores import Scores
from common.training.options import TrainOptions
from common.weights import exchange
from flax_impl.convert import to_torch
from parity_tests.material import narrow
from parity_tests.results import ROOT

FRAMEWORKS: tuple[Framework, ...] = ("torch", "flax")
OTHER: dict[Framework, Framework] = {"torch": "flax", "flax": "torch"}
TRAIN: dict[str, ModuleType] = {"torch": torch_impl.train, "flax": flax_impl.train}
ENGINE: dict[str, ModuleType] = {"torch": torch_impl.engine, "flax": flax_impl.engine}
FEEDS = (torch_impl.feed.Feed, flax_impl.feed.Feed)
EVALUATE: dict[str, ModuleType] = {"torch": torch_impl.evaluate, "flax": flax_impl.evaluate}
FAST = ("digits", "--arch", "lenet", "--preprocess.resize", "16", "--device", "cpu")
SIZE_32 = ("--preprocess.resize", 32)
EPOCHS, STEPS = 2, 23  # of FAST: 1,437 digits in batches of 64

both = pytest.mark.parametrize("framework", FRAMEWORKS)


class Run(NamedTuple):
    """A finished command: its folder and what it printed."""

    path: Path
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "manifest.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """One thread for PyTorch, which small networks suit best; XLA spares its optimizations: these tests are of runs."""
    threads, spared = torch.get_num_threads(), "jax_disable_most_optimizations"
    torch.set_num_threads(1)
    jax.config.update(spared, True)
    with mock.patch.dict(os.environ, {spared.upper(): "true"}):  # and of the commands that they start
        yield
    torch.set_num_threads(threads)
    jax.config.update(spared, False)


def train(framework: str, out: Path, *words: object) -> Run:
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        run_train(TRAIN[framework].fit, [*FAST, "--epochs", str(EPOCHS), "--out", str(out), *map(str, words)])
    return Run(out, stdout.getvalue(), stderr.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two epochs of FAST in each framework; tests only read them."""
    folder = tmp_path_factory.mktemp("runs")
    return {framework: train(framework, folder / framework) for framework in FRAMEWORKS}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of small photographs of differing sizes, modes and formats."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for label, name in enumerate(("apple", "bear", "cloud")):
        (root / name).mkdir()
        for number in range(10):
            height, width = rng.integers(33, 70, 2)
            pixels = rng.integers(0, 80, (height, width, 3), np.uint8)
            pixels[..., label] += 150
            image = Image.fromarray(pixels).convert(("RGB", "L", "P", "RGBA", "RGB")[number % 5])
            image.save(root / name / f"{number}.png") if number % 5 else image.save(root / name / f"{number}.jpg")
    return root


def evaluation(framework: Framework, arguments: list[str]) -> None:
    run_evaluate(framework, EVALUATE[framework].evaluate_network, EVALUATE[framework].class_names, arguments)


def evaluate(framework: Framework, capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """The lines that the command prints for checkpoints."""
    capsys.readouterr()
    evaluation(framework, list(map(str, words)))
    return [line for line in capsys.readouterr().out.splitlines() if "  loss " in line]


def refused(command: Callable[..., Any], capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The message of a command that refuses with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        command(list(map(str, words)))
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert "Traceback" not in printed.out + printed.err
    return printed.err + printed.out


def refused_training(framework: str, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    return refused(lambda arguments: run_train(TRAIN[framework].fit, arguments), capsys, *words)


def refused_evaluation(framework: Framework, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    return refused(lambda arguments: evaluation(framework, arguments), capsys, *words)


def snapshot(folder: Path) -> dict[str, str]:
    """Every file below a folder with a hash of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def reproducible(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the times taken."""
    return [{key: value for key, value in row.items() if key not in ("seconds", "images/s")} for row in rows]


def tensors(framework: Framework, path: Path, arch: Arch) -> exchange.Tensors:
    """The network of a checkpoint by name, in PyTorch's layout."""
    if framework == "torch":
        state = torch_impl.checkpoint.load_model(path, arch).state_dict()
        return {name: tensor.numpy() for name, tensor in state.items()}
    return to_torch(flax_impl.checkpoint.load_variables(path, arch), arch)


@both
def test_a_run_leaves_its_folder(framework: Framework, finished: dict[str, Run]) -> None:
    run = finished[framework]
    assert {path.name for path in run.path.iterdir()} == {
        *("recipe.json", "options.json", "manifest.json", "metrics.jsonl", "curves.png"),
        *("checkpoints", "model.safetensors"),
    }
    found = RunFolder(run.path).checkpoints(framework)
    assert [path.stem for path in found] == ["epoch_0001", "epoch_0002"]
    with Image.open(run.path / "curves.png") as picture:
        assert min(picture.size) > 300
    recipe = RunFolder(run.path).recipe
    usual = get_recipe("digits")
    preprocess = replace(usual.preprocess, resize=16)
    assert recipe == replace(usual, arch="lenet", epochs=EPOCHS, preprocess=preprocess)


@both
def test_the_manifest_says_what_the_numbers_depend_on(framework: Framework, finished: dict[str, Run]) -> None:
    manifest = finished[framework].manifest
    package = {"torch": "torch", "flax": "jax"}[framework]
    assert manifest["framework"] == framework
    assert sys.modules[package].__version__.startswith(manifest["versions"][package])
    assert manifest["device"].startswith("cpu")
    assert manifest["seed"] == 0
    assert manifest["class_names"] == [str(digit) for digit in range(10)]
    assert RunFolder(finished[framework].path).arch == ARCHS["lenet"].adapt(height=16, width=16)
    assert {"started", "command", "commit", "python", "platform"} <= manifest.keys()


@both
def test_rows_have_their_fields(framework: Framework, finished: dict[str, Run]) -> None:
    rows = finished[framework].rows
    by_split = {split: [row for row in rows if row["split"] == split] for split in ("train", "test")}
    assert len(by_split["train"]) + len(by_split["test"]) == len(rows)
    for row in by_split["train"]:
        assert {"step", "epoch", "split", "loss", "accuracy", "lr", "images/s"} <= row.keys()
        assert row["lr"] == get_recipe("digits").optimizer.lr
        assert row["images/s"] > 0
    assert [row["step"] for row in by_split["train"]] == [10, 20, 23, 30, 40, 46]
    assert [(row["step"], row["epoch"]) for row in by_split["test"]] == [(STEPS, 1), (2 * STEPS, 2)]
    for row in by_split["test"]:
        assert {"step", "epoch", "split", "loss", "accuracy", "top5"} <= row.keys()
        assert row["accuracy"] <= row["top5"] <= 1
    assert by_split["train"][0]["loss"] > by_split["train"][-1]["loss"]
    assert by_split["test"][-1]["accuracy"] > 0.6


@both
def test_the_network_is_announced(framework: Framework, finished: dict[str, Run]) -> None:
    out = finished[framework].out
    assert "digits: lenet, 36,588 parameters, input 16x16x1" in out
    assert "1,437 training, 360 test images, 10 classes" in out
    last = finished[framework].rows[-1]["accuracy"]
    assert f"test accuracy {100 * last:.1f} % after epoch 2, the last: no validation split" in out


@both
def test_output_is_plain_where_there_is_no_terminal(framework: Framework, finished: dict[str, Run]) -> None:
    run = finished[framework]
    assert run.err == ""
    assert [c for c in run.out if not c.isprintable() and c != "\n"] == []
    assert len([line for line in run.out.splitlines() if line.startswith("epoch ")]) == EPOCHS


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With loss, accuracy, images/s and the time left, on stderr."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    run = RunFolder.create(tmp_path / "run", get_recipe("digits"))
    run.log(step=0)  # rows of no split are none of its business
    (run.path / "metrics.jsonl").unlink()
    (run.path / "manifest.json").write_text("{}")
    batch = Batch(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32), {}, np.arange(4))
    with redirect_stderr(io.StringIO()) as stderr, Journal(run, "torch", ARCHS["lenet"], 3, 1).epoch(0) as record:
        for _ in range(3):
            record(batch, {"loss": 4 * 1.25, "correct": 3, "count": 4})
    shown = stderr.getvalue()
    assert "\x1b[" in shown
    for part in (f"epoch 1/{run.recipe.epochs}", "3/3", "loss 1.25", "accuracy 75.0 %", "images/s", "0:00:0"):
        assert part in shown


def test_both_frameworks_see_the_same_batches(finished: dict[str, Run]) -> None:
    hashes = [finished[framework].manifest["batches_sha256"] for framework in FRAMEWORKS]
    assert hashes[0] == hashes[1]
    assert hashes[0].keys() == {"1", "2"}
    assert len(set(hashes[0].values())) == 2


@both
def test_overrides_are_recorded_and_obeyed(framework: Framework, finished: dict[str, Run], tmp_path: Path) -> None:
    words = ("--epochs", 1, "--seed", 1, "--batch-size", 479, "--optimizer.name", "sgd", "--optimizer.lr", 0.002)
    run = train(framework, tmp_path / "run", *words, "--schedule.milestones", 1, 2, "--log-every", 2)
    recipe = json.loads((run.path / "recipe.json").read_text())
    assert (recipe["epochs"], recipe["seed"], recipe["batch_size"], recipe["arch"]) == (1, 1, 479, "lenet")
    assert (recipe["optimizer"]["name"], recipe["optimizer"]["lr"]) == ("sgd", 0.002)
    assert recipe["schedule"]["milestones"] == [1, 2]
    assert RunFolder(run.path).recipe.schedule.milestones == (1, 2)
    training = [row for row in run.rows if row["split"] == "train"]
    assert [row["step"] for row in training] == [2, 3]
    assert {row["lr"] for row in training} == {0.002}
    assert run.manifest["seed"] == 1
    assert run.manifest["batches_sha256"]["1"] != finished[framework].manifest["batches_sha256"]["1"]


@both
def test_an_existing_folder_is_refused(
    framework: Framework, finished: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished[framework].path
    before = snapshot(path)
    message = refused_training(framework, capsys, *FAST, "--out", path)
    assert f"{path} exists" in message
    assert "--resume" in message
    assert snapshot(path) == before


@both
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    framework: Framework,
    finished: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After an epoch, and in the middle of one: the same rows, the same weights, bit for bit."""
    path, whole = tmp_path / "run", finished[framework]
    train(framework, path, "--epochs", 1)

    original, calls = TRAIN[framework].train_step, iter(range(STEPS))

    def stop_midway(*arguments: Any) -> Any:
        if next(calls) == 15:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(TRAIN[framework], "train_step", stop_midway)
    with pytest.raises(SystemExit) as exit_info:
        run_train(TRAIN[framework].fit, [*FAST, "--epochs", "2", "--resume", "--out", str(path)])
    assert exit_info.value.code == 130
    assert f"interrupted; {sys.orig_argv[0]} -m {framework}_impl.train --resume {path} continues it" in (
        capsys.readouterr().err
    )
    assert Run(path, "", "").rows[-1]["step"] == 30  # in the epoch that is lost
    monkeypatch.undo()

    resumed = train(framework, path, "--resume")
    assert "resuming after epoch 1" in resumed.out
    assert reproducible(resumed.rows) == reproducible(whole.rows)
    assert resumed.manifest["batches_sha256"] == whole.manifest["batches_sha256"]
    assert RunFolder(path).recipe.epochs == EPOCHS
    ours, theirs = (exchange.read(run.path / "model.safetensors") for run in (resumed, whole))
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    for name, tensor in theirs[0].items():
        np.testing.assert_array_equal(ours[0][name], tensor)


@both
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed", 1), "seed = 0, not 1"),
        (("--batch-size", 32), "batch_size = 64, not 32"),
        (("--optimizer.momentum", 0.5), "optimizer.momentum = 0.0, not 0.5"),
    ],
)
def test_resuming_with_another_recipe_is_refused(
    framework: Framework,
    words: tuple[object, ...],
    message: str,
    finished: dict[str, Run],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = finished[framework].path
    before = snapshot(path)
    said = refused_training(framework, capsys, *FAST, "--epochs", 2, "--resume", "--out", path, *words)
    assert _matches(message, said)
    assert snapshot(path) == before


@pytest.mark.parametrize("inside", ["checkpoints", "elsewhere"])
def test_resuming_takes_the_run_folder_itself(
    inside: str, finished: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(finished["torch"].path, tmp_path / "run")
    before = snapshot(path)
    said = refused_training("torch", capsys, *FAST, "--epochs", EPOCHS, "--resume", "--out", path / inside)
    assert f"{path / inside} is not a run folder" in said
    assert snapshot(path) == before


def test_resuming_cannot_take_epochs_back(
    finished: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(finished["torch"].path, tmp_path / "run")
    before = snapshot(path)
    assert "epochs" in refused_training("torch", capsys, *FAST, "--epochs", 1, "--resume", "--out", path)
    assert snapshot(path) == before


@both
def test_evaluate_prints_a_line_for_each_checkpoint(
    framework: Framework, finished: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished[framework]
    lines = evaluate(framework, capsys, run.path, "--device", "cpu")
    logged = [row for row in run.rows if row["split"] == "test"]
    assert len(lines) == len(logged) == EPOCHS
    for line, row in zip(lines, logged, strict=True):
        right = round(row["accuracy"] * 360)
        assert line.startswith(f"epoch_{row['epoch']:04d}  accuracy {100 * row['accuracy']:.1f} % {right}/360  ")
        assert f"top-5 {100 * row['top5']:.1f} %  loss {row['loss']:#.3g}" in line
    first = RunFolder(run.path).checkpoints(framework)[0]
    assert evaluate(framework, capsys, first, "--device", "cpu") == lines[:1]


@both
def test_either_framework_opens_a_model(
    framework: Framework, finished: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished[framework]
    own, other = (
        evaluate(kind, capsys, run.path / "model.safetensors", "--device", "cpu")
        for kind in (framework, OTHER[framework])
    )
    last = evaluate(framework, capsys, run.path, "--device", "cpu")[-1]
    assert own == [last.replace("epoch_0002", "model")]
    assert other[0].split()[:7] == own[0].split()[:7]  # the counts; the loss may differ in its last digit
    loss, other_loss = (float(lines[0].split()[-1]) for lines in (own, other))
    assert loss == pytest.approx(other_loss, abs=2e-3)


@both
def test_evaluate_takes_the_training_split(
    framework: Framework, finished: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = evaluate(framework, capsys, finished[framework].path, "--split", "train", "--device", "cpu")
    assert all("/1437  " in line for line in lines)


@both
@pytest.mark.parametrize(
    ("inside", "words", "message"),
    [
        ("", ("--split", "val"), "'digits' holds out no validation split"),
        ("../..", (), "is not a run folder, nor a checkpoint inside one"),
        ("checkpoints", (), "checkpoints"),
        ("curves.png", (), "curves.png"),
        ("checkpoints/epoch_0009", (), "There is no run folder, checkpoint or .safetensors file"),
    ],
)
def test_evaluate_refuses_what_is_no_checkpoint(
    framework: Framework,
    inside: str,
    words: tuple[str, ...],
    message: str,
    finished: dict[str, Run],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused_evaluation(framework, capsys, (finished[framework].path / inside).resolve(), *words)


@both
def test_the_other_frameworks_run_is_refused(
    framework: Framework, finished: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    path, maker = finished[OTHER[framework]].path, OTHER[framework]
    before = snapshot(path)
    for message in (
        refused_evaluation(framework, capsys, path),
        refused_training(framework, capsys, *FAST, "--epochs", EPOCHS, "--resume", "--out", path),
    ):
        assert f"trained with {maker}_impl" in message
        assert f"python -m {maker}_impl." in message
        assert "model.safetensors, which both frameworks open" in message
    assert snapshot(path) == before


def test_a_refused_resume_changes_nothing(finished: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    path = finished["torch"].path
    before = (path / "recipe.json").read_bytes()
    refused_training("flax", capsys, *FAST, "--epochs", EPOCHS + 1, "--resume", "--out", path)
    after = (path / "recipe.json").read_bytes()
    (path / "recipe.json").write_bytes(before)
    assert after == before


@both
def test_a_validation_split_chooses_the_weights(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second epoch's validation score is made 0, so the first epoch's weights must be the result."""
    original, asked = ENGINE[framework].evaluate, iter(range(2 * EPOCHS))

    def spoil_the_last(*arguments: Any, **options: Any) -> Scores:
        scores = original(*arguments, **options)
        splits = [argument.data.split for argument in arguments if isinstance(argument, FEEDS)]
        return replace(scores, top1=0) if splits == ["val"] and next(asked) == 1 else scores

    monkeypatch.setattr(ENGINE[framework], "evaluate", spoil_the_last)
    run = train(framework, tmp_path / "run", "--val-fraction", 0.1093)
    assert "1,280 training, 360 test and 157 val images" in run.out
    assert "after epoch 1, the best on the validation split (" in run.out
    rows = {split: [row for row in run.rows if row["split"] == split] for split in ("train", "val", "test")}
    assert [row["step"] for row in rows["val"]] == [row["step"] for row in rows["test"]] == [20, 40]
    folder = RunFolder(run.path)
    first, last = (tensors(framework, path, folder.arch) for path in folder.checkpoints(framework))
    result, _ = exchange.read(run.path / "model.safetensors")
    assert all(np.array_equal(result[name], first[name]) for name in result)
    assert not any(np.array_equal(result[name], last[name]) for name in result)
    line, _ = evaluate(framework, capsys, run.path, "--split", "val", "--device", "cpu")
    assert f"{100 * rows['val'][0]['accuracy']:.1f} % {round(157 * rows['val'][0]['accuracy'])}/157  " in line


@both
def test_training_stops_early(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs 3 and 4 are made no better than epoch 2 on the validation split: it is the result, and the run is over."""
    original, rights = ENGINE[framework].evaluate, iter((90, 100, 99, 99))

    def scored(*arguments: Any, **options: Any) -> Scores:
        scores = original(*arguments, **options)
        splits = [argument.data.split for argument in arguments if isinstance(argument, FEEDS)]
        return replace(scores, top1=next(rights)) if splits == ["val"] else scores

    words, path = ("--val-fraction", 0.1093, "--patience", 2, "--epochs", 9), tmp_path / "run"
    monkeypatch.setattr(ENGINE[framework], "evaluate", scored)
    run = train(framework, path, *words)
    why = "none since epoch 2 was better on the validation split (63.7 %), and patience is 2"
    assert f"stopping early, after epoch 4 of 9: {why}" in run.out
    assert "after epoch 2, the best on the validation split (63.7 %)" in run.out
    assert {row["epoch"] for row in run.rows} == {1, 2, 3, 4}
    folder, before = RunFolder(path), snapshot(path)
    kept = folder.checkpoints(framework)
    assert [file.stem for file in kept] == ["epoch_0002", "epoch_0004"]
    second = tensors(framework, kept[0], folder.arch)
    result, metadata = exchange.read(path / "model.safetensors")
    assert all(np.array_equal(result[name], second[name]) for name in result)
    assert metadata[exchange.COUNTER] == "40"
    rights = iter((99,))
    monkeypatch.setattr(TRAIN[framework], "train_step", None)
    assert why in train(framework, path, *words, "--resume").out
    changed = {name for name, content in snapshot(path).items() if before[name] != content}
    assert changed <= {"manifest.json", "curves.png"}  # the peak of memory
    said = refused_training(framework, capsys, *FAST, "--patience", 2, "--out", tmp_path / "other")
    assert "patience is 2, which counts epochs by their score on a validation split, and digits has none" in said
    assert not (tmp_path / "other").exists()


def test_held_out_examples_are_not_trained_on() -> None:
    whole, _ = load_dataset("digits")
    recipe = replace(get_recipe("digits"), val_fraction=0.25)
    train_ids, val_ids = (load_split(recipe, name, None).ids for name in ("train", "val"))
    assert (len(train_ids), len(val_ids)) == (1078, 359)
    assert sorted([*train_ids, *val_ids]) == list(whole.ids)
    other = load_split(replace(recipe, seed=1), "val", None).ids
    assert 30 < np.isin(other, val_ids).sum() < 180  # another seed, another quarter


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_no_split_may_be_empty(fraction: float, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused_training("torch", capsys, *FAST, "--val-fraction", fraction)
    assert f"val_fraction {fraction} leaves" in message


BAD_INPUT = {
    "recipe": (("digts",), r"no recipe 'digts'\. Did you mean 'digits'\?"),
    "dataset": ((*FAST, "--dataset", "fashion_mnst"), r"no dataset 'fashion_mnst'\. Did you mean 'fashion_mnist'\?"),
    "arch": ((*FAST, "--arch", "lenett"), r"no architecture 'lenett'\. Did you mean 'lenet'\?"),
    "init": ((*FAST, "--init", "kaimng"), r"no initialisation 'kaimng'\. Did you mean 'kaiming'\?"),
    "field": ((*FAST, "--optimiser.lr", "1"), r"--optimiser\.lr.*--optimizer\.lr"),
    "option": ((*FAST, "--log-evry", "1"), r"--log-evry.*--log-every"),
    "type": ((*FAST, "--epochs", "two"), r"epochs.*two"),
    "choice": (
        (*FAST, "--optimizer.name", "adamax"),
        r"invalid choice .adamax. for argument .--optimizer\.name.*adamw",
    ),
    "epochs": ((*FAST, "--epochs", "0"), r"epochs is 0; it must be at least 1"),
    "batch size": ((*FAST, "--batch-size", "0"), r"batch_size is 0; it must be at least 1"),
    "learning rate": ((*FAST, "--optimizer.lr", "-0.1"), r"optimizer\.lr is -0\.1; it must be positive and finite"),
    "rate of nan": ((*FAST, "--optimizer.lr", "nan"), r"optimizer\.lr is nan; it must be positive and finite"),
    "patience": ((*FAST, "--patience", "-1"), r"patience is -1; it must be at least 0"),
    "fraction": ((*FAST, "--val-fraction", "1"), r"val_fraction is 1\.0; it must be in \[0, 1\)"),
    "seed": ((*FAST, "--seed", "-1"), r"seed is -1; it must be from 0 to 2\*\*32 - 1"),
    "small image": ((*FAST, "--arch", "alexnet"), r"16x16 is too small: pool2 needs 3x3 and receives 1x1\..*63x63"),
    "crop": ((*FAST, "--preprocess.crop", "9"), r"preprocess\.crop is 9, larger than the padded 8x8 images"),
    "channels": ((*FAST, "--preprocess.mean", "1", "1", "1"), r"preprocess\.mean has 3 values for images of 1 channel"),
    "resume": ((*FAST, "--resume", "--out", "nowhere"), r"nowhere is not a run folder"),
    "folder": (
        (*FAST, "--dataset", "folder:nowhere"),
        r"'folder:nowhere' is not there: .*/nowhere is not a folder. Name",
    ),
    "weights": ((*FAST, "--init-from", "nowhere.safetensors"), r"There is no file .*nowhere\.safetensors"),
}


def _matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text, however its lines are broken and framed."""
    return re.search(pattern, " ".join(text.replace("│", " ").split())) is not None


@both
@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_gets_a_sentence(
    framework: Framework,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On stderr, with exit code 2 and no stack trace; nothing is left on disk."""
    monkeypatch.chdir(tmp_path)
    words, message = BAD_INPUT[kind]
    said = refused_training(framework, capsys, *words)
    assert _matches(message, said), said
    assert list(tmp_path.iterdir()) == []


def test_log_every_must_be_positive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "log" in refused_training("torch", capsys, *FAST, "--out", tmp_path / "run", "--log-every", 0)


@both
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused_training(framework, capsys, *FAST, "--device", "gpu", "--out", tmp_path / "run")
    assert "--device gpu: " in message
    assert "sees no GPU" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda'"), AssertionError()])
def test_a_platform_that_is_not_there(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What JAX raises depends on whether it has a plugin for the platform."""

    def missing(**options: Any) -> None:
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "local_devices", missing)
    said = refused_training("flax", capsys, *FAST, "--out", tmp_path / "run")
    assert "error: JAX_PLATFORMS is 'cuda': unset it, or set it to cpu. JAX says: " in said
    assert not (tmp_path / "run").exists()


@both
def test_modules_are_commands(framework: Framework) -> None:
    command = [sys.executable, "-m", f"{framework}_impl.train", "digits", "--epochs", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "error: epochs is 0; it must be at least 1."
    assert "Traceback" not in done.stderr


def test_a_folder_of_photographs_trains(photographs: Path, tmp_path: Path) -> None:
    """Random boxes and flips on the way; the same batches in both frameworks."""
    crop = ("--preprocess.random-resized-crop", "--preprocess.crop", 32, "--preprocess.resize", "None")
    words = (*crop, "--preprocess.flip", "--dataset", f"folder:{photographs}", "--epochs", 1)
    runs = [train(framework, tmp_path / framework, *words) for framework in FRAMEWORKS]
    for run in runs:
        assert "24 training, 6 test images, 3 classes" in run.out
        assert run.manifest["class_names"] == ["apple", "bear", "cloud"]
        assert RunFolder(run.path).arch.image == (32, 32, 1)  # as LeNet is built
        assert [row["split"] for row in run.rows] == ["train", "test"]
    assert runs[0].manifest["batches_sha256"] == runs[1].manifest["batches_sha256"]


@both
def test_bad_folders_are_refused(framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(root: Path) -> str:
        return refused_training(framework, capsys, *FAST, "--dataset", f"folder:{root}", "--out", tmp_path / "run")

    for name in ("one", "two"):
        (tmp_path / "data" / name).mkdir(parents=True)
    assert _matches(rf"{tmp_path}/data/one holds no images \(.*\.png", message(tmp_path / "data"))
    for name in ("one", "two"):
        for number in range(6):
            Image.new("RGB", (40, 40)).save(tmp_path / "data" / name / f"{number}.png")
    (tmp_path / "single").mkdir()
    (tmp_path / "data" / "one").rename(tmp_path / "single" / "one")
    assert _matches(r"/single must hold one folder of images per class, at least two", message(tmp_path / "single"))
    (tmp_path / "single" / "one").rename(tmp_path / "data" / "one")
    assert not (tmp_path / "run").exists()

    broken = tmp_path / "data" / "two" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert _matches(
        f"Cannot read the image {broken}: .*Put a picture that can be read in its place", message(tmp_path / "data")
    )


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Arch:
    """A narrow `alexnet_cifar` under a name of its own."""
    arch = replace(narrow(ARCHS["alexnet_cifar"]), name="tiny")
    monkeypatch.setitem(ARCHS, "tiny", arch)
    return arch


BACKBONE = {0: "conv1", 3: "conv2", 6: "conv3", 8: "conv4", 10: "conv5"}  # torchvision's features.N


def write_backbone(path: Path, arch: Arch) -> exchange.Tensors:
    """A file of random convolutions under torchvision's names; gives them under ours."""
    rng, shapes, ours = np.random.default_rng(0), exchange.shapes(arch), {}
    for name in BACKBONE.values():
        for part in ("weight", "bias"):
            key = f"{name}.conv.{part}"
            ours[key] = 0.1 * rng.standard_normal(shapes[key], np.float32)
    names = {f"{name}.conv": f"features.{place}" for place, name in BACKBONE.items()}
    save_file({f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": a for key, a in ours.items()}, path)
    return ours


@both
def test_training_starts_from_a_backbone(framework: Framework, photographs: Path, tmp_path: Path, tiny: Arch) -> None:
    """At a rate so small that nothing moves, the result holds the file's convolutions and fresh dense layers."""
    given = write_backbone(tmp_path / "backbone.safetensors", tiny)
    words = (
        "--arch",
        "tiny",
        "--dataset",
        f"folder:{photographs}",
        "--epochs",
        1,
        "--optimizer.name",
        "sgd",
        "--optimizer.lr",
        1e-12,
        *SIZE_32,
    )
    run = train(framework, tmp_path / "run", *words, "--init-from", tmp_path / "backbone.safetensors")
    assert "starting from given weights; fresh: fc6, fc7, fc8" in run.out
    result, _ = exchange.read(run.path / "model.safetensors")
    for name, tensor in given.items():
        np.testing.assert_allclose(result[name], tensor, atol=1e-7)
    assert result["fc8.weight"].shape == (3, 64)


@both
def test_bad_weights_are_refused(
    framework: Framework, photographs: Path, tmp_path: Path, tiny: Arch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.safetensors"

    def message() -> str:
        words = (*FAST, *SIZE_32, "--arch", "tiny", "--dataset", f"folder:{photographs}", "--out", tmp_path / "run")
        return refused_training(framework, capsys, *words, "--init-from", file)

    file.write_bytes(b"not a safetensors file at all")
    assert _matches(f"{file} is not a readable .safetensors file", message())
    given = write_backbone(file, tiny)
    file.write_bytes(file.read_bytes()[:-100])
    assert _matches(f"{file} is not a readable .safetensors file", message())

    wrong = dict(given)
    wrong["conv1.conv.weight"] = np.zeros((8, 3, 5, 5), np.float32)
    wrong["conv2.conv.bias"] = given["conv2.conv.bias"] * np.float32("nan")
    wrong["conv9.conv.bias"] = wrong.pop("conv5.conv.bias")
    save_file(wrong, file)
    said = message()
    for part in (
        r"conv1\.conv\.weight is \(8, 3, 5, 5\), not \(8, 3, 3, 3\)",
        r"conv2\.conv\.bias holds NaN",
        r"conv5\.conv\.bias \(32,\) is missing",
        r"conv9\.conv\.bias \(32,\) is unknown",
    ):
        assert _matches(part, said), said
    assert not (tmp_path / "run").exists()


def test_flax_says_how_to_convert_a_pth_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused_training("flax", capsys, *FAST, "--init-from", tmp_path / "x.pth", "--out", tmp_path / "run")
    assert _matches(r"python -m torch_impl\.weights .*x\.pth DEST\.safetensors", said)


@both
def test_finetuning_without_weights_says_how_to_get_them(
    framework: Framework,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def offline(*arguments: Any, **options: Any) -> None:
        raise URLError("offline")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setitem(ARCHS, "alexnet", narrow(ARCHS["alexnet"]))  # which takes less time to draw
    words = ("cifar10_finetune", "--dataset", f"folder:{photographs}", "--device", "cpu", "--out", tmp_path / "run")
    said = refused_training(framework, capsys, *words, "--init", "he")  # which has the fewest draws to compile
    where = {"torch": "torch/hub/checkpoints/alexnet-owt-", "flax": ".cache/alexnet-twice/alexnet_imagenet1k_v1"}
    how = {"torch": r"download\.pytorch\.org/models/alexnet-owt-.* there", "flax": r"`make weights` puts it there"}
    assert _matches(f"pretrained AlexNet is not in {tmp_path}/{where[framework]}", said)
    assert _matches(how[framework], said)
    assert "--init-from FILE" in said
    assert not (tmp_path / "run").exists()


@both
def test_a_run_in_float64_gives_float64(
    framework: Framework, photographs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The command switches 64-bit numbers on for its whole process."""
    request.addfinalizer(lambda: jax.config.update("jax_enable_x64", False))
    words = ("--epochs", 1, "--precision", "float64", "--dataset", f"folder:{photographs}")
    run = train(framework, tmp_path / "run", *words)
    result, _ = exchange.read(run.path / "model.safetensors")
    assert {str(tensor.dtype) for tensor in result.values()} == {"float64"}


def test_every_recipe_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name in RECIPES:
        with pytest.raises(SystemExit) as exit_info:
            run_train(lambda recipe, options: Path(), [name, "--help"])
        assert exit_info.value.code == 0
        assert "Source:" in capsys.readouterr().out


def test_the_default_recipe_needs_no_name() -> None:
    given: list[Any] = []

    def fit(recipe: Any, options: Any) -> Path:
        given.append((recipe, options))
        return Path()

    run_train(fit, ["--epochs", "3"])
    assert given == [(replace(get_recipe("digits"), epochs=3), TrainOptions())]


@both
def test_steps_that_overflow_are_counted_and_have_no_rate(framework: Framework, tmp_path: Path) -> None:
    """float16 with a scale a thousand million times too large: the schedule waits, and so does what is written."""
    words = ("--precision", "float16", "--loss-scale.initial", "1e14", "--loss-scale.backoff", "0.001")
    run = train(framework, tmp_path / "run", *words, "--schedule.warmup-epochs", "1", "--log-every", "1")
    rows = [row for row in run.rows if row["split"] == "train"]
    left, recipe = [row["left_out"] for row in rows], RunFolder(run.path).recipe
    assert left[0] >= 1 <= left[-1] < len(rows) / 2
    assert left == sorted(left)
    for row in rows[len(rows) // 2 :]:  # long after the last of them
        assert row["lr"] == recipe.learning_rate(row["step"] - 1 - left[-1], STEPS)
    assert f"  {left[-1]} of {EPOCHS * STEPS} steps so far changed nothing: float16 overflowed" in run.out
