"""The proof on a GPU that both frameworks see: `make test-gpu`.

float64 shows the mathematics there as on a CPU. What rounding alone does on the device is measured on the spot and
bounds the other precisions. With PARITY_DEVICE=cpu the same cases run in small on a CPU, under CUDA's rules
(`parity_tests.cuda_rules`), so that a GPU's time goes to measuring and not to mending.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flax_impl.checkpoint
import flax_impl.device
import flax_impl.evaluate
import flax_impl.feed
import torch_impl.checkpoint
import torch_impl.device
import torch_impl.dropout
import torch_impl.evaluate
import torch_impl.feed
import torch_impl.state
import torch_impl.train
import torch_impl.world
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.data.pipeline import steps_per_epoch
from common.data.synthetic import tiles
from common.frameworks import Framework
from common.recipes.spec import LossScale, Precision
from common.recipes.zoo import RECIPES
from common.runs.progress import Progress
from common.system import package_versions
from common.world import World
from flax_impl.convert import to_torch
from parity.compare import Bounds, Report, Unit, compare_traces
from parity_tests import curves, noise
from parity_tests.cuda_rules import GPU, cuda_rules, step
from parity_tests.material import first_batches, narrow
from parity_tests.results import ROOT, Record
from parity_tests.sides import make_pair, make_states
from parity_tests.single_step import measure_step, one_batch, recipe_for
from parity_tests.subjects import Subject, subjects
from parity_tests.tests.training import test_optim, test_techniques

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("PARITY_DEVICE", "gpu")
SMALL = DEVICE == "cpu"
FACTOR = 4
LEAST: dict[Unit, float] = {"ulp": 32.0, "norm": 1e-3}
STEPS = 6 if SMALL else 50
FRAMEWORKS = get_args(Framework)
BATCHES = (2,) if SMALL else (2, 128)


def some(everything: Iterable[Any], *few: Any) -> list[Any]:
    """All of them, or a few on a CPU, where it is the way that is tried and not the place."""
    return [*(few if SMALL else everything)]


needs_a_compiler = pytest.mark.skipif(
    SMALL, reason="on a CPU test_feed.py compares the compiled step with the eager one"
)


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU, or a CPU's tensors under its rules."""
    if not SMALL:
        need_gpu(
            torch.cuda.is_available() and jax.default_backend() == "gpu", asked=os.environ.get("GPU") == "required"
        )
        yield
        return
    with cuda_rules() as rules:
        for module in (torch_impl.device, torch_impl.evaluate):
            monkeypatch.setattr(module, "pick_device", lambda name: GPU)
        monkeypatch.setattr(torch_impl.evaluate, "eval_step", step(rules, torch_impl.evaluate.eval_step))
        yield


def need_gpu(there: bool, *, asked: bool) -> None:
    """Skip where there is none; fail where one was asked for, as `make test-gpu` does: all skipped is no proof."""
    if not there:
        (pytest.fail if asked else pytest.skip)("no GPU that both PyTorch and JAX see")


def network(name: str) -> Arch:
    return narrow(ARCHS[name]) if SMALL else ARCHS[name]


def torch_place() -> torch.device:
    return torch_impl.device.pick_device(DEVICE)


def filed(report: Report) -> dict[str, Any]:
    largest = {phase: asdict(report.largest(phase)) for phase in report.phases()}
    return {"device": torch_impl.device.describe(torch_place()), "versions": package_versions(), "largest": largest}


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_precision_means_what_it_says(precision: Precision, record: Record) -> None:
    """What float32 numbers are multiplied in is found by trying, and TF32 is refused where there is none."""
    places: dict[str, Any] = {"torch": torch_place(), "flax": flax_impl.device.pick_device(DEVICE)}
    modules: dict[str, Any] = {"torch": torch_impl.device, "flax": flax_impl.device}
    found = {}
    for framework, module in modules.items():
        if SMALL and precision == "tf32":
            with pytest.raises(Exception, match=r"tf32, which cpu .* does not multiply in"):
                module.check_precision(precision, places[framework])
        else:
            module.check_precision(precision, places[framework])
            found[framework] = module.products(places[framework])
    record(f"gpu-products-{precision}", found)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_a_compiler)], ids=["eager", "compiled"])
