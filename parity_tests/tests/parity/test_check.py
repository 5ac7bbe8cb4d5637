"""What a check says: agreements, all causes at once, recordings, files, and bad input in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
import torch

import parity
from parity import verdict as verdict_module
from parity.__main__ import main
from parity.compare import differences
from parity_tests.results import ROOT
from parity_tests.tests.parity.pairs import MOMENTUM, NET, RATE, TAIL, LinenNet, LinenTail, TorchTail, batches

pytestmark = pytest.mark.usefixtures("x64")
pytest_plugins = ["parity.plugin"]

WRONG = replace(NET, linen=LinenNet(padding="SAME", pool="SAME", epsilon=1e-3, tanh=True, momentum=0.99))


def test_every_cause_is_named_in_one_run() -> None:
    planned = replace(WRONG, tx=optax.sgd(RATE, MOMENTUM), decay=1e-2)
    verdict = parity.check(*planned.sides(), batches(planned.shape), go_on=True, noise=False)
    said = [(finding.difference.phase, finding.tensors[0]) for finding in verdict.findings]
    assert said == [
        ("activation", "stem"),
        ("activation", "norm"),
        ("activation", "mid (input)"),
        ("activation", "wide (input)"),
        ("optimizer", "momentum_buffer/stem.weight"),
        ("statistic", "norm.running_mean"),
    ]
    assert verdict.findings[2].between == ("act", "pool")
    assert str(verdict).splitlines()[-1] == verdict.sentence
    assert verdict.sentence.startswith("PyTorch and Flax part at step 0, activation, stem, off by ")
    assert "6 causes:" in str(verdict)


def test_in_evaluation_alone() -> None:
    """Training says nothing of evaluation, where norms use what they have gathered."""
    verdict = parity.check(*WRONG.sides(), batches(WRONG.shape), go_on=True, mode="forward", noise=False)
    assert {finding.difference.phase for finding in verdict.findings} == {"activation"}
    assert len(verdict.findings) == 4
    agreed = parity.check(*TAIL.sides(), batches(TAIL.shape), mode="forward")
    assert agreed
    assert "agree over 2 batches" in agreed.sentence


def test_both_sides_are_where_they_began() -> None:
    left, right = TAIL.sides()
    left.describe(batches(TAIL.shape)[0][0])
    start = {name: values.copy() for name, values in left.model().tensors.items()}
    first, second = (parity.check(left, right, batches(TAIL.shape)) for _ in range(2))
    assert str(first) == str(second)
    assert all(np.array_equal(values, start[name]) for name, values in left.model().tensors.items())


def test_an_agreement_is_set_beside_rounding(assert_parity: Any) -> None:
    verdict = assert_parity(*TAIL.sides(), batches(TAIL.shape))
    assert verdict.noise is not None
    own = verdict.noise.largest(verdict.report.largest().phase).relative
    assert 1e-17 < own < 1e-12
    assert not {"batch", "input"} & {*verdict.noise.phases()}, "which no weight has a part in"
    assert verdict.sentence.endswith(f"PyTorch parts from itself by {own:.2g} there.")
    with pytest.raises(AssertionError, match="part at step 0, activation, out"):
        assert_parity(*replace(TAIL, linen=LinenTail(scale=1.0)).sides(), batches(TAIL.shape))


def walk_of(dtype: Any) -> Any:
    """How models whose parameters are of this dtype, or of one for each name, are compared without given bounds."""
    of_name = dtype if not isinstance(dtype, type) else lambda name: dtype
    found = parity.match(*TAIL.sides(), batches(TAIL.shape)[0])
    found.models = tuple(  # type: ignore[assignment]
        replace(model, parameters={name: values.astype(of_name(name)) for name, values in model.parameters.items()})
        for model in found.models
    )
    return verdict_module._Walk(found, "train", None, False, (None, None))


def test_float32_has_wider_bounds_with_an_end_too() -> None:
    """A gradient to 1e-4 of its scale; or ten times the own noise, if that is less than a hundredth."""
    walk, ones = walk_of(np.float32), np.ones(3, np.float32)
    assert walk.bounds == walk_of(lambda name: np.float32 if name.endswith("bias") else np.float64).bounds
    for apart, within in ((5e-5, True), (2e-4, False)):
        one, other = ({"gradient": {"a": a}} for a in (ones, ones * np.float32(1 + apart)))
        [found] = differences(one, other, 0, walk.bounds)
        assert found.within is within
    walk.noises = [{("gradient", "a"): 1.0}]
    apart_by = [parity.Difference(0, "gradient", "a", 1.0, relative, 1.0, 1.0, 1e-4) for relative in (9e-3, 2e-2)]
    assert [walk._within_noise(each).within for each in apart_by] == [True, False]


@pytest.mark.parametrize(
    ("own", "times", "within"), [(1e-9, 5.4, True), (1e-9, 12.0, False), (1e-3, 9e-4, True), (1e-3, 2e-3, False)]
)
def test_a_difference_may_be_some_times_the_own_noise(own: float, times: float, within: bool) -> None:
    """More than was measured of equal pairs, but not much more; only of the same tensor; and never 1e-6 in float64,
    where a model whose noise is so large says nothing."""
    walk = walk_of(np.float64)
    walk.noises = [{("activation", "q"): own}]
    apart = parity.Difference(0, "activation", "q", 1.0, times * own, 1.0, 1.0, 1e-10, cause="something")
    assert walk._within_noise(apart).within is within
    assert not walk._within_noise(replace(apart, tensor="k")).within
    walk.given = True
    assert not walk._within_noise(apart).within, "a bound that is asked for is one"


@pytest.mark.parametrize(
    ("size", "relative", "within"), [(1e-3, 2e-10, False), (1e-3, 5e-11, True), (1e-5, 5e-10, True)]
)
def test_a_small_gradient_is_compared_on_its_own_scale_down_to_a_ten_thousandth_of_the_largest(
    size: float, relative: float, within: bool
) -> None:
    """In float64, where nothing else is asked for, to 1e-10."""
    walk = walk_of(np.float64)
    largest, small = np.ones(3), np.full(3, size)
    one, other = ({"gradient": {"a": largest, "b": b}} for b in (small, small * (1 + relative)))
    assert [each.within for each in differences(one, other, 0, walk.bounds)] == [True, within]


def test_noise_is_of_every_weight_moved_by_one_unit_in_its_last_place() -> None:
    """numpy's spacing of each number, half of them up and half of them down."""
    left, right = TAIL.sides()
    found = parity.match(left, right, batches(TAIL.shape)[0])
    before, moved = {name: values.copy() for name, values in left.model().parameters.items()}, {}
    walk = verdict_module._Walk(found, "train", None, False, (None, None))
    with mock.patch.object(left, "overwrite", lambda tensors, memory: moved.update(tensors)):
        verdict_module._noise(found, batches(TAIL.shape), walk)
    assert moved.keys() == before.keys()
    for name, values in before.items():
        away = (moved[name] - values) / np.spacing(np.maximum(np.abs(values), 1e-300))
        assert set(np.abs(away).flat) == {1.0}, name
        assert abs(away.sum()) <= 1, name


