"""Faults planted in what both frameworks share, where the comparer is blind: each must be named by a test of its own.

Both sides train by one recipe, one schedule and one set of draws. A fault there lets them agree perfectly on something
wrong; only what is held to the outside world can see it. Each fault changes one line of a module as it is imported, in
a process of its own, and the one test that it is for must fail there and say what is wrong.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from parity_tests import planted
from parity_tests.results import ROOT

LIBRARIES = ("flax.linen", "jax", "matplotlib", "optax", "pytest", "scipy.stats", "sklearn.datasets", "torchvision")
TESTS = "parity_tests/tests/"
ARCHS, RECIPES = "models/test_published.py", "training/test_published_recipes.py"
DRAWN, TECHNIQUES, COMMANDS = "training/test_recipes.py", "training/test_techniques.py", "commands/test_evaluate.py"


@dataclass(frozen=True)
class SharedFault:
    """One planted fault.

    Attributes:
        name: what is wrong.
        row: what kind of thing it is.
        module: of the project, by its dotted name.
        old, new: the text that is changed, which stands there once, and what it becomes.
        test: that must name it, as pytest does, below `TESTS`.
        says: what its message must hold, as a regular expression.
    """

    name: str
    row: str
    module: str
    old: str
    new: str
    test: str
    says: str = ""

    @property
    def file(self) -> Path:
        """Of the module."""
        return ROOT / f"{self.module.replace('.', '/')}.py"


def arch(name: str) -> str:
    """The test that holds an architecture to its source."""
    return f"{ARCHS}::test_every_field_of_an_architecture_is_its_sources[{name}]"


def recipe(name: str) -> str:
    """The test that holds a recipe to its source."""
    return f"{RECIPES}::test_every_field_of_a_recipe_is_its_sources[{name}]"


def default(name: str) -> str:
    """The test that holds a class's defaults to their source."""
    return f"{ARCHS}::test_every_default_is_its_sources[{name}]"


ZOO, SPEC, NETS, LAYERS = "common.recipes.zoo", "common.recipes.spec", "common.arch.zoo", "common.arch.spec"

