"""What is drawn, against its definition: torchvision's and timm's conventions, the papers, scipy's distributions.

Both frameworks are given the same draws, so no comparison of the two sees one that is wrong. Every statistical test
below rejects what is right with probability `_P`: fewer than a hundred of them come to less than 1e-6, and their seeds
are fixed, so a pass stays a pass.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import _augment
from torchvision.transforms.v2 import functional as F

import flax_impl.preprocess
import torch_impl.evaluate
import torch_impl.preprocess
from common.arch.spec import Size
from common.data import draws
from common.data.augment import AUGMENTATIONS, Draws, central, draw
from common.data.crops import random_boxes
from common.data.dataset import Dataset, whole
from common.data.draws import Stream, betas, normals, order
from common.data.pipeline import batches
from common.data.sources import Arrays
from common.recipes.spec import Mix, Preprocess, Recipe
from common.recipes.zoo import get_recipe
from torch_impl.dropout import SharedDropout, share_dropout

_P = 1e-8
COUNT = 20_000
LAST = 1 - 2.0**-53  # the largest number that is drawn

BASE = replace(get_recipe("digits"), batch_size=4096)
EVERYTHING = replace(
    BASE,
    arch="alexnet_cifar",
    preprocess=Preprocess(
        pad=4, crop=32, flip=True, brightness=0.4, contrast=0.3, saturation=0.2, pca_std=0.1, mean=(0.0,), std=(1.0,)
    ),
    mix=Mix(mixup=0.2, cutmix=1.0),
)
SIZE: Size = (32, 32, 3)


def stored(count: int = COUNT, size: Size = SIZE, classes: int = 10) -> Dataset:
    """So many images without memory of their own; their pixels are not read."""
    pixels = np.broadcast_to(np.uint8(0), (count, *size))
    labels = np.arange(count, dtype=np.int32) % classes
    return whole("stored", "train", size, [str(label) for label in range(classes)], Arrays(pixels, labels))


@cache
def one_pass(recipe: Recipe, size: Size = SIZE, epoch: int = 0, count: int = COUNT) -> Draws:
    """What a pass of training draws, by example and not by visit, and `visit`, when each example has its turn."""
    data, rows = stored(count, size), list(batches(stored(count, size), recipe, epoch, train=True, pixels=False))
    ids = np.concatenate([batch.ids for batch in rows])
    assert sorted(ids) == list(range(len(data)))
    back = np.argsort(ids)
    drawn = {name: np.concatenate([batch.draws[name] for batch in rows])[back] for name in rows[0].draws}
    return drawn | {"visit": back}


def drawn(name: str, uniform: Any, recipe: Recipe, size: Size | None = SIZE) -> Draws:
    """What one augmentation makes of these numbers."""
    return AUGMENTATIONS[name].draw(np.asarray(uniform, np.float64), recipe, size)


def even(values: np.ndarray, kinds: int) -> None:
    """Each of 0, 1, ... `kinds` - 1 is as probable as any other, and nothing else occurs."""
    counts = np.bincount(values, minlength=kinds)
    assert len(counts) == kinds
    assert stats.chisquare(counts).pvalue > _P


def follows(values: np.ndarray, distribution: Any) -> None:
    """Kolmogorov and Smirnov's test, and the first two moments by the central limit theorem."""
    assert stats.kstest(values, distribution.cdf).pvalue > _P
    mean, deviation, n, z = distribution.mean(), distribution.std(), len(values), stats.norm.isf(_P / 2)
    kurtosis = float(distribution.stats("k")) + 3
    assert abs(values.mean() - mean) < z * deviation / n**0.5
    assert abs(values.var() / deviation**2 - 1) < z * ((kurtosis - 1) / n) ** 0.5


