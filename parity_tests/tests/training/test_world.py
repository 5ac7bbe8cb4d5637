"""Several processes take the same steps as one: sizes 1 to 4, in each framework and across; faults, deaths, resuming.

Every process has one thread, so that a few of them fit on two cores.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

import flax_impl.train
import torch_impl.train
from common.arch.zoo import ARCHS
from common.commands.launch import run_launch as launch
from common.commands.train import run_train
from common.data.pipeline import batches
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.zoo import RECIPES
from common.training import loop
from common.training.launch import Launch
from common.training.loop import fit
from common.training.options import TrainOptions
from common.world import ALONE, World
from parity_tests import QUICK_XLA
from parity_tests.together import ACCUMULATION, FAULTS, SYNC_NORM, Trace, batch_norm, load, normalise, run, scenarios

BOUND = 1e-9
FRAMEWORKS: tuple[Framework, ...] = ("torch", "flax")
TRAIN = {"torch": torch_impl.train, "flax": flax_impl.train}
QUICK = "everything"
OF_FRAMEWORK = {
    "torch": ("mean of means", "same masks", "local batch norm", "same rows"),
    "flax": ("padding counts", "padding normalises", "same rows"),
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK_XLA}
DIGITS = ("digits", "--arch", "lenet", "--preprocess.resize", "16", "--precision", "float64", "--batch-size", "500")
FEW = (*DIGITS, "--mix.mixup", "0.3", "--device", "cpu", "--log-every", "1")

both = pytest.mark.parametrize("framework", FRAMEWORKS)


def start(size: int, *words: str) -> subprocess.Popen[str]:
    """Start a module in several processes."""
    command = [sys.executable, "-m", "common.commands.launch", "--processes", str(size), "--", *words]
    environment = os.environ | ENVIRONMENT
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], limit: float = 500) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, at the latest after `limit` seconds."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    return process.returncode, out, err


def work(framework: Framework, size: int, folder: Path, *names: str) -> None:
    """Run `parity_tests.together`."""
    code, _, err = finish(start(size, "parity_tests.together", framework, str(folder), *names))
    assert code == 0, err


def train_together(framework: Framework, size: int, folder: Path, *names: str) -> dict[str, list[Trace]]:
    """What each process of a world saw of each scenario."""
    work(framework, size, folder, *names)
    return {name: [load(folder / f"{name}-{rank}.npz") for rank in range(size)] for name in names}


@cache
def alone(name: str) -> Trace:
    """PyTorch in one process, which all others are compared with."""
    return run("torch", scenarios()[name], ALONE)


def difference(one: Trace, other: Trace) -> float:
    """The largest, of losses, scores and weights, in the scale of each; NaN is infinite."""
    assert one.weights.keys() == other.weights.keys()
    pairs = [
        (one.steps, other.steps),
        (np.array(one.scores.mean_loss), np.array(other.scores.mean_loss)),
        (np.array([one.scores.top1, one.scores.count]), np.array([other.scores.top1, other.scores.count])),
        *((tensor, other.weights[name]) for name, tensor in one.weights.items()),
    ]
    worst = max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)
    return worst if np.isfinite(worst) and all(np.isfinite(b).all() for _, b in pairs) else np.inf


@pytest.fixture(scope="module")
def three_of_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of three processes, with and without faults; several in one launch, since imports take the most time."""
    folder = tmp_path_factory.mktemp("three")
    work(
        "torch",
        3,
        folder,
        SYNC_NORM,
        QUICK,
        ACCUMULATION,
        *(f"{QUICK} with {fault}" for fault in OF_FRAMEWORK["torch"]),
    )
    return folder


def test_three_processes_equal_one(three_of_torch: Path) -> None:
    """With dropout, crops, flips, noise, jitter, mixing, smoothing, batch norm, and batches of 7, 7, 7 and 2."""
    for rank in range(3):
        trace = load(three_of_torch / f"{QUICK}-{rank}.npz")
        assert trace.steps[:, 2].tolist() == [7, 7, 7, 2, 7, 7]
        assert difference(alone(QUICK), trace) < BOUND


@pytest.mark.parametrize("fault", OF_FRAMEWORK["torch"])
def test_faults_in_torch_are_seen(fault: str, three_of_torch: Path) -> None:
    assert difference(alone(QUICK), load(three_of_torch / f"{QUICK} with {fault}-0.npz")) > 1e-3


def test_three_processes_accumulate_as_one(three_of_torch: Path) -> None:
    for rank in range(3):
        assert difference(alone(ACCUMULATION), load(three_of_torch / f"{ACCUMULATION}-{rank}.npz")) < BOUND


