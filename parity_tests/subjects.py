"""What faults are planted in and several processes train: small networks on real pixels, with everything on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from common.arch.spec import Arch, ConvSpec
from common.arch.zoo import ARCHS
from common.data.dataset import Dataset
from common.data.synthetic import tiles
from common.recipes.spec import Mix, Optimizer, Preprocess, Recipe, Schedule
from parity_tests.material import narrow


@dataclass(frozen=True)
class Subject:
    """What a mutant is planted in: a recipe, its architecture and its data."""

    recipe: Recipe
    arch: Arch
    data: Dataset
    edit: Callable[[torch.nn.Module], None] | None = None


def subjects() -> dict[str, Subject]:
    """Small networks on real pixels, so that a mutant takes a second or two."""
    base = Recipe(
        name="mutant",
        dataset="tiles",
        arch="alexnet_cifar",
        init="he",
        epochs=10,
        batch_size=8,
        optimizer=Optimizer(lr=0.02, momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(milestones=(1,)),
        preprocess=Preprocess(pad=4, crop=32, flip=True, pca_std=0.1, mean=(0.49, 0.48, 0.45), std=(0.2, 0.19, 0.21)),
        precision="float64",
    )
    plain = narrow(ARCHS["alexnet_cifar"])
    data = tiles(32, 3)
    data = replace(data, ids=data.ids[:: len(data) // 30][:29])  # four batches an epoch, the last one of five
    adam = replace(base, optimizer=Optimizer(name="adam", lr=1e-3, weight_decay=5e-4))
    adamw = replace(base, optimizer=Optimizer(name="adamw", lr=1e-3))
    nesterov = replace(base, optimizer=replace(base.optimizer, nesterov=True))
    everything, quick = with_everything(base), Schedule("cosine", warmup_epochs=0.5)
    clip = replace(base, optimizer=replace(base.optimizer, clip_norm=0.1))
    shrink = replace(base, preprocess=replace(base.preprocess, resize=20))
    lrn = replace(narrow(ARCHS["alexnet_lrn"]).adapt(height=67, width=67), name="lrn")
    odd = replace(narrow(ARCHS["alexnet"]), adaptive_pool=2).adapt(height=127, width=127)  # 3 x 3 reach the pool
    large = tiles(72, 3)
    large = replace(large, ids=large.ids[:: len(large) // 30][:29])

    def sized(recipe: Recipe, arch: Arch) -> Recipe:
        side = arch.image[0]
        spec = replace(recipe.preprocess, pad=0, crop=67, resize=None if side == 67 else side)
        return replace(recipe, preprocess=spec)

    return {
        "plain": Subject(base, plain, data),
        "adam": Subject(adam, plain, data),
        "adamw": Subject(adamw, plain, data),
        "nesterov": Subject(nesterov, plain, data),
        "clip": Subject(clip, plain, data),
        "shrink": Subject(shrink, plain.adapt(height=20, width=20), data),
        "ties": Subject(base, plain, data, _flatten_conv5),
        "batch norm": Subject(base, replace(plain, convs=with_norm(plain.convs)), data),
        "lrn": Subject(sized(base, lrn), lrn, large),
        "odd": Subject(sized(base, odd), odd, large),
        "everything": Subject(replace(everything, schedule=quick), plain, data),
    }


def with_everything(recipe: Recipe) -> Recipe:
    """Crops, flips, colour noise, jitter, mixing, smoothing, micro-batches, warm-up and cosine at once."""
    return replace(
        recipe,
        preprocess=replace(recipe.preprocess, brightness=0.3, contrast=0.3, saturation=0.3),
        mix=Mix(mixup=0.2, cutmix=1.0),
        label_smoothing=0.1,
        accumulate=2,
        schedule=Schedule("cosine", warmup_epochs=1, final=0.01),
    )


def _flatten_conv5(model: torch.nn.Module) -> None:
    """conv5 gives 1 everywhere, so that all maxima tie, above zero and between windows of different inputs."""
    convolution = model.get_submodule("conv5.conv")
    assert isinstance(convolution, torch.nn.Conv2d)
    assert convolution.bias is not None
    torch.nn.init.zeros_(convolution.weight)
    torch.nn.init.ones_(convolution.bias)


def with_norm(convs: tuple[ConvSpec, ...]) -> tuple[ConvSpec, ...]:
    """The same convolutions, each with batch norm instead of a bias."""
    norm = ARCHS["alexnet_bn"].convs[0].norm
    return tuple(replace(conv, bias=False, norm=norm) for conv in convs)