class TestCrops:
    @pytest.mark.parametrize(("size", "pad", "crop"), [((32, 32, 3), 4, 32), ((10, 13, 1), 0, 8), ((7, 7, 1), 1, 4)])
    def test_both_ends_and_each_place_between(self, size: Size, pad: int, crop: int) -> None:
        """torchvision's `RandomCrop` draws `randint(0, extent + 2 * pad - crop + 1)`: the k-th of n equal parts of
        [0, 1) is place k, along height and width alike."""
        recipe = replace(BASE, preprocess=Preprocess(pad=pad, crop=crop))
        for axis in range(2):
            places = size[axis] + 2 * pad - crop + 1
            part = np.arange(places) / places
            for uniform in (part + 1e-9, part + 1 / places - 1e-9):
                columns = np.zeros((places, 2))
                columns[:, axis] = uniform
                expected = np.zeros((places, 2), int)
                expected[:, axis] = np.arange(places)
                np.testing.assert_array_equal(drawn("crop", columns, recipe, size)["crop"], expected)
        room = [extent + 2 * pad - crop for extent in size[:2]]
        assert drawn("crop", [[0.0, 0.0], [LAST, LAST]], recipe, size)["crop"].tolist() == [[0, 0], room]

    def test_are_even_and_their_axes_independent(self) -> None:
        """81 places of CIFAR's crops: with probability 1/81 each."""
        crop = one_pass(EVERYTHING)["crop"]
        even(crop[:, 0] * 9 + crop[:, 1], 81)

    def test_of_photographs_have_the_room_of_the_central_square(self) -> None:
        """227 of 256 pixels, as the 2012 paper's recipe asks: 30 places; of a box that is already resized, one."""
        recipe = get_recipe("imagenet_2012")
        assert (recipe.preprocess.host_resize, recipe.preprocess.crop) == (256, 227)
        assert drawn("crop", [[0.0, LAST], [LAST, 0.5]], recipe, None)["crop"].tolist() == [[0, 29], [29, 15]]
        assert drawn("crop", [[0.0, 0.5], [LAST, LAST]], get_recipe("imagenet"), None)["crop"].tolist() == [[0, 0]] * 2

    def test_hold_torchvisions_pixels(self) -> None:
        """`pad` and `crop` of its functional transforms, at every place, in both frameworks."""
        images = np.arange(1, 1 + 6 * 7 * 2, dtype=np.uint8).reshape(1, 6, 7, 2)
        pad, side = 2, 5
        places = np.array([(top, left) for top in range(6) for left in range(7)], np.int32)
        many = np.repeat(images, len(places), 0)
        ours = torch_impl.preprocess.crop(torch.tensor(many), torch.tensor(places), pad, side).numpy()
        theirs = np.asarray(jax.jit(flax_impl.preprocess.crop, static_argnums=(2, 3))(many, places, pad, side))
        padded = F.pad(torch.tensor(images[0]).permute(2, 0, 1), [pad])
        for place, one, other in zip(places.tolist(), ours, theirs, strict=True):
            expected = F.crop(padded, *place, side, side).permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(one, expected)
            np.testing.assert_array_equal(other, expected)


class TestEvaluation:
    @pytest.mark.parametrize("pad", [0, 1, 2, 3])
    def test_the_crop_is_torchvisions_centre_of_the_padded_image(self, pad: int) -> None:
        """For even and odd differences, which halves are rounded to even; and it is the fifth of ten crops."""
        side = 8  # and the width is odd
        image = torch.arange(1, 1 + side * (side + 3), dtype=torch.uint8).reshape(1, side, side + 3)
        padded = F.pad(image, [pad])
        for crop in range(1, side + 2 * pad + 1):
            recipe = replace(BASE, preprocess=Preprocess(pad=pad, crop=crop))
            places = central(recipe, (side, side + 3, 1), 2)["crop"]
            expected = v2.CenterCrop(crop)(padded)[0].numpy()
            stack = image.permute(1, 2, 0)[None].repeat(2, 1, 1, 1)
            found = torch_impl.preprocess.crop(stack, torch.tensor(places), pad, crop)
            np.testing.assert_array_equal(found[..., 0].numpy(), np.stack([expected] * 2))
            np.testing.assert_array_equal(torch_impl.evaluate.ten_crop(stack, crop, pad)[4, 0, ..., 0], expected)

    def test_photographs_are_cropped_from_their_central_square(self) -> None:
        """(256 - 227) / 2 is 14.5, which torchvision rounds to 14."""
        squares = torch.arange(256 * 256).reshape(1, 256, 256)
        for name in ("imagenet", "imagenet_2012"):
            recipe = get_recipe(name)
            [[top, left]] = central(recipe, None, 1)["crop"].tolist()
            side = recipe.preprocess.crop
            assert side
            assert v2.CenterCrop(side)(squares)[0, 0, 0] == top * 256 + left


