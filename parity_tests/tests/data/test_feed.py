"""The input path: what reaches the device is what the pipeline gave, one batch ahead, and steps compile once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import flax_impl.state
import flax_impl.train
import torch_impl.state
import torch_impl.train
from common.arch.zoo import ARCHS
from common.data.batch import Batch
from common.data.dataset import Dataset
from common.data.pipeline import batches, steps_per_epoch
from common.data.sources import Arrays
from common.data.synthetic import photographs, tiles
from common.errors import UserError
from common.recipes.spec import Recipe, Schedule
from common.recipes.zoo import RECIPES
from common.runs.files import write_json
from common.runs.folder import RunFolder
from common.runs.journal import Journal
from flax_impl import feed as flax_feed
from parity_tests.material import digits, narrow
from torch_impl import device as torch_device
from torch_impl import feed as torch_feed

CPU = {"torch": torch.device("cpu"), "flax": jax.devices("cpu")[0]}
FEED: dict[str, Any] = {"torch": torch_feed, "flax": flax_feed}


def ragged(examples: int = 40) -> tuple[Dataset, Recipe]:
    """A subset, at places that are not 0, 1, ...: two batches of 16 and one of 8; crops, flips and mixing on."""
    data = tiles(32, 3)
    schedule = Schedule("cosine", warmup_epochs=1)
    recipe = replace(RECIPES["cifar10_best"], batch_size=16, epochs=2, precision="float32", schedule=schedule)
    return replace(data, ids=data.ids[3::7][:examples]), recipe


def feed_of(framework: str, data: Dataset, recipe: Recipe) -> Any:
    [feed] = FEED[framework].feeds([data], recipe, CPU[framework])
    return feed


def same(left: Any, right: Any) -> bool:
    ours, theirs = jax.tree.leaves(left), jax.tree.leaves(right)
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("kind", ["resident", "streamed", "photographs"])
@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_the_inputs_are_the_pipelines(framework: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident or not, each epoch's batches arrive in order, byte for byte, the last and smaller one included."""
    data, recipe = ragged()
    if kind == "photographs":
        data, recipe = replace(photographs(), ids=np.arange(40)), replace(RECIPES["imagenet"], batch_size=16)
    if kind == "streamed":
        monkeypatch.setattr(FEED[framework], "RESIDENT_SHARE", 0.0)
        monkeypatch.setattr(FEED[framework], "memory", lambda device: 1.0)
    feed = feed_of(framework, data, recipe)
    assert (feed.kept is not None) == (kind == "resident")
    for epoch in range(2):
        expected = list(batches(data, recipe, epoch, train=True))
        fed = list(feed(epoch, train=True))
        assert len(fed) == len(expected) == 3
        assert [batch.labels.tolist() for batch, _ in feed(epoch, train=True, start=2)] == [expected[2].labels.tolist()]
        for (batch, inputs), wanted in zip(fed, expected, strict=True):
            assert (batch.images is None) == (kind == "resident")
            assert same(inputs, FEED[framework].to_device(wanted, CPU[framework]))
    for (_, inputs), wanted in zip(feed(), batches(data, recipe, 0, train=False), strict=True):
        assert same(inputs, FEED[framework].to_device(wanted, CPU[framework]))


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_only_indices_and_draws_travel(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels and labels of a resident dataset come from the device: the host gathers no pixel."""
    data, recipe = ragged()
    expected = [FEED[framework].to_device(batch, CPU[framework]) for batch in batches(data, recipe, 0, train=True)]
    feed = feed_of(framework, data, recipe)

    def gathered(*arguments: Any) -> Any:
        raise AssertionError("the host gathers what the device has")

    monkeypatch.setattr(Arrays, "read", gathered)
    fed = [(batch, inputs) for batch, inputs in feed(0, train=True)]
    assert same([inputs for _, inputs in fed], expected)
    with pytest.raises(AssertionError, match="the host gathers"):
        list(batches(data, recipe, 0, train=True))


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_splits_of_one_source_are_kept_once(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what does not fit beside what is kept already is streamed."""
    data, recipe = ragged()
    rest, held = data.hold_out(0.3, seed=0)
    other = digits()
    one, two, three = FEED[framework].feeds([rest, held, other], recipe, CPU[framework])
    assert one.kept is two.kept is not None
    assert three.kept is not None
    assert data.arrays
    monkeypatch.setattr(FEED[framework], "memory", lambda device: data.arrays.images.nbytes / 0.25 + 1)
    found = FEED[framework].feeds([rest, other, held], recipe, CPU[framework])
    assert [feed.kept is not None for feed in found] == [True, False, True]


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_one_batch_ahead(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a step gets its batch, the next one is already on its way; no more than that one is held."""
    data, recipe = ragged()
    taken = 0

    def counted(*arguments: Any, **options: Any) -> Iterator[Batch]:
        nonlocal taken
        for batch in batches(*arguments, **options):
            taken += 1
            yield batch

    monkeypatch.setattr(FEED[framework], "batches", counted)
    assert [taken for _ in feed_of(framework, data, recipe)(0, train=True)] == [2, 3, 3]


def test_flax_compiles_once_for_each_shape() -> None:
    """Two epochs with a ragged last batch: two shapes, so two compilations, all in the first epoch."""
    data, recipe = ragged()
    arch = narrow(ARCHS["lenet"].adapt(height=32, width=32, channels=3), conv=5)
    steps = steps_per_epoch(data, recipe)
    state = flax_impl.state.init_state(recipe, arch, steps, CPU["flax"])
    feed = feed_of("flax", data, recipe)
    compilations: Any = flax_impl.train.train_step
    before = compilations._cache_size()
    compiled = []
    for epoch in range(2):
        for _, inputs in feed(epoch, train=True):
            state, _ = flax_impl.train.train_step(state, inputs)
            compiled.append(compilations._cache_size() - before)
    assert compiled == [1, 1, 2, 2, 2, 2]


def torch_run(
    recipe: Recipe, data: Dataset, *, compiled: bool
) -> tuple[list[float], dict[str, torch.Tensor], list[int]]:
    """Two epochs on a narrow network: the losses, the weights at the end, and the graphs compiled up to each step."""
    arch = narrow(recipe.model_arch(data.image, len(data.class_names)))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    state = torch_impl.state.init_state(
        recipe, arch, steps_per_epoch(data, recipe), torch_device.pick_device("cpu"), compiled=compiled
    )
    feed, losses, graphs = feed_of("torch", data, recipe), list[float](), list[int]()
    for epoch in range(2):
        for _, inputs in feed(epoch, train=True):
            losses.append(float(torch_impl.train.train_step(state, inputs)["loss"]))
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return losses, state.model.state_dict(), graphs


@pytest.mark.full
def test_a_compiled_torch_step_is_the_plain_one() -> None:
    """In float64, dropout, crops, flips and mixing on; each of the two functions is compiled once for each shape."""
    data, recipe = ragged()
    recipe = replace(recipe, precision="float64")
    plain, weights, none = torch_run(recipe, data, compiled=False)
    losses, compiled, graphs = torch_run(recipe, data, compiled=True)
    assert none == [0] * 6
    assert graphs == [2, 2, 4, 4, 4, 4]
    assert losses == pytest.approx(plain, rel=1e-12)
    for name, weight in weights.items():
        assert torch.allclose(compiled[name], weight, rtol=1e-10, atol=1e-12), name
    masks_elsewhere = replace(recipe, seed=1)
    assert torch_run(masks_elsewhere, data, compiled=False)[0] != pytest.approx(plain, rel=1e-6)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--compile` where PyTorch finds none: one sentence that says what it needs."""
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with torch._inductor.utils.fresh_cache(), pytest.raises(UserError, match=r"--compile: .* a C\+\+ compiler"):
        torch_device.check_compiler(CPU["torch"])


class Scalar:
    """A sum on a device, which notes when it is waited for."""

    def __init__(self, last: int, read: list[int]) -> None:
        self.last, self.read = last, read

    def __add__(self, other: Scalar) -> Scalar:
        return Scalar(max(self.last, other.last), self.read)

    def __float__(self) -> float:
        self.read.append(self.last)
        return 1.0


def test_metrics_are_waited_for_one_step_late(tmp_path: Path) -> None:
    """A row of two steps is read when the third is on its way; the epoch's last without delay. Rows are as ever."""
    data, recipe = ragged(80)
    run = RunFolder.create(tmp_path / "run", recipe)
    write_json(run.path / "manifest.json", {})
    read: list[int] = []
    seen = []
    with Journal(run, "torch", ARCHS["lenet"], 5, log_every=2).epoch(0) as record:
        for step, batch in enumerate(batches(data, recipe, 0, train=True), 1):
            record(batch, {name: Scalar(step, read) for name in ("loss", "correct", "count")})
            seen.append(sorted(set(read)))
    assert seen == [[], [], [2], [2], [2, 4, 5]]
    assert [row["step"] for row in run.metrics()] == [2, 4, 5]
