"""Rows of a run in TensorBoard's event files and in Weights & Biases, in both frameworks, after kills too."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from math import isclose
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from common.commands.train import run_train
from common.config import read_json
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.zoo import get_recipe
from common.runs.folder import RunFolder
from common.runs.journal import EpochRecord
from common.runs.logs import numbers, sending
from parity_tests.results import ROOT
from parity_tests.tests.training.test_runs import FAST, TRAIN, both, quick, refused_training, train

__all__ = ["quick"]  # a fixture of this module too

# As the real one refuses them, steps must not go back; a run of the same identity takes the place of the one before.
FAKE = """
import json, pathlib

class Error(Exception):
    pass

def login():
    raise Error("No API key configured. Use `wandb login` to log in.")

class Settings(dict):
    def __init__(self, **given):
        super().__init__(given)

class Book:
    def __init__(self, given):
        self.file, self.given, self.rows, self.step = pathlib.Path(given["dir"], "wandb", given["id"]), given, {}, 0

    def log(self, row, step):
        assert step >= self.step, "steps go back"
        self.step = step
        self.rows.setdefault(step, {}).update(row)

    def finish(self):
        self.file.write_text(json.dumps({"given": self.given, "rows": self.rows}, default=str))

def init(**given):
    return Book(given)
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name which writes down what it is told."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "wandb.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def events(folder: Path) -> Iterator[Event]:
    """What TensorBoard would read of all event files of a folder: records of length, checksum, bytes, checksum."""
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length


