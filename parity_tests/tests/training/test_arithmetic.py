"""Arithmetic that both frameworks share, or that each has for itself, against somebody else's and plain formulas.

What is the same on both sides no comparison of the two can find wrong.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import cos, pi, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    top_k_accuracy_score,
)
from torch.amp.grad_scaler import GradScaler
from torch.optim import lr_scheduler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import flax_impl.evaluate
import flax_impl.layers
import flax_impl.model
import flax_impl.optim
import flax_impl.train
import torch_impl.evaluate
import torch_impl.init
import torch_impl.model
import torch_impl.optim
import torch_impl.train
from common.arch.initializers import Kernel, get_init
from common.arch.spec import BatchNorm, ConvSpec, MaxPool
from common.arch.zoo import ARCHS
from common.data.augment import central
from common.data.batch import NO_FACTS, Batch, Facts
from common.data.load import load_dataset
from common.data.pipeline import batches
from common.recipes.spec import LossScale, Optimizer, Preprocess, Recipe, Schedule
from common.recipes.zoo import get_recipe
from common.reports import evaluation
from common.reports.evaluation import Recorder, Row
from common.runs.files import write_json
from common.runs.folder import RunFolder
from common.runs.journal import EpochRecord, Journal
from common.runs.progress import Progress
from common.runs.scores import Scores
from common.world import ALONE
from flax_impl.feed import Inputs as FlaxInputs
from flax_impl.loss_scale import Scaler
from torch_impl.feed import Inputs as TorchInputs

PER_EPOCH, EPOCHS = 7, 6
DIGITS = get_recipe("digits")
both = pytest.mark.parametrize("framework", ["torch", "flax"])


def rates(spec: Schedule, rate: float = 0.3) -> list[float]:
    """At every step of a run of 6 epochs of 7 steps."""
    recipe = replace(DIGITS, epochs=EPOCHS, schedule=spec, optimizer=Optimizer(lr=rate))
    return [recipe.learning_rate(step, PER_EPOCH) for step in range(EPOCHS * PER_EPOCH)]


class TestSchedules:
    # The number is that of the steps of warm-up.
    CASES = (
        (Schedule(milestones=(2, 5), gamma=0.1), 0),
        (Schedule(milestones=(1, 2, 4), gamma=0.5, warmup_epochs=0.7), 5),
        (Schedule(milestones=(3,), gamma=0.2, warmup_epochs=2), 14),
        (Schedule("cosine"), 0),
        (Schedule("cosine", final=0.05, warmup_epochs=1.3), 9),
        (Schedule("cosine", final=0.5, warmup_epochs=0.5), 4),
    )

    @pytest.mark.parametrize(("spec", "warmup"), CASES)
    def test_are_pytorchs(self, spec: Schedule, warmup: int) -> None:
        """`LinearLR` from 1 / (w + 1), then `MultiStepLR` or `CosineAnnealingLR`, which counts from its own start."""
        rate, total = 0.3, EPOCHS * PER_EPOCH
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)
        later: Any
        if spec.name == "cosine":
            later = lr_scheduler.CosineAnnealingLR(optimizer, total - warmup, eta_min=spec.final * rate)
        else:
            milestones = [milestone * PER_EPOCH - warmup for milestone in spec.milestones]
            later = lr_scheduler.MultiStepLR(optimizer, milestones, spec.gamma)
        if warmup:
            rise = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
            later = lr_scheduler.SequentialLR(optimizer, [rise, later], [warmup])
        found = rates(spec)
        for step in range(total):
            assert found[step] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-13), step
            optimizer.step()
            later.step()

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize(("spec", "warmup"), [CASES[1], CASES[4]])
    def test_are_optaxs(self, spec: Schedule, warmup: int) -> None:
        total = EPOCHS * PER_EPOCH
        rise = optax.linear_schedule(1 / (warmup + 1), 1.0, warmup)
        falls = {milestone * PER_EPOCH - warmup: spec.gamma for milestone in spec.milestones}
        later = optax.piecewise_constant_schedule(1.0, falls)
        if spec.name == "cosine":
            later = optax.cosine_decay_schedule(1.0, total - warmup, spec.final)
        theirs = jax.jit(jax.vmap(optax.join_schedules([rise, later], [warmup])))(np.arange(total))
        np.testing.assert_allclose(rates(spec, 1.0), theirs, rtol=1e-12, atol=1e-13)

    def test_warm_up_rises_in_equal_steps_for_the_nearest_number(self) -> None:
        """Goyal et al., section 2.2: a constant amount at each iteration. 0.29 epochs of 100 steps are 28.999... ones
        in float64, 0.07 of them 7.000..."""
        lengths = {(0.7, 7): 5, (0.6, 7): 4, (0.29, 100): 29, (0.07, 100): 7, (0.25, 9): 2, (0.01, 10): 0, (5, 45): 225}
        for (epochs, per_epoch), steps in lengths.items():
            spec = Schedule(warmup_epochs=epochs)
            factors = [spec.factor(step, per_epoch, 90) for step in range(steps + 2)]
            expected = np.minimum(np.arange(1, steps + 3) / (steps + 1), 1)
            np.testing.assert_allclose(factors, expected, rtol=1e-15, err_msg=f"{epochs} epochs of {per_epoch}")

    def test_the_ends(self) -> None:
        """Half a period later the cosine stays where it is; a warm-up may round to the whole run."""
        spec = Schedule("cosine", final=0.2, warmup_epochs=0.5)
        assert [spec.factor(step, 10, 4) for step in (40, 41, 1000)] == pytest.approx([0.2] * 3)
        assert spec.factor(39, 10, 4) == pytest.approx(0.2 + 0.8 * (1 + cos(pi * 34 / 35)) / 2)
        whole = replace(spec, warmup_epochs=0.96)
        assert [whole.factor(step, 10, 1) for step in (0, 9, 10)] == pytest.approx([1 / 11, 10 / 11, 1])


def script(classes: int, n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and log-probabilities among which theirs is the largest, or the second, and so on up to the eighth."""
    rng = np.random.default_rng(seed)
    logits, rows = rng.standard_normal((n, classes)) * 2, np.arange(n)
    labels = np.argsort(-logits, 1)[rows, rng.integers(0, min(classes, 8), n)]
    return labels.astype(np.int32), np.asarray(logits - np.logaddexp.reduce(logits, 1, keepdims=True))


