"""The study site: complete, self-contained, escaped, equal to its data, and built only where both sides match."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_impl
from common.arch import ABLATIONS, ARCHS, Arch
from common.errors import UserError
from common.networks import Network
from common.recipes import get_recipe
from common.run import RunFolder, write_manifest
from parity_tests.material import narrow
from parity_tests.study import deviations, measure, runs, site, source
from torch_impl import weights

HOSTILE = "<script>alert(1)<"  # a folder's name cannot hold a slash
LABEL = "<script>alert('label')</script>"
VOID = {"meta", "link", "img", "br", "input", "hr"}
RESULTS = site.RESULTS


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
        run.log(step=step, epoch=1, split="train", **score, lr=0.1, **{"images/s": 100.0})
    run.log(step=20, epoch=1, split="test", loss=0.25 + shift, accuracy=0.75, top5=1.0)
    torch.manual_seed(0)
    weights.save(path / "model.safetensors", torch_impl.build(arch), arch, class_names=names)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with two runs, PyTorch's under a hostile name."""
    folder = tmp_path_factory.mktemp("study")
    ours = make_run(folder / HOSTILE, "torch")
    theirs = make_run(folder / "flax", "flax", shift=1e-3)
    return site.build(site.Options(run_torch=ours, run_flax=theirs, out=folder / "site")).parent


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
                if target.startswith("#"):
                    assert target[1:] in identities, (name, target)
                elif target and not target.startswith("data:"):
                    assert (built / target).is_file(), (name, target)
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
        for framework in source.FRAMEWORKS:
            mine = [values for values in lines if values["id"].startswith(f"{framework}-")]
            assert any(values.get("href") == f"#layer-{layer}" for values in mine), (framework, layer)
        assert any(values.get("data-group") == layer and "data-list" in values for _, values in elements)


@pytest.mark.parametrize("framework", source.FRAMEWORKS)
def test_the_source_is_the_real_one(pages: dict[str, Page], framework: str) -> None:
    page = pages["training"]
    for module in site.MODULES:
        lines = (source.ROOT / f"{framework}_impl" / f"{module}.py").read_text(encoding="utf-8").splitlines()
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
            elif text.endswith("%"):
                assert float(text[:-1]) / 100 == pytest.approx(value, abs=5.1e-4)
            else:
                assert float(text.replace(",", "")) == pytest.approx(value, rel=5e-3)
            seen += 1
    assert seen > 500


def test_the_data_hold_what_was_measured(data: Any) -> None:
    network = data["network"]
    assert network["parameters"] == small().parameters
    assert network["parameters"] == sum(layer["parameters"] for layer in network["layers"])
    for layer in network["layers"]:
        if layer["name"] != "flatten":
            assert layer["difference"]["float64"]["relative"] < 1e-13
            assert 0 <= layer["difference"]["float32"]["relative"] < 1e-5
            assert layer["statistics"]["PyTorch"]["max"] == pytest.approx(layer["statistics"]["Flax"]["max"], rel=1e-4)
    assert data["training"]["differences"]["test"]["loss"] == [[20, pytest.approx(1e-3)]]
    assert len(data["parity"]["rows"]) == len(json.loads((RESULTS / "parity-cpu.json").read_text())["rows"])