def test_dropout_masks(compiled: bool, wide: bool) -> None:
    """Bit for bit at full size: 1,024 rows of fc6's input."""
    count, place = (16 if SMALL else 1024) * 9216, torch_place()
    key = torch_impl.dropout.module_key(torch_impl.dropout.seed_key(7), ("drop6",))
    words = [torch_impl.dropout._signed(word) for word in key]
    there = torch.tensor(words, dtype=torch.int32).to(place)
    fill = torch.compile(torch_impl.dropout.below, dynamic=True) if compiled else None
    mask = torch_impl.dropout.bernoulli((there[0], there[1]), 0.3, count, wide=wide, device=place, fill=fill)
    with jax.enable_x64(wide), jax.default_device(flax_impl.device.pick_device(DEVICE)):
        theirs = jax.random.bernoulli(jax.random.wrap_key_data(jnp.array(key, jnp.uint32)), 0.3, (count,))
    assert np.array_equal(mask.numpy(force=True), np.asarray(theirs))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", some(ARCHS, "lenet"))
def test_float64(name: str, batch: int, record: Record) -> None:
    recipe, arch = recipe_for(name, "float64", batch), network(name)
    with jax.enable_x64(True):
        ours, theirs = (side.step(one_batch(recipe, arch, 0)) for side in make_pair(recipe, arch, 1, device=DEVICE))
    report = compare_traces(ours, theirs, 0, Bounds(1e-12, {"optimizer": 1e-11}))
    record(f"gpu-float64-{name}-{batch}", filed(report))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", some(ARCHS, "lenet"))
def test_reduced(name: str, precision: Precision, batch: int, record: Record) -> None:
    """Every phase differs by at most four times what rounding alone moves it by, or 32 ULP. A large batch always has a
    ReLU or a pool at its edge in float32, so its gradients are compared by their norm, as those of coarser numbers."""
    kinks = precision == "float32" and batch == BATCHES[0]
    unit: Unit = "ulp" if kinks else "norm"
    # At its own first scale float16 overflows where both examples of a batch are of one class.
    recipe = replace(recipe_for(name, precision, batch), loss_scale=LossScale(initial=1024.0))
    found, alone = measure_step(recipe, network(name), unit, DEVICE, avoid_kinks=kinks)
    record(f"gpu-{precision}-{name}-{batch}", filed(found) | {"rounding": filed(alone)["largest"]})
    for phase in found.phases():
        worst = found.largest(phase)
        assert worst.size <= max(FACTOR * alone.largest(phase).size, LEAST[unit]), worst


@pytest.mark.parametrize("name", some(ARCHS, "lenet"))
def test_each_framework_agrees_with_itself_on_a_cpu(name: str) -> None:
    """One step in float64: what both would do wrong on a GPU, a kernel of one library, shows here."""
    recipe, arch = recipe_for(name, "float64"), network(name)
    with jax.enable_x64(True):
        with mock.patch.object(torch_impl.device, "pick_device", return_value=torch.device("cpu")):
            host: Any = make_pair(recipe, arch, 1)
        device: Any = make_pair(recipe, arch, 1, device=DEVICE)
        for here, there in zip(host, device, strict=True):
            ours, theirs = (side.step(one_batch(recipe, arch, 0)) for side in (here, there))
            names = (f"{here.name} on a CPU", f"{here.name} on a GPU")
            compare_traces(ours, theirs, 0, Bounds(1e-12, {"optimizer": 1e-11}), names)


@pytest.mark.parametrize("name", some(RECIPES, "digits"))
def test_curve(name: str, record: Record) -> None:
    """Every tensor of every step, in float64."""
    with jax.enable_x64(True):
        report = curves.run(curves.narrow_subject(name, STEPS, device=DEVICE))
    record(f"gpu-curve-{name}", filed(report) | {"losses": report.losses})


@pytest.mark.parametrize("name", some(RECIPES, "fashion_mnist_lenet"))
def test_float32_curve(name: str) -> None:
    """The loss of every step stays within PyTorch's own noise: its weights moved by one ULP before each."""
    subject = curves.narrow_subject(name, 12, "float32", DEVICE)
    ours = noise.torch_curve(subject)
    width = noise.envelope(subject, ours, 2 if SMALL else 5)
    assert noise.first_outside(ours, noise.flax_curve(subject), width) is None


