"""One training step of an architecture at full width, in any precision: what is run, what is allowed, and why.

float64 shows the mathematics, float32 and bfloat16 the arithmetic. The bounds on those two are at most four times what
`rounding` measures, each framework against float64: see
`benchmarks/results/parity-cpu.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import inf

import numpy as np
import torch
import torch.nn.functional as F

import torch_impl.state
import torch_impl.train
from common.arch.spec import Arch, AvgPool, MaxPool
from common.arch.zoo import ARCHS
from common.data.batch import Batch
from common.data.synthetic import pixels
from common.recipes.spec import Optimizer, Precision, Preprocess, Recipe
from parity.compare import Bounds, Report, Trace, Unit, compare_traces
from parity_tests.material import first_batches
from parity_tests.sides import TorchSide, make_pair
from torch_impl.dropout import SharedDropout

BATCH = 2
TRIES = 8  # batches; a third of them have a kink within float32's rounding

FORWARD = ("batch", "input", "activation", "loss", "statistic")


def bounds_for(name: str, precision: Precision) -> Bounds:
    """What one step may differ by; the optimizer's memory adds the parameters' own rounding."""
    match precision:
        case "float64":
            return Bounds(1e-12, {"optimizer": 1e-11})
        case "float32":  # 10, 38 and 125 units were measured for rounding alone
            return Bounds({"lenet": 32, "alexnet_bn": 256}.get(name, 64), unit="ulp")
        case "bfloat16" | "float16":
            activation = 0.04 if name == "alexnet_bn" else 0.02  # 0.018 and 0.006 were measured for rounding alone
            forward = {"input": 1e-6, "activation": activation, "loss": 2e-3, "statistic": 0.01}
            return Bounds(0.5, forward, unit="norm")


def recipe_for(name: str, precision: Precision) -> Recipe:
    """Momentum, decay and dropout on, random pixels of the architecture's own size."""
    return Recipe(
        name=name,
        dataset="pixels",
        arch=name,
        init="torch",
        epochs=1,
        batch_size=BATCH,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
        preprocess=Preprocess(mean=(0.5,), std=(0.25,)),
        precision=precision,
    )


def compare_step(
    name: str,
    precision: Precision,
    bounds: Bounds | None = None,
    device: str = "cpu",
    avoid_kinks: bool | None = None,
) -> Report:
    """Both frameworks take one step from the same weights.

    A network is not smooth where a ReLU's input is zero or two pixels of a pool tie. In float32 rounding takes the two
    sides of such a place in one batch of three, and the gradients then differ by percents. A batch on which the
    frameworks took other branches counts for its forward pass alone, and the next one is tried. Coarser arithmetic
    meets kinks in every batch: there the first one counts, and `avoid_kinks` is off.

    Raises:
        Mismatch: they differ by more than the bounds.
        AssertionError: no batch of several was free of kinks.
    """
    recipe, arch = recipe_for(name, precision), ARCHS[name]
    bounds = bounds or bounds_for(name, precision)
    avoid_kinks = precision not in ("bfloat16", "float16") if avoid_kinks is None else avoid_kinks
    report = Report()
    for seed in range(TRIES):
        left, right = make_pair(recipe, arch, 1, device=device)
        ours, theirs = left.step(_batch(recipe, seed)), right.step(_batch(recipe, seed))
        names = (left.name, right.name)
        if not avoid_kinks or same_branches(ours, theirs, arch):
            return compare_traces(ours, theirs, 0, bounds, names, report)
        forward, forward_of_flax = ({phase: trace[phase] for phase in FORWARD} for trace in (ours, theirs))
        compare_traces(forward, forward_of_flax, 0, bounds, names, report)
    raise AssertionError(f"{name}: each of {TRIES} batches met a kink; {precision} should meet one in three.")


def rounding(
    name: str, precision: Precision, unit: Unit, device: str = "cpu", avoid_kinks: bool | None = None
) -> Report:
    """How far rounding alone moves every tensor: both frameworks in this precision against PyTorch in float64.

    Returns:
        For each tensor the larger of the two differences.

    Raises:
        AssertionError: no batch of several was free of kinks.
    """
    recipe, arch = recipe_for(name, precision), ARCHS[name]
    avoid_kinks = precision not in ("bfloat16", "float16") if avoid_kinks is None else avoid_kinks
    for seed in range(TRIES):
        left, right = make_pair(recipe, arch, 1, device=device)
        wide = torch_impl.state.init_state(replace(recipe, precision="float64"), arch, 1, left.state.device)
        wide.model.load_state_dict(left.state.model.state_dict())
        for module in wide.model.modules():
            if isinstance(module, SharedDropout):
                module.wide = False  # the masks of float32
        found = [side.step(_batch(recipe, seed)) for side in (left, right)]
        exact, report = TorchSide(wide, arch).step(_batch(recipe, seed)), Report()
        if not avoid_kinks or all(same_branches(trace, exact, arch) for trace in found):
            for trace in found:
                compare_traces(trace, _rounded(exact, trace), 0, Bounds(inf, unit=unit), report=report)
            return report
    raise AssertionError(f"{name}: each of {TRIES} batches met a kink in {precision}.")


def _rounded(exact: Trace, like: Trace) -> Trace:
    """A trace in the dtypes of another."""
    return {
        phase: {key: array.astype(like[phase][key].dtype) for key, array in tensors.items()}
        for phase, tensors in exact.items()
    }


def same_branches(left: Trace, right: Trace, arch: Arch) -> bool:
    """Whether every ReLU passed the same inputs and every max pool took the same pixels."""
    pairs = zip(_branches(left, arch), _branches(right, arch), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def _branches(trace: Trace, arch: Arch) -> Iterator[np.ndarray]:
    seen = trace["activation"]
    for name, spec in arch.named_convs():
        before = seen[f"{name}.norm" if spec.norm else f"{name}.conv"]
        yield before > 0
        x = F.relu(torch.from_numpy(before))
        for step in spec.after:
            if isinstance(step, AvgPool):
                x = F.avg_pool2d(x, step.size, step.stride)
            elif isinstance(step, MaxPool):
                x, winners = F.max_pool2d(x, step.size, step.stride, step.padding, return_indices=True)
                yield winners.numpy()
            else:
                x = F.local_response_norm(x, step.size, step.alpha * step.size, step.beta, step.k)
    for name, _ in list(arch.named_dense())[:-1]:
        yield seen[name] > 0


def _batch(recipe: Recipe, seed: int) -> Batch:
    return next(first_batches(pixels(ARCHS[recipe.arch], BATCH, seed), recipe, 1))
