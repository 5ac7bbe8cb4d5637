"""Files and folders of the wrong kind, content or name: a sentence at once, before an epoch is lost to it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

import torch_impl.checkpoint
from common.arch.zoo import ARCHS
from common.config import from_dict, to_dict
from common.data.crops import central_square
from common.data.load import load_dataset
from common.data.photos import open_image, opened
from common.data.sources import Arrays
from common.errors import DamagedError, UserError
from common.recipes.spec import Recipe, Schedule
from common.recipes.zoo import get_recipe
from common.runs import plots
from common.runs.files import write_json
from common.runs.folder import RunFolder, changed, open_or_create
from common.runs.journal import Journal
from common.runs.manifest import write_manifest
from common.weights import exchange
from common.weights.network import about
from parity_tests.material import narrow
from torch_impl import weights
from torch_impl.model import build

DIGITS = get_recipe("digits")
NAMES = tuple("0123456789")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has begun, with two rows."""
    found = RunFolder.create(tmp_path / "run", DIGITS)
    train, test = load_dataset("digits")
    write_manifest(found, "torch", "cpu", ARCHS["alexnet_cifar"], NAMES, None, {"train": train, "test": test})
    found.log(step=23, epoch=1, split="train", loss=1.0, accuracy=0.5)
    found.log(step=23, epoch=1, split="test", loss=1.0, accuracy=0.5)
    return found


def resume(run: RunFolder) -> None:
    with open_or_create(run.path, run.recipe, "torch", resume=True):
        pass


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("framework", None),
        ("device", None),
        ("batches_sha256", []),
        ("init_from", {"path": 5}),
        ("init_from", "weights"),
        ("class_names", {}),
        ("arch", {}),
    ],
)
def test_a_manifest_is_checked_before_an_epoch_is_trained(field: str, value: Any, run: RunFolder) -> None:
    resume(run)
    write_json(run.path / "manifest.json", run.manifest | {field: value})
    with pytest.raises(UserError, match=rf"manifest\.json.*(?i:{field})"):
        resume(run)


@pytest.mark.parametrize(
    "row", [{"step": 1, "epoch": 1, "split": "test"}, {"step": 1, "epoch": "1", "split": "train"}, 5, {"step": None}]
)
def test_rows_have_fields_of_their_types(row: Any, run: RunFolder) -> None:
    assert len(run.metrics()) == 2
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3 is no row of metrics: it lacks a proper \w+"):
        run.rewind(1, [])


def test_metrics_that_are_a_folder(run: RunFolder) -> None:
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"Cannot read .*metrics\.jsonl: Is a directory"):
        run.rewind(1, [])


