"""The benchmarks in small: every loop runs, what is filed is complete, and a late input is seen. No timing decides."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np
import pytest
import torch

from benchmarks import accuracy, bench, bench_gpu, kernels, worker
from benchmarks.accuracy import FlaxRun, TorchRun, summary
from benchmarks.bench import Sheet, Worker, race, training_bytes, training_multiply_adds
from benchmarks.growth import plot
from benchmarks.limits import PRECISIONS, Limits, measure_limits
from benchmarks.settings import GOALS, GPU, SUITES, TINY, Contestant, Heat
from benchmarks.worker import adapted, make, memory
from common.arch.zoo import ARCHS
from common.config import read_json
from common.data.dataset import Dataset
from common.data.load import load_dataset
from common.errors import UserError
from common.recipes.spec import Recipe
from common.recipes.zoo import RECIPES
from common.runs.files import write_json
from common.system import package_versions
from parity_tests.material import narrow
from parity_tests.results import ROOT

LIMITS = Limits("a device", dict.fromkeys(("float32", "bfloat16"), 1e12), 1e12)


def bench_gpu_tiny(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`bench_gpu --tiny`, as another process runs it."""
    command = [sys.executable, "-m", "benchmarks.bench_gpu", *words, "--tiny", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def filed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `bench_gpu --tiny` files in, and what it prints."""
    out = tmp_path_factory.mktemp("bench")
    done = bench_gpu_tiny(out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def compilations() -> list[str]:
    """Every compilation by XLA from now on, as it happens."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **more: str | int) -> None:
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def heats() -> list[Heat]:
    return [job for job in TINY if isinstance(job, Heat)]


def contestants(rows: list[dict[str, Any]]) -> list[Contestant]:
    return [Contestant(**{key: row[key] for key in Contestant.__dataclass_fields__}) for row in rows]


@pytest.mark.full
def test_a_row_for_each_contestant(filed: tuple[Path, str]) -> None:
    content, printed = read_json(filed[0] / "bench-tiny.json"), filed[1]
    rows = content["rows"]
    assert contestants(rows) == [contestant for heat in heats() for contestant in heat.contestants]
    assert [row["heat"] for row in rows] == [heat.name for heat in heats() for _ in heat.contestants]
    for row in rows:
        assert row["loop"] in printed
        assert row["images_per_second"] > 0
        assert row["first_step_seconds"] > row["step_seconds"] > 0
        assert row["peak_bytes"] > 1e8
        assert row["reserved_bytes"] is None  # of a GPU alone
        assert (row["program_bytes"] is not None) == ("flax" in row["loop"])
        assert 0 <= row["waiting_share"] <= 1
        assert 0 < row["of_arithmetic_limit"] < 1
    assert content["limits"]["operations"].keys() == set(PRECISIONS["cpu"])
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]
    assert content["left_out"] == {}


@pytest.mark.full
def test_the_base_is_one_and_ratios_are_paired(filed: tuple[Path, str]) -> None:
    rows = read_json(filed[0] / "bench-tiny.json")["rows"]
    base, late = rows[0], rows[2]
    assert [row["base"] for row in rows] == [
        row["heat"] != before for row, before in zip(rows, ["", *(r["heat"] for r in rows)], strict=False)
    ]
    assert base["times_base"] == 1
    pairs = [b["seconds"] / o["seconds"] for b, o in zip(base["turns"], late["turns"], strict=True)]
    assert late["times_base"] == pytest.approx(np.median(pairs))


@pytest.mark.full
def test_a_late_input_is_seen(filed: tuple[Path, str]) -> None:
    """The planted fault: each batch 0.3 s late. The share is by construction, whatever else the machine does."""
    on_time, _, late, *_ = read_json(filed[0] / "bench-tiny.json")["rows"]
    assert late["pause"] == 0.3
    for turn in late["turns"]:
        assert turn["waited"] >= 0.3 * 2  # of three batches, the first may have been fetched ahead
    assert late["waiting_share"] > on_time["waiting_share"]


@pytest.mark.full
def test_kernels_of_every_program_are_filed(filed: tuple[Path, str]) -> None:
    """On a CPU, operations. The late program idles: a step lasts 0.3 s longer than it computes."""
    profiles = read_json(filed[0] / "bench-tiny.json")["profiles"]
    programs = list(dict.fromkeys(contestant.process for contestant in heats()[0].contestants))
    assert contestants(profiles) == programs
    for told in profiles:
        assert told["on"] == "cpu"
        assert 0 < told["top"][0]["seconds"] <= told["busy_seconds"] * 2.01 < told["step_seconds"] * 2.02  # two threads
        assert sum(each["share"] for each in told["top"]) <= 1.0001
        convolutions = sum(each["count"] for each in told["top"] if "conv" in each["name"])
        assert convolutions >= 5
    late = profiles[programs.index(heats()[0].contestants[2])]
    assert late["step_seconds"] - late["busy_seconds"] > 0.25
    assert "conv" in filed[1]


