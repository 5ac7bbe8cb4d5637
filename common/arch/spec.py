"""What an architecture is: every layer as data, shapes and costs in plain Python.

Sizes are (height, width, channels) whatever the framework; each framework lays them out in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from common.errors import UserError

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


ACTIVATION = Literal["relu", "tanh", "sigmoid"]
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
    activation: ACTIVATION = "relu"

    def __post_init__(self) -> None:
        self._check_fields()
        self.layers()

    def _check_fields(self) -> None:
        if not self.convs or not self.dense:
            raise UserError(f"{self.name}: it needs at least one convolution and one dense layer.")
        lists = [("image", self.image), ("convs", self.convs), ("dense", self.dense)]
        lists += [(f"{name}'s after", spec.after) for name, spec in self.named_convs()]
        for name, value in lists:
            if not isinstance(value, tuple):  # JAX compiles for a network by its hash, which a list has not
                raise UserError(f"{self.name}: {name} is a {type(value).__name__}; it must be a tuple.")
        if len(self.image) != 3:
            raise UserError(f"{self.name}: image is {self.image}; it must be height, width and channels.")
        if self.activation not in get_args(ACTIVATION):
            known = ", ".join(get_args(ACTIVATION))
            raise UserError(f"{self.name}: activation is {self.activation!r}; it must be one of {known}.")
        self._check_numbers()
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

    def _check_numbers(self) -> None:
        """Whole numbers from 1 on, and paddings and batch norms that both frameworks take."""
        windows = [(name, window) for name, spec in self.named_convs() for window in (spec, *spec.after)]
        counts = [(f"{name}'s {key}", value) for name, window in windows for key, value in _counts(window).items()]
        counts += [(f"{name}'s features", dense.features) for name, dense in self.named_dense()]
        counts += [("adaptive_pool", self.adaptive_pool)] if self.adaptive_pool is not None else []
        for name, value in [*zip(("height", "width", "channels"), self.image, strict=True), *counts]:
            _check_count(self.name, name, value, 1)
        for name, window in windows:
            if isinstance(window, LocalResponseNorm):
                continue
            _check_count(self.name, f"{name}'s padding", window.padding, 0)
            if isinstance(window, MaxPool) and window.padding > window.size // 2:  # PyTorch's rule
                raise UserError(
                    f"{self.name}: the padding of {name}'s pool is {window.padding}; it must be at most half of its "
                    f"size, which is {window.size}."
                )
        for name, spec in self.named_convs():
            if spec.norm and not (spec.norm.eps > 0 and 0 <= spec.norm.momentum <= 1):
                raise UserError(
                    f"{self.name}: {name}'s norm has eps {spec.norm.eps} and momentum {spec.norm.momentum}; "
                    f"they must be above 0 and in [0, 1]."
                )

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

    def check_size(self, height: int, width: int, channels: int) -> None:
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

    def check_input(self, shape: Any, layout: Literal["NCHW", "NHWC"]) -> None:
        """As `check_size`, for a framework's batch of images.

        Raises:
            UserError: and for a shape that has not a batch axis before the others; says which shape is taken.
        """
        if not isinstance(shape, tuple):  # torch.fx records a network with stand-ins, which have no shape
            return
        height, width, channels = self.image
        sizes = {"N": "N", "C": str(channels), "H": str(height), "W": str(width)}
        taken = f"it takes images as ({', '.join(sizes[axis] for axis in layout)}), {layout}"
        if len(shape) != len(layout):
            lacking = ": one image is a batch of 1, its first axis" if len(shape) == len(layout) - 1 else ""
            raise UserError(f"{self.name}: the input has the shape {tuple(shape)}, and {taken}{lacking}.")
        named = dict(zip(layout, shape, strict=True))
        if named["C"] != channels:
            raise UserError(f"{self.name}: the input has {named['C']} channels, the network takes {channels}: {taken}.")
        self.check_size(named["H"], named["W"], named["C"])

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


def _check_count(arch: str, name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(
            f"{arch}: {name} is {value!r}; it must be {'a whole number, ' * (not isinstance(value, int))}"
            f"at least {least}."
        )


def _counts(window: ConvSpec | After) -> dict[str, int]:
    """The fields that must be at least 1."""
    names = ("features", "kernel", "size", "stride", "groups")
    return {name: getattr(window, name) for name in names if hasattr(window, name)}