def test_what_cannot_be_deleted_is_named(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (run.path / "metrics.jsonl.part").touch()
    for number in (1, 2, 3):
        (run.path / "checkpoints" / f"epoch_000{number}.pt").touch()
    monkeypatch.setattr("common.runs.folder.remove", refuse)
    monkeypatch.setattr("common.runs.journal.remove", refuse)
    with pytest.raises(UserError, match=r"Cannot write .*metrics\.jsonl\.part: Read-only file system"):
        run.clear_parts()
    with pytest.raises(UserError, match=r"Cannot write .*epoch_0001\.pt: Read-only file system"):
        Journal(run, "torch", ARCHS["alexnet_cifar"], 23, 10, keep=1).prune()


def test_a_resumed_run_needs_the_same_data(run: RunFolder) -> None:
    train, test = load_dataset("digits")
    others = Arrays(*vars(test.source).values())
    others = replace(others, labels=(others.labels + 1) % 10)

    def again(names: tuple[str, ...] = NAMES, **data: Any) -> None:
        write_manifest(run, "torch", "cpu", ARCHS["alexnet_cifar"], names, None, {"train": train, "test": test} | data)

    again()
    assert about(run).splits == {"train": train.fingerprint(), "test": test.fingerprint()}
    assert about(run).stored == train.image == (8, 8, 1)
    with pytest.raises(UserError, match="began with 1437 train images, and there are 1000 now: a resumed run needs"):
        again(train=replace(train, ids=train.ids[:1000]))
    with pytest.raises(UserError, match=r"began with 360 test images, but not the same ones \(other names or labels\)"):
        again(test=replace(test, source=others))
    assert isinstance(test.source, Arrays)
    retouched = replace(test.source, images=255 - test.source.images)
    with pytest.raises(UserError, match=r"began with 360 test images, but not the same ones \(other pixels\)"):
        again(test=replace(test, source=retouched))
    with pytest.raises(UserError, match="began with the classes 0, 1, 2, 3, 4, and there are 1, 0, 2, 3, 4 now"):
        again(("1", "0", *NAMES[2:]))
    manifest = run.manifest
    write_json(run.path / "manifest.json", manifest | {"data": manifest["data"] | {"val": manifest["data"]["test"]}})
    with pytest.raises(UserError, match="began with a val split, which is not there now: a resumed run needs"):
        again()
    del manifest["data"]  # as older versions wrote it
    write_json(run.path / "manifest.json", manifest)
    again(train=replace(train, ids=train.ids[:1000]))


def test_a_folder_may_move_but_no_other_data_become_one() -> None:
    digits, here, there = (replace(DIGITS, dataset=name) for name in ("digits", "folder:a", "folder:b"))
    assert changed(here, there) is None
    assert changed(digits, here) == ("dataset", "digits", "folder:a")
    assert changed(here, digits) == ("dataset", "folder:a", "digits")


def test_a_resumed_run_may_have_more_epochs_and_nothing_else() -> None:
    """Every field of a recipe that has another value is named, those of its parts too."""
    assert changed(DIGITS, replace(DIGITS, epochs=DIGITS.epochs + 1)) is None
    for name, old in to_dict(DIGITS).items():
        if isinstance(old, dict):
            part, before = next(iter(old)), getattr(DIGITS, name)
            other: Any = replace(DIGITS, **{name: replace(before, **{part: "other"})})
            assert changed(DIGITS, other) == (f"{name}.{part}", old[part], "other")
        elif name != "epochs":
            other = replace(DIGITS, **{name: "other"})  # type: ignore[arg-type]
            assert changed(DIGITS, other) == (name, old, "other")


@pytest.mark.parametrize("epochs", [7, 8, 9])
def test_a_cosine_over_other_epochs_is_another_one(epochs: int, tmp_path: Path) -> None:
    """What a rate has been was of so many epochs, of fewer as of more."""
    recipe = replace(DIGITS, epochs=8, schedule=Schedule("cosine"))
    run = RunFolder.create(tmp_path / "run", recipe)
    refused = pytest.raises(UserError, match=r"a resumed run (keeps its epochs|cannot)")
    with (
        nullcontext() if epochs == 8 else refused,
        open_or_create(run.path, replace(recipe, epochs=epochs), "torch", resume=True),
    ):
        pass


def test_other_files_in_a_folder_are_other_data(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    before = load_dataset(f"folder:{tmp_path}")[0].fingerprint()
    assert load_dataset(f"folder:{tmp_path}")[0].fingerprint() == before
    (tmp_path / "a/2.png").rename(tmp_path / "a/3.png")
    assert load_dataset(f"folder:{tmp_path}")[0].fingerprint() != before


def test_checkpoints_have_an_order_beyond_four_digits(run: RunFolder) -> None:
    names = ["epoch_9999.pt", "epoch_9999_step_00000007.pt", "epoch_9999_step_100000000.pt", "epoch_10000.pt"]
    for name in reversed(names):
        (run.path / "checkpoints" / name).touch()
    assert [path.name for path in run.checkpoints("torch")] == names


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["y" * 200] * 30)])
def test_a_name_that_is_too_long(name: str, tmp_path: Path) -> None:
    for resumed, said in ((False, "Cannot make the run folder .*: File name too long"), (True, "nothing to resume")):
        with (
            pytest.raises(UserError, match=said),
            open_or_create(tmp_path / name, DIGITS, "torch", resume=resumed),
        ):
            pass


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="Cannot make the run folder"):
        RunFolder.create(tmp_path / "loop", DIGITS)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_a_folder_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(UserError, match="is not UTF-8"), open_or_create(path, DIGITS, "flax", resume=False):
        raise AssertionError
    assert list(tmp_path.iterdir()) == []


