"""Hyperparameters as data: one named recipe per published run. Any field can be overridden on the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import cos, inf, pi
from typing import Literal

from common.arch import Arch, Size, get_arch
from common.errors import UserError, lookup

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Colour noise of one standard deviation along each principal component of ImageNet's pixels in [0, 1]: a row a
# component, a column a channel. Eigenvalues times eigenvectors, from fb.resnet.torch, datasets/imagenet.lua.
IMAGENET_PCA = (
    (0.2175 * -0.5675, 0.2175 * -0.5808, 0.2175 * -0.5836),
    (0.0188 * 0.7192, 0.0188 * -0.0045, 0.0188 * -0.6948),
    (0.0045 * 0.4009, 0.0045 * -0.8140, 0.0045 * 0.4203),
)


@dataclass(frozen=True)
class Optimizer:
    """How gradients change the parameters. `lr` is the base rate, which the `Schedule` multiplies.

    Attributes:
        name: `sgd` with L2 decay added to the gradient before the momentum, as PyTorch's SGD; `adam` with L2 decay;
            `adamw` with decoupled decay (Loshchilov and Hutter, arXiv:1711.05101).
        weight_decay: on every parameter; without `decay_biases` on kernels alone.
        decay_biases: whether biases and batch norm's scale and shift decay too.
        momentum, nesterov: for `sgd`.
        beta1, beta2, eps: for `adam` and `adamw`.
        clip_norm: gradients are scaled down to this norm over all parameters; 0 leaves them alone.
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_biases: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """The learning rate's factor at each optimizer step; one definition for both frameworks.

    Attributes:
        name: `step` multiplies the rate by `gamma` after each milestone; `cosine` lets it fall to `final` along half a
            period over the epochs after the warm-up (Loshchilov and Hutter, arXiv:1608.03983, without restarts).
        milestones: epochs after which `step` multiplies, counted from the start of the run.
        gamma: the factor of `step`.
        final: the factor at the end of `cosine`.
        warmup_epochs: the rate first rises in equal steps to its full value (Goyal et al., arXiv:1706.02677).
    """

    name: Literal["step", "cosine"] = "step"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    final: float = 0.0
    warmup_epochs: float = 0.0

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """What multiplies the base rate at optimizer step `step`, counted from 0, in a run of `epochs`."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.name == "cosine":
            done = min((step - warmup) / max(epochs * steps_per_epoch - warmup, 1), 1.0)
            return self.final + (1 - self.final) * (1 + cos(pi * done)) / 2
        epoch = step // steps_per_epoch
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class LossScale:
    """Dynamic loss scaling for float16, as `torch.amp.GradScaler` does it.

    Attributes:
        initial: the first scale.
        growth: multiplies the scale after `interval` steps in a row without overflow.
        backoff: multiplies it after a step with infinite or NaN gradients, which is left out.
        interval: in optimizer steps.
    """

    initial: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000


@dataclass(frozen=True)
class Mix:
    """Pairs of training examples mixed with their labels; with both on, either is drawn for each example.

    Attributes:
        mixup: pixels are averaged with weights from Beta(mixup, mixup) (Zhang et al., arXiv:1710.09412); 0 is off.
        cutmix: a box of the partner's pixels is pasted, whose share of the area follows Beta(cutmix, cutmix) (Yun et
            al., arXiv:1905.04899); 0 is off.
    """

    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class FineTune:
    """How a network that starts from given weights is trained.

    Attributes:
        head: the layers trained in full: `all`, the `dense` ones or the `last` one. The others are the backbone.
        freeze_epochs: for so long the backbone stays as it is, and its optimizer's memory empty.
        backbone_lr: multiplies the backbone's learning rate.
    """

    head: Literal["all", "dense", "last"] = "all"
    freeze_epochs: int = 0
    backbone_lr: float = 1.0


@dataclass(frozen=True)
class Preprocess:
    """From stored pixels to the model's input, in the order of the fields.

    Attributes:
        host_resize: photographs of differing sizes are resized on the host so that the shorter side has this many
            pixels (bilinear, antialiased), and their central square is kept.
        random_resized_crop: training images instead give a random box of 8 to 100 % of their area and an aspect
            ratio of 3/4 to 4/3, resized to `crop` (torchvision's `RandomResizedCrop`): photographs of differing sizes
            on the host, antialiased, images of one size on the device, bilinear.
        pad: zeros added on every side before the crop, which gives the random crop room.
        crop: side of the square crop; at random in training, central in evaluation.
        flip: mirror half of the training images.
        resize: side to which the device resizes (bilinear, half-pixel centres, no antialiasing).
        brightness, contrast, saturation: each changed by a factor from 1 - value to 1 + value, in this order, in
            training (torchvision's `ColorJitter`, which shuffles the three).
        pca_std: standard deviation of the colour noise along the principal components of ImageNet's pixels
            (2012 paper, section 4.1), in training.
        mean, std: subtracted from and divided into pixels in [0, 1]; one value for each channel or one for all.
    """

    host_resize: int | None = None
    random_resized_crop: bool = False
    pad: int = 0
    crop: int | None = None
    flip: bool = False
    resize: int | None = None
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    pca_std: float = 0.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def input_size(self, stored: Size | None, arch: Arch) -> Size:
        """The model's input (height, width, channels) for images stored at this size (None: photographs).

        Raises:
            UserError: a field does not fit the images.
        """
        height, width, channels = stored or (*[self.photo_side(arch)] * 2, 3)
        if self.crop:
            if self.crop > min(height, width) + 2 * self.pad:
                raise UserError(f"preprocess.crop is {self.crop}, larger than the padded {height}x{width} images.")
            height = width = self.crop
        if self.resize:
            height = width = self.resize
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise UserError(f"preprocess.{name} has {len(values)} values for images of {channels} channel(s).")
        for name, why in (("pca_std", "colour noise"), ("saturation", "a change of colour")):
            if getattr(self, name) and channels != 3:
                raise UserError(f"preprocess.{name} is {why}: it needs 3 channels, not {channels}.")
        return height, width, channels

    def photo_side(self, arch: Arch) -> int:
        """The side of the square that a photograph becomes on the host, in pixels."""
        return self.host_resize or self.crop or self.resize or arch.image[0]


Precision = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but the machine.

    Attributes:
        name: its key in `RECIPES`.
        dataset: a name of `common.datasets.DATASETS` or "folder:PATH".
        arch: a name of `common.arch.ARCHS`, adapted to the dataset's channels and classes.
        init: a name of `common.initializers.INITS`.
        epochs: passes over the training split.
        batch_size: examples in one optimizer step; the last batch of an epoch may be smaller.
        optimizer, schedule, preprocess, mix, loss_scale: see their classes.
        accumulate: micro-batches whose gradients one optimizer step adds up; it divides `batch_size`. They equal one
            large batch (batch norm apart, which normalises each alone), and need less memory.
        label_smoothing: share of each label spread over all classes (Szegedy et al., arXiv:1512.00567, section 7).
        pretrained: start from torchvision's ImageNet weights: "all", with a fresh last layer where the classes differ,
            or the convolutions' alone, the "backbone".
        finetune: see its class.
        val_fraction: share of the training split held out to choose the best checkpoint.
        precision: of the arithmetic. `float32` and `float64` hold for everything; under `bfloat16` and `float16` the
            layers compute in it, while parameters, statistics, loss and optimizer stay float32 (Micikevicius et al.,
            "Mixed precision training", arXiv:1710.03740).
        seed: of every random number of the run.
    """

    name: str
    dataset: str
    arch: str
    init: str
    epochs: int
    batch_size: int
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    preprocess: Preprocess = field(default_factory=Preprocess)
    mix: Mix = field(default_factory=Mix)
    accumulate: int = 1
    label_smoothing: float = 0.0
    loss_scale: LossScale = field(default_factory=LossScale)
    pretrained: Literal["no", "backbone", "all"] = "no"
    finetune: FineTune = field(default_factory=FineTune)
    val_fraction: float = 0.0
    precision: Precision = "float32"
    seed: int = 0

    @property
    def param_dtype(self) -> Literal["float32", "float64"]:
        """The dtype of parameters, batch statistics, logits, loss and optimizer state."""
        return "float64" if self.precision == "float64" else "float32"

    @property
    def mixed_precision(self) -> bool:
        """Whether the layers compute in less than the parameters' dtype."""
        return self.precision in ("bfloat16", "float16")

    @property
    def micro_batch(self) -> int:
        """Examples that pass through the network at once."""
        return self.batch_size // self.accumulate

    def head_layers(self, arch: Arch) -> frozenset[str]:
        """The layers that are trained at the full rate from the start: all, unless the recipe fine-tunes."""
        dense = [name for name, _ in arch.named_dense()]
        if self.finetune.head == "all":
            return frozenset(dense + [name for name, _ in arch.named_convs()])
        return frozenset(dense if self.finetune.head == "dense" else dense[-1:])

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        return self.optimizer.lr * self.schedule.factor(step, steps_per_epoch, self.epochs)

    def check(self) -> None:
        """Refuse values that no run can have.

        Raises:
            UserError: names the field, its value and what it must be.
        """
        rules = (
            ("epochs", self.epochs, self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2**32 - 1"),
            ("val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "in [0, 1)"),
            ("optimizer.lr", self.optimizer.lr, 0 < self.optimizer.lr < inf, "positive and finite"),
            ("optimizer.momentum", self.optimizer.momentum, 0 <= self.optimizer.momentum < 1, "in [0, 1)"),
            ("optimizer.weight_decay", self.optimizer.weight_decay, self.optimizer.weight_decay >= 0, "at least 0"),
            ("optimizer.clip_norm", self.optimizer.clip_norm, self.optimizer.clip_norm >= 0, "at least 0"),
            ("schedule.warmup_epochs", self.schedule.warmup_epochs, self.schedule.warmup_epochs >= 0, "at least 0"),
            ("schedule.final", self.schedule.final, 0 <= self.schedule.final <= 1, "in [0, 1]"),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("mix.mixup", self.mix.mixup, self.mix.mixup >= 0, "at least 0"),
            ("mix.cutmix", self.mix.cutmix, self.mix.cutmix >= 0, "at least 0"),
            ("finetune.freeze_epochs", self.finetune.freeze_epochs, self.finetune.freeze_epochs >= 0, "at least 0"),
            ("finetune.backbone_lr", self.finetune.backbone_lr, 0 <= self.finetune.backbone_lr < inf, "at least 0"),
            ("accumulate", self.accumulate, self.accumulate >= 1, "at least 1"),
            ("loss_scale.initial", self.loss_scale.initial, 0 < self.loss_scale.initial < inf, "positive and finite"),
            ("loss_scale.growth", self.loss_scale.growth, self.loss_scale.growth >= 1, "at least 1"),
            ("loss_scale.backoff", self.loss_scale.backoff, 0 < self.loss_scale.backoff < 1, "between 0 and 1"),
            ("loss_scale.interval", self.loss_scale.interval, self.loss_scale.interval >= 1, "at least 1"),
            ("preprocess.brightness", self.preprocess.brightness, self.preprocess.brightness >= 0, "at least 0"),
            ("preprocess.contrast", self.preprocess.contrast, self.preprocess.contrast >= 0, "at least 0"),
            ("preprocess.saturation", self.preprocess.saturation, self.preprocess.saturation >= 0, "at least 0"),
            ("preprocess.pad", self.preprocess.pad, self.preprocess.pad >= 0, "at least 0"),
            ("preprocess.std", self.preprocess.std, all(s > 0 for s in self.preprocess.std), "positive"),
        )
        for name, value, holds, must in rules:
            if not holds:
                raise UserError(f"{name} is {value}; it must be {must}.")
        if self.optimizer.nesterov and not self.optimizer.momentum:
            raise UserError("optimizer.nesterov needs optimizer.momentum above 0.")
        if self.preprocess.random_resized_crop and not self.preprocess.crop:
            raise UserError("preprocess.random_resized_crop needs preprocess.crop, the side to resize to.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.batch_size % self.accumulate:
            raise UserError(f"accumulate is {self.accumulate}; it must divide batch_size, which is {self.batch_size}.")
        if (self.mix.mixup or self.mix.cutmix) and self.batch_size < 2:
            raise UserError("mix.mixup and mix.cutmix mix pairs of examples: batch_size must be at least 2.")
        if self.schedule.name == "cosine" and self.schedule.milestones:
            raise UserError("schedule.milestones are for the step schedule; with cosine leave them empty.")
        if self.schedule.warmup_epochs >= self.epochs:
            raise UserError(f"schedule.warmup_epochs is {self.schedule.warmup_epochs}; it must be below epochs.")
        if self.finetune.head == "all" and self.finetune != FineTune():
            raise UserError('finetune.head is "all", which leaves no backbone to freeze or slow: set last or dense.')

    def model_arch(self, stored: Size | None, classes: int) -> Arch:
        """The architecture for images stored at this size (None: photographs) and this many classes.

        Raises:
            UserError: no such architecture, or the input does not fit it.
        """
        arch = get_arch(self.arch)
        height, width, channels = self.preprocess.input_size(stored, arch)
        return arch.adapt(height=height, width=width, channels=channels, classes=classes)


RECIPES: dict[str, Recipe] = {}
ABOUT: dict[str, str] = {}
DEFAULT = "digits"


def register(build: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Enter a recipe in `RECIPES` under its function's name, and its docstring in `ABOUT`."""
    RECIPES[build.__name__] = build()
    ABOUT[build.__name__] = build.__doc__ or ""
    return build


def get_recipe(name: str) -> Recipe:
    """Look up a named recipe.

    Raises:
        UserError: there is none of this name; the message names the nearest.
    """
    return lookup(RECIPES, name, "recipe")


@register
def digits() -> Recipe:
    """The default: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels resized to 32 x 32 on the device.

    Source: ours; the dataset is the UCI "Optical Recognition of Handwritten Digits" test set, which scikit-learn
    carries. Expect at least 97 % of the 360 test images within 90 s of training on two CPU cores.
    """
    return Recipe(
        name="digits",
        dataset="digits",
        arch="alexnet_cifar",
        init="he",
        epochs=8,
        batch_size=64,
        optimizer=Optimizer(name="adamw", lr=3e-4, weight_decay=0.01),
        schedule=Schedule(milestones=(6,)),
        preprocess=Preprocess(resize=32, mean=(0.5,), std=(0.5,)),
    )


@register
def imagenet() -> Recipe:
    """torchvision's reference run, `references/classification/train.py --model alexnet --lr 1e-2`.

    Source: torchvision's model page and references: SGD 0.01, momentum 0.9, weight decay 1e-4, x0.1 every 30 of 90
    epochs, random resized crop, flip, batch 256 in all. Published: top-1 56.522, top-5 79.066 (%).
    """
    return Recipe(
        name="imagenet",
        dataset="imagenet2012",
        arch="alexnet",
        init="torch",
        epochs=90,
        batch_size=256,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(milestones=(30, 60)),
        preprocess=Preprocess(
            host_resize=256, random_resized_crop=True, crop=224, flip=True, mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
    )


@register
def imagenet_2012() -> Recipe:
    """The paper's own run.

    Source: Krizhevsky et al., NIPS 2012, sections 4.1 and 5: 227 x 227 crops of the central 256 x 256, flips, PCA
    colour noise of standard deviation 0.1, batch 128, momentum 0.9, weight decay 5e-4, rate 0.01 divided by 10 three
    times over roughly 90 epochs "when the validation error stopped improving": here after epochs 30, 50 and 70.
    Pixels keep the paper's scale of 0 to 255, their mean subtracted. Published: top-1 error 40.7 %, top-5 18.2 %
    for one such network, averaging ten crops.
    """
    return Recipe(
        name="imagenet_2012",
        dataset="imagenet2012",
        arch="alexnet_2012",
        init="normal_2012",
        epochs=90,
        batch_size=128,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(milestones=(30, 50, 70)),
        preprocess=Preprocess(
            host_resize=256, crop=227, flip=True, pca_std=0.1, mean=IMAGENET_MEAN, std=(1 / 255,) * 3
        ),
    )


@register
def cifar10() -> Recipe:
    """CIFAR-10 at 32 x 32, as the tutorials train it, on the network that their classifier belongs to.

    Source: the tutorials' settings: SGD 0.01, momentum 0.9, weight decay 5e-4, x0.1 every 30 of 100 epochs, crop
    with padding 4, flip, batch 128. They expect 75 to 80 %, of a network that cannot run as printed.
    """
    return Recipe(
        name="cifar10",
        dataset="cifar10",
        arch="alexnet_cifar",
        init="kaiming",
        epochs=100,
        batch_size=128,
        optimizer=Optimizer(lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(milestones=(30, 60, 90)),
        preprocess=Preprocess(
            pad=4,
            crop=32,
            flip=True,
            mean=(0.4914, 0.4822, 0.4465),
            # The tutorials' figures: the mean of each image's own deviation. The pixels' is (0.247, 0.243, 0.262).
            std=(0.2023, 0.1994, 0.2010),
        ),
    )


@register
def cifar10_finetune() -> Recipe:
    """torchvision's ImageNet weights with a new last layer, all of it trained on CIFAR-10 at 224 x 224.

    Source: a published tutorial's run: AdamW 1e-5, weight decay 0.01, batch 128, no augmentation, 30 epochs.
    Published test accuracy: 0.8324 after epoch 1, 0.9203 at best (epoch 29).
    """
    return Recipe(
        name="cifar10_finetune",
        dataset="cifar10",
        arch="alexnet",
        init="torch",
        epochs=30,
        batch_size=128,
        optimizer=Optimizer(name="adamw", lr=1e-5, weight_decay=0.01),
        preprocess=Preprocess(resize=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        pretrained="all",
    )


@register
def cifar10_finetune_backbone() -> Recipe:
    """torchvision's convolutions with a fresh classifier, which is trained alone for two epochs, then all of it.

    Source: ours; the schedule that fine-tuning guides describe: backbone frozen, then at a tenth of the rate.
    Published with all weights carried over: 0.9203.
    """
    return replace(
        cifar10_finetune(),
        name="cifar10_finetune_backbone",
        epochs=10,
        optimizer=Optimizer(name="adamw", lr=1e-4, weight_decay=0.01),
        schedule=Schedule("cosine", warmup_epochs=1),
        pretrained="backbone",
        finetune=FineTune("dense", freeze_epochs=2, backbone_lr=0.1),
    )


@register
def cifar10_best() -> Recipe:
    """What the techniques are worth on CIFAR-10: an AlexNet with batch norm, trained as networks are today.

    Source: ours; its settings follow He et al., "Bag of tricks", arXiv:1812.01187, sections 3 and 5: cosine, warm-up,
    no decay on biases, label smoothing, mixing. Aims at 90 %.
    """
    return replace(
        cifar10(),
        name="cifar10_best",
        arch="alexnet_cifar_best",
        init="he",
        optimizer=Optimizer(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_biases=False),
        schedule=Schedule("cosine", warmup_epochs=5),
        mix=Mix(mixup=0.2, cutmix=1.0),
        label_smoothing=0.1,
        precision="bfloat16",
    )


@register
def fashion_mnist() -> Recipe:
    """Fashion-MNIST on the book's AlexNet, 28 x 28 resized to 224 x 224.

    Source: Dive into Deep Learning, "Deep Convolutional Neural Networks (AlexNet)", Gluon version: Xavier
    initialisation, pixels in [0, 1], plain SGD 0.01, batch 128. Published test accuracy after the first five epochs:
    0.756, 0.804, 0.835, 0.854, 0.866.
    """
    return Recipe(
        name="fashion_mnist",
        dataset="fashion_mnist",
        arch="alexnet_fashion",
        init="xavier",
        epochs=10,
        batch_size=128,
        optimizer=Optimizer(lr=0.01),
        preprocess=Preprocess(resize=224),
    )


@register
def fashion_mnist_lenet() -> Recipe:
    """LeNet on Fashion-MNIST at 28 x 28, for comparison with `fashion_mnist`, whose other settings it keeps.

    Source: as `fashion_mnist`. A plain PyTorch loop reached 0.686, 0.745, 0.723 and 0.769 in its first epochs.
    """
    return replace(fashion_mnist(), name="fashion_mnist_lenet", arch="lenet", preprocess=Preprocess())


@register
def fashion_mnist_best() -> Recipe:
    """The same on Fashion-MNIST, at its 28 x 28 padded to 32 x 32. Aims at 94 %.

    Source: ours; as `cifar10_best`, with milder mixing: the images are simpler.
    """
    return replace(
        cifar10_best(),
        name="fashion_mnist_best",
        dataset="fashion_mnist",
        epochs=50,
        preprocess=Preprocess(pad=4, crop=32, flip=True, mean=(0.2860,), std=(0.3530,)),
        mix=Mix(cutmix=1.0),
    )


@register
def cifar10_fast() -> Recipe:
    """CIFAR-10 at 32 x 32 in few seconds on a GPU. Aims at 78 %, where the tutorials' runs end.

    Source: ours; `cifar10_best` with a larger batch and rate, and neither mixing nor the epochs that it needs. Not yet
    run to its end.
    """
    return replace(
        cifar10_best(),
        name="cifar10_fast",
        epochs=10,
        batch_size=512,
        optimizer=Optimizer(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_biases=False),
        schedule=Schedule("cosine", warmup_epochs=2),
        mix=Mix(),
    )


@register
def fashion_mnist_fast() -> Recipe:
    """The same on Fashion-MNIST. Aims at the 86.6 % that the book's AlexNet reaches after its fifth epoch.

    Source: ours; as `cifar10_fast`. Not yet run to its end.
    """
    return replace(
        cifar10_fast(),
        name="fashion_mnist_fast",
        dataset="fashion_mnist",
        epochs=4,
        schedule=Schedule("cosine", warmup_epochs=1),
        preprocess=fashion_mnist_best().preprocess,
    )