def series(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Each curve's steps and values, as they stand in the files."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(run / "tensorboard"):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def in_rows(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same of metrics.jsonl."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in RunFolder(run).metrics():
        for name, value in numbers(row).items():
            found.setdefault(name, []).append((row["step"], value))
    return found


def assert_same(ours: dict[str, list[tuple[int, float]]], theirs: dict[str, list[tuple[int, float]]]) -> None:
    assert ours.keys() == theirs.keys()
    for name, points in ours.items():
        assert [step for step, _ in points] == [step for step, _ in theirs[name]], name
        pairs = zip(points, theirs[name], strict=True)
        assert all(isclose(one, other, rel_tol=1e-6) for (_, one), (_, other) in pairs), name  # of float32


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends before this step, in the middle of an epoch and without a checkpoint of it."""
    add = EpochRecord.__call__

    def fall(record: EpochRecord, *what: Any) -> None:
        if record.step == step:
            raise UserError("The power is gone.")
        add(record, *what)

    monkeypatch.setattr(EpochRecord, "__call__", fall)


@both
def test_a_resumed_run_has_each_step_once(
    framework: Framework, wandb: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both logs, as in metrics.jsonl: the rows after the last checkpoint are taken back and come again."""
    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_at(35, patch)
        with pytest.raises(SystemExit):
            train(framework, path, "--log", "tensorboard", "wandb", "--log-every", 4)
    assert_same(series(path), in_rows(path))
    assert max(step for step, _ in series(path)["loss/train"]) > 23  # beyond the checkpoint after the first epoch
    [identity] = (path / "wandb").iterdir()
    run_train(TRAIN[framework].fit, ["--resume", str(path)])  # whose options say where its rows go
    ours = series(path)
    assert_same(ours, in_rows(path))
    assert {"loss", "accuracy", "lr", "seconds", "images_per_second"} == {
        name.removesuffix("/train") for name in ours if name.endswith("/train")
    }
    assert [step for step, _ in ours["accuracy/test"]] == [23, 46]
    assert all(count == 1 for points in ours.values() for count in Counter(step for step, _ in points).values())
    [again] = (path / "wandb").iterdir()
    assert again.name == identity.name
    rows = json.loads(again.read_text())["rows"]
    assert_same(
        {name: [(int(step), row[name]) for step, row in rows.items() if name in row] for name in ours}, in_rows(path)
    )


@both
def test_the_recipe_is_there(framework: Framework, wandb: None, tmp_path: Path) -> None:
    """As hyperparameters: in TensorBoard's form, beside the names of what it is judged by, and in wandb's."""
    path = tmp_path / "run"
    words = ("--log", "tensorboard", "wandb", "--epochs", 1, "--optimizer.lr", 2e-3)
    train(framework, path, *words)
    told = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for event in events(path / "tensorboard")
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    [start] = [data.session_start_info.hparams for data in told if data.HasField("session_start_info")]
    assert start["optimizer.lr"].number_value == 2e-3
    assert start["arch"].string_value == "lenet"
    assert start["framework"].string_value == framework
    [about] = [data.experiment for data in told if data.HasField("experiment")]
    assert {info.name.tag for info in about.metric_infos} == {"accuracy/test", "loss/test"} < series(path).keys()
    [book] = (path / "wandb").iterdir()
    given = json.loads(book.read_text())["given"]
    assert given["config"]["optimizer.lr"] == 2e-3
    assert given["config"]["framework"] == framework
    assert given["config"].keys() == start.keys()
    assert (given["mode"], given["name"]) == ("offline", "run")


@both
@pytest.mark.parametrize("log", ["tensorboard", "wandb"])
def test_a_package_that_is_not_there_is_named(
    framework: Framework,
    log: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one sentence with the command that installs it, before anything is made."""
    package = {"tensorboard": "tensorboardX", "wandb": "wandb"}[log]
    monkeypatch.setitem(sys.modules, package, None)
    said = refused_training(framework, capsys, *FAST, "--out", tmp_path / "run", "--log", log)
    assert said.startswith(f"error: --log {log} needs {package}, which is not installed: ")
    assert said.endswith(f" -m pip install -c requirements.lock -e '.[{log}]'\n")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_broken_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("import nonesuch\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    said = refused_training("torch", capsys, *FAST, "--out", tmp_path / "run", "--log", "wandb")
    assert "needs wandb, which cannot be imported (No module named 'nonesuch'): " in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("online", "error: --log wandb with WANDB_MODE=online: No API key configured. Use `wandb login` to log in.\n"),
        ("onlin", "error: There is no WANDB_MODE 'onlin'. Did you mean 'online'? Known: disabled, offline, online.\n"),
    ],
)
def test_wandb_lets_the_user_in_before_a_run_is_made(
    mode: str,
    sentence: str,
    wandb: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    assert refused_training("torch", capsys, *FAST, "--out", tmp_path / "run", "--log", "wandb") == sentence
    assert not (tmp_path / "run").exists()


def test_a_run_takes_up_a_log(tmp_path: Path) -> None:
    """When it goes on, with what it had before; and leaves it again."""
    path = tmp_path / "run"
    train("torch", path, "--epochs", 1)
    assert not (path / "tensorboard").exists()
    run_train(TRAIN["torch"].fit, ["--resume", str(path), "--epochs", "2", "--log", "tensorboard"])
    assert_same(series(path), in_rows(path))
    assert read_json(path / "options.json")["log"] == ["tensorboard"]
    before = sorted(path.glob("tensorboard/*"))
    run_train(TRAIN["torch"].fit, ["--resume", str(path), "--epochs", "3", "--log"])
    assert sorted(path.glob("tensorboard/*")) == before
    assert read_json(path / "options.json")["log"] == []


def test_rows_of_before_have_the_times_at_which_they_were_measured(tmp_path: Path) -> None:
    """As far as the rows say: each so much earlier than now as those after it took."""
    run, now = RunFolder.create(tmp_path / "run", get_recipe("digits")), time.time()
    for step, seconds in enumerate((100.0, 200.0, None, 400.0), 1):
        more = {} if seconds is None else {"seconds": seconds}
        run.log(step=step, epoch=1, split="test" if seconds is None else "train", accuracy=0.5, **more)
    with sending(["tensorboard"], run, "torch") as send:
        send({"step": 5, "epoch": 1, "split": "train", "accuracy": 0.75}, now + 1000)
    times = {
        event.step: event.wall_time - now
        for event in events(run.path / "tensorboard")
        if any(value.tag.startswith("accuracy/") and value.simple_value for value in event.summary.value)
    }
    assert times == pytest.approx({1: -600, 2: -400, 3: -400, 4: 0, 5: 1000}, abs=30)


def test_no_framework_is_needed_to_write_events() -> None:
    """Nor is TensorFlow; the package itself would import PyTorch, into Flax's process too."""
    code = "import sys; from common.runs.logs import check_logs; check_logs(['tensorboard']);"
    code += "print({'torch', 'tensorflow', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