def test_single_tensors_have_bounds_of_their_own() -> None:
    planned = replace(NET, linen=LinenNet(momentum=0.99))
    bounds = parity.Bounds(1e-10, share=1e-4, tensor={"statistic/norm.*": np.inf, "activation/stem": 0.5})
    verdict = parity.check(*planned.sides(), batches(planned.shape), bounds=bounds, noise=False)
    assert verdict
    assert "Exempt, as asked: norm.running_mean, norm.running_var." in verdict.notes
    assert ("statistic", "norm.running_mean") not in verdict.report.worst
    assert verdict.report.worst["activation", "stem"].bound == 0.5, "a wide bound is no exemption"


def test_adam_makes_no_steps_of_rounding() -> None:
    """The bias before a norm has no gradient but rounding's, of which Adam makes steps of its whole rate."""
    left, right = replace(NET, tx=optax.adam(1e-3, eps=1e-8)).sides()
    left = parity.torch.Side(left.net, left.loss, torch.optim.Adam(left.net.parameters(), 1e-3))
    free = parity.Bounds(1e-9, share=1e-4, tensor={"*.running_var": np.inf})
    verdict = parity.check(left, right, batches(NET.shape, count=3), bounds=free, noise=False)
    assert verdict, verdict
    assert any(note.startswith("stem.bias: the gradient is nothing but rounding") for note in verdict.notes)


