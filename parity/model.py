"""What a side tells of its model, in numpy alone: the calls of its modules, its tensors, and what each of them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from parity.compare import Trace

Array = npt.NDArray[Any]
Layout = Literal["channels first", "channels last"]
Mode = Literal["train", "forward"]
Dropout = Literal["off", "on", "shared"]
Batch = tuple[Any, Any]  # inputs (an array, or a tuple or dict of them), targets (an array, or None)

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Module:
    """A module that holds tensors of its own, or is of a kind that matters.

    Attributes:
        path: its names, joined by dots; "" is the whole model.
        kind: conv, conv_transpose, dense, batch_norm, layer_norm, group_norm, rms_norm, embedding, dropout, attention;
            "" otherwise.
        tensors: names of its own parameters and statistics by role: weight, bias, mean, var; their own names otherwise.
        config: what its arithmetic depends on: `epsilon`, `momentum` (the share of the old value that is kept),
            `padding` (a pair for each axis of space, of the size last seen), `stretched` (the same of a transposed
            convolution's input once it is stretched), `stride`, `dilation`, `groups`.
    """

    path: str
    kind: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model as it stands, after a pass.

    Attributes:
        name, layout: of the side.
        torch: whether tensors lie as PyTorch has them: convolutions O, I, H, W, dense ones O, I.
        modules: by path, in the order of their first call; those never called come last.
        calls: names of calls, in the order in which they end. `path` is the first one's, `path:2` the second one's.
        parameters, statistics: by name, in the model's own layout.
        optimizer: its `momentum`, whether `nesterov`, its `betas`, as far as they are known.
    """

    name: str
    layout: Layout
    torch: bool
    modules: Mapping[str, Module]
    calls: Sequence[str]
    parameters: Mapping[str, Array]
    statistics: Mapping[str, Array]
    optimizer: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Array]:
        """Parameters and statistics."""
        return {**self.parameters, **self.statistics}

    def owners(self) -> Iterator[tuple[Module, str, str]]:
        """(module, role, name) of each tensor."""
        for module in self.modules.values():
            for role, name in module.tensors.items():
                yield module, role, name


