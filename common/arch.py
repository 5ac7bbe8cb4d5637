"""The architectures as data: every number with its source, shapes and costs in plain Python.

Sizes are (height, width, channels) whatever the framework; each framework lays them out in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from common.errors import UserError, lookup

Size = tuple[int, int, int]


@dataclass(frozen=True)
class MaxPool:
    """Maximum over `size` x `size` windows; padding, if any, never wins (it counts as minus infinity)."""

    size: int
    stride: int
    padding: int = 0


@dataclass(frozen=True)
class AvgPool:
    """Mean over `window` x `window` windows."""

    window: int
    stride: int
    padding: ClassVar[int] = 0

    @property
    def size(self) -> int:
        """As `MaxPool` calls it; a file tells the two apart by their fields."""
        return self.window


@dataclass(frozen=True)
class LocalResponseNorm:
    """x / (k + alpha * sum of squares over `size` neighbouring channels) ** beta, as section 3.3 of the 2012 paper.

    `alpha` multiplies the sum. `torch.nn.LocalResponseNorm` takes the mean instead, so its alpha is `size` times ours.
    """

    size: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation; `momentum` is the weight of the new batch in the running statistics, as PyTorch means it."""

    momentum: float = 0.1
    eps: float = 1e-5


After = MaxPool | AvgPool | LocalResponseNorm


@dataclass(frozen=True)
class ConvSpec:
    """One block: convolution, batch norm if any, activation, then `after` in its order.

    Attributes:
        features: output channels.
        kernel, stride, padding: of the square kernel, in pixels; padding on every side.
        groups: independent groups of channels (the 2012 network's two GPUs).
        bias: whether the convolution adds one.
        norm: batch norm between the convolution and the activation.
        after: pools and local response norms, in order (the 2012 paper normalises before it pools).
    """

    features: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    bias: bool = True
    norm: BatchNorm | None = None
    after: tuple[After, ...] = ()


@dataclass(frozen=True)
class DenseSpec:
    """One fully connected layer; `dropout` is the rate applied to its input."""

    features: int
    dropout: float = 0.0


@dataclass(frozen=True)
class Layer:
    """What one layer of an `Arch` makes: its output (height, width, channels), parameters and multiply-adds."""

    name: str
    kind: str
    output: Size
    parameters: int = 0
    multiply_adds: int = 0


