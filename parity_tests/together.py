"""What each of several processes runs in a test, under `common.commands.launch`."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flax_impl.accumulate
import flax_impl.device
import flax_impl.evaluate
import flax_impl.feed
import flax_impl.train
import flax_impl.world
import torch_impl.device
import torch_impl.evaluate
import torch_impl.feed
import torch_impl.state
import torch_impl.train
import torch_impl.world
from common.arch.zoo import ARCHS
from common.data.batch import Batch
from common.data.pipeline import steps_per_epoch
from common.frameworks import Framework
from common.recipes.spec import FineTune, LossScale, Optimizer
from common.runs.scores import Scores
from common.world import World
from flax_impl.convert import to_torch
from parity_tests import material
from parity_tests.material import first_batches, narrow
from parity_tests.mutants import Patch, wrap
from parity_tests.sides import make_states
from parity_tests.subjects import Subject, subjects, with_everything, with_norm
from torch_impl.layers import SyncBatchNorm

STEPS = 6  # of which the fourth has two examples, fewer than the processes may be


ACCUMULATION = "accumulation"  # three processes have 3, 3 and 2 rows, in micro-batches of two and a rest
SYNC_NORM = "sync_norm"  # a name beside those of scenarios
UNEVEN = (0, 5, 7, 7)  # where its rows are cut


@dataclass(frozen=True)
class Trace:
    """What one process saw: each step's loss per example, right guesses and examples, and what they led to."""

    steps: np.ndarray
    scores: Scores
    weights: dict[str, np.ndarray]
    scales: tuple[float, ...]


def scenarios() -> dict[str, Subject]:
    """Recipes that leave nothing out which several processes could do wrong; 23 examples in batches of 7."""
    plain = subjects()["plain"]
    data = replace(plain.data, ids=plain.data.ids[:23])
    lenet = narrow(ARCHS["lenet"].adapt(height=32, width=32, channels=3), conv=5)
    lenet = replace(lenet, convs=with_norm(lenet.convs), dense=tuple(replace(d, dropout=0.5) for d in lenet.dense))
    small = replace(plain.recipe, batch_size=7)
    everything = replace(with_everything(small), accumulate=1)
    frozen = replace(everything, finetune=FineTune("dense", freeze_epochs=1, backbone_lr=0.1))
    adam = replace(everything, optimizer=Optimizer(name="adamw", lr=1e-3, weight_decay=0.1, clip_norm=1.0))
    half = replace(everything, precision="float16", loss_scale=LossScale(initial=2.0**20))
    return {
        "everything": Subject(everything, lenet, data),
        "alexnet": Subject(small, plain.arch, data),
        "alexnet_bn, everything": Subject(everything, subjects()["batch norm"].arch, data),
        "frozen, then all": Subject(frozen, lenet, data),
        "adamw": Subject(adam, lenet, data),
        ACCUMULATION: Subject(replace(with_everything(small), batch_size=8, accumulate=4), plain.arch, data),
        "float16": Subject(half, lenet, data),
    }


def run(framework: Framework, subject: Subject, world: World) -> Trace:
    """Take `STEPS` steps from the weights that PyTorch draws, and evaluate."""
    return (_run_torch if framework == "torch" else _run_flax)(subject, world)


def _run_torch(subject: Subject, world: World) -> Trace:
    recipe, data = subject.recipe, subject.data
    state = torch_impl.state.init_state(recipe, subject.arch, steps_per_epoch(data, recipe), torch.device("cpu"))
    torch_impl.world.share(state, world, 0)
    steps, scales = [], []
    for batch in first_batches(data, recipe, STEPS, world):
        sums = torch_impl.world.add_up(_torch_step(state, batch), world)
        steps.append([float(sums[name]) for name in ("loss", "correct", "count")])
        scales.append(state.scaler.get_scale())
    [feed] = torch_impl.feed.feeds([data], recipe, state.device, world)
    scores = torch_impl.evaluate.evaluate(state.model, feed)
    weights = {name: tensor.numpy() for name, tensor in state.model.state_dict().items() if "tracked" not in name}
    return Trace(np.array(steps), scores, weights, tuple(scales))


def _torch_step(state: torch_impl.state.TrainState, batch: Batch) -> dict[str, torch.Tensor]:
    inputs = torch_impl.feed.to_device(batch, torch.device("cpu"))
    return torch_impl.train.train_step(state, inputs, batch.first, batch.count)


def _run_flax(subject: Subject, world: World) -> Trace:
    recipe, data = subject.recipe, subject.data
    _, state = make_states(recipe, subject.arch, steps_per_epoch(data, recipe))
    state, _ = flax_impl.world.share(state, world, 0)
    place = state.device
    steps, scales = [], []
    for batch in first_batches(data, recipe, STEPS, world):
        state, sums = flax_impl.train.train_step(state, flax_impl.feed.to_device(batch, place))
        sums = flax_impl.world.add_up(sums, world)
        steps.append([float(sums[name]) for name in ("loss", "correct", "count")])
        scales.append(1.0 if state.scaler.scale is None else float(state.scaler.scale))
    [feed] = flax_impl.feed.feeds([data], recipe, place, world)
    scores = flax_impl.evaluate.evaluate(state.model, state.variables, feed)
    weights = to_torch(jax.device_get(state.variables), subject.arch)
    return Trace(np.array(steps), scores, dict(weights), tuple(scales))