def top_k(labels: np.ndarray, scores: np.ndarray, k: int) -> float:
    """scikit-learn's number of labels among the first k; with no more classes than k, of all."""
    classes = scores.shape[1]
    if k == 1:
        return float(accuracy_score(labels, scores.argmax(1), normalize=False))
    if classes <= k:
        return len(labels)
    return float(top_k_accuracy_score(labels, scores, k=k, labels=np.arange(classes), normalize=False))


def eval_step(
    framework: str, labels: np.ndarray, scores: np.ndarray, patch: pytest.MonkeyPatch, real: np.ndarray | None = None
) -> dict[str, Any]:
    """A step of evaluation in which the network came to these log-probabilities: numbers and arrays."""
    side: Any = torch_impl.evaluate if framework == "torch" else flax_impl.evaluate

    def step(labels: Any, scores: Any, real: Any) -> Any:
        patch.setattr(side, "log_probabilities", lambda *args, **options: scores)
        inputs = SimpleNamespace(labels=labels, facts=Facts(real=real))
        return (
            side.eval_step(None, inputs, DIGITS)
            if framework == "torch"
            else side.eval_step.__wrapped__(None, None, inputs, DIGITS)
        )

    if framework == "torch":
        return {
            name: value.numpy() for name, value in step(torch.tensor(labels).long(), torch.tensor(scores), None).items()
        }
    return {name: np.asarray(value) for name, value in jax.jit(step)(labels, scores, real).items()}


