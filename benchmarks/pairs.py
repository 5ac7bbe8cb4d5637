"""Whether it matters which framework trains a recipe: pairs of whole runs from equal weights, batches and draws.

`python -m benchmarks.pairs digits` trains five seeds in each framework by the ordinary commands, goes on where it was
stopped, files every run in benchmarks/results/pairs-RECIPE.json, and ends in a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import tyro

from benchmarks.measured import Run, add, is_filed, is_whole, outcome, read, train
from common.commands.shell import guard
from common.errors import UserError
from common.frameworks import FRAMEWORKS
from common.recipes.zoo import get_recipe
from common.system import commit
from parity_tests.results import RESULTS, ROOT

MARGIN = 1.0  # percentage points: frameworks whose accuracies lie this close are taken for equally good


@dataclass(frozen=True)
class Options:
    """Train a recipe in both frameworks from equal weights, with several seeds, and compare their accuracies.

    Attributes:
        recipe: to train.
        seeds: how many.
        runs: folder of the runs.
        results: folder of what is filed.
        again: train those that are filed, too, for results of the code as it is.
    """

    recipe: Annotated[str, tyro.conf.Positional] = "digits"
    seeds: int = 5
    runs: Path = ROOT / "runs" / "pairs"
    results: Path = RESULTS
    again: bool = False


@dataclass(frozen=True)
class Difference:
    """PyTorch's accuracy less Flax's over several pairs, in percentage points.

    Attributes:
        mean, spread: of the differences, the sample's standard deviation.
        low, high: their mean's 90 % confidence interval, by Student's t. It lies within the margin where two one-sided
            tests at 5 % say that the means are equivalent: Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987) 657.
        pairs: how many.
    """

    mean: float
    spread: float
    low: float
    high: float
    pairs: int

    def verdict(self, margin: float = MARGIN) -> str:
        """What that says, in a sentence."""
        interval = f"90 % interval {self.low:+.2f} to {self.high:+.2f}"
        told = f"PyTorch less Flax {self.mean:+.2f} percentage points over {self.pairs} pairs, {interval}"
        if -margin < self.low and self.high < margin:
            return f"{told}: equivalent within {margin:g}; it does not matter which framework trains it."
        if self.low > 0 or self.high < 0:
            better = "PyTorch" if self.mean > 0 else "Flax"
            return (
                f"{told}: {better} came out ahead, as chance alone has it in one series of ten; not within {margin:g}."
            )
        return f"{told}: too few pairs to tell whether they agree within {margin:g}."


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Compare accuracies, shares of 1, of equal seeds in equal order.

    Raises:
        UserError: there are fewer than two pairs.
    """
    from scipy.stats import t

    if len(ours) < 2:
        raise UserError("One pair has no spread: compare at least two seeds.")
    each = [100 * (one - other) for one, other in zip(ours, theirs, strict=True)]
    half = float(t.ppf(0.95, len(each) - 1)) * stdev(each) / sqrt(len(each))
    return Difference(mean(each), stdev(each), mean(each) - half, mean(each) + half, len(each))


def initial(recipe: str, seed: int, folder: Path) -> Path:
    """The initial weights of a pair, as PyTorch draws them with this seed; written where they are not there yet."""
    from parity_tests.start import start  # whoever writes tables alone needs no framework
    from torch_impl import weights

    path = folder / f"{recipe}-{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        weights.save(path, *start(replace(get_recipe(recipe), seed=seed)))
    return path


def by_seed(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Final accuracies of PyTorch and of Flax, of the seeds that both have."""
    last = {(row["framework"], row["seed"]): row["test_accuracy"][-1] for row in rows if is_whole(row)}
    seeds = sorted(seed for framework, seed in last if framework == "torch" and ("flax", seed) in last)
    return [last["torch", seed] for seed in seeds], [last["flax", seed] for seed in seeds]


def check_batches(rows: Sequence[dict[str, Any]]) -> None:
    """Both runs of a pair must have been fed the same images, labels and draws.

    Raises:
        UserError: they were not.
    """
    fed: dict[int, set[str]] = {}
    for row in rows:
        fed.setdefault(row["seed"], set()).add(json.dumps(row["batches_sha256"], sort_keys=True))
    if uneven := [seed for seed, hashes in fed.items() if len(hashes) > 1]:
        raise UserError(f"The runs of seed {uneven[0]} were fed different batches: did the data change between them?")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the pairs that are not filed, and compare all."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.pairs")
    get_recipe(options.recipe)
    file = options.results / f"pairs-{options.recipe}.json"
    filed = [] if options.again else read(file)
    parent = options.runs / f"again-{(commit() or 'here')[:8]}" if options.again else options.runs
    for seed in range(options.seeds):
        for framework in FRAMEWORKS:
            run = Run(options.recipe, framework, seed)
            if any(is_filed(run, filed, gpu=gpu) for gpu in (False, True)):
                continue
            folder = parent / run.name
            print(f"{run.name} of {options.seeds} pairs", flush=True)
            train(run, folder, float("inf"), ("--init-from", str(initial(options.recipe, seed, parent))))
            row = outcome(run, folder)
            assert row
            add(file, row)
    rows = read(file)
    check_batches(rows)
    ours, theirs = by_seed(rows)
    for about, scores in zip(FRAMEWORKS.values(), (ours, theirs), strict=True):
        spread = f" ± {100 * stdev(scores):.2f}" if len(scores) > 1 else ""
        print(f"{about.title:8} {100 * mean(scores):.2f}{spread} % over {len(scores)} seeds")
    print(f"{options.recipe}: {difference(ours, theirs).verdict()}")


if __name__ == "__main__":
    guard(main)