def exchanges(subject: Subject) -> set[str]:
    """The operations by which the devices of this process exchange data in one step of Flax."""
    recipe, mesh = subject.recipe, jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    _, state = make_states(recipe, subject.arch, steps_per_epoch(subject.data, recipe))
    state = state.replace(processes=jax.device_count())
    [batch] = first_batches(subject.data, recipe, 1)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    given: Any = (batch.images, batch.labels, batch.draws, batch.facts)
    inputs = jax.device_put(flax_impl.feed.Inputs(*given), NamedSharding(mesh, PartitionSpec("data")))
    program = flax_impl.train.train_step.lower(state, inputs).compile().as_text() or ""
    names = r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    return set(re.findall(names, program))


def batch_norm() -> torch.nn.BatchNorm2d:
    """With odd parameters and statistics."""
    norm = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.2, dtype=torch.float64)
    for number, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
        cast(torch.Tensor, tensor).data += torch.arange(3) * 0.1 * (number + 1)
    return norm


def normalise(norm: torch.nn.BatchNorm2d, rows: slice) -> dict[str, np.ndarray]:
    """What batch norm makes of some rows of one made-up batch of 7, its gradients and its statistics."""
    rng = np.random.default_rng(0)
    x, weights = (torch.from_numpy(rng.normal(1, 2, (7, 3, 4, 5))) for _ in range(2))
    own = x[rows].requires_grad_()
    y = norm(own)
    (y**3 * weights[rows]).sum().backward()
    tensors = {"y": y, "x.grad": own.grad, "weight.grad": norm.weight.grad, "bias.grad": norm.bias.grad}
    return {name: cast(torch.Tensor, tensor).detach().numpy() for name, tensor in (tensors | norm.state_dict()).items()}


def save(path: Path, trace: Trace) -> None:
    """Write a trace as .npz."""
    scores = np.array([trace.scores.loss, trace.scores.top1, trace.scores.top5, trace.scores.count])
    weights = {f"weights/{name}": tensor for name, tensor in trace.weights.items()}
    arrays: dict[str, Any] = {"steps": trace.steps, "scores": scores, "scales": trace.scales, **weights}
    np.savez(path, **arrays)


def load(path: Path) -> Trace:
    """Read what `save` wrote."""
    with np.load(path) as file:
        loss, *counts = file["scores"].tolist()
        weights = {name.removeprefix("weights/"): file[name] for name in file.files if name.startswith("weights/")}
        return Trace(file["steps"], Scores(loss, *map(int, counts)), weights, tuple(file["scales"].tolist()))


def _mean_of_means(f: Any, backward: Any, state: Any, x: torch.Tensor, targets: Any, first: int, count: int) -> Any:
    return f(backward, state, x, targets, first, len(x) * state.world.size)


def _same_masks(f: Any, backward: Any, state: Any, x: torch.Tensor, targets: Any, first: int, count: int) -> Any:
    return f(backward, state, x, targets, 0, count)


def _padding_counts(f: Any, *args: Any, **kwargs: Any) -> Any:
    for batch in f(*args, **kwargs):
        yield replace(batch, facts=batch.facts._replace(real=None))


def _no_mask(f: Any, real: jax.Array) -> Any:
    return lambda call, inputs, keywords, context: call(*inputs, **keywords)


def _first_rows(f: Any, world: World, count: int) -> np.ndarray:
    return f(replace(world, rank=0), count)


FAULTS: dict[str, Patch] = {
    "mean of means": wrap(torch_impl.train, "accumulate", _mean_of_means),
    "same masks": wrap(torch_impl.train, "accumulate", _same_masks),
    "local batch norm": wrap(torch_impl.world, "synchronise_norms", lambda f, model: None),
    "padding counts": wrap(material, "batches", _padding_counts),
    "padding normalises": wrap(flax_impl.accumulate, "norm_over", _no_mask),
    "same rows": wrap(World, "rows", _first_rows),
}


def main(framework: Framework, folder: Path, *names: str) -> None:
    """Run scenarios, each "NAME" or "NAME with FAULT", and leave a trace of each by name and rank."""
    torch.set_num_threads(1)
    engine = torch_impl.world if framework == "torch" else flax_impl.world
    world = engine.join("cpu")
    jax.config.update("jax_enable_x64", True)
    for name in names:
        if name == SYNC_NORM:
            rows = slice(*UNEVEN[world.rank : world.rank + 2])
            np.savez(folder / f"{name}-{world.rank}", **cast(Any, normalise(SyncBatchNorm(batch_norm()), rows)))
            continue
        scenario, _, fault = name.partition(" with ")
        with FAULTS[fault]() if fault else nullcontext():
            if fault:
                jax.clear_caches()  # what was compiled without it
            trace = run(framework, scenarios()[scenario], world)
        save(folder / f"{name}-{world.rank}.npz", trace)
    engine.leave(world)


if __name__ == "__main__":
    main(cast(Framework, sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
