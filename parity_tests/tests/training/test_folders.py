"""Runs on people's own folders of pictures, from the command line, in both frameworks."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import flax_impl.evaluate
import flax_impl.train
import torch_impl.evaluate
import torch_impl.train
from common.commands.evaluate import run_evaluate
from common.commands.train import run_train
from common.frameworks import Framework
from common.runs.folder import RunFolder

TRAIN: dict[str, ModuleType] = {"torch": torch_impl.train, "flax": flax_impl.train}
EVALUATE: dict[str, ModuleType] = {"torch": torch_impl.evaluate, "flax": flax_impl.evaluate}
FAST = ("digits", "--arch", "lenet", "--preprocess.resize", "16", "--device", "cpu", "--batch-size", "8")
both = pytest.mark.parametrize("framework", ["torch", "flax"])


class Ended(NamedTuple):
    """A command: its exit code and what it printed."""

    code: int
    out: str
    err: str


def command(run: Callable[..., Any], *words: object) -> Ended:
    code = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            run([str(word) for word in words])
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert "Traceback" not in err.getvalue()
    return Ended(code, out.getvalue(), err.getvalue())


def train(framework: Framework, data: Path, out: Path, *words: object) -> Ended:
    every = (*FAST, "--dataset", f"folder:{data}", "--out", out, *words)
    return command(lambda arguments: run_train(TRAIN[framework].fit, arguments), *every)


def evaluate(framework: Framework, *words: object) -> Ended:
    side = EVALUATE[framework]
    return command(lambda given: run_evaluate(framework, side.evaluate_network, side.class_names, given), *words)


def rows(run: Path) -> list[dict[str, Any]]:
    dropped = ("seconds", "images/s")
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in dropped} for line in lines]


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def fill(root: Path, count: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(("ants", "bees")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 90, (20, 24, 3), np.uint8)
            pixels[..., label] += 140
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@both
def test_a_validation_folder_chooses_the_epoch(framework: Framework, tmp_path: Path) -> None:
    """Its labels are wrong way round, so that the epoch that fits the training images worst is the best on it."""
    for name, count in (("train", 10), ("val", 4), ("test", 6)):
        fill(tmp_path / "data" / name, count, count)
    val = tmp_path / "data" / "val"
    (val / "ants").rename(val / "x")
    (val / "bees").rename(val / "ants")
    (val / "x").rename(val / "bees")
    run = tmp_path / "run"
    done = train(framework, tmp_path / "data", run, "--epochs", 3, "--optimizer.lr", "0.003")
    assert (done.code, done.err) == (0, "")
    assert "20 training, 12 test and 8 val images, 2 classes" in done.out
    for name, count in (("train", 20), ("val", 8), ("test", 12)):
        assert f"  {name}: {count} from {tmp_path}/data/{name}\n" in done.out
    scored = [row["accuracy"] for row in rows(run) if row["split"] == "val"]
    best = 1 + scored.index(max(scored))
    assert best < 3
    assert f"after epoch {best}, the best on the validation split (" in done.out
    assert manifest(run)["data"]["val"]["examples"] == 8
    scores = evaluate(framework, run / "model.safetensors", "--split", "val", "--device", "cpu")
    assert f"val: 8 from {tmp_path}/data/val\n" in scores.out
    assert f"accuracy {100 * max(scored):.1f} % " in scores.out


@both
def test_a_class_on_one_side_alone_leaves_nothing(framework: Framework, tmp_path: Path) -> None:
    done = train(framework, fill(tmp_path / "data", 1), tmp_path / "run", "--epochs", 1)
    assert done.code == 2
    assert done.err.startswith(f"error: There is no image of ants, bees in the train split of folder:{tmp_path}/data")
    assert not (tmp_path / "run").exists()


@both
def test_data_may_move_but_not_change(framework: Framework, tmp_path: Path) -> None:
    """A run goes on with its data elsewhere, to the same numbers; other data is refused and changes nothing."""
    data, other, run = fill(tmp_path / "data", 10), tmp_path / "elsewhere" / "copy", tmp_path / "run"
    whole = train(framework, data, tmp_path / "whole", "--epochs", 2)
    assert whole.code == train(framework, data, run, "--epochs", 1).code == 0
    shutil.copytree(data, other)
    shutil.rmtree(data)
    (other / "ants" / "03.png").rename(other / "ants" / "3.png")
    kept = (run / "recipe.json").read_bytes()
    refused = train(framework, other, run, "--epochs", 2, "--resume")
    assert refused.code == 2
    assert "began with 16 train images, but not the same ones (other names or labels); 4 test" in refused.err
    assert (run / "recipe.json").read_bytes() == kept
    (other / "ants" / "3.png").rename(other / "ants" / "03.png")
    picture = (other / "ants" / "03.png").read_bytes()
    Image.new("RGB", (90, 90)).save(other / "ants" / "03.png")
    refused = train(framework, other, run, "--epochs", 2, "--resume")
    assert refused.code == 2
    assert "not the same ones (other files under the same names)" in refused.err
    (other / "ants" / "03.png").write_bytes(picture)
    resumed = train(framework, other, run, "--epochs", 2, "--resume")
    assert resumed.code == 0, resumed.err
    assert RunFolder(run).recipe.dataset == f"folder:{other}"
    assert rows(run) == rows(tmp_path / "whole")
    assert manifest(run)["batches_sha256"] == manifest(tmp_path / "whole")["batches_sha256"]
    digits = command(
        lambda given: run_train(TRAIN[framework].fit, given),
        *FAST,
        "--dataset",
        "digits",
        "--out",
        run,
        "--resume",
        "--epochs",
        2,
    )
    assert digits.code == 2
    assert "ran with dataset = " in digits.err


@both
def test_bad_pictures_are_found_before_the_first_step(framework: Framework, tmp_path: Path) -> None:
    """Named together; skipped where that is allowed; and skipped by all that follows, whatever becomes of the files."""
    data, run = fill(tmp_path / "data", 10), tmp_path / "run"
    bad = [data / "ants" / "03.png", data / "bees" / "05.png"]
    for file in bad:
        file.write_bytes(b"nothing")
    for words in (["--check-data"], ["--skip-bad", "1"]):
        done = train(framework, data, run, "--epochs", 1, *words)
        assert done.code == 2
        assert f"error: 2 of 20 images of folder:{data} cannot be read: ants/03.png (" in done.err
        assert "or say --skip-bad 2" in done.err
        assert not run.exists()
    done = train(framework, data, run, "--epochs", 1, "--skip-bad", 2)
    assert done.code == 0, done.err
    assert "14 training, 4 test images" in done.out
    assert "skipped as bad: 2 (ants/03.png, bees/05.png)" in done.out
    assert manifest(run)["skipped"] == ["ants/03.png", "bees/05.png"]
    shutil.copy(data / "ants" / "04.png", bad[0])  # mended
    bad[1].unlink()
    resumed = train(framework, data, run, "--epochs", 2, "--resume")
    assert resumed.code == 0, resumed.err
    assert "14 training, 4 test images" in resumed.out
    scores = evaluate(framework, run, "--device", "cpu")
    assert f"test: 4 from a fifth of each class in {data}\n" in scores.out
    share = next(row["accuracy"] for row in rows(run) if row["split"] == "test")
    assert f"accuracy {100 * share:.1f} % " in scores.out


@both
def test_the_advice_about_a_bad_picture_can_be_followed(framework: Framework, tmp_path: Path) -> None:
    """A picture goes bad between two epochs: another in its place resumes the run."""
    data, run = fill(tmp_path / "data", 10), tmp_path / "run"
    assert train(framework, data, run, "--epochs", 1).code == 0
    bad = data / "ants" / "03.png"
    bad.write_bytes(b"nothing")
    words = ("--epochs", 2, "--resume")
    for more in ((), ("--check-data",), ("--check-data", "--skip-bad", 3)):
        done = train(framework, data, run, *words, *more)
        assert done.code == 2
        assert "under " in done.err
        assert "03.png" in done.err
        assert "remove" not in done.err
    shutil.copy(data / "ants" / "04.png", bad)
    assert train(framework, data, run, *words).code == 0
