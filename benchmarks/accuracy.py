"""Seconds of training until a test accuracy is reached, several runs: `python -m benchmarks.accuracy cifar10_fast`.

As airbench counts (arXiv:2404.00498): training alone, on a device that is warm. Compilation is timed beside it, on a
state that is thrown away; evaluation after each epoch is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

from benchmarks.bench import ENVIRONMENT
from benchmarks.packed import load
from benchmarks.settings import Device
from common.arch.spec import Arch
from common.commands.shell import guard
from common.data.dataset import Dataset
from common.data.pipeline import steps_per_epoch
from common.frameworks import Framework
from common.recipes.spec import Recipe
from common.recipes.zoo import RECIPES
from common.runs.files import write_json
from common.system import package_versions
from parity_tests.results import RESULTS, ROOT


@dataclass(frozen=True)
class Goal:
    """A test accuracy to reach.

    Attributes:
        recipe: a name.
        accuracy: of the test split.
        runs: with seeds 0, 1, ...
        epochs: in place of the recipe's.
        examples: of the training split, for tests; None: all.
    """

    recipe: str
    accuracy: float
    runs: int = 5
    epochs: int | None = None
    examples: int | None = None


GOALS = {
    "cifar10_fast": Goal("cifar10_fast", 0.78),
    "fashion_mnist_fast": Goal("fashion_mnist_fast", 0.866),
    "tiny": Goal("digits", 0.15, runs=1, epochs=2, examples=72),
}


class Run:
    """A training run that can be warmed up without leaving a trace."""

    def __init__(self, recipe: Recipe, train: Dataset, device: Device) -> None:
        self.recipe, self.train, self.steps = recipe, train, steps_per_epoch(train, recipe)
        self.feed = self.begin(recipe.model_arch(train.image, len(train.class_names)), device)

    def begin(self, arch: Arch, device: Device) -> Any:
        """Make the state; returns what takes batches to the device."""
        raise NotImplementedError

    def warm_up(self, inputs: Sequence[Any]) -> None:
        """Train on each of these and forget it."""
        raise NotImplementedError

    def train_on(self, inputs: Iterable[Any]) -> None:
        """Train on each of these, and wait until the device has finished."""
        raise NotImplementedError

    def accuracy(self, data: Dataset) -> float:
        """Of a split."""
        raise NotImplementedError

    def compile(self, test: Dataset) -> float:
        """Meet every shape once, in training and evaluation; returns the seconds."""
        started = perf_counter()
        inputs = [inputs for _, inputs in self.feed(0, train=True)]
        self.warm_up([inputs[0], inputs[-1]])
        self.accuracy(test)
        return perf_counter() - started

    def epoch(self, number: int) -> float:
        """Train one epoch, counted from 0; returns the seconds."""
        started = perf_counter()
        self.train_on(inputs for _, inputs in self.feed(number, train=True))
        return perf_counter() - started


class TorchRun(Run):
    """In PyTorch; compiled on a GPU."""

    def begin(self, arch: Arch, device: Device) -> Any:
        import torch

        from torch_impl import device as places
        from torch_impl import feed, state, train

        torch._dynamo.reset()  # it compiles so many versions of a function and no more, other runs' included
        place = places.pick_device(device)
        self.train_step = train.train_step
        self.state = state.init_state(self.recipe, arch, self.steps, place, compiled=device == "gpu")
        self.feeds = feed.feeds
        return self.feeds([self.train], self.recipe, place)[0]

    def warm_up(self, inputs: Sequence[Any]) -> None:
        state: Any = self.state
        parts = (state.model, state.optimizer, state.schedule)
        before = [deepcopy(part.state_dict()) for part in parts]
        self.train_on(inputs)
        for part, content in zip(parts, before, strict=True):
            part.load_state_dict(content)
        state.step = 0

    def train_on(self, inputs: Iterable[Any]) -> None:
        for each in inputs:
            sums = self.train_step(self.state, each)
        float(sums["loss"])
        next(self.state.model.parameters()).sum().item()  # the optimizer's part of the last step too

    def accuracy(self, data: Dataset) -> float:
        from torch_impl.evaluate import evaluate

        return evaluate(self.state.model, self.feeds([data], self.recipe, self.state.device)[0]).accuracy


class FlaxRun(Run):
    """In Flax."""

    def begin(self, arch: Arch, device: Device) -> Any:
        from flax_impl import device as places
        from flax_impl import feed, state, train

        place = places.pick_device(device)
        self.train_step = train.train_step
        self.state = state.init_state(self.recipe, arch, self.steps, place)
        self.feeds = feed.feeds
        return self.feeds([self.train], self.recipe, place)[0]

    def warm_up(self, inputs: Sequence[Any]) -> None:
        import jax
        import jax.numpy as jnp

        before = jax.tree.map(jnp.copy, self.state)  # a step donates the state's memory
        self.train_on(inputs)
        self.state = before

    def train_on(self, inputs: Iterable[Any]) -> None:
        import jax

        for each in inputs:
            self.state, _ = self.train_step(self.state, each)
        jax.block_until_ready(self.state.params)

    def accuracy(self, data: Dataset) -> float:
        from flax_impl.evaluate import evaluate

        [feed] = self.feeds([data], self.recipe, self.state.device)
        return evaluate(self.state.model, self.state.variables, feed).accuracy


def reach(goal: Goal, framework: Framework, device: Device, until: float) -> list[dict[str, Any]]:
    """Train the runs that begin before `until` (perf_counter), each to its end, and tell when it got there."""
    train, test = load(RECIPES[goal.recipe].dataset)
    train = replace(train, ids=train.ids[: goal.examples])
    results: list[dict[str, Any]] = []
    for seed in range(goal.runs):
        if perf_counter() > until:
            break
        recipe = replace(RECIPES[goal.recipe], seed=seed, epochs=goal.epochs or RECIPES[goal.recipe].epochs)
        run = (TorchRun if framework == "torch" else FlaxRun)(recipe, train, device)
        compile_seconds, seconds, reached = run.compile(test), 0.0, None
        accuracies = []
        for epoch in range(recipe.epochs):
            seconds += run.epoch(epoch)
            accuracies.append(run.accuracy(test))
            if reached is None and accuracies[-1] >= goal.accuracy:
                reached = {"epoch": epoch + 1, "seconds": seconds}
        results.append(
            {"seed": seed, "compile_seconds": compile_seconds, "seconds": seconds, "reached": reached}
            | {"test_accuracy": accuracies}
        )
    return results


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of the seconds to the goal, over the runs that got there."""
    seconds = [run["reached"]["seconds"] for run in runs if run["reached"]]
    return {
        "runs": len(runs),
        "reached": len(seconds),
        "seconds_mean": mean(seconds) if seconds else None,
        "seconds_deviation": stdev(seconds) if len(seconds) > 1 else None,
        "compile_seconds_mean": mean(run["compile_seconds"] for run in runs) if runs else None,
        "final_accuracy_mean": mean(run["test_accuracy"][-1] for run in runs) if runs else None,
    }


def measure(name: str, device: Device, out: Path, seconds: float) -> dict[str, Any]:
    """Both frameworks, each in a process of its own, with half of the time each; files and prints what they come to."""
    found: dict[str, Any] = {"goal": asdict(GOALS[name]), "device": device, "versions": package_versions()}
    for framework in ("torch", "flax"):
        command = [sys.executable, "-m", "benchmarks.accuracy", name, framework, device, str(seconds / 2)]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=False)
        runs = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
        found[framework] = summary(runs) | {"each": runs, "failed": done.returncode != 0}
        write_json(out, found)
        print(f"{name}, {framework}: {summary(runs)}", flush=True)
    return found


def main() -> None:
    """`accuracy.py GOAL [FRAMEWORK] [DEVICE] [SECONDS]`: both frameworks and a file, or the runs of one, printed."""
    name, device = sys.argv[1], "cpu"
    if len(sys.argv) == 5:
        framework, device, seconds = sys.argv[2:]
        print(json.dumps(reach(GOALS[name], framework, device, perf_counter() + float(seconds))))  # type: ignore[arg-type]
        return
    measure(name, device, RESULTS / f"accuracy-{name}-{device}.json", 3600.0)  # type: ignore[arg-type]


if __name__ == "__main__":
    guard(main)
