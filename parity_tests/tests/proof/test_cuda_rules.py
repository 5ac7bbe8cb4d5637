"""What a GPU refuses, refused without one: steps, whole runs and the tests for a GPU themselves, on a CPU's tensors
under CUDA's rules (`parity_tests.cuda_rules`); and what differs from run to run there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flax_impl.evaluate
import flax_impl.train
import torch_impl.device
import torch_impl.evaluate
import torch_impl.train
import torch_impl.world
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.data.batch import Batch
from common.recipes.spec import Optimizer, Precision, Recipe
from common.recipes.zoo import RECIPES
from common.training.options import TrainOptions
from common.world import World
from flax_impl import feed as flax_feed
from parity_tests.cuda_rules import GPU, CudaRules, Refused, cuda_rules, step
from parity_tests.material import first_batches, narrow
from parity_tests.results import ROOT
from parity_tests.sides import make_states
from parity_tests.single_step import one_batch, recipe_for
from parity_tests.subjects import subjects, with_everything
from parity_tests.tests.proof.test_gpu import need_gpu
from torch_impl import feed as torch_feed
from torch_impl.state import init_state


@dataclass(frozen=True)
class Case:
    """A recipe on a small network."""

    recipe: Recipe
    arch: Arch
    batch: Batch


def case(name: str, precision: Precision = "float32", **changes: Any) -> Case:
    subject = subjects()["plain" if name in ("adamw", "clip", "accumulate") else name]
    recipe = with_everything(subject.recipe) if name == "accumulate" else subject.recipe
    recipe = replace(recipe, precision=precision, **changes)
    [batch] = first_batches(subject.data, recipe, 1)
    return Case(recipe, subject.arch, batch)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {},
    "batch norm": {},
    "lrn": {},
    "adamw": {"optimizer": Optimizer(name="adamw", lr=1e-3, weight_decay=0.1)},
    "clip": {"optimizer": Optimizer(lr=0.1, momentum=0.9, clip_norm=0.1)},
}


@pytest.fixture
def rules() -> Iterator[CudaRules]:
    torch_impl.device.constant.cache_clear()
    with cuda_rules() as rules:
        yield rules
    torch_impl.device.constant.cache_clear()


def two_steps(rules: CudaRules, given: Case) -> tuple[Any, dict[str, torch.Tensor]]:
    """The second step finds constants, optimizer memory and statistics where the first one left them."""
    state, inputs = init_state(given.recipe, given.arch, 4, GPU), torch_feed.to_device(given.batch, GPU)
    train_step = step(rules, torch_impl.train.train_step)
    train_step(state, inputs)
    return state, train_step(state, inputs)


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "float32") for name in CASES), ("accumulate", "float64"), ("plain", "bfloat16")]
)
def test_a_step_keeps_to_the_device(
    name: str, precision: Precision, rules: CudaRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, sums = two_steps(rules, case(name, precision, **CASES[name]))
    assert {value.device for value in (*sums.values(), *state.model.parameters())} == {GPU}
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: None)
    total = torch_impl.world.add_up(sums, World(0, 2, even=False))
    assert {value.device for value in total.values()} == {GPU}


@pytest.mark.parametrize("ten", [False, True])
def test_an_evaluation_keeps_to_the_device(ten: bool, rules: CudaRules) -> None:
    given = case("plain")
    state, inputs = init_state(given.recipe, given.arch, 4, GPU), torch_feed.to_device(given.batch, GPU)
    eval_step = step(rules, torch_impl.evaluate.eval_step)
    eval_step(state.model, inputs, given.recipe, ten=ten)
    found = eval_step(state.model, inputs, given.recipe, ten=ten)
    assert {value.device for value in found.values()} == {GPU}


def test_a_whole_run_keeps_to_the_device(rules: CudaRules, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, evaluation, checkpoints and the published network, as `python -m torch_impl.train` does them."""
    for module in (torch_impl.device, torch_impl.evaluate):
        monkeypatch.setattr(module, "pick_device", lambda name: GPU)
    monkeypatch.setattr(torch_impl.train, "train_step", step(rules, torch_impl.train.train_step))
    monkeypatch.setattr(torch_impl.evaluate, "eval_step", step(rules, torch_impl.evaluate.eval_step))
    recipe = replace(RECIPES["digits"], arch="lenet", epochs=1, val_fraction=0.2)
    recipe = replace(recipe, preprocess=replace(recipe.preprocess, resize=28))
    run = torch_impl.train.fit(recipe, TrainOptions(out=tmp_path / "run"))
    assert run is not None
    assert (run / "model.safetensors").exists()


