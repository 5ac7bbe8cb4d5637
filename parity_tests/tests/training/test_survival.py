"""Runs that are killed, stopped or meet a fault: they go on bit for bit, and nothing that was there is lost."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import integers
from safetensors.numpy import save_file

import common.runs.files
import common.runs.plots
from common.arch.spec import Arch
from common.arch.zoo import ARCHS, get_arch
from common.commands.train import run_train
from common.data.load import load_dataset
from common.data.photos import open_image
from common.data.pipeline import batches
from common.errors import DamagedError, UserError
from common.frameworks import FRAMEWORKS, Framework
from common.recipes.spec import Mix
from common.recipes.zoo import get_recipe
from common.runs.folder import RunFolder
from common.runs.journal import EpochRecord, Journal
from common.runs.progress import Progress
from common.runs.scores import Scores
from common.stopping import Stopped, stopping_at_once
from common.system import package_versions
from common.training import faults
from common.weights import exchange
from common.world import World
from flax_impl.state import init_state
from parity_tests.material import narrow
from parity_tests.results import ROOT
from parity_tests.tests.training.test_runs import ENGINE, TRAIN, both, quick, reproducible, snapshot
from stress import fuzz, soak

__all__ = ["quick"]  # a fixture of this module too

EPOCHS, STEPS = 2, 6  # 1,437 digits in batches of 256
WORDS = f"digits --arch tiny --batch-size 256 --device cpu --epochs {EPOCHS} {soak.AUGMENTED}".split()
EVERY = ("--checkpoint-every", 2, "--log-every", 3, "--keep", "all")
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
            run_train(TRAIN[framework].fit, [*WORDS, "--out", str(out), *map(str, words)])
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
    """The same rows, batches and weights, bit for bit, and nothing half written."""
    assert soak.differences(path, other) == []
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
        watch(common.runs.files, "flush", "flush")
        watch(Path, "replace", "rename")
        watch(Path, "rename", "rename")
        watch(RunFolder, "log", "row")
        clear = common.runs.files._clear  # which the dead no longer call
        patch.setattr(common.runs.files, "_clear", lambda part: None if dead else clear(part))
        with pytest.raises(Killed):
            train(framework, out, *words)


@both
def test_a_killed_run_goes_on_bit_for_bit(framework: Framework, calm: Callable[[str], Path], tmp_path: Path) -> None:
    """Between two files, while a checkpoint is written, before it has its name and after, and at the very end."""
    path, suffix = tmp_path / "run", FRAMEWORKS[framework].suffix
    kill(framework, path, "after rename run.part", *EVERY)
    assert not (path / "manifest.json").exists()
    for moment in (
        f"before flush epoch_0000_step_00000002{suffix}.part",
        f"after rename epoch_0000_step_00000004{suffix}.part",
        f"before rename epoch_0001{suffix}.part",
        "before flush model.safetensors.part",
    ):
        kill(framework, path, moment, *EVERY, "--resume")
    code, said = train(framework, path, *EVERY, "--resume")
    assert code == 0, said
    assert "resuming after epoch 2, the last: it is evaluated once more" in said
    assert_same_run(path, calm(framework))
    assert stems(path) == [
        *("epoch_0000_step_00000002", "epoch_0000_step_00000004", "epoch_0001"),
        *("epoch_0001_step_00000008", "epoch_0001_step_00000010", "epoch_0002"),
    ]


# Which signals end a run is the driver's, the same for both; what a framework leaves then is seen with one of them.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ENDINGS = [
    pytest.param(framework, number, marks=pytest.mark.full if framework == "flax" and number != SIGNALS[1] else ())
    for framework in FRAMEWORKS
    for number in SIGNALS
]


@pytest.mark.parametrize(("framework", "number"), ENDINGS)
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
    file = path / "checkpoints" / f"epoch_0000_step_00000004{FRAMEWORKS[framework].suffix}"
    command = f"{sys.orig_argv[0]} -m {framework}_impl.train --resume {path}"
    assert f"{number.name}: {file} is written; {command} continues it" in said
    assert file.exists()
    monkeypatch.undo()
    monkeypatch.setitem(ARCHS, "tiny", replace(narrow(ARCHS["alexnet_cifar"]), name="tiny"))
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert (code, "resuming after step 4, in epoch 1" in said) == (0, True)
    assert reproducible(RunFolder(path).metrics())[1:] == reproducible(RunFolder(calm(framework)).metrics())[2:]


@both
def test_a_signal_in_an_evaluation(
    framework: Framework, calm: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is finished and kept; nothing more is printed, for there may be no terminal any more."""
    original, path = ENGINE[framework].evaluate, tmp_path / "run"

    def signalled(*arguments: Any, **options: Any) -> Scores:
        os.kill(os.getpid(), signal.SIGHUP)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ENGINE[framework], "evaluate", signalled)
        code, said = train(framework, path, "--log-every", 3)
    assert (code, "epoch 1/2" in said) == (128 + signal.SIGHUP, False)
    assert f"SIGHUP: {path}/checkpoints/epoch_0001{FRAMEWORKS[framework].suffix} is written; " in said
    assert RunFolder(path).metrics()[-1]["split"] == "test"
    assert train(framework, path, "--resume", "--log-every", 3)[0] == 0
    assert_same_run(path, calm(framework))


