"""Every technique, switched on with everything else: both frameworks take the same steps.

Float64 curves agree to 1e-10; mixed precision takes the same steps and leaves out the same ones.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from _pytest.mark import ParameterSet

import flax_impl.device
import flax_impl.preprocess
import flax_impl.train
import torch_impl.device
import torch_impl.preprocess
from common.arch.zoo import ABLATIONS, ARCHS
from common.data.crops import random_boxes
from common.data.pipeline import batches, steps_per_epoch
from common.errors import UserError
from common.recipes.spec import FineTune, LossScale, Mix, Optimizer, Precision, Recipe, Schedule
from flax_impl.feed import to_device
from parity.compare import Bounds, Report, Tensors, compare_run
from parity_tests.material import first_batches, narrow
from parity_tests.sides import make_pair, make_states
from parity_tests.single_step import same_branches
from parity_tests.subjects import Subject, subjects, with_everything

STEPS, LONG = 10, 50
WEIGHTS = tuple(0.25 * label + 0.5 for label in range(10))
BOUND = Bounds(1e-10)


def _base() -> Recipe:
    return subjects()["plain"].recipe


def techniques() -> dict[str, Recipe]:
    base, everything = _base(), with_everything(_base())
    resized = replace(base.preprocess, random_resized_crop=True, pad=0, crop=32)
    nesterov = replace(base.optimizer, nesterov=True, decay_biases=False)
    adamw = Optimizer(name="adamw", lr=1e-3, weight_decay=0.1, decay_biases=False)
    return {
        "everything": everything,
        "accumulation": replace(base, accumulate=4),
        "cosine": replace(base, schedule=Schedule("cosine", warmup_epochs=0.5, final=0.1)),
        "warm-up before steps": replace(base, schedule=Schedule(milestones=(1, 2), warmup_epochs=1)),
        "label smoothing": replace(base, label_smoothing=0.1),
        "class weights": replace(base, class_weights=WEIGHTS, label_smoothing=0.1, accumulate=2),
        "mixup": replace(base, mix=Mix(mixup=0.4)),
        "cutmix": replace(base, mix=Mix(cutmix=1.0)),
        "nesterov, kernels alone decay": replace(base, optimizer=nesterov),
        "adamw, kernels alone decay": replace(base, optimizer=adamw),
        "adam": replace(everything, optimizer=Optimizer(name="adam", lr=1e-3, weight_decay=5e-4, clip_norm=1.0)),
        "random resized crop": replace(everything, preprocess=resized),
        "frozen, then all": replace(everything, finetune=FineTune("dense", freeze_epochs=1, backbone_lr=0.1)),
        "frozen, then all, AdamW": replace(everything, optimizer=adamw, finetune=FineTune("last", 2, 0.3)),
    }


def _run(recipe: Recipe, subject: Subject, steps: int, bounds: Bounds) -> Report:
    recipe.check()
    left, right = make_pair(recipe, subject.arch, steps_per_epoch(subject.data, recipe))
    ours, theirs = (first_batches(subject.data, recipe, steps) for _ in range(2))
    return compare_run(left, right, ours, theirs, bounds)


QUICK = ("everything", "adam", "frozen, then all, AdamW")  # micro-batches in all of them


def _lengths() -> list[ParameterSet]:
    """Everything at once, and what cannot be on beside it, for a few steps in CI; each technique for 50."""
    long = [pytest.param(name, LONG, marks=pytest.mark.full) for name in techniques()]
    return [pytest.param(name, STEPS) for name in QUICK] + long


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "steps"), _lengths())
def test_float64(name: str, steps: int) -> None:
    recipe = replace(techniques()[name], epochs=LONG)
    bounds = BOUND if recipe.optimizer.name == "sgd" else Bounds(1e-9)
    assert len(_run(recipe, subjects()["plain"], steps, bounds).losses) == steps


QUICK_NETWORKS = ("alexnet_cifar_sigmoid", "alexnet_cifar_avgpool")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", [name if name in QUICK_NETWORKS else pytest.param(name, marks=pytest.mark.full) for name in ABLATIONS]
)
def test_ablations(name: str) -> None:
    """The networks of the ablation table: other activations, pools and norms."""
    subject = subjects()["plain"]
    _run(_base(), replace(subject, arch=narrow(ABLATIONS[name])), STEPS, BOUND)


@pytest.mark.usefixtures("x64")
def test_everything_on_batch_norm() -> None:
    """Micro-batches are normalised each alone, and their statistics follow one another."""
    _run(with_everything(_base()), subjects()["batch norm"], STEPS, BOUND)


def _shallow() -> Subject:
    """With LeNet, dropout before its dense layers: for what does not depend on how many layers there are."""
    lenet = narrow(ARCHS["lenet"].adapt(height=32, width=32, channels=3), conv=5)
    return replace(subjects()["plain"], arch=replace(lenet, dense=tuple(replace(d, dropout=0.5) for d in lenet.dense)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("side", [0, 1], ids=["torch", "flax"])
def test_micro_batches_equal_one_large_batch(side: int) -> None:
    """Dropout included, and in the last batch, of five examples in micro-batches of two."""
    subject = _shallow()
    per_epoch = steps_per_epoch(subject.data, subject.recipe)
    runs = []
    for accumulate in (1, 4):
        recipe = replace(with_everything(subject.recipe), accumulate=accumulate)
        watched = make_pair(recipe, subject.arch, per_epoch)[side]
        runs.append([watched.step(batch) for batch in first_batches(subject.data, recipe, per_epoch)])
    for one, other in zip(*runs, strict=True):
        for phase in ("activation", "loss", "gradient", "parameter"):
            for name, tensor in one[phase].items():
                scale = np.abs(tensor).max()
                np.testing.assert_allclose(other[phase][name], tensor, rtol=0, atol=1e-12 * scale, err_msg=name)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_frozen_backbone_stays(optimizer: str) -> None:
    """For its epochs not a bit of it moves, decay included; the head moves; afterwards everything does."""
    subject = _shallow()
    *_, (last_layer, _) = subject.arch.named_dense()
    recipe = replace(subject.recipe, finetune=FineTune("last", freeze_epochs=1))
    if optimizer == "adamw":
        recipe = replace(recipe, optimizer=Optimizer(name="adamw", lr=1e-3, weight_decay=0.1))
    per_epoch = steps_per_epoch(subject.data, recipe)
    for side in make_pair(recipe, subject.arch, per_epoch):
        traces = [side.step(batch) for batch in first_batches(subject.data, recipe, per_epoch + 1)]
        first, last, after = traces[0]["parameter"], traces[-2]["parameter"], traces[-1]["parameter"]
        for name in first:
            head = name.startswith(last_layer)
            assert np.array_equal(first[name], last[name]) != head, name
            assert not np.array_equal(last[name], after[name]), name


def _assert_momentum_equal(ours: Tensors, theirs: Tensors) -> None:
    """To float16's rounding of gradients: at most 1.1e-3 of a tensor's largest entry was measured after one step.

    Before the first step that is taken it is zero in both, however many steps were left out: PyTorch's fused SGD
    would have uninitialised memory there.
    """
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=4e-3 * np.abs(theirs[name]).max(), err_msg=name)


def scales(loss_scale: LossScale, steps: int, device: str = "cpu") -> list[tuple[float, int]]:
    """PyTorch's scale and optimizer steps after each step, asserted equal to Flax's; one left out changes no weight."""
    subject = subjects()["plain"]
    recipe = replace(_base(), precision="float16", loss_scale=loss_scale, label_smoothing=0.1, accumulate=2)
    left, right = make_pair(recipe, subject.arch, steps_per_epoch(subject.data, recipe), device=device)
    rows, before = [(loss_scale.initial, 0)], None
    for batch in first_batches(subject.data, recipe, steps):
        one, other = left.step(batch), right.step(batch)
        ours = one["parameter"]
        scale = right.state.scaler.scale
        assert scale is not None
        rows.append((left.state.scaler.get_scale(), left.state.schedule.last_epoch))
        assert rows[-1] == (float(scale), int(right.state.updates)), f"step {len(rows) - 2}"
        assert (left.state.step, int(right.state.step)) == (len(rows) - 1,) * 2
        if before is not None:
            moved = any(not np.array_equal(ours[name], before[name]) for name in ours)
            assert moved == (rows[-1][1] > rows[-2][1])
        taken_before, taken = rows[-2][1], rows[-1][1]
        # Until a step is taken both have the same weights; in that one, unless float16 closes a ReLU in one of them.
        if not taken_before and (not taken or same_branches(one, other, subject.arch)):
            _assert_momentum_equal(one["optimizer"], other["optimizer"])
        before = ours
    return rows


def test_float16_halves_the_scale_until_nothing_overflows() -> None:
    """From the same weights both overflow at the same scales. (After many steps they need not: float16 curves part.)"""
    rows = scales(LossScale(initial=2.0**30), 17)
    taken = [later[1] > earlier[1] for earlier, later in pairwise(rows)]
    assert 8 < taken.index(True) < 17, "it must overflow at first, and then no more"
    assert all(scale == 2.0 ** (30 - step) for step, (scale, done) in enumerate(rows) if not done)


def test_float16_leaves_out_the_same_steps() -> None:
    """The scale grows after three good steps in a row, here so far that one overflow brings it back."""
    scale = LossScale(initial=512.0, growth=2.0**24, backoff=2.0**-24, interval=3)
    rows = scales(scale, 13)
    for step, (found, done) in enumerate(rows):
        assert found == (512.0 * 2**24 if step % 4 == 3 else 512.0)
        assert done == step - step // 4


@pytest.mark.parametrize("precision", [kind for kind in get_args(Precision) if kind != "tf32"])
def test_this_device_computes_in_every_precision(precision: Precision) -> None:
    torch_impl.device.check_precision(precision, torch.device("cpu"))
    flax_impl.device.check_precision(precision, jax.devices("cpu")[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_flax_says_that_a_cpu_gains_nothing_by_bfloat16(
    precision: Precision, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a run; PyTorch is faster in it."""
    torch_impl.device.check_precision(precision, torch.device("cpu"))
    assert not capsys.readouterr().err
    flax_impl.device.check_precision(precision, jax.devices("cpu")[0])
    slower = "note: on a CPU Flax is slower in bfloat16 than in float32 (--precision float32)\n"
    assert capsys.readouterr().err == (slower if precision == "bfloat16" else "")


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: object) -> None:
        raise RuntimeError("'conv' not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", lacking)
    with pytest.raises(UserError, match=r"precision is float16, in which cpu .* does not compute: 'conv' not"):
        torch_impl.device.check_precision("float16", torch.device("cpu"))
    monkeypatch.setattr(jax.lax, "conv", lambda *args: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("no F16")))
    with pytest.raises(UserError, match=r"precision is float16, in which cpu .* does not compute: no F16"):
        flax_impl.device.check_precision("float16", jax.devices("cpu")[0])