def test_nobodys_home() -> None:
    with pytest.raises(UserError, match=r"The dataset 'folder:~nobody-has-this-name/x' is not there"):
        load_dataset("folder:~nobody-has-this-name/x")


def test_a_name_with_dollars_is_drawn(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", replace(DIGITS, name=r"$\frac{$"))
    write_manifest(run, "torch", "cpu", ARCHS["alexnet_cifar"], NAMES)
    run.log(step=23, epoch=1, split="test", loss=1.0, accuracy=0.5)
    assert plots.curves(run).stat().st_size > 1000


@pytest.mark.parametrize(
    ("field", "value"), [("epochs", True), ("epochs", "2"), ("epochs", 2.0), ("dataset", 5), ("val_fraction", "0.1")]
)
def test_a_recipe_takes_values_of_its_types_alone(field: str, value: Any) -> None:
    fields = to_dict(DIGITS)
    assert from_dict(fields | {"val_fraction": 0}, Recipe, "here") == DIGITS
    with pytest.raises(UserError, match=rf"here does not describe a Recipe: .*Recipe\.{field}"):
        from_dict(fields | {field: value}, Recipe, "here")


class TestTorchFiles:
    """A whole .pt file of other content than a run's."""

    def test_compressed(self, tmp_path: Path) -> None:
        """A few MB could unfold to many GB."""
        torch.save({"model": {}}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
        ):
            for entry in plain.namelist():
                small.writestr(entry, plain.read(entry))
        with pytest.raises(DamagedError, match=r"small\.pt is no checkpoint: .* in it is compressed"):
            torch_impl.checkpoint.load_model(tmp_path / "small.pt", ARCHS["lenet"])

    @pytest.mark.parametrize("model", [{}, {"conv1.conv.weight": 3}, {3: torch.ones(2)}])
    def test_no_model(self, model: Any, tmp_path: Path) -> None:
        torch.save({"model": model}, tmp_path / "odd.pt")
        with pytest.raises(UserError, match=r"odd\.pt is not a checkpoint of lenet"):
            torch_impl.checkpoint.load_model(tmp_path / "odd.pt", ARCHS["lenet"])


class TestImages:
    """What a name ending in .jpg can hide."""

    def test_a_program_is_not_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pillow has Ghostscript run an EPS file, whatever its name ends in."""
        ran: list[Any] = []
        monkeypatch.setattr(subprocess, "check_call", lambda *arguments, **options: ran.append(arguments))
        monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: ran.append(arguments))
        file = tmp_path / "image.jpg"
        file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n")
        with Image.open(file) as image:
            assert image.format == "EPS"
        with pytest.raises(UserError, match="it is not an image of a known format"):
            open_image(file)
        assert not ran

    def test_a_strip_does_not_unfold(self, tmp_path: Path) -> None:
        """126 bytes, whose shorter side of one pixel would be resized to 256."""
        Image.new("RGB", (1, 12_000)).save(tmp_path / "strip.png")
        with (
            pytest.raises(UserError, match=r"strip\.png: it is so narrow that it would become 256x3072000 pixels"),
            opened(tmp_path / "strip.png") as image,
        ):
            central_square(image, 256)


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    arch = replace(narrow(ARCHS["lenet"].adapt(classes=3)), name="tiny")
    files = [tmp_path / f"{number}.safetensors" for number in range(12)]
    for file in files:
        weights.save(file, build(arch), arch, 7, class_names=("ä", '"', "\n\x7f "), preprocess=DIGITS.preprocess)
    headers = set()
    for file in files:
        size = int.from_bytes(file.read_bytes()[:8], "little")
        headers.add(file.read_bytes()[8 : 8 + size])
    assert len(headers) == 1
    assert json.loads(exchange.read(files[0])[1]["class_names"]) == ["ä", '"', "\n\x7f "]


def test_processes_end_with_their_launcher() -> None:
    words = [sys.executable, "-m", "common.commands.launch", "--processes", "2", "--"]
    launcher = subprocess.Popen([*words, "timeit", "-n", "1", "-r", "1", "import time; time.sleep(300)"])

    def wait_for(found: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not found() and time.monotonic() < until:
            time.sleep(0.05)
        assert found()

    wait_for(lambda: len(psutil.Process(launcher.pid).children()) == 2)
    family = psutil.Process(launcher.pid).children()
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