@pytest.mark.full
def test_a_second_call_goes_on(filed: tuple[Path, str], tmp_path: Path) -> None:
    """What is filed stays, to the byte of its rows; a heat and a run that are missing are added."""
    out = filed[0]
    before = read_json(out / "bench-tiny.json")
    runs = read_json(out / "accuracy-tiny-cpu.json")
    lost = before | {"rows": [row for row in before["rows"] if row["heat"] == "ours"]}
    write_json(tmp_path / "bench-tiny.json", lost)
    write_json(
        tmp_path / "accuracy-tiny-cpu.json", runs | {"torch": runs["torch"] | {"each": runs["torch"]["each"][:1]}}
    )
    done = bench_gpu_tiny(tmp_path, "bench", "--seconds", "0")
    assert done.returncode == bench_gpu.LEFT
    assert "others: left out" in done.stdout
    assert read_json(tmp_path / "bench-tiny.json")["rows"] == lost["rows"]
    done = bench_gpu_tiny(tmp_path, "accuracy")
    assert done.returncode == 0, done.stderr
    after = read_json(tmp_path / "accuracy-tiny-cpu.json")
    assert after["flax"] == runs["flax"]
    assert after["torch"]["each"][0] == runs["torch"]["each"][0]
    assert after["torch"]["runs"] == 2
    assert after["torch"]["each"][1]["test_accuracy"] == runs["torch"]["each"][1]["test_accuracy"]


def test_what_was_measured_elsewhere_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stay for the same versions, device and contestants; a heat with a failure comes last in the next call."""
    monkeypatch.setattr(bench, "measure_limits", lambda device, quick: LIMITS)
    first, second = heats()
    rows = [{"heat": heat.name} | vars(c) | {"failed": ""} for heat in (first, second) for c in heat.contestants]
    for row in rows[len(first.contestants) :]:
        del row["failed"]
    path = tmp_path / "bench.json"
    content = {"versions": package_versions(), "limits": {"device": "a device"}, "rows": rows, "profiles": []}
    write_json(path, content)
    sheet = Sheet("tiny", path)
    assert [sheet.whole(heat) for heat in (first, second)] == [False, True]
    assert bench_gpu.in_order(TINY, sheet) == ["tiny", first]
    assert bench_gpu.in_order(TINY, None) == list(TINY)
    assert sheet.rows(replace(second, contestants=second.contestants[::-1])) == []
    elsewhere: tuple[dict[str, Any], ...] = ({"versions": {}}, {"limits": {"device": "another"}})
    for other in elsewhere:
        write_json(path, content | other)
        assert Sheet("tiny", path).content["rows"] == []


def test_the_gpu_has_time_for_everything() -> None:
    """By the estimates, with 15 seconds for the limits; each contestant is there for the device."""
    heats = [job for job in GPU if isinstance(job, Heat)]
    goals = [GOALS[job].seconds for job in GPU if isinstance(job, str)]
    assert 15 + sum(heat.seconds for heat in heats) + sum(goals) <= bench_gpu.SECONDS
    assert {contestant.device for heat in heats for contestant in heat.contestants} == {"gpu"}
    assert {contestant.precision for heat in heats for contestant in heat.contestants} < set(PRECISIONS["gpu"])


def test_a_contestant_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the others go on; a heat that the time does not suffice for is left out."""
    broken = Contestant("torch", "alexnet", 2, side=16)  # too small for the strides
    sound = Contestant("torch", "lenet", 2)
    heat = Heat("broken", (broken, sound), rounds=1)
    monkeypatch.setitem(SUITES, "broken", (heat,))
    monkeypatch.setattr(bench, "measure_limits", lambda device, quick: LIMITS)
    sheet = Sheet("broken", tmp_path / "out.json")
    sheet.run(replace(heat, seconds=10.0), perf_counter() + 5)
    assert "needs about 10 s" in sheet.content["left_out"]["broken"]
    sheet.run(heat, float("inf"))
    failed, there = read_json(tmp_path / "out.json")["rows"]
    assert failed["failed"] == "torch, alexnet, batch 2: failed."
    assert there["base"]
    assert sheet.content["left_out"] == {}
    assert not sheet.whole(heat)
    sheet.show()
    with pytest.raises(UserError, match="suite"):
        Sheet("gpus", tmp_path / "out.json")