@pytest.mark.parametrize(("size", "nothing"), [(1e-8, False), (1e-11, True)])
def test_a_gradient_is_rounding_below_a_ten_billionth_of_the_largest(size: float, nothing: bool) -> None:
    """In float64, and on both sides: what one of them has is a difference."""
    walk = walk_of(np.float64)
    memory = {"exp_avg_sq/a": np.ones(3), "exp_avg_sq/b": np.ones(3)}
    left = {"optimizer": memory, "gradient": {"a": np.ones(3), "b": np.full(3, size)}}
    walk._find_idle(left, left | {"gradient": {"a": np.ones(3), "b": np.full(3, 1e-3)}})
    assert walk.idle == set()
    walk._find_idle(left, left)
    assert walk.idle == ({"b"} if nothing else set())
    walk._find_idle(*[left | {"gradient": {"a": np.ones(3), "b": np.ones(3)}}] * 2)
    assert walk.idle == ({"b"} if nothing else set()), "what was made of rounding stays"


def test_it_is_written_as_json_html_and_text(tmp_path: Path) -> None:
    verdict = WRONG.check(noise=False)
    assert [finding.tensors for finding in verdict.findings] == [("stem",)]  # unless told to go on, the first alone
    for name in ("verdict.json", "verdict.html", "verdict.txt"):
        verdict.save(tmp_path / name)
    whole = json.loads((tmp_path / "verdict.json").read_text("utf-8"))
    assert (whole["agree"], whole["sentence"]) == (False, verdict.sentence)
    assert whole["findings"][0]["tensor"] == "stem"
    page = (tmp_path / "verdict.html").read_text("utf-8")
    assert "<h1>PyTorch and Flax part at step 0" in page
    assert "Conv_0" in page
    assert (tmp_path / "verdict.txt").read_text("utf-8") == f"{verdict}\n"


def test_a_file_for_programs_has_the_reports_numbers() -> None:
    """Over each tensor's scale, as the text has them, and the losses of the left first."""
    verdict = parity.Verdict(("one", "other"), parity.Bounds(1.0), "train")
    for phase, tensor, relative in (("gradient", "a", 0.25), ("gradient", "b", 0.5), ("loss", "loss", 0.125)):
        verdict.report.add(parity.Difference(0, phase, tensor, 7.0, relative, 3.0, 0.75, 1.0))
    verdict.noise = parity.Report()
    verdict.noise.add(parity.Difference(0, "gradient", "a", 7.0, 0.0625, 3.0, 0.75, 1.0))
    walk = walk_of(np.float64)
    walk.verdict = verdict
    walk._end(*({"loss": {"loss": np.array(loss)}, "parameter": {}, "optimizer": {}} for loss in (1.5, 2.5)))
    whole = json.loads(verdict.json())
    assert whole["largest"] == {"loss": 0.125, "gradient": 0.5}
    assert whole["noise"] == {"gradient": 0.0625}
    assert whole["losses"] == [[1.5, 2.5]]
    assert "gradient         0.5  2 tensors, one's own noise 0.062" in str(verdict)