class Watched(Protocol):
    """A side that tells enough to be matched with another; `parity.torch.Side` and its sisters are."""

    name: str
    layout: Layout

    def model(self) -> Model:
        """As it stands; `modules` and `calls` are those of the last pass.

        Raises:
            ValueError: there was none yet.
        """

    def describe(self, inputs: Any) -> None:
        """See what calls there are in a pass over inputs, in this side's layout, so that `model` knows."""

    def step(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """Train on one batch; see `parity.Side`.

        Args:
            batch: in this side's layout.
            adopt: values to put in the place of the side's own: of calls, and of their inputs, in the phase
                `activation`; of gradients.
        """

    def forward(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """Evaluate one batch: nothing changes. The phases go as far as `loss`."""

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Overwrite parameters and statistics, all of them, and begin with a fresh optimizer.

        Raises:
            ValueError: a name is missing or unknown, or a shape or dtype is another.
        """

    def overwrite(self, tensors: Mapping[str, Array], memory: Mapping[str, Array]) -> None:
        """Overwrite some parameters, statistics, and some of the optimizer's memory, as a trace names it."""

    def snapshot(self) -> Any:
        """All that a step changes, as a copy."""

    def restore(self, saved: Any) -> None:
        """Back to a snapshot."""


def check_tensors(name: str, current: Mapping[str, Array], given: Mapping[str, Array]) -> None:
    """Compare tensors to load with those that a side has.

    Raises:
        ValueError: a name is missing or unknown, or a shape is another.
    """
    if wrong := sorted(current.keys() ^ given.keys()):
        raise ValueError(f"{name}: {', '.join(wrong[:5])} {'are' if len(wrong) > 1 else 'is'} missing or unknown.")
    for key, values in given.items():
        if values.shape != current[key].shape:
            raise ValueError(f"{name}: {key} has the shape {current[key].shape}, not {values.shape}.")


def call_name(path: str, count: int) -> str:
    """The name of a module's call number `count`, from 1, in a pass."""
    return (path or OUTPUT) + (f":{count}" if count > 1 else "")


def path_of(call: str) -> str:
    """The module's path of a call or of its input."""
    name = call.removesuffix(" (input)").split(":")[0]
    return "" if name == OUTPUT else name


def input_of(call: str) -> str:
    """The name under which a call's input is recorded."""
    return f"{call} (input)"


def named_inputs(inputs: Any) -> dict[str, Any]:
    """Inputs by name: one is called "input", those of a tuple input.0 and so on, those of a dict by their keys."""
    if isinstance(inputs, Mapping):
        return {f"{INPUT}.{name}": value for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return {f"{INPUT}.{place}": value for place, value in enumerate(inputs)}
    return {INPUT: inputs}


def map_inputs(change: Any, inputs: Any) -> Any:
    """The same with every array changed."""
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    return tuple(change(value) for value in inputs) if isinstance(inputs, tuple) else change(inputs)


def space_last(array: Array) -> Array:
    """(N, C, ...) -> (N, ..., C)."""
    return np.moveaxis(array, 1, -1)


def space_first(array: Array) -> Array:
    """(N, ..., C) -> (N, C, ...)."""
    return np.moveaxis(array, -1, 1)


def relay(array: Array, given: Layout, wanted: Layout) -> Array:
    """Move the channels of images: arrays of four and five axes; others stay."""
    array = np.asarray(array)
    if given == wanted or array.ndim not in (4, 5):
        return array
    return space_last(array) if wanted == "channels last" else space_first(array)


def seen_keys(masks: Sequence[Array], count: int, queries: int, keys: int) -> Array:
    """What queries see, (N, queries, keys), from masks (N or 1, heads or 1, queries or 1, keys) that are True there."""
    seen = np.ones((count, queries, keys), bool)
    for mask in masks:
        seen &= np.broadcast_to(mask, (count, mask.shape[1], queries, keys))[:, 0].astype(bool)
    return seen


def same_pads(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """What "SAME" pads an axis by, before and after."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def same_stretched(kernel: int, stride: int, same: bool) -> tuple[int, int]:
    """What "SAME" or "VALID" pads a transposed convolution's stretched input by in JAX, before and after."""
    total = kernel + stride - 2 + (0 if same else max(kernel - stride, 0))
    before = kernel - 1 if not same or stride > kernel - 1 else -(-total // 2)
    return before, total - before


def to_torch(values: Array, module: Module, role: str) -> Array:
    """A tensor as flax lays it out, as PyTorch does; a view."""
    if role == "weight" and module.kind == "conv":
        return np.moveaxis(values, (-1, -2), (0, 1))
    if role == "weight" and module.kind == "conv_transpose":
        if module.config.get("transpose_kernel"):
            return np.moveaxis(values, (-1, -2), (0, 1))
        flipped = np.flip(values, tuple(range(values.ndim - 2)))
        return np.moveaxis(flipped, (-2, -1), (0, 1))
    if role == "weight" and module.kind == "dense":
        axes = int(module.config.get("in_axes", 1))
        return values.reshape(int(np.prod(values.shape[:axes])), -1).T
    return values.reshape(-1) if module.kind == "dense" else values


def from_torch(values: Array, module: Module, role: str, shape: tuple[int, ...]) -> Array:
    """A tensor as PyTorch lays it out, as flax does, there with this shape."""
    if role == "weight" and module.kind == "conv":
        values = np.moveaxis(values, (0, 1), (-1, -2))
    elif role == "weight" and module.kind == "conv_transpose":
        if module.config.get("transpose_kernel"):
            values = np.moveaxis(values, (0, 1), (-1, -2))
        else:
            values = np.moveaxis(values, (0, 1), (-2, -1))
            values = np.flip(values, tuple(range(values.ndim - 2)))
    elif role == "weight" and module.kind == "dense":
        values = values.T
    return values if module.kind not in ("dense", "") else values.reshape(shape)
