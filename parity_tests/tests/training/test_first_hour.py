"""What a run says of itself, the room that it takes, which epoch is its result, and how it is gone on with."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import common.system
import common.training.room
from common.arch.zoo import ARCHS
from common.commands.train import run_train
from common.config import read_json
from common.data.batch import Batch
from common.data.load import load_dataset
from common.data.pipeline import batches
from common.errors import UserError
from common.frameworks import FRAMEWORKS, Framework
from common.recipes import own
from common.recipes.zoo import get_recipe
from common.runs import hints, journal
from common.runs.choice import choose
from common.runs.files import in_units, size_of, write_json
from common.runs.folder import RunFolder
from common.runs.journal import Journal
from common.runs.scores import Scores, percent, significant, speed, told
from common.training.options import TrainOptions
from common.training.room import check_room
from common.weights import exchange
from common.weights.result import result_of_run, said_of
from parity_tests.results import ROOT
from parity_tests.tests.training.test_runs import (
    FAST,
    TRAIN,
    Run,
    both,
    evaluation,
    finished,
    quick,
    refused_training,
    reproducible,
    snapshot,
    train,
)

__all__ = ["finished", "quick"]  # fixtures of this module too

DIGITS = get_recipe("digits")


def test_numbers_have_a_form_that_fits_them() -> None:
    assert [percent(share) for share in (0.9124, 1, 0)] == ["91.2 %", "100.0 %", "0.0 %"]
    shown = {0.26349: "0.263", 1.3: "1.30", 12: "12.0", 567.4: "567", 4499.3: "4,499", 1e-5: "1.00e-05"}
    assert {number: significant(number) for number in shown} == shown
    assert [significant(999.6), significant(float("nan"))] == ["1,000", "nan"]
    assert [speed(n, 1) for n in (4499.3, 73.2, 9.1, 0)] == [f"{n} images/s" for n in ("4,499", "73", "9.10", "0.00")]
    assert told(0.136, 0.964) == "loss 0.136  accuracy 96.4 %"
    sizes = {
        93_100_000: "93.1 MB",
        2_100_000_000: "2.10 GB",
        999_600_000: "1.00 GB",
        68_500: "68.5 kB",
        12: "0.0120 kB",
    }
    assert {size: in_units(size) for size in sizes} == sizes


def of_journal(folder: Path, epochs: int = 3, keep: int | None = 1) -> Journal:
    run = RunFolder.create(folder / "run", replace(DIGITS, epochs=epochs))
    write_json(run.path / "manifest.json", {"framework": "torch"})
    return Journal(run, "torch", ARCHS["lenet"], 3, 1, keep=keep)


def trained(book: Journal, epoch: int) -> Any:
    batch = Batch(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32), {}, np.arange(4))
    with book.epoch(epoch) as record:
        for _ in range(3):
            record(batch, {"loss": 4 * 0.263, "correct": 3, "count": 4})
    return record.progress()


def test_a_line_names_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = of_journal(tmp_path, epochs=12)
    book.scores({"val": Scores(2.7, 5, 9, 10), "test": Scores(13.6, 6, 9, 10)}, trained(book, 0))
    line = capsys.readouterr().out
    assert line.startswith("epoch  1/12  loss 0.263  accuracy 75.0 %  ")
    assert line.endswith(" images/s | val loss 0.270  accuracy 50.0 %  test loss 1.36  accuracy 60.0 %\n")


def test_an_epoch_that_is_gone_on_with_counts_what_was_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of four images and 50 seconds before, two more of five seconds each now."""
    book, clock = of_journal(tmp_path), iter((100.0, 105.0, 110.0))
    book.log_every = 10
    now = [next(clock)]
    monkeypatch.setattr(journal, "perf_counter", lambda: now[0])
    book.progress = replace(book.progress, step=1, seconds=50.0, totals={"loss": 8.0, "correct": 1.0, "count": 4.0})
    batch = Batch(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, np.int32), {}, np.arange(4))
    with book.epoch(0) as record:
        for now[0] in clock:
            record(batch, {"loss": 2.0, "correct": 4.0, "count": 4.0})
    assert (record.step, record.seconds) == (3, 60)
    assert record.progress().summary() == "loss 1.00  accuracy 75.0 %  0.200 images/s"