@pytest.mark.full
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_stays_near_to_float32(precision: Precision) -> None:
    """The frameworks differ by no more than four times what PyTorch in this precision differs by from its float32."""
    subject = subjects()["plain"]
    losses = {}
    for kind in ("float32", precision):
        recipe = replace(_base(), precision=kind, loss_scale=LossScale(initial=1024.0))
        left, right = make_pair(recipe, subject.arch, steps_per_epoch(subject.data, recipe))
        ours, theirs = (first_batches(subject.data, recipe, LONG) for _ in range(2))
        losses[kind] = np.array(compare_run(left, right, ours, theirs, Bounds(np.inf)).losses)
        for tensors in (dict(left.state.model.named_parameters()).values(),):
            assert all(parameter.dtype == torch.float32 for parameter in tensors)
    noise = np.abs(losses[precision][:, 0] - losses["float32"][:, 0]).max()
    between = np.abs(losses[precision][:, 0] - losses[precision][:, 1]).max()
    assert 0 < between < 4 * noise


def test_cosine_is_the_frameworks_own() -> None:
    """PyTorch's `CosineAnnealingLR` and optax's `cosine_decay_schedule`, at every step; after a warm-up the same."""
    spec, rate, steps = Schedule("cosine", final=0.1), 0.3, 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.1 * rate)
    decay = optax.cosine_decay_schedule(rate, steps, alpha=0.1)
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert rate * spec.factor(step, 10, 4) == pytest.approx(expected, rel=1e-12)
        assert float(decay(step)) == pytest.approx(expected, rel=1e-5)
        optimizer.step()
        theirs.step()
    warm = replace(spec, warmup_epochs=0.5)
    rising = [warm.factor(step, 10, 4) for step in range(6)]
    assert rising == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1])
    assert warm.factor(5 + 20, 10, 4) == pytest.approx(0.1 + 0.9 * (1 + np.cos(np.pi * 20 / 35)) / 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions(channels: int) -> None:
    from torchvision.transforms import v2

    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((4, channels, 9, 7), np.float32))
    factors = torch.from_numpy(rng.uniform(0.4, 1.6, (4, 3)).astype(np.float32))
    ours = torch_impl.preprocess.jitter(x, factors)
    for image, (brightness, contrast, saturation), found in zip(x, factors.tolist(), ours, strict=True):
        expected = v2.functional.adjust_brightness(image, brightness)
        expected = v2.functional.adjust_contrast(expected, contrast)
        expected = v2.functional.adjust_saturation(expected, saturation)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    theirs = flax_impl.preprocess.jitter(jnp.asarray(x.permute(0, 2, 3, 1)), jnp.asarray(factors))
    np.testing.assert_allclose(np.asarray(theirs).transpose(0, 3, 1, 2), ours.numpy(), rtol=0, atol=1e-6)


