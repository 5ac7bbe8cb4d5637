"""Both sides of every threshold of the likely causes, with differences made to lie just there."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from parity.causes import Context, as_float64, likely_cause

RNG = np.random.default_rng(1)
SMALL = 2.0**-11  # noise of a size that has a name


def _cause(phase: str, left: Any, right: Any, tensor: str = "x", **others: Any) -> str:
    """Of a difference in `tensor`; what else the left trace holds is given by phase."""
    ours, theirs = {**others, phase: {tensor: np.asarray(left)}}, {phase: {tensor: np.asarray(right)}}
    return likely_cause(phase, tensor, ours, theirs)


def _perpendicular(size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Two random tensors of length 1, at a right angle to each other and to one of equal numbers."""
    columns = np.column_stack([np.ones(size), RNG.standard_normal((size, 2))])
    basis = np.linalg.qr(columns)[0]
    return basis[:, 1], basis[:, 2]


def test_complex_numbers_are_their_two_parts() -> None:
    values = np.array([1 + 2j, 3 - 4j], np.complex64)
    assert as_float64(values).dtype == np.float64
    assert sorted(as_float64(values).ravel()) == [-4, 1, 2, 3]
    assert "4 times" in _cause("gradient", values, values * 4)
    assert "weight decay" in _cause("optimizer", [1 + 1j, 2], [1 + 1.1j, 2.3], parameter={"x": np.array([1j, 3])})


@pytest.mark.parametrize(("zeros", "word"), [(192, "other dropout masks"), (193, "another dropout rate")])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_dropout_rate_differs_beyond_six_standard_errors(zeros: int, sign: int, word: str) -> None:
    """Of 64 * 64 values, half of them zero, a share has the standard error 0.5 / 64: six of them are 192 values."""
    left, right = (np.arange(4096) >= count for count in (2048, 2048 + sign * zeros))
    assert word in _cause("activation", left, right, "drop6")


def test_each_sides_share_of_zeros_is_its_own() -> None:
    left, right = (np.arange(1000) >= count for count in (250, 600))
    assert _cause("activation", left, right, "drop6") == "25.0% against 60.0% are zero: another dropout rate."


def _images() -> tuple[np.ndarray, np.ndarray]:
    """Three images whose largest value is 1, and the same with the first one mirrored; the second has a zero."""
    images = RNG.uniform(0.1, 0.9, (3, 2, 4, 5))
    images[2, 0, 0, 0], images[1, 0, 0, 0] = -1, 0
    flipped = images.copy()
    flipped[0] = images[0, :, :, ::-1]
    return images, flipped