def test_a_pipe_gets_a_line_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, with the time that the whole run will still take; by default none within the first seconds."""
    book, clock = of_journal(tmp_path), iter(range(0, 10**6, 20))
    monkeypatch.setattr(journal, "perf_counter", lambda: float(next(clock)))
    book.started = 0.0
    with redirect_stderr(io.StringIO()) as stderr:
        trained(book, 0)
    *_, line = stderr.getvalue().splitlines()
    assert line.startswith("epoch 1/3  step 2/3  loss 0.263  accuracy 75.0 %  ")
    assert line.endswith(" min left")
    monkeypatch.undo()
    with redirect_stderr(io.StringIO()) as stderr:
        trained(book, 1)
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(("done", "left"), [(0, {1: 80.0, 6: 5.0, 9: 0.0}), (3, {3: 0.0, 4: 50.0, 6: 10.0, 9: 0.0})])
def test_the_time_that_is_left_goes_by_what_this_process_did(
    done: int, left: dict[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds long, of nine steps in all: those before a run was resumed took other time."""
    book = of_journal(tmp_path)
    book.progress = replace(book.progress, step=done)
    monkeypatch.setattr(journal, "perf_counter", lambda: book.started + 10)
    assert {step: book.seconds_left(step) for step in left} == pytest.approx(left)


@pytest.mark.parametrize(
    ("seconds", "words"), [(40.2, "40 s"), (89.0, "89 s"), (720.0, "12 min"), (3900.0, "1 h 05 min")]
)
def test_a_time_has_a_form_that_fits_it(seconds: float, words: str) -> None:
    assert journal._duration(seconds) == words


def test_the_peak_of_memory_is_what_was_held_at_once() -> None:
    """In bytes, and of the process itself: psutil's figure of the moment at which it held the most."""
    code = (
        "import psutil; from common.system import peak_resident_bytes; held = bytearray(b'x') * (200 << 20); "
        "print(psutil.Process().memory_info().rss); del held; print(peak_resident_bytes())"
    )
    held, peak = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout.split()
    assert int(peak) == pytest.approx(int(held), rel=0.01)


FREED = """
import numpy as np, psutil
from common.system import give_back_freed, keep_freed
held = keep_freed() and [np.ones(1 << 14) for _ in range(1000)]
rss = lambda: psutil.Process().memory_info().rss >> 20
full = rss()
del held
print(full - rss())
give_back_freed()
print(full - rss())
"""


def test_what_steps_keep_is_given_back_at_their_end() -> None:
    """125 MiB in a thousand blocks: kept for the next step, and then the system's again."""
    done = subprocess.run([sys.executable, "-c", FREED], cwd=ROOT, capture_output=True, check=True)
    kept, given = map(int, done.stdout.split())
    assert kept < 10
    assert given > 110


