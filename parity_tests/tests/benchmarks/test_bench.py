"""The benchmarks in small: every loop runs, what is filed is complete, and a late input is seen. No timing decides."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from benchmarks.accuracy import GOALS, FlaxRun, TorchRun, reach, summary
from benchmarks.bench import training_bytes, training_multiply_adds
from benchmarks.growth import plot
from benchmarks.limits import measure_limits
from benchmarks.settings import SUITES, Contestant, Heat
from benchmarks.worker import adapted, make
from common.arch.zoo import ARCHS
from common.config import read_json
from common.data.load import load_dataset
from common.errors import UserError
from common.recipes.zoo import RECIPES
from common.runs.files import write_json
from parity_tests.results import ROOT


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What `bench tiny` prints and files."""
    out = tmp_path_factory.mktemp("bench") / "tiny.json"
    command = [sys.executable, "-m", "benchmarks.bench", "tiny", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, read_json(out)


def test_a_row_for_each_contestant(bench: tuple[str, dict[str, Any]]) -> None:
    printed, filed = bench
    contestants = [contestant for heat in SUITES["tiny"] for contestant in heat.contestants]
    assert [row.get("loop", row) for row in filed["rows"]] == [contestant.loop for contestant in contestants]
    for contestant, row in zip(contestants, filed["rows"], strict=True):
        assert contestant.name in printed
        assert row["images_per_second"] > 0
        assert row["first_step_seconds"] > row["step_seconds"] > 0
        assert row["peak_bytes"] > 1e8
        assert 0 <= row["waiting_share"] <= 1
        assert 0 < row["of_arithmetic_limit"] < 1
    assert filed["limits"]["operations"]["float32"] > 0
    assert filed["versions"]["torch"] == torch.__version__.split("+")[0]


def test_the_base_is_one_and_ratios_are_paired(bench: tuple[str, dict[str, Any]]) -> None:
    rows = bench[1]["rows"]
    base, late = rows[0], rows[2]
    assert [row["base"] for row in rows] == [True, False, False, True, False]
    assert base["times_base"] == 1
    pairs = [b["seconds"] / o["seconds"] for b, o in zip(base["turns"], late["turns"], strict=True)]
    assert late["times_base"] == pytest.approx(np.median(pairs))


def test_a_late_input_is_seen(bench: tuple[str, dict[str, Any]]) -> None:
    """The planted fault: each batch 0.3 s late. The share is by construction, whatever else the machine does."""
    late = bench[1]["rows"][2]
    assert late["pause"] == 0.3
    for turn in late["turns"]:
        assert turn["waited"] >= 0.3 * 2  # of three batches, the first may have been fetched ahead
    assert late["waiting_share"] > bench[1]["rows"][0]["waiting_share"]


def test_a_contestant_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import bench as module

    broken = Contestant("torch", "alexnet", 2, side=16)  # too small for the strides
    monkeypatch.setitem(SUITES, "broken", (Heat((broken,), 1),))
    limits = measure_limits("cpu", quick=True)
    monkeypatch.setattr(module, "measure_limits", lambda device, quick: limits)
    [row] = module.run_suite("broken", tmp_path / "out.json", float("inf"))
    assert row == {"failed": "torch failed, alexnet, batch 2."}
    [row] = module.run_suite("broken", tmp_path / "out.json", 0.0)
    assert "left out for lack of time" in row["failed"]
    with pytest.raises(UserError, match="suite"):
        module.run_suite("gpus", tmp_path / "out.json", 0.0)


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
    """Stored at 32 x 32, trained at 64 x 64; the input of one fixed batch stays the same."""
    contestant = Contestant(loop, "alexnet", 2, side=64, stored=32, data="fixed", width=32)
    runs: Any = make(contestant)
    first = next(runs.inputs)
    assert first[0].shape == (2, 32, 32, 3)
    assert next(runs.inputs) is first
    runs.run(1)


@pytest.mark.parametrize("kind", [TorchRun, FlaxRun])
def test_warming_up_leaves_no_trace(kind: Any) -> None:
    """A goal's run starts from the same weights, optimizer and step as if nothing had been compiled before."""
    train, test = load_dataset("digits")
    subset = replace(train, ids=train.ids[:72])
    run = kind(RECIPES["digits"], subset, "cpu")

    def everything() -> list[np.ndarray]:
        if kind is FlaxRun:
            return [np.array(leaf) for leaf in jax.tree.leaves(run.state)]
        state = run.state
        parts = (state.model.state_dict(), state.schedule.last_epoch, state.step)
        leaves = jax.tree.leaves(parts)
        return [leaf.numpy().copy() if isinstance(leaf, torch.Tensor) else np.array(leaf) for leaf in leaves]

    before = everything()
    assert run.compile(test) > 0
    assert all(np.array_equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert run.epoch(0) > 0
    assert not all(np.array_equal(a, b) for a, b in zip(before, everything(), strict=True))


def test_seconds_to_an_accuracy() -> None:
    [run] = reach(GOALS["tiny"], "torch", "cpu", float("inf"))
    assert len(run["test_accuracy"]) == 2
    got_there = [accuracy >= GOALS["tiny"].accuracy for accuracy in run["test_accuracy"]]
    assert (run["reached"] is not None) == any(got_there)
    assert summary([run])["reached"] == any(got_there)
    assert reach(GOALS["tiny"], "torch", "cpu", 0.0) == []


def test_growth_is_plotted(tmp_path: Path) -> None:
    rows = [
        {"loop": loop, "arch": "alexnet", "precision": "float32", "batch": batch, "side": side}
        | {"images_per_second": 10.0 * batch, "peak_bytes": 2**30}
        for loop in ("torch", "flax")
        for batch, side in ((8, None), (16, None), (16, 96))
    ]
    write_json(tmp_path / "bench-growth.json", {"rows": rows, "limits": {"device": "a device"}})
    assert plot(tmp_path / "bench-growth.json").stat().st_size > 10_000
