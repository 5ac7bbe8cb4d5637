"""One training step of an architecture at full width, in any precision: what is run, what is allowed, and why.

float64 shows the mathematics, float32 and bfloat16 the arithmetic. The bounds on those two are at most four times what
`measure_step` finds for rounding alone, each framework against float64: see
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
from parity_tests.sides import FlaxSide, TorchSide, make_pair
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
        case "bfloat16" | "float16" | "tf32":  # which has more bits than bfloat16; of its own it is not measured
            activation = 0.04 if name == "alexnet_bn" else 0.02  # 0.018 and 0.006 were measured for rounding alone
            forward = {"input": 1e-6, "activation": activation, "loss": 2e-3, "statistic": 0.01}
            return Bounds(0.5, forward, unit="norm")


def recipe_for(name: str, precision: Precision, batch: int = BATCH) -> Recipe:
    """Momentum, decay and dropout on, random pixels of the architecture's own size."""
    return Recipe(
        name=name,
        dataset="pixels",
        arch=name,
        init="torch",
        epochs=1,
        batch_size=batch,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
        preprocess=Preprocess(mean=(0.5,), std=(0.25,)),
        precision=precision,
    )


def compare_step(
    name: str,
    precision: Precision,
    bounds: Bounds | None = None,
    device: str = "cpu",
    *,
    batch: int = BATCH,
    arch: Arch | None = None,
) -> Report:
    """Both frameworks take one step from the same weights, on `batch` examples; `arch` may be given in place of `name`.

    A network is not smooth where a ReLU's input is zero or two pixels of a pool tie. In float32 rounding takes the two
    sides of such a place in one batch of three, and the gradients then differ by percents. A batch on which the
    frameworks took other branches counts for its forward pass alone, and the next one is tried. Coarser arithmetic
    meets kinks in every batch: there the first one counts.

    Raises:
        Mismatch: they differ by more than the bounds.
        AssertionError: no batch of several was free of kinks.
    """
    recipe, arch = recipe_for(name, precision, batch), arch or ARCHS[name]
    bounds, report = bounds or bounds_for(name, precision), Report()
    for left, right, examples in _tries(recipe, arch, device):
        ours, theirs = left.step(examples), right.step(examples)
        names = (left.name, right.name)
        if not avoids_kinks(precision) or same_branches(ours, theirs, arch):
            return compare_traces(ours, theirs, 0, bounds, names, report)
        forward, forward_of_flax = ({phase: trace[phase] for phase in FORWARD} for trace in (ours, theirs))
        compare_traces(forward, forward_of_flax, 0, bounds, names, report)
    raise AssertionError(f"{name}: each of {TRIES} batches met a kink; {precision} should meet one in three.")


def measure_step(
    recipe: Recipe, arch: Arch, unit: Unit, device: str = "cpu", *, avoid_kinks: bool
) -> tuple[Report, Report]:
    """How far the frameworks part in one step, and how far rounding alone moves every tensor.

    Args:
        recipe: `recipe_for` an architecture, in less than float64.
        arch: the architecture.
        unit: of the differences.
        device: "cpu" or "gpu".
        avoid_kinks: take a batch on which all go through the same branches.

    Returns:
        PyTorch against Flax; and the larger of the two differences when each is held to PyTorch in float64.

    Raises:
        AssertionError: no batch of several was free of kinks.
    """
    free = Bounds(inf, unit=unit)
    for left, right, batch in _tries(recipe, arch, device):
        start = {name: tensor.clone() for name, tensor in left.state.model.state_dict().items()}
        # Before the other state is made: that sets what products this process computes in.
        found = [side.step(batch) for side in (left, right)]
        wide = torch_impl.state.init_state(replace(recipe, precision="float64"), arch, 1, left.state.device)
        wide.model.load_state_dict(start)
        for module in wide.model.modules():
            if isinstance(module, SharedDropout):
                module.wide = False  # the masks of float32
        exact, alone = TorchSide(wide, arch).step(batch), Report()
        if not avoid_kinks or all(same_branches(trace, exact, arch) for trace in found):
            for trace in found:
                compare_traces(trace, _rounded(exact, trace), 0, free, report=alone)
            ours, theirs = found
            return compare_traces(ours, theirs, 0, free, (left.name, right.name)), alone
    raise AssertionError(f"{arch.name}: each of {TRIES} batches met a kink in {recipe.precision}.")


def avoids_kinks(precision: Precision) -> bool:
    """Whether a small batch may be free of kinks in this precision, and is then to be taken."""
    return precision in ("float64", "float32")


def _tries(recipe: Recipe, arch: Arch, device: str) -> Iterator[tuple[TorchSide, FlaxSide, Batch]]:
    """Both sides with the same weights, drawn anew, and one batch after the other; Flax's step is compiled once."""
    left, right = make_pair(recipe, arch, 1, device=device)
    start = right.state
    for seed in range(TRIES):
        if seed:
            left, right.state = TorchSide(torch_impl.state.init_state(recipe, arch, 1, left.state.device), arch), start
        yield left, right, one_batch(recipe, arch, seed)


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


def one_batch(recipe: Recipe, arch: Arch, seed: int) -> Batch:
    """Random pixels of an architecture's size."""
    return next(first_batches(pixels(arch, recipe.batch_size, seed), recipe, 1))