class TestBoxes:
    @pytest.mark.parametrize("size", [(60, 60, 3), (40, 90, 3), (20, 100, 3)])
    def test_follow_torchvisions_own_draws(self, size: Size) -> None:
        """Area, ratio and place of `RandomResizedCrop`'s boxes, drawn by PyTorch, in two-sample tests. In the widest
        image about half of the first tries fail."""
        height, width, _ = size
        image, torchs = torch.empty(1, height, width), v2.RandomResizedCrop(8)
        recipe = replace(BASE, preprocess=Preprocess(random_resized_crop=True, crop=8))
        assert (torchs.scale, torchs.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
        torch.manual_seed(0)
        rows = [torchs.make_params([image]) for _ in range(2000)]
        theirs = np.array([[row[name] for name in ("top", "left", "height", "width")] for row in rows], float)
        ours = one_pass(recipe, size)["box"]
        for one, other in zip(self.properties(ours, size), self.properties(theirs, size), strict=True):
            assert stats.ks_2samp(one, other).pvalue > _P

    def properties(self, boxes: np.ndarray, size: Size) -> tuple[np.ndarray, ...]:
        """Share of the area, ratio, and places as shares of the room that there is, where there is some."""
        top, left, height, width = boxes.T
        rooms = size[0] - height, size[1] - width
        places = [place[room > 4] / room[room > 4] for place, room in zip((top, left), rooms, strict=True)]
        return height * width / (size[0] * size[1]), width / height, *places

    def test_reach_both_ends(self) -> None:
        """The smallest square box of 100 x 100 pixels, 28 x 28 of them, in the first and in the last place."""
        numbers = np.full((2, 22), 0.5)
        numbers[:, 0], numbers[0, 20:], numbers[1, 20:] = 0.0, 0.0, LAST
        assert random_boxes(100, 100, numbers).tolist() == [[0, 0, 28, 28], [72, 72, 28, 28]]

    def test_are_central_where_no_try_fits(self) -> None:
        """Within the ratios, and of whole pixels: 73 of room are 36 and 37, as torchvision halves them."""
        assert random_boxes(100, 20, np.full((1, 22), 0.99)).tolist() == [[36, 0, 27, 20]]
        assert random_boxes(20, 100, np.full((1, 22), 0.99)).tolist() == [[0, 36, 20, 27]]


def test_flips_are_half_of_the_images() -> None:
    """torchvision's `RandomHorizontalFlip` flips below p = 0.5, not at it."""
    found = drawn("flip", [[0.0], [np.nextafter(0.5, 0)], [0.5], [LAST]], EVERYTHING)["flip"]
    assert found.tolist() == [True, True, False, False]
    assert stats.binomtest(int(one_pass(EVERYTHING)["flip"].sum()), COUNT).pvalue > _P


@pytest.mark.parametrize("values", [(0.4, 0.3, 0.2), (0.0, 0.9, 0.0), (1.5, 1.0, 0.05)])
def test_jitter_is_drawn_from_torchvisions_ranges(values: tuple[float, float, float]) -> None:
    """`ColorJitter` draws each factor evenly from [max(0, 1 - value), 1 + value], and leaves a zero alone."""
    spec = Preprocess(brightness=values[0], contrast=values[1], saturation=values[2])
    recipe = replace(BASE, preprocess=spec)
    theirs = v2.ColorJitter(*values)
    ends = drawn("jitter", [[0.0] * 3, [0.25] * 3, [1.0] * 3], recipe)["jitter"]
    factors = one_pass(recipe)["jitter"]
    for place, interval in enumerate((theirs.brightness, theirs.contrast, theirs.saturation)):
        if interval is None:
            assert (factors[:, place] == 1).all()
            continue
        low, high = interval
        np.testing.assert_allclose(ends[:, place], [low, low + (high - low) / 4, high], rtol=1e-15)
        follows(factors[:, place], stats.uniform(low, high - low))


def test_colour_noise_is_the_papers() -> None:
    """2012 paper, section 4.1: N(0, 0.1) times each eigenvalue along its eigenvector of ImageNet's colours. These are
    of fb.resnet.torch, datasets/imagenet.lua; the covariance of what is added follows, and that of draws is the
    identity."""
    normals = one_pass(EVERYTHING)["pca"]
    for place in range(3):
        follows(normals[:, place], stats.norm())
    assert abs(np.corrcoef(normals.T) - np.eye(3)).max() < stats.norm.isf(_P / 6) / COUNT**0.5
    one = 1 - np.exp(-0.5)  # whose radius is 1: Box and Muller, 1958, the first of their two
    assert np.allclose(drawn("pca", [[one] * 3 + [0.0, 0.25, 0.5]], EVERYTHING)["pca"], [1, 0, -1], atol=1e-12)
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    black = torch.zeros(3, 2, 2, 3, dtype=torch.uint8)
    spec = Preprocess(pca_std=0.1)
    noise = torch_impl.preprocess.preprocess(black, {"pca": torch.eye(3)}, spec, torch.float64)[:, :, 0, 0].numpy()
    np.testing.assert_allclose(noise.T @ noise, 0.01 * vectors @ np.diag(values**2) @ vectors.T, rtol=1e-5)
    prepare = jax.jit(flax_impl.preprocess.preprocess, static_argnums=(2, 3))
    theirs = prepare(black.numpy(), {"pca": np.eye(3, dtype=np.float32)}, spec, jnp.float32)
    np.testing.assert_allclose(np.asarray(theirs)[:, 0, 0], noise, rtol=1e-5)


def area(cut: np.ndarray) -> np.ndarray:
    """Pixels in each box (n, 4) of top, left, bottom and right."""
    return (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])