FAULTS: tuple[SharedFault, ...] = (
    SharedFault("another mean of CIFAR-10", "constant", ZOO, "mean=(0.4914, 0.4822, 0.4465)", "mean=(0.4914, 0.4822, 0.4456)", recipe("cifar10"), r"preprocess\.mean .*tutorials"),
    SharedFault("another deviation of Fashion-MNIST", "constant", ZOO, "std=(0.3530,)", "std=(0.3203,)", recipe("fashion_mnist_best"), r"preprocess\.std .*Fashion-MNIST"),
    SharedFault("two of ImageNet's means exchanged", "constant", ZOO, "(0.485, 0.456, 0.406)", "(0.485, 0.406, 0.456)", f"{RECIPES}::test_imagenets_pixels_are_torchvisions_own"),
    SharedFault("a sign of ImageNet's principal components", "constant", SPEC, "0.0188 * -0.0045", "0.0188 * 0.0045", f"{RECIPES}::test_the_colour_noise_is_fb_resnet_torchs", "fb.resnet.torch"),
    SharedFault("padding of 2 before CIFAR-10's crop", "recipe", ZOO, "pad=4,\n", "pad=2,\n", recipe("cifar10"), r"preprocess\.pad .*tutorials"),
    SharedFault("no flips in the paper's run", "recipe", ZOO, "crop=227, flip=True", "crop=227, flip=False", recipe("imagenet_2012"), r"preprocess\.flip .*section"),
    SharedFault("a tenth of the paper's colour noise", "recipe", ZOO, "pca_std=0.1", "pca_std=0.01", recipe("imagenet_2012"), r"preprocess\.pca_std .*4\.1"),
    SharedFault("the paper's last milestone ten epochs late", "recipe", ZOO, "(30, 50, 70)", "(30, 50, 80)", recipe("imagenet_2012"), r"schedule\.milestones"),
    SharedFault("ten times the rate of our improved recipe", "recipe", ZOO, "lr=0.05", "lr=0.5", recipe("cifar10_best"), r"optimizer\.lr .*ours"),
    SharedFault("our fast recipe's warm-up halved", "recipe", ZOO, "warmup_epochs=2", "warmup_epochs=1", recipe("cifar10_fast"), r"schedule\.warmup_epochs"),
    SharedFault("Adam's beta2 of 0.99", "default", SPEC, "beta2: float = 0.999", "beta2: float = 0.99", default("Optimizer"), r"beta2 .*1412\.6980"),
    SharedFault("the loss scale grows ten times as often", "default", SPEC, "interval: int = 2000", "interval: int = 200", default("LossScale"), r"interval .*GradScaler"),
    SharedFault("batch norm's momentum of 0.01", "default", LAYERS, "momentum: float = 0.1", "momentum: float = 0.01", default("BatchNorm"), r"momentum .*BatchNorm2d"),
    SharedFault("response norm's beta of a half", "default", LAYERS, "beta: float = 0.75", "beta: float = 0.5", default("LocalResponseNorm"), r"beta .*3\.3"),
    SharedFault("tanh's network with a sigmoid", "architecture", NETS, 'activation="tanh"', 'activation="sigmoid"', arch("alexnet_cifar_tanh"), r"activation .*tanh"),
    SharedFault("conv4 of the paper in one group", "architecture", NETS, "ConvSpec(384, kernel=3, padding=1, groups=2)", "ConvSpec(384, kernel=3, padding=1)", arch("alexnet_2012"), r"convs\[3\]\.groups .*2012"),
    SharedFault("another dropout in our improved network", "architecture", NETS, "DenseSpec(1024, dropout=0.3), DenseSpec(1024, dropout=0.3)", "DenseSpec(1024, dropout=0.3), DenseSpec(1024, dropout=0.5)", arch("alexnet_cifar_best"), r"dense\[1\]\.dropout"),
    SharedFault("fc7's bias starts at zero", "architecture", "common.arch.initializers", '"fc6", "fc7")', '"fc6")', f"{ARCHS}::test_every_field_of_an_initialisation_is_its_sources[normal_2012]", r"ones .*section 5"),
    SharedFault("two digits of ImageNet's size exchanged", "dataset", "common.data.spec", "1_281_167", "1_281_176", f"{RECIPES}::test_every_field_of_a_dataset_is_its_sources[imagenet2012]", r"examples .*1409\.0575"),
    SharedFault("a milestone one epoch late", "schedule", SPEC, "step >= milestone *", "step >= (milestone + 1) *", f"{DRAWN}::test_the_rate_falls_at_milestones[30-3-0.1]"),
    SharedFault("a cosine over a quarter of its period", "schedule", SPEC, "cos(pi * done)", "cos(pi * done / 2)", f"{TECHNIQUES}::test_cosine_is_the_frameworks_own"),
    SharedFault("a warm-up that starts at zero", "schedule", SPEC, "(step + 1) / (warmup + 1)", "step / (warmup + 1)", f"{TECHNIQUES}::test_cosine_is_the_frameworks_own"),
    SharedFault("a crop that never reaches the last row", "draw", "common.data.augment", "recipe.preprocess.pad + 1)", "recipe.preprocess.pad)", f"{DRAWN}::test_crop_places_cover_all_room_evenly"),
    SharedFault("boxes of 80 % of the area at least", "draw", "common.data.crops", "(0.08 + 0.92 * uniforms[:, :10])", "(0.8 + 0.2 * uniforms[:, :10])", f"{DRAWN}::test_random_boxes_are_torchvisions"),
    SharedFault("boxes' ratios up to 3/2", "draw", "common.data.crops", "(np.log(4 / 3) - np.log(3 / 4))", "(np.log(3 / 2) - np.log(3 / 4))", f"{DRAWN}::test_random_boxes_are_torchvisions"),
    SharedFault("normals of half the variance", "draw", "common.data.draws", "np.sqrt(-2.0 * np.log1p", "np.sqrt(-1.0 * np.log1p", f"{DRAWN}::test_normals_are_normal"),
    SharedFault("the same order in every epoch", "draw", "common.data.draws", "counter = np.array([block, 0, epoch, 0]", "counter = np.array([block, 0, 0, 0]", f"{DRAWN}::test_an_epoch_visits_each_example_once_in_an_order_of_its_own"),
    SharedFault("each example mixed with itself", "draw", "common.data.pipeline", "places = (own - 1) % count", "places = own % count", f"{TECHNIQUES}::test_mixing_is_what_the_papers_say"),
    SharedFault("another split of the digits", "split", "common.data.digits", "order[-_TEST:]", "order[:_TEST]", f"{DRAWN}::test_the_digits_split_is_the_recorded_one"),
    SharedFault("held-out examples that are trained on", "split", "common.data.dataset", "np.sort(shuffled[count:])", "np.sort(shuffled)", f"{DRAWN}::test_holding_out_keeps_the_order_and_every_example"),
    SharedFault("the last batch of an epoch left out", "split", "common.data.pipeline", "return -(-len(data) // recipe.batch_size)", "return len(data) // recipe.batch_size", f"{DRAWN}::test_steps_per_epoch_count_a_smaller_last_batch[33-2]"),
    SharedFault("evaluation's crop off the centre", "scoring", "common.data.augment", "np.rint(room / 2 +", "np.rint(room / 3 +", f"{DRAWN}::test_evaluation_crops_are_central[256-227-0-14]"),
    SharedFault("a photograph's square off the centre", "scoring", "common.data.crops", "round((width - side) / 2)", "(width - side) // 2", f"{DRAWN}::test_central_square_is_torchvisions"),
    SharedFault("confusion by guessed and true class", "scoring", "common.reports.evaluation", "(labels, probabilities.argmax(1))", "(probabilities.argmax(1), labels)", f"{COMMANDS}::TestConfusion::test_is_true_by_guessed"),
    SharedFault("the worse of two equals is the best", "scoring", "common.reports.evaluation", "(-each.scores.top1, each.scores.loss)", "(-each.scores.top1, -each.scores.loss)", f"{COMMANDS}::test_the_best_are_told_apart"),
)  # fmt: skip


