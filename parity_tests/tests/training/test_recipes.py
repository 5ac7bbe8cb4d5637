"""Recipes, schedules, draws and the pipeline: what is fed to both frameworks before either is involved."""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils.class_weight import compute_class_weight
from torchvision import transforms
from torchvision.transforms import functional
from torchvision.transforms import transforms as transforms_module

from common.arch.initializers import INITS
from common.arch.zoo import ABLATIONS, ARCHS, get_arch
from common.config import from_dict, to_dict
from common.data import digits, draws
from common.data.crops import central_square, random_boxes, random_resized_crop
from common.data.dataset import Dataset, whole
from common.data.draws import Stream, normals, order, uniforms, uniforms_at
from common.data.load import load_dataset, load_splits
from common.data.photos import opened
from common.data.pipeline import batches, steps_per_epoch
from common.data.sources import Arrays, Files, Photographs, Relabelled
from common.data.spec import DATASETS
from common.errors import UserError
from common.recipes.spec import IMAGENET_PCA, FineTune, LossScale, Mix, Optimizer, Preprocess, Recipe, Schedule
from common.recipes.zoo import ABOUT, RECIPES, get_recipe
from common.training.loop import fit
from common.training.options import TrainOptions
from parity_tests.published import leaves
from parity_tests.results import ROOT

every_recipe = pytest.mark.parametrize("name", RECIPES)


def numbered(count: int, height: int = 8, width: int = 8) -> Dataset:
    """Images whose first two pixels spell their index."""
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    labels = np.arange(count, dtype=np.int32) % 10
    return whole("numbered", "train", (height, width, 1), "0123456789", Arrays(images, labels))


def indices(images: np.ndarray) -> list[int]:
    return (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]).tolist()


AUGMENTED = replace(
    get_recipe("digits"),
    batch_size=32,
    preprocess=Preprocess(pad=2, crop=7, flip=True, pca_std=0.1),
)


@every_recipe
def test_recipes_refer_to_what_exists(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.dataset in DATASETS or recipe.dataset == "folder:photos"
    assert recipe.arch in ARCHS | ABLATIONS
    assert recipe.init in INITS
    recipe.check()
    spec = DATASETS.get(recipe.dataset, DATASETS["imagenet2012"])
    arch = recipe.model_arch(spec.image, spec.classes)
    assert arch.classes == spec.classes
    assert arch.image == (*get_arch(recipe.arch).image[:2], spec.image[2] if spec.image else 3)


@every_recipe
def test_recipes_say_where_they_come_from_and_what_to_expect(name: str) -> None:
    about = " ".join(ABOUT[name].split())
    assert "Source: " in about
    assert re.search(r"(Published|[Ee]xpect|reached|Aims)\D{0,80}\d", about)


def test_principal_components_are_orthogonal() -> None:
    """As eigenvectors are, times eigenvalues that fall."""
    rows = np.array(IMAGENET_PCA)
    lengths = np.linalg.norm(rows, axis=1)
    assert lengths == pytest.approx([0.2175, 0.0188, 0.0045], rel=1e-3)
    directions = rows / lengths[:, None]
    assert directions @ directions.T == pytest.approx(np.eye(3), abs=1e-3)


@pytest.mark.parametrize(
    ("step", "epochs_done", "factor"),
    [(0, 0, 1), (29, 2, 1), (30, 3, 0.1), (31, 3, 0.1), (49, 4, 0.1), (50, 5, 0.01), (1000, 100, 0.01)],
)
def test_the_rate_falls_at_milestones(step: int, epochs_done: int, factor: float) -> None:
    """The first step after epoch 3 of 10 steps is step 30, counted from 0."""
    schedule = Schedule(milestones=(3, 5), gamma=0.1)
    assert step // 10 == epochs_done
    assert schedule.factor(step, 10, 200) == pytest.approx(factor)
    recipe = replace(get_recipe("digits"), schedule=schedule, optimizer=Optimizer(lr=0.5))
    assert recipe.learning_rate(step, 10) == pytest.approx(0.5 * factor)


def test_a_warm_up_ends_before_its_first_full_step() -> None:
    """A milestone at its end holds from that step on; a cosine of one step has fallen after it."""
    assert [Schedule(milestones=(1,), warmup_epochs=1).factor(step, 4, 3) for step in (3, 4)] == [4 / 5, 0.1]
    cosine = Schedule("cosine", final=0.25, warmup_epochs=0.75)
    assert [cosine.factor(step, 4, 1) for step in (2, 3, 4)] == [3 / 4, 1, 0.25]


def test_a_rate_falls_between_no_two_steps() -> None:
    schedule = Schedule(milestones=(2, 3), gamma=0.5)
    assert [schedule.factor(step, 3, 5) for step in range(4, 11)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


@every_recipe
def test_json_round_trip(name: str) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(RECIPES[name]))), Recipe, "a file") == RECIPES[name]


