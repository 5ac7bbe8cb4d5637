"""What a recipe is: hyperparameters as data, and what no run can have."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, inf, pi
from typing import Literal

from common.arch.spec import Arch, Size
from common.arch.zoo import get_arch
from common.errors import UserError

RECIPE = "recipe.json"  # what a recipe is kept as; a folder that has one is a run's
# Colour noise of one standard deviation along each principal component of ImageNet's pixels in [0, 1]: a row a
# component, a column a channel. Eigenvalues times eigenvectors, from fb.resnet.torch, datasets/imagenet.lua.
IMAGENET_PCA = (
    (0.2175 * -0.5675, 0.2175 * -0.5808, 0.2175 * -0.5836),
    (0.0188 * 0.7192, 0.0188 * -0.0045, 0.0188 * -0.6948),
    (0.0045 * 0.4009, 0.0045 * -0.8140, 0.0045 * 0.4203),
)


@dataclass(frozen=True)
class Optimizer:
    """How gradients change the parameters.

    Attributes:
        name: `sgd` with L2 decay added to the gradient before the momentum, as PyTorch's SGD; `adam` with L2 decay;
            `adamw` with decoupled decay (Loshchilov and Hutter, arXiv:1711.05101).
        lr: the base learning rate, which the schedule multiplies.
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
        return self.gamma ** sum(step >= milestone * steps_per_epoch for milestone in self.milestones)


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
        freeze_epochs: for so long the backbone's parameters stay as they are, and its optimizer's memory empty. Running
            averages of batch norm are no parameters: they go on.
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
        height, width, channels = stored or (*[self.photo_side(arch)] * 2, arch.image[2])
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


