"""The range test of the learning rate, in both frameworks."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isclose, nan
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight

import flax_impl.find_lr
import torch_impl.find_lr
import torch_impl.train
from common.arch import zoo as archs
from common.commands.find_lr import run_find_lr
from common.data.load import load_dataset
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.spec import FineTune, Optimizer, Recipe, Schedule
from common.recipes.zoo import get_recipe
from common.reports import rates as pictures
from common.training import rates
from common.training.rates import Curve, RateOptions
from parity_tests.material import narrow

FIND: dict[Framework, Any] = {"torch": torch_impl.find_lr.find_lr, "flax": flax_impl.find_lr.find_lr}
both = pytest.mark.parametrize("framework", ["torch", "flax"])


@pytest.fixture
def recipe() -> Any:
    """The digits on a narrow network, by plain descent, for which a rate can be too large."""
    tiny = replace(narrow(archs.ARCHS["lenet"], conv=4, dense=16), name="tiny")
    digits = get_recipe("digits")
    preprocess = replace(digits.preprocess, resize=28)
    with mock.patch.dict(archs.OWN, {"tiny": tiny}):
        yield replace(digits, arch="tiny", optimizer=Optimizer(), preprocess=preprocess, batch_size=256)


def curve_of(losses: list[float]) -> Curve:
    curve = Curve([], [], [])
    for step, loss in enumerate(losses):
        rates.add(curve, 10.0**step, loss)
    return curve


def test_the_rate_grows_by_the_same_factor(recipe: Recipe) -> None:
    options = RateOptions(low=1e-4, high=1.0, steps=13)
    tuned = replace(recipe, finetune=FineTune("last", 3, 0.1), schedule=Schedule("cosine", warmup_epochs=2))
    grown = rates.growing(tuned, options)
    found = [grown.learning_rate(step, 1) for step in range(13)]
    np.testing.assert_allclose(found, np.geomspace(1e-4, 1.0, 13), rtol=1e-12)
    assert grown.finetune == FineTune("last", 0, 0.1)
    grown.check()


@both
def test_steps_are_those_of_training_at_these_rates(framework: Framework, recipe: Recipe) -> None:
    """More of them than a pass has: 1,437 digits are six batches."""
    options = RateOptions(low=1e-3, high=1e-1, steps=14, device="cpu")
    curve = FIND[framework](recipe, options)
    np.testing.assert_allclose(curve.rates, np.geomspace(1e-3, 1e-1, 14), rtol=1e-12)
    assert len(curve.losses) == 14
    assert curve.losses[-1] < curve.losses[0]
    with mock.patch.object(rates, "growing", lambda recipe, options: replace(recipe, epochs=options.steps)):
        assert FIND[framework](replace(recipe, optimizer=Optimizer(lr=1e-3)), options).losses[-1] > curve.losses[-1]


def test_each_pass_over_the_data_has_an_order_of_its_own() -> None:
    """As in training: the first, the second and so on, shuffled, as long as there is no last step."""
    passes: list[tuple[int, bool]] = []

    def feed(epoch: int = 0, *, train: bool = False, start: int = 0) -> Any:
        passes.append((epoch, train))
        return ((epoch, place) for place in range(start, 3))

    curve = curve_of([])
    steps: list[Any] = []
    for step in rates._steps(feed, curve, 7):
        steps.append(step)
        rates.add(curve, 0.1, 1.0)
    assert steps == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert passes == [(0, True), (1, True), (2, True)]


def test_it_ends_beyond_four_times_the_lowest_loss_not_the_first() -> None:
    curve, feed = curve_of([]), mock.Mock(return_value=[None] * 50)
    for place, _ in enumerate(rates._steps(feed, curve, 50)):
        rates.add(curve, 0.1, 100.0 if place == 0 else 1.0 if place < 30 else 10.0)
    *before, last = curve.smoothed
    assert all(loss <= 4 * min(before[: place + 1]) for place, loss in enumerate(before))
    assert 4 * min(before) < last < 100
    assert 30 < len(curve.smoothed) < 35


def test_the_state_is_that_of_training(recipe: Recipe) -> None:
    """With the weights that the recipe starts from, and scikit-learn's balanced class weights if it asks for some."""
    began: list[Recipe] = []
    trained: list[str] = []

    class Fake(mock.MagicMock):
        def begin(self, recipe: Recipe, *rest: Any) -> str:
            began.append(recipe)
            return "fresh"

        def start_weights(self, state: str, init_from: Path | None) -> tuple[str, tuple[str, ...]]:
            return f"{state}, then given", ()

        def feeds(self, *rest: Any) -> list[Any]:
            return [lambda epoch, train: iter([(None, None)] * 6)]

        def train_epoch(self, state: str, steps: Any, after: Any) -> None:
            trained.append(state)
            for _ in steps:
                after(None, state, {"loss": 6.0, "count": 3.0})

    curve = rates.find_rate(Fake(), replace(recipe, class_weights="balanced"), RateOptions(steps=12))
    assert curve.losses == [2.0] * 12
    assert trained == ["fresh, then given"]
    train, _ = load_dataset("digits")
    labels = train.source.read(train.ids, None)[1]
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    assert began[0].class_weights == pytest.approx(expected, rel=1e-12)