def test_resized_crop_is_torchvisions() -> None:
    """`resized_crop` without antialiasing, for boxes inside and at the edges."""
    from torchvision.transforms import v2

    rng = np.random.default_rng(0)
    boxes = random_boxes(32, 40, rng.random((6, 22)))
    boxes[0], boxes[1] = (0, 0, 32, 40), (31, 39, 1, 1)
    x = torch.from_numpy(rng.random((6, 3, 32, 40)))
    ours = torch_impl.preprocess.resized_crop(x, torch.from_numpy(boxes), 24)
    for image, box, found in zip(x, boxes.astype(int).tolist(), ours, strict=True):
        expected = v2.functional.resized_crop(image, *box, [24, 24], antialias=False)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_mixing_is_what_the_papers_say() -> None:
    """Each pixel comes from the example or its partner; the labels' shares are the pixels'."""
    subject = subjects()["plain"]
    for mix in (Mix(mixup=0.5), Mix(cutmix=1.0), Mix(mixup=0.5, cutmix=1.0)):
        recipe = replace(subject.recipe, mix=mix, precision="float32")
        for batch in batches(subject.data, recipe, 0, train=True):
            draws = {name: torch.as_tensor(rows) for name, rows in batch.draws.items()}
            n, partner = len(batch.labels), batch.facts.partner
            assert sorted(partner) == list(range(n))
            # Images that are all zeros or all ones tell how much of which they hold.
            own = torch.zeros(n, 1, 32, 32, dtype=torch.float64)
            own[0] = 1
            whom = torch.as_tensor(partner)
            mixed = torch_impl.preprocess.mix(own, draws, whom).mean((1, 2, 3)).numpy()
            share = batch.draws["share"]
            expected = np.where(np.arange(n) == 0, share, np.where(partner == 0, 1 - share, 0))
            np.testing.assert_allclose(mixed, expected, atol=1e-12)
            targets = torch_impl.preprocess.soft_targets(
                torch.from_numpy(batch.labels).long(), draws, whom, 10, torch.float64
            )
            np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-12)
            rows = np.arange(n)
            same = batch.labels == batch.labels[partner]
            np.testing.assert_allclose(targets[rows, batch.labels].numpy(), np.where(same, 1, share), rtol=1e-12)