def test_two_processes_of_flax_equal_one_of_torch(tmp_path: Path) -> None:
    """Whose batches of seven are four rows and three with one of padding; other sizes and micro-batches are below."""
    for trace in train_together("flax", 2, tmp_path, QUICK)[QUICK]:
        assert difference(alone(QUICK), trace) < BOUND


EXCHANGES = """
from dataclasses import replace
from common.recipes.spec import Mix
from parity_tests import QUICK_XLA
from parity_tests.together import ACCUMULATION, exchanges, scenarios
subject = scenarios()[ACCUMULATION]
for mix in (Mix(), subject.recipe.mix):
    print(*sorted(exchanges(replace(subject, recipe=replace(subject.recipe, precision="float32", mix=mix)))))
"""


def test_processes_of_flax_exchange_sums_alone() -> None:
    """Pixels stay where they are, through crops, flips and micro-batches; only mixing needs those of others."""
    flags = f"{QUICK_XLA} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", EXCHANGES]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["all-reduce", "all-gather all-reduce"], done.stderr


def test_batch_norm_of_all_rows(three_of_torch: Path) -> None:
    """Output, statistics and gradients of three processes with 5, 2 and no rows are those of one with all."""
    parts = [np.load(three_of_torch / f"{SYNC_NORM}-{rank}.npz") for rank in range(3)]
    whole = normalise(batch_norm(), slice(None))
    assert {len(part["y"]) for part in parts} == {5, 2, 0}
    for name, tensor in whole.items():
        if name in ("y", "x.grad"):
            np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), tensor, rtol=1e-12, atol=1e-12)
        elif name.endswith("grad"):
            np.testing.assert_allclose(sum(part[name] for part in parts), tensor, rtol=1e-12)
        else:
            for part in parts:
                np.testing.assert_allclose(part[name], tensor, rtol=1e-12, err_msg=name)
    alone = normalise(batch_norm(), slice(0, 5))
    assert np.abs(alone["x.grad"] - whole["x.grad"][:5]).max() > 1e-3, "the rows of others must matter"


@pytest.mark.full
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@both
def test_every_size_equals_one(framework: Framework, size: int, tmp_path: Path) -> None:
    names = [name for name in scenarios() if name != "float16"]
    found = train_together(framework, size, tmp_path, *names)
    for name in names:
        assert max(difference(alone(name), trace) for trace in found[name]) < BOUND, name


@pytest.mark.full
def test_faults_in_flax_are_seen(tmp_path: Path) -> None:
    names = [f"{QUICK} with {fault}" for fault in OF_FRAMEWORK["flax"]]
    for name, traces in train_together("flax", 3, tmp_path, *names).items():
        assert difference(alone(QUICK), traces[0]) > 1e-3, name


def test_every_fault_belongs_to_a_framework() -> None:
    assert {fault for faults in OF_FRAMEWORK.values() for fault in faults} == FAULTS.keys()


@pytest.mark.full
@both
def test_float16_leaves_out_the_same_steps(framework: Framework, tmp_path: Path) -> None:
    """On all processes, which hold the same bits; and in two or three processes the same as in one."""
    scales = set()
    for size in (1, 2, 3):
        (tmp_path / str(size)).mkdir()
        first, *others = train_together(framework, size, tmp_path / str(size), "float16")["float16"]
        for other in others:
            assert other.scales == first.scales
            assert all(np.array_equal(tensor, other.weights[name]) for name, tensor in first.weights.items())
        scales.add(first.scales)
    [history] = scales
    assert any(later < earlier for earlier, later in pairwise(history))


@pytest.mark.parametrize(
    ("first", "done", "scored"), [(0, 0, False), (1, 4, True), (1, 6, False), (2, 8, True), (3, 12, True)]
)
def test_a_process_that_follows_scores_where_the_first_one_does(first: int, done: int, scored: bool) -> None:
    """Which scores a finished epoch again when it goes on; what one alone computes, waits for the others forever."""
    seen: list[str] = []
    engine = SimpleNamespace(
        share=lambda state, world, own: (state, first),
        steps_done=lambda state: done,
        agree=lambda goes_on, world: False,
        evaluate=lambda state, feed: seen.append(feed),
    )
    splits = {"train": "training", "val": "validation", "test": "testing"}
    job: Any = SimpleNamespace(
        engine=engine, world=World(1, 2), recipe=SimpleNamespace(epochs=3), steps=4, feeds=lambda state: dict(splits)
    )
    loop._follow(job, None)
    assert seen == (["validation", "testing"] if scored else [])


