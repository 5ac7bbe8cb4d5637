"""The study site: complete, self-contained, escaped, equal to its data, and built only where both sides match."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Dialog, sync_playwright
from playwright.sync_api import Page as Tab
from safetensors.numpy import save_file

import flax_impl.predict
import torch_impl
import torch_impl.predict
from common.arch.spec import Arch
from common.arch.zoo import ABLATIONS, ARCHS
from common.errors import UserError
from common.frameworks import FRAMEWORKS
from common.recipes.zoo import get_recipe
from common.reports.evaluation import write_confusion
from common.reports.predictions import to_batch
from common.runs.files import write_json
from common.runs.folder import RunFolder
from common.runs.manifest import write_manifest
from common.weights import exchange
from common.weights.network import Network
from parity_tests.material import narrow
from parity_tests.results import RESULTS, ROOT
from study import anatomy, break_it, compare, deviations, diagram, measure, notes, pictures, runs, site, source
from study.notes import faults, glossary, questions, training
from study.notes.note import Note
from torch_impl import weights

HOSTILE = "<script>alert(1)<"  # a folder's name cannot hold a slash
LABEL = "<script>alert('label')</script>"
STRING = "<script>alert('source')</script>"
IMAGE = "<img src=x onerror=alert('image')>.png"
VOID = {"meta", "link", "img", "br", "input", "hr"}


@dataclass
class Page(HTMLParser):
    """What the tests ask of a page."""

    text: list[str] = field(default_factory=list)
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open[-1]][0] == tag, (self.elements[self.open[-1]], tag)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        for number in self.open:
            self.words.setdefault(number, []).append(data)

    def content(self, number: int) -> str:
        """The text inside an element."""
        return "".join(self.words.get(number, []))


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert not page.open, path
    return page


def small() -> Arch:
    return narrow(ARCHS["alexnet_cifar"].adapt(channels=1))


def subject(arch: Arch, recipe: str = "digits") -> measure.Subject:
    names = tuple(f"class {label}" for label in range(arch.classes))
    network = Network(None, arch, get_recipe(recipe), names)
    return measure.Subject(network, None, "fresh", *measure.image_for(network))


def make_run(path: Path, framework: Any, shift: float = 0.0) -> Path:
    """A finished run of a narrow network, as `fit` leaves it, with a class that is named like markup."""
    arch, recipe = small(), get_recipe("digits")
    run = RunFolder.create(path, recipe)
    names = (LABEL, *(f"digit {label}" for label in range(1, 10)))
    write_manifest(run, framework, "cpu", arch, names)
    for step in (10, 20):
        score = {"loss": 2 / step + shift, "accuracy": 0.5}
        run.log(step=step, epoch=1, split="train", **score, lr=0.1, seconds=0.5, **{"images/s": 100.0})
    run.log(step=20, epoch=1, split="test", loss=0.25 + shift, accuracy=0.75, top5=1.0)
    write_json(path / "manifest.json", run.manifest | {"peak_memory_bytes": 2**30})
    (path / "evaluation").mkdir()
    write_confusion(path / "evaluation" / "test-model-confusion.csv", np.diag(range(10)), names)
    torch.manual_seed(0)
    weights.save(path / "model.safetensors", torch_impl.build(arch), arch, class_names=names)
    return path


def copy_sources(root: Path) -> Path:
    """The source of both packages, where a test may plant something."""
    for framework in FRAMEWORKS:
        shutil.copytree(ROOT / f"{framework}_impl", root / f"{framework}_impl")
    return root


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source, with a hostile string in it."""
    root = copy_sources(tmp_path_factory.mktemp("sources"))
    file = root / "torch_impl" / "train.py"
    file.write_text(file.read_text(encoding="utf-8") + f"\nNAME = {STRING!r}\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Path:
    """A site with two runs and their noise; runs, image, class and source are named like markup."""
    folder = tmp_path_factory.mktemp("study")
    ours = make_run(folder / HOSTILE, "torch")
    theirs = make_run(folder / "flax", "flax", shift=1e-3)
    curves = {"train": {"loss": [(10, 1e-6), (20, 1e-5)]}, "test": {"loss": [(20, 1e-5)]}}
    write_json(folder / "noise.json", {"runs": 2, "curves": curves})
    Image.linear_gradient("L").save(folder / IMAGE)
    options = site.Options(
        run_torch=ours, run_flax=theirs, noise=folder / "noise.json", image=folder / IMAGE, out=folder / "site"
    )
    return site.build(options, root=sources).parent


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[str, Page]:
    return {path.stem: read(path) for path in built.glob("*.html")}


@pytest.fixture(scope="module")
def data(built: Path) -> Any:
    return json.loads((built / "data.json").read_text(encoding="utf-8"))


def test_every_page_is_there_and_reached(pages: dict[str, Page]) -> None:
    assert set(pages) == set(site.PAGES)
    for page in pages.values():
        links = {values["href"] for tag, values in page.elements if tag == "a"}
        assert {f"{name}.html" for name in site.PAGES} <= links


def test_nothing_is_loaded_from_elsewhere_and_every_link_leads_somewhere(built: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        identities = [values["id"] for _, values in page.elements if "id" in values]
        assert len(identities) == len(set(identities)), name
        for tag, values in page.elements:
            for key in ("src", "href", "xlink:href", "srcset", "action"):
                target = values.get(key, "")
                assert not re.match(r"\s*(https?:|//)", target), (name, tag, target)
                file, _, fragment = target.partition("#")
                if target.startswith("data:"):
                    continue
                assert not file or (built / file).is_file(), (name, target)
                if fragment:
                    there = pages[Path(file).stem if file else name]
                    assert any(values.get("id") == fragment for _, values in there.elements), (name, target)
    for style in built.glob("*.css"):
        assert "url(" not in style.read_text(encoding="utf-8")
        assert "@import" not in style.read_text(encoding="utf-8")


def test_every_layer_is_on_both_sides_and_has_its_panel(pages: dict[str, Page]) -> None:
    layers = list(measure.costs(small()))
    elements = pages["model"].elements
    panels = [values["data-panel"] for _, values in elements if "data-panel" in values]
    assert panels == layers
    for layer in layers:
        lines = [values for _, values in elements if values.get("data-group") == layer and "id" in values]
        for framework in FRAMEWORKS:
            mine = [values for values in lines if values["id"].startswith(f"{framework}-")]
            assert any(values.get("href") == f"#layer-{layer}" for values in mine), (framework, layer)
        assert any(values.get("data-group") == layer and "data-list" in values for _, values in elements)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_source_is_the_real_one(pages: dict[str, Page], sources: Path, framework: str) -> None:
    page = pages["training"]
    for module in site.MODULES:
        lines = (sources / f"{framework}_impl" / f"{module}.py").read_text(encoding="utf-8").splitlines()
        start = f"{framework}-{module}-L"
        shown = {
            int(values["id"].removeprefix(start)): page.content(number)
            for number, (_, values) in enumerate(page.elements)
            if values.get("id", "").startswith(start)
        }
        assert [shown[number].removeprefix(str(number)) for number in range(1, len(lines) + 1)] == lines


def test_figures_equal_the_data(pages: dict[str, Page], data: Any) -> None:
    seen = 0
    for page in pages.values():
        for number, (tag, values) in enumerate(page.elements):
            if tag != "data":
                continue
            value = site.lookup(data, values["data-key"])
            assert json.loads(values["value"]) == value
            text = page.content(number)
            if value is None:
                assert text == "none"
            else:
                amount, _, unit = text.replace(",", "").partition(" ")
                scale, rounding = {"%": (100, 0.051), "s": (1, 0.051), "MiB": (2**-20, 0.51), "": (1, 0.0)}[unit]
                assert float(amount) == pytest.approx(value * scale, rel=5e-3, abs=rounding)
            seen += 1
    assert seen > 500


def test_the_data_hold_what_was_measured(data: Any) -> None:
    network = data["network"]
    assert network["parameters"] == small().parameters
    assert network["parameters"] == sum(layer["parameters"] for layer in network["layers"])
    for layer in network["layers"]:
        assert layer["difference"]["float64"]["relative"] < 1e-13
        assert 0 <= layer["difference"]["float32"]["relative"] < 1e-5
        assert layer["statistics"]["PyTorch"]["max"] == pytest.approx(layer["statistics"]["Flax"]["max"], rel=1e-4)
    training = data["training"]
    assert training["differences"]["test"]["loss"] == [[20, pytest.approx(1e-3)]]
    summary = {row["title"].split(",")[0]: row for row in training["summary"]}
    assert summary["test loss"]["difference"] == pytest.approx(1e-3)
    assert summary["test loss"]["noise"] == 1e-5
    assert summary["training loss"]["PyTorch"] == pytest.approx((0.2 + 0.1) / 2)
    assert summary["time in training steps"]["Flax"] == 1.0
    assert summary["peak memory"]["PyTorch"] == 2**30
    assert training["runs"]["Flax"]["confusion"]["counts"][9] == [0] * 9 + [9]
    assert len(data["parity"]["rows"]) == len(json.loads((RESULTS / "parity-cpu.json").read_text())["rows"])


def test_names_are_shown_and_not_run(pages: dict[str, Page]) -> None:
    assert HOSTILE in "".join(pages["index"].text)
    assert LABEL in "".join(pages["pictures"].text)
    assert IMAGE in "".join(pages["pictures"].text)
    assert STRING in "".join(pages["training"].text)
    for page in pages.values():
        scripts = [values for tag, values in page.elements if tag == "script"]
        assert scripts == [{"src": "study.js", "defer": ""}]
        assert not [key for _, values in page.elements for key in values if key.startswith("on")]


def test_headings_labels_and_landmarks(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1, name
        assert levels.count(1) == 1, name
        assert all(after <= before + 1 for before, after in pairwise(levels)), (name, levels)
        assert page.elements[0] == ("html", {"lang": "en"})
        for number, (tag, values) in enumerate(page.elements):
            if tag in ("nav", "svg") or values.get("role") in ("region", "img"):
                assert values.get("aria-label"), (name, tag)
            if tag == "img":
                assert values.get("alt"), name
            if tag in ("a", "button"):
                assert page.content(number).strip(), (name, values)
            if tag in ("input", "select", "textarea"):
                assert values.get("aria-label"), (name, tag)
        first = next(values for tag, values in page.elements if tag == "a")
        assert first == {"class": "skip", "href": "#main"}


def test_without_runs_or_results_the_pages_say_so(tmp_path: Path) -> None:
    out = site.build(site.Options(out=tmp_path / "site"), subject=subject(small()), results=tmp_path / "none").parent
    training, parity = ("".join(read(out / f"{name}.html").text) for name in ("training", "parity"))
    assert "mutants-cpu.json cannot be read: No such file or directory." in parity
    assert "No PyTorch run was given." in training
    assert "No Flax run was given." in training
    assert "parity-cpu.json cannot be read: No such file or directory." in parity
    assert "There are no curve-*.json files." in parity


def test_damaged_runs_and_results_give_pages_that_say_so(tmp_path: Path) -> None:
    ours, results = make_run(tmp_path / "torch", "torch"), tmp_path / "results"
    with (ours / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 30, "spl')
    results.mkdir()
    (results / "parity-cpu.json").write_text('{"rows": [', encoding="utf-8")
    (results / "curve-x.json").write_text("[]", encoding="utf-8")
    (results / "mutants-cpu.json").write_text('{"rows": [{"fault": "one"}]}', encoding="utf-8")
    (tmp_path / "noise.json").write_text('{"runs": 1, "curves": {"train": {"loss": [[1', encoding="utf-8")
    (ours / "evaluation" / "test-model-confusion.csv").write_text("true / guessed,a,b\na,1", encoding="utf-8")
    options = site.Options(
        run_torch=ours, run_flax=tmp_path / "gone", noise=tmp_path / "noise.json", out=tmp_path / "site"
    )
    out = site.build(options, results=results).parent
    training, parity = ("".join(read(out / f"{name}.html").text) for name in ("training", "parity"))
    assert "metrics.jsonl is damaged or half written: line 4 of 4 cannot be read and is left out." in training
    assert f"There is no run {tmp_path / 'gone'}." in training
    assert "Loss of both frameworks" in training
    assert "parity-cpu.json is damaged or half written: it is not valid JSON." in parity
    assert "curve-x.json holds no largest differences." in parity
    assert "mutants-cpu.json holds no table of" in parity
    assert "noise.json is damaged or half written: it is not valid JSON." in training
    assert "test-model-confusion.csv is damaged or half written: it is no confusion matrix." in training


def test_runs_stay_until_they_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make compare` or an earlier build has shown is in the next one too, from another folder as well."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "ours", "torch")
    make_run(tmp_path / "runs" / "theirs", "flax", shift=1e-3)
    write_json(tmp_path / "noise.json", {"runs": 2, "curves": {"test": {"loss": [(20, 1e-5)]}}})
    given: Any = {"run_torch": Path("runs/ours"), "run_flax": Path("runs/theirs"), "noise": Path("noise.json")}

    site.build(site.Options(**given, out=tmp_path / "site"), subject=subject(small()))
    assert "of the last build" not in capsys.readouterr().err
    before = json.loads((tmp_path / "site" / "data.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in json.dumps(before["given"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    options = site.Options(out=tmp_path / "site")
    again, kept = site._given(options)
    assert kept
    training = json.loads(json.dumps(site._training(again)))
    assert training["summary"] == before["training"]["summary"]
    assert training["noise"] == before["training"]["noise"]
    assert site._given(replace(options, forget=True)) == ({key: [] for key in given}, False)
    assert site._given(replace(options, run_flax=tmp_path)) == (
        {**{key: [] for key in given}, "run_flax": [tmp_path]},
        False,
    )
    (tmp_path / "noise.json").unlink()
    shutil.rmtree(tmp_path / "runs" / "theirs")
    site._tell([], site._training(again), again)
    said = capsys.readouterr().err.splitlines()
    names = "../runs/ours, ../runs/theirs, ../noise.json"
    assert said[0] == f"note: of the last build stay {names} (ARGS=--forget leaves them out)"
    assert "note: There is no run ../runs/theirs." in said
    assert "note: noise.json cannot be read: No such file or directory." in said


def test_a_recipe_by_name_is_shown_beside_the_runs_that_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", "torch")
    out = tmp_path / "site"
    out.mkdir()
    write_json(out / "data.json", {"given": runs.remember(out, {"run_torch": [run], "run_flax": [], "noise": []})})
    shown: list[Any] = []

    def find(options: site.Options, given: Any, problems: list[str]) -> measure.Subject:
        shown.append(given)
        return subject(small())

    monkeypatch.setattr(site, "find_subject", find)
    site.build(site.Options(out=out, recipe="digits"))
    site.build(site.Options(out=out))
    paths = {"run_torch": [Path(os.path.relpath(run))], "run_flax": [], "noise": []}
    assert shown == [{}, paths]
    for damaged in ("{", "[]", '{"given": 3}', '{"given": {"run_torch": 3}}'):
        (out / "data.json").write_text(damaged, encoding="utf-8")
        assert runs.remembered(out) == {}


def test_several_runs_of_a_framework_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first of each is compared; every one is in the picture and in the table."""
    ours = [make_run(tmp_path / f"run{i}", "torch", shift=i / 10) for i in range(3)]
    theirs = make_run(tmp_path / "flax", "flax")
    several = Path(" ".join(map(str, [*ours, tmp_path / "gone"])))
    options = site.Options(run_torch=several, run_flax=theirs, out=tmp_path / "site")
    out = site.build(options, subject=subject(small())).parent
    said = capsys.readouterr()
    assert f"note: There is no run {tmp_path / 'gone'}." in said.err
    assert said.out.splitlines()[-1].startswith("writing index.html, model.html")
    training = json.loads((out / "data.json").read_text(encoding="utf-8"))["training"]
    assert training["runs"]["PyTorch"]["name"] == str(ours[0])
    assert [run["name"] for run in training["more"]] == [str(path) for path in (*ours[1:], tmp_path / "gone")]
    page = read(out / "training.html")
    rows = [page.content(number) for number, (tag, _) in enumerate(page.elements) if tag == "tr"]
    for path, loss in zip(ours, ("0.25", "0.35", "0.45"), strict=True):
        assert any(str(path) in row and loss in row for row in rows), path
    named = tmp_path / "a run with spaces"
    named.mkdir()
    assert runs.listed(named) == [named]
    alone = training | {"more": []}
    pale = [str(site._drawn(each)["loss"]).count("opacity: 0.45") for each in (training, alone)]
    assert pale == [2 * 2, 0]  # training and test losses of two runs more


def test_a_run_without_its_parts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is not a run folder" in runs.read_run(tmp_path / "empty", "torch")["problems"][0]
    run = make_run(tmp_path / "flax", "flax")
    assert "trained with flax_impl" in runs.read_run(run, "torch")["problems"][0]
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl cannot be read" in runs.read_run(run, "flax")["problems"][0]
    (run / "manifest.json").write_text("{", encoding="utf-8")
    assert "not valid JSON" in runs.read_run(run, "flax")["problems"][0]
    (run / "model.safetensors").write_bytes(b"half")
    problems: list[str] = []
    found = site.find_subject(site.Options(), {"run_flax": [run]}, problems)
    assert found.tensors is None
    assert len(problems) == 1
    gone = tmp_path / "gone"
    assert runs.trained(gone, "flax")[1] == runs.read_run(gone, "flax")["problems"][0] == f"There is no run {gone}."


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("flax_impl/model.py", "        x = self.conv3(x, train=train)\n", "", "conv3 has no call in AlexNet of flax"),
        (
            "torch_impl/model.py",
            "self.fc7 = nn.Linear",
            "self.fc9 = nn.Linear",
            "fc7 has no definition in AlexNet of torch",
        ),
        ("flax_impl/model.py", "self.fc4 = dense", "self.fc5 = dense", "fc4 has no definition in LeNet of flax"),
        ("torch_impl/model.py", "class ConvBlock", "class Block", "There is no ConvBlock in torch_impl/model.py"),
        (
            "flax_impl/optim.py",
            "def clip_gradients",
            "def clip",
            "clip_gradients of torch_impl/optim.py has no counterpart",
        ),
        ("torch_impl/train.py", "def fit(", "def fit((", "Cannot parse"),
    ],
)
def test_a_missing_counterpart_fails_the_build(tmp_path: Path, file: str, old: str, new: str, message: str) -> None:
    copied = copy_sources(tmp_path)
    text = (copied / file).read_text(encoding="utf-8")
    assert old in text
    (copied / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        site.build(site.Options(out=copied / "site"), root=copied)
    assert not (copied / "site").exists()


def test_an_image_that_cannot_be_shown_is_named(tmp_path: Path) -> None:
    network = subject(small()).network
    with pytest.raises(UserError, match=r"Cannot read the image .*gone\.png"):
        measure.image_for(network, tmp_path / "gone.png")
    Image.new("L", (1, 500)).save(tmp_path / "thin.png")
    with pytest.raises(UserError, match=r"thin\.png: it measures 1 x 500 pixels, too narrow"):
        measure.image_for(network, tmp_path / "thin.png")


def test_a_folder_gives_several_images_and_without_one_there_are_several(tmp_path: Path) -> None:
    network = subject(small()).network
    for name in ("b.png", "a.png"):
        Image.new("L", (40, 50), 90).save(tmp_path / name)
    assert [words for _, words in measure.images_for(network, tmp_path)] == ["a.png", "b.png"]
    words = [words for _, words in measure.images_for(network)]
    assert len(set(words)) == measure.IMAGES
    assert words[0] == measure.image_for(network)[1]


def test_what_speaks_for_a_class_is_the_same_in_both_and_as_predict_finds_it(tmp_path: Path) -> None:
    """Against the maps that `predict --grad-cam` leaves, which reads the same weights from a file."""
    (pixels, shown), *more = measure.images_for(subject(small()).network)
    chosen = replace(subject(small()), pixels=pixels, image=shown, more=tuple(more))
    found, maps = measure.speaks(chosen)
    assert [row["shown"] for row in found] == [shown, *(words for _, words in more)]
    for row in found:
        assert row["difference"]["relative"] < 1e-5
        assert row["probability"]["PyTorch"] == pytest.approx(row["probability"]["Flax"], rel=1e-5)
    weights.save(tmp_path / "model.safetensors", measure._torch_model(chosen), small())
    given = replace(chosen.network, path=tmp_path / "model.safetensors")
    batch = to_batch([pixels, *(pixels for pixels, _ in more)], given)
    for title, predictor in (("PyTorch", torch_impl.predict.predictor), ("Flax", flax_impl.predict.predictor)):
        predict = predictor(given, "cpu")
        labels = predict.probabilities(batch).argmax(1).astype(np.int32)
        assert [row["label"] for row in found] == [given.names[label] for label in labels]
        for mine, theirs in zip(maps, predict.grad_cam(replace(batch, labels=labels)), strict=True):
            assert mine[title] == pytest.approx(theirs, rel=1e-4, abs=1e-9)


def test_the_last_layer_is_shown_by_class() -> None:
    logits = np.array([[1.0, -2.0, 4.0]], np.float32)
    drawn = ElementTree.fromstring(
        str(pictures.scores(logits, 2 * logits, ["one", "<two>", "a very long name indeed"]))
    )
    assert [text.text for text in drawn.iter("text")] == ["a very long name in…", "one", "<two>"]
    widths = [float(box.get("width", 0)) for box in drawn.iter("rect")]
    assert widths[3:] == pytest.approx([2 * width for width in widths[:3]], abs=0.11)
    assert widths[0] == pytest.approx(118 * 4 / 12, abs=0.06)


def test_a_map_is_bright_where_it_is_large() -> None:
    values = np.zeros((4, 4), np.float32)
    values[0, 3] = 2.0
    drawn = pictures.heat(np.full((8, 8, 1), 100, np.uint8), values)
    assert drawn.shape == (pictures.OVERLAY, pictures.OVERLAY, 3)
    assert drawn[0, -1].sum() > 2 * drawn[-1, 0].sum()
    assert np.array_equal(drawn[-1, 0], pictures.heat(np.full((8, 8, 1), 100, np.uint8), 0 * values)[-1, 0])


def test_weights_of_a_file_are_shown_and_the_rest_is_said_to_be_noise(tmp_path: Path) -> None:
    """LeNet's convolutions alone, as a backbone is given."""
    file, rng = tmp_path / "backbone.safetensors", np.random.default_rng(0)
    table = {name: shape for name, shape in exchange.shapes(ARCHS["lenet"]).items() if name.startswith("conv")}
    given = {name: rng.normal(size=shape).astype(np.float32) for name, shape in table.items()}
    save_file(given, file)
    options = site.Options(weights=file, arch="lenet", out=tmp_path / "site")
    chosen = site.find_subject(options, {}, [])
    assert chosen.tensors is not None
    assert all(np.array_equal(chosen.tensors[name], array) for name, array in given.items())
    out = site.build(options, subject=chosen).parent
    network = json.loads((out / "data.json").read_text(encoding="utf-8"))["network"]
    assert network["fresh"] == ["fc3", "fc4"]
    text = "".join(read(out / "pictures.html").text)
    assert "Nobody trained fc3, fc4: their weights are fresh noise" in text
    assert "fc3 (noise)" in text
    assert "conv1 (noise)" not in text
    assert "LeNet, layer by layer" in "".join(read(out / "model.html").text)
    save_file({"conv1.conv.weight": given["conv1.conv.weight"]}, file)
    with pytest.raises(UserError, match="does not fit lenet"):
        site.find_subject(options, {}, [])


def test_fresh_weights_are_said_to_be_noise(tmp_path: Path) -> None:
    out = site.build(site.Options(out=tmp_path / "site"), subject=subject(small())).parent
    text = "".join(read(out / "pictures.html").text)
    assert "Nobody trained these weights: they are fresh noise" in text
    assert "Untrained: this is the noise that training begins with." in text
    assert "conv1 (noise)" in text


def test_the_strongest_channels_are_those_of_the_largest_mean() -> None:
    activation = np.zeros((1, 6, 2, 2), np.float32)
    for channel, value in {1: 0.5, 4: 1.0, 5: 0.75, 0: 0.25}.items():
        activation[0, channel] = value
    sheet = pictures.strongest(activation)
    half = sheet.shape[0] // 2 + 4
    found = [sheet[0, 0], sheet[0, half], sheet[half, 0], sheet[half, half]]
    assert np.array_equal(found, pictures._colour((np.array([1, 0.75, 0.5, 0.25]) - 0.25) / 0.75))


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="not a study site"):
        site.build(site.Options(out=tmp_path), subject=subject(small()))
    with pytest.raises(UserError, match="is a file"):
        site.build(site.Options(out=tmp_path / "thesis.tex"), subject=subject(small()))


@pytest.mark.parametrize("name", [*ARCHS, *ABLATIONS])
def test_costs_add_up(name: str) -> None:
    arch = (ARCHS | ABLATIONS)[name]
    rows = measure.costs(arch)
    assert sum(row["parameters"] for row in rows.values()) == arch.parameters
    assert sum(row["multiply_adds"] for row in rows.values()) == arch.multiply_adds


def test_receptive_fields() -> None:
    """As published for AlexNet, each block with its pool."""
    fields = {name: row["receptive_field"] for name, row in measure.costs(ARCHS["alexnet"]).items()}
    assert [fields[f"conv{number}"] for number in range(1, 6)] == [19, 67, 99, 131, 195]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("lenet", "fashion_mnist_lenet"),
        ("alexnet_cifar_bn", "cifar10"),
        ("alexnet_cifar_lrn", "cifar10"),
        pytest.param("alexnet_bn", "imagenet", marks=pytest.mark.full),
    ],
)
def test_other_architectures_are_measured(name: str, recipe: str) -> None:
    arch = narrow((ARCHS | ABLATIONS)[name])
    chosen = subject(arch, recipe)
    chosen = replace(chosen, network=replace(chosen.network, known=replace(get_recipe(recipe), arch=name)))
    found, *_ = measure.measure(chosen)
    assert all(row["difference"]["float64"]["relative"] < 1e-13 for row in found["layers"])
    assert [row["label"] for row in found["top"]["PyTorch"]] == [row["label"] for row in found["top"]["Flax"]]


@pytest.mark.parametrize("name", [*ARCHS, *ABLATIONS])
def test_every_named_architecture_can_be_shown(name: str) -> None:
    network = measure.fresh_network("digits", name)
    assert network.arch.name == name
    pixels, _ = measure.image_for(network)
    assert pixels.shape == network.stored


EVERY = ARCHS | ABLATIONS
SECTIONS = {"3.1", "3.2", "3.3", "3.4", "3.5", "4.1", "4.2", "5"}  # of the 2012 paper


def texts(arch: Arch) -> dict[str, Note]:
    return {layer: notes.about(arch, layer) for layer in anatomy.layer_names(arch)}


@pytest.mark.parametrize("name", EVERY)
def test_every_layer_has_a_text_that_cites_the_paper(name: str) -> None:
    found = texts(EVERY[name])
    assert set(found) == set(measure.costs(EVERY[name]))
    for layer, note in found.items():
        assert note.lead, layer
        assert note.parts, layer
        for sentence in (note.lead, *note.why, *note.parts):
            assert re.search(r"[.?]$", sentence), sentence
            assert set(re.findall(r"sections? ([\d.]*\d)", sentence)) <= SECTIONS, sentence
    cited = {number for note in found.values() for s in note.why for number in re.findall(r"section ([\d.]*\d)", s)}
    assert {"3.1", "3.4", "4.2"} <= cited


def test_texts_say_the_architecture_s_numbers() -> None:
    """What a student asks: 55 x 55, where the parameters are, where response norm went, why weights are permuted."""
    paper, torchvision = texts(ARCHS["alexnet_2012"]), texts(ARCHS["alexnet"])
    assert any("55 × 55 outputs come of 227 pixels without padding, or of 224 with" in s for s in paper["conv1"].why)
    assert "96.2 % in fc6, fc7 and fc8" in " ".join(paper["fc6"].why)
    assert "conv2, conv4 and conv5 see only the maps on their own" in " ".join(paper["conv2"].why)
    assert any("the 5 channels around it" in s and "section 3.3" in s for s in paper["conv1"].why)
    assert any("only after conv1 and conv2" in s for s in torchvision["conv2"].why)
    assert any("Where it went" in s for s in torchvision["conv2"].why)
    assert not any("response norm" in s for s in torchvision["conv3"].why)
    for found in (paper["flatten"].why, paper["fc6"].parts):
        assert any("c·36 + y·6 + x in PyTorch and (y·6 + x)·256 + c in Flax" in s for s in found)
    assert paper["drop6"].lead == "Does nothing in this architecture: its rate is 0."
    assert "probability of 0.5" in paper["drop7"].lead
    assert any("before fc7 and fc8 (section 4.2), torchvision before fc6 and fc7" in s for s in paper["drop7"].why)
    assert not any("Batch norm" in s for s in paper["conv1"].why)
    assert any("Batch norm" in s for s in texts(ARCHS["alexnet_bn"])["conv1"].why)


def test_what_people_ask_is_answered_whatever_network_is_shown(pages: dict[str, Page]) -> None:
    """From the 2012 network's numbers, on the start page, with the lines that show it."""
    asked = questions.questions()
    page = pages["index"]
    found = {
        page.content(number).strip().split("\n")[0]: " ".join(page.content(number).split())
        for number, (tag, _) in enumerate(page.elements)
        if tag == "details"
    }
    assert list(found) == [one.ask for one in asked]
    told = list(found.values())
    assert "floor((227 + 2·0 − 11) / 4) + 1 = 55" in told[0]
    assert "Where are 96 % of the parameters?" in told[1]
    assert "fc6 61.9 % (9,216 · 4,096 weights" in told[1]
    assert "after conv1 and conv2" in told[2]
    assert "Where it went" in told[2]
    assert "jax.grad(loss_fn, has_aux=True)(state.params)" in told[3]
    assert "c·36 + y·6 + x in PyTorch and (y·6 + x)·256 + c in Flax" in told[4]
    assert "step 1 (counted from 0), optimizer, momentum_buffer" in told[5]
    for one, fault in ((asked[4], "fc6 transposed but not reordered"), (asked[5], "momentum of 0.8")):
        number = [exercise.fault for exercise in faults.EXERCISES].index(fault) + 1
        assert one.to == f"break.html#exercise-{number}"
        assert one.link.endswith(f"exercise {number}")


def test_the_places_of_a_number_are_as_the_text_says() -> None:
    """Both frameworks' flattening, of a map whose values are PyTorch's numbers."""
    height, width, channels = ARCHS["alexnet_2012"].feature_size
    maps = np.arange(height * width * channels).reshape(channels, height, width)
    ours, theirs = maps.reshape(-1), maps.transpose(1, 2, 0).reshape(-1)
    c, y, x = 200, 4, 3
    assert ours[c * 36 + y * 6 + x] == theirs[(y * 6 + x) * 256 + c] == maps[c, y, x]


@pytest.mark.parametrize("name", EVERY)
def test_sizes_follow_from_the_numbers_shown(name: str) -> None:
    arch = EVERY[name]
    rows = {row.name: row for row in arch.layers()}
    for layer, _ in arch.named_convs():
        sums = [text for _, text in anatomy.follows(arch, layer) if "floor" in text]
        reached = [rows[layer], *(rows[key] for key in (layer.replace("conv", "pool"),) if key in rows)]
        assert len(sums) == len(reached)
        for text, row in zip(sums, reached, strict=True):
            formula, result = text.replace("·", "*").replace("−", "-").split(" = ")
            assert eval(formula, {"floor": math.floor}) == int(result) == row.output[0]
            assert row.output[0] == row.output[1]


def test_the_first_size_is_spelt_out() -> None:
    follows = {name: anatomy.follows(ARCHS[name], "conv1")[0][1] for name in ("alexnet_2012", "alexnet")}
    assert follows["alexnet_2012"] == "floor((227 + 2·0 − 11) / 4) + 1 = 55"
    assert follows["alexnet"] == "floor((224 + 2·2 − 11) / 4) + 1 = 55"


def test_a_layer_without_a_text_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(notes.LAYERS, "drop")
    with pytest.raises(UserError, match="drop6 of alexnet_cifar has no text"):
        site.build(site.Options(out=tmp_path / "site"), subject=subject(small()))
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("name", EVERY)
def test_the_diagram_is_to_scale_and_every_layer_that_acts_is_in_it(name: str) -> None:
    arch = EVERY[name]
    drawn = ElementTree.fromstring(str(diagram.draw(arch)))
    stages = {one.get("data-group"): one for one in drawn.iter("a")}
    rates = {key.replace("fc", "drop"): spec.dropout for key, spec in arch.named_dense()}
    idle = {key for key, rate in rates.items() if not rate} | ({"pool"} if not arch.adaptive_pool else set())
    assert set(stages) == set(anatomy.layer_names(arch)) - idle
    rows = {row.name: row for row in arch.layers()}
    scale = diagram.SIDE / arch.image[0]
    channels = sum(
        size[2] for size in (arch.image, *(r.output for r in rows.values() if "pool" in r.kind or r.kind == "conv"))
    )
    for layer, spec in arch.named_convs():
        assert stages[layer].get("href") == f"#layer-{layer}"
        boxes = [box for box in stages[layer].iter("rect") if box.get("class") == "map"]
        assert len(boxes) == spec.groups
        for box in boxes:
            assert float(box.get("height", 0)) == pytest.approx(rows[layer].output[0] * scale, abs=0.06)
            width = spec.features / spec.groups * diagram.WIDTH / channels
            assert float(box.get("width", 0)) == pytest.approx(max(width, diagram.LEAST), rel=0.2)
        words = "".join(text.text or "" for text in stages[layer].iter("text"))
        assert f"{spec.kernel} × {spec.kernel}" in words
        assert ("groups" in words) == (spec.groups > 1)
    heights = [
        float(next(box for box in stages[key].iter("rect") if box.get("class") == "row").get("height", 0))
        for key, _ in arch.named_dense()
    ]
    outputs = [spec.features for _, spec in arch.named_dense()]
    assert all(
        h == pytest.approx(max(heights[0] * n / outputs[0], diagram.LEAST), abs=0.2)
        for h, n in zip(heights, outputs, strict=True)
    )


def test_shares_are_of_the_whole(data: Any) -> None:
    arch = small()
    for bar in diagram.bars(arch):
        assert sum(share for _, share in bar["parts"]) == pytest.approx(1)
    assert sum(layer["parameter_share"] for layer in data["network"]["layers"]) == pytest.approx(1)
    dense = sum(row.parameters for row in arch.layers() if row.name.startswith("fc"))
    assert data["network"]["shares"]["dense_parameters"] == dense / arch.parameters


WANTED = {"zero-grad", "backward", "dropout", "batch-statistics", "schedule", "loss-scaling", "compile"}


def test_the_step_comes_first_then_its_ideas_with_lines_of_both(pages: dict[str, Page]) -> None:
    elements = pages["training"].elements
    ids = [values["id"] for _, values in elements if "id" in values]
    ideas = [key.removeprefix("idea-") for key in ids if key.startswith("idea-")]
    assert set(ideas) >= WANTED
    assert ids.index("train") < ids.index("idea-zero-grad") < ids.index("optim")
    for key, framework, line in (
        ("backward", "torch", ".backward()"),
        ("backward", "flax", "jax.grad(loss_fn, has_aux=True)(state.params)"),
        ("zero-grad", "torch", "state.optimizer.zero_grad()"),
        ("compile", "flax", "@partial(jax.jit, donate_argnums=0)"),
    ):
        concept = next(one for one in training.CONCEPTS if one.key == key)
        cites = [
            source.excerpt(framework, cite.module, cite.begins, cite.count) for cite in getattr(concept, framework)
        ]
        assert line in " ".join(text.striptags() for cite in cites for text in cite.lines)


def test_lines_that_texts_cite_lead_to_those_lines(pages: dict[str, Page]) -> None:
    """Of every concept, term and exercise, on the page that its link names."""
    by_id = {
        (name, values["id"]): page.content(number)
        for name, page in pages.items()
        for number, (_, values) in enumerate(page.elements)
        if re.fullmatch(r"(torch|flax)-\w+-L\d+", values.get("id", ""))
    }
    seen = 0
    shown = {"training": training.CONCEPTS, "glossary": glossary.TERMS, "break": faults.EXERCISES}
    shown["index"] = tuple(one for one in questions.questions() if one.torch)
    for name, entry in [(name, entry) for name, entries in shown.items() for entry in entries]:
        for framework in FRAMEWORKS:
            cites = getattr(entry, framework)
            assert cites, entry
            for cite in cites:
                found = source.excerpt(cite.side or framework, cite.module, cite.begins, cite.count)
                assert cite.begins.strip() in by_id[site.page_of(cite.module), found.identity]
                links = [values["href"] for tag, values in pages[name].elements if tag == "a"]
                assert f"{site.page_of(cite.module)}.html#{found.identity}" in links
                seen += 1
    assert seen > 70


def test_a_text_that_cites_what_is_not_there_fails_the_build(tmp_path: Path) -> None:
    copied = copy_sources(tmp_path)
    file = copied / "torch_impl" / "train.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("state.optimizer.zero_grad()", "state.optimizer.zero_grad(True)"), encoding="utf-8")
    with pytest.raises(UserError, match=r"cite 'state.optimizer.zero_grad\(\)' of torch_impl/train.py, where no lines"):
        site.build(site.Options(out=copied / "site"), root=copied)
    file.write_text(text + "\n# state.optimizer.zero_grad()\n", encoding="utf-8")
    with pytest.raises(UserError, match="where 2 lines hold it"):
        site.build(site.Options(out=copied / "site"), root=copied)
    assert not (copied / "site").exists()


def test_another_momentum_shows_where_the_text_says() -> None:
    update = next(one for one in training.CONCEPTS if one.key == "update")
    rows = json.loads((RESULTS / "mutants-cpu.json").read_text(encoding="utf-8"))["rows"]
    (row,) = [row for row in rows if row["fault"] == "momentum of 0.8"]
    assert row["found_at"].startswith("step 1, optimizer, momentum_buffer")
    assert "step 1 (counted from 0), optimizer, momentum_buffer" in " ".join(update.text)


def test_exercises_are_planted_faults_that_their_symptoms_tell_apart(pages: dict[str, Page]) -> None:
    rows = {row["fault"]: row for row in json.loads((RESULTS / "mutants-cpu.json").read_text(encoding="utf-8"))["rows"]}
    assert len({one.fault for one in faults.EXERCISES}) == len(faults.EXERCISES) >= 10
    for one in faults.EXERCISES:
        assert len({one.fault, *one.others}) == 5
        symptoms = [(rows[name]["found_at"], rows[name]["cause"]) for name in (one.fault, *one.others)]
        assert symptoms[0] not in symptoms[1:], one.fault
    page = pages["break"]
    details = [values.get("class", "") for tag, values in page.elements if tag == "details"]
    assert details.count("right") == details.count("hint") == len(faults.EXERCISES)
    assert len(details) == 6 * len(faults.EXERCISES)
    headings = [page.content(number) for number, (tag, _) in enumerate(page.elements) if tag == "h2"]
    assert headings == [f"{i}. {rows[one.fault]['found_at']}" for i, one in enumerate(faults.EXERCISES, 1)]


def test_an_exercise_whose_faults_were_not_planted_is_left_out() -> None:
    entries = [{"entry": one, "torch": [], "flax": []} for one in faults.EXERCISES]
    rows = json.loads((RESULTS / "mutants-cpu.json").read_text(encoding="utf-8"))["rows"]
    assert len(site._exercises(entries, rows, [])) == len(entries)
    gone = faults.EXERCISES[0].fault
    left = site._exercises(entries, [row for row in rows if row["fault"] != gone], [])
    assert gone not in [name for one in left for name in (one["entry"].fault, *one["entry"].others)]
    assert site._exercises(entries, [], []) == []


def test_an_exercise_shows_the_losses_that_were_measured_and_where_they_part(built: Path, data: Any) -> None:
    filed = json.loads((RESULTS / break_it.CURVES).read_text(encoding="utf-8"))
    assert [row["fault"] for row in filed["rows"]] == [*(one.fault for one in faults.EXERCISES), "momentum of 0.899"]
    for page, count in (("break", len(faults.EXERCISES)), ("index", 1)):
        assert (built / f"{page}.html").read_text(encoding="utf-8").count('<figure class="losses">') == count
    parted = {row["fault"]: row["parted"] for row in data["exercises"]["rows"]}
    assert parted["fc6 transposed but not reordered"] == 0
    assert parted["a dense layer in float32"] is None
    assert parted["batch norm's momentum turned round"] is None  # no loss of training sees the running statistics
    ours, theirs = [3.0, 2.0, 1.0], [3.0, 2.03, 2.0]
    assert runs.parting(ours, theirs) == {"parted": 2, "largest": 0.5}
    drawn = ElementTree.fromstring(str(pictures.losses({"PyTorch": ours, "Flax": theirs}, 1)))
    assert [line.get("points") for line in drawn.iter("polyline")] == [
        "2.0,4.0 100.0,50.0 198.0,96.0",
        "2.0,4.0 100.0,48.6 198.0,50.0",
    ]
    assert next(drawn.iter("path")).get("d") == "M100.0 0V100"


def test_the_glossary_has_twenty_words_that_differ() -> None:
    words = [(term.torch_word, term.flax_word) for term in glossary.TERMS]
    assert len(set(words)) == len(words) >= 20


@pytest.mark.parametrize("page", site.PAGES)
def test_the_start_names_the_network_and_leads_on(pages: dict[str, Page], page: str) -> None:
    titles = [pages[page].content(number) for number, (tag, _) in enumerate(pages[page].elements) if tag == "title"]
    assert titles[0] == f"{site.PAGES[page]}: AlexNet in PyTorch and Flax"
    if page == "index":
        steps = [pages[page].content(number) for number, (tag, _) in enumerate(pages[page].elements) if tag == "h2"]
        assert steps[:3] == ["Study AlexNet", "Learn Flax from PyTorch, or the other way round", "Check a port"]


def test_what_differs_has_architectures_as_columns_and_no_row_without_a_difference() -> None:
    shown: set[str] = set()
    for grid in deviations.grids():
        shown |= set(grid["archs"])
        tables = [deviations.numbers(EVERY[name]) for name in grid["archs"]]
        fields = [row["field"] for row in grid["rows"]]
        assert fields == [
            key for key in dict.fromkeys(k for t in tables for k in t) if len({t.get(key) for t in tables}) > 1
        ]
        for row in grid["rows"]:
            for table, cell in zip(tables, row["cells"], strict=True):
                assert cell["value"] == table.get(row["field"], deviations.NONE)
                assert bool(cell["reason"]) == (cell["value"] != row["cells"][0]["value"]), (row["field"], cell)
    assert shown == set(EVERY)


def test_a_page_weighs_less_than_three_megabytes(built: Path, pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        pictures = {values["src"] for tag, values in page.elements if tag == "img"}
        assert sum((built / file).stat().st_size for file in (f"{name}.html", *pictures)) < 3e6, name


def differences() -> Iterator[tuple[str, str]]:
    for table in deviations.tables():
        for row in table["rows"]:
            yield table["arch"], row["field"]


def test_every_deviation_has_a_reason() -> None:
    assert [pair for pair in differences() if not deviations.reason(*pair)] == []


def test_every_reason_is_for_a_deviation() -> None:
    """The first pattern that fits counts, so one that never does is stale."""
    used = {deviations.found(*pair) for pair in differences()}
    assert [
        (name, pattern)
        for name, rows in deviations.REASONS.items()
        for pattern, _ in rows
        if (name, pattern) not in used
    ] == []


def test_a_new_deviation_without_a_reason_is_seen() -> None:
    odd = replace(ARCHS["alexnet"], activation="tanh")
    (row,) = deviations.deviations(odd, ARCHS["alexnet"])
    assert (row.field, row.value, row.reference, row.reason) == ("activation", "tanh", "relu", "")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
SERIOUS = ("serious", "critical")
WIDE = 1800  # pixels, at which the panel stands beside both texts
AXE = {"preload": False, "resultTypes": ["violations"]}  # preloading would ask for the styles again
LIT = """(compare) => ({
  group: document.activeElement.dataset.group,
  focused: document.activeElement.id || ("list" in document.activeElement.dataset ? "list" : ""),
  outlined: getComputedStyle(document.activeElement).outlineStyle !== "none",
  groups: [...new Set([...compare.querySelectorAll(".line.lit")].map((line) => line.dataset.group))],
  sides: [...new Set([...compare.querySelectorAll(".line.lit")].map((line) => line.id.split("-")[0]))].sort(),
  panels: [...compare.querySelectorAll(".panel")].filter((one) => one.offsetHeight).map((one) => one.dataset.panel),
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    if not BROWSER:
        pytest.skip(f"no browser is found: {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1440, **settings: Any) -> Iterator[Tab]:
    """A page in a window of its own, which may say nothing and ask for nothing but its neighbours."""

    def refuse(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
    tab, said, asked = context.new_page(), list[str](), list[str]()
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", refuse)
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    yield tab
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith((file.parent.as_uri(), "data:"))] == []


def violations(tab: Tab, context: dict[str, Any]) -> list[tuple[str, str]]:
    """The rules of axe-core that are seriously broken, and where."""
    found = Axe().run(tab, context, AXE).response["violations"]
    return [(rule["id"], rule["nodes"][0]["html"]) for rule in found if rule["impact"] in SERIOUS]


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
@pytest.mark.parametrize("page", site.PAGES)
def test_pages_in_a_browser(browser: Browser, built: Path, page: str, width: int, scheme: Any) -> None:
    with opened(browser, built / f"{page}.html", width, color_scheme=scheme) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
        assert tab.evaluate("[...document.scripts].map((script) => script.getAttribute('src'))") == ["study.js"]
        sources = [] if page == "model" else [[".code"]]  # thousands of lines made alike: once is enough
        assert violations(tab, {"exclude": sources}) == []


def pressed(tab: Tab, key: str) -> Iterator[dict[str, Any]]:
    """What is focused and lit after each press of a key, until the focus has left the page's sources."""
    seen = tab.evaluate_handle("document.querySelector('[data-pair]')")
    for _ in range(400):
        tab.keyboard.press(key)
        if tab.evaluate("document.activeElement.closest('footer') !== null"):
            return
        state = tab.evaluate(LIT, seen)
        if state["group"] and tab.evaluate("(pair) => pair.contains(document.activeElement)", seen):
            yield state


def test_every_layer_is_reached_with_the_keyboard(browser: Browser, built: Path) -> None:
    layers, reached = set(measure.costs(small())), dict[str, set[str]]()
    with opened(browser, built / "model.html") as tab:
        for state in pressed(tab, "Tab"):
            assert state["outlined"], state
            assert state["groups"] == [state["group"]]
            assert state["sides"] == ["flax", "torch"], state
            assert state["panels"] == [state["group"]]
            reached.setdefault(state["focused"].split("-")[0], set()).add(state["group"])
    assert reached == {"list": layers, "torch": layers, "flax": layers, "diagram": layers - {"pool", "drop8"}}


def test_pointing_at_a_layer_lights_both_sides(browser: Browser, built: Path) -> None:
    with opened(browser, built / "model.html", WIDE) as tab:
        tab.locator(".pane.flax .line[data-group=conv3]").first.hover()
        lit = tab.locator(".line.lit")
        assert {line.get_attribute("data-group") for line in lit.all()} == {"conv3"}
        assert tab.locator(".pane.torch .line.lit").count() == tab.locator(".pane.flax .line.lit").count() == 2
        assert tab.locator("#layer-conv3").is_visible()
        top = "(line) => line.getBoundingClientRect().top"
        tops = [tab.locator(f".pane.{side} .line.lit").first.evaluate(top) for side in FRAMEWORKS]
        assert len(set(tops)) == 1, "the two sides are not level"


def test_a_click_pins_a_layer_until_escape(browser: Browser, built: Path) -> None:
    with opened(browser, built / "model.html", WIDE) as tab:
        tab.locator("#diagram-conv2").click()
        tab.locator(".pane.flax .line[data-group=fc6]").first.hover()
        assert tab.locator("#layer-conv2").is_visible()
        tab.keyboard.press("Escape")
        tab.locator(".pane.flax .line[data-group=fc7]").first.hover()
        assert tab.locator("#layer-fc7").is_visible()


def test_docstrings_and_imports_fold_and_both_sides_stay_level(browser: Browser, built: Path) -> None:
    level = """() => ["torch", "flax"].map((side) => [...document.querySelectorAll(`.pair .${side} .line`)].filter(
      (line) => line.offsetHeight).map((line) => line.getBoundingClientRect().top))"""
    imported = "torch-train-L10"  # a line of imports
    with opened(browser, built / "training.html") as tab:
        line = tab.locator(f"#{imported}")
        assert not line.is_visible()
        ours, theirs = tab.evaluate(level)
        assert ours == theirs
        tab.get_by_role("button", name="Docstrings and imports").click()
        assert line.is_visible()
        ours, theirs = tab.evaluate(level)
        assert ours == theirs
        tab.get_by_role("button", name="Flax alone").click()
        assert not line.is_visible()
        assert tab.locator("#flax-train-L10").is_visible()
    with opened(browser, built / "training.html") as tab:
        tab.goto(f"{(built / 'training.html').as_uri()}#{imported}")
        assert tab.locator(f"#{imported}").is_visible(), "a link to a folded line unfolds it"


def test_a_hundred_columns_of_both_fit_a_small_screen(browser: Browser, built: Path) -> None:
    """Beside each other at 1280 pixels, and in one framework alone: no line of up to 100 columns is broken."""
    broken = """() => [...document.querySelectorAll(".pair .line code")].filter((code) => {
      const range = document.createRange(); // of the text: its box is as high as the other side's
      range.selectNodeContents(code);
      const height = range.getBoundingClientRect().height;
      return code.textContent.length <= 100 && height > 1.7 * parseFloat(getComputedStyle(code).fontSize);
    }).map((code) => code.textContent)"""
    for page in ("model", "training"):
        with opened(browser, built / f"{page}.html", 1280) as tab:
            assert tab.evaluate(broken) == [], page
            size = tab.locator(".pair .code").first.evaluate("(code) => parseFloat(getComputedStyle(code).fontSize)")
            assert size >= 9, "too small to be read"
            tab.get_by_role("button", name="Flax alone").click()
            assert tab.evaluate(broken) == [], page


def test_the_panel_takes_room_only_where_it_was_asked_for(browser: Browser, built: Path) -> None:
    with opened(browser, built / "model.html", 1280) as tab:
        panel = tab.locator("#layer-conv2")
        tab.locator("#diagram-conv2").hover()
        assert not panel.is_visible()
        tab.locator("#diagram-conv2").click()
        assert panel.is_visible()
        tab.get_by_role("button", name="Close").click()
        assert not panel.is_visible()
        tab.goto(f"{(built / 'model.html').as_uri()}?#layer-conv2")
        assert panel.is_visible(), "a link to a panel opens it"


def test_on_a_phone_the_frameworks_are_two_tabs(browser: Browser, built: Path) -> None:
    with opened(browser, built / "training.html", 390) as tab:
        ours, theirs = (tab.locator(f".pair .pane.{side}").first for side in FRAMEWORKS)
        assert ours.is_visible()
        assert not theirs.is_visible()
        assert not tab.get_by_role("button", name="Both").is_visible()
        tab.get_by_role("button", name="Flax").click()
        assert theirs.is_visible()
        assert not ours.is_visible()
        tab.goto(f"{(built / 'training.html').as_uri()}?#torch-train-L48")
        assert tab.locator("#torch-train-L48").is_visible(), "a link to a line turns to its framework"


def test_on_a_phone_the_measurements_can_be_opened_and_closed(browser: Browser, built: Path) -> None:
    with opened(browser, built / "model.html", 390) as tab:
        panel = tab.locator("#layer-conv2")
        assert not panel.is_visible()
        for close in (lambda: tab.get_by_role("button", name="Close").click(), lambda: tab.keyboard.press("Escape")):
            tab.locator("nav.layers a[data-group=conv2]").click()
            assert panel.is_visible()
            close()
            assert not panel.is_visible()


@pytest.mark.parametrize("how", ["print", "no script"])
def test_on_paper_and_without_a_script_everything_is_there(browser: Browser, built: Path, how: str) -> None:
    with opened(browser, built / "model.html", java_script_enabled=how == "print") as tab:
        tab.emulate_media(media="print" if how == "print" else "screen")
        panels = tab.locator(".panel")
        assert panels.count() == len(measure.costs(small()))
        assert all(panel.is_visible() for panel in panels.all())
        assert tab.locator("header nav").is_visible() == (how != "print")
    if how == "print":  # on a page as narrow as a phone's screen is both are there, with their shading
        with opened(browser, built / "model.html", 800) as tab:
            tab.emulate_media(media="print")
            tab.set_viewport_size({"width": 700, "height": 900})
            assert all(pane.is_visible() for pane in tab.locator(".pair .pane").all())
            kept = "(bar) => getComputedStyle(bar).printColorAdjust"
            assert tab.locator(".whole .conv").first.evaluate(kept) == "exact"


def test_planted_faults_are_seen(browser: Browser, built: Path, tmp_path: Path) -> None:
    """The checks above can fail: on a script that runs, a request to elsewhere, and text that is hard to read."""
    text = (built / "index.html").read_text(encoding="utf-8")
    for file in built.glob("study.*"):
        shutil.copy(file, tmp_path)

    def planted(fault: str) -> Path:
        (tmp_path / "index.html").write_text(text.replace("</main>", f"{fault}</main>"), encoding="utf-8")
        return tmp_path / "index.html"

    for fault in ("<script>alert(1)</script>", '<img alt="" src="http://localhost:9/x.png">'):
        with pytest.raises(AssertionError), opened(browser, planted(fault)):
            pass
    with opened(browser, planted('<p id="pale" style="color: #ddd; background: #fff">pale</p>')) as tab:
        assert [rule for rule, _ in violations(tab, {"include": [["#pale"]]})] == ["color-contrast"]


def test_compare_trains_both_from_the_same_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small network on the digits, one epoch: run folders, noise, table and pages."""
    options = compare.Options(
        arch="lenet", epochs=1, moved=1, device="cpu", out=tmp_path / "runs", site=tmp_path / "site"
    )
    page = compare.compare(options)
    data = json.loads((page.parent / "data.json").read_text(encoding="utf-8"))
    ours, theirs = (data["training"]["runs"][name] for name in ("PyTorch", "Flax"))
    (first, apart), *_ = data["training"]["differences"]["train"]["loss"]
    assert first == 1
    assert apart <= 32 * 2**-23 * ours["curves"]["train"]["loss"][0][1], "the first losses are of the same weights"
    assert len(data["training"]["noise"]["curves"]["train"]["loss"]) == len(ours["curves"]["train"]["loss"])
    assert data["training"]["noise"]["curves"]["train"]["loss"][-1][1] > 0
    printed = capsys.readouterr().out
    for row in data["training"]["summary"]:
        assert row["title"] in printed
        for key in ("PyTorch", "Flax", "difference"):
            assert site.written(row[key], row["kind"]) in printed
    titles = [row["title"] for row in data["training"]["summary"]]
    assert titles == [title for title, _ in runs.FIGURES.values() if "validation" not in title]
    assert all(row["noise"] is not None for row in data["training"]["summary"] if "epoch" in row["title"])
    assert re.search(
        r"^self-noise, run 1 of 1, epoch 1/1  loss \d.*\n(.*\n)*self-noise, run 1 of 1: [\d.]+ s$", printed, re.M
    )
    assert sum(map(sum, ours["confusion"]["counts"])) == sum(map(sum, theirs["confusion"]["counts"])) == 360
    assert not list((tmp_path / "runs").glob("tmp*")), "the moved runs leave nothing behind"
    manifest = tmp_path / "runs" / "flax" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"batches_sha256": {', '"batches_sha256": {"0": "other",'))
    with pytest.raises(UserError, match="different batches"):
        compare._check_batches(tmp_path / "runs")
    with pytest.raises(UserError, match="File exists"):
        compare.compare(options)


def test_the_envelope_is_the_largest_difference_so_far() -> None:
    base: runs.Curves = {"train": {"loss": [(1, 1.0), (2, 1.0), (3, 1.0)]}}
    moved: list[runs.Curves] = [
        {"train": {"loss": [(1, 1.1), (2, 1.0), (3, 0.8)]}},
        {"train": {"loss": [(1, 1.0), (2, 1.4), (3, 1.0)]}},
    ]
    found = runs.envelope(base, moved, 1e-7)["train"]["loss"]
    assert [step for step, _ in found] == [1, 2, 3]
    assert [width for _, width in found] == pytest.approx([0.1, 0.4, 0.4])
    assert runs.envelope(base, [base], 1e-7)["train"]["loss"] == [(step, 32e-7) for step in (1, 2, 3)]


def test_a_comparison_ends_in_a_verdict() -> None:
    """By the largest share of the noise, whatever the split; where the losses part, the first step is named."""
    noise: Any = {"train": {"loss": [(1, 1e-6), (2, 1e-5)]}, "test": {"loss": [(2, 1e-4)]}}
    ours: Any = {"train": {"loss": [(1, 2.0), (2, 1.0)], "lr": [(1, 0.1)]}, "test": {"loss": [(2, 1.5)]}}

    def told(*apart: float) -> str:
        one, two, test = apart
        theirs: Any = {
            "train": {"loss": [(1, 2 + one), (2, 1 + two)], "lr": [(1, 0.1)]},
            "test": {"loss": [(2, 1.5 + test)]},
        }
        return runs.verdict(ours, theirs, noise, "float32")

    assert told(0, 1.3e-5, 0) == "agree: the losses part by at most 1.3 times float32's own noise; 4 times is allowed"
    assert told(0, 0, 3.9e-4).startswith("agree: the losses part by at most 3.9 times")
    assert told(5e-6, 7e-5, 0) == (
        "part: at step 1 the train losses differ by 5 times float32's own noise, where 4 times is allowed, "
        "and by at most 7 times in all"
    )
    assert told(0, 0, 4.1e-4).startswith("part: at step 2 the test losses differ by 4.1 times")
    assert runs.verdict(ours, ours, {}, "float32").startswith("no verdict")


def test_the_training_loss_counts_every_example_once(tmp_path: Path) -> None:
    """Rows of 1,280 and 157 examples, as one epoch of digits has them."""
    rows = [
        {"step": 10, "epoch": 1, "split": "train", "loss": 2.0, "seconds": 8.0, "images/s": 160.0},
        {"step": 12, "epoch": 1, "split": "train", "loss": 1.0, "seconds": 0.5, "images/s": 314.0},
    ]
    assert runs._final(rows)["train loss"] == pytest.approx((2.0 * 1280 + 1.0 * 157) / 1437)


def test_the_training_loss_has_a_noise_of_its_own() -> None:
    """That of the means over the examples of an epoch, not over its rows, and the largest so far, as for the others."""

    def run(*losses: float) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [
            {"step": 2 * at, "epoch": at // 2, "split": "train", "loss": loss, "seconds": 1.0, "images/s": count}
            for at, (loss, count) in enumerate(zip(losses, (90.0, 10.0) * 2, strict=True), 2)
        ]
        rows.append({"step": 10, "epoch": 2, "split": "test", "loss": 1.0, "accuracy": 0.5})
        return {"curves": runs._curves(rows), "final": runs._final(rows)}

    base, moved = run(1.0, 2.0, 3.0, 4.0), run(1.1, 2.0, 3.0, 4.5)
    assert dict(base["curves"]["train"][runs.EPOCH_LOSS]) == pytest.approx({6: 1.1, 10: 3.1})
    noise = runs.envelope(base["curves"], [moved["curves"]], 1e-7)
    assert dict(noise["train"][runs.EPOCH_LOSS]) == pytest.approx({6: 0.09, 10: 0.09})
    row, *_ = runs.summary(base, moved, noise)
    assert row["title"] == "training loss, last epoch"
    assert (row["difference"], row["noise"]) == (pytest.approx(0.05), pytest.approx(0.09))
    still = runs.envelope(base["curves"], [base["curves"]], 1e-7)  # no less than a forward pass's own rounding
    assert still["train"][runs.EPOCH_LOSS][-1][1] == pytest.approx(32e-7 * 3.1)


def test_runs_that_do_not_belong_together_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another framework's run lends neither curves nor weights; two recipes are compared, and it is said."""
    found = {
        name: {"curves": {}, "final": {}, "problems": [], "recipe": recipe, "epochs": 3}
        for name, recipe in (("torch", "digits"), ("flax", "photos"))
    }
    monkeypatch.setattr(runs, "read_run", lambda path, framework: found[framework])
    monkeypatch.setattr(runs, "summary", lambda *words: [])
    (told,) = site._training({})["runs"]["Flax"]["problems"]
    assert told.startswith("The runs are not of the same recipe: digits in PyTorch, photos in Flax. What follows")
    monkeypatch.undo()
    run = RunFolder.create(tmp_path / "run", get_recipe("digits"))
    (run.path / "manifest.json").write_text('{"framework": "flax"}')
    network, problem = runs.trained(run.path, "torch")
    assert network is None
    assert "was trained with flax_impl" in problem