class Closed(io.StringIO):
    """What an epoch's line cannot be printed to."""

    def write(self, text: str) -> int:
        if text.startswith("epoch "):
            raise BrokenPipeError
        return super().write(text)


@both
def test_a_trained_epoch_is_kept(
    framework: Framework, calm: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evaluation fails, then the line about it; resumed, it is evaluated first, and the run ends as any other."""

    def unreadable(*arguments: Any) -> Scores:
        raise UserError("Cannot read the image 7.png.")

    path = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(ENGINE[framework], "evaluate", unreadable)
        assert train(framework, path, "--log-every", 3)[0] == 2
    assert stems(path) == ["epoch_0001"]
    assert {row["split"] for row in RunFolder(path).metrics()} == {"train"}
    with redirect_stdout(Closed()), pytest.raises(BrokenPipeError):
        run_train(TRAIN[framework].fit, [*WORDS, "--out", str(path), "--log-every", "3", "--resume"])
    assert RunFolder(path).metrics()[-1]["split"] == "test"
    with monkeypatch.context() as patch:
        patch.setattr(common.runs.plots, "curves", unreadable)
        code, said = train(framework, path, "--log-every", 3, "--resume")
    assert code == 0, said
    assert "resuming after epoch 1" in said
    assert said.count(f"warning: {path}/curves.png is not drawn: Cannot read the image 7.png\n") == EPOCHS
    assert_same_run(path, calm(framework))


def command(*lines: str, before: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    """A program of its own that these lines make a command of; `before` runs it."""
    program = "\n ".join(("def run():", *lines)) + "\nfrom common.commands.shell import guard\nguard(run)"
    words, streams = [*before, sys.executable, "-c", program], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run(words, text=True, check=False, cwd=ROOT, **(streams | options))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("print('x', flush=True)", 128 + signal.SIGPIPE),
        ("print('x')", 128 + signal.SIGPIPE),
        ("print('x'); raise SystemExit", 128 + signal.SIGPIPE),
        ("print('x'); raise SystemExit(3)", 3),
    ],
)
def test_a_closed_pipe_ends_a_command_quietly(line: str, code: int) -> None:
    """`... | head` goes before all is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        done = command(line, stdout=nobody, env=os.environ | {"PYTHONUNBUFFERED": ""})
    assert (done.returncode, done.stderr) == (code, "")


def test_a_full_disk_behind_what_is_printed() -> None:
    with Path("/dev/full").open("w") as full:
        done = command("print('x', flush=True)", stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: Cannot print: No space left on device.\n")


def test_a_fault_of_another_pipe_is_shown() -> None:
    done = command("raise BrokenPipeError('of another one')")
    assert (done.returncode, "of another one" in done.stderr) == (1, True)


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    done = command(r"print('\u7279\udcff')", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "\\u7279\\udcff\n")


def test_a_notebooks_backend_is_not_needed() -> None:
    done = command("import matplotlib", env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"})
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    shell = ("sh", "-c", f'cd {tmp_path}; rmdir {tmp_path}; exec "$0" "$@"')
    done = command("print('on')", before=shell, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: The folder that this command was started in is gone: start it in another one.\n"


def test_nohup_is_obeyed() -> None:
    done = command(
        "import os, signal",
        "os.kill(os.getpid(), signal.SIGHUP)",
        "print('on')",
        "os.kill(os.getpid(), signal.SIGUSR1)",
        before=("nohup",),
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGUSR1, "on\n")


@both
@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
def test_a_damaged_checkpoint_is_named_and_skipped(
    framework: Framework, how: str, calm: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(calm(framework), tmp_path / "run")
    (path / "model.safetensors").unlink()
    newest = path / "checkpoints" / f"epoch_0002{FRAMEWORKS[framework].suffix}"
    files = [file for file in (newest, *newest.rglob("*")) if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "missing" and framework == "flax":
        largest.unlink()
    else:
        largest.write_bytes(bytes({"truncated": content[: len(content) // 2], "altered": content, "missing": b""}[how]))
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert code == 0, said
    assert f"warning: {newest} is damaged" in said
    assert f"It is skipped and kept as {newest.name}.damaged" in said
    assert "resuming after epoch 1" in said
    assert_same_run(path, calm(framework))


@both
def test_a_newest_checkpoint_of_the_wrong_kind_is_skipped(
    framework: Framework, calm: Callable[[str], Path], tmp_path: Path
) -> None:
    """A folder for a file, a file for a folder; and where one was set aside before, the name is not taken again."""
    path = shutil.copytree(calm(framework), tmp_path / "run")
    newest = path / "checkpoints" / f"epoch_0002{FRAMEWORKS[framework].suffix}"
    newest.rename(newest.with_name(f"{newest.name}.damaged"))
    if framework == "torch":
        newest.mkdir()
    else:
        newest.touch()
    kind = {"torch": "folder", "flax": "file"}[framework]
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert code == 0, said
    assert f"warning: {newest} is damaged: it is a {kind}." in said
    assert f"It is skipped and kept as {newest.name}.damaged-2" in said
    assert_same_run(path, calm(framework))


@both
def test_lost_rows_do_not_choose_another_epoch(
    framework: Framework, calm: Callable[[str], Path], tmp_path: Path
) -> None:
    """Evaluations come back from the checkpoint, and what else is lost is said."""
    path = shutil.copytree(calm(framework), tmp_path / "run")
    rows = RunFolder(path).metrics()
    (path / "metrics.jsonl").unlink()
    code, said = train(framework, path, "--resume", "--log-every", 3, "--epochs", EPOCHS + 1)
    assert code == 0, said
    assert f"warning: {path}/metrics.jsonl has lost training rows of epoch 1\n" in said
    assert RunFolder(path).metrics()[: len(rows) - 2] == [row for row in rows if row["epoch"] > 1 or "lr" not in row]


@both
def test_keep_prunes_all_but_the_newest_and_the_best(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, rights = ENGINE[framework].evaluate, iter((300, 80))

    def scored(*arguments: Any, **options: Any) -> Scores:
        return replace(original(*arguments, **options), top1=next(rights))

    monkeypatch.setattr(ENGINE[framework], "evaluate", scored)
    path = tmp_path / "run"
    code, said = train(framework, path, "--checkpoint-every", 2, "--keep", 2)
    assert code == 0, said
    assert stems(path) == ["epoch_0001", "epoch_0001_step_00000010", "epoch_0002"]


@pytest.mark.parametrize("option", ["--keep", "--checkpoint-every"])
def test_numbers_of_checkpoints_are_positive(option: str, tmp_path: Path) -> None:
    assert train("torch", tmp_path / "run", option, 0) == (2, f"error: {option} is 0; it must be at least 1.\n")


@both
def test_one_process_at_a_time_trains_in_a_folder(
    framework: Framework, calm: Callable[[str], Path], tmp_path: Path
) -> None:
    path = shutil.copytree(calm(framework), tmp_path / "run")
    before = snapshot(path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "locked\n"
    code, said = train(framework, path, "--resume")
    assert (code, said) == (2, f"error: Another process is training in {path}: wait until it ends, or end it.\n")
    assert snapshot(path) == before
    holder.kill()
    holder.communicate()
    assert train(framework, path, "--resume", "--log-every", 3)[0] == 0  # death has released it


HOLD = """
import sys, time
from pathlib import Path
from common.runs.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@both
def test_a_metrics_file_cut_in_a_line(framework: Framework, calm: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(calm(framework), tmp_path / "run")
    file = path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert code == 0, said
    assert f"note: the last line of {file} was cut off; it is dropped\n" in said
    assert_same_run(path, calm(framework))


@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.full)])
def test_not_a_number_names_step_layer_and_checkpoint(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate far too high; in the flow of a run no step waits for its loss."""
    path, suffix = tmp_path / "run", FRAMEWORKS[framework].suffix
    code, said = train(framework, path, "--optimizer.name", "sgd", "--optimizer.lr", 1e6, "--checkpoint-every", 1)
    assert code == 2
    checkpoints = stems(path)
    step = len(checkpoints) + 1
    last = path / "checkpoints" / f"{checkpoints[-1]}{suffix}" if checkpoints else "none: the run had none yet"
    assert re.search(
        f"error: At step {step}, in epoch 1, the (output|parameters) of (conv[1-5]|fc[678]) became NaN or infinite. "
        f"The last good checkpoint is {last}. Start again with a lower optimizer.lr",
        said,
    ), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("step", "last", "epoch", "checkpoint"),
    [
        (1, (0, 0, False), 1, None),
        (3, (2, 0, False), 1, "epoch_0000_step_00000002"),
        (4, (3, 0, True), 2, "epoch_0001"),
    ],
)
def test_a_faults_epoch_is_that_of_its_step(
    step: int, last: tuple[int, int, bool], epoch: int, checkpoint: str | None, tmp_path: Path
) -> None:
    """Of three steps an epoch: the third is of the first still; a checkpoint at an epoch's end goes by the epoch."""
    book = Journal(RunFolder.create(tmp_path / "run", get_recipe("digits")), "torch", ARCHS["lenet"], 3, 1)
    book.progress = replace(book.progress, step=last[0], epoch=last[1], finished=last[2])
    said = faults.not_finite(book, "fc6", step)
    named = book.run.path / "checkpoints" / f"{checkpoint}.pt" if checkpoint else "none: the run had none yet"
    assert said.startswith(f"At step {step}, in epoch {epoch}, fc6 became NaN or infinite. ")
    assert f"The last good checkpoint is {named}. " in said


@both
def test_the_layer_is_the_first_that_is_not_finite(framework: Framework, tmp_path: Path) -> None:
    """Weights of fc6 so large that its output overflows."""
    weights, _ = exchange.read(train_weights(tmp_path))
    weights["fc6.weight"] = np.full_like(weights["fc6.weight"], 3e38)
    exchange.write(tmp_path / "large.safetensors", weights, tiny_arch())
    code, said = train(framework, tmp_path / "run", "--init-from", tmp_path / "large.safetensors", "--log-every", 4)
    assert code == 2
    assert "error: At step 1, in epoch 1, the output of fc6 became NaN or infinite. " in said
    assert "The last good checkpoint is none: the run had none yet. " in said


@both
def test_out_of_memory_says_what_fits(framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds 100 examples."""
    original = TRAIN[framework].train_step

    def step(state: Any, inputs: Any, *rest: Any) -> Any:
        if len(inputs.images) > 100:
            if framework == "torch":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 20 bytes.")
        return original(state, inputs, *rest)

    monkeypatch.setattr(TRAIN[framework], "train_step", step)
    code, said = train(framework, tmp_path / "run")
    assert code == 2
    assert said.splitlines()[-1] == (
        "error: The device has not enough memory for batch_size 256 in float32. 64 at a time fit: --accumulate 4 gives "
        "the same run, --batch-size 64 another one. The last good checkpoint is none: the run had none yet."
    )


@pytest.mark.parametrize(
    ("name", "processes", "accumulates", "advice"),
    [
        ("alexnet_cifar", 1, True, "--accumulate 4 gives the same run, --batch-size 64 another one"),
        ("alexnet_cifar", 2, True, "--accumulate 4 gives the same run, --batch-size 64 another one"),
        (
            "alexnet_cifar_best",
            1,
            True,
            "--accumulate 4 and --batch-size 64 give other runs, for alexnet_cifar_best",
        ),
        (
            "alexnet_cifar_best",
            2,
            False,
            "more processes, each with its share of the batch, give the same run, ",
        ),
    ],
)
def test_what_takes_less_memory_is_not_called_the_same_run_where_it_is_another(
    name: str, processes: int, accumulates: bool, advice: str
) -> None:
    """Nor is advised what several processes refuse."""
    arch, world = get_arch(name), World(size=processes)
    said = faults._smaller(arch, world, 4, 64)
    assert said.startswith(advice)
    assert ("--accumulate" in said) == accumulates
    with nullcontext() if accumulates else pytest.raises(UserError, match="batch norm"):
        world.check(replace(get_recipe("cifar10"), accumulate=4), arch)


def test_what_is_tried_of_a_batch_is_a_training_steps(tmp_path: Path) -> None:
    """With all that is drawn for it: a flipped and mixed batch takes more memory than a plain one."""
    recipe = replace(get_recipe("digits"), batch_size=24, mix=Mix(mixup=0.2))
    recipe = replace(recipe, preprocess=replace(recipe.preprocess, flip=True))
    book = Journal(RunFolder.create(tmp_path / "run", recipe), "torch", ARCHS["lenet"], 60, 10)
    tried: list[Any] = []

    def attempt(batch: Any) -> None:
        tried.append(batch)
        if batch.count > 3:
            raise MemoryError

    train, _ = load_dataset("digits")
    said = faults.out_of_memory(book, train, attempt, lambda error: isinstance(error, MemoryError), World())
    assert "3 at a time fit: --accumulate 8 gives the same run" in said
    assert [batch.count for batch in tried] == [12, 6, 3]
    first = next(batches(train, recipe, 0, train=True))
    for batch in tried:
        assert batch.draws.keys() == first.draws.keys() >= {"flip", "mixup"}
        assert np.array_equal(batch.ids, first.ids[: batch.count])
        assert max(batch.facts.partner) < batch.count


def test_what_orbaxs_threads_still_write_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on for a moment after one of them has failed."""
    threads: list[threading.Thread] = []

    def go_on(folder: Path) -> None:
        for number in range(5):
            time.sleep(0.1)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / str(number)).write_text("x")

    def fail(checkpointer: Any, part: Path, content: Any) -> None:
        threads.append(threading.Thread(target=go_on, args=(part.with_name(part.name + ".tmp"),)))
        threads[0].start()
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    recipe, arch = get_recipe("digits"), narrow(ARCHS["lenet"])
    state = init_state(recipe, arch, 1, jax.devices("cpu")[0])
    with pytest.raises(UserError, match="File too large"):
        ENGINE["flax"].checkpoint.save(tmp_path / "epoch_0001.orbax", state, Progress.start(recipe, arch))
    threads[0].join()
    assert list(tmp_path.iterdir()) == []


@both
def test_a_full_disk(
    framework: Framework,
    calm: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Files may grow to 64 KiB and no further: the checkpoint cannot be written, the run stays as it was."""
    path, lost = shutil.copytree(calm(framework), tmp_path / "run"), f"epoch_0002{FRAMEWORKS[framework].suffix}"
    common.runs.files.remove(path / "checkpoints" / lost)
    before = snapshot(path / "checkpoints")
    save, limits = ENGINE[framework].checkpoint.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            save(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(ENGINE[framework].checkpoint, "save", limited)
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert code == 2
    assert f"error: Cannot write {path / 'checkpoints' / lost}: File too large." in said
    assert "Traceback" not in said
    assert capfd.readouterr().err == ""  # of threads
    assert snapshot(path / "checkpoints") == before
    monkeypatch.setattr(ENGINE[framework].checkpoint, "save", save)
    assert train(framework, path, "--resume", "--log-every", 3)[0] == 0
    assert_same_run(path, calm(framework))


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Be somebody who may read a folder and not write there, also where the tests run as root."""
    modes = {each: each.stat().st_mode for each in (folder, *folder.rglob("*"), *folder.parents[:-2])}
    for each, mode in modes.items():
        each.chmod(mode & ~0o222 | 0o555 if each == folder or folder in each.parents else mode | 0o055)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for each, mode in modes.items():
            each.chmod(mode)


def test_nothing_takes_its_name_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, or a folder with all in it, and then the name itself: or a power cut leaves a name of nothing."""
    done: list[Path | str] = []
    sync, rename = os.fsync, Path.replace

    def note(handle: int) -> None:
        done.append(Path(f"/proc/self/fd/{handle}").readlink())
        sync(handle)

    def name(path: Path, to: Path) -> None:
        done.append("named")
        rename(path, to)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", name)
    common.runs.files.write_text(tmp_path / "a.json", "{}")
    assert done == [tmp_path / "a.json.part", "named", tmp_path]
    done.clear()
    with common.runs.files.atomic(tmp_path / "folder") as part:
        (part / "inner").mkdir(parents=True)
        (part / "inner" / "weights").write_bytes(b"1")
    assert {*done[:-2]} == {part, part / "inner", part / "inner" / "weights"}
    assert done[-2:] == ["named", tmp_path]
    book = Journal(RunFolder.create(tmp_path / "run", get_recipe("digits")), "torch", ARCHS["lenet"], 3, 1)
    book.write({"step": 1, "epoch": 1, "split": "train"})
    done.clear()
    EpochRecord(book, 0, lambda record: None).progress()  # for a checkpoint, which counts on the rows so far
    assert done == [book.run.path / "metrics.jsonl"]


@both
def test_a_read_only_folder(framework: Framework, calm: Callable[[str], Path], tmp_path: Path) -> None:
    path = shutil.copytree(calm(framework), tmp_path / "run")
    before = snapshot(path)
    with unprivileged(path):
        resumed = train(framework, path, "--resume", "--epochs", EPOCHS + 1)
        new = train(framework, path / "new")
    assert resumed == (2, f"error: Cannot write {path}/recipe.json: Permission denied.\n")
    assert new == (2, f"error: Cannot make the run folder {path}/new: Permission denied.\n")
    assert snapshot(path) == before


@both
@pytest.mark.parametrize(("field", "value"), [("seed", 1), ("arch", "other"), ("dataset", "pixels")])
def test_a_checkpoint_of_another_run(
    framework: Framework,
    field: str,
    value: Any,
    calm: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copied among those of a run: it is named, and nothing changes."""
    monkeypatch.setitem(ARCHS, "other", replace(narrow(ARCHS["alexnet_cifar"], conv=16), name="other"))
    path = shutil.copytree(calm(framework), tmp_path / "run")
    recipe = replace(RunFolder(path).recipe, **{field: value})
    arch = ARCHS[recipe.arch].adapt(channels=1, classes=10)
    device = {"torch": torch.device("cpu"), "flax": jax.devices("cpu")[0]}[framework]
    state = ENGINE[framework].init_state(recipe, arch, STEPS, device)
    stranger = path / "checkpoints" / f"epoch_0002_step_00000014{FRAMEWORKS[framework].suffix}"
    ENGINE[framework].checkpoint.save(stranger, state, Progress.start(recipe, arch, 2, 14))
    before = snapshot(path / "checkpoints")
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert code == 2
    assert re.search(f"error: {stranger} was written by a run with {field} = {value}, not \\w+: it belongs to", said)
    assert snapshot(path / "checkpoints") == before


@both
def test_a_checkpoint_of_another_version(
    framework: Framework, calm: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copytree(calm(framework), tmp_path / "run")
    package = {"torch": "torch", "flax": "jax"}[framework]
    versions = package_versions()
    monkeypatch.setattr("common.runs.journal.package_versions", lambda: {**versions, package: "99.0"})
    code, said = train(framework, path, "--resume", "--log-every", 3)
    assert code == 0, said
    assert f"note: the checkpoint was written with {package} {versions[package]}, and 99.0 is installed" in said


@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.full)])
def test_given_weights_are_not_forgotten(framework: Framework, tmp_path: Path) -> None:
    """A run with --init-from that is killed before its first checkpoint begins with the same weights again."""
    weights, words = train_weights(tmp_path), ("--epochs", 1, "--log-every", 3)
    calm_run, path = tmp_path / "calm", tmp_path / "run"
    assert train(framework, calm_run, *words, "--init-from", weights)[0] == 0
    kill(framework, path, "after step", *words, "--init-from", weights)
    assert train(framework, path, *words, "--resume")[0] == 0
    assert_same_run(path, calm_run)
    kill(framework, tmp_path / "other", "after step", *words, "--init-from", weights)
    weights.write_bytes(b"")
    said = train(framework, tmp_path / "other", *words, "--resume")
    assert said == (
        2,
        f"error: {tmp_path}/other began with the weights {weights}, which are gone or were changed since.\n",
    )


def tiny_arch() -> Arch:
    return ARCHS["tiny"].adapt(channels=1, classes=10)


def train_weights(folder: Path) -> Path:
    """A file of random weights."""
    rng, path = np.random.default_rng(0), folder / "weights.safetensors"
    shapes = exchange.shapes(tiny_arch())
    exchange.write(path, {n: 0.1 * rng.standard_normal(s, np.float32) for n, s in shapes.items()}, tiny_arch())
    return path


@pytest.mark.full
@both
def test_kills_from_outside(framework: Framework, tmp_path: Path) -> None:
    """A short soak: SIGKILL a random moment after the metrics have grown to so many rows."""
    short, rng = soak.Soak(framework, epochs=4), np.random.default_rng()
    calm, path = soak.start(short, tmp_path / "calm"), tmp_path / "run"
    metrics = path / "metrics.jsonl"
    for rows in (3, 12):
        process = soak.start(short, path, *(["--resume"] if path.exists() else []))
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= rows):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.communicate()
    soak.finish(soak.start(short, path, "--resume"))
    soak.finish(calm)
    assert soak.differences(path, tmp_path / "calm") == []


@pytest.mark.parametrize("kind", fuzz.TARGETS)
def test_damaged_files_are_refused_or_whole(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`python -m stress.fuzz` does it to 10,000."""
    folder = tmp_path_factory.mktemp("fuzz")

    @settings(max_examples=20, deadline=None, database=None)
    @given(integers(0, 2**32 - 1))
    def attack(seed: int) -> None:
        assert fuzz.attack(kind, seed, folder) in ("refused", "opened")

    attack()


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch CODE_HAS_RUN",))


def test_no_code_in_a_checkpoint_runs(
    calm: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = shutil.copytree(calm("torch"), tmp_path / "run")
    file = path / "checkpoints" / "epoch_0002.pt"
    torch.save({**torch.load(file), "progress": _Code()}, file)
    code, said = train("torch", path, "--resume", "--log-every", 3)
    assert code == 2
    assert f"error: {file} holds more than tensors, so it is not opened: it could run code." in said
    assert not (tmp_path / "CODE_HAS_RUN").exists()


def test_images_have_a_limit(tmp_path: Path) -> None:
    """A PNG of a few KiB that would unfold to 12 GB."""
    header = struct.pack(">IIBBBBB", 65_000, 65_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(UserError, match=r"Cannot read the image .*bomb\.png: it has more than 178,956,970 pixels"):
        open_image(tmp_path / "bomb.png")


def test_sums_lead_nowhere_else(calm: Callable[[str], Path], tmp_path: Path) -> None:
    """A list of checksums that names a file outside its folder."""
    path = shutil.copytree(calm("flax") / "checkpoints" / "epoch_0002.orbax", tmp_path / "epoch_0002.orbax")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with (path / "SHA256SUMS").open("a") as file:
        file.write(f"{common.runs.files.sha256(secret)}  ../secret\n")
    with pytest.raises(DamagedError, match="secret is not the file that was written"):
        common.runs.files.check_sums(path)


def test_a_difference_is_seen(calm: Callable[[str], Path], tmp_path: Path) -> None:
    """One unit in the last place of a loss and of a weight."""
    path = shutil.copytree(calm("torch"), tmp_path / "run")
    rows = RunFolder(path).metrics()
    rows[1]["loss"] = np.nextafter(rows[1]["loss"], 9)
    RunFolder(path).rewind(0, rows)
    weights, metadata = exchange.read(path / "model.safetensors")
    weights["fc7.bias"][3] = np.nextafter(weights["fc7.bias"][3], np.float32(9))
    save_file(weights, path / "model.safetensors", metadata)
    assert soak.differences(path, calm("torch")) == ["row 2", "fc7.bias"]


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    """Libraries free memory in one, where Python prints what is raised and goes on."""

    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def wait() -> None:
        Finalized()
        time.sleep(10)

    with pytest.raises(Stopped), stopping_at_once():
        wait()