@pytest.mark.parametrize("precision", some(["tf32", "bfloat16", "float16"], "bfloat16"))
@pytest.mark.parametrize("name", some(RECIPES, "fashion_mnist_lenet"))
def test_reduced_curve(name: str, precision: Precision) -> None:
    """The frameworks' losses part by at most four times what either's part by from its own in float32."""
    losses = {}
    for kind in ("float32", precision):
        subject = curves.narrow_subject(name, 12, kind, DEVICE)
        subject = replace(subject, recipe=replace(subject.recipe, loss_scale=LossScale(initial=128.0)))
        losses[kind] = np.array(curves.run(subject, Bounds(inf)).losses)
    own = np.abs(losses[precision] - losses["float32"]).max()
    between = np.abs(losses[precision][:, 0] - losses[precision][:, 1]).max()
    assert between <= max(FACTOR * own, noise.FLOOR * np.finfo(np.float32).eps * losses["float32"].max())


@pytest.mark.parametrize("name", some(test_techniques.techniques(), "frozen, then all, AdamW"))
def test_technique(name: str) -> None:
    """In float64, micro-batches, freezing and a ragged last batch included."""
    plain, recipe = subjects()["plain"], test_techniques.techniques()[name]
    bounds = Bounds(1e-10 if recipe.optimizer.name == "sgd" else 1e-9)
    with jax.enable_x64(True):
        curves.run(noise.Subject(recipe, plain.arch, plain.data, 10, DEVICE), bounds)


@pytest.mark.parametrize("name", some(test_optim.SPECS, "adamw"))
def test_fused_optimizers(name: str) -> None:
    """A thousand steps on equal gradients, PyTorch's on the device against optax's."""
    spec, rows = test_optim.SPECS[name], test_optim.gradients(1)
    start = {name: np.random.default_rng(0).standard_normal(shape) for name, shape in test_optim.SHAPES.items()}
    with jax.enable_x64(True):
        theirs = test_optim.flax_path(spec, start, rows)
    ours = test_optim.torch_path(spec, start, rows, torch_place())
    worst = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    assert worst < 1e-12, worst


def test_float16_leaves_out_the_same_steps() -> None:
    initial, steps = (2.0**20, 7) if SMALL else (2.0**30, 17)
    rows = test_techniques.scales(LossScale(initial=initial), steps, DEVICE)
    assert rows[1][1] == 0, "it must overflow at first"
    assert rows[-1][1] > 0, "and then no more"


def small_states() -> tuple[Subject, Any, Any]:
    """A subject, and both frameworks' states of it after two steps."""
    subject = subjects()["plain"]
    recipe = replace(subject.recipe, precision="float32")
    ours, theirs = make_states(recipe, subject.arch, steps_per_epoch(subject.data, recipe), device=DEVICE)
    for batch in first_batches(subject.data, recipe, 2):
        torch_impl.train.train_step(ours, torch_impl.feed.to_device(batch, ours.device))
        theirs, _ = flax_impl.train.train_step(theirs, flax_impl.feed.to_device(batch, theirs.device))
    return replace(subject, recipe=recipe), ours, theirs


@pytest.mark.parametrize("ten", [False, True], ids=["centre", "ten crops"])
def test_evaluation(ten: bool) -> None:
    """The same right guesses, and the same loss, of the same network in float64."""
    subject = subjects()["plain"]
    with jax.enable_x64(True):
        ours, theirs = make_states(subject.recipe, subject.arch, 4, device=DEVICE)
        [one] = torch_impl.feed.feeds([subject.data], subject.recipe, ours.device)
        [other] = flax_impl.feed.feeds([subject.data], subject.recipe, theirs.device)
        left = torch_impl.evaluate.evaluate(ours.model, one, ten=ten)
        right = flax_impl.evaluate.evaluate(theirs.model, theirs.variables, other, ten=ten)
    assert (left.top1, left.top5, left.count) == (right.top1, right.top5, right.count)
    assert left.loss == pytest.approx(right.loss, rel=1e-12)


def test_weights_go_there_and_back() -> None:
    """From the device through the converter and back, bit for bit."""
    subject, ours, _ = small_states()
    state = {name: tensor.cpu() for name, tensor in ours.model.state_dict().items()}
    variables = jax.device_put(flax_impl.convert.from_torch(state, subject.arch), flax_impl.device.pick_device(DEVICE))
    back = to_torch(jax.device_get(variables), subject.arch)
    assert back.keys() == {name for name in state if "tracked" not in name}
    assert all(np.array_equal(state[name].numpy(), array) for name, array in back.items())


