"""Flax's dropout in PyTorch, mask for mask.

`jax.random` is counter-based: threefry2x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
turns a key and an element's index into its random word, so a mask is a function of (seed, step, layer, index). `fit`
always trains with these layers; the bare model keeps `nn.Dropout`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from common.arch.spec import Size

Key = tuple[int, int]
Words = tuple[int | Tensor, int | Tensor]  # a key, or int32 tensors of its two words

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_WORD = 0xFFFFFFFF
_CHUNK = 1 << 17  # elements that a CPU works on at a time, so that they stay in the cache


def seed_key(seed: int) -> Key:
    """`jax.random.key(seed)` for a seed of at most 64 bits."""
    return seed >> 32 & _WORD, seed & _WORD


def fold_in(key: Key, data: int) -> Key:
    """`jax.random.fold_in(key, data)` for 32-bit data."""
    high, low = threefry2x32(key, torch.zeros(1, dtype=torch.int32), _int32(data).reshape(1))
    return int(high) & _WORD, int(low) & _WORD


def module_key(key: Key, path: tuple[str, ...], count: int = 1) -> Key:
    """The key that linen's `make_rng` gives the module at `path` on its call number `count` of one pass.

    linen hashes the names and the count, its bytes big-endian, and folds the first four bytes of the digest in.
    """
    digest = sha1("".join(path).encode() + count.to_bytes((count.bit_length() + 7) // 8, "big"), usedforsecurity=False)
    return fold_in(key, int.from_bytes(digest.digest()[:4], "big"))


def threefry2x32(key: Words, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Encrypt 64-bit counters, each given as two int32 tensors of one shape; overwrites them with the result.

    int32 additions wrap around as unsigned ones do; a right shift does not, so its copies of the sign are masked off.
    """
    first, second = _int32(key[0]), _int32(key[1])
    words = (first, second, first ^ second ^ 0x1BD11BDA)
    high += words[0]
    low += words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            high += low
            carried = (low >> (32 - rotation)).bitwise_and_((1 << rotation) - 1)
            low.bitwise_left_shift_(rotation).bitwise_or_(carried).bitwise_xor_(high)
        high += words[(group + 1) % 3]
        low += words[(group + 2) % 3] + (group + 1)
    return high, low


def bernoulli(
    key: Words,
    keep: float,
    count: int,
    *,
    wide: bool,
    first: int | Tensor = 0,
    device: torch.device | str = "cpu",
    fill: Callable[..., Tensor] | None = None,
) -> Tensor:
    """`jax.random.bernoulli(key, keep, (first + count,))[first:]`: bool (count,), true with probability `keep`.

    Args:
        key: of the draw.
        keep: probability.
        count: of elements.
        wide: compare 52 random bits, as JAX does with x64 enabled, instead of 23.
        first: element to begin with; an int64 tensor where it is one.
        device: of the result.
        fill: `below`, perhaps compiled.
    """
    # A uniform is k * 2^-bits; it is below `keep` where the whole number k is below the threshold.
    threshold = ceil((keep if wide else float(np.float32(keep))) * 2 ** (52 if wide else 23))
    return (fill or below)(key, threshold, torch.empty(count, dtype=torch.bool, device=device), first, wide)


def below(key: Words, threshold: int, mask: Tensor, first: int | Tensor, wide: bool) -> Tensor:
    """Fill a mask, bool (count,), with whether the whole number behind each element's uniform is below a threshold."""
    chunk = _CHUNK if mask.is_cpu and not torch.compiler.is_compiling() else len(mask)
    for part in mask.split(chunk) if chunk < len(mask) else (mask,):
        index = torch.arange(len(part), device=mask.device) + first
        high, low = threefry2x32(key, (index >> 32).int(), index.int())
        if wide:
            k = (high.long() & _WORD) << 20 | (low >> 12 & 0xFFFFF)
        else:
            k = (high ^ low) >> 9 & 0x7FFFFF
        torch.lt(k, threshold, out=part)
        first = first + len(part)
    return mask


