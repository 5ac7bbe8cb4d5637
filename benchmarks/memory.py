"""The most memory that each command holds, beside the plain loop's in a process of its own.

`python -m benchmarks.memory` writes benchmarks/results/memory-cpu.json; it makes its photographs itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tyro

from benchmarks.input import make_photographs
from benchmarks.settings import Contestant
from common.arch.spec import Arch
from common.arch.zoo import get_arch
from common.frameworks import FRAMEWORKS, Framework
from common.system import package_versions
from parity_tests import results
from parity_tests.results import RESULTS, ROOT

Task = Literal["train", "evaluate", "predict"]
TASKS: tuple[Task, ...] = ("train", "evaluate", "predict")
STEPS = 3  # of a plain loop
PHOTOGRAPHS = 192


@dataclass(frozen=True)
class Subject:
    """A network and its data.

    Attributes:
        recipe, words: what `train` is told. SGD with momentum, as the plain loops have it.
        arch, channels: of the plain loop.
        batch: of both.
    """

    recipe: str
    arch: str
    channels: int = 3
    batch: int = 64
    words: tuple[str, ...] = ("--optimizer.name", "sgd", "--optimizer.momentum", "0.9")


SUBJECTS = (Subject("digits", "alexnet_cifar", 1), Subject("imagenet", "alexnet"))


@dataclass(frozen=True)
class Options:
    """Measure every command, each beside the plain loop's, and file the figures.

    Attributes:
        plain: instead, be a plain loop that is measured: framework, task and place in `SUBJECTS`.
    """

    plain: tuple[Framework, Task, int] | None = None


def plain_loop(framework: Framework, task: Task, number: int) -> None:
    """Train so many steps, or score so many batches; prediction is of one image."""
    subject = SUBJECTS[number]
    arch = get_arch(subject.arch)
    arch = arch.adapt(channels=subject.channels, classes=10 if subject.channels == 1 else 100)
    batch = 1 if task == "predict" else subject.batch
    {"torch": _plain_torch, "flax": _plain_flax}[framework](task, arch, batch)


def _plain_torch(task: Task, arch: Arch, batch: int) -> None:
    import torch

    from benchmarks.plain_torch import PlainTorch, network

    if task == "train":
        PlainTorch(Contestant("plain_torch", arch.name, batch), arch).launch(STEPS, "fixed")
        return
    model, (height, width, channels) = network(arch).eval(), arch.image
    with torch.inference_mode():
        for _ in range(STEPS):
            model(torch.randn(batch, channels, height, width)).argmax(1)


def _plain_flax(task: Task, arch: Arch, batch: int) -> None:
    import jax

    from benchmarks.plain_flax import Network, PlainFlax, initialize

    if task == "train":
        PlainFlax(Contestant("plain_flax", arch.name, batch), arch).launch(STEPS, "fixed")
        return
    model, key = Network(arch), jax.random.key(0)
    score: Any = jax.jit(partial(model.apply, train=False))
    images = jax.random.normal(key, (batch, *arch.image))
    variables = initialize(model, key, images[:1])
    for _ in range(STEPS):
        score(variables, images).block_until_ready()


def peak(*words: str | Path) -> int:
    """The most memory, in MiB, that a process of `python -m ...` holds.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # of this one alone
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_maxrss >> 10


def commands(subject: Subject, framework: Framework, folder: Path) -> Iterator[tuple[Task, list[str | Path]]]:
    """Those of one framework, in the order in which they need each other."""
    run = folder / f"{subject.recipe}-{framework}"
    words, image = [*subject.words, "--epochs", "1", "--batch-size", str(subject.batch)], folder / "digit.png"
    if subject.channels == 3:
        words += ["--dataset", f"folder:{folder / 'photographs'}"]
        image = next((folder / "photographs").rglob("*.JPEG"))
    yield "train", [f"{framework}_impl.train", subject.recipe, *words, "--out", run]
    yield "evaluate", [f"{framework}_impl.evaluate", run]
    yield "predict", [f"{framework}_impl.predict", image, "--run", run]


def measure(subject: int, framework: Framework, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each task: ours, the plain loop's, and how many times as much ours is."""
    for task, words in commands(SUBJECTS[subject], framework, folder):
        ours, theirs = peak(*words), peak("benchmarks.memory", "--plain", framework, task, str(subject))
        row = {"network": SUBJECTS[subject].arch, "framework": framework, "task": task}
        yield row | {"mib": ours, "plain_mib": theirs, "ratio": round(ours / theirs, 3)}


def main() -> None:
    """Measure, and write the figures."""
    options = tyro.cli(Options, prog="python -m benchmarks.memory")
    if options.plain:
        plain_loop(*options.plain)
        return
    from PIL import Image

    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        make_photographs(folder / "photographs", (500, 375), PHOTOGRAPHS)
        Image.new("L", (64, 64), 20).save(folder / "digit.png")
        for subject in range(len(SUBJECTS)):
            for framework in FRAMEWORKS:
                for row in measure(subject, framework, folder):
                    print(json.dumps(row), flush=True)
                    rows.append(row)
        study = peak("study", "--out", folder / "site")
    path = RESULTS / "memory-cpu.json"
    results.file(path, {"rows": rows, "study_mib": study, "versions": package_versions()})
    print(f"study: {study} MiB; {path}")


if __name__ == "__main__":
    main()