@pytest.mark.parametrize("mode", ["train", "forward"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, ml_dtypes.bfloat16])
def test_a_recording_is_read_as_it_was_written(mode: Any, dtype: Any, tmp_path: Path) -> None:
    """Every number of it, in its place; inputs of every form."""
    rng = np.random.default_rng(0)

    def some(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    module = parity.model.Module("a", "conv", {"weight": "a.kernel"}, {"padding": [[1, 1], [0, 1]], "groups": 2})
    optimizer = {"momentum": 0.9, "betas": [0.8, 0.95], "nesterov": True}
    held = {"a.kernel": some(2, 3)}, {"a.mean": some(2)}
    standing = parity.model.Model("it", "channels last", False, {"a": module}, ["a", "output"], *held, optimizer)
    traces: list[parity.Trace] = [
        {"activation": {"a (input)": some(2, 2), "output": some(3)}, "optimizer": {"momentum_buffer/a.kernel": some(2)}}
        for _ in range(12)  # so many that their places have two digits
    ]
    targets = rng.integers(0, 9, 3)
    given = [(some(2, 2), targets), ((some(1), some(2)), None), ({"x": some(1), "y": some(2)}, targets[:1])]
    whole = parity.files.Recording("it", "channels last", standing, traces[0], traces[1:], given, mode, "off")
    parity.save(whole, tmp_path / "it.npz")
    found = parity.load(tmp_path / "it.npz")
    assert (found.name, found.layout, found.mode, found.dropout) == ("it", "channels last", mode, "off")
    assert (found.standing.torch, found.standing.optimizer) == (False, optimizer)
    assert (found.standing.modules, found.standing.calls) == ({"a": module}, ["a", "output"])
    for read, written in (
        ([found.standing.parameters, found.standing.statistics], [*held]),
        ([found.probe, *found.traces], traces),
        (found.batches, given),
    ):
        paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(read), strict=True)
        others, wanted = zip(*jax.tree_util.tree_leaves_with_path(written), strict=True)
        assert paths == others
        for leaf, other in zip(leaves, wanted, strict=True):
            np.testing.assert_array_equal(leaf, other, strict=True)


def _recorded(folder: Path, planned: Any, mode: Any = "train") -> tuple[str, str]:
    left, right = planned.sides()
    given = batches(planned.shape)
    parity.save(parity.record(left, given, mode), folder / "left.npz")
    opened = parity.load(folder / "left.npz")
    parity.match(opened, right, given[0])
    turned = [(parity.model.relay(x, left.layout, right.layout), y) for x, y in given]
    parity.save(parity.record(right, turned, mode), folder / "right.npz")
    return str(folder / "left.npz"), str(folder / "right.npz")


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_recording_leaves_its_side_where_it_was(framework: str) -> None:
    """Parameters, memory, PyTorch's scheduler, and the step that Flax's masks are of: a second one has the same steps.
    Those masks differ from step to step."""
    left, right = NET.sides()
    given = batches(NET.shape)
    side: Any = right
    if framework == "torch":
        optimizer = torch.optim.SGD(left.net.parameters(), RATE, MOMENTUM)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        side = parity.torch.Side(left.net, left.loss, optimizer, scheduler=scheduler)
    else:
        right.dropout = "on"
        parity.match(left, right, given[0])
        given = [(parity.model.relay(x, left.layout, right.layout), y) for x, y in given]
    first, second = (parity.record(side, given) for _ in range(2))
    one, other = first.traces
    for phase in ("loss", "optimizer", "parameter"):
        for name, values in other[phase].items():
            np.testing.assert_array_equal(second.traces[1][phase][name], values, name)
    if framework == "flax":
        masks = [trace["activation"]["Dropout_0"] == 0 for trace in (one, other)]
        assert 0.1 < np.mean(masks[0] != masks[1]) < 0.9


