"""`make photos`: a folder of pictures becomes a network and a page that shows what came of it, in both frameworks."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from html import unescape
from pathlib import Path
from signal import SIGINT
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import flax_impl.photos
import torch_impl.photos
from common.arch import zoo as archs
from common.arch.zoo import ARCHS
from common.commands import photos
from common.commands.photos import BACKBONE, Tools, run_photos
from common.data.load import load_splits
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.fitted import check_counts, fit_length, fit_start
from common.recipes.spec import FineTune, Recipe, Schedule
from common.recipes.zoo import get_recipe
from common.reports import mistakes
from common.reports.evaluation import Recorder
from common.reports.page import Page, write_page
from common.reports.sheets import Cell, draw_sheet
from common.runs import hints
from common.runs.choice import Choice
from common.runs.folder import RunFolder
from common.runs.scores import Scores
from common.stopping import Stopped
from common.training.options import TrainOptions
from common.weights.network import Network
from parity_tests.material import narrow

TOOLS: dict[Framework, Tools] = {"torch": torch_impl.photos.tools(), "flax": flax_impl.photos.tools()}
CLASSES = ("red ants", "green & <bees>", "blue")
NARROW = (
    *("--scratch", "--arch", "small", "--device", "cpu", "--preprocess.host-resize", "24", "--preprocess.crop", "20"),
    *("--optimizer.lr", "0.003"),
)
both = pytest.mark.parametrize("framework", ["torch", "flax"])


class Ended(NamedTuple):
    """A command: its exit code and what it printed."""

    code: int
    out: str
    err: str


def command(tools: Tools, *words: object) -> Ended:
    code = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            run_photos(tools, [str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert "Traceback" not in err.getvalue()
    return Ended(code, out.getvalue(), err.getvalue())


def picture(path: Path, colour: int, seed: int) -> Path:
    """Noise in which one colour is strong."""
    pixels = np.random.default_rng(seed).integers(0, 90, (40, 44, 3), np.uint8)
    pixels[..., colour] += 140
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def fill(root: Path, counts: Sequence[int]) -> Path:
    for label, (name, count) in enumerate(zip(CLASSES, counts, strict=False)):
        for number in range(count):
            picture(root / name / f"{number:02d}.png", label, 100 * label + number)
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A narrow network by name, no weights but those that a test names, one thread."""
    lenet = narrow(ARCHS["lenet"], conv=2, dense=32).adapt(channels=3)
    monkeypatch.setitem(archs.OWN, "small", replace(lenet, name="small"))
    monkeypatch.delenv(BACKBONE, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def linked(page: Path) -> list[Path]:
    """What a page shows or links to."""
    found = re.findall(r'(?:src|href)="([^"]*)"', page.read_text("utf-8"))
    assert not [link for link in found if link.startswith(("/", "http", "file:"))]
    return [page.parent / unquote(unescape(link)) for link in found]


@both
def test_a_folder_becomes_a_page(framework: Framework, tmp_path: Path) -> None:
    """Two pictures among those that are tested lie in the wrong folder: they are what is shown as mistakes."""
    data, run = fill(tmp_path / "pictures", (25, 25, 25)), tmp_path / "run"
    planted = [picture(data / CLASSES[2] / "05.png", 0, 7), picture(data / CLASSES[0] / "10.png", 1, 8)]
    drawn: list[tuple[str, ...]] = []

    def draw(path: Path, cells: Sequence[Cell], title: str) -> None:
        drawn.extend(cell.lines for cell in cells)
        draw_sheet(path, cells, title)

    with mock.patch.object(mistakes, "draw_sheet", draw):
        done = command(TOOLS[framework], data, *NARROW, "--epochs", 4, "--out", run)
    assert done.code == 0, done.err
    assert done.err.startswith("warning: training small from scratch at 20 x 20 pixels, which needs many more pictures")
    assert "note: batches of 5 in place of 32: 51 pictures to train on\n" in done.out
    recipe = RunFolder(run).recipe
    assert (recipe.name, recipe.batch_size, recipe.epochs, recipe.val_fraction) == ("photos_scratch", 5, 4, 0.15)
    rows = read_csv(run / "evaluation" / "mistakes.csv")
    assert {row["file"] for row in rows} == {str(file) for file in planted}
    assert [float(row["probability"]) for row in rows] == sorted((float(r["probability"]) for r in rows), reverse=True)
    truth = {str(planted[0]): ("red ants", "blue"), str(planted[1]): ("green & <bees>", "red ants")}
    assert {row["file"]: (row["said"], row["true"]) for row in rows} == truth
    shares = {row["file"]: f"{100 * float(row['probability']):.1f} %" for row in rows}
    expected = [(f"{shares[r['file']]} {r['said']}", f"is {r['true']}", Path(r["file"]).name) for r in rows]
    assert drawn == expected
    page = (run / "index.html").read_text("utf-8")
    assert "The network names 13 of 15 pictures right that it was not trained on: 86.7 %, give or take 17.2 %" in page
    assert "To call all of them the commonest class would get 33.3 %." in page  # of five of each
    assert done.out.splitlines()[-1] == f"{run}/index.html shows it: open it in a browser"
    found = linked(run / "index.html")
    assert [path for path in found if not path.is_file()] == []
    suffix = TOOLS[framework].suffix
    names = {"mistakes.png", "test-confusion.png", "curves.png", "model.safetensors", f"model{suffix}", "mistakes.csv"}
    assert names < {path.name for path in found}
    assert "<td>green &amp; &lt;bees&gt;</td>" in page
    assert "<bees>" not in page
    for what in hints.after_photos(framework, run):
        assert what in unescape(page)
    (run / "index.html").unlink()
    again = command(replace(TOOLS[framework], export=lambda *given: 0.0), "--resume", run)
    assert again.code == 0, again.err
    assert linked(run / "index.html") == found


def test_a_page_without_a_mistake_has_no_sheet(tmp_path: Path) -> None:
    data, run = fill(tmp_path / "pictures", (25, 25)), tmp_path / "run"

    def export(network: Network, dest: Path, kind: str, opset: int) -> float:
        raise UserError("ONNX needs the package onnx.")

    tools = replace(TOOLS["torch"], export=export)
    done = command(tools, data, *NARROW, "--epochs", 4, "--out", run)
    assert done.code == 0, done.err
    assert "note: model.onnx is not written: ONNX needs the package onnx.\n" in done.err
    assert read_csv(run / "evaluation" / "mistakes.csv") == []
    assert not (run / "evaluation" / "mistakes.png").exists()
    assert [path for path in linked(run / "index.html") if not path.is_file()] == []
    further = command(tools, data, "--init-from", run, "--device", "cpu", "--epochs", 2, "--out", tmp_path / "b")
    assert further.code == 0, further.err
    recipe = RunFolder(tmp_path / "b").recipe
    assert (recipe.arch, recipe.preprocess.crop, recipe.batch_size) == ("small", 20, 4)
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["init_from"]["path"].startswith(str(run))


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    page = Page("t", "r", {}, [], {"a b.png": "a picture"}, {}, {})
    (tmp_path / "a b.png").touch()
    write_page(tmp_path / "index.html", page)
    assert [path for path in linked(tmp_path / "index.html") if not path.is_file()] == []
    (tmp_path / "a b.png").unlink()
    assert [path.name for path in linked(tmp_path / "index.html") if not path.is_file()] == ["a b.png"]


@both
@pytest.mark.parametrize(
    ("words", "counts", "sentence"),
    [
        ((), (), "Name a folder that has a folder of pictures for each class: make photos FOLDER=pictures."),
        (("nowhere",), (), "The dataset 'folder:nowhere' is not there: "),
        (("pictures",), (9,), "must hold one folder of images per class, at least two; it has ['red ants']."),
        (("pictures",), (9, 0), "/pictures/green & <bees> holds no images ("),
        (("pictures",), (9, 1), "There is no image of green & <bees> in the train split of folder:pictures"),
        (("pictures",), (9, 3), "green & <bees> in pictures has 2 pictures to train on, beside those for testing"),
        (("--dataset", "digits"), (), "This command trains on a folder of photographs, not on digits: see train."),
        (("pictures", "--epochs", "0"), (9, 9), "epochs is 0; it must be at least 1."),
        (("pictures", "--resume", "pictures"), (9, 9), "pictures is not a run folder: nothing to resume."),
    ],
)
def test_a_mistake_gets_a_sentence_and_leaves_nothing(
    framework: Framework,
    words: tuple[str, ...],
    counts: tuple[int, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "pictures", counts)
    if 0 in counts:
        (tmp_path / "pictures" / CLASSES[1]).mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = command(TOOLS[framework], *words, *NARROW)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert sentence in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_it_began_with_may_have_seen_them(tmp_path: Path) -> None:
    """A network that knows photographs goes on with more of them: those that it knew may be tested on now."""
    data, first = fill(tmp_path / "pictures", (12, 12)), tmp_path / "first"
    assert command(TOOLS["torch"], data, *NARROW, "--epochs", 1, "--out", first).code == 0
    turns: tuple[tuple[Framework, bool], ...] = (("torch", False), ("torch", True), ("flax", True))
    for framework, grown in turns:
        if grown:
            picture(data / CLASSES[0] / f"00-{framework}.png", 0, 1)
        run = tmp_path / f"{framework} {grown}"
        done = command(TOOLS[framework], data, *NARROW, "--epochs", 1, "--init-from", first, "--out", run)
        assert done.code == 0, done.err
        told = "had been trained on photographs, too: if some of them are tested on here"
        assert (f"{first} {told}" in done.err) == grown
        assert (told in (run / "index.html").read_text("utf-8")) == grown


def test_a_run_on_other_data_is_not_shown(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", get_recipe("digits"))
    done = command(TOOLS["torch"], "--resume", run.path)
    assert (done.code, done.err) == (
        2,
        "error: This command trains on a folder of photographs, not on digits: see train.\n",
    )


def test_a_bad_picture_is_named_before_training(tmp_path: Path) -> None:
    data = fill(tmp_path / "pictures", (25, 25))
    (data / CLASSES[0] / "03.png").write_bytes(b"no picture")
    done = command(TOOLS["torch"], data, *NARROW, "--out", tmp_path / "run")
    assert done.code == 2
    assert "1 of 50 images of folder:" in done.err
    assert "red ants/03.png (it is not an image of a known format)" in done.err
    assert not (tmp_path / "run").exists()


@both
def test_who_stops_it_is_told_how_this_command_goes_on(framework: Framework, tmp_path: Path) -> None:
    data, run = fill(tmp_path / "pictures", (25, 25)), tmp_path / "run"

    def fit(recipe: object, options: object) -> Path:
        raise Stopped(SIGINT, f"SIGINT: x.pt is written; {hints.resume(framework, run)} continues it")

    done = command(replace(TOOLS[framework], fit=fit), data, *NARROW, "--out", run)
    assert done.code == 130
    assert done.err.splitlines()[-1] == f"SIGINT: x.pt is written; {hints.photos(framework, run)} continues it"


def test_weights_that_are_at_hand_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's before its convolutions alone, both before none; what is named before all."""
    whole, convs = tmp_path / "whole.safetensors", tmp_path / "convs.safetensors"
    convs.touch()

    def start(*words: str, at_hand: Path | None = None) -> tuple[str, str, Path | None, str]:
        recipe, file, said = photos._start(words, lambda: at_hand)
        return recipe.name, recipe.pretrained, file, said

    assert start()[:3] == ("photos_scratch", "no", None)
    assert start()[3] == "no pretrained weights on this machine: "
    monkeypatch.setenv(BACKBONE, str(tmp_path / "gone"))
    assert start()[:3] == ("photos_scratch", "no", None)
    monkeypatch.setenv(BACKBONE, str(convs))
    assert start()[:3] == ("photos", "backbone", convs)
    assert start(at_hand=whole)[:3] == ("photos", "all", whole)
    assert start("--scratch", at_hand=whole)[:3] == ("photos_scratch", "no", None)
    assert start("--scratch")[3] == ""
    assert start("--init-from", "mine.pth", at_hand=whole)[:3] == ("photos", "all", Path("mine.pth"))


@both
def test_weights_are_looked_for_where_they_are_kept(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert TOOLS[framework].at_hand() is None
    ours = tmp_path / ".cache" / "alexnet-twice" / "alexnet_imagenet1k_v1.safetensors"
    theirs = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    for file in (ours, theirs):
        file.parent.mkdir(parents=True)
        file.touch()
    assert TOOLS[framework].at_hand() == (theirs if framework == "torch" else ours)
    theirs.unlink()
    assert TOOLS[framework].at_hand() == ours


@pytest.mark.parametrize(
    ("examples", "batch", "epochs"),
    [(12, 4, 16), (60, 6, 16), (250, 25, 16), (340, 32, 12), (500, 32, 8), (800, 32, 5), (9999, 32, 4)],
)
def test_batch_and_epochs_fit_the_pictures(examples: int, batch: int, epochs: int) -> None:
    recipe = get_recipe("photos")
    fitted = fit_length(recipe, examples)
    assert (fitted.batch_size, fitted.epochs) == (batch, epochs)
    assert -(-examples // batch) >= 10 or batch == 4
    fitted.check()
    assert fit_length(recipe, examples, {"batch-size", "epochs"}) == recipe


@pytest.mark.parametrize(("epochs", "warmup", "frozen"), [(1, 0.5, 0), (2, 1, 1), (3, 1, 1), (8, 1, 2)])
def test_few_epochs_have_a_shorter_start(epochs: int, warmup: float, frozen: int) -> None:
    """Else a trial of one epoch would be refused for a field that nobody has set."""
    usual = get_recipe("photos")
    fitted = fit_start(replace(usual, epochs=epochs))
    assert (fitted.schedule.warmup_epochs, fitted.finetune.freeze_epochs) == (warmup, frozen)
    fitted.check()
    named = fit_start(replace(usual, epochs=epochs), {"schedule.warmup-epochs", "finetune.freeze-epochs"})
    assert (named.schedule, named.finetune) == (usual.schedule, usual.finetune)


def test_a_start_is_fitted_to_the_epochs_that_the_pictures_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many pictures, which halve the epochs: half of what is left, not of what there was."""
    monkeypatch.setattr("common.recipes.fitted.TYPICAL", 10)
    usual = replace(get_recipe("photos"), dataset=f"folder:{fill(tmp_path / 'pictures', (25, 25))}", epochs=6)
    started = replace(usual, schedule=Schedule(warmup_epochs=3), finetune=FineTune("dense", 3))
    found = photos._fit_to_folder(photos._PhotosCommand(started, TrainOptions()), (), "")
    assert (found.epochs, found.schedule.warmup_epochs, found.finetune.freeze_epochs) == (3, 1.5, 1)


def test_what_was_fitted_to_other_pictures_is_fitted_anew() -> None:
    """A run to start from keeps its network and pixels, not its length, nor what its classes weighed."""
    usual = get_recipe("photos")
    before = replace(usual, epochs=3, batch_size=5, val_fraction=0.4, patience=2, class_weights=(1.0, 2.5))
    other = replace(before, preprocess=replace(before.preprocess, pad=3))
    assert photos._like(other) == replace(usual, preprocess=other.preprocess)


@both
def test_what_the_command_line_names_stays(framework: Framework, tmp_path: Path) -> None:
    """Also where it names what the recipe has; what is fitted is told."""
    data, fitted = fill(tmp_path / "pictures", (9, 9, 9)), list[Recipe]()

    def fit(recipe: Recipe, options: object) -> None:
        fitted.append(recipe)

    tools = replace(TOOLS[framework], fit=fit)
    usual = get_recipe("photos_scratch")
    assert (usual.val_fraction, usual.batch_size, usual.epochs) == (0.15, 32, 30)
    done = command(tools, data, *NARROW)
    told = ["batches of 4 in place of 32: 17 pictures to train on", "60 epochs in place of 30: 17 pictures to train on"]
    told += ["a share of 0.2 held out in place of 0.15: some of each class"]
    assert [line for line in done.out.splitlines() if "in place of" in line] == [f"note: {line}" for line in told]
    assert (fitted[0].batch_size, fitted[0].epochs) == (4, 60)
    for words in (
        ["--epochs=30", "--batch_size", 32],
        ["--epochs", 30, "--batch-size=32"],
    ):
        done = command(tools, data, *NARROW, *words)
        assert (fitted[-1].batch_size, fitted[-1].epochs) == (32, 30)
    done = command(tools, data, *NARROW, "--epochs", 1)
    assert fitted[-1].schedule.warmup_epochs == 0.5
    assert "note: 0.5 epochs of warm-up in place of 1: half of all epochs at most\n" in done.out
    count = len(fitted)
    done = command(tools, data, *NARROW, "--epochs", 1, "--schedule.warmup-epochs", 1)
    assert "warmup" in done.err
    done = command(tools, data, *NARROW, "--val-fraction", 0.15)
    assert " in the val split of " in done.err
    assert len(fitted) == count


def test_few_and_uneven_classes_are_told_of() -> None:
    names = ("a", "b", "c")
    assert check_counts((20, 80, 40), names, "x") == []
    [few] = check_counts((19, 40, 40), names, "x")
    assert few.startswith("few pictures: 19 of a to train on.")
    [uneven] = check_counts((20, 81, 40), names, "x")
    assert uneven.startswith("uneven classes: 81 pictures of b and 20 of a; --class-weights balanced")
    with pytest.raises(UserError, match=r"^c in x has 2 pictures to train on, beside those for testing, "):
        check_counts((3, 3, 2), names, "x")


def test_some_of_each_class_are_held_out(tmp_path: Path) -> None:
    """A larger share where the recipe's leaves a class without; none where there are too few, and then it is said."""
    recipe = get_recipe("photos")
    found = {}
    for counts in ((9, 9, 9), (4, 4), (5, 5)):
        chosen = replace(recipe, dataset=f"folder:{fill(tmp_path / str(counts), counts)}")
        found[counts] = photos._hold_out(chosen, load_splits(replace(chosen, val_fraction=0.0))["train"])
    fitted, left, notes = found[9, 9, 9]
    assert fitted.val_fraction > recipe.val_fraction
    assert notes == []
    held = load_splits(fitted)
    assert not held["val"].lacking()
    assert held["train"].ids.tolist() == left.ids.tolist()
    fitted, left, notes = found[5, 5]  # of which four are trained on: three are the fewest that teach anything
    assert (fitted.val_fraction > 0, np.asarray(left.counts()).tolist(), notes) == (True, [3, 3], [])
    fitted, left, [said] = found[4, 4]
    assert (fitted.val_fraction, fitted.patience, len(left)) == (0, 0, 6)
    assert said.startswith(
        "too few pictures to hold some of each class out for validation: the last epoch is the result"
    )
    fitted, _, [said] = photos._hold_out(replace(recipe, val_fraction=0.0), held["train"])
    assert (fitted.val_fraction, fitted.patience) == (0, 0)
    assert said == "the last epoch is the result, whether or not it is the best"


@pytest.mark.parametrize(
    ("right", "said"), [(5, "50.0 %, give or take 31.0 %"), (10, "100.0 %, give or take 19.6 %"), (0, "0.0 %, give or")]
)
def test_a_page_says_what_chance_may_do(right: int, said: str) -> None:
    """1.96 deviations of a share of ten, sqrt(p (1 - p) / 10); where all are right, nine right would be no surprise."""
    run: Any = SimpleNamespace(
        path=Path("run"), recipe=get_recipe("photos"), manifest={"data": {}, "device": "cpu"}, arch=ARCHS["alexnet"]
    )
    data: Any = SimpleNamespace(class_names=("a", "b"))
    recorder = Recorder(2, keep=False)
    recorder(np.array([0] * 7 + [1] * 3), np.eye(2)[[0] * right + [1] * (10 - right)])
    scores = Scores(1.0, right, 10, 10)
    page = photos._page(TOOLS["torch"], run, Choice(3, "the last"), scores, recorder, data, [], {}, 60.0)
    assert f"names {right} of 10 pictures right that it was not trained on: {said}" in page.result
    assert "the commonest class would get 70.0 %." in page.result
    assert page.facts["result"] == "epoch 3 of 8, the last"


def test_mistakes_have_the_probability_of_what_is_said_and_the_surest_come_first() -> None:
    recorder = Recorder(3, keep=True)
    recorder(np.array([0, 1]), np.array([[0.3, 0.2, 0.5], [0.25, 0.75, 0.0]]))
    recorder(np.array([2, 1]), np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]))
    data: Any = SimpleNamespace(class_names=("a", "b", "c"), files=["2.png", "right.png", "1.png", "0.png"])
    assert mistakes.find_mistakes(recorder, data) == [
        mistakes.Mistake("1.png", "b", 0.7, "c"),
        mistakes.Mistake("0.png", "a", 0.5, "b"),
        mistakes.Mistake("2.png", "c", 0.5, "a"),
    ]
