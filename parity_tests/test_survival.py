"""Runs that are killed, stopped or meet a fault: they go on bit for bit, and nothing that was there is lost."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import common.files
from common import cli, exchange
from common.arch import ARCHS
from common.run import Framework, RunFolder
from parity_tests.material import narrow
from parity_tests.test_runs import TRAIN, both, quick, reproducible

__all__ = ["quick"]  # a fixture of this module too

EPOCHS, STEPS = 2, 6  # 1,437 digits in batches of 256
AUGMENTED = "--preprocess.pad 1 --preprocess.crop 8 --preprocess.flip --preprocess.resize 32 --mix.mixup 0.2"
WORDS = [
    "digits",
    "--arch",
    "tiny",
    "--batch-size",
    "256",
    "--device",
    "cpu",
    "--epochs",
    str(EPOCHS),
    *AUGMENTED.split(),
]
EVERY = ("--checkpoint-every", 2, "--log-every", 3)
SUFFIX = {"torch": ".pt", "flax": ".orbax"}


class Killed(BaseException):
    """What a test raises where SIGKILL shall hit."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow `alexnet_cifar`, dropout included."""
    monkeypatch.setitem(ARCHS, "tiny", replace(narrow(ARCHS["alexnet_cifar"]), name="tiny"))


def train(framework: str, out: Path, *words: object) -> tuple[int, str]:
    """Exit code and everything that is printed."""
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(stdout):
        try:
            cli.train(TRAIN[framework].fit, [*WORDS, "--out", str(out), *map(str, words)])
        except SystemExit as end:
            return int(end.code or 0), stdout.getvalue()
    return 0, stdout.getvalue()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of each framework that nothing disturbs, with a checkpoint after each epoch alone."""
    folder = tmp_path_factory.mktemp("calm")

    def run(framework: str) -> Path:
        if not (folder / framework).exists():
            assert train(framework, folder / framework, "--log-every", 3)[0] == 0
        return folder / framework

    return run


def assert_same_run(path: Path, other: Path) -> None:
    """The same rows, batches and weights, bit for bit."""
    rows, others = (RunFolder(each).metrics() for each in (path, other))
    assert reproducible(rows) == reproducible(others)
    hashes = [RunFolder(each).manifest["batches_sha256"] for each in (path, other)]
    assert hashes[0] == hashes[1]
    (ours, about), (theirs, about_theirs) = (exchange.read(each / "model.safetensors") for each in (path, other))
    assert about == about_theirs
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert not [part for part in path.rglob("*") if ".part" in part.name]


def stems(path: Path) -> list[str]:
    """The checkpoints of a run, without their suffix, oldest first."""
    return sorted(each.name.split(".")[0] for each in (path / "checkpoints").iterdir())


def kill(framework: Framework, out: Path, moment: str, *words: object) -> None:
    """Train until a moment: "before" or "after", what is done, and the name of the file that it is done to."""
    dead = False
    with pytest.MonkeyPatch.context() as patch:

        def arrive(now: str) -> None:
            nonlocal dead
            if now == moment:
                dead = True
                raise Killed

        def watch(owner: Any, name: str, deed: str) -> None:
            original = getattr(owner, name)

            def watched(*arguments: Any, **options: Any) -> Any:
                file = next((argument.name for argument in arguments if isinstance(argument, Path)), "")
                arrive(f"before {deed} {file}".rstrip())
                result = original(*arguments, **options)
                arrive(f"after {deed} {file}".rstrip())
                return result

            patch.setattr(owner, name, watched)

        watch(TRAIN[framework], "train_step", "step")
        watch(common.files, "flush", "flush")
        watch(Path, "replace", "rename")
        watch(Path, "rename", "rename")
        watch(RunFolder, "log", "row")
        clear = common.files._clear  # which the dead no longer call
        patch.setattr(common.files, "_clear", lambda part: None if dead else clear(part))
        with pytest.raises(Killed):
            train(framework, out, *words)


@both
def test_a_killed_run_goes_on_bit_for_bit(framework: Framework, calm: Callable[[str], Path], tmp_path: Path) -> None:
    """Between two files, in a step, while a checkpoint is written and before it has its name, and in an evaluation."""
    path, suffix = tmp_path / "run", SUFFIX[framework]
    kill(framework, path, "after rename run.part", *EVERY)
    assert not (path / "manifest.json").exists()
    for moment in (
        "before step",
        f"before flush epoch_0000_step_00000002{suffix}.part",
        f"before rename epoch_0000_step_00000004{suffix}.part",
        f"after rename epoch_0000_step_00000004{suffix}.part",
        "before flush curves.png.part",
        f"before rename epoch_0001{suffix}.part",
        f"after rename epoch_0001_step_00000010{suffix}.part",
        "before flush model.safetensors.part",
    ):
        kill(framework, path, moment, *EVERY, "--resume")
    code, said = train(framework, path, *EVERY, "--resume")
    assert code == 0, said
    assert "resuming after epoch 2" in said
    assert_same_run(path, calm(framework))
    assert stems(path) == [
        *("epoch_0000_step_00000002", "epoch_0000_step_00000004", "epoch_0001"),
        *("epoch_0001_step_00000008", "epoch_0001_step_00000010", "epoch_0002"),
    ]


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(
    framework: Framework,
    number: signal.Signals,
    calm: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = TRAIN[framework].train_step, iter(range(100))

    def signalled(*arguments: Any) -> Any:
        if next(calls) == 3:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(TRAIN[framework], "train_step", signalled)
    path = tmp_path / "run"
    code, said = train(framework, path)
    assert code == 128 + number
    file = path / "checkpoints" / f"epoch_0000_step_00000004{SUFFIX[framework]}"
    assert f"{number.name}: {file} is written; the same command with --resume --out RUN continues it" in said
    assert file.exists()
    monkeypatch.undo()
    monkeypatch.setitem(ARCHS, "tiny", replace(narrow(ARCHS["alexnet_cifar"]), name="tiny"))
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert (code, "resuming after step 4, in epoch 1" in said) == (0, True)
    assert reproducible(RunFolder(path).metrics())[1:] == reproducible(RunFolder(calm(framework)).metrics())[2:]


@both
@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_is_named_and_skipped(
    framework: Framework, how: str, calm: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(calm(framework), tmp_path / "run")
    (path / "model.safetensors").unlink()
    newest = path / "checkpoints" / f"epoch_0002{SUFFIX[framework]}"
    files = [file for file in (newest, *newest.rglob("*")) if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "missing" and framework == "flax":
        largest.unlink()
    else:
        largest.write_bytes({"truncated": content[: len(content) // 2], "altered": content, "missing": b""}[how])
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert code == 0, said
    assert f"warning: {newest} is damaged" in said
    assert f"It is skipped and kept as {newest.name}.damaged" in said
    assert "resuming after epoch 1" in said
    assert_same_run(path, calm(framework))
