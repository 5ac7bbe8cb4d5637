"""Seconds of training until a test accuracy is reached, several runs: `python -m benchmarks.accuracy cifar10_fast`.

As airbench counts (arXiv:2404.00498): training alone, on a device that is warm. Compilation is timed beside it, before
the first run, whose programs the later runs take over: another seed compiles nothing. Evaluation after each epoch is
not counted. What is filed of the same versions and device is not run again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

from benchmarks.bench import ENVIRONMENT
from benchmarks.packed import load
from benchmarks.settings import GOALS, Device, Goal
from common.commands.shell import guard
from common.config import read_json
from common.data.dataset import Dataset
from common.data.pipeline import steps_per_epoch
from common.errors import lookup
from common.frameworks import FRAMEWORKS, Framework
from common.recipes.spec import Recipe
from common.recipes.zoo import RECIPES
from common.runs.files import write_json
from common.system import package_versions
from parity_tests.results import RESULTS, ROOT


class Run:
    """Training runs one after the other, each from a seed of its own, all by the same compiled programs."""

    def __init__(self, recipe: Recipe, train: Dataset, device: Device) -> None:
        self.recipe, self.train, self.steps = recipe, train, steps_per_epoch(train, recipe)
        self.arch = recipe.model_arch(train.image, len(train.class_names))
        self.begin(device)
        self.feed = self.feed_of(train)

    def begin(self, device: Device) -> None:
        """Make the state."""
        raise NotImplementedError

    def feed_of(self, data: Dataset) -> Any:
        """What takes a split's batches to the device."""
        raise NotImplementedError

    def restart(self, seed: int) -> None:
        """Begin a run of another seed, as if nothing had been trained before."""
        self.recipe = replace(self.recipe, seed=seed)
        self.feed.recipe = self.recipe  # which draws the order and the augmentation
        self.reset()

    def reset(self) -> None:
        """Give the state the values that a fresh one of the recipe has."""
        raise NotImplementedError

    def train_on(self, inputs: Iterable[Any]) -> None:
        """Train on each of these, and wait until the device has finished."""
        raise NotImplementedError

    def accuracy(self, data: Dataset) -> float:
        """Of a split."""
        raise NotImplementedError

    @staticmethod
    def describe(device: Device) -> str:
        """The device in words."""
        raise NotImplementedError

    def compile(self, test: Dataset) -> float:
        """Meet every shape once, in training and evaluation, and begin anew; returns the seconds."""
        started = perf_counter()
        inputs = [inputs for _, inputs in self.feed(0, train=True)]
        self.train_on([inputs[0], inputs[-1]])
        self.accuracy(test)
        self.restart(self.recipe.seed)
        return perf_counter() - started

    def epoch(self, number: int) -> float:
        """Train one epoch, counted from 0; returns the seconds."""
        started = perf_counter()
        self.train_on(inputs for _, inputs in self.feed(number, train=True))
        return perf_counter() - started


class TorchRun(Run):
    """In PyTorch; compiled on a GPU."""

    def begin(self, device: Device) -> None:
        from torch_impl import device as places
        from torch_impl import state, train

        place = places.pick_device(device)
        self.train_step, self.init_state = train.train_step, state.init_state
        self.state = self.init_state(self.recipe, self.arch, self.steps, place, compiled=device == "gpu")

    def feed_of(self, data: Dataset) -> Any:
        from torch_impl.feed import feeds

        return feeds([data], self.recipe, self.state.device)[0]

    def reset(self) -> None:
        from torch_impl.dropout import StepKey

        state, fresh = self.state, self.init_state(self.recipe, self.arch, self.steps, self.state.device)
        for name in ("model", "optimizer", "schedule", "scaler"):
            getattr(state, name).load_state_dict(getattr(fresh, name).state_dict())
        state.step, state.recipe = 0, self.recipe
        state.dropout = StepKey(self.recipe.seed, state.dropout.layers)

    def train_on(self, inputs: Iterable[Any]) -> None:
        for each in inputs:
            sums = self.train_step(self.state, each)
        float(sums["loss"])
        next(self.state.model.parameters()).sum().item()  # the optimizer's part of the last step too

    def accuracy(self, data: Dataset) -> float:
        from torch_impl.evaluate import evaluate

        return evaluate(self.state.model, self.feed_of(data)).accuracy

    @staticmethod
    def describe(device: Device) -> str:
        from torch_impl.device import describe, pick_device

        return describe(pick_device(device))


