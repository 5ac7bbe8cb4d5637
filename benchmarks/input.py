"""Photographs read from disk: throughput per core beside torchvision's, and memory as the data grows.

`python -m benchmarks.input` writes benchmarks/results/input-cpu.json. It makes its photographs itself, at ImageNet's
usual size and at a telephone's, from the two that scikit-learn carries; the page cache then holds them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import psutil
from PIL import Image
from sklearn.datasets import load_sample_images

from common.data.load import load_dataset
from common.data.pipeline import batches
from common.recipes.zoo import IMAGENET_MEAN, IMAGENET_STD, get_recipe
from common.system import package_versions
from parity_tests import results
from parity_tests.results import RESULTS

WORKERS, BATCH, ROUNDS = 2, 32, 15
SKIPPED = 4  # batches at the start, while processes start
SETS = {"500x375": ((500, 375), 40), "2000x1500": ((2000, 1500), 4)}  # size, batches measured
GROWTH = (1_000, 10_000, 100_000)
Seconds = tuple[float, float]


def make_photographs(root: Path, size: tuple[int, int], names: int, files: int = 64) -> float:
    """Write `files` random parts of two photographs as JPEG, two thirds of them lying, under `names` names (links).

    Returns:
        Their mean size in bytes.
    """
    rng, originals = np.random.default_rng(0), [Image.fromarray(image) for image in load_sample_images().images]
    written: list[Path] = []
    for i in range(names):
        path = root / "train" / f"n{i % 100:08}" / f"n{i % 100:08}_{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i >= files:
            path.hardlink_to(written[i % files])
            continue
        original = originals[i % 2]
        width, height = (int(side * rng.uniform(0.6, 1)) for side in original.size)
        left, top = (int(rng.uniform(0, room)) for room in (original.width - width, original.height - height))
        part = original.crop((left, top, left + width, top + height))
        part.resize(size if i % 3 else size[::-1], Image.Resampling.BICUBIC).save(path, quality=95)
        written.append(path)
    for folder in (root / "train").iterdir():  # classes are those of both splits
        (root / "test" / folder.name).mkdir(parents=True)
        first = next(folder.iterdir())
        (root / "test" / folder.name / first.name).hardlink_to(first)
    return sum(path.stat().st_size for path in written) / len(written)


def ours(root: Path, workers: int) -> Iterator[Any]:
    """This project's batches: uint8, flips left to the device."""
    train, _ = load_dataset(f"folder:{root}")
    return batches(replace(train, workers=workers), replace(get_recipe("imagenet"), batch_size=BATCH), 0, train=True)


def torchvisions(root: Path, *last: Any) -> Iterator[Any]:
    """torchvision's, of its reference transforms."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

    data = ImageFolder(root / "train", Compose([RandomResizedCrop(224), RandomHorizontalFlip(), *last]))
    return iter(DataLoader(data, BATCH, shuffle=True, num_workers=WORKERS))


def contenders() -> dict[str, Callable[[Path], Iterator[Any]]]:
    """What is compared, by name."""
    from torchvision.transforms import Normalize, PILToTensor, ToTensor

    return {
        "ours, workers": lambda root: ours(root, WORKERS),
        "ours, threads": lambda root: ours(root, 0),
        "torchvision, uint8": lambda root: torchvisions(root, PILToTensor()),
        "torchvision, float32": lambda root: torchvisions(root, ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)),
    }


def clock() -> Seconds:
    """Seconds on the wall, and of all cores by this process and those it started."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    times = [process.cpu_times() for process in family]
    return perf_counter(), sum(time.user + time.system for time in times)


def rates(read: Iterator[Any], count: int) -> tuple[float, float]:
    """Images a second, on the wall and for each second of a core, over `count` batches in the middle of a pass."""
    next(islice(read, SKIPPED - 1, None))
    before = clock()
    next(islice(read, count - 1, None))
    after = clock()
    if close := getattr(read, "close", None):
        close()
    wall, cpu = (end - start for start, end in zip(before, after, strict=True))
    return count * BATCH / wall, count * BATCH / cpu


def throughput(size: tuple[int, int], count: int) -> dict[str, Any]:
    """Every contender in turn, `ROUNDS` times, on the same photographs."""
    with TemporaryDirectory() as folder:
        bytes_each = make_photographs(Path(folder), size, (SKIPPED + count + 4 * WORKERS) * BATCH)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders()}
        for _ in range(ROUNDS):
            for name, read in contenders().items():
                found[name].append(rates(read(Path(folder)), count))
    result: dict[str, Any] = {"bytes_each": round(bytes_each)}
    for name, pairs in found.items():
        wall, core = zip(*pairs, strict=True)
        result[name] = {
            "images_per_second": round(median(wall)),
            "images_per_core_second": round(median(core)),
            "rounds_per_core_second": [round(rate) for rate in core],
        }
    for own, other in product(("ours, workers", "ours, threads"), ("torchvision, uint8", "torchvision, float32")):
        ratios = [a[1] / b[1] for a, b in zip(found[own], found[other], strict=True)]
        result[f"{own} to {other}"] = round(median(ratios), 3)
    return result


def resident(process: psutil.Process) -> int:
    """MiB of a process's own memory, without what it shares with others."""
    return process.memory_full_info().uss >> 20


def memory(root: Path) -> dict[str, int]:
    """The largest own memory of this process and of a worker over 40 batches of a pass, after its first."""
    largest = {"parent_mib": 0, "worker_mib": 0}
    for batch in islice(ours(root, WORKERS), 40):
        del batch
        workers = map(resident, psutil.Process().children())
        seen = {"parent_mib": resident(psutil.Process()), "worker_mib": max(workers)}
        largest = {name: max(size, seen[name]) for name, size in largest.items()}
    return largest


def growth() -> dict[str, dict[str, int]]:
    """`memory` for each size of a set, in a process of its own."""
    found = {}
    for names in GROWTH:
        with TemporaryDirectory() as folder:
            make_photographs(Path(folder), (500, 375), names)
            command = [sys.executable, __file__, folder]
            found[f"{names:,}"] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def main() -> None:
    """Measure, and write the figures."""
    if len(sys.argv) > 1:
        print(json.dumps(memory(Path(sys.argv[1]))))
        return
    result = {
        "cores": len(os.sched_getaffinity(0)),
        "workers": WORKERS,
        "batch": BATCH,
        "memory": growth(),
        "throughput": {name: throughput(size, count) for name, (size, count) in SETS.items()},
        "versions": package_versions(("pillow", "simplejpeg")),
    }
    path = RESULTS / "input-cpu.json"
    results.file(path, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