@dataclass(frozen=True)
class Arch:
    """A network as data. `AlexNet(arch)` takes five blocks and three dense layers, `LeNet(arch)` two and two.

    Attributes:
        name: its key in `ARCHS`, or any name for your own.
        image: the input it is built for, (height, width, channels).
        convs: the convolution blocks `conv1`, `conv2`, ...
        dense: the layers after them, numbered on (`fc6`, `fc7`, `fc8`); the last one gives the logits,
            the activation follows each of the others.
        adaptive_pool: average the last feature map into this many rows and columns, which lets the network
            take images of any size that is large enough; None flattens it as it is.
        activation: after every layer but the last; the paper's is `relu` (section 3.1).

    Raises:
        UserError: the image is too small for the layers, or a field has an impossible value.
    """

    name: str
    image: Size
    convs: tuple[ConvSpec, ...]
    dense: tuple[DenseSpec, ...]
    adaptive_pool: int | None = None
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"

    def __post_init__(self) -> None:
        self._check_fields()
        self.layers()

    def _check_fields(self) -> None:
        if not self.convs or not self.dense:
            raise UserError(f"{self.name}: it needs at least one convolution and one dense layer.")
        windows = [(name, window) for name, spec in self.named_convs() for window in (spec, *spec.after)]
        counts = [(f"{name}'s {key}", value) for name, window in windows for key, value in _counts(window).items()]
        counts += [(f"{name}'s features", dense.features) for name, dense in self.named_dense()]
        for name, value in [*zip(("height", "width", "channels"), self.image, strict=True), *counts]:
            if value < 1:
                raise UserError(f"{self.name}: {name} is {value}; it must be at least 1.")
        channels = self.image[2]
        for name, spec in self.named_convs():
            if channels % spec.groups or spec.features % spec.groups:
                raise UserError(
                    f"{self.name}: {name} cannot split {channels} input and {spec.features} output channels "
                    f"into {spec.groups} groups."
                )
            channels = spec.features
        for name, dense in self.named_dense():
            if not 0 <= dense.dropout < 1:
                raise UserError(f"{self.name}: the dropout before {name} is {dense.dropout}, not in [0, 1).")

    def named_convs(self) -> Iterator[tuple[str, ConvSpec]]:
        """Yield ("conv1", spec), ("conv2", spec), ..."""
        for i, spec in enumerate(self.convs, 1):
            yield f"conv{i}", spec

    def named_dense(self) -> Iterator[tuple[str, DenseSpec]]:
        """Yield ("fc6", spec), ... numbered on from the convolutions."""
        for i, spec in enumerate(self.dense, len(self.convs) + 1):
            yield f"fc{i}", spec

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.dense[-1].features

    @property
    def feature_size(self) -> Size:
        """What the first dense layer flattens, (height, width, channels): its inputs are their product."""
        return next(layer.output for layer in reversed(self.layers()) if layer.kind != "dense")

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(layer.parameters for layer in self.layers())

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward pass of one image, convolutions and dense layers only."""
        return sum(layer.multiply_adds for layer in self.layers())

    def layers(self, height: int | None = None, width: int | None = None) -> list[Layer]:
        """List every layer with its output size, parameters and multiply-adds.

        Args:
            height, width: of the input in pixels; those of `image` when not given.

        Raises:
            UserError: a window does not fit what reaches it.
        """
        size = (height or self.image[0], width or self.image[1], self.image[2])
        rows: list[Layer] = []
        for number, (name, spec) in enumerate(self.named_convs(), 1):
            rows += self._block(number, name, spec, rows[-1].output if rows else size, size)
        if self.adaptive_pool:
            channels = rows[-1].output[2]
            rows.append(Layer("pool", "adaptive_pool", (self.adaptive_pool, self.adaptive_pool, channels)))
        h, w, c = rows[-1].output
        inputs = h * w * c
        for name, dense in self.named_dense():
            weights = inputs * dense.features
            rows.append(Layer(name, "dense", (1, 1, dense.features), weights + dense.features, weights))
            inputs = dense.features
        return rows

    def _block(self, number: int, name: str, spec: ConvSpec, size: Size, image: Size) -> list[Layer]:
        """The rows of one convolution block that receives `size`."""
        h, w = self._slide(name, spec, size, image)
        weights = spec.kernel**2 * (size[2] // spec.groups) * spec.features
        rows = [Layer(name, "conv", (h, w, spec.features), weights + spec.bias * spec.features, h * w * weights)]
        if spec.norm:
            rows.append(Layer(f"norm{number}", "batch_norm", rows[-1].output, 2 * spec.features))
        for after in spec.after:
            if isinstance(after, MaxPool | AvgPool):
                h, w = self._slide(f"pool{number}", after, rows[-1].output, image)
                kind = "max_pool" if isinstance(after, MaxPool) else "avg_pool"
                rows.append(Layer(f"pool{number}", kind, (h, w, spec.features)))
            else:
                rows.append(Layer(f"lrn{number}", "local_response_norm", rows[-1].output))
        return rows

    def _slide(self, name: str, window: ConvSpec | MaxPool | AvgPool, size: Size, image: Size) -> tuple[int, int]:
        """Output height and width of a window slid over `size`, or an error that names the layer."""
        kernel = window.kernel if isinstance(window, ConvSpec) else window.size
        h, w = (extent + 2 * window.padding - kernel for extent in size[:2])
        if h < 0 or w < 0:
            raise UserError(
                f"{self.name}: an image of {image[0]}x{image[1]} is too small: {name} needs "
                f"{kernel - 2 * window.padding}x{kernel - 2 * window.padding} and receives {size[0]}x{size[1]}. "
                f"The smallest size that works is {self.smallest()}x{self.smallest()}."
            )
        return h // window.stride + 1, w // window.stride + 1

    def smallest(self) -> int:
        """The side of the smallest square image that passes through every layer, in pixels."""
        side = 1
        for _, spec in reversed(list(self.named_convs())):
            for pool in reversed([after for after in spec.after if isinstance(after, MaxPool | AvgPool)]):
                side = max((side - 1) * pool.stride + pool.size - 2 * pool.padding, 1)
            side = max((side - 1) * spec.stride + spec.kernel - 2 * spec.padding, 1)
        return side

    def check_input(self, height: int, width: int, channels: int) -> None:
        """Refuse an input that the network cannot take, before a framework's own shape error does.

        Raises:
            UserError: too small, other channels, or another size where there is no adaptive pool.
        """
        if channels != self.image[2]:
            raise UserError(f"{self.name}: the input has {channels} channels, the network takes {self.image[2]}.")
        if (height, width) == self.image[:2]:
            return
        self.layers(height, width)
        if not self.adaptive_pool:
            raise UserError(
                f"{self.name}: the input is {height}x{width} and there is no adaptive pool: "
                f"the network takes {self.image[0]}x{self.image[1]} only. Use arch.adapt(height=..., width=...)."
            )

    def adapt(
        self,
        *,
        height: int | None = None,
        width: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        name: str | None = None,
    ) -> Arch:
        """The same architecture for another image or another number of classes.

        Raises:
            UserError: as for `Arch` itself.
        """
        old_height, old_width, old_channels = self.image
        last = replace(self.dense[-1], features=self.classes if classes is None else classes)
        return replace(
            self,
            name=name or self.name,
            image=(
                old_height if height is None else height,
                old_width if width is None else width,
                old_channels if channels is None else channels,
            ),
            dense=(*self.dense[:-1], last),
        )


def _counts(window: ConvSpec | After) -> dict[str, int]:
    """The fields that must be at least 1."""
    names = ("features", "kernel", "size", "stride", "groups")
    return {name: getattr(window, name) for name in names if hasattr(window, name)}


def get_arch(name: str) -> Arch:
    """Look up a named architecture.

    Raises:
        UserError: there is none of this name; the message names the nearest.
    """
    return lookup(ARCHS | ABLATIONS, name, "architecture")


POOL3 = MaxPool(size=3, stride=2)  # overlapping pooling, section 3.4 of the 2012 paper
POOL2 = MaxPool(size=2, stride=2)
LRN_2012 = LocalResponseNorm()  # section 3.3: n 5, k 2, alpha 1e-4, beta 0.75
LRN_TORCH = LocalResponseNorm(size=5, k=1.0, alpha=1e-4 / 5)  # torch.nn.LocalResponseNorm(5), alpha not yet divided

# Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997, as torchvision
# writes it (torchvision/models/alexnet.py). Dropout comes before fc6 and fc7, and conv4 has 256 features.
ALEXNET = Arch(
    name="alexnet",
    image=(224, 224, 3),
    convs=(
        ConvSpec(64, kernel=11, stride=4, padding=2, after=(POOL3,)),
        ConvSpec(192, kernel=5, padding=2, after=(POOL3,)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1, after=(POOL3,)),
    ),
    dense=(DenseSpec(4096, dropout=0.5), DenseSpec(4096, dropout=0.5), DenseSpec(1000)),
    adaptive_pool=6,
)

# Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", NIPS 2012,
# sections 3.3 to 3.5 and figure 2. The text says 224 pixels; 55 x 55 outputs of conv1 need 227.
# Dropout acts on the outputs of the two hidden dense layers (section 4.2).
ALEXNET_2012 = Arch(
    name="alexnet_2012",
    image=(227, 227, 3),
    convs=(
        ConvSpec(96, kernel=11, stride=4, after=(LRN_2012, POOL3)),
        ConvSpec(256, kernel=5, padding=2, groups=2, after=(LRN_2012, POOL3)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(384, kernel=3, padding=1, groups=2),
        ConvSpec(256, kernel=3, padding=1, groups=2, after=(POOL3,)),
    ),
    dense=(DenseSpec(4096), DenseSpec(4096, dropout=0.5), DenseSpec(1000, dropout=0.5)),
)

# `alexnet` with torch.nn.LocalResponseNorm(5) after each of the three pools, as tutorials add it.
ALEXNET_LRN = replace(
    ALEXNET,
    name="alexnet_lrn",
    convs=tuple(replace(c, after=(*c.after, LRN_TORCH)) if c.after else c for c in ALEXNET.convs),
)

# `alexnet` with batch norm in every block; Ioffe and Szegedy, arXiv:1502.03167, section 3.2: the shift makes the
# convolution's bias redundant.
ALEXNET_BN = replace(
    ALEXNET,
    name="alexnet_bn",
    convs=tuple(replace(c, bias=False, norm=BatchNorm()) for c in ALEXNET.convs),
)

# Dive into Deep Learning, section "Deep Convolutional Neural Networks (AlexNet)", the Gluon version: one channel,
# conv1 without padding, so 5 x 5 x 256 reach fc6.
ALEXNET_FASHION = Arch(
    name="alexnet_fashion",
    image=(224, 224, 1),
    convs=(
        ConvSpec(96, kernel=11, stride=4, after=(POOL3,)),
        ConvSpec(256, kernel=5, padding=2, after=(POOL3,)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1, after=(POOL3,)),
    ),
    dense=(DenseSpec(4096), DenseSpec(4096, dropout=0.5), DenseSpec(10, dropout=0.5)),
)

# The network that the CIFAR tutorials' 256 * 2 * 2 classifier belongs to: 3 x 3 kernels, a stride of 2 in conv1 and
# 2 x 2 pools. The 11 x 11 network which they print above it cannot take 32 x 32 pixels.
ALEXNET_CIFAR = Arch(
    name="alexnet_cifar",
    image=(32, 32, 3),
    convs=(
        ConvSpec(64, kernel=3, stride=2, padding=1, after=(POOL2,)),
        ConvSpec(192, kernel=3, padding=1, after=(POOL2,)),
        ConvSpec(384, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1),
        ConvSpec(256, kernel=3, padding=1, after=(POOL2,)),
    ),
    dense=(DenseSpec(4096, dropout=0.5), DenseSpec(4096, dropout=0.5), DenseSpec(10)),
)

# The small network that tutorials set beside AlexNet on Fashion-MNIST; after LeCun et al., "Gradient-based learning
# applied to document recognition", Proc. IEEE 1998, with ReLU and max pooling.
LENET = Arch(
    name="lenet",
    image=(28, 28, 1),
    convs=(ConvSpec(20, kernel=5, after=(POOL2,)), ConvSpec(50, kernel=3, after=(POOL2,))),
    dense=(DenseSpec(128), DenseSpec(10)),
)

ARCHS: dict[str, Arch] = {
    arch.name: arch for arch in (ALEXNET, ALEXNET_2012, ALEXNET_LRN, ALEXNET_BN, ALEXNET_FASHION, ALEXNET_CIFAR, LENET)
}


def _ablation(name: str, **changes: Any) -> Arch:
    """`alexnet_cifar` with one thing changed; `after` and `norm` are changed in every block that pools."""
    convs = ALEXNET_CIFAR.convs
    if "after" in changes:
        convs = tuple(replace(conv, after=changes["after"]) if conv.after else conv for conv in convs)
    if "norm" in changes:
        convs = tuple(replace(conv, norm=changes["norm"], bias=False) for conv in convs)
    rest = {key: value for key, value in changes.items() if key not in ("after", "norm")}
    return replace(ALEXNET_CIFAR, name=f"alexnet_cifar_{name}", convs=convs, **rest)


# What the tutorials claim of AlexNet's parts, each against `alexnet_cifar`. `best` is the network of the improved
# recipes: the paper's widths, batch norm, and no stride before the first pool, so that fc6 sees 4 x 4.
ABLATIONS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        _ablation("tanh", activation="tanh"),
        _ablation("sigmoid", activation="sigmoid"),
        _ablation("overlap", after=(MaxPool(size=3, stride=2, padding=1),)),
        _ablation("avgpool", after=(AvgPool(window=2, stride=2),)),
        _ablation("lrn", after=(LRN_2012, POOL2)),
        _ablation("bn", norm=BatchNorm()),
        _ablation("nodropout", dense=tuple(replace(dense, dropout=0.0) for dense in ALEXNET_CIFAR.dense)),
        Arch(
            name="alexnet_cifar_best",
            image=(32, 32, 3),
            convs=(
                ConvSpec(96, kernel=3, padding=1, bias=False, norm=BatchNorm(), after=(POOL2,)),
                ConvSpec(256, kernel=3, padding=1, bias=False, norm=BatchNorm(), after=(POOL2,)),
                ConvSpec(384, kernel=3, padding=1, bias=False, norm=BatchNorm()),
                ConvSpec(384, kernel=3, padding=1, bias=False, norm=BatchNorm()),
                ConvSpec(256, kernel=3, padding=1, bias=False, norm=BatchNorm(), after=(POOL2,)),
            ),
            dense=(DenseSpec(1024, dropout=0.3), DenseSpec(1024, dropout=0.3), DenseSpec(10)),
        ),
    )
}
