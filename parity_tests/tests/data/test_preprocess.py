"""Preprocessing with every draw, in both frameworks, against each other and against plain numpy."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from common.recipes.spec import IMAGENET_PCA, Preprocess
from common.recipes.zoo import RECIPES
from flax_impl.preprocess import preprocess as in_flax
from parity_tests.material import data_for, first_batches
from torch_impl.preprocess import preprocess as in_torch

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 10, 12, 3), np.uint8)
DRAWS: dict[str, np.ndarray] = {
    "crop": RNG.integers(0, 5, (5, 2)).astype(np.int32),
    "flip": np.array([True, False, True, True, False]),
    "pca": RNG.standard_normal((5, 3)),
}


def _both(images: np.ndarray, draws: dict[str, np.ndarray], spec: Preprocess, bound: float = 1e-14) -> np.ndarray:
    """Both results agree; returns one, NHWC."""
    moved = {name: torch.tensor(array) for name, array in draws.items()}
    ours = in_torch(torch.tensor(images), moved, spec, torch.float64).permute(0, 2, 3, 1).numpy()
    theirs = np.asarray(
        in_flax(jnp.asarray(images), {name: jnp.asarray(a) for name, a in draws.items()}, spec, jnp.float64)
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= bound * max(np.abs(ours).max(), 1)
    return ours


def _some(*names: str) -> dict[str, np.ndarray]:
    return {name: DRAWS[name] for name in names}


@pytest.mark.usefixtures("x64")
class TestAgainstNumpy:
    """Each step alone, computed a second time by other means."""

    def test_scale_and_normalise(self) -> None:
        spec = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        expected = (IMAGES / 255 - np.array(spec.mean)) / np.array(spec.std)
        np.testing.assert_allclose(_both(IMAGES, {}, spec), expected, rtol=1e-13)

    def test_crop_of_the_padded_image(self) -> None:
        spec = Preprocess(pad=2, crop=9)
        padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
        expected = [
            image[top : top + 9, left : left + 9] for image, (top, left) in zip(padded, DRAWS["crop"], strict=True)
        ]
        np.testing.assert_allclose(_both(IMAGES, _some("crop"), spec), np.stack(expected) / 255, rtol=1e-15)

    def test_flip(self) -> None:
        expected = [image[:, ::-1] if flip else image for image, flip in zip(IMAGES, DRAWS["flip"], strict=True)]
        np.testing.assert_allclose(_both(IMAGES, _some("flip"), Preprocess()), np.stack(expected) / 255, rtol=1e-15)

    def test_colour_noise(self) -> None:
        expected = IMAGES / 255 + (DRAWS["pca"] * 0.1 @ np.array(IMAGENET_PCA))[:, None, None, :]
        np.testing.assert_allclose(_both(IMAGES, _some("pca"), Preprocess(pca_std=0.1)), expected, rtol=1e-13)

    @pytest.mark.parametrize("side", [5, 11, 24])
    def test_bilinear_resize(self, side: int) -> None:
        """Half-pixel centres, edges repeated, no antialiasing: written out."""
        x = IMAGES / 255
        for axis in (1, 2):
            size = x.shape[axis]
            centre = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
            low = np.floor(centre).astype(int)
            share = (centre - low).reshape([-1 if i == axis else 1 for i in range(4)])
            x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, size - 1), axis) * share
        np.testing.assert_allclose(_both(IMAGES, {}, Preprocess(resize=side)), x, rtol=1e-12, atol=1e-14)

    def test_all_in_order(self) -> None:
        spec = Preprocess(pad=2, crop=9, flip=True, resize=13, pca_std=0.1, mean=(0.5,), std=(0.2,))
        whole = _both(IMAGES, DRAWS, spec)
        cropped = _both(IMAGES, _some("crop"), replace(spec, resize=None, pca_std=0.0, mean=(0.0,), std=(1.0,)))
        pixels = np.rint(cropped * 255).astype(np.uint8)
        later = _both(pixels, _some("flip", "pca"), replace(spec, crop=None, pad=0))
        np.testing.assert_allclose(whole, later, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_on_real_images(name: str) -> None:
    recipe = replace(RECIPES[name], batch_size=4)
    for batch in first_batches(data_for(recipe), recipe, 2):
        height, width, channels = recipe.model_arch(data_for(recipe).image, 10).image
        assert _both(batch.images, batch.draws, recipe.preprocess, 1e-13).shape == (4, height, width, channels)


@pytest.mark.parametrize("name", RECIPES)
def test_float32_is_as_close_as_its_rounding(name: str) -> None:
    """Six roundings of a pixel in [0, 1] on either side: scaling, two interpolations, noise; over std."""
    recipe = replace(RECIPES[name], batch_size=4)
    batch = next(iter(first_batches(data_for(recipe), recipe, 1)))
    moved = {key: torch.tensor(array) for key, array in batch.draws.items()}
    ours = in_torch(torch.tensor(batch.images), moved, recipe.preprocess, torch.float32).permute(0, 2, 3, 1).numpy()
    draws = {key: jnp.asarray(array) for key, array in batch.draws.items()}
    theirs = np.asarray(in_flax(jnp.asarray(batch.images), draws, recipe.preprocess, jnp.float32))
    bound = 2 * 6 * 2.0**-24 / min(recipe.preprocess.std) + np.spacing(np.abs(ours).max())
    assert np.abs(ours - theirs).max() <= bound