def test_json_is_read_strictly() -> None:
    fields = to_dict(get_recipe("digits"))
    fields["optimizer"]["learning_rate"] = 1
    with pytest.raises(UserError, match=r"a file does not describe a Recipe: .*learning_rate"):
        from_dict(fields, Recipe, "a file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"batch_size": -3}, "batch_size is -3; it must be at least 1"),
        ({"seed": 2**32}, r"seed is 4294967296; it must be from 0 to 2\*\*32 - 1"),
        ({"val_fraction": 1.0}, r"val_fraction is 1.0; it must be in \[0, 1\)"),
        ({"optimizer": Optimizer(lr=0)}, r"optimizer\.lr is 0; it must be positive"),
        ({"optimizer": Optimizer(lr=math.inf)}, r"optimizer\.lr is inf; it must be positive and finite"),
        ({"optimizer": Optimizer(momentum=1)}, r"optimizer\.momentum is 1; it must be in \[0, 1\)"),
        ({"optimizer": Optimizer(weight_decay=-1)}, r"optimizer\.weight_decay is -1; it must be at least 0"),
        ({"optimizer": Optimizer(nesterov=True)}, r"optimizer\.nesterov needs optimizer\.momentum above 0"),
        ({"preprocess": Preprocess(pad=-1)}, r"preprocess\.pad is -1; it must be at least 0"),
        ({"preprocess": Preprocess(pad=4)}, r"preprocess\.pad gives a crop room, .* set preprocess\.crop"),
        ({"preprocess": Preprocess(std=(1, 0))}, r"preprocess\.std is \(1, 0\); it must be positive"),
        ({"preprocess": Preprocess(random_resized_crop=True)}, r"random_resized_crop needs preprocess\.crop"),
        ({"preprocess": Preprocess(brightness=-0.1)}, r"preprocess\.brightness is -0\.1; it must be at least 0"),
        ({"accumulate": 3}, r"accumulate is 3; it must divide batch_size, which is 64"),
        ({"accumulate": 0}, r"accumulate is 0; it must be at least 1"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0; it must be in \[0, 1\)"),
        ({"class_weights": (1.0, 0.0)}, r"class_weights is \(1\.0, 0\.0\); it must be positive and finite"),
        ({"class_weights": (math.nan,)}, r"class_weights is \(nan,\); it must be positive and finite"),
        ({"mix": Mix(mixup=-1)}, r"mix\.mixup is -1; it must be at least 0"),
        ({"mix": Mix(cutmix=1), "batch_size": 1}, r"mix pairs of examples: batch_size must be at least 2"),
        ({"schedule": Schedule("cosine", milestones=(3,))}, r"schedule\.milestones are for the step schedule"),
        ({"schedule": Schedule(warmup_epochs=8)}, r"schedule\.warmup_epochs is 8; it must be below epochs"),
        ({"schedule": Schedule("cosine", final=2)}, r"schedule\.final is 2; it must be in \[0, 1\]"),
        ({"loss_scale": LossScale(backoff=1)}, r"loss_scale\.backoff is 1; it must be between 0 and 1"),
        ({"loss_scale": LossScale(interval=0)}, r"loss_scale\.interval is 0; it must be at least 1"),
        ({"finetune": FineTune(freeze_epochs=1)}, r"finetune\.head is .all., which leaves no backbone"),
        ({"finetune": FineTune("last", freeze_epochs=-1)}, r"finetune\.freeze_epochs is -1; it must be at least 0"),
        ({"finetune": FineTune("last", backbone_lr=-1)}, r"finetune\.backbone_lr is -1; it must be at least 0"),
    ],
)
def test_impossible_values_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(get_recipe("digits"), **change).check()


SMALLEST = 5e-324
BELOW_1, ABOVE_1 = math.nextafter(1, 0), math.nextafter(1, 2)
# Of each field the least and the largest value that a run can have, and the nearest ones that none can.
LIMITS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "epochs": ((1,), (0,)),
    "batch_size": ((1,), (0,)),
    "accumulate": ((1, 64), (0, -1, 63, 128)),
    "seed": ((0, 2**32 - 1), (-1, 2**32)),
    "val_fraction": ((0.0, BELOW_1), (-SMALLEST, 1.0)),
    "patience": ((0,), (-1,)),
    "label_smoothing": ((0.0, BELOW_1), (-SMALLEST, 1.0)),
    "class_weights": (((SMALLEST, sys.float_info.max), "equal", "balanced"), ((1.0, 0.0), (1.0, -1.0), (math.inf,))),
    "optimizer.lr": ((SMALLEST, sys.float_info.max), (0.0, -SMALLEST, math.inf)),
    "optimizer.momentum": ((0.0, BELOW_1), (-SMALLEST, 1.0)),
    "optimizer.weight_decay": ((0.0,), (-SMALLEST,)),
    "optimizer.clip_norm": ((0.0, SMALLEST), (-SMALLEST,)),
    "optimizer.beta1": ((0.0, BELOW_1), (-SMALLEST, 1.0)),
    "optimizer.beta2": ((0.0, BELOW_1), (-SMALLEST, 1.0)),
    "optimizer.eps": ((SMALLEST, sys.float_info.max), (0.0, -SMALLEST, math.inf)),
    "schedule.milestones": (((), (1,), (9, 1)), ((0,), (-1,), (3, 0))),
    "schedule.gamma": ((0.0, ABOVE_1), (-SMALLEST, math.inf)),
    "schedule.warmup_epochs": ((0.0, math.nextafter(8, 0)), (-SMALLEST, 8.0)),
    "schedule.final": ((0.0, 1.0), (-SMALLEST, ABOVE_1)),
    "mix.mixup": ((0.0, SMALLEST), (-SMALLEST,)),
    "mix.cutmix": ((0.0, SMALLEST), (-SMALLEST,)),
    "finetune.freeze_epochs": ((0,), (-1,)),
    "finetune.backbone_lr": ((0.0, sys.float_info.max), (-SMALLEST, math.inf)),
    "loss_scale.initial": ((SMALLEST, sys.float_info.max), (0.0, -SMALLEST, math.inf)),
    "loss_scale.growth": ((1.0,), (BELOW_1,)),
    "loss_scale.backoff": ((SMALLEST, BELOW_1), (0.0, 1.0)),
    "loss_scale.interval": ((1,), (0,)),
    "preprocess.pad": ((0,), (-1,)),
    "preprocess.contrast": ((0.0,), (-SMALLEST,)),
    "preprocess.std": (((SMALLEST, 1.0),), ((0.0,), (1.0, -SMALLEST))),
}