def test_checkpoints_go_there_and_back(tmp_path: Path) -> None:
    """Everything that a step changes, bit for bit, and the next step, too."""
    subject, ours, theirs = small_states()
    fresh, blank = make_states(subject.recipe, subject.arch, 4, device=DEVICE)
    progress = Progress.start(subject.recipe, subject.arch, step=2)
    torch_impl.checkpoint.save(tmp_path / "one.pt", ours, progress)
    torch_impl.checkpoint.load(tmp_path / "one.pt", fresh)
    flax_impl.checkpoint.save(tmp_path / "two.orbax", theirs, progress)
    blank, _ = flax_impl.checkpoint.load(tmp_path / "two.orbax", blank)
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(tensor, fresh.model.state_dict()[name]), name
    memory = torch_impl.optim.optimizer_state(ours.optimizer, ours.model).slots
    again = torch_impl.optim.optimizer_state(fresh.optimizer, fresh.model).slots
    assert jax.tree.all(jax.tree.map(np.array_equal, memory, again))
    assert all(map(np.array_equal, jax.tree.leaves(theirs), jax.tree.leaves(blank)))


@pytest.mark.parametrize("kept", [True, False], ids=["resident", "streamed"])
def test_feed(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the device is what the pipeline gave, from pixels that are there or copied beside the step."""
    data, recipe = replace(tiles(32, 3), ids=np.arange(40) * 7), replace(RECIPES["cifar10_best"], batch_size=16)
    places: dict[str, Any] = {"torch": torch_place(), "flax": flax_impl.device.pick_device(DEVICE)}
    hosts: dict[str, Any] = {"torch": torch.device("cpu"), "flax": jax.devices("cpu")[0]}
    modules: dict[str, Any] = {"torch": torch_impl.feed, "flax": flax_impl.feed}
    for framework, module in modules.items():
        if not kept:
            monkeypatch.setattr(module, "RESIDENT_SHARE", 0.0)
            monkeypatch.setattr(module, "memory", lambda device: 1.0)
        [feed] = module.feeds([data], recipe, places[framework])
        assert (feed.kept is not None) == kept
        for (_, inputs), batch in zip(feed(0, train=True), first_batches(data, recipe, 3), strict=True):
            there = module.to_device(batch, hosts[framework])
            expected, found = (
                [leaf.numpy(force=True) if framework == "torch" else np.asarray(leaf) for leaf in jax.tree.leaves(each)]
                for each in (there, inputs)
            )
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", some(["everything", "batch norm"], "batch norm"))
def test_a_world_of_one(name: str, tmp_path: Path) -> None:
    """DistributedDataParallel, SyncBatchNorm and the sums over NCCL change nothing, in float64."""
    subject = subjects()[name]
    plain, together = (make_pair(subject.recipe, subject.arch, 4, device=DEVICE)[0] for _ in range(2))
    losses: list[list[float]] = []
    backend = "gloo" if SMALL else "nccl"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with mock.patch.object(World, "alone", new=False):
            torch_impl.world.share(together.state, World(), 0)
            for batch in first_batches(subject.data, subject.recipe, 5):
                losses.append([])
                for side in (plain, together):
                    inputs = torch_impl.feed.to_device(batch, side.state.device)
                    sums = torch_impl.world.add_up(torch_impl.train.train_step(side.state, inputs), World())
                    losses[-1].append(float(sums["loss"]))
    finally:
        torch.distributed.destroy_process_group()
    assert isinstance(together.state.network, torch.nn.parallel.DistributedDataParallel)
    ours, theirs = np.array(losses).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_deterministic_runs_repeat(framework: Framework) -> None:
    """Two processes with `--deterministic` take the same steps, bit for bit: all kinds of layers that there are."""
    names = some(["alexnet_bn", "alexnet_lrn"], "lenet")
    command = [sys.executable, "-m", "parity_tests.repeat", framework, DEVICE, *names]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False) for _ in range(2)]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    one, other = (json.loads(run.stdout) for run in runs)
    assert one == other
    assert len({*one.values()}) == len(names)


@needs_a_compiler
def test_a_compiled_step_is_the_eager_one() -> None:
    """PyTorch's, in float64, everything on."""
    subject, losses = subjects()["everything"], []
    for compiled in (False, True):
        torch._dynamo.reset()
        state = torch_impl.state.init_state(subject.recipe, subject.arch, 4, torch_place(), compiled=compiled)
        batches = first_batches(subject.data, subject.recipe, 6)
        sums = [torch_impl.train.train_step(state, torch_impl.feed.to_device(batch, state.device)) for batch in batches]
        losses.append([float(each["loss"]) for each in sums])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