def run(faults: Sequence[SharedFault]) -> Iterator[tuple[SharedFault, str | None]]:
    """Plant faults, one after the other.

    Yields:
        Each fault, and the message that its test fails with; None if the fault survives.

    Raises:
        RuntimeError: the tests do not all pass without a fault, or cannot be run.
    """
    tests = tuple(dict.fromkeys(TESTS + fault.test for fault in faults))
    jobs = [planted.Job((TESTS + fault.test,), fault.module, fault.old, fault.new) for fault in faults]
    outcomes = run_jobs([planted.Job(tests), *jobs])
    without = next(outcomes)
    if without.broken or without.messages or without.count != len(tests):
        raise RuntimeError(f"Without a fault {without.count} of {len(tests)} tests run: {without}")
    for fault, outcome in zip(faults, outcomes, strict=True):
        if outcome.broken:
            raise RuntimeError(f"{fault.name}: {outcome.broken}")
        yield fault, outcome.messages[0] if outcome.messages else None


def caught(fault: SharedFault, message: str | None) -> bool:
    """Whether the test failed and said what is wrong."""
    return message is not None and re.search(fault.says, message, re.DOTALL) is not None


def run_jobs(
    jobs: Sequence[planted.Job], folder: Path = ROOT, libraries: Sequence[str] = LIBRARIES
) -> Iterator[planted.Outcome]:
    """Run tests with faults planted, one job after the other.

    Args:
        jobs: what to run.
        folder: to run it in.
        libraries: imported once for all jobs.

    Yields:
        What comes of each.
    """
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    alone["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed, and each takes its time in every process
    alone["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [alone.get("PYTHONPATH")])])
    command, pipe = [sys.executable, "-m", planted.__name__, *libraries], subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=alone, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        for job in jobs:
            process.stdin.write(json.dumps(asdict(job)) + "\n")
            process.stdin.flush()
            count, messages, broken = json.loads(process.stdout.readline()).values()
            yield planted.Outcome(count, tuple(messages), broken)
        process.stdin.close()
