"""What the shared dropout costs: its share of a training step of `alexnet`, in one run, on this machine.

`python -m benchmarks.dropout` writes benchmarks/results/dropout-DEVICE.json.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch

from common.arch.zoo import ARCHS
from common.data.synthetic import pixels
from common.recipes.spec import Optimizer, Preprocess, Recipe
from common.system import package_versions
from parity_tests import results
from parity_tests.material import first_batches
from parity_tests.results import RESULTS
from torch_impl.device import describe, pick_device
from torch_impl.dropout import bernoulli, module_key
from torch_impl.feed import to_device
from torch_impl.state import TrainState, init_state
from torch_impl.train import train_step

BATCH, REPEATS = 128, 5


def seconds(device: torch.device, function: object, *arguments: object) -> float:
    """Wall time of one call, work on the device included."""
    started = perf_counter()
    function(*arguments)  # type: ignore[operator]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - started


def draw_masks(state: TrainState, device: torch.device) -> None:
    """The two masks of one step: 128 x 9216 and 128 x 4096."""
    for name, width in (("drop6", 9216), ("drop7", 4096)):
        bernoulli(module_key(state.dropout.key, (name,)), 0.5, BATCH * width, wide=False, device=device)


def main() -> None:
    """Time steps and masks in turn, and write the ratio of their medians."""
    arch, device = ARCHS["alexnet"], pick_device("auto")
    optimizer = Optimizer(lr=0.01, momentum=0.9, weight_decay=1e-4)
    recipe = Recipe("dropout", "pixels", "alexnet", "torch", 1, BATCH, optimizer, preprocess=Preprocess(std=(0.25,)))
    state = init_state(recipe, arch, 1, device)
    inputs = to_device(next(iter(first_batches(pixels(arch, BATCH), recipe, 1))), device)
    train_step(state, inputs)
    draw_masks(state, device)
    pairs = [
        (seconds(device, train_step, state, inputs), seconds(device, draw_masks, state, device)) for _ in range(REPEATS)
    ]
    step, masks = (median(column) for column in zip(*pairs, strict=True))
    result = {
        "device": describe(device),
        "batch": BATCH,
        "step_seconds": round(step, 4),
        "masks_seconds": round(masks, 4),
        "share_percent": round(100 * median(m / s for s, m in pairs), 2),
        "pairs": [[round(s, 4), round(m, 4)] for s, m in pairs],
        "versions": package_versions(),
    }
    path = RESULTS / f"dropout-{device.type}.json"
    results.file(path, result)
    print(f"{path}: masks take {result['share_percent']} % of a step on {result['device']}")


if __name__ == "__main__":
    main()
