"""What the benchmarks measure, as data: contestants that take turns in one run, and the runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from common.recipes.spec import Optimizer, Precision, Preprocess, Recipe

Loop = Literal["torch", "flax", "plain_torch", "plain_flax", "strong_torch", "strong_flax", "tutorial"]
Device = Literal["cpu", "gpu"]
Data = Literal["fed", "fixed"]


@dataclass(frozen=True)
class Contestant:
    """One training loop on one kind of input.

    Attributes:
        loop: `torch` and `flax` are this project's; `plain_torch` is torchvision's `alexnet` (or the same layers for
            small images) trained on one fixed tensor, `plain_flax` a jitted step on one fixed tensor, `strong_torch`
            and `strong_flax` the same with what is known to make them fast, `tutorial` a DataLoader with transforms
            of each image on the host.
        arch: a name of `common.arch.zoo.ARCHS`.
        batch: examples in a step.
        precision: as a recipe's.
        side: of the input in pixels, if not the architecture's; needs an adaptive pool.
        stored: side of the images as stored, which the device resizes; None: as large as the input.
        compile: with torch.compile (`torch` alone).
        data: `fed` through the whole input path, or one `fixed` batch that is on the device already, as the plain and
            strong loops have it whatever is said.
        pause: seconds by which every batch is late: a planted fault.
        width: hidden layers and convolutions divided by this, for tests.
        device: to compute on.
    """

    loop: Loop
    arch: str
    batch: int
    precision: Precision = "float32"
    side: int | None = None
    stored: int | None = None
    compile: bool = False
    data: Data = "fed"
    pause: float = 0.0
    width: int = 1
    device: Device = "cpu"

    @property
    def name(self) -> str:
        """In the table."""
        return " ".join([self.loop, *(["compiled"] if self.compile else []), *(["late"] if self.pause else [])])

    @property
    def process(self) -> Contestant:
        """What runs: contestants that differ in nothing but the input share a process."""
        return replace(self, data="fed")

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
            precision=self.precision,
        )


@dataclass(frozen=True)
class Heat:
    """Contestants that take turns: each one's median is divided by that of the `base`, the first.

    Attributes:
        name: by which it is filed.
        contestants: in their order. They are all alive at once, so on a GPU they must fit into its memory together:
            eight programs of `alexnet` at batch 1024 take up to some 60 GB, by estimate.
        rounds: of turns.
        steps: of one contestant in one turn, timed together; the first turn is not counted.
        seconds: that it needs, by estimate: about 12 to start PyTorch, 20 Flax, 30 what PyTorch compiles. It is left
            out where less time is left.
        profile: tell the kernels of a few steps of each process when the turns are over.
    """

    name: str
    contestants: tuple[Contestant, ...]
    rounds: int = 5
    steps: int = 1
    seconds: float = 0.0
    profile: bool = False


@dataclass(frozen=True)
class Goal:
    """A test accuracy to reach.

    Attributes:
        recipe: a name.
        accuracy: of the test split.
        runs: with seeds 0, 1, ...
        epochs: in place of the recipe's.
        examples: of the training split, for tests; None: all.
        seconds: that both frameworks need, by estimate.
    """

    recipe: str
    accuracy: float
    runs: int = 5
    epochs: int | None = None
    examples: int | None = None
    seconds: float = 0.0


GOALS = {
    "cifar10_fast": Goal("cifar10_fast", 0.78, seconds=140),
    "fashion_mnist_fast": Goal("fashion_mnist_fast", 0.866, seconds=140),
    "tiny": Goal("digits", 0.15, runs=2, epochs=1, examples=72),
}

_ALEXNET = Contestant("plain_torch", "alexnet", 64)
_CIFAR = Contestant("tutorial", "alexnet_cifar", 128)
_TINY = Contestant("tutorial", "alexnet_cifar", 4, width=32)
_GPU = Contestant("plain_torch", "alexnet", 1024, "bfloat16", data="fixed", device="gpu")
_SMALL = replace(_GPU, loop="strong_torch", arch="alexnet_cifar", batch=512)
_FINETUNE = Contestant("torch", "alexnet", 128, "bfloat16", side=224, stored=32, device="gpu")


def ours(base: Contestant, *precisions: Precision, eager: bool = True) -> tuple[Contestant, ...]:
    """Both frameworks in these precisions, PyTorch eager or compiled."""
    loops: tuple[tuple[Loop, bool], ...] = (("torch", not eager), ("flax", False))
    return tuple(replace(base, loop=loop, precision=p, compile=flag) for p in precisions for loop, flag in loops)


def both(*contestants: Contestant) -> tuple[Contestant, ...]:
    """Each on a fixed batch and fed."""
    inputs: tuple[Data, ...] = ("fixed", "fed")
    return tuple(replace(contestant, data=data) for contestant in contestants for data in inputs)


def others(base: Contestant, *loops: Loop) -> tuple[Contestant, ...]:
    """The same for loops that are not ours."""
    return tuple(replace(base, loop=loop) for loop in loops)


def _growth(device: Device, batches: tuple[int, ...], sides: tuple[int, ...], precision: Precision) -> tuple[Heat, ...]:
    base = Contestant("torch", "alexnet", 0, precision, device=device)
    settings = [replace(base, batch=batch) for batch in batches]
    settings += [replace(base, batch=batches[-2], side=side) for side in sides]
    names = [f"batch {setting.batch}, side {setting.side or 224}" for setting in settings]
    return tuple(Heat(name, ours(each, precision), rounds=3) for name, each in zip(names, settings, strict=True))


# Everything that a GPU is asked within nine minutes, the most important first. One process trains a program on both
# kinds of input, and the profile is taken of processes that are up already: starting them is what takes the time.
GPU: tuple[Heat | str, ...] = (
    Heat(
        "alexnet",
        (
            *others(_GPU, "plain_torch", "plain_flax", "strong_torch", "strong_flax"),
            *both(replace(_GPU, loop="torch"), *ours(_GPU, "bfloat16", eager=False)),
        ),
        steps=20,
        seconds=165,
        profile=True,
    ),
    Heat(
        "alexnet_cifar",
        (*others(_SMALL, "strong_torch", "strong_flax"), *both(*ours(_SMALL, "bfloat16", eager=False))),
        steps=100,
        seconds=90,
    ),
    "cifar10_fast",
    Heat("tf32 and float32", ours(_GPU, "tf32", "float32"), rounds=3, steps=10, seconds=75),
    Heat("fine-tuning", ours(_FINETUNE, "bfloat16", eager=False), steps=100, seconds=55),
)

_LATE = replace(_TINY, loop="torch", pause=0.3)
TINY: tuple[Heat | str, ...] = (
    Heat(
        "ours",
        (*ours(_TINY, "float32"), _LATE, replace(_TINY, loop="torch", data="fixed")),
        rounds=2,
        steps=3,
        profile=True,
    ),
    "tiny",
    Heat("others", (_TINY, *others(_TINY, "strong_torch")), rounds=2, steps=2),
)

SUITES: dict[str, tuple[Heat, ...]] = {
    "tiny": tuple(job for job in TINY if isinstance(job, Heat)),
    "cpu": (
        Heat("alexnet", (_ALEXNET, replace(_ALEXNET, loop="plain_flax"), *ours(_ALEXNET, "float32", "bfloat16"))),
        Heat(
            "alexnet_cifar",
            (_CIFAR, replace(_CIFAR, loop="plain_flax"), *ours(_CIFAR, "float32", "bfloat16")),
            rounds=7,
            steps=4,
        ),
    ),
    "growth": _growth("cpu", (8, 16, 32, 64), (96, 160, 288), "float32"),
    "gpu": tuple(job for job in GPU if isinstance(job, Heat)),
    "growth-gpu": _growth("gpu", (64, 256, 1024), (128, 288), "bfloat16"),
}