class StepKey:
    """The 'dropout' key of the current step, which the `layers` of a model share, and the row of the
    whole batch at which the current micro-batch of this process begins."""

    def __init__(self, seed: int, layers: list[SharedDropout]) -> None:
        self.seed, self.layers = seed, layers
        self.at(0)

    def at(self, step: int) -> None:
        """Move to training step `step`: `fold_in(key(seed), step)`, as `flax_impl.train` does."""
        self.key = fold_in(seed_key(self.seed), step)
        for layer in self.layers:
            layer.move(module_key(self.key, layer.path))
        self.from_row(0)

    def from_row(self, row: int) -> None:
        """Move to the micro-batch that begins at this row of the batch."""
        for layer in self.layers:
            layer.row.fill_(row)


class SharedDropout(nn.Module):
    """linen's `nn.Dropout`, called once in a pass.

    Args:
        rate: of the inputs that become zero.
        path: the module's names in the Flax model.
        size: (height, width, channels) of the feature map that was flattened to make the input, if one was: PyTorch
            flattens it as C, H, W and Flax as H, W, C, so the mask is permuted.
        wide: as for `bernoulli`; None draws wide masks for float64 inputs.
        fill: `below`, perhaps compiled.
    """

    key: Tensor
    row: Tensor

    def __init__(
        self,
        rate: float,
        path: tuple[str, ...],
        size: Size | None = None,
        wide: bool | None = None,
        fill: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.rate, self.path, self.size, self.wide, self.fill = rate, path, size, wide, fill
        # On the device, so that neither a compiled pass depends on their values nor the device waits for them.
        self.register_buffer("key", torch.zeros(2, dtype=torch.int32), persistent=False)
        self.register_buffer("row", torch.zeros((), dtype=torch.int64), persistent=False)

    def move(self, key: Key) -> None:
        """Take the masks from this key."""
        for place, word in zip(self.key, key, strict=True):
            place.fill_(_signed(word))

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) -> the same, in training with a share `rate` of zeros and the rest scaled up."""
        if not self.training or self.rate == 0:
            return x
        wide = x.dtype == torch.float64 if self.wide is None else self.wide
        key, first = (self.key[0], self.key[1]), self.row * x.shape[1:].numel()
        mask = bernoulli(key, 1 - self.rate, x.numel(), wide=wide, first=first, device=x.device, fill=self.fill)
        if self.size:
            height, width, channels = self.size
            mask = mask.view(-1, height, width, channels).permute(0, 3, 1, 2)
        # linen divides by the constant, which XLA turns into a product with its rounded reciprocal.
        scale = 1 / torch.tensor(1 - self.rate, dtype=x.dtype)
        return torch.where(mask.reshape(x.shape), x * scale, 0)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, path={'/'.join(self.path)}"


def share_dropout(
    model: nn.Module, feature_size: Size, seed: int, wide: bool | None = None, *, compiled: bool = False
) -> StepKey:
    """Put `SharedDropout` in the place of a model's `nn.Dropout` layers, which keep their names.

    Args:
        model: `AlexNet` or `LeNet`; changed in place.
        feature_size: `arch.feature_size`; the first dropout acts on this feature map, flattened.
        seed: of the run.
        wide: as for `SharedDropout`.
        compiled: draw masks by one compiled function for all sizes: eager PyTorch goes over them in some hundred
            passes, each of which a GPU has to be told.

    Returns:
        The key to move with every step.
    """
    shared, fill = [], torch.compile(below, dynamic=True) if compiled else None
    layers = [(name, module) for name, module in model.named_children() if isinstance(module, nn.Dropout)]
    for place, (name, module) in enumerate(layers):
        size = feature_size if place == 0 else None
        shared.append(SharedDropout(module.p, (name,), size, wide, fill))
        setattr(model, name, shared[-1])
    return StepKey(seed, shared)


def _signed(word: int) -> int:
    """The int32 with the same bits."""
    return word - (word >> 31 << 32)


def _int32(word: int | Tensor) -> Tensor:
    return word if isinstance(word, Tensor) else torch.tensor(_signed(word & _WORD), dtype=torch.int32)