@pytest.mark.parametrize("field", LIMITS)
def test_the_limits_of_each_field(field: str) -> None:
    """Those of a recipe of 8 epochs, 64 examples a step and a backbone."""
    recipe = replace(get_recipe("digits"), schedule=Schedule(), finetune=FineTune("last"))
    assert (recipe.epochs, recipe.batch_size) == (8, 64)

    def check(value: Any) -> None:
        section, _, name = field.rpartition(".")
        changed = {section: replace(getattr(recipe, section), **{name: value})} if section else {name: value}
        replace(recipe, **changed).check()

    possible, impossible = LIMITS[field]
    for value in possible:
        check(value)
    for value in (*impossible, *([(math.nan,)] if isinstance(impossible[0], tuple) else [math.nan])):
        with pytest.raises(UserError, match=re.escape(f"{field} is {value}")):
            check(value)


def test_every_number_has_its_limits() -> None:
    """But for those of preprocessing, which share one rule, and its mean, which may be any."""
    numbers = {path for path, value in leaves(get_recipe("digits")).items() if type(value) in (int, float)}
    assert {path for path in numbers if not path.startswith("preprocess.")} <= LIMITS.keys()


@pytest.mark.parametrize("mix", [Mix(mixup=0.1), Mix(cutmix=0.1)])
def test_two_examples_can_be_mixed(mix: Mix) -> None:
    replace(get_recipe("digits"), mix=mix, batch_size=2).check()
    with pytest.raises(UserError, match="batch_size must be at least 2"):
        replace(get_recipe("digits"), mix=mix, batch_size=1).check()


def test_a_crop_may_take_all_that_is_padded() -> None:
    arch = get_arch("alexnet")
    for size in ((8, 10, 1), (10, 8, 1)):
        assert Preprocess(crop=14, pad=3).input_size(size, arch) == (14, 14, 1)
        with pytest.raises(UserError, match="crop is 15, larger than the padded"):
            Preprocess(crop=15, pad=3).input_size(size, arch)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_pixels_are_normalised_by_one_value_or_by_one_for_each_channel(field: str) -> None:
    arch = get_arch("alexnet")
    for count, channels in ((1, 1), (1, 3), (3, 3)):
        spec = from_dict({field: [0.5] * count}, Preprocess, "a test")
        assert spec.input_size((8, 8, channels), arch) == (8, 8, channels)
    for count, channels in ((0, 1), (2, 1), (0, 3), (2, 3), (4, 3)):
        spec = from_dict({field: [0.5] * count}, Preprocess, "a test")
        with pytest.raises(UserError, match=f"{field} has {count} values for images of {channels} channel"):
            spec.input_size((8, 8, channels), arch)


@pytest.mark.parametrize(
    ("spec", "side"),
    [
        (Preprocess(host_resize=40, crop=30, resize=20), 40),
        (Preprocess(crop=30, resize=20), 30),
        (Preprocess(crop=30), 30),
        (Preprocess(resize=20), 20),
        (Preprocess(), 192),
    ],
)
def test_the_side_of_a_photograph_on_the_host(spec: Preprocess, side: int) -> None:
    """What comes first in its way, else the height that the network takes."""
    assert spec.photo_side(replace(get_arch("alexnet"), image=(192, 256, 3))) == side