class TestMixing:
    MIXUP = replace(EVERYTHING, mix=Mix(mixup=0.2))
    CUTMIX = replace(EVERYTHING, mix=Mix(cutmix=1.0))

    @pytest.mark.parametrize("alpha", [0.2, 1.0, 2.0])
    def test_weights_are_betas(self, alpha: float) -> None:
        """Beta(alpha, alpha) as `v2.MixUp` has it, numpy's own draws, and its moments: 1/2 and 1/(4(2 alpha + 1))."""
        theirs = v2.MixUp(alpha=alpha, num_classes=2)._dist
        first, second = (float(x) for x in (theirs.concentration1, theirs.concentration0))
        assert first == second == pytest.approx(alpha)
        weights = one_pass(replace(EVERYTHING, mix=Mix(mixup=alpha)))["mixup"]
        follows(weights, stats.beta(alpha, alpha))
        assert stats.beta(alpha, alpha).var() == pytest.approx(1 / (4 * (2 * alpha + 1)))
        assert stats.ks_2samp(weights, np.random.default_rng(0).beta(alpha, alpha, COUNT)).pvalue > _P
        assert betas(alpha, np.array([0.0, 0.5, 1.0])) == pytest.approx([0, 0.5, 1])

    def test_labels_weigh_as_much_as_pixels(self) -> None:
        mixed = one_pass(self.MIXUP)
        np.testing.assert_array_equal(mixed["share"], mixed["mixup"])
        assert not area(mixed["cut"]).any()
        assert (one_pass(self.CUTMIX)["mixup"] == 1).all()

    @pytest.mark.parametrize(("size", "alpha"), [((32, 32, 3), 1.0), ((24, 31, 3), 0.3)])
    def test_boxes_are_torchvisions(self, size: Size, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """`v2.CutMix.make_params` with our numbers: side sqrt(1 - lambda), clipped at the edges, and the label's share
        from what is left of the box."""
        recipe = replace(BASE, preprocess=Preprocess(), mix=Mix(cutmix=alpha))
        numbers = np.random.default_rng(0).random((300, 4))
        numbers[:4, 2:] = [(0, 0), (0, LAST), (LAST, 0), (LAST, LAST)]
        ours = drawn("mix", numbers, recipe, size)
        cutmix, image = v2.CutMix(alpha=alpha, num_classes=2), torch.empty(1, 3, *size[:2])
        weights = stats.beta(alpha, alpha).ppf(numbers[:, 1]).tolist()
        for row, weight, cut, share in zip(numbers, weights, ours["cut"].tolist(), ours["share"], strict=True):
            places = iter((row[3], row[2]))  # torchvision asks for the column first

            def randint(high: int, places: Any = places, **rest: Any) -> torch.Tensor:
                return torch.tensor([int(next(places) * high)])

            monkeypatch.setattr(cutmix, "_dist", SimpleNamespace(sample=lambda shape, weight=weight: weight))
            monkeypatch.setattr(_augment, "torch", SimpleNamespace(randint=randint, clamp=torch.clamp))
            theirs = cutmix.make_params([image])
            left, top, right, bottom = theirs["box"]
            assert cut == [top, left, bottom, right]
            assert share == pytest.approx(theirs["lam_adjusted"], abs=1e-12)

    def test_boxes_are_pasted_anywhere(self) -> None:
        """The middle is even over the pixels. Seen where the box is whole, it is even over what is left of them."""
        cut = one_pass(self.CUTMIX)["cut"]
        tops, lefts, bottoms, rights = cut.T
        assert (tops >= 0).all()
        assert (tops <= bottoms).all()
        assert (bottoms <= 32).all()
        for low, high in ((tops, bottoms), (lefts, rights)):
            inside = (low > 0) & (high < 32) & (high - low == 8)
            even((low[inside] + 4) - 5, 23)  # middles 5 to 27 keep both edges off

    @pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 1.0), (1.0, 0.3)])
    def test_either_is_as_probable_as_the_other(self, mixup: float, cutmix: float) -> None:
        """`timm.data.Mixup` with `switch_prob=0.5` and `mode="elem"`: one draw decides for each example, and each kind
        keeps its own Beta."""
        recipe = replace(EVERYTHING, mix=Mix(mixup=mixup, cutmix=cutmix))
        found = drawn("mix", [[np.nextafter(0.5, 0), 0.4, 0.5, 0.5], [0.5, 0.4, 0.5, 0.5]], recipe)
        assert found["mixup"].tolist() == [1.0, pytest.approx(stats.beta(mixup, mixup).ppf(0.4))]
        assert (area(found["cut"]) > 0).tolist() == [True, False]
        mixed = one_pass(recipe)
        pasted = mixed["mixup"] == 1
        assert stats.binomtest(int(pasted.sum()), COUNT).pvalue > _P
        assert not area(mixed["cut"][~pasted]).any()
        follows(mixed["mixup"][~pasted], stats.beta(mixup, mixup))
        whole_boxes = one_pass(replace(recipe, mix=Mix(cutmix=cutmix)))["share"]
        assert stats.ks_2samp(mixed["share"][pasted], whole_boxes).pvalue > _P

    def test_the_partner_is_torchvisions(self) -> None:
        """`roll(1, 0)` of the batch: the neighbour, never the example itself, in every batch."""
        data = stored(70)
        for batch in batches(data, replace(EVERYTHING, batch_size=16), 0, train=True, pixels=False):
            n = len(batch.labels)
            assert batch.facts.partner.tolist() == torch.arange(n).roll(1, 0).tolist()

    @pytest.mark.parametrize("kind", ["mixup", "cutmix"])
    def test_pixels_and_labels_are_torchvisions(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """`v2.MixUp` and `v2.CutMix` as transforms of a whole batch, in both frameworks."""
        n, classes, rng = 5, 3, np.random.default_rng(1)
        x, labels = torch.tensor(rng.random((n, 2, 6, 9))), torch.tensor([0, 1, 2, 2, 1])
        box, weight = (1, 2, 6, 4), 0.3  # x1, y1, x2, y2
        left, top, right, bottom = box
        share = weight if kind == "mixup" else 1 - (right - left) * (bottom - top) / 54
        theirs = (v2.MixUp if kind == "mixup" else v2.CutMix)(num_classes=classes)
        made = {"lam": weight} if kind == "mixup" else {"box": box, "lam_adjusted": share}
        monkeypatch.setattr(theirs, "make_params", lambda flat: dict(made))
        expected, targets = theirs(x, labels)
        draws = {
            "mixup": np.full(n, weight if kind == "mixup" else 1.0),
            "cut": np.tile([top, left, bottom, right] if kind == "cutmix" else [0] * 4, (n, 1)).astype(np.int32),
            "share": np.full(n, share),
        }
        partner = np.roll(np.arange(n), 1)
        given = {name: torch.tensor(rows) for name, rows in draws.items()}
        ours = torch_impl.preprocess.mix(x, given, torch.tensor(partner))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
        soft = torch_impl.preprocess.soft_targets(labels, given, torch.tensor(partner), classes, torch.float64)
        torch.testing.assert_close(soft, targets.double(), rtol=0, atol=1e-6)
        moved = {name: rows.astype(np.float32 if rows.ndim == 1 else np.int32) for name, rows in draws.items()}
        flaxs = jax.jit(flax_impl.preprocess.mix)(x.permute(0, 2, 3, 1).float().numpy(), moved, partner)
        np.testing.assert_allclose(np.asarray(flaxs).transpose(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-7)
        soften = jax.jit(flax_impl.preprocess.soft_targets, static_argnums=(3, 4))
        flaxs = soften(labels.numpy(), moved, partner, classes, jnp.float32)
        np.testing.assert_allclose(flaxs, targets, rtol=0, atol=1e-6)


class TestOrder:
    def test_every_example_is_as_probable_in_every_place(self) -> None:
        """40 examples over 2,000 epochs: their places, and which follows which."""
        count, epochs = 40, 2000
        rows = np.stack([order(7, epoch, count) for epoch in range(epochs)])
        table = np.stack([np.bincount(column, minlength=count) for column in rows.T])
        assert table.sum(1).tolist() == table.sum(0).tolist() == [epochs] * count
        spread = ((table - epochs / count) ** 2).sum() / (epochs / count)
        assert _P < stats.chi2((count - 1) ** 2).sf(spread) < 1 - _P
        follower = (rows[:, 1:] - rows[:, :-1]) % count
        assert stats.chisquare(np.bincount(follower.ravel(), minlength=count)[1:]).pvalue > _P

    def test_is_new_each_epoch_and_for_each_seed(self) -> None:
        """Ranks of any two are uncorrelated, and the number of examples in their old places is Poisson's: mean 1."""
        seeds = [(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
        passes = [np.argsort(order(seed, epoch, COUNT)) for seed, epoch in seeds]
        limit = stats.norm.isf(_P / 72) / COUNT**0.5
        assert abs(np.corrcoef(passes) - np.eye(len(seeds))).max() < limit
        for place, one in enumerate(passes):
            for other in passes[:place]:
                assert (one == other).sum() < stats.poisson(1).isf(_P / 36)


def columns(recipe: Recipe, epoch: int) -> dict[str, np.ndarray]:
    """Every number that a pass draws for the examples, (COUNT,) each, and when they have their turn."""
    found = one_pass(recipe, epoch=epoch)
    rows = {f"{name} {place}": row for name, a in found.items() for place, row in enumerate(a.reshape(COUNT, -1).T)}
    where = f"seed {recipe.seed}, epoch {epoch}: "
    return {where + name: row.astype(float) for name, row in rows.items()}


# Of one box, these four belong together, and so do a weight and whether there is a box at all.
TOGETHER = ("cut", "share", "mixup")


def test_streams_epochs_seeds_and_examples_are_independent() -> None:
    """Ranks of all that is drawn: for another purpose, in another epoch, by another seed, for the next example."""
    found: dict[str, np.ndarray] = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        found |= columns(replace(EVERYTHING, seed=seed), epoch)
    found |= {f"the next one's {name}": np.roll(row, -1) for name, row in columns(EVERYTHING, 0).items()}
    names = list(found)
    ranks = np.stack([stats.rankdata(row) for row in found.values()])
    correlation = np.corrcoef(ranks)
    limit = stats.norm.isf(_P / len(names) ** 2) / COUNT**0.5

    def related(one: str, other: str) -> bool:
        where, what = one.rsplit(" ", 2)[0], one.split()[-2]
        return one == other or (where == other.rsplit(" ", 2)[0] and what in TOGETHER and other.split()[-2] in TOGETHER)

    guilty = [
        (one, names[j])
        for i, one in enumerate(names)
        for j in range(i)
        if abs(correlation[i, j]) > limit and not related(one, names[j])
    ]
    assert not guilty
    whole_numbers = [row for name, row in found.items() if "next" not in name and ("jitter" in name or "pca" in name)]
    assert len(np.unique(np.concatenate(whole_numbers))) == len(whole_numbers) * COUNT


def test_only_what_is_asked_for_is_drawn() -> None:
    """A box that the device resizes needs no crop besides; that of a photograph is the host's."""
    boxed = replace(BASE, preprocess=Preprocess(random_resized_crop=True, crop=8))
    assert one_pass(boxed).keys() == {"box", "visit"}
    assert one_pass(EVERYTHING).keys() == {"crop", "flip", "jitter", "pca", "mixup", "cut", "share", "visit"}
    assert draw(get_recipe("imagenet"), None, lambda stream, width: np.zeros((3, width))).keys() == {"crop", "flip"}


def test_no_two_purposes_share_a_stream() -> None:
    """Nor has any of them the splits' or the order's."""
    used = [entry.stream for entry in AUGMENTATIONS.values()]
    assert len({*used, Stream.SPLIT, Stream.ORDER}) == len(used) + 2


def test_normals_come_of_the_last_axis() -> None:
    uniform = np.random.default_rng(0).random((3, 5, 6))
    found = normals(uniform)
    assert found.shape == (3, 5, 3)
    for row, numbers in zip(found.reshape(-1, 3), uniform.reshape(-1, 6), strict=True):
        np.testing.assert_array_equal(normals(numbers), row)


def test_equal_keys_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever numpy sorts by where nobody says: an order is the same on every machine."""
    constant = SimpleNamespace(random=lambda shape: np.arange(shape[0] * shape[1]).reshape(shape) // 4 % 3)
    monkeypatch.setattr(draws, "_generator", lambda *words: constant)
    keys = np.arange(5000) % 3
    assert order(0, 0, 5000).tolist() == sorted(range(5000), key=keys.__getitem__)


class TestHoldingOut:
    @pytest.mark.parametrize(
        ("count", "fraction", "held"), [(100, 0.29, 29), (100, 0.07, 7), (9, 0.3, 3), (11, 0.3, 3), (1437, 0.1, 144)]
    )
    def test_the_share_is_the_nearest(self, count: int, fraction: float, held: int) -> None:
        """0.29 * 100 is a little less than 29 in float64, 0.07 * 100 a little more than 7."""
        rest, part = stored(count).hold_out(fraction, 0)
        assert (len(rest), len(part)) == (count - held, held)
        assert not set(rest.ids) & set(part.ids)
        assert sorted([*rest.ids, *part.ids]) == list(range(count))

    def test_each_example_is_as_probable_and_classes_are_not_balanced(self) -> None:
        """Drawn at random, as documented: over 1,000 seeds each of 50 examples is held as often, and the number of one
        class's is hypergeometric, which a stratified draw's, always 3, is not."""
        data = stored(50, classes=5)
        rows = np.stack([np.isin(np.arange(50), data.hold_out(0.3, seed)[1].ids) for seed in range(1000)])
        assert (rows.sum(1) == 15).all()
        spread = ((rows.sum(0) - 300) ** 2).sum() / (300 * 0.7) * 49 / 50
        assert _P < stats.chi2(49).sf(spread) < 1 - _P
        law = stats.hypergeom(50, 10, 15)
        seen = np.bincount(rows[:, ::5].sum(1), minlength=11)
        expected = 1000 * law.pmf(np.arange(11))
        common = expected > 5
        lumped = [np.append(row[common], row[~common].sum()) for row in (seen, expected)]
        assert stats.chisquare(*lumped).pvalue > _P

    def test_seeds_hold_out_apart_and_not_by_the_order(self) -> None:
        """Two draws share as many examples as chance has it."""
        data = stored(2000)
        parts = [set(data.hold_out(0.5, seed)[1].ids) for seed in range(4)]
        parts += [set(order(seed, 0, 2000)[:1000].tolist()) for seed in range(4)]
        law = stats.hypergeom(2000, 1000, 1000)
        low, high = law.ppf(_P / 28), law.isf(_P / 28)
        shared = [len(one & other) for place, one in enumerate(parts) for other in parts[:place]]
        assert low <= min(shared) <= max(shared) <= high


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(rate: float) -> None:
    """2012 paper, section 4.2, in the form of today: zeros with probability `rate`, the rest by 1 / (1 - rate), each
    example, feature, step and layer by itself."""
    model = torch.nn.Module()
    model.drop6, model.drop7 = torch.nn.Dropout(rate), torch.nn.Dropout(rate)
    key = share_dropout(model, (4, 5, 10), seed=3)
    ones, masks = torch.ones(100, 200), []
    for step in range(2):
        key.at(step)
        for layer in (model.drop6, model.drop7):
            assert isinstance(layer, SharedDropout)
            found = layer(ones).numpy()
            zero = found == 0
            np.testing.assert_allclose(found[~zero], 1 / (1 - rate), rtol=1e-6)
            assert stats.binomtest(int(zero.sum()), zero.size, rate).pvalue > _P
            for axis in (0, 1):
                spread = ((zero.sum(axis) - rate * zero.shape[axis]) ** 2).sum() / (
                    rate * (1 - rate) * zero.shape[axis]
                )
                assert _P < stats.chi2(zero.shape[1 - axis]).sf(spread) < 1 - _P
            masks.append(zero.ravel())
    assert abs(np.corrcoef(masks) - np.eye(4)).max() < stats.norm.isf(_P / 12) / masks[0].size ** 0.5