@pytest.mark.parametrize(
    ("given", "told"),
    [({}, "10000 None"), ({"GOMP_SPINCOUNT": "7"}, "7 None"), ({"OMP_WAIT_POLICY": "active"}, "None active")],
)
def test_openmp_is_told_how_to_wait_before_pytorch_is_imported(
    given: dict[str, str], told: str, tmp_path: Path
) -> None:
    """And what the environment says stays."""
    (tmp_path / "torch.py").write_text(
        "import os\nprint(*map(os.environ.get, ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')))\nraise SystemExit"
    )
    alone = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", "import torch_impl.train"]
    done = subprocess.run(command, env=alone | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == told


def test_a_commit_says_whether_its_files_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.system, "__file__", str(tmp_path / "system.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert common.system.commit() is None

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    (tmp_path / "system.py").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "first")
    (tmp_path / "notes.txt").write_text("untracked\n")
    assert common.system.commit() == git("rev-parse", "HEAD")
    (tmp_path / "system.py").write_text("2\n")
    assert common.system.commit() == git("rev-parse", "HEAD") + "+changes"


def evaluated(book: Journal, rights: tuple[int, ...], split: str = "test") -> list[str]:
    """The checkpoints that stay of epochs that scored so."""
    for epoch, right in enumerate(rights, 1):
        book.run.checkpoint(epoch, "torch").touch()
        book.evaluations.append({"split": split, "epoch": epoch, "accuracy": right / 100})
        book.prune()
    return [path.stem for path in book.run.checkpoints("torch")]


@pytest.mark.parametrize(
    ("keep", "rights", "stay"),
    [
        (1, (90, 80, 70, 60), [1, 4]),
        (1, (60, 70, 80, 90), [3, 4]),  # the best is the newest: one more, should it be damaged
        (2, (90, 80, 70, 60), [1, 3, 4]),
        (None, (90, 80, 70, 60), [1, 2, 3, 4]),
    ],
)
def test_the_newest_and_the_best_checkpoint_stay(
    keep: int | None, rights: tuple[int, ...], stay: list[int], tmp_path: Path
) -> None:
    assert evaluated(of_journal(tmp_path, 4, keep), rights) == [f"epoch_{epoch:04d}" for epoch in stay]


def test_two_stay_where_the_best_is_gone(tmp_path: Path) -> None:
    """As one that was damaged and set aside is."""
    book = of_journal(tmp_path, 4)
    for epoch in (2, 3, 4):
        book.run.checkpoint(epoch, "torch").touch()
    book.evaluations += [{"split": "test", "epoch": epoch, "accuracy": 1 / epoch} for epoch in (1, 2, 3, 4)]
    book.prune()
    assert [path.stem for path in book.run.checkpoints("torch")] == ["epoch_0003", "epoch_0004"]


@pytest.mark.parametrize("carried", [False, True])
def test_a_run_goes_back_to_the_rows_of_its_checkpoint(carried: bool, tmp_path: Path) -> None:
    """Older versions' checkpoints carry no evaluations: those that are there stay. What is trained again is dropped."""
    book = of_journal(tmp_path, 4)
    for epoch in (1, 2, 3):
        book.run.log(step=3 * epoch, epoch=epoch, split="train", loss=1.0)
        book.run.log(step=3 * epoch, epoch=epoch, split="test", accuracy=1 / epoch)
    scored = [{"step": 3 * epoch, "epoch": epoch, "split": "test", "accuracy": 1 / epoch} for epoch in (1, 2)]
    book.progress = replace(book.progress, epoch=2, step=6, evaluations=scored if carried else None)
    book.rewind()
    assert [(row["epoch"], row["split"]) for row in book.run.metrics()] == [
        (epoch, split) for epoch in (1, 2) for split in ("train", "test")
    ]
    assert [row["epoch"] for row in book.evaluations] == [1, 2]
    assert book.best == {"test": (1.0, 1)}


@pytest.mark.parametrize(("done", "until", "steps"), [(0, 2, [1, 2, 3]), (0, 4, [1, 2, 3, 4, 5]), (4, 6, [5, 6, 7])])
def test_steps_are_repeated_to_one_beyond_the_fault(done: int, until: int, steps: list[int], tmp_path: Path) -> None:
    """Before which the parameters that the faulty step has left are looked at; the same batches, of their epochs."""
    book, (train, _) = of_journal(tmp_path), load_dataset("digits")
    train = replace(train, ids=train.ids[: 3 * book.recipe.batch_size])
    book.progress = replace(book.progress, step=done, epoch=done // 3)
    found = list(book.repeat(train, until))
    assert [step for step, _ in found] == steps
    every = [batch for epoch in range(3) for batch in batches(train, book.recipe, epoch, train=True)]
    assert all(np.array_equal(batch.ids, every[step - 1].ids) for step, batch in found)


def test_the_validation_split_says_which_is_best(tmp_path: Path) -> None:
    book = of_journal(tmp_path, 4)
    book.evaluations.append({"split": "test", "epoch": 1, "accuracy": 0.99})
    assert evaluated(book, (10, 30, 20, 25), "val") == ["epoch_0002", "epoch_0004"]
    assert book.choice().epoch == 2
    assert book.choice().why == "the best on the validation split (30.0 %)"


def test_without_a_validation_split_the_last_epoch_is_the_result(tmp_path: Path) -> None:
    """However good another one was on the test split; whoever asks is told so."""
    assert choose({"test": (0.99, 2)}, 8).epoch == 8
    run = of_journal(tmp_path, 2).run
    assert result_of_run(run) is None
    model = run.path / "model.safetensors"
    assert said_of(model) == ""
    exchange.write(model, {}, ARCHS["lenet"])  # as older versions wrote it, which do not say the epoch
    for epoch, accuracy in ((1, 0.9), (2, 0.8)):
        run.log(step=3 * epoch, epoch=epoch, split="test", accuracy=accuracy)
    assert said_of(model) == f"{model} is of epoch 2, the last: no validation split to choose by"
    assert said_of(run.path / "recipe.json") == said_of(None) == ""
    exchange.write(model, {}, ARCHS["lenet"], epoch=1)
    assert result_of_run(run) is None
    rows = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text("{")
    assert said_of(model) == f"{model} is of epoch 1"
    (run.path / "metrics.jsonl").write_text(rows)
    for damaged in ("0", "true", '"1"', "["):
        save_file({}, model, {"epoch": damaged})
        assert (result_of_run(run), said_of(model)) == (None, "")


@both
def test_a_result_is_of_the_epoch_that_its_file_says(
    framework: Framework,
    finished: dict[str, Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A finished run that goes on and is stopped has an older result, which is not called the newer epoch's."""
    path = tmp_path / "run"
    shutil.copytree(finished[framework].path, path)
    before = (path / "model.safetensors").read_bytes()
    goes_on, resume = Journal.goes_on, ["--resume", str(path), "--epochs", "3"]

    def stopped(book: Journal, epochs: int) -> bool:
        if epochs == 2:
            raise KeyboardInterrupt
        return goes_on(book, epochs)

    monkeypatch.setattr(Journal, "goes_on", stopped)
    with pytest.raises(SystemExit):
        run_train(TRAIN[framework].fit, resume)
    monkeypatch.undo()
    assert (path / "model.safetensors").read_bytes() == before
    assert said_of(path / "model.safetensors").startswith(f"{path / 'model.safetensors'} is of epoch 2: the run has")
    capsys.readouterr()
    evaluation(framework, [str(path), "--device", "cpu"])
    assert "epoch_0003" not in (out := capsys.readouterr().out)
    assert "the run's result" not in out
    run_train(TRAIN[framework].fit, resume)
    assert result_of_run(RunFolder(path)) == choose({}, 3)
    assert exchange.read_epoch(exchange.read_metadata(path / "model.safetensors")[0], "the result") == 3


@both
def test_the_next_command_is_typed_as_this_one_was(framework: Framework, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", [".venv/bin/python", "-m"])
    assert hints.after_training(framework, Path("runs/a b"), get_recipe("digits")) == [
        f".venv/bin/python -m {framework}_impl.predict photo.jpg --run 'runs/a b'",
        f".venv/bin/python -m {framework}_impl.evaluate 'runs/a b'",
        ".venv/bin/python -m study.compare digits",
    ]
    file = Path("my files/mine.py")
    monkeypatch.setitem(own.FILES, "digits", file)
    shown = hints.after_training(framework, Path("r"), get_recipe("digits"))
    assert shown[2] == ".venv/bin/python -m study.compare digits --recipe-file 'my files/mine.py'"
    monkeypatch.delitem(own.FILES, "digits")
    unheard = replace(get_recipe("digits"), name="of a file that is not named")
    assert hints.after_training(framework, Path("r"), unheard) == [line.partition(" digits")[0] for line in shown[:2]]
    folder = replace(get_recipe("digits"), dataset="folder:pictures")
    assert hints.after_training(framework, Path("r"), folder) == hints.after_training(framework, Path("r"), unheard)
    assert hints.resume(framework, Path("r")) == f".venv/bin/python -m {framework}_impl.train --resume r"
    assert hints.photos(framework, Path("r")) == f".venv/bin/python -m {framework}_impl.photos --resume r"
    monkeypatch.setenv("MAKELEVEL", "1")
    predict, evaluate, compare = hints.after_training(framework, Path("runs/a"), get_recipe("digits"))
    assert predict == "make predict RUN=runs/a IMAGE=photo.jpg" + (" FRAMEWORK=flax" if framework == "flax" else "")
    assert (evaluate, compare) == (f"make evaluate-{framework} RUN=runs/a", "make compare RECIPE=digits")
    assert hints.resume(framework, Path("r")) == "make resume RUN=r"
    other = " FRAMEWORK=flax" if framework == "flax" else ""
    assert hints.photos(framework, Path("r")) == f'make photos ARGS="--resume r"{other}'
    assert list(hints.after_photos(framework, Path("r"))) == [
        f"make predict IMAGE=photo.jpg RUN=r{other}",
        f'make photos FOLDER=pictures ARGS="--init-from r"{other}',
        f"make export-{framework} RUN=r TO=model{'.pt2' if framework == 'torch' else '.onnx'}",
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert hints.resume(framework, Path("r")) == "the same command with --resume r"


@both
def test_the_last_lines_say_what_is_there(framework: Framework, finished: dict[str, Run]) -> None:
    run = finished[framework]
    assert f"\n{run.path}: {in_units(size_of(run.path))}\n" in run.out
    assert "epoch_0001, epoch_0002\n" in run.out
    assert run.out.splitlines()[-4] == "next:"


def said_bytes(out: str) -> float:
    """Of a checkpoint, as it is announced before the first step."""
    number, unit = out.partition("checkpoints of ")[2].partition(",")[0].split()
    return float(number) * {"kB": 1e3, "MB": 1e6}[unit]


@both
def test_the_room_is_said_before_it_is_taken(framework: Framework, finished: dict[str, Run], tmp_path: Path) -> None:
    """For optimizers that remember two, one and no numbers of each parameter."""
    sgd = ("--epochs", 2, "--optimizer.name", "sgd", "--optimizer.lr", 0.01)
    runs = [finished[framework], train(framework, tmp_path / "momentum", *sgd, "--optimizer.momentum", 0.9)]
    for run in (*runs, train(framework, tmp_path / "plain", *sgd)):
        file = RunFolder(run.path).checkpoints(framework)[-1]
        assert said_bytes(run.out) == pytest.approx(size_of(file), rel=0.15)


@both
def test_what_does_not_fit_is_refused(
    framework: Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common.training.room, "free_at", lambda path: 1_500_000)
    said = refused_training(framework, capsys, *FAST, "--epochs", 8, "--out", tmp_path / "run", "--keep", "all")
    assert f"error: {tmp_path / 'run'} does not fit on its disk: 8 checkpoints of 439 kB" in said
    assert "1.50 MB are free. Make room, or keep fewer checkpoints, --keep 1, or name" in said
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_more_is_written_before_an_old_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stay, a third is written, and then comes the network: four times its size; less what is there already."""
    recipe, options = replace(DIGITS, epochs=8), TrainOptions()
    for free, fits in ((400, True), (399, False)):
        monkeypatch.setattr(common.training.room, "free_at", lambda path, free=free: free)
        if fits:
            check_room(tmp_path / "run", 100, recipe, 23, options)
        else:
            with pytest.raises(UserError, match="does not fit"):
                check_room(tmp_path / "run", 100, recipe, 23, options)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").write_bytes(b"x")
    check_room(tmp_path / "run", 100, recipe, 23, options)
    monkeypatch.setattr(common.training.room, "free_at", lambda path: 10**9)
    for steps, every in ((23, 10), (20, 10), (6, 4), (5, 7), (4, 4), (7, 1)):
        within = TrainOptions(checkpoint_every=every, keep="all")
        count = sum(step % every == 0 or step % steps == 0 for step in range(1, 8 * steps + 1))
        said = check_room(tmp_path / "new", 10**6, recipe, steps, within)
        assert said == f"up to {count} checkpoints of 1.00 MB, {significant(count)} MB in all"


# The forms are the command's, the same for both; how a framework goes on is seen with one of them.
FORMS = ("--resume RUN", "--resume=RUN", "--resume --out RUN", "digits --resume RUN")
RESUMED = [
    pytest.param(framework, form, marks=pytest.mark.full if framework == "flax" and form != FORMS[0] else ())
    for framework in FRAMEWORKS
    for form in FORMS
]


@pytest.mark.parametrize(("framework", "form"), RESUMED)
def test_a_run_is_resumed_without_retyping(
    framework: Framework, form: str, finished: dict[str, Run], tmp_path: Path
) -> None:
    """Its recipe and its options come from its folder, and the end is that of a run that was not stopped."""
    path = tmp_path / "run"
    train(framework, path, "--epochs", 1, "--keep", "all")
    run_train(TRAIN[framework].fit, [*form.replace("RUN", str(path)).split(), "--epochs", "2"])
    resumed = Run(path, "", "")
    assert reproducible(resumed.rows) == reproducible(finished[framework].rows)
    assert (path / "model.safetensors").read_bytes() == (finished[framework].path / "model.safetensors").read_bytes()
    assert read_json(path / "options.json")["keep"] == "all"
    assert read_json(path / "options.json")["device"] == "cpu"


def test_what_is_given_besides_is_checked(
    finished: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = finished["torch"].path
    before = snapshot(path)
    for words, said in (
        (("--resume", path, "--seed", 1), "ran with seed = 0, not 1"),
        (("--resume", path, "--optimizer.lr", 0.5), f"ran with optimizer.lr = {DIGITS.optimizer.lr}, not 0.5"),
        (("fashion_mnist_lenet", "--dataset", "digits", "--preprocess.resize", 28, "--resume", path), "a resumed run"),
        (
            ("--resume", path, "--out", tmp_path),
            f"the run goes on in: leave --out {tmp_path} out",
        ),
        (("--resume", tmp_path / "no"), f"{tmp_path / 'no'} is not a run folder: nothing to resume"),
        (("--resume",), "--resume needs RUN, the folder of the run to continue"),
    ):
        assert said in refused_training("torch", capsys, *words)
    assert snapshot(path) == before


def test_options_are_those_of_the_run(tmp_path: Path) -> None:
    """Weights to start from only until the run has begun; an older run, which kept all checkpoints, keeps them."""
    given = TrainOptions(init_from=Path("w.safetensors"), data_dir=tmp_path, keep="all", log_every=3)
    given = replace(given, skip_bad=2, check_data=True)  # both of before it began, too
    run = RunFolder.create(tmp_path / "run", DIGITS, given.recorded())
    now = TrainOptions(out=run.path, resume=True)
    assert now.of_run(run) == replace(given, out=run.path, resume=True, init_from=Path("w.safetensors").absolute())
    write_json(run.path / "manifest.json", {})
    assert now.of_run(run) == TrainOptions(out=run.path, resume=True, data_dir=tmp_path, keep="all", log_every=3)
    broken: list[Any] = [[], {"keep": "some"}, {**given.recorded(), "log_every": 0}]
    for damaged in broken:
        write_json(run.path / "options.json", damaged)
        with pytest.raises(UserError):
            now.of_run(run)
    (run.path / "options.json").unlink()
    assert now.of_run(run) == replace(now, keep="all")


@both
def test_a_damaged_newest_checkpoint_leaves_another(framework: Framework, tmp_path: Path) -> None:
    """By default too, where the best is the newest."""
    path = tmp_path / "run"
    train(framework, path, "--epochs", 3)
    kept = RunFolder(path).checkpoints(framework)
    assert len(kept) == 2
    file = kept[-1] if kept[-1].is_file() else kept[-1] / "SHA256SUMS"
    file.write_bytes(b"damaged")
    run_train(TRAIN[framework].fit, ["--resume", str(path)])
    assert [row["epoch"] for row in Run(path, "", "").rows if row["split"] == "test"] == [1, 2, 3]
    assert FRAMEWORKS[framework].suffix in kept[-1].name
