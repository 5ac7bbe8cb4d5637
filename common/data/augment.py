"""What is drawn for each training image: one entry an augmentation. Each framework applies it in its preprocess.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.arch.spec import Size
from common.arch.zoo import get_arch
from common.data.crops import random_boxes
from common.data.draws import Stream, betas, normals
from common.recipes.spec import Recipe

Uniforms = Callable[[Stream, int], np.ndarray]  # so many numbers in [0, 1) for each of n examples: float64 (n, width)
Draws = dict[str, np.ndarray]


@dataclass(frozen=True)
class Augmentation:
    """One random change of training images.

    Attributes:
        stream: of its random numbers, which no other augmentation shares.
        width: how many of them each example gets.
        asked: whether a recipe asks for it, for images of this stored size (None: photographs).
        draw: from float64 (n, width) in [0, 1), the recipe and the stored size to rows by name, as `Batch.draws` has
            them.
    """

    stream: Stream
    width: int
    asked: Callable[[Recipe, Size | None], bool]
    draw: Callable[[np.ndarray, Recipe, Size | None], Draws]


def _box(uniform: np.ndarray, recipe: Recipe, stored: Size | None) -> Draws:
    """`box`: float64 (n, 4), top, left, height and width of the part to be resized."""
    assert stored
    return {"box": random_boxes(*stored[:2], uniform)}


def _crop(uniform: np.ndarray, recipe: Recipe, stored: Size | None) -> Draws:
    """`crop`: int32 (n, 2), top and left edge in the zero-padded image."""
    return {"crop": np.floor(uniform * (_room(recipe, stored) + 2 * recipe.preprocess.pad + 1)).astype(np.int32)}


def _flip(uniform: np.ndarray, recipe: Recipe, stored: Size | None) -> Draws:
    """`flip`: bool (n,)."""
    return {"flip": uniform[:, 0] < 0.5}


def _jitter(uniform: np.ndarray, recipe: Recipe, stored: Size | None) -> Draws:
    """`jitter`: float64 (n, 3), factors of brightness, contrast and saturation."""
    spec = recipe.preprocess
    reach = np.array([spec.brightness, spec.contrast, spec.saturation])
    low, high = np.maximum(1 - reach, 0), 1 + reach
    return {"jitter": low + (high - low) * uniform}


def _pca(uniform: np.ndarray, recipe: Recipe, stored: Size | None) -> Draws:
    """`pca`: float64 (n, 3), standard normals."""
    return {"pca": normals(uniform)}


def _mix(uniform: np.ndarray, recipe: Recipe, stored: Size | None) -> Draws:
    """How every example is mixed with its partner.

    `mixup`: float64 (n,), weight of the own pixels; `cut`: int32 (n, 4), top, left, bottom and right of the partner's
    box; `share`: float64 (n,), weight of the own label.
    """
    spec = recipe.mix
    height, width, _ = recipe.preprocess.input_size(stored, get_arch(recipe.arch))
    which, weight, top, left = uniform.T
    paste = which < 0.5 if spec.mixup and spec.cutmix else np.full(len(which), bool(spec.cutmix))
    mixup = np.where(paste, 1.0, betas(spec.mixup, weight) if spec.mixup else 1.0)
    side = np.where(paste, np.sqrt(1 - betas(spec.cutmix, weight)) if spec.cutmix else 0.0, 0.0)
    middle = np.stack([np.floor(top * height), np.floor(left * width)], 1)
    half = np.floor(np.outer(side, (height, width)) / 2)
    cut = np.concatenate([middle - half, middle + half], 1).clip(0, [height, width] * 2).astype(np.int32)
    area = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1]) / (height * width)
    return {"mixup": mixup, "cut": cut, "share": np.where(paste, 1 - area, mixup)}


def _on_device(recipe: Recipe, stored: Size | None) -> bool:
    """Whether random boxes are resized on the device; those of photographs are, on the host."""
    return recipe.preprocess.random_resized_crop and stored is not None


AUGMENTATIONS: dict[str, Augmentation] = {
    "box": Augmentation(Stream.RESIZED_CROP, 22, _on_device, _box),
    "crop": Augmentation(
        Stream.CROP, 2, lambda recipe, stored: bool(recipe.preprocess.crop) and not _on_device(recipe, stored), _crop
    ),
    "flip": Augmentation(Stream.FLIP, 1, lambda recipe, stored: recipe.preprocess.flip, _flip),
    "jitter": Augmentation(
        Stream.JITTER,
        3,
        lambda recipe, stored: any(
            (recipe.preprocess.brightness, recipe.preprocess.contrast, recipe.preprocess.saturation)
        ),
        _jitter,
    ),
    "pca": Augmentation(Stream.PCA, 6, lambda recipe, stored: recipe.preprocess.pca_std > 0, _pca),
    "mix": Augmentation(Stream.MIX, 4, lambda recipe, stored: recipe.mixes, _mix),
}
PAIRED = ("mixup", "cut", "share")  # draws of pairs, not of single images


def draw(recipe: Recipe, stored: Size | None, uniforms: Uniforms) -> Draws:
    """Everything that a recipe draws for training images of a stored size (None: photographs)."""
    drawn: Draws = {}
    for entry in AUGMENTATIONS.values():
        if entry.asked(recipe, stored):
            drawn |= entry.draw(uniforms(entry.stream, entry.width), recipe, stored)
    return drawn


def central(recipe: Recipe, stored: Size | None, count: int) -> Draws:
    """The central crops of an evaluation, for `count` images of a stored size (None: photographs).

    Of the padded image, as torchvision's `CenterCrop` rounds its place: the fifth of ten crops.
    """
    if not recipe.preprocess.crop:
        return {}
    side = recipe.preprocess.photo_side(get_arch(recipe.arch))
    room = np.array(stored[:2] if stored else (side, side)) - recipe.preprocess.crop
    return {"crop": np.tile(np.rint(room / 2 + recipe.preprocess.pad).astype(np.int32), (count, 1))}


def _room(recipe: Recipe, stored: Size | None) -> np.ndarray:
    """Pixels beyond a training crop, along height and width."""
    spec = recipe.preprocess
    assert spec.crop
    side = spec.crop if spec.random_resized_crop else spec.photo_side(get_arch(recipe.arch))
    return np.array(stored[:2] if stored else (side, side)) - spec.crop