def test_recordings_are_compared_without_a_framework(tmp_path: Path) -> None:
    left, right = _recorded(tmp_path, replace(NET, linen=LinenNet(epsilon=1e-3)))
    code = f"""
import sys
from parity.__main__ import main
assert main(["compare", {left!r}, {right!r}, "--to", {str(tmp_path / "out.json")!r}]) == 1
assert main(["match", {left!r}, {right!r}]) == 0
assert not {{"torch", "jax", "flax", "optax"}} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "part at step 0, activation, norm" in done.stdout
    assert "epsilon is PyTorch's 1e-05, Flax's 0.001" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text("utf-8"))["agree"] is False


def test_recordings_of_models_that_agree(tmp_path: Path, capsys: Any) -> None:
    left, right = _recorded(tmp_path, NET)
    assert main(["compare", left, right]) == 1
    assert "running variance is unbiased" in capsys.readouterr().out
    assert main(["compare", left, right, "--tensor", "*.running_var=inf", "--bound", "1e-11"]) == 0
    assert "agree over 2 training steps" in capsys.readouterr().out
    assert main(["compare", left, right, "--tensor", "nothing"]) == 2
    assert "--tensor nothing is not of the form PATTERN=BOUND" in capsys.readouterr().err


def test_a_recording_stands_for_its_side(tmp_path: Path) -> None:
    left, _ = _recorded(tmp_path, WRONG)
    verdict = parity.check(parity.load(left), WRONG.sides()[1], go_on=True)
    assert len(verdict.findings) == 5


def _refused(left: Any, right: Any, given: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        parity.check(left, right, given, **options)
    return str(caught.value)


def test_bad_input_gets_a_sentence(tmp_path: Path) -> None:
    left, right = TAIL.sides()
    given = batches(TAIL.shape)
    assert _refused(left, right, []) == "There is no batch to compare on."
    idle = parity.torch.Side(left.net)
    assert "has no loss or no optimizer to train with" in _refused(idle, right, given)
    coarse = parity.torch.Side(TAIL.torch().float(), left.loss, torch.optim.SGD(left.net.parameters(), RATE))
    assert "is float32 and cannot hold float64: convert the model" in _refused(right, coarse, given)
    recorded, _ = _recorded(tmp_path, TAIL)
    assert "2 steps of mode 'train' were recorded, no more" in _refused(
        parity.load(recorded), right, [*given, given[0]]
    )
    other = replace(TAIL, torch=lambda: TorchTail() and TorchTail()).sides()[0]  # the seed's second weights
    assert "recorded with other weights" in _refused(other, parity.load(recorded), given)
    (tmp_path / "odd.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"odd\.npz is no recording"):
        parity.load(tmp_path / "odd.npz")


def test_without_x64_float64_is_refused() -> None:
    with jax.enable_x64(False):
        left, right = TAIL.sides()
        assert "float64 becomes float32 in JAX: call jax.config.update" in _refused(left, right, batches(TAIL.shape))


def test_a_model_that_is_not_deterministic_is_refused() -> None:
    left, right = NET.sides()
    noisy = parity.torch.Side(left.net, left.loss, left.optimizer, dropout="on")
    free = parity.Bounds(1e-10, tensor={"*": np.inf})  # between the sides alone
    for bounds in (None, free):
        said = _refused(noisy, right, batches(NET.shape), bounds=bounds)
        assert "PyTorch is not deterministic: activation, drop differs" in said


@pytest.mark.parametrize("side", ["PyTorch", "Flax"])
def test_a_loss_that_is_no_number_is_named(side: str) -> None:
    def bad(output: Any, target: Any) -> Any:
        return (output - output).sum() / 0.0

    losses = (bad, NET.losses[1]) if side == "PyTorch" else (NET.losses[0], bad)
    verdict = replace(TAIL, losses=losses).check(noise=False)
    assert verdict.sentence.endswith(f"part at step 0, loss, loss. {side} holds NaN or infinity.")


def test_captures_are_copies() -> None:
    """What an activation overwrites in place was seen before."""
    left, _ = NET.sides()
    seen = left.step(batches(NET.shape)[0])["activation"]
    assert seen["norm"].min() < 0
    assert seen["act"].min() == 0
    assert np.array_equal(np.maximum(seen["norm"], 0), seen["act"])