class TestRows:
    """The slices of a batch."""

    @pytest.mark.parametrize("even", [True, False])
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
    @pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 64])
    def test_every_row_is_in_one_process(self, count: int, size: int, even: bool) -> None:
        slices = [World(rank, size, even=even).rows(count) for rank in range(size)]
        assert np.concatenate(slices)[:count].tolist() == list(range(count))
        lengths = {len(rows) for rows in slices}
        assert max(lengths) == -(-count // size)
        assert len(lengths) == 1 if even else max(lengths) - min(lengths) <= 1

    @pytest.mark.parametrize("size", [2, 3, 4])
    def test_slices_make_up_the_batch(self, size: int) -> None:
        """Pixels, labels and draws; partners are the same examples; only padding is marked."""
        subject = scenarios()["everything"]
        whole = list(batches(subject.data, subject.recipe, 1, train=True))
        for even in (True, False):
            worlds = [World(rank, size, even=even) for rank in range(size)]
            streams = [batches(subject.data, subject.recipe, 1, train=True, world=world) for world in worlds]
            parts = zip(*streams, strict=True)
            for batch, slices in zip(whole, parts, strict=True):
                n = len(batch.labels)
                lengths = [len(part.draws["share"]) for part in slices]
                cut = [(part.images[:k], part.labels[:k]) for part, k in zip(slices, lengths, strict=True)]
                assert np.array_equal(np.concatenate([images for images, _ in cut])[:n], batch.images)
                assert np.array_equal(np.concatenate([labels for _, labels in cut])[:n], batch.labels)
                for name in batch.draws:
                    rows = [part.draws[name][:k] for part, k in zip(slices, lengths, strict=True)]
                    assert np.array_equal(np.concatenate(rows)[:n], batch.draws[name]), name
                every = np.concatenate([images for images, _ in cut])
                partners = [(every if even else part.images)[part.facts.partner] for part in slices]
                assert np.array_equal(np.concatenate(partners)[:n], batch.images[batch.facts.partner])
                assert {part.count for part in slices} == {n}
                if even and n % size:
                    real = np.concatenate([part.facts.real for part in slices])
                    assert real.tolist() == [place < n for place in range(len(real))]
                assert sum(len(part.images) for part in slices) <= n + size


@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.full)])
def test_resuming_with_another_number_of_processes(framework: Framework, tmp_path: Path) -> None:
    """An epoch by two processes and one by one give the rows of two by one; only process 0 writes and prints."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_train(TRAIN[framework].fit, [*FEW, "--epochs", "2", "--out", str(whole)])
    words = [f"{framework}_impl.train", *FEW, "--epochs", "1", "--out", str(parts)]
    code, out, err = finish(start(2, *words))
    assert code == 0, err
    assert out.count("epoch 1/1  loss") == 1
    assert "on 2 processes, each on cpu" in out
    run_train(TRAIN[framework].fit, [*FEW, "--epochs", "2", "--out", str(parts), "--resume"])
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (whole, parts)
    )
    for one, other in zip(ours, theirs, strict=True):
        for name in ("step", "epoch", "loss", "accuracy"):
            assert other[name] == pytest.approx(one[name], rel=BOUND), one
    assert {path.name for path in whole.iterdir()} == {path.name for path in parts.iterdir()}


@pytest.mark.full
@both
def test_all_processes_stop_early(framework: Framework, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a rate too small to change any score by a bit; resumed by one, it evaluates once more and is done."""
    few = ("--val-fraction", "0.1", "--patience", "1", "--epochs", "5", "--optimizer.lr", "1e-30")
    code, out, err = finish(start(2, f"{framework}_impl.train", *FEW, *few, "--out", str(tmp_path / "run")))
    assert code == 0, err
    run_train(TRAIN[framework].fit, [*FEW, *few, "--out", str(tmp_path / "run"), "--resume"])
    for said in (out, capsys.readouterr().out):
        assert "stopping early, after epoch 2 of 5: none since epoch 1 was better" in said
        assert "after epoch 1, the best on the validation split (" in said
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


LEAVING = """
import sys
import time
from contextlib import suppress
from pathlib import Path
import torch.distributed
import torch_impl.train
from common.commands.train import run_train

def threads():
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # one that ends while it is looked at
            found += "gloo" in (task / "comm").read_text()
    return found

def left():
    print("threads", threads())
    destroy()
    until = time.monotonic() + 20  # one that is joined stays listed for a moment
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    print("threads", threads())

destroy, torch.distributed.destroy_process_group = torch.distributed.destroy_process_group, left
run_train(torch_impl.train.fit, sys.argv[1:])
"""