def test_programs_start_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is warm before the next process begins; both inputs of one program share a process; none after the end."""
    said: list[str] = []

    class Scripted(Worker):
        def __init__(self, contestant: Contestant) -> None:
            self.contestant, self.started, self.first_step_seconds = contestant, 0.0, 0.0
            said.append(f"start {contestant.loop}")

        def ask(self, *command: str | int) -> dict[str, Any]:
            said.append(" ".join([self.contestant.loop, *map(str, command)]))
            if command[0] == "profile":
                raise UserError("no kernels")
            return {"seconds": 1.0}

        def close(self) -> None:
            said.append(f"close {self.contestant.loop}")

        def stop(self) -> None:
            pass

    monkeypatch.setattr(bench, "Worker", Scripted)
    torch_fixed = Contestant("torch", "lenet", 2, data="fixed")
    trio = (torch_fixed, replace(torch_fixed, data="fed"), Contestant("flax", "lenet", 2))
    entries, profiles = race(Heat("h", trio, rounds=1, steps=4, profile=True))
    one = ["run fixed 1", "run fixed 4", "settle", "run fed 1", "run fed 4", "settle"]
    assert said == [
        *["start torch", *(f"torch {word}" for word in one)],
        *["start flax", "flax run fed 1", "flax run fed 4", "flax settle"],
        *["torch run fixed 4", "torch run fed 4", "flax run fed 4", "torch memory", "flax memory"],
        *["torch profile fed 3", "flax profile fed 3", "close torch", "close flax"],
    ]
    assert [len(entry.turns) for entry in entries] == [1, 1, 1]
    assert [entry.failed for entry in entries] == ["", "", ""]
    assert [profile["failed"] for profile in profiles] == ["no kernels", "no kernels"]
    entries, _ = race(Heat("h", trio), until=0.0)
    assert [entry.failed for entry in entries] == [f"{name}: no time to start." for name in ("torch", "torch", "flax")]


def test_a_program_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PATIENCE", 0.1)
    slow = Worker(Contestant("torch", "lenet", 2))
    with pytest.raises(UserError, match="torch, lenet, batch 2: no answer in"):
        slow.ask("run", "fed", 1)
    slow.close()
    slow.stop()
    assert slow.process.returncode != 0


def test_a_gpus_trace_by_hand() -> None:
    """Two streams, a gap, a wait within the steps and one after them, a copy to the host; nested operations."""
    event = kernels.Event
    trace = kernels.Trace(
        device=[event(7, "conv", 1.0, 2.0), event(8, "copy", 2.0, 2.0), event(7, "Memcpy DtoH", 6.0, 1.0)],
        calls=[
            event(1, name, start, 0.1)
            for name, start in [
                ("cudaLaunchKernel", 0.5),
                ("cuLaunchKernelEx", 0.6),
                ("cudaStreamSynchronize", 4.0),
                ("cudaMemcpyAsync", 3.0),
                ("cudaDeviceSynchronize", 5.5),
            ]
        ],
        marked=[event(1, kernels.MARK, 0.0, 5.0)],
    )
    told = kernels.summary(trace, 2)
    assert told["on"] == "device"
    assert told["step_seconds"] == 3.0
    assert told["busy_seconds"] == 2.0
    assert told["idle_share"] == pytest.approx(1 / 3)
    assert (told["kernels"], told["launches"], told["copies_to_host"]) == (1.5, 1.0, 0.5)
    assert told["waits"] == {"cudaStreamSynchronize": 0.5}
    assert told["top"][0] == {"name": "conv", "count": 0.5, "seconds": 1.0, "share": 0.4}
    outer, inner, after = event(1, "outer", 0.0, 4.0), event(1, "inner", 1.0, 1.0), event(1, "after", 4.0, 1.0)
    assert dict(kernels.own_seconds([after, inner, outer])) == {outer: 3.0, inner: 1.0, after: 1.0}


def test_costs() -> None:
    """By hand: alexnet's conv1 has 55 * 55 * 64 outputs of 11 * 11 * 3 products; its pixels need no gradient."""
    arch = ARCHS["alexnet"]
    assert training_multiply_adds(arch) == 3 * arch.multiply_adds - 55 * 55 * 64 * 11 * 11 * 3
    lenet = Contestant("torch", "lenet", 10)
    one, two = (training_bytes(ARCHS["lenet"], Contestant("torch", "lenet", n)) for n in (10, 20))
    assert two - one == one - 32 * ARCHS["lenet"].parameters
    assert adapted(lenet) == ARCHS["lenet"]