def test_nothing_is_mixed_or_jittered_in_evaluation() -> None:
    subject = subjects()["plain"]
    batch = next(batches(subject.data, with_everything(subject.recipe), 0, train=False))
    assert batch.draws.keys() == {"crop"}


def test_branches_are_told_apart() -> None:
    """The check that sets a batch aside sees one flipped sign and one other winner of a pool."""
    subject = subjects()["plain"]
    recipe = replace(subject.recipe, precision="float32")
    side, _ = make_pair(recipe, subject.arch, 4)
    trace = side.step(next(first_batches(subject.data, recipe, 1)))
    assert same_branches(trace, trace, subject.arch)
    for name, value in (("conv3.conv", -1.0), ("conv1.conv", 1e3), ("fc7", -1.0)):
        tensor = trace["activation"][name].copy()
        place = np.unravel_index(np.argmax(tensor == np.sort(tensor, axis=None)[-7]), tensor.shape)
        tensor[place] = value
        changed = {**trace, "activation": {**trace["activation"], name: tensor}}
        assert not same_branches(trace, changed, subject.arch), name


def test_accumulation_needs_less_memory_in_flax() -> None:
    """XLA keeps the loop: the compiled step's scratch memory shrinks with the micro-batch. In it all kernels' gradients
    are products, of small results too, whose own gradient would take many times as long there."""
    subject = subjects()["plain"]
    arch = ARCHS["alexnet_cifar"]
    sizes, products = [], []
    for accumulate in (1, 8):
        recipe = replace(subject.recipe, precision="float32", batch_size=256, accumulate=accumulate)
        data = replace(subject.data, ids=np.resize(subject.data.ids, 256))
        _, state = make_states(recipe, replace(arch, dense=subject.arch.dense), 1)
        inputs = to_device(next(first_batches(data, recipe, 1)), jax.devices("cpu")[0])
        lowered = flax_impl.train.train_step.lower(state, inputs)
        products.append(lowered.as_text().count("stablehlo.dot_general"))
        memory = lowered.compile().memory_analysis()
        assert memory is not None
        sizes.append(memory.temp_size_in_bytes)
    assert sizes[1] < sizes[0] / 2
    assert products[1] > products[0]