@pytest.mark.full
def test_no_thread_outlives_the_group(tmp_path: Path) -> None:
    """One of gloo's that gives back a tensor while the interpreter ends aborts its process, now and then."""
    words = [sys.executable, "-c", LEAVING, *FEW, "--epochs", "1", "--out", str(tmp_path / "run")]
    started = [
        subprocess.Popen(words, env=environment | ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for environment in Launch(processes=2).environments()
    ]
    for process in started:
        code, out, _ = finish(process)
        before, after = (int(line.split()[1]) for line in out.splitlines() if line.startswith("threads"))
        assert (code, before > 0, after) == (0, True, 0)


@pytest.mark.full
def test_torchrun_and_two_hosts_are_the_same(tmp_path: Path) -> None:
    """torchrun; and the launcher once for each of two hosts, which are both this one."""
    words = ("torch_impl.train", *FEW, "--epochs", "1", "--out")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    subprocess.run([*torchrun, *words, str(tmp_path / "torchrun")], env=os.environ | ENVIRONMENT, check=True)
    port = Launch().environments()[0]["MASTER_PORT"]
    launcher = [
        sys.executable,
        "-m",
        "common.commands.launch",
        "--hosts",
        "2",
        "--address",
        f"localhost:{port}",
        "--host",
    ]
    hosts = [
        subprocess.Popen([*launcher, host, "--", *words, str(tmp_path / "hosts")], env=os.environ | ENVIRONMENT)
        for host in "01"
    ]
    assert [host.wait(200) for host in hosts] == [0, 0]
    rows = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("torchrun", "hosts")
    ]
    assert rows[0] == rows[1]


@pytest.mark.full
@both
def test_photographs_are_trained_on_together(framework: Framework, tmp_path: Path) -> None:
    """The process that leads makes the page and says so, once; the other ends quietly."""
    rng = np.random.default_rng(0)
    for colour, name in enumerate(("ants", "bees")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 90, (20, 20, 3), np.uint8)
            pixels[..., colour] += 140
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.png")
    small = "--scratch --arch lenet --preprocess.host-resize 16 --preprocess.crop 16 --preprocess.mean .5 "
    words = [*(small + "--preprocess.std .5 --epochs 1 --device cpu --out").split(), str(tmp_path / "run")]
    code, out, err = finish(start(2, f"{framework}_impl.photos", str(tmp_path / "pictures"), *words))
    assert code == 0, err
    assert (tmp_path / "run" / "index.html").is_file()
    for said, times in (("index.html shows it: ", 1), ("note: batches of ", 1)):
        assert out.count(said) == times
    assert err.count("from scratch at 16 x 16 pixels") == 1