def test_what_a_recipe_says_of_itself() -> None:
    recipe = replace(get_recipe("digits"), batch_size=12)
    dtypes = {"float32": "float32", "tf32": "float32", "bfloat16": "float32", "float16": "float32"}
    for precision, dtype in (dtypes | {"float64": "float64"}).items():
        assert from_dict(to_dict(recipe) | {"precision": precision}, Recipe, "a test").param_dtype == dtype
    assert [len(range(replace(recipe, accumulate=parts).micro_batch)) for parts in (1, 3, 12)] == [12, 4, 1]
    assert [replace(recipe, mix=mix).mixes for mix in (Mix(), Mix(0.1), Mix(0, 0.1), Mix(0.1, 0.1))] == [
        *(False, True, True, True)
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Preprocess(crop=9), r"preprocess\.crop is 9, larger than the padded 8x8 images"),
        (Preprocess(mean=(0, 0, 0)), r"preprocess\.mean has 3 values for images of 1 channel"),
        (Preprocess(std=(1, 1)), r"preprocess\.std has 2 values for images of 1 channel"),
        (Preprocess(pca_std=0.1), r"preprocess\.pca_std is colour noise: it needs 3 channels, not 1"),
        (Preprocess(), "image of 8x8 is too small"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(spec: Preprocess, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(get_recipe("digits"), preprocess=spec).model_arch((8, 8, 1), 10)


@pytest.mark.parametrize(("examples", "steps"), [(1, 1), (31, 1), (32, 1), (33, 2), (1437, 45)])
def test_steps_per_epoch_count_a_smaller_last_batch(examples: int, steps: int) -> None:
    data = numbered(examples)
    sizes = [len(batch.labels) for batch in batches(data, AUGMENTED, 0, train=True)]
    assert steps_per_epoch(data, AUGMENTED) == len(sizes) == steps
    assert sum(sizes) == examples
    assert set(sizes[:-1]) <= {32}


def _epoch(recipe: Recipe, epoch: int, data: Dataset, train: bool = True) -> dict[int, dict[str, Any]]:
    """What happens to each example in one epoch, in the order of visits."""
    seen: dict[int, dict[str, Any]] = {}
    for batch in batches(data, recipe, epoch, train=train):
        for row, index in enumerate(indices(batch.images)):
            assert index not in seen
            assert batch.labels[row] == index % 10
            seen[index] = {name: array[row].tolist() for name, array in batch.draws.items()}
    return seen


def _digest(recipe: Recipe, epoch: int, data: Dataset) -> str:
    digest = hashlib.sha256()
    for batch in batches(data, recipe, epoch, train=True):
        batch.update(digest)
    return digest.hexdigest()


def test_an_epoch_visits_each_example_once_in_an_order_of_its_own() -> None:
    data = numbered(1000)
    first, second, other_seed = (
        list(_epoch(replace(AUGMENTED, seed=seed), epoch, data)) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    assert sorted(first) == sorted(second) == sorted(other_seed) == list(range(1000))
    for one, other in ((first, list(range(1000))), (first, second), (first, other_seed)):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.15


def test_evaluation_keeps_the_stored_order_and_draws_nothing_at_random() -> None:
    data = numbered(100)
    seen = _epoch(AUGMENTED, 0, data, train=False)
    assert list(seen) == list(range(100))
    assert seen == _epoch(replace(AUGMENTED, seed=5), 3, data, train=False)
    assert all(example == {"crop": [2, 2]} for example in seen.values())


@pytest.mark.parametrize(("side", "crop", "pad", "place"), [(32, 32, 4, 4), (256, 227, 0, 14), (7, 4, 0, 2)])
def test_evaluation_crops_are_central(side: int, crop: int, pad: int, place: int) -> None:
    recipe = replace(AUGMENTED, preprocess=Preprocess(crop=crop, pad=pad))
    (batch,) = batches(numbered(3, side, side), recipe, 0, train=False)
    np.testing.assert_array_equal(batch.draws["crop"], [[place, place]] * 3)


def test_a_seed_gives_its_bytes() -> None:
    data = numbered(200)
    hashes = [_digest(replace(AUGMENTED, seed=seed), epoch, data) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("part", ["images", "labels", "ids", "partner", "crop", "flip", "pca", "share"])
def test_the_hashes_cover_every_byte(part: str) -> None:
    """The pixels are hashed once for the split, all else with each batch."""
    data = numbered(4)
    mixed = replace(AUGMENTED, preprocess=Preprocess(), mix=Mix(mixup=0.2))
    (batch,) = batches(data, mixed if part in ("partner", "share") else AUGMENTED, 0, train=True)
    source = data.source
    assert isinstance(source, Arrays)

    def digest() -> str:
        found = hashlib.sha256()
        batch.update(found)
        return f"{data.content()} {found.hexdigest()}"

    before = digest()
    known = {"images": source.images, "labels": batch.labels, "ids": batch.ids, "partner": batch.facts.partner}
    array = (known | batch.draws)[part]
    array.view(np.uint8).reshape(-1)[-1] ^= 1
    assert digest() != before


def test_draws_belong_to_the_example() -> None:
    """Whatever the batch size, the position in the batch, and the examples around it."""
    data = numbered(300)
    whole = _epoch(AUGMENTED, 2, data)
    assert _epoch(replace(AUGMENTED, batch_size=7), 2, data) == whole
    rest, held = data.hold_out(0.3, seed=4)
    for part in (rest, held):
        assert all(example == whole[index] for index, example in _epoch(AUGMENTED, 2, part).items())
    assert len({str(example) for example in whole.values()}) > 290
    assert _epoch(AUGMENTED, 3, data) != whole


def _photographs(count: int) -> Dataset:
    rng = np.random.default_rng(1)
    sizes = rng.integers(30, 60, (count, 2))
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes]
    source = Photographs(lambda index: nullcontext((pictures[index], index)))
    return Dataset("pictures", "train", None, tuple(map(str, range(count))), source, np.arange(count))


PHOTOGRAPHS = replace(
    get_recipe("imagenet"),
    preprocess=Preprocess(host_resize=28, random_resized_crop=True, crop=24, flip=True),
)


def test_boxes_belong_to_the_photograph() -> None:
    data = _photographs(20)

    def boxes(batch_size: int, epoch: int, seed: int = 0) -> dict[int, bytes]:
        recipe = replace(PHOTOGRAPHS, batch_size=batch_size, seed=seed)
        pairs = (
            (label, image.tobytes())
            for batch in batches(data, recipe, epoch, train=True)
            for label, image in zip(batch.labels.tolist(), batch.images, strict=True)
        )
        return dict(pairs)

    first = boxes(3, 0)
    assert boxes(20, 0) == first
    for other in (boxes(3, 1), boxes(3, 0, seed=1)):
        assert other.keys() == first.keys()
        assert all(other[label] != first[label] for label in first)


def test_a_photographs_box_has_a_stream_of_its_own() -> None:
    """That of boxes which are cut on a device: no number is used twice, whoever cuts."""
    data, recipe = _photographs(6), replace(PHOTOGRAPHS, seed=3)
    (batch,) = batches(data, recipe, 2, train=True)
    for label, image, numbers in zip(
        batch.labels, batch.images, uniforms_at(3, Stream.RESIZED_CROP, 2, batch.ids, 22), strict=True
    ):
        with data.source.open(label) as (picture, _):  # type: ignore[attr-defined]
            np.testing.assert_array_equal(image, random_resized_crop(picture, 24, numbers))


@pytest.mark.parametrize("changed", range(4))
def test_the_hash_covers_every_photograph_as_it_is_decoded(changed: int) -> None:
    def digest(data: Dataset) -> str:
        (batch,) = batches(data, PHOTOGRAPHS, 0, train=True)
        found = hashlib.sha256()
        batch.update(found)
        return found.hexdigest()

    other = _photographs(4)
    assert digest(other) == digest(_photographs(4))
    with other.source.open(changed) as (picture, _):  # type: ignore[attr-defined]
        picture.paste((255, 0, 0), (0, 0, *picture.size))
    assert digest(other) != digest(_photographs(4))


def test_photographs_are_evaluated_on_their_centre() -> None:
    data = _photographs(5)
    (batch,) = batches(data, PHOTOGRAPHS, 0, train=False)
    assert batch.images.shape == (5, 28, 28, 3)
    np.testing.assert_array_equal(batch.draws["crop"], [[2, 2]] * 5)
    assert isinstance(data.source, Photographs)
    for image, index in zip(batch.images, batch.labels, strict=True):
        with data.source.open(index) as (photograph, _):
            np.testing.assert_array_equal(image, central_square(photograph, 28))


def test_crop_places_cover_all_room_evenly() -> None:
    """(8 + 2 * 2 - 7 + 1) ** 2 = 36 places, a chi-squared test over 20,000 draws; half of the images are mirrored."""
    data = numbered(20_000)
    places: Counter[tuple[int, int]] = Counter()
    flips = 0
    for batch in batches(data, replace(AUGMENTED, batch_size=4096), 0, train=True):
        assert [str(batch.draws[name].dtype) for name in ("crop", "flip")] == ["int32", "bool"]
        places.update(map(tuple, batch.draws["crop"].tolist()))
        flips += int(batch.draws["flip"].sum())
    assert set(places) == {(top, left) for top in range(6) for left in range(6)}
    assert stats.chisquare(list(places.values())).pvalue > 1e-3
    assert stats.binomtest(flips, 20_000).pvalue > 1e-3


def test_crop_room_is_that_of_each_side() -> None:
    recipe = replace(AUGMENTED, preprocess=Preprocess(crop=8))
    places = np.concatenate([batch.draws["crop"] for batch in batches(numbered(500, 10, 8), recipe, 0, train=True)])
    assert set(places[:, 0]) == {0, 1, 2}
    assert set(places[:, 1]) == {0}


@pytest.mark.parametrize("width", [1, 2, 4, 5, 6, 22])
def test_rows_can_be_had_alone(width: int) -> None:
    table = uniforms(3, Stream.RESIZED_CROP, 7, 50, width)
    assert table.shape == (50, width)
    assert table.dtype == np.float64
    for ids in ([0], [49], [17, 1, 1, 48, 0, 2, 3], list(range(50))[::-1], []):
        alone = uniforms_at(3, Stream.RESIZED_CROP, 7, np.array(ids, np.int64), width)
        np.testing.assert_array_equal(alone, table[ids] if ids else table[:0], strict=True)
    np.testing.assert_array_equal(uniforms(3, Stream.RESIZED_CROP, 7, 10, width), table[:10])


def test_uniforms_are_uniform_and_their_streams_independent() -> None:
    keys = [
        (0, Stream.CROP, 0),
        (1, Stream.CROP, 0),
        (0, Stream.FLIP, 0),
        (0, Stream.CROP, 1),
        (2**32 - 1, Stream.PCA, 9),
    ]
    tables = [uniforms(*key, 5000, 4).ravel() for key in keys]
    for table in tables:
        assert 0 <= table.min() < table.max() < 1
        assert stats.kstest(table, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(tables) - np.eye(len(keys))
    assert np.abs(correlation).max() < 0.04
    columns = np.corrcoef(tables[0].reshape(-1, 4).T) - np.eye(4)
    assert np.abs(columns).max() < 0.08
    assert len(np.unique(np.concatenate(tables))) == 5 * 20_000


@pytest.mark.parametrize(("width", "blocks"), [(1, 1), (4, 1), (5, 2)])
def test_uniforms_are_philox_words(width: int, blocks: int) -> None:
    """Key (seed, stream), counter (blocks before the example, 0, epoch, 0); the top 53 bits of each word."""
    philox = np.random.Philox(
        key=np.array([11, Stream.FLIP], np.uint64), counter=np.array([6 * blocks, 0, 5, 0], np.uint64)
    )
    expected = (philox.random_raw(width) >> np.uint64(11)) * 2.0**-53
    np.testing.assert_array_equal(uniforms(11, Stream.FLIP, 5, 7, width)[6], expected)


def test_draws_never_change() -> None:
    """Recorded numbers: another value here would change every run that anybody has made."""
    assert uniforms(0, Stream.CROP, 0, 1, 2).tolist() == [[0.8144335776159864, 0.4396808049627232]]
    assert uniforms_at(7, Stream.RESIZED_CROP, 3, np.array([1000]), 2)[0].tolist() == [
        0.49993805144663706,
        0.843047472975642,
    ]
    assert order(0, 0, 8).tolist() == [4, 3, 7, 2, 1, 5, 6, 0]
    names = ["SPLIT", "ORDER", "CROP", "FLIP", "PCA", "RESIZED_CROP", "", "JITTER", "MIX"]  # 6 was once in use
    assert [(stream.name, int(stream)) for stream in Stream][:8] == [(n, i) for i, n in enumerate(names) if n]
    assert [int(stream) for stream in Stream][8:] == list(range(9, len(Stream) + 1))


def test_orders_are_permutations_and_all_of_them_occur() -> None:
    seen = Counter(tuple(order(0, epoch, 3).tolist()) for epoch in range(1200))
    assert len(seen) == 6
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_normals_are_normal() -> None:
    values = normals(uniforms(0, Stream.PCA, 0, 20_000, 6))
    assert values.shape == (20_000, 3)
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    assert values.mean() == pytest.approx(0, abs=0.015)
    assert values.std() == pytest.approx(1, abs=0.015)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.03
    assert np.isfinite(normals(np.array([[0.0, 0.0], [1 - 2**-53, 0.5]]))).all()


def test_digits_are_split_in_a_fixed_stratified_way() -> None:
    (train, test), (train_again, test_again) = load_dataset("digits"), load_dataset("digits")
    assert (len(train), len(test)) == (1437, 360) == DATASETS["digits"].examples
    assert (train.split, test.split, train.image) == ("train", "test", (8, 8, 1))
    sources = [cast(Arrays, part.source) for part in (train, test, train_again, test_again)]
    for ours, again in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(sources[ours].images, sources[again].images)
        np.testing.assert_array_equal(sources[ours].labels, sources[again].labels)
    shares = [np.bincount(source.labels, minlength=10) / len(source.labels) for source in sources[:2]]
    assert shares[0] == pytest.approx(shares[1], abs=1 / 360)

    original = load_digits()
    wanted = Counter(
        (image.tobytes(), int(label)) for image, label in zip(original.images, original.target, strict=True)
    )
    levels = np.rint(np.arange(17) * (255 / 16)).astype(np.uint8)  # no two of the 17 grey levels become one
    assert len(set(levels)) == 17
    found: Counter[tuple[bytes, int]] = Counter()
    for source in sources[:2]:
        grey = np.searchsorted(levels, source.images[..., 0]).astype(np.float64)
        found.update((image.tobytes(), int(label)) for image, label in zip(grey, source.labels, strict=True))
    assert found == wanted  # each of the 1,797 in one split, none in both


def test_the_digits_split_is_the_recorded_one() -> None:
    """Another split would make published results incomparable."""
    source = cast(Arrays, load_dataset("digits")[1].source)
    assert hashlib.sha256(source.images.tobytes() + source.labels.tobytes()).hexdigest()[:16] == "eb33daa4a6fa9662"


@pytest.mark.parametrize("path", [None, "/nowhere/sklearn/__init__.py"])
def test_digits_are_scikit_learns_in_the_order_of_its_split(path: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from the package's file, and by its loader where that is not there."""
    if path:
        monkeypatch.setattr(digits, "find_spec", lambda name: ModuleSpec(name, None, origin=path))
    original = load_digits()
    labels = original.target.astype(np.int32)
    parts = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    for part, places in zip(load_dataset("digits"), parts, strict=True):
        source = cast(Arrays, part.source)
        assert source.images.dtype == np.uint8
        np.testing.assert_array_equal(source.images[..., 0], np.rint(original.images[places] * 255 / 16))
        assert source.labels.dtype == np.int32
        np.testing.assert_array_equal(source.labels, labels[places])
        assert list(part.class_names) == [str(name) for name in original.target_names]


def test_scikit_learn_is_not_imported_for_its_digits() -> None:
    """It would take longer than a framework, and its memory would stay."""
    said = (
        "import sys; from common.data.load import load_dataset; load_dataset('digits'); print('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, cwd=ROOT).stdout == "False\n"


def _random_image(rng: np.random.Generator) -> Image.Image:
    height, width = rng.integers(1, 400, 2)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def test_central_square_is_torchvisions() -> None:
    """`Resize` and `CenterCrop` on the same images, bit for bit, larger and smaller than asked for."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        image, side = _random_image(rng), int(rng.integers(1, 120))
        if max(image.size) > 20 * min(image.size):
            continue
        theirs = transforms.CenterCrop(side)(transforms.Resize(side)(image))
        np.testing.assert_array_equal(central_square(image, side), np.asarray(theirs))


def _box(width: int, height: int, numbers: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of the random box."""
    top, left, h, w = random_boxes(height, width, numbers[None])[0].astype(int).tolist()
    return left, top, w, h


def test_random_boxes_are_within_the_image_and_the_ranges() -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        width, height = (int(side) for side in rng.integers(40, 500, 2))
        left, top, w, h = _box(width, height, rng.random(22))
        assert 0 <= left <= left + w <= width
        assert 0 <= top <= top + h <= height
        assert w >= 1
        assert h >= 1
        assert (w + 0.5) / (h - 0.5) >= 3 / 4
        assert (w - 0.5) / (h + 0.5) <= 4 / 3
        assert 0.08 * width * height <= (w + 0.5) * (h + 0.5)
        shares.append(w * h / (width * height))
    assert min(shares) < 0.1
    assert max(shares) > 0.9
    assert 0.3 < float(np.mean(shares)) < 0.6


class Replay:
    """`torch` for torchvision's `RandomResizedCrop`, with the random numbers that ours is given."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.areas, self.ratios = iter(numbers[:10]), iter(numbers[10:20])
        self.place = iter(numbers[[21, 20]])  # top, then left
        self.turn = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    def empty(self, *size: int) -> Any:
        self.turn += 1
        number = float(next(self.areas if self.turn % 2 else self.ratios))
        return SimpleNamespace(
            uniform_=lambda low, high: torch.tensor(
                float(low) + (float(high) - float(low)) * number, dtype=torch.float64
            )
        )

    def randint(self, low: int, high: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.tensor([int(float(next(self.place)) * (high - low)) + low])


def _shapes() -> Iterator[tuple[int, int]]:
    rng = np.random.default_rng(2)
    yield from ((300, 20), (20, 300), (400, 300), (300, 400), (7, 5), (1, 1), (1, 50))
    for place in range(500):  # the last ones so small that a try may come to no pixel at all
        width, height = rng.integers(1, 500 if place < 300 else 5, 2)
        yield int(width), int(height)


def test_random_boxes_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same uniforms give the same box, long images included, where all ten tries fail."""
    rng = np.random.default_rng(3)
    for width, height in _shapes():
        numbers = rng.random(22)
        monkeypatch.setattr(transforms_module, "torch", Replay(numbers))
        image = Image.new("RGB", (width, height))
        top, left, h, w = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        assert _box(width, height, numbers) == (left, top, w, h)


@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_random_resized_crop_gives_torchvisions_pixels(suffix: str, tmp_path: Path) -> None:
    """Those of the box alone, whether the image is decoded before or not."""
    rng = np.random.default_rng(5)
    _random_image(rng).resize((90, 60)).save(tmp_path / f"image.{suffix}")
    for _ in range(20):
        numbers = rng.random(22)
        left, top, w, h = _box(90, 60, numbers)
        with opened(tmp_path / f"image.{suffix}") as image:
            found = random_resized_crop(image, 48, numbers)
        expected = functional.resized_crop(Image.open(tmp_path / f"image.{suffix}"), top, left, h, w, [48, 48])
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_holding_out_keeps_the_order_and_every_example() -> None:
    data = numbered(100)
    rest, held = data.hold_out(0.2, 0)
    assert (len(rest), len(held), rest.split, held.split) == (80, 20, "train", "val")
    assert sorted([*rest.ids, *held.ids]) == list(range(100))
    assert list(rest.ids) == sorted(rest.ids)
    assert list(held.ids) == sorted(held.ids)
    np.testing.assert_array_equal(held.ids, data.hold_out(0.2, 0)[1].ids)
    assert set(held.ids) != set(data.hold_out(0.2, 1)[1].ids)
    expected = np.sort(draws.order(0, 0, 100, Stream.SPLIT)[:20])
    np.testing.assert_array_equal(held.ids, expected)


def test_each_part_of_a_split_has_hashes_of_its_own(tmp_path: Path) -> None:
    """By which a run is refused that is gone on with under another split: of examples in memory, and of files."""
    data = numbered(20)
    assert isinstance(data.source, Arrays)
    files = Files(tmp_path, ((tmp_path / f"{place}.png", place % 10) for place in range(20)))
    on_disk = replace(data, image=None, source=Photographs(files.open, files=files))
    for each in (data, on_disk):
        parts = [part for seed in (0, 1) for part in each.hold_out(0.25, seed)]
        assert len({part.fingerprint() for part in parts}) == 4
    parts = [part for seed in (0, 1) for part in data.hold_out(0.25, seed)]
    before = [part.content() for part in parts]
    assert len({*before}) == 4
    data.source.images[7] ^= 1
    assert [part.content() != old for part, old in zip(parts, before, strict=True)] == [7 in part.ids for part in parts]


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_split_is_another_one_with_another_label_name_or_class(kind: str, tmp_path: Path) -> None:
    def split(labels: tuple[int, ...] = (0, 1, 1), names: str = "abc", classes: str = "xy") -> Dataset:
        if kind == "files":
            files = Files(tmp_path, ((tmp_path / name, label) for name, label in zip(names, labels, strict=True)))
            return Dataset("own", "train", None, tuple(classes), Photographs(files.open, files=files), np.arange(3))
        source = Arrays(np.zeros((3, 2, 2, 1), np.uint8), np.array(labels, np.int32))
        return whole("own", "train", (2, 2, 1), classes, source)

    assert split().fingerprint() == split().fingerprint()
    others = [split(labels=(0, 0, 1)), split(classes="xz"), replace(split(), ids=np.array([0, 2, 1]))]
    others += [split(names="abd")] if kind == "files" else []
    assert len({each.fingerprint() for each in (split(), *others)}) == 1 + len(others)


@pytest.mark.parametrize("weights", ["equal", "balanced", (0.5, 2.0, 1.0)])
def test_class_weights_are_words_or_numbers_in_json(weights: Any) -> None:
    fields = json.loads(json.dumps(to_dict(replace(get_recipe("digits"), class_weights=weights))))
    assert from_dict(fields, Recipe, "a file").class_weights == weights
    for wrong in ("even", 1.0, ["a"], [True]):
        with pytest.raises(UserError, match="class_weights"):
            from_dict(fields | {"class_weights": wrong}, Recipe, "a file")


def test_a_weight_is_needed_for_each_class() -> None:
    with pytest.raises(UserError, match="class_weights has 2 values for 10 classes"):
        replace(get_recipe("digits"), class_weights=(1.0, 2.0)).model_arch((32, 32, 1), 10)


def test_balanced_weights_are_scikit_learns(tmp_path: Path) -> None:
    """Of the examples of the split alone, of images in memory, in files, and under other labels."""
    labels = np.repeat(np.arange(4, dtype=np.int32), (3, 9, 1, 20))
    data = whole("uneven", "train", (1, 1, 1), "abcd", Arrays(np.zeros((33, 1, 1, 1), np.uint8), labels))
    part = replace(data, ids=np.arange(0, 33, 2))
    turned = replace(part, source=Relabelled(data.source, np.array([3, 2, 1, 0], np.int32)))
    files = Files(tmp_path, ((tmp_path / f"{place}.png", label) for place, label in enumerate(labels.tolist())))
    on_disk = replace(part, image=None, source=Photographs(files.open, files=files))
    for each in (data, part, on_disk):
        expected = compute_class_weight("balanced", classes=np.arange(4), y=labels[each.ids])
        np.testing.assert_allclose(each.balanced_weights(), expected, rtol=1e-15)
    assert turned.balanced_weights() == part.balanced_weights()[::-1]
    with pytest.raises(UserError, match="no training example of uneven is of class 'c'"):
        replace(data, ids=np.arange(12)).balanced_weights()
    with pytest.raises(UserError, match=r"--class-weights 1\.0"):
        replace(data, source=Photographs(files.open)).balanced_weights()


def test_a_run_is_balanced_by_what_it_trains_on() -> None:
    """Not by what it holds out or is tested on, of which it has seen nothing."""
    recipe, given = replace(get_recipe("digits"), class_weights="balanced", val_fraction=0.3), list[Recipe]()

    def stop(recipe: Recipe, options: TrainOptions) -> None:
        given.append(recipe)
        sys.exit()

    with pytest.raises(SystemExit):
        fit(mock.MagicMock(check_precision=stop), recipe, TrainOptions())
    train = load_splits(recipe)["train"]
    labels = train.source.read(train.ids, None)[1]
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    assert given[0].class_weights == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("all", {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}),
        ("dense", {"fc6", "fc7", "fc8"}),
        ("last", {"fc8"}),
    ],
)
def test_the_head_is_what_is_trained_in_full(head: Any, expected: set[str]) -> None:
    recipe = replace(get_recipe("cifar10_finetune"), finetune=FineTune(head))
    assert recipe.head_layers(ARCHS["alexnet"]) == expected