def test_names_are_shown_and_not_run(pages: dict[str, Page]) -> None:
    assert HOSTILE in "".join(pages["index"].text)
    assert LABEL in "".join(pages["pictures"].text)
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
    options = site.Options(run_torch=ours, run_flax=tmp_path / "gone", out=tmp_path / "site")
    out = site.build(options, results=results).parent
    training, parity = ("".join(read(out / f"{name}.html").text) for name in ("training", "parity"))
    assert "metrics.jsonl is damaged or half written: line 4 of 4 cannot be read and is left out." in training
    assert f"There is no run {tmp_path / 'gone'}." in training
    assert "Loss of both frameworks" in training
    assert "parity-cpu.json is damaged or half written: it is not valid JSON." in parity
    assert "curve-x.json holds no largest differences." in parity


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
    found = site.find_subject(site.Options(run_flax=run), problems)
    assert found.tensors is None
    assert len(problems) == 1


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The source of both packages, where a test may plant something."""
    for framework in source.FRAMEWORKS:
        shutil.copytree(source.ROOT / f"{framework}_impl", tmp_path / f"{framework}_impl")
    return tmp_path


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
def test_a_missing_counterpart_fails_the_build(copied: Path, file: str, old: str, new: str, message: str) -> None:
    text = (copied / file).read_text(encoding="utf-8")
    assert old in text
    (copied / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        site.build(site.Options(out=copied / "site"), root=copied)
    assert not (copied / "site").exists()


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


@pytest.mark.parametrize(("name", "recipe"), [("lenet", "fashion_mnist_lenet"), ("alexnet_bn", "imagenet")])
def test_other_architectures_are_measured(name: str, recipe: str) -> None:
    arch = narrow(ARCHS[name])
    chosen = subject(arch, recipe)
    chosen = replace(chosen, network=replace(chosen.network, recipe=replace(get_recipe(recipe), arch=name)))
    found, _, _ = measure.measure(chosen)
    assert all(row["difference"] or row["name"] in ("pool", "flatten") for row in found["layers"])
    assert [row["label"] for row in found["top"]["PyTorch"]] == [row["label"] for row in found["top"]["Flax"]]


@pytest.mark.parametrize("name", [*ARCHS, *ABLATIONS])
def test_every_named_architecture_can_be_shown(name: str) -> None:
    network = measure.fresh_network("digits", name)
    assert network.arch.name == name
    pixels, _ = measure.image_for(network)
    assert pixels.shape == network.stored


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
NARROWEST = 500  # window of a headless browser, in pixels
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)

# Added to a copy of a page: what a reader with a pointer or a keyboard would find.
PROBE = """
const found = {errors: window.probeErrors, width: document.documentElement.scrollWidth, layers: {}, requests: []};
found.room = document.documentElement.clientWidth;
found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
for (const compare of document.querySelectorAll("[data-pair]")) {
  for (const link of compare.querySelectorAll("a[data-group]")) {
    link.focus();
    const lit = [...compare.querySelectorAll(".line.lit")];
    const panels = [...compare.querySelectorAll(".panel")].filter((panel) => panel.offsetHeight > 0);
    found.layers[(link.id || "list") + " " + link.dataset.group] = {
      focused: document.activeElement === link,
      outlined: getComputedStyle(link).outlineStyle !== "none",
      groups: [...new Set(lit.map((line) => line.dataset.group))],
      sides: [...new Set(lit.map((line) => line.id.split("-")[0]))].sort(),
      panels: panels.map((panel) => panel.dataset.panel),
    };
  }
}
window.parent.postMessage(JSON.stringify(found), "*");  // its own window, where it is in no frame
if (window.parent === window) addEventListener("message", (event) => {
  const element = document.createElement("script");
  element.type = "application/json";
  element.id = "probe";
  element.textContent = event.data;
  document.body.append(element);
});
"""
# A window cannot be as narrow as a phone, a frame can.
FRAME = """<!doctype html><html><body style="margin: 0">
<iframe src="{page}" width="{width}" height="800" style="border: 0"></iframe>
<script>
addEventListener("message", (event) => {{
  const element = document.createElement("script");
  element.type = "application/json";
  element.id = "probe";
  element.textContent = event.data;
  document.body.append(element);
}});
</script></body></html>"""
CATCH = """<script>
window.probeErrors = [];
addEventListener("error", (event) => probeErrors.push(event.message), true);
</script>"""


def browse(folder: Path, page: str, width: int) -> Any:
    """Open a page in a headless browser and return what the probe finds."""
    text = (folder / f"{page}.html").read_text(encoding="utf-8")
    probe = f'<script src="probe-{page}.js" defer></script>'
    (folder / f"probe-{page}.js").write_text(PROBE, encoding="utf-8")
    text = text.replace("<head>", f"<head>{CATCH}").replace("</head>", f"{probe}</head>")
    (folder / f"probed-{page}.html").write_text(text, encoding="utf-8")
    shown = folder / f"probed-{page}.html"
    if width < NARROWEST:
        shown = folder / f"framed-{page}.html"
        shown.write_text(FRAME.format(page=f"probed-{page}.html", width=width), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000"]
    options += [f"--window-size={width},900", "--dump-dom"]
    profile = f"--user-data-dir={folder / 'profile'}"
    assert BROWSER
    done = subprocess.run(
        [BROWSER, *options, profile, shown.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    report = re.search(r'<script type="application/json" id="probe">(.*?)</script>', done.stdout, re.DOTALL)
    assert report, done.stderr
    return json.loads(report[1])


@pytest.fixture(scope="module")
def probed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the site for the browser."""
    if not BROWSER:
        pytest.skip(f"no browser is found: {', '.join(BROWSERS)}")
    return Path(shutil.copytree(built, tmp_path_factory.mktemp("probed") / "site"))


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("page", site.PAGES)
def test_pages_in_a_browser(probed: Path, page: str, width: int) -> None:
    found = browse(probed, page, width)
    assert found["errors"] == []
    assert found["room"] == width
    assert found["width"] <= found["room"], "the page scrolls sideways"
    assert all(request.startswith("file://") for request in found["requests"])
    if width < NARROWEST:
        return  # a frame has no keyboard focus of its own
    for name, seen in found["layers"].items():
        group = name.split()[1]
        assert seen["focused"], name
        assert seen["outlined"], name
        assert seen["groups"] == [group]
        assert seen["sides"] == ["flax", "torch"], name
        assert seen["panels"] in ([group], []), name
    if page == "model":
        reached = {tuple(name.split()) for name, seen in found["layers"].items() if seen["panels"]}
        assert {("list", layer) for layer in measure.costs(small())} <= reached
