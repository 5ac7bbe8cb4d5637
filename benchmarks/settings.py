"""What the benchmarks measure, as data: contestants that take turns in one run, and the runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from common.recipes.spec import Optimizer, Precision, Preprocess, Recipe

Loop = Literal["torch", "flax", "plain_torch", "plain_flax", "tutorial"]
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Contestant:
    """One training loop in a process of its own.

    Attributes:
        loop: `torch` and `flax` are this project's; `plain_torch` is torchvision's `alexnet` (or the same layers for
            small images) trained on one fixed tensor, `plain_flax` a jitted step on one fixed tensor, `tutorial` a
            DataLoader with transforms of each image on the host.
        arch: a name of `common.arch.zoo.ARCHS`.
        batch: examples in a step.
        precision: `tf32` is float32 whose products are rounded to TF32 on the way in (GPU only).
        side: of the input in pixels, if not the architecture's; needs an adaptive pool.
        stored: side of the images as stored, which the device resizes; None: as large as the input.
        compile: with torch.compile (`torch` alone).
        data: `fed` through the whole input path, or one `fixed` batch that is on the device already.
        pause: seconds by which every batch is late: a planted fault.
        width: hidden layers and convolutions divided by this, for tests.
        device: to compute on.
    """

    loop: Loop
    arch: str
    batch: int
    precision: Precision | Literal["tf32"] = "float32"
    side: int | None = None
    stored: int | None = None
    compile: bool = False
    data: Literal["fed", "fixed"] = "fed"
    pause: float = 0.0
    width: int = 1
    device: Device = "cpu"

    @property
    def name(self) -> str:
        """In the table."""
        return " ".join([self.loop, *(["compiled"] if self.compile else []), *(["late"] if self.pause else [])])

    @property
    def recipe(self) -> Recipe:
        """SGD with momentum and decay, as every plain loop has it, and the augmentation of its kind of images."""
        crops = self.arch.startswith("alexnet_cifar")
        preprocess = Preprocess(flip=True, pad=4 * crops, crop=32 if crops else None, mean=(0.5,), std=(0.25,))
        return Recipe(
            name="bench",
            dataset="pixels",
            arch=self.arch,
            init="torch",
            epochs=1,
            batch_size=self.batch,
            optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
            preprocess=replace(preprocess, resize=self.side if self.stored else None),
            precision="float32" if self.precision == "tf32" else self.precision,
        )


@dataclass(frozen=True)
class Heat:
    """Contestants that take turns: each one's median is divided by that of the `base`, the first.

    Attributes:
        contestants: in their order.
        rounds: of turns.
        steps: of one contestant in one turn, timed together; the first turn is not counted.
        together: start all at once, which saves time and makes their first steps late.
    """

    contestants: tuple[Contestant, ...]
    rounds: int = 5
    steps: int = 1
    together: bool = False


def _heat(base: Contestant, *others: Contestant, rounds: int = 5, steps: int = 1) -> Heat:
    return Heat((base, *others), rounds, steps, together=base.device == "gpu")


_ALEXNET = Contestant("plain_torch", "alexnet", 64)
_CIFAR = Contestant("tutorial", "alexnet_cifar", 128)
_TINY = Contestant("tutorial", "alexnet_cifar", 4, width=32)


def ours(base: Contestant, *precisions: Precision | Literal["tf32"], compile: bool = False) -> tuple[Contestant, ...]:  # noqa: A002
    """Both frameworks in these precisions."""
    compiled: list[tuple[Loop, bool]] = [("torch", True)] if compile else []
    flags: list[tuple[Loop, bool]] = [("torch", False), *compiled, ("flax", False)]
    return tuple(replace(base, loop=loop, precision=p, compile=flag) for p in precisions for loop, flag in flags)


def _growth(device: Device, batches: tuple[int, ...], sides: tuple[int, ...], precision: Precision) -> tuple[Heat, ...]:
    base = Contestant("torch", "alexnet", 0, precision, device=device)
    by_batch = [ours(replace(base, batch=batch), precision) for batch in batches]
    by_side = [ours(replace(base, batch=batches[-2], side=side), precision) for side in sides]
    return tuple(Heat(pair, rounds=3, together=device == "gpu") for pair in by_batch + by_side)


_GPU = Contestant("plain_torch", "alexnet", 1024, device="gpu")
_FINETUNE = Contestant("torch", "alexnet", 1024, "bfloat16", side=224, stored=32, device="gpu")

SUITES: dict[str, tuple[Heat, ...]] = {
    "tiny": (
        Heat((*ours(_TINY, "float32"), replace(_TINY, loop="torch", pause=0.3)), rounds=2, steps=3, together=True),
        Heat((_TINY, replace(_TINY, loop="plain_flax")), rounds=2, steps=2, together=True),
    ),
    "cpu": (
        _heat(_ALEXNET, replace(_ALEXNET, loop="plain_flax"), *ours(_ALEXNET, "float32", "bfloat16")),
        _heat(
            _CIFAR,
            replace(_CIFAR, loop="plain_flax"),
            *ours(_CIFAR, "float32", "bfloat16"),
            rounds=7,
            steps=4,
        ),
    ),
    "growth": _growth("cpu", (8, 16, 32, 64), (96, 160, 288), "float32"),
    "gpu": (
        _heat(
            replace(_GPU, precision="bfloat16"),
            replace(_GPU, loop="plain_flax", precision="bfloat16"),
            *ours(replace(_GPU, data="fixed"), "bfloat16", compile=True),
            *ours(_GPU, "bfloat16", compile=True),
            steps=20,
        ),
        _heat(_FINETUNE, *ours(_FINETUNE, "bfloat16", compile=True)[1:], steps=20),
        _heat(*ours(replace(_FINETUNE, batch=128), "bfloat16", compile=True), steps=100),
        _heat(*ours(_GPU, "float32", "tf32", compile=True), rounds=3, steps=10),
    ),
    "growth-gpu": _growth("gpu", (64, 256, 1024), (128, 288), "bfloat16"),
}
