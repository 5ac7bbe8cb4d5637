"""Both sides of every threshold of the likely causes, with differences made to lie just there."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from parity.causes import as_float64, likely_cause

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