@pytest.mark.parametrize("loop", ["torch", "flax"])
def test_images_that_the_device_enlarges(loop: Any) -> None:
    """Stored at 32 x 32, trained at 64 x 64; the input of one fixed batch stays the same, that of the others not."""
    contestant = Contestant(loop, "alexnet", 2, side=64, stored=32, width=32)
    runs: Any = make(contestant)
    first = next(runs.inputs["fixed"])
    assert first[0].shape == (2, 32, 32, 3)
    assert next(runs.inputs["fixed"]) is first
    assert next(runs.inputs["fed"]) is not next(runs.inputs["fed"])
    assert worker.run(runs, "fed", 1)["seconds"] > worker.run(runs, "fixed", 1)["waited"]


def test_strong_flax_is_plain_flax_without_the_waiting() -> None:
    """The same losses from the same state; its memory is used again, and the program is the one that runs."""
    contestant = Contestant("plain_flax", "lenet", 4)
    plain: Any = make(contestant)
    strong: Any = make(replace(contestant, loop="strong_flax"))
    assert worker.run(plain, "fixed", 2)["waited"] == worker.run(strong, "fixed", 2)["waited"] == 0
    leaves = [jax.tree.leaves(loop.state.params) for loop in (plain, strong)]
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*leaves, strict=True))
    assert [loop.step._cache_size() for loop in (plain, strong)] == [1, 1]
    before = strong.state
    worker.run(strong, "fixed", 1)
    assert jax.tree.leaves(before.params)[0].is_deleted()
    compiled = compilations()
    told = memory(strong, replace(contestant, loop="strong_flax"))
    assert not compiled
    parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(before.params))
    assert told["program_bytes"] is not None
    assert told["program_bytes"] > 2 * parameters  # and momentum