@pytest.mark.parametrize(("image", "column"), [(0, 4), (1, 0)])
@pytest.mark.parametrize(("rest", "named"), [(0.95e-6, True), (1.05e-6, False)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_images_are_mirrored_or_the_same_but_for_rounding(
    image: int, column: int, rest: float, named: bool, scale: float
) -> None:
    """In a mirrored image, and in another."""
    images, flipped = _images()
    flipped[image, 0, 0, column] += rest
    assert ("1 of 3 images are mirrored" in _cause("input", images * scale, flipped * scale)) == named


def test_the_limit_of_rounding_is_rounding() -> None:
    images, flipped = _images()
    flipped[1, 0, 0, 0] = 1e-6
    assert "1 of 3 images are mirrored" in _cause("input", images, flipped)


def test_without_a_mirrored_image_flips_are_not_blamed() -> None:
    images, _ = _images()
    noise = 1e-8 * RNG.choice([-1, 1], images.shape)
    assert "float32 arithmetic" in _cause("input", images, images + noise)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_another_order_holds_the_same_values_but_for_rounding(scale: float) -> None:
    word = "same values in another order"
    left = scale * np.array([1.0, 2.0, 4.0, 8.0, -16.0, 0.5])
    for rest, named in ((0.0, True), (0.95e-6, True), (1.05e-6, False), (5e-6, False)):
        right = left[[3, 0, 5, 1, 2, 4]] * np.array([1, 1, 1 + rest, 1, 1, 1])
        assert (word in _cause("gradient", left, right)) == named
    turned = scale * np.array([3.0, -1.0, 2.5])
    assert word in _cause("gradient", turned, turned[::-1]), "of three"
    assert word not in _cause("gradient", turned, scale * np.array([2.0, 3.0, -1.5])), "other values, however small"


@pytest.mark.parametrize(("gap", "named"), [(0.95e-3, False), (1.05e-3, True), (0.5, True)])
def test_another_order_of_values_that_are_nearly_equal_is_none(gap: float, named: bool) -> None:
    near = np.array([1.0, 1.0 + gap] * 8)
    assert ("another order" in _cause("activation", near, near[::-1])) == named


SINES = pytest.mark.parametrize(("sine", "named"), [(0.0, True), (0.0099, True), (0.0101, False), (0.5, False)])


def _nearly(values: np.ndarray, other: np.ndarray, sine: float) -> np.ndarray:
    """What is a multiple of `values`, but for this share of its length."""
    return np.sqrt(1 - sine**2) * values + sine * other


@SINES
@pytest.mark.parametrize("factor", [1e-3, -1e3])
@pytest.mark.parametrize(
    ("phase", "tensor", "others", "word"),
    [
        ("optimizer", "exp_avg/w", "parameter w", "weight decay"),
        ("parameter", "w", "optimizer momentum_buffer/w", "multiple of the update"),
        ("parameter", "w", "optimizer exp_avg/w", "multiple of the update"),
        ("parameter", "w", "gradient w", "multiple of the gradient"),
    ],
)
def test_a_multiple_is_one_but_for_a_hundredth(
    sine: float, named: bool, factor: float, phase: str, tensor: str, others: str, word: str
) -> None:
    values, other = _perpendicular()
    left = RNG.standard_normal(values.shape)
    of, name = others.split()
    said = _cause(phase, left, left + factor * _nearly(values, other, sine), tensor, **{of: {name: values}})
    assert (word in said) == named


@SINES
def test_a_factor_is_one_but_for_a_hundredth(sine: float, named: bool) -> None:
    values, other = _perpendicular()
    said = _cause("activation", values, values + 0.25 * _nearly(values, other, sine))
    assert ("right has 1.2" in said) == named


@SINES
def test_a_shift_is_one_but_for_a_hundredth(sine: float, named: bool) -> None:
    values, other = _perpendicular()
    ones = np.ones_like(values)
    said = _cause("activation", values, values - 0.5 * _nearly(ones, other * np.sqrt(ones.size), sine))
    assert bool(re.match(r"The difference is everywhere 0\.5: a bias", said)) == named


def test_two_numbers_may_be_shifted_and_one_only_scaled() -> None:
    assert "everywhere -0.5" in _cause("activation", [1.0, -3.0], [1.5, -2.5])
    assert "right has 1.5 times" in _cause("activation", [1.0], [1.5])


def test_nothing_is_a_multiple_of_zero_or_of_another_shape() -> None:
    """New biases are zero; so is the memory of a frozen layer."""
    left, right = RNG.standard_normal((2, 6))
    plain = _cause("parameter", left, right)
    for values in (np.zeros(6), np.ones(1), np.ones((6, 1)), np.ones(5)):
        slots: Any = {"momentum_buffer/x": values, "exp_avg/x": values}
        assert _cause("parameter", left, right, optimizer=slots) == plain
        assert _cause("parameter", left, right, gradient={"x": values}) == plain
        slot = _cause("optimizer", left, right, "exp_avg/x", parameter={"x": values})
        assert slot == _cause("optimizer", left, right, "exp_avg/x")
    for zero, other in ((left * 0, right), (left, right * 0)):
        assert "everywhere" not in _cause("activation", zero, other)
    assert _cause("activation", left * 0, right).startswith("This layer's forward pass")


BITS = {
    "float32 arithmetic in a float64 comparison": (19, 29),
    "TF32 or float16": (9, 13),
    "bfloat16": (6, 8),
}


def _of_size(size: float, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Values of up to 1, and the same with noise of this relative size, of both signs and where the values are zero."""
    signs = (-1.0) ** np.arange(count)
    return np.concatenate([signs, 0 * signs]), np.concatenate([signs, size * signs])


@pytest.mark.parametrize("bits", range(4, 34))
def test_each_dtype_has_its_sizes(bits: int) -> None:
    """At the lower end and just below the upper one of each power of two."""
    expected = [name for name, (least, most) in BITS.items() if least <= bits <= most]
    for size in (2.0 ** -(bits + 1), np.nextafter(2.0**-bits, 0)):
        said = _cause("gradient", *_of_size(size))
        assert [name for name in BITS if name in said] == expected
        assert said.startswith("A relative difference of " if expected else "This layer's backward pass")


@pytest.mark.parametrize(("plus", "of", "named"), [(32, 50, True), (13, 20, True), (33, 50, False), (17, 50, False)])
def test_rounding_has_both_signs(plus: int, of: int, named: bool) -> None:
    """One sign may have 0.3 of the numbers more than the other, not 0.32; 13 - 7 of 20 are just 0.3."""
    noise = SMALL * np.where(np.arange(of) < plus, 1.0, -1.0)
    values = np.zeros(of)
    values[:2] = 1, -1  # at a right angle to the noise
    assert ("TF32" in _cause("activation", values, values - noise)) == named


@pytest.mark.parametrize(("cosine", "named"), [(0.0, True), (0.29, True), (-0.29, True), (0.31, False), (-0.31, False)])
def test_rounding_does_not_follow_the_values(cosine: float, named: bool) -> None:
    values, other = _perpendicular()
    noise = cosine * values + np.sqrt(1 - cosine**2) * other
    size = SMALL * np.abs(values).max() / np.abs(noise).max()
    assert ("TF32" in _cause("activation", values, values - size * noise)) == named


@pytest.mark.parametrize(("count", "named"), [(8, True), (9, False)])
def test_of_eight_numbers_the_signs_say_nothing(count: int, named: bool) -> None:
    values = np.append(np.linspace(-1, 1, count - 1), 0)
    noise = SMALL * np.arange(1, count + 1) / count
    assert ("TF32" in _cause("gradient", values, values - noise)) == named


NAMES = ("ours", "theirs")
WEIGHTS = {"w": np.array([[3.0, -1.0], [0.5, 2.0]]), "b": np.array([1.0, -2.0, 0.5])}
GRADIENTS = {"w": np.array([[3.0, 0.0], [0.0, 0.0]]), "b": np.array([0.0, 4.0, 0.0])}  # of the norm 5


def _of_sides(turned: bool, tensor: str, plain: Any, more: Any, before: Any = None, module: Any = None) -> str:
    """The cause where one side makes more of a step than the other: theirs, or turned round ours, called MORE."""
    sides = (more, plain) if turned else (plain, more)
    phase = next(reversed(plain))
    context = Context((before or {},) * 2, {"norm": ("batch_norm", module, module)} if module else {})
    said = likely_cause(phase, tensor, *sides, NAMES, context)
    return said.replace(NAMES[not turned], "MORE").replace(NAMES[turned], "PLAIN")


def _plus(share: float, sign: float = 1.0) -> dict[str, np.ndarray]:
    return {name: sign * GRADIENTS[name] + share * values for name, values in WEIGHTS.items()}


turned = pytest.mark.parametrize("turned", [False, True])


@turned
@pytest.mark.parametrize(("slot", "share"), [("momentum_buffer", 0.5), ("exp_avg", 0.5), ("exp_avg_sq", 0.25)])
def test_the_side_that_clips_is_named_with_its_norm(turned: bool, slot: str, share: float) -> None:
    """A mean of squares falls by the square of what the gradients fall by."""
    plain, more = (
        {"gradient": GRADIENTS, "optimizer": {f"{slot}/{name}": factor * g for name, g in GRADIENTS.items()}}
        for factor in (1.0, share)
    )
    said = _of_sides(turned, f"{slot}/w", plain, more)
    assert said == "MORE clips gradients, of norm 5, to 2.5: all that it makes of them is smaller."
    for side in (plain, more):
        del side["optimizer"][f"{slot}/b"]
    assert "clips" not in _of_sides(turned, f"{slot}/w", plain, more), "of one tensor nothing is known of all"


@turned
def test_the_side_whose_loss_holds_decay_is_named(turned: bool) -> None:
    """rate / 2 times the squares: their gradient is rate times the parameter."""
    squares = sum(float((values**2).sum()) for values in WEIGHTS.values())
    plain = {"gradient": GRADIENTS, "loss": {"loss": np.array(1.25)}}
    more = {"gradient": _plus(0.01), "loss": {"loss": np.array(1.25 + 0.01 / 2 * squares)}}
    said = _of_sides(turned, "loss", plain, more, {"parameter": WEIGHTS})
    assert said == "MORE's loss holds weight decay: 0.01 / 2 times the squares of all parameters."


@turned
@pytest.mark.parametrize(
    ("phase", "prefix", "share", "words"),
    [
        ("gradient", "", 0.01, "MORE's gradient holds 0.01 times the parameter: weight decay inside its loss."),
        ("optimizer", "exp_avg/", 0.01, "MORE's memory holds 0.01 times the parameter more"),
        ("parameter", "", -0.01, "MORE takes 0.01 times the parameter more off"),
    ],
)
def test_the_side_that_decays_is_named(turned: bool, phase: str, prefix: str, share: float, words: str) -> None:
    plain, more = ({phase: {prefix + "w": _plus(by)["w"]}} for by in (0.0, share))
    assert _of_sides(turned, prefix + "w", plain, more, {"parameter": WEIGHTS}).startswith(words)


@turned
@pytest.mark.parametrize(("count", "told"), [(8.0, True), (2.0, True), (10.3, False), (1.4, False)])
def test_the_side_whose_variance_is_unbiased_is_named(turned: bool, count: float, told: bool) -> None:
    """Of a whole number of values: what was added to the old variance is n / (n - 1) times the other's."""
    name, old, new = "norm.running_var", np.array([1.0, 2.0, 3.0]), np.array([0.5, 4.0, 2.5])
    plain, more = ({"statistic": {name: 0.9 * old + 0.1 * by * new}} for by in (1.0, count / (count - 1)))
    said = _of_sides(turned, name, plain, more, {"statistic": {name: old}}, {"momentum": 0.9})
    words = f"MORE's running variance is unbiased, divided by n - 1 for n = {count:g}; the other's by n."
    assert said == words if told else "divided by n - 1" not in said


@turned
@pytest.mark.parametrize(
    ("smoothing", "reduction", "words"),
    [
        (0.1, "mean", "averaged with label smoothing 0.1"),
        (0.15, "sum", "summed with label smoothing 0.15"),
        (0.0, "sum", "summed"),
        (0.1004, "mean", ""),  # which nobody would write
        (0.95, "mean", ""),
    ],
)
def test_a_cross_entropy_is_told_by_pytorchs_own(turned: bool, smoothing: float, reduction: str, words: str) -> None:
    logits, labels = torch.from_numpy(RNG.standard_normal((4, 6))), torch.tensor([0, 5, 2, 2])
    held = {"batch": {"target": labels.numpy()}, "activation": {"output": logits.numpy()}}
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction=reduction)
    plain, more = (held | {"loss": {"loss": each.numpy()}} for each in (F.cross_entropy(logits, labels), loss))
    told = ["MORE's " + words, "PLAIN's averaged"] if turned else ["PLAIN's averaged", "MORE's " + words]
    said = _of_sides(turned, "loss", plain, more)
    assert said == f"The loss is the cross entropy, {told[0]}, {told[1]}." if words else "cross entropy" not in said


# What people subtract and divide by, of images from 0 to 1; the last channel tells CIFAR-10's from other figures.
NORMALISED = {
    "values from 0 to 255": ((0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
    "values from -1 to 1": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "ImageNet's mean and standard deviation": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's mean and standard deviation": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "ImageNet's mean and standard deviation, of values from 0 to 255": (
        (0.485, 0.456, 0.406),
        (0.229 / 255, 0.224 / 255, 0.225 / 255),
    ),
}


@turned
@pytest.mark.parametrize("name", NORMALISED)
def test_a_normalisation_is_told_by_its_published_figures(turned: bool, name: str) -> None:
    mean, deviation = (np.reshape(part, (1, 3, 1, 1)) for part in NORMALISED[name])
    images = RNG.uniform(0, 1, (2, 3, 4, 5))
    plain, more = ({"input": {"input": each}} for each in (images, (images - mean) / deviation))
    told = [f"MORE's images have {name}", "PLAIN's images have values from 0 to 1"]
    one, other = told if turned else told[::-1]
    said = _of_sides(turned, "input", plain, more)
    assert said == f"The normalisation: {one}, {other.replace('images have ', '')}."


@pytest.mark.parametrize(
    ("dtype", "gap", "named"),
    [(np.float64, 0.9e-9, True), (np.float64, 1.1e-9, False), (np.float32, 0.9e-4, True), (np.float32, 1.1e-4, False)],
)
def test_only_what_agrees_itself_explains_a_difference(dtype: Any, gap: float, named: bool) -> None:
    """Within rounding of its largest value, which is 1 here."""
    values = RNG.uniform(-0.9, 0.9, (2, 3, 4, 4)).astype(dtype)
    values[0, 0, 0, 0] = 1
    other = values.copy()
    other[1, 2, 3, 3] += gap
    left, right = (
        {"activation": {"one": before, "two (input)": after}}
        for before, after in ((values, np.maximum(values, 0)), (other, np.tanh(values)))
    )
    said = likely_cause("activation", "two (input)", left, right, NAMES)
    assert (said == "Of one ours computes ReLU, theirs computes tanh.") == named