@pytest.mark.usefixtures("x64")
class TestScores:
    @pytest.mark.parametrize(
        ("framework", "classes"), [("torch", 2), ("torch", 5), ("torch", 6), ("torch", 100), ("flax", 2), ("flax", 6)]
    )
    def test_sums_are_scikit_learns(self, framework: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Right at first and among the first five, or among all where there are fewer; losses in nats."""
        labels, scores = script(classes)
        sums = eval_step(framework, labels, scores, monkeypatch)
        assert int(sums["top1"]) == top_k(labels, scores, 1)
        assert int(sums["top5"]) == top_k(labels, scores, 5)
        assert int(sums["count"]) == len(labels)
        assert float(sums["loss"]) == pytest.approx(
            log_loss(labels, np.exp(scores), labels=np.arange(classes), normalize=False), rel=1e-12
        )
        if classes > 5:
            assert len({top_k(labels, scores, k) for k in (1, 4, 5, 6)}) == 4, "too even"

    def test_rows_that_pad_do_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        labels, scores = script(10)
        sums = eval_step("flax", labels, scores, monkeypatch, np.arange(60) < 41)
        labels, scores = labels[:41], scores[:41]
        expected = [top_k(labels, scores, 1), top_k(labels, scores, 5), 41]
        assert [float(sums[name]) for name in ("top1", "top5", "count")] == expected
        loss = log_loss(labels, np.exp(scores), labels=np.arange(10), normalize=False)
        assert float(sums["loss"]) == pytest.approx(loss, rel=1e-12)

    @both
    def test_a_split_is_scored_as_one(self, framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Batches of 25, 25 and 10: the sums of all, and what a watcher is given, against scikit-learn on the whole."""
        labels, scores = script(6)
        side: Any = torch_impl.evaluate if framework == "torch" else flax_impl.evaluate
        parts = [slice(0, 25), slice(25, 50), slice(50, 60)]
        sums = [eval_step("torch", labels[part], scores[part], monkeypatch) for part in parts]
        if framework == "torch":
            sums = [{name: torch.tensor(value) for name, value in step.items()} for step in sums]
        steps = iter(sums)
        monkeypatch.setattr(side, "eval_step", lambda *args, **options: next(steps))
        rows = [(SimpleNamespace(labels=labels[part]), None) for part in parts]

        class Feed:
            recipe, world, device = DIGITS, ALONE, torch.device("cpu")

            def __call__(self) -> Iterator[Any]:
                return iter(rows)

        recorder = Recorder(6, keep=True)
        model = (None,) if framework == "torch" else (None, None)
        found = side.evaluate(*model, Feed(), watch=recorder)
        guesses = scores.argmax(1)
        assert found.accuracy == accuracy_score(labels, guesses)
        assert (found.top1, found.top5, found.count) == (top_k(labels, scores, 1), top_k(labels, scores, 5), 60)
        assert found.mean_loss == pytest.approx(log_loss(labels, np.exp(scores), labels=np.arange(6)), rel=1e-12)
        np.testing.assert_array_equal(recorder.confusion, confusion_matrix(labels, guesses, labels=np.arange(6)))
        np.testing.assert_allclose(recorder.probabilities, np.exp(scores), rtol=1e-12)

    def test_scores_of_classes_are_scikit_learns(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Of classes without examples, without guesses, and without either, which do not count in the mean."""
        rng = np.random.default_rng(0)
        labels, guesses = rng.integers(0, 24, 300), rng.integers(0, 24, 300)
        labels[labels == 3], guesses[guesses == 5] = 4, 6
        labels[labels == 7], guesses[guesses == 7] = 8, 8
        names = [f"class {label}" for label in range(24)]
        confusion = confusion_matrix(labels, guesses, labels=np.arange(24))
        *found, mean = evaluation.class_scores(confusion, names)
        table = precision_recall_fscore_support(labels, guesses, zero_division=0)
        assert [each.name for each in found] == [name for name in names if name != "class 7"]
        ours = np.array([(each.precision, each.recall, each.f1, each.examples) for each in found])
        np.testing.assert_allclose(ours, np.transpose(table), rtol=1e-12)
        macro = precision_recall_fscore_support(labels, guesses, zero_division=0, average="macro")
        np.testing.assert_allclose((mean.precision, mean.recall, mean.f1), macro[:3], rtol=1e-12)
        assert (mean.name, mean.examples) == ("macro average", 300)
        evaluation.show_classes([*found, mean])
        *lines, last = capsys.readouterr().out.splitlines()
        assert len(lines) == 21
        assert "recall 0.0 %" in lines[0]
        assert last == "(20 of 23 classes, those of the lowest recall)"

    def test_the_picture_shows_scikit_learns_shares(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of each true class, and counts where they belong; the diagonal holds the recall of each class."""
        labels, scores = script(4)
        guesses, figures = scores.argmax(1), list[Any]()
        labels[labels == 2] = 3  # a class without examples
        counts = confusion_matrix(labels, guesses, labels=np.arange(4))
        monkeypatch.setattr(evaluation, "save_figure", lambda figure, *rest: figures.append(figure))
        evaluation.draw_confusion(tmp_path / "picture.png", counts, list("abcd"), "")
        axis = figures[0].axes[0]
        shares = np.asarray(axis.images[0].get_array())
        expected = confusion_matrix(labels, guesses, labels=np.arange(4), normalize="true")
        np.testing.assert_allclose(shares, expected, rtol=1e-12)
        recalls = recall_score(labels, guesses, labels=np.arange(4), average=None, zero_division=0)
        np.testing.assert_allclose(shares.diagonal(), recalls, rtol=1e-12)
        written = np.zeros((4, 4), int)
        for text in axis.texts:
            column, row = text.get_position()
            written[row, column] = int(text.get_text())
        np.testing.assert_array_equal(written, counts)
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("guessed", "true")


def test_shares_and_means_are_written_where_they_belong(tmp_path: Path) -> None:
    """Of numbers that are all different: in the line, the table on a terminal, and the file."""
    rows = [Row("a", Scores(loss=5.0, top1=7, top5=9, count=10)), Row("b", Scores(4.0, 6, 8, 10))]
    assert [evaluation.line(row) for row in rows] == [
        "a  accuracy 70.0 % 7/10  top-5 90.0 %  loss 0.500",
        "b  accuracy 60.0 % 6/10  top-5 80.0 %  loss 0.400",
    ]
    columns = {column.header: [str(cell) for cell in column.cells] for column in evaluation.table("", rows).columns}
    assert columns | {"": []} == {
        "checkpoint": ["a", "b"],
        "accuracy": ["70.0 %", "60.0 %"],
        "right": ["7/10", "6/10"],
        "top-5": ["90.0 %", "80.0 %"],
        "loss": ["0.500", "0.400"],
        "": [],
    }
    evaluation.write_table(tmp_path / "table.csv", rows, "flax", "val", ten=True)
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [[float(row[name]) for name in ("top1", "top5", "loss", "right", "examples", "crops")] for row in found] == [
        [0.7, 0.9, 0.5, 7, 10, 10],
        [0.6, 0.8, 0.4, 6, 10, 10],
    ]
    assert [row["best"] for row in found] == ["best accuracy", "lowest loss"]


@pytest.mark.usefixtures("x64")
@both
@pytest.mark.parametrize("ten", [False, True])
def test_crops_of_padded_images_are_torchvisions(framework: str, ten: bool) -> None:
    """A recipe's padding and crop reach the ten crops, whose probabilities are averaged. The network is a product."""
    rng, pad, side = np.random.default_rng(0), 3, 9
    images, weights = rng.integers(0, 256, (4, 8, 11, 1), np.uint8), rng.standard_normal((side * side, 5))
    spec = Preprocess(pad=pad, crop=side, mean=(0.4,), std=(0.3,))
    recipe = replace(DIGITS, precision="float64", preprocess=spec)
    padded = torch.tensor(np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))).permute(0, 3, 1, 2)
    crops = torch.stack(v2.TenCrop(side)(padded)) if ten else v2.CenterCrop(side)(padded)[None]
    logits = ((crops.double() / 255 - 0.4) / 0.3).flatten(2) @ torch.tensor(weights)
    expected = logits.softmax(2).mean(0).log().numpy()
    places = central(recipe, (8, 11, 1), 4)["crop"]
    if framework == "torch":

        class Product(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weights = torch.nn.Parameter(torch.tensor(weights))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.flatten(1) @ self.weights

        inputs = TorchInputs(torch.tensor(images), torch.zeros(4).long(), {"crop": torch.tensor(places)}, NO_FACTS)
        product: Any = Product()
        found = torch_impl.evaluate.log_probabilities(product, inputs, recipe, ten=ten).numpy()
    else:
        model = SimpleNamespace(apply=lambda variables, x, train: x.reshape(len(x), -1) @ variables)
        given = FlaxInputs(jnp.asarray(images), jnp.zeros(4, int), {"crop": jnp.asarray(places)}, NO_FACTS)
        unjitted: Any = flax_impl.evaluate.log_probabilities
        step = jax.jit(partial(unjitted.__wrapped__, model, recipe=recipe, ten=ten))
        found = np.asarray(step(weights, given))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


class TestLoss:
    @pytest.mark.usefixtures("x64")
    @both
    @pytest.mark.parametrize(("classes", "smoothing"), [(2, 0.1), (3, 0.3), (10, 0.1), (10, 0.0)])
    def test_smoothing_is_szegedys(self, framework: str, classes: int, smoothing: float) -> None:
        """arXiv:1512.00567, section 7: (1 - e) q + e / K, of mixed labels too. The sum of losses, and of the mean over
        the whole batch the gradient: (p - q) / count."""
        rng, n, count = np.random.default_rng(classes), 6, 11
        logits, labels = rng.standard_normal((n, classes)) * 2, rng.integers(0, classes, n)
        hard, losses = np.eye(classes)[labels], self.step(framework, smoothing, count)
        for targets in (hard, 0.7 * hard + 0.3 * hard[::-1]):
            smooth = (1 - smoothing) * targets + smoothing / classes
            log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
            loss, gradient = losses(logits, targets)
            assert loss == pytest.approx(-(smooth * log_p).sum(), rel=1e-12)
            np.testing.assert_allclose(gradient, (np.exp(log_p) - smooth) / count, rtol=1e-10, atol=1e-14)
            if smoothing:  # near misses lie far off
                spread = smoothing / (classes - 1)
                for miss in ((1 - smoothing) * targets + spread * (1 - targets), targets + smoothing / classes):
                    assert abs(-(miss * log_p).sum() - loss) > 1e-2
        theirs = F.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="sum", label_smoothing=smoothing)
        assert losses(logits, hard)[0] == pytest.approx(float(theirs), rel=1e-12)

    @pytest.mark.usefixtures("x64")
    @both
    def test_class_weights_are_pytorchs(self, framework: str) -> None:
        """Its own `CrossEntropyLoss`, before the mean: a weight multiplies each class's part of a soft target."""
        rng, weights = np.random.default_rng(0), (0.5, 2.0, 7.0, 1.25)
        logits, labels, targets = rng.standard_normal((6, 4)), rng.integers(0, 4, 6), rng.dirichlet([1.0] * 4, 6)
        theirs = torch.nn.CrossEntropyLoss(
            torch.tensor(weights, dtype=torch.float64), reduction="sum", label_smoothing=0.2
        )
        losses = self.step(framework, 0.2, 6, weights)
        for target, given in ((targets, torch.tensor(targets)), (np.eye(4)[labels], torch.tensor(labels))):
            loss, gradient = losses(logits, target)
            leaf = torch.tensor(logits, requires_grad=True)
            expected = theirs(leaf, given)
            (expected / 6).backward()
            assert loss == pytest.approx(expected.item(), rel=1e-12)
            assert leaf.grad is not None
            np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-10, atol=1e-14)
            assert abs(self.step(framework, 0.2, 6)(logits, target)[0] - loss) > 0.1

    def step(
        self, framework: str, smoothing: float, count: int, weights: Any = "equal"
    ) -> Callable[[np.ndarray, np.ndarray], Any]:
        """What gives the loss of a training step whose network came to some logits, and its gradient to them."""
        recipe = replace(DIGITS, precision="float64", label_smoothing=smoothing, class_weights=weights)

        def in_torch(logits: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
            leaf, scaler = torch.tensor(logits, requires_grad=True), GradScaler("cpu", enabled=False)
            state: Any = SimpleNamespace(recipe=recipe, network=lambda x: leaf, scaler=scaler, world=ALONE)
            x = torch.zeros(len(logits), dtype=torch.float64)
            loss, _ = torch_impl.train.backward(state, x, torch.tensor(targets), count)
            assert leaf.grad is not None
            return float(loss), leaf.grad.numpy()

        @jax.jit
        def in_flax(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
            model = SimpleNamespace(apply=lambda variables, x, **options: (variables["params"], {}))
            scaler = flax_impl.optim.build_scaler(recipe.loss_scale, "float64")
            state: Any = SimpleNamespace(recipe=recipe, model=model, params=logits, scaler=scaler, dropout_key=None)
            gradient, _, total, _ = flax_impl.train.backward(state, {}, jnp.zeros(len(logits)), targets, None, count)
            return total, gradient

        return in_torch if framework == "torch" else in_flax


SCRIPTS = {
    "grows after the interval exactly": "....." * 4,
    "an overflow begins the count anew": "..x...xx..x....x.......",
    "overflow after overflow": "xxxxx.....xx",
    "in the very step in which it would grow": "..x..x..x...x...",
}


class TestLossScale:
    @pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
    def test_is_pytorchs_step_by_step(self, script: str) -> None:
        """`torch.amp.GradScaler` itself, given infinite gradients where the script has an x."""
        for interval in (1, 3, 4):
            spec = LossScale(initial=1024.0, growth=8.0, backoff=0.25, interval=interval)
            ours = GradScaler("cpu", 1024.0, growth_factor=8.0, backoff_factor=0.25, growth_interval=interval)
            self.compare(spec, ours, script)

    def test_never_grows_to_infinity(self) -> None:
        """PyTorch keeps the scale if a larger one is beyond float32; the count begins anew all the same."""
        spec = LossScale(initial=2.0**124, growth=4.0, backoff=0.5, interval=2)
        ours = GradScaler("cpu", 2.0**124, growth_factor=4.0, growth_interval=2)
        assert self.compare(spec, ours, "........x..")[-3:] == [2.0**125, 2.0**125, 2.0**127]

    def compare(self, spec: LossScale, scaler: GradScaler, script: str) -> list[float]:
        """The scales after each step, equal in a `GradScaler` made here, in the one that is built, and in Flax's."""
        built = torch_impl.optim.build_scaler(spec, "float16", torch.device("cpu"))
        flaxs = flax_impl.optim.build_scaler(spec, "float16")
        after, scales = jax.jit(Scaler.after), []
        for letter in script:
            found = [self.step(each, letter) for each in (scaler, built)]
            flaxs = after(flaxs, jnp.asarray(letter == "."))
            assert flaxs.scale is not None
            assert flaxs.good is not None
            assert found[0] == found[1] == (float(flaxs.scale), int(flaxs.good))
            scales.append(found[0][0])
        return scales

    def step(self, scaler: GradScaler, letter: str) -> tuple[float, int]:
        """One step with finite gradients, or not: the scale and the good steps since it changed."""
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([parameter], 0.1)
        before = float(scaler.scale(torch.ones(())))
        parameter.grad = torch.tensor([before / 4, float("inf") if letter == "x" else before])
        scaler.unscale_(optimizer)
        if letter == ".":
            assert parameter.grad.tolist() == [0.25, 1.0]
        scaler.step(optimizer)
        scaler.update()
        return scaler.get_scale(), scaler._get_growth_tracker()

    def test_flaxs_multiplies_and_divides_by_it(self) -> None:
        scaler = flax_impl.optim.build_scaler(LossScale(initial=512.0), "float16")
        assert float(scaler.scaled(jnp.float32(3.0))) == 1536.0
        assert scaler.unscale({"w": jnp.float32([1024.0, 256.0])})["w"].tolist() == [2.0, 0.5]

    def test_is_for_float16_alone(self) -> None:
        for precision in ("float32", "tf32", "float64", "bfloat16"):
            assert not torch_impl.optim.build_scaler(LossScale(), precision, torch.device("cpu")).is_enabled()
            scaler = flax_impl.optim.build_scaler(LossScale(), precision)
            assert scaler.scale is None
            assert scaler.after(jnp.asarray(False)).scaled(jnp.float32(3.0)) == 3.0


class TestInitialisers:
    def test_are_pytorchs_number_for_number(self) -> None:
        """`torch.nn.init` with the same generator, and fans from its own count."""
        given, shape = torch.nn.init, (12, 5, 3, 7)
        fan_in, fan_out = given._calculate_fan_in_and_fan_out(torch.empty(shape))
        theirs: dict[Kernel, Callable[..., torch.Tensor]] = {
            "fan_in_uniform": partial(given.kaiming_uniform_, a=sqrt(5)),
            "he_fan_in": partial(given.kaiming_normal_, nonlinearity="relu"),
            "he_fan_out": partial(given.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
            "xavier_uniform": given.xavier_uniform_,
            "normal": partial(given.normal_, std=0.02),
        }
        for kernel, fill in theirs.items():
            found, generators = torch.empty(shape), [torch.Generator().manual_seed(3) for _ in range(2)]
            torch_impl.init.draw_kernel(found, kernel, 0.02, fan_in, fan_out, generators[0])
            expected = fill(torch.empty(shape), generator=generators[1])
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=kernel)

    def test_the_torch_scheme_is_what_pytorch_does_by_itself(self) -> None:
        """`reset_parameters` of every layer from the same seed: the same weights, bit for bit."""
        ours, theirs = (torch_impl.model.build(ARCHS["lenet"]) for _ in range(2))
        torch_impl.init.initialize(ours, get_init("torch"), 5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            for module in theirs.modules():
                if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                    module.reset_parameters()
        for name, parameter in theirs.named_parameters():
            assert torch.equal(parameter, ours.get_parameter(name)), name


def save_photographs(root: Path) -> None:
    """Real files: JPEGs in colours and grey, PNGs in colours, grey and by a palette; upright, long, odd and small."""
    china, flower = map(Image.fromarray, load_sample_images().images)
    pictures = [
        ("0.jpg", china),
        ("1.jpg", flower.crop((17, 5, 318, 406))),
        ("2.jpeg", china.convert("L").crop((0, 0, 333, 127))),
        ("3.png", flower.crop((100, 100, 141, 300))),
        ("4.png", china.convert("L").rotate(90, expand=True)),
        ("5.png", flower.convert("P", palette=Image.Palette.ADAPTIVE).crop((1, 2, 212, 164))),
        ("6.PNG", china.crop((5, 5, 40, 38))),
    ]
    for name in ("china", "flower"):
        (root / name).mkdir(parents=True)
        for file, picture in pictures:
            picture.save(root / name / file)


class TestPhotographs:
    @pytest.mark.parametrize(("side", "crop"), [(64, 56), (37, 37)])
    def test_files_become_torchvisions_pixels(self, side: int, crop: int, tmp_path: Path) -> None:
        """`ImageFolder`, then `Resize` of the shorter side, bilinear and antialiased, and twice `CenterCrop`: byte for
        byte. A fifth of each class, from its first on, is the test split."""
        save_photographs(tmp_path / "data")
        crops = (v2.CenterCrop(side), v2.CenterCrop(crop))
        theirs = ImageFolder(str(tmp_path / "data"), v2.Compose([v2.Resize(side), *crops, v2.PILToTensor()]))
        expected = {path: (image, label) for (path, _), (image, label) in zip(theirs.samples, theirs, strict=True)}
        recipe = replace(DIGITS, preprocess=Preprocess(host_resize=side, crop=crop), arch="alexnet")
        train, test = load_dataset(f"folder:{tmp_path / 'data'}")
        tested = [str(tmp_path / "data" / name / file) for name in theirs.classes for file in ("0.jpg", "5.png")]
        assert test.files == tested
        assert sorted([*train.files, *test.files]) == sorted(expected)
        for data in (train, test):
            (batch,) = batches(data, recipe, 0, train=False)
            pixels = torch_impl.preprocess.crop(
                torch.tensor(batch.images), torch.tensor(batch.draws["crop"]), 0, crop
            ).permute(0, 3, 1, 2)
            for path, found, label in zip(data.files, pixels, batch.labels.tolist(), strict=True):
                assert label == expected[path][1]
                assert torch.equal(found, expected[path][0]), path


def test_max_pools_pass_nan_on_and_back_as_pytorch_does() -> None:
    """NaN beats every number, wherever in the window it stands, and takes the window's gradient."""
    rng, pool = np.random.default_rng(0), MaxPool(3, 2, 1)
    x = np.rint(rng.standard_normal((2, 9, 8, 3)) * 2).astype(np.float32)
    x[rng.random(x.shape) < 0.06] = np.nan
    ours = torch.tensor(x).permute(0, 3, 1, 2).contiguous().requires_grad_()
    output = F.max_pool2d(ours, pool.size, pool.stride, pool.padding)
    weights = rng.integers(1, 9, tuple(output.shape)).astype(np.float32)
    output.backward(torch.tensor(weights))
    assert ours.grad is not None
    assert 0.1 < float(output.isnan().float().mean()) < 0.9

    @jax.jit
    def there_and_back(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array, ...]:
        y, back = jax.vjp(lambda x: flax_impl.layers.max_pool(x, pool), x)
        return flax_impl.layers.max_pool(x, pool), y, *back(gradient)

    alone, theirs, gradient = there_and_back(jnp.asarray(x), jnp.asarray(weights.transpose(0, 2, 3, 1)))
    for found in (alone, theirs):
        np.testing.assert_array_equal(np.asarray(found).transpose(0, 3, 1, 2), output.detach().numpy())
    np.testing.assert_array_equal(np.asarray(gradient).transpose(0, 3, 1, 2), ours.grad.numpy())


@pytest.mark.usefixtures("x64")
@both
def test_batch_norm_is_its_formula(framework: str) -> None:
    """Ioffe and Szegedy, arXiv:1502.03167, algorithm 1 with the biased variance; the running one is unbiased (their
    algorithm 2), and the new batch weighs `momentum`. The convolution before it passes its input on."""
    spec = ConvSpec(2, 1, bias=False, norm=BatchNorm(momentum=0.3, eps=0.5))
    rng = np.random.default_rng(0)
    rows, mean, variance = rng.standard_normal((3, 4, 2, 3, 2)) + 1, np.zeros(2), np.ones(2)
    block = torch_impl.model.ConvBlock(spec, 2).double()
    with torch.no_grad():
        block.conv.weight.copy_(torch.eye(2)[:, :, None, None])
    linen = flax_impl.model.ConvBlock(spec, param_dtype=jnp.float64)
    apply: Any = jax.jit(lambda variables, x: linen.apply(variables, x, train=True, mutable=["batch_stats"]))
    kernel = {"kernel": jnp.eye(2)[None, None]}
    variables: Any = {"params": {"conv": kernel, "norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}}}
    variables["batch_stats"] = {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    for x in rows:
        mean = 0.7 * mean + 0.3 * x.mean((0, 1, 2))
        variance = 0.7 * variance + 0.3 * x.var((0, 1, 2), ddof=1)
        expected = np.maximum((x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 0.5), 0)
        if framework == "torch":
            found = block(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()
        else:
            found, updates = apply(variables, jnp.asarray(x))
            variables |= updates
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    kept = variables["batch_stats"]["norm"]
    norm: Any = block.norm
    running = (norm.running_mean, norm.running_var) if framework == "torch" else (kept["mean"], kept["var"])
    for ours, wanted in zip(running, (mean, variance), strict=True):
        np.testing.assert_allclose(np.asarray(ours), wanted, rtol=1e-12)


def small_batch(n: int) -> Batch:
    return Batch(None, np.zeros(n, np.int32), {}, np.arange(n))


class TestJournal:
    """Five steps of batches of 4, 4, 4, 4 and 2, a row for every two."""

    SIZES = (4, 4, 4, 4, 2)
    LOSSES = (9.0, 7.0, 8.5, 3.0, 1.0)
    RIGHT = (0, 1, 2, 4, 1)

    @pytest.fixture
    def journal(self, tmp_path: Path) -> Journal:
        recipe: Recipe = replace(DIGITS, epochs=3, schedule=Schedule("cosine", warmup_epochs=1))
        run = RunFolder.create(tmp_path / "run", recipe)
        write_json(run.path / "manifest.json", {})
        return Journal(run, "torch", ARCHS["lenet"], 5, log_every=2)

    def epoch(self, journal: Journal, epoch: int, scores: Scores) -> str:
        """Record an epoch; its summary."""
        with journal.epoch(epoch) as record:
            for n, loss, right in zip(self.SIZES, self.LOSSES, self.RIGHT, strict=True):
                record(small_batch(n), {"loss": loss, "correct": right, "count": n})
        progress = record.progress()
        journal.scores({"test": scores}, progress)
        return progress.summary()

    def test_rows_are_means_over_examples(self, journal: Journal) -> None:
        """numpy's weighted means, and the rate of the last step that a row is of."""
        summary = self.epoch(journal, 0, Scores(loss=13.0, top1=6, top5=9, count=10))
        *rows, test = journal.run.metrics()
        for row, part in zip(rows, (slice(0, 2), slice(2, 4), slice(4, 5)), strict=True):
            sizes = np.array(self.SIZES[part])
            losses, right = (np.array(values[part]) / sizes for values in (self.LOSSES, self.RIGHT))
            assert row["loss"] == pytest.approx(np.average(losses, weights=sizes))
            assert row["accuracy"] == pytest.approx(np.average(right, weights=sizes))
            assert row["step"] == part.stop
            assert row["lr"] == pytest.approx(journal.recipe.optimizer.lr * part.stop / 6)
            assert row["images/s"] * row["seconds"] == pytest.approx(sizes.sum())
        assert [test[name] for name in ("loss", "accuracy", "top5", "step", "epoch")] == [1.3, 0.6, 0.9, 5, 1]
        assert summary.startswith("loss 1.58  accuracy 44.4 %  ")

    @pytest.mark.parametrize(("losses", "best"), [((9.0, 8.0, 7.0), 3), ((9.0, 7.0, 8.0), 2), ((9.0, 8.0, 8.0), 2)])
    def test_of_equal_epochs_the_lowest_loss_is_the_best(
        self, journal: Journal, losses: tuple[float, ...], best: int
    ) -> None:
        """And of these the first."""
        for epoch, (right, loss) in enumerate(zip((5, 7, 7), losses, strict=True)):
            self.epoch(journal, epoch, Scores(loss, right, 9, 10))
        assert journal.best == {"test": (0.7, best)}
        assert journal.choice().epoch == 3

    @pytest.mark.parametrize("stops", [(), (1,), (3,), (4,), (1, 2), (2, 4), (1, 3, 4)])
    def test_an_epoch_that_is_stopped_more_than_once_is_one_epoch(
        self, journal: Journal, stops: tuple[int, ...]
    ) -> None:
        """Its checkpoints carry all of its rows and sums, and a hash that only the batches and their order decide."""
        digests = set[str]()
        for places in (stops, (2,)):
            journal.progress = Progress.start(journal.recipe, journal.arch)
            for first, last in zip((0, *places), (*places, 5), strict=True):
                record = EpochRecord(journal, 0, lambda record: None)
                for place in range(first, last):
                    sums = {"loss": self.LOSSES[place], "correct": self.RIGHT[place], "count": self.SIZES[place]}
                    record(replace(small_batch(self.SIZES[place]), ids=np.arange(self.SIZES[place]) + place), sums)
                before, journal.progress = journal.progress.seconds, record.progress()
                assert journal.progress.seconds > before
            digests.add(journal.progress.digest)
            rows = journal.run.metrics()[-3:]
            assert journal.progress.rows == rows
            assert [row["step"] for row in rows] == [2, 4, 5]
            means = [
                sum(self.LOSSES[i] for i in part) / sum(self.SIZES[i] for i in part) for part in ((0, 1), (2, 3), (4,))
            ]
            assert [row["loss"] for row in rows] == pytest.approx(means)
            assert journal.progress.totals == {"loss": 28.5, "correct": 8, "count": 18}
        assert len(digests) == 1

    def test_the_hash_of_an_epoch_is_of_every_batch_in_its_order(self, journal: Journal) -> None:
        def digest(*firsts: int) -> str:
            record = EpochRecord(journal, 0, lambda record: None)
            for first in firsts:
                record(replace(small_batch(2), ids=np.array([first, 7])), {"loss": 1.0, "correct": 1, "count": 2})
            return record.digest

        orders = ((0, 1, 2), (9, 1, 2), (0, 9, 2), (0, 1, 9), (1, 0, 2), (0, 1), ())
        assert len({digest(*order) for order in orders}) == len(orders)
        assert digest(0, 1, 2) == digest(0, 1, 2)

    def test_rows_and_checkpoints_are_counted_over_the_run(self, journal: Journal) -> None:
        """Every second step of it, and of rows each epoch's last one, whose checkpoint is the epoch's."""
        journal.checkpoint_every, due = 2, list[int]()
        for epoch in (0, 1):
            with journal.epoch(epoch) as record:
                for n in self.SIZES:
                    record(small_batch(n), {"loss": 1.0, "correct": 1, "count": n})
                    due += [record.step] * record.due
        assert due == [2, 4, 6, 8]
        assert [(row["epoch"], row["step"]) for row in journal.run.metrics()] == [
            (1, 2), (1, 4), (1, 5), (2, 6), (2, 8), (2, 10)
        ]  # fmt: skip