def test_strong_torch_is_plain_torch_made_fast() -> None:
    """Channels last, compiled, fused, no read-back; two steps from the same weights give the same ones."""
    contestant = Contestant("plain_torch", "alexnet_cifar", 4, width=32)
    plain: Any = make(contestant)
    with torch.compiler.set_stance("default", force_backend="eager"):
        strong: Any = make(replace(contestant, loop="strong_torch"))
        strong.model._orig_mod.load_state_dict(plain.model.state_dict())
        for layer in (*plain.model.modules(), *strong.model.modules()):
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0  # whose draws differ
        strong.batches = iter([next(plain.batches)] * 3)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        worker.run(strong, "fixed", 2)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    worker.run(plain, "fixed", 2)
    for a, b in zip(plain.model.parameters(), strong.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert strong.optimizer.defaults["fused"]
    assert next(strong.model.parameters()).is_contiguous(memory_format=torch.channels_last)


def values(run: Any) -> list[np.ndarray]:
    """All that a step changes, and the key of its masks."""
    if isinstance(run, FlaxRun):
        return [np.array(leaf) for leaf in jax.tree.leaves(run.state)]
    state = run.state
    parts = (state.model.state_dict(), state.optimizer.state_dict(), state.schedule.last_epoch, state.step)
    leaves = jax.tree.leaves((parts, state.dropout.key))
    return [leaf.numpy().copy() if isinstance(leaf, torch.Tensor) else np.array(leaf) for leaf in leaves]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[Recipe, Dataset, Dataset]:
    """The recipe of the digits with a narrow network, and examples for two shapes of batches."""
    monkeypatch.setitem(ARCHS, "narrow", narrow(ARCHS["lenet"], 5))
    train, test = load_dataset("digits")
    return replace(RECIPES["digits"], arch="narrow"), replace(train, ids=train.ids[:72]), test


@pytest.mark.parametrize("kind", [TorchRun, FlaxRun])
def test_a_run_restarts_as_a_fresh_one(kind: Any, small: tuple[Recipe, Dataset, Dataset]) -> None:
    """After compiling, and after training with another seed: the same weights, optimizer, key, step, and batches."""
    recipe, train, test = small
    fresh, run = kind(replace(recipe, seed=5), train, "cpu"), kind(replace(recipe, seed=4), train, "cpu")
    first = values(run)
    assert run.compile(test) > 0
    assert all(np.array_equal(a, b) for a, b in zip(first, values(run), strict=True))
    assert run.epoch(0) > 0
    trained = values(run)
    run.restart(5)
    expected = values(fresh)
    assert all(np.array_equal(a, b) for a, b in zip(expected, values(run), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(expected, trained, strict=False))
    batches = [jax.tree.leaves(next(iter(each.feed(0, train=True)))[1]) for each in (fresh, run)]
    assert all(np.array_equal(a, b) for a, b in zip(*batches, strict=True))  # the order and what was drawn


def test_seeds_compile_once_in_flax(small: tuple[Recipe, Dataset, Dataset]) -> None:
    """Three seeds: the first compiles a step for each of two shapes, the others nothing at all."""
    recipe, train, test = small
    run: Any = FlaxRun(recipe, train, "cpu")
    before = run.train_step._cache_size()
    run.compile(test)
    run.epoch(0)
    assert run.train_step._cache_size() - before == 2
    compiled = compilations()
    for seed in (1, 2):
        run.restart(seed)
        run.epoch(0)
        run.accuracy(test)
    assert not compiled
    run.state = run.state.replace(recipe=replace(run.recipe, seed=3))  # the planted fault: a seed that is no leaf
    run.epoch(0)
    assert compiled


def test_seeds_compile_once_in_torch(small: tuple[Recipe, Dataset, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two functions for each of two shapes in training, the network for two in evaluation; the other seeds none."""
    from torch_impl import state

    init_state, (recipe, train, test) = state.init_state, small
    made: list[bool] = []

    def compiled(*arguments: Any, compiled: bool = False) -> Any:
        made.append(compiled)
        return init_state(*arguments, compiled=len(made) == 1)

    monkeypatch.setattr(state, "init_state", compiled)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    with torch.compiler.set_stance("default", force_backend="eager"):
        run = TorchRun(recipe, train, "cpu")
        before = counters["unique_graphs"]
        run.compile(test)
        run.epoch(0)
        graphs = counters["unique_graphs"]
        assert graphs - before >= 4
        for seed in (1, 2):
            run.restart(seed)
            run.epoch(0)
            run.accuracy(test)
        assert counters["unique_graphs"] == graphs
        assert made == [
            False,
            False,
            False,
            False,
        ]  # the first, and one to begin anew after compiling and for each seed
        torch._dynamo.reset()  # the planted fault: what is compiled is thrown away before a seed
        run.restart(3)
        run.epoch(0)
        assert counters["unique_graphs"] > graphs


@pytest.mark.full
def test_seconds_to_an_accuracy(filed: tuple[Path, str]) -> None:
    content = read_json(filed[0] / "accuracy-tiny-cpu.json")
    for framework in ("torch", "flax"):
        runs = content[framework]["each"]
        assert [run["seed"] for run in runs] == [0, 1]
        assert [run["compile_seconds"] > 0 for run in runs] == [True, False]
        for run in runs:
            got_there = [accuracy >= GOALS["tiny"].accuracy for accuracy in run["test_accuracy"]]
            assert len(got_there) == GOALS["tiny"].epochs
            assert (run["reached"] is not None) == any(got_there)
        assert content[framework] | summary(runs) == content[framework]
        assert f"tiny, {framework}: runs 2" in filed[1]


def test_no_run_begins_too_late(tmp_path: Path) -> None:
    accuracy.reach("tiny", "torch", "cpu", tmp_path / "out.json", 0.0)
    assert not (tmp_path / "out.json").exists()


def test_limits_are_measured_in_another_process(capfd: pytest.CaptureFixture[str]) -> None:
    limits = measure_limits("cpu", quick=True)
    assert limits.operations.keys() == set(PRECISIONS["cpu"])
    assert min(limits.bytes, *limits.operations.values()) > 0
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="limits of the gpu"):
            measure_limits("gpu", quick=True)
        assert "sees no GPU" in capfd.readouterr().err


def test_growth_is_plotted(tmp_path: Path) -> None:
    rows = [
        {"loop": loop, "arch": "alexnet", "precision": "float32", "batch": batch, "side": side}
        | {"images_per_second": 10.0 * batch, "peak_bytes": 2**30}
        for loop in ("torch", "flax")
        for batch, side in ((8, None), (16, None), (16, 96))
    ]
    write_json(tmp_path / "bench-growth.json", {"rows": rows, "limits": {"device": "a device"}})
    assert plot(tmp_path / "bench-growth.json").stat().st_size > 10_000