Precision = Literal["float32", "tf32", "float64", "bfloat16", "float16"]
ClassWeights = Literal["equal", "balanced"] | tuple[float, ...]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run but the machine.

    Attributes:
        name: of the run's recipe, in messages and in the name of its folder.
        dataset: to train on, by name, or folder:PATH with a folder for each class.
        arch: the architecture, adapted to the dataset's channels and classes.
        init: how the first weights are drawn.
        epochs: passes over the training split.
        batch_size: examples in one optimizer step; the last batch of an epoch may be smaller.
        optimizer, schedule, preprocess, mix, loss_scale: see their classes.
        accumulate: micro-batches whose gradients one optimizer step adds up; it divides `batch_size`. They equal one
            large batch (batch norm apart, which normalises each alone), and need less memory.
        label_smoothing: share of each label spread over all classes (Szegedy et al., arXiv:1512.00567, section 7).
        class_weights: what multiplies each class's part of the training loss, in label order (`weight` of
            `torch.nn.CrossEntropyLoss`; the sum is divided by the examples, not by their weights). `balanced` gives a
            class n / (classes * its examples), of n in the training split, as scikit-learn does; the run's recipe
            records the numbers. Evaluations count every example once.
        pretrained: start from torchvision's ImageNet weights: "all", with a fresh last layer where the classes differ,
            or the convolutions' alone, the "backbone".
        finetune: see its class.
        val_fraction: share of the training split held out to choose the best checkpoint; a folder's own validation
            split goes before it.
        patience: training stops after so many epochs that were no better on the validation split than the best before
            them; 0: it never does. The schedule stays that of all `epochs`.
        precision: of the arithmetic. `float32` and `float64` hold for everything, on every device; `tf32` is float32
            whose products a GPU rounds to TF32's ten bits on the way in; under `bfloat16` and `float16` the layers
            compute in it, while parameters, statistics, loss and optimizer stay float32 (Micikevicius et al.,
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
    class_weights: ClassWeights = "equal"
    loss_scale: LossScale = field(default_factory=LossScale)
    pretrained: Literal["no", "backbone", "all"] = "no"
    finetune: FineTune = field(default_factory=FineTune)
    val_fraction: float = 0.0
    patience: int = 0
    precision: Precision = "float32"
    seed: int = 0

    @property
    def param_dtype(self) -> Literal["float32", "float64"]:
        """The dtype of parameters, batch statistics, logits, loss and optimizer state."""
        return "float64" if self.precision == "float64" else "float32"

    @property
    def mixes(self) -> bool:
        """Whether pairs of training examples are mixed."""
        return bool(self.mix.mixup or self.mix.cutmix)

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
            ("patience", self.patience, self.patience >= 0, "at least 0"),
            ("optimizer.lr", self.optimizer.lr, 0 < self.optimizer.lr < inf, "positive and finite"),
            ("optimizer.momentum", self.optimizer.momentum, 0 <= self.optimizer.momentum < 1, "in [0, 1)"),
            ("optimizer.weight_decay", self.optimizer.weight_decay, self.optimizer.weight_decay >= 0, "at least 0"),
            ("optimizer.beta1", self.optimizer.beta1, 0 <= self.optimizer.beta1 < 1, "in [0, 1)"),
            ("optimizer.beta2", self.optimizer.beta2, 0 <= self.optimizer.beta2 < 1, "in [0, 1)"),
            ("optimizer.eps", self.optimizer.eps, 0 < self.optimizer.eps < inf, "positive and finite"),
            ("optimizer.clip_norm", self.optimizer.clip_norm, self.optimizer.clip_norm >= 0, "at least 0"),
            (
                "schedule.milestones",
                self.schedule.milestones,
                min(self.schedule.milestones, default=1) >= 1,
                "at least 1",
            ),
            ("schedule.gamma", self.schedule.gamma, 0 <= self.schedule.gamma < inf, "at least 0 and finite"),
            ("schedule.warmup_epochs", self.schedule.warmup_epochs, self.schedule.warmup_epochs >= 0, "at least 0"),
            ("schedule.final", self.schedule.final, 0 <= self.schedule.final <= 1, "in [0, 1]"),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("class_weights", self.class_weights, _are_weights(self.class_weights), "positive and finite"),
            ("mix.mixup", self.mix.mixup, self.mix.mixup >= 0, "at least 0"),
            ("mix.cutmix", self.mix.cutmix, self.mix.cutmix >= 0, "at least 0"),
            ("finetune.freeze_epochs", self.finetune.freeze_epochs, self.finetune.freeze_epochs >= 0, "at least 0"),
            ("finetune.backbone_lr", self.finetune.backbone_lr, 0 <= self.finetune.backbone_lr < inf, "at least 0"),
            ("accumulate", self.accumulate, self.accumulate >= 1, "at least 1"),
            ("loss_scale.initial", self.loss_scale.initial, 0 < self.loss_scale.initial < inf, "positive and finite"),
            ("loss_scale.growth", self.loss_scale.growth, self.loss_scale.growth >= 1, "at least 1"),
            ("loss_scale.backoff", self.loss_scale.backoff, 0 < self.loss_scale.backoff < 1, "between 0 and 1"),
            ("loss_scale.interval", self.loss_scale.interval, self.loss_scale.interval >= 1, "at least 1"),
            *(
                (f"preprocess.{name}", value, value >= 0, "at least 0")
                for name, value in vars(self.preprocess).items()
                if isinstance(value, int | float)
            ),
            ("preprocess.std", self.preprocess.std, all(s > 0 for s in self.preprocess.std), "positive"),
        )
        for name, value, holds, must in rules:
            if not holds:
                raise UserError(f"{name} is {value}; it must be {must}.")
        if self.optimizer.nesterov and not self.optimizer.momentum:
            raise UserError("optimizer.nesterov needs optimizer.momentum above 0.")
        if self.preprocess.random_resized_crop and not self.preprocess.crop:
            raise UserError("preprocess.random_resized_crop needs preprocess.crop, the side to resize to.")
        if self.preprocess.pad and not self.preprocess.crop:
            raise UserError("preprocess.pad gives a crop room, and there is none: set preprocess.crop, its side.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.batch_size % self.accumulate:
            raise UserError(f"accumulate is {self.accumulate}; it must divide batch_size, which is {self.batch_size}.")
        if self.mixes and self.batch_size < 2:
            raise UserError("mix.mixup and mix.cutmix mix pairs of examples: batch_size must be at least 2.")
        if self.schedule.name == "cosine" and self.schedule.milestones:
            raise UserError("schedule.milestones are for the step schedule; with cosine leave them empty.")
        if self.schedule.warmup_epochs >= self.epochs:
            raise UserError(
                f"schedule.warmup_epochs is {self.schedule.warmup_epochs}; it must be below epochs, which is "
                f"{self.epochs}: train more, or without a warm-up, --schedule.warmup-epochs 0."
            )
        if self.finetune.head == "all" and self.finetune != FineTune():
            raise UserError('finetune.head is "all", which leaves no backbone to freeze or slow: set last or dense.')

    def model_arch(self, stored: Size | None, classes: int) -> Arch:
        """The architecture for images stored at this size (None: photographs) and this many classes.

        Raises:
            UserError: no such architecture, or the input does not fit it.
        """
        arch = get_arch(self.arch)
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != classes:
            raise UserError(f"class_weights has {len(self.class_weights)} values for {classes} classes.")
        height, width, channels = self.preprocess.input_size(stored, arch)
        arch = arch.adapt(height=height, width=width, channels=channels, classes=classes)
        self.check_rest(arch, self.micro_batch)
        return arch

    def check_rest(self, arch: Arch, examples: int) -> None:
        """Refuse batch norm of a single value in training: PyTorch does, and in Flax everything becomes 0.

        Args:
            arch: to be trained.
            examples: in a pass; what batches leave over is a batch, too.

        Raises:
            UserError: a batch, or micro-batch, is of one example, and a norm's feature map of one pixel.
        """
        single = [layer.name for layer in arch.layers() if layer.kind == "batch_norm" and layer.output[:2] == (1, 1)]
        if single and (examples == 1 or self.micro_batch == 1 or examples % self.micro_batch == 1):
            rest = "" if self.micro_batch == 1 else f", which {examples:,} examples leave over"
            raise UserError(
                f"{arch.name}: {single[0]} has one value a channel to normalise, with batches of 1 (batch_size "
                f"{self.batch_size}, accumulate {self.accumulate}{rest}): take another batch size, or larger images."
            )


def _are_weights(weights: ClassWeights) -> bool:
    return isinstance(weights, str) or all(0 < weight < inf for weight in weights)