@both
def test_it_ends_where_the_loss_diverges(framework: Framework, recipe: Recipe) -> None:
    options = RateOptions(low=1e-3, high=1e6, steps=40, device="cpu")
    curve = FIND[framework](recipe, options)
    assert rates.LEAST <= len(curve.rates) < 40
    assert all(map(np.isfinite, curve.losses))
    assert curve.suggested == curve.rates[curve.lowest] / 10 < 1


@both
def test_a_loss_that_is_never_finite_gets_a_sentence(framework: Framework, recipe: Recipe) -> None:
    options = RateOptions(low=1e20, high=1e30, steps=20, device="cpu")
    with pytest.raises(UserError, match=r"The loss was not finite after \d steps already: take a smaller --low\."):
        FIND[framework](recipe, options)


def test_the_smoothed_loss_is_a_mean_that_forgets() -> None:
    curve = curve_of([4.0, 2.0, 1.0])
    assert curve.smoothed[:1] == [4.0]
    assert isclose(curve.smoothed[1], (0.8 * 4 + 2) / 1.8)
    assert isclose(curve.smoothed[2], (0.64 * 4 + 0.8 * 2 + 1) / 2.44)
    assert (curve.lowest, curve.suggested) == (2, 10.0)


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_loss_that_is_no_number_is_left_out(bad: float) -> None:
    assert curve_of([4.0, bad]) == curve_of([4.0])


@both
def test_the_command_prints_and_draws(
    framework: Framework, recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve, given = curve_of([4.0, 2.0, 1.0, 30.0]), []

    def find(recipe: Recipe, options: RateOptions) -> Curve:
        given.append((recipe.batch_size, options.steps))
        return curve

    words = ["digits", "--steps", "50", "--batch-size", "7", "--to", str(tmp_path / "a/rates.png")]
    run_find_lr(framework, find, words)
    assert given == [(7, 50)]
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "lowest loss at 1e+02, diverging at 1e+03"
    assert second == "suggested rate: 10, the recipe's is 0.0003"
    assert third == words[-1]
    run_find_lr(framework, find, words)
    assert capsys.readouterr().out.splitlines()[-1] == f"{words[-1]} (replaced)"
    with Image.open(words[-1]) as picture:
        assert picture.size[0] > 800


def test_the_picture_marks_the_suggested_rate(tmp_path: Path) -> None:
    kept: list[Any] = []
    curve = curve_of([4.0, 2.0, 1.0])
    with mock.patch.object(pictures, "save_figure", lambda figure, path, dpi: kept.append(figure)):
        pictures.draw_rates(curve.rates, curve.losses, curve.smoothed, 10.0, "$a_1$", tmp_path / "a.png")
    [axis] = kept[0].axes
    assert axis.get_xscale() == "log"
    assert [list(line.get_xdata()) for line in axis.lines] == [curve.rates, curve.rates, [10.0, 10.0]]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--low", "1", "--high", "0.1"], "--low 1 --high 0.1: both must be positive, and the first smaller."),
        (["--steps", "3"], "--steps is 3; it must be at least 10."),
        (["--to", "a.svg"], "--to a.svg: the picture is a PNG, so give it a name that ends in .png."),
        (["--epochs", "0"], "epochs is 0; it must be at least 1."),
    ],
)
def test_values_that_no_test_can_have_get_a_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_find_lr("torch", torch_impl.find_lr.find_lr, ["digits", *words])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