def _read_back(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    loss = f(logits, targets, **keywords)
    assert loss.item() >= 0
    return loss


def _as_array(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    np.asarray(logits.detach())
    return f(logits, targets, **keywords)


def _other_device(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return f(logits, targets, **keywords) + torch.ones(1)


def _stacked(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return torch.stack([f(logits, targets, **keywords), torch.tensor(0.0)]).sum()


def _number(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return f(logits, targets, **keywords) * torch.tensor(1.5, device=logits.device)


def _moved(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return f(logits.to("cpu"), targets.cpu(), **keywords)


def _compared(f: Any, logits: torch.Tensor, targets: torch.Tensor, **keywords: Any) -> torch.Tensor:
    assert not torch.equal(logits, targets)
    return f(logits, targets, **keywords)


FAULTS = {
    _compared: "equal: a number is read back",
    _read_back: "item: a number is read back",
    _as_array: "becomes no numpy array",
    _other_device: "not on the same device",
    _stacked: "stack: tensors are not on the same device",
    _number: "a constant is made on the GPU",
    _moved: "a number is read back",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__[1:])
def test_a_planted_fault_is_refused(fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is quite in order on a CPU."""
    original, given = torch.nn.functional.cross_entropy, case("plain")
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda *args, **options: fault(original, *args, **options)
    )
    state = init_state(given.recipe, given.arch, 4, torch.device("cpu"))
    torch_impl.train.train_step(state, torch_feed.to_device(given.batch, torch.device("cpu")))
    torch_impl.device.constant.cache_clear()
    with cuda_rules() as rules, pytest.raises(Refused, match=FAULTS[fault]):
        two_steps(rules, given)
    torch_impl.device.constant.cache_clear()


# Whole curves, 16-bit scales and two processes each take tens of seconds. What they do to a device, a step of each kind
# and a whole run do above.
BRIEF = "not curve and not technique and not float16 and not bfloat16 and not repeat"


@pytest.mark.parametrize(
    ("chosen", "least"), [(BRIEF, 15), pytest.param("test", 24, marks=pytest.mark.full)], ids=["brief", "all"]
)
def test_the_tests_for_a_gpu_run(chosen: str, least: int, tmp_path: Path) -> None:
    """In small, under CUDA's rules: when there is a GPU, they measure."""
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junit-xml={report}", "-p", "no:cacheprovider"]
    command += ["-k", chosen, "parity_tests/tests/proof/test_gpu.py"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=ROOT, env=kept | {"PARITY_DEVICE": "cpu"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    [suite] = ElementTree.parse(report).getroot()
    assert int(suite.attrib["tests"]) - int(suite.attrib["skipped"]) >= least


def test_a_gpu_that_is_asked_for_must_be_there() -> None:
    """Where all tests of a GPU would skip."""
    need_gpu(True, asked=True)
    with pytest.raises(pytest.skip.Exception):
        need_gpu(False, asked=False)
    with pytest.raises(pytest.fail.Exception, match="no GPU that both"):
        need_gpu(False, asked=True)


def test_a_flax_step_moves_nothing_by_itself() -> None:
    """Once its inputs are on the device: JAX is told to refuse what it would otherwise copy without a word."""
    given = case("plain")
    _, state = make_states(given.recipe, given.arch, 4)
    inputs = flax_feed.to_device(given.batch, jax.devices("cpu")[0])
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, sums = flax_impl.train.train_step(state, inputs)
        found = flax_impl.evaluate.eval_step(state.model, state.variables, inputs, given.recipe)
    assert np.isfinite(float(sums["loss"]))
    assert float(found["count"]) == len(given.batch.labels)


# Whose results differ from run to run on a GPU, of those that a step like ours could meet: the list of
# https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
DIFFERING = (
    *("adaptive_avg_pool2d_backward", "avg_pool3d_backward", "adaptive_max_pool2d_backward", "scatter_add", "put_"),
    *("max_pool3d_with_indices_backward", "fractional_max_pool2d_backward", "upsample_bilinear2d_backward", "histc"),
    *("reflection_pad2d_backward", "replication_pad2d_backward", "grid_sampler_2d_backward", "nll_loss2d", "cumsum"),
    *("embedding_bag", "bincount", "median", "kthvalue", "ctc_loss", "index_add", "scatter_reduce"),
)


class Operations(TorchDispatchMode):
    """Notes what PyTorch computes, the backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function.overloadpacket).removeprefix("aten."))
        return function(*args, **(kwargs or {}))


def differing(arch: Arch, recipe: Recipe) -> set[str]:
    state = init_state(recipe, arch, 1, torch.device("cpu"))
    inputs = torch_feed.to_device(one_batch(recipe, arch, 0), state.device)
    with Operations() as seen:
        torch_impl.train.train_step(state, inputs)
    assert {"convolution_backward", "max_pool2d_with_indices_backward"} <= seen.names
    return {name for name in seen.names for word in DIFFERING if word in name}


@pytest.mark.parametrize("name", ARCHS)
def test_nothing_in_a_step_differs_from_run_to_run(name: str) -> None:
    """So that `--deterministic` finds an algorithm for everything; where an adaptive pool has something to do, too."""
    arch = narrow(ARCHS[name])
    assert not differing(arch, recipe_for(name, "float32"))
    if arch.adaptive_pool:
        height, width, _ = arch.image
        assert not differing(arch.adapt(height=height + 31, width=width + 31), recipe_for(name, "float32"))


@pytest.mark.parametrize(
    ("name", "own", "plain", "word"),
    [
        ("alexnet_lrn", "LocalResponseNorm", torch.nn.LocalResponseNorm, "avg_pool3d_backward"),
        ("alexnet", "AdaptiveAvgPool2d", torch.nn.AdaptiveAvgPool2d, "adaptive_avg_pool2d_backward"),
    ],
)
def test_pytorchs_own_layers_differ(
    name: str, own: str, plain: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_impl.model, own, plain)
    arch = narrow(ARCHS[name])
    found = differing(arch.adapt(height=255, width=255), recipe_for(name, "float32"))
    assert any(word in each for each in found)