def rank_of(pid: int) -> int | None:
    """The rank of a process, from its environment."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(word[5:]) for word in words if word.startswith(b"RANK=")), None)


def children(pid: int) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {rank: int(child) for child in found if (rank := rank_of(int(child))) is not None}


def wait_for(condition: Any, seconds: float = 200) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.full)])
def test_a_mistake_is_a_sentence(framework: Framework, tmp_path: Path) -> None:
    """One that process 0 alone makes, whom the other waits for."""
    code, _, err = finish(start(2, f"{framework}_impl.train", *FEW, "--out", str(tmp_path)))
    assert code == 2
    assert f"error: {tmp_path} exists. Continue that run with --resume" in err
    assert "Traceback" not in err


@contextmanager
def endless(framework: Framework, folder: Path, size: int) -> Iterator[subprocess.Popen[str]]:
    """Training that has begun and would go on for long."""
    process = start(size, f"{framework}_impl.train", *FEW, "--epochs", "100000", "--out", str(folder))
    try:
        wait_for(lambda: (folder / "metrics.jsonl").exists() or process.poll() is not None)
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.full)])
def test_a_dead_process_ends_the_job(framework: Framework, rank: int, tmp_path: Path) -> None:
    with endless(framework, tmp_path / "run", 2) as process:
        started = children(process.pid)
        os.kill(started[rank], signal.SIGKILL)
        code, _, err = finish(process, 60)
        assert code == 128 + signal.SIGKILL
        assert f"process {rank} of 2 was ended by SIGKILL; the others are ended" in err
        assert not any(Path(f"/proc/{pid}").exists() for pid in started.values())


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGHUP, marks=pytest.mark.full)])
@pytest.mark.parametrize("framework", ["torch", pytest.param("flax", marks=pytest.mark.full)])
def test_a_signal_to_the_launcher_leaves_a_checkpoint(
    framework: Framework, number: signal.Signals, tmp_path: Path
) -> None:
    with endless(framework, tmp_path / "run", 2) as process:
        process.send_signal(number)
        code, _, err = finish(process, 60)
    assert code == 128 + number
    assert f"{number.name}: {tmp_path}/run/checkpoints/epoch_" in err
    assert "Traceback" not in err


@pytest.mark.full
@both
def test_nobody_needs_to_watch(framework: Framework, tmp_path: Path) -> None:
    """Started one by one, as Slurm does, the others notice a death by themselves, and fail."""
    folder = tmp_path / "run"
    words = [sys.executable, "-m", f"{framework}_impl.train", *FEW, "--epochs", "100000", "--out", str(folder)]
    started = [
        subprocess.Popen(words, env=environment | ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for environment in Launch(processes=2).environments()
    ]
    try:
        wait_for(lambda: (folder / "metrics.jsonl").exists())
        started[1].kill()
        assert started[0].wait(60) != 0
    finally:
        for process in started:
            process.kill()


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        launch(list(words))
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--processes", "0", "--", "x"), "--processes is 0; it must be at least 1."),
        (("--hosts", "2", "--host", "2", "--", "x"), "--host is 2; with --hosts 2 it must be from 0 to 1."),
        (("--hosts", "2", "--", "x"), "--hosts needs --address HOST:PORT"),
        (("--address", "node0", "--", "x"), "--address is 'node0'; it must be HOST:PORT."),
        (("--processes", "2"), "Name the module to run after --"),
    ],
)
def test_a_launch_that_cannot_be(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, *words)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher says so before it starts anything, and so does process 0; under torchrun it is torchrun's own."""
    with socket.create_server(("localhost", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        message = f"Process 0 cannot listen on port {taken.getsockname()[1]}: Address already in use. Name another one."
        assert message in refused(capsys, "--address", address, "--", "x")
        with pytest.raises(UserError, match=message), World(0, 2, 0, address).meeting():
            raise AssertionError
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        with World(0, 2, 0, address).meeting():
            pass
    assert "There is no port 65536" in refused(capsys, "--address", "localhost:65536", "--", "x")
    with (
        pytest.raises(UserError, match=rf"process 1 of 2 cannot meet the others at {address}: no answer\."),
        World(1, 2, 1, address).meeting(),
    ):
        raise RuntimeError("no answer.\n  at socket.cpp:1")


def test_every_process_of_every_host_is_told_its_place() -> None:
    """As torchrun numbers them: over all hosts, and on its own, where it takes the accelerator of that number."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    told = [each for host in (0, 1) for each in Launch(3, hosts=2, host=host, address="node0:29500").environments()]
    assert [tuple(each[name] for name in names) for each in told] == [
        (str(rank), str(rank % 3), "6", "node0", "29500") for rank in range(6)
    ]
    assert [World.of_environment(each, even=True).local_rank for each in told] == [0, 1, 2, 0, 1, 2]


def test_the_environment_says_who_one_is() -> None:
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    assert World.of_environment({}, even=False) == ALONE
    assert World.of_environment(given | {"RANK": "0", "WORLD_SIZE": "1"}, even=False) == ALONE
    assert World.of_environment(given, even=False) == World(3, 4, 1, "node0:29500", even=False)
    for changed, message in (
        ({"RANK": "4"}, "RANK is 4"),
        ({"RANK": "x"}, "RANK is 'x'; it must be a whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
    ):
        with pytest.raises(UserError, match=message):
            World.of_environment(given | changed, even=False)
    for name in given.keys() - {"WORLD_SIZE"}:
        with pytest.raises(UserError, match=f"WORLD_SIZE is 4, so {name} must be set too"):
            World.of_environment({key: value for key, value in given.items() if key != name}, even=False)


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("alexnet_bn", {"accumulate": 2}, "accumulate is 2, and alexnet_bn has batch norm"),
        ("alexnet", {"batch_size": 3}, "batch_size is 3"),
    ],
)
def test_recipes_that_several_processes_do_not_train(arch: str, changes: dict[str, Any], message: str) -> None:
    recipe = replace(RECIPES["digits"], **changes)
    ALONE.check(recipe, ARCHS[arch])
    World(1, 3).check(replace(recipe, accumulate=1), ARCHS[arch])  # an example each is enough
    with pytest.raises(UserError, match=message):
        World(1, 4).check(recipe, ARCHS[arch])


def test_a_run_of_several_processes_is_refused_before_it_begins() -> None:
    engine = mock.MagicMock()
    engine.join.return_value = World(1, 4)
    with pytest.raises(UserError, match="batch_size is 3: too few examples for 4 processes"):
        fit(engine, replace(RECIPES["digits"], batch_size=3), TrainOptions())
    assert not engine.begin.called