class FlaxRun(Run):
    """In Flax."""

    def begin(self, device: Device) -> None:
        from flax_impl import device as places
        from flax_impl import state, train

        self.place = places.pick_device(device)
        self.train_step, self.init_state = train.train_step, state.init_state
        self.state = self.init_state(self.recipe, self.arch, self.steps, self.place)

    def feed_of(self, data: Dataset) -> Any:
        from flax_impl.feed import feeds

        return feeds([data], self.recipe, self.place)[0]

    def reset(self) -> None:
        import jax

        fresh = self.init_state(self.recipe, self.arch, self.steps, self.place)
        # The first state's structure: its recipe and optimizer are part of what was compiled.
        self.state = jax.tree.unflatten(jax.tree.structure(self.state), jax.tree.leaves(fresh))

    def train_on(self, inputs: Iterable[Any]) -> None:
        import jax

        for each in inputs:
            self.state, _ = self.train_step(self.state, each)
        jax.block_until_ready(self.state.params)

    def accuracy(self, data: Dataset) -> float:
        from flax_impl.evaluate import evaluate
        from flax_impl.feed import feeds

        [feed] = feeds([data], self.state.recipe, self.place)  # the first one, that of the compiled program
        return evaluate(self.state.model, self.state.variables, feed).accuracy

    @staticmethod
    def describe(device: Device) -> str:
        from flax_impl.device import describe, pick_device

        return describe(pick_device(device))


RUNS: dict[Framework, type[Run]] = {"torch": TorchRun, "flax": FlaxRun}


def reach(name: str, framework: Framework, device: Device, out: Path, until: float) -> None:
    """Train the runs of a goal that are not filed, each to its end and filed then, and none that would end after
    `until` (perf_counter) by the time that the last one took."""
    goal, versions = GOALS[name], package_versions()
    filed = read_json(out) if out.exists() else {}
    if [filed.get("goal"), filed.get("versions")] != [asdict(goal), versions]:
        filed = {"goal": asdict(goal), "versions": versions}
    kind, before = RUNS[framework], filed.get(framework, {})
    place = kind.describe(device)
    each = before["each"] if before.get("device") == place else []
    if len(each) >= goal.runs or perf_counter() > until:
        return
    train, test = load(RECIPES[goal.recipe].dataset)
    recipe = replace(RECIPES[goal.recipe], epochs=goal.epochs or RECIPES[goal.recipe].epochs)
    run = kind(recipe, replace(train, ids=train.ids[: goal.examples]), device)
    compile_seconds = run.compile(test)
    took = 0.0
    for seed in range(len(each), goal.runs):
        if (started := perf_counter()) + took > until:
            break
        run.restart(seed)
        each = [*each, {"seed": seed, "compile_seconds": compile_seconds} | one(run, goal, test)]
        filed |= {framework: summary(each) | {"device": place, "each": each}}
        write_json(out, filed)
        compile_seconds, took = 0.0, perf_counter() - started


def one(run: Run, goal: Goal, test: Dataset) -> dict[str, Any]:
    """Train to the end, and tell when the accuracy was reached."""
    seconds, reached, accuracies = 0.0, None, []
    for epoch in range(run.recipe.epochs):
        seconds += run.epoch(epoch)
        accuracies.append(run.accuracy(test))
        if reached is None and accuracies[-1] >= goal.accuracy:
            reached = {"epoch": epoch + 1, "seconds": seconds}
    return {"seconds": seconds, "reached": reached, "test_accuracy": accuracies}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of the seconds to the goal, over the runs that got there."""
    seconds = [run["reached"]["seconds"] for run in runs if run["reached"]]
    return {
        "runs": len(runs),
        "reached": len(seconds),
        "seconds_mean": mean(seconds) if seconds else None,
        "seconds_deviation": stdev(seconds) if len(seconds) > 1 else None,
        "compile_seconds": sum(run["compile_seconds"] for run in runs),
        "final_accuracy_mean": mean(run["test_accuracy"][-1] for run in runs) if runs else None,
    }


def measure(name: str, device: Device, out: Path, until: float = inf) -> bool:
    """Both frameworks, each in a process of its own, the first with half of the time; prints what they come to.

    Returns:
        Whether all runs are filed.

    Raises:
        UserError: there is no goal of this name.
    """
    goal, share, whole = lookup(GOALS, name, "goal"), 0.5, True
    for framework in FRAMEWORKS:
        seconds = share * (until - perf_counter())
        command = [sys.executable, "-m", "benchmarks.accuracy", name, framework, device, str(out), str(seconds)]
        failed = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False).returncode
        told = (read_json(out) if out.exists() else {}).get(framework, {})
        shown = ", ".join(f"{key} {value}" for key, value in told.items() if key != "each")
        print(f"{name}, {framework}: {'failed; ' if failed else ''}{shown or 'no run'} (of {goal.runs})", flush=True)
        share, whole = 1.0, whole and told.get("runs") == goal.runs
    return whole


def main() -> None:
    """`accuracy.py GOAL [DEVICE]`: both frameworks anew; `GOAL FRAMEWORK DEVICE OUT SECONDS`: what one has left."""
    name, *rest = sys.argv[1:]
    if len(rest) > 1:
        framework, device, out, seconds = rest
        reach(name, framework, device, Path(out), perf_counter() + float(seconds))  # type: ignore[arg-type]
        return
    device = rest[0] if rest else "cpu"
    path = RESULTS / f"accuracy-{name}-{device}.json"
    path.unlink(missing_ok=True)
    measure(name, device, path)  # type: ignore[arg-type]
    print(path)


if __name__ == "__main__":
    guard(main)
