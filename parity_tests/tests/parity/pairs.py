"""Small pairs of models, each written plainly in both frameworks, and how one side of them may be changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

import parity
import parity.linen
import parity.torch

RATE, MOMENTUM = 0.05, 0.9
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ONES = ((1, 1), (1, 1))
Loss = Callable[..., Any]


class TorchNet(torch.nn.Module):
    """Convolutions, norms, a pool, and a dense layer on a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, 2, 1)
        self.norm = torch.nn.BatchNorm2d(4)
        self.act = torch.nn.ReLU(inplace=True)
        self.pool = torch.nn.MaxPool2d(3, 2, 1)
        self.mid = torch.nn.Conv2d(4, 6, 3, padding=1)
        self.wide = torch.nn.Linear(6 * 4 * 4, 8)
        self.layer_norm = torch.nn.LayerNorm(8)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.act(self.norm(self.stem(x))))
        x = F.gelu(self.mid(x)).flatten(1)
        return self.head(self.drop(self.layer_norm(self.wide(x))))


class LinenNet(nn.Module):
    """The same, with what may be otherwise as fields."""

    padding: Any = ONES
    pool: Any = ONES
    epsilon: float = 1e-5
    momentum: float = 0.9
    tanh: bool = False
    layer_epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.Conv(4, (3, 3), 2, padding=self.padding)(x)
        x = nn.BatchNorm(not train, momentum=self.momentum, epsilon=self.epsilon)(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), self.pool)
        x = nn.gelu(nn.Conv(6, (3, 3))(x), approximate=self.tanh)
        x = nn.LayerNorm(epsilon=self.layer_epsilon)(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(5)(nn.Dropout(0.5, deterministic=not train)(x))


class TorchTail(torch.nn.Module):
    """Attention in two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (torch.nn.Linear(8, 8) for _ in range(4))

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, 8) -> the same."""
        q, k, v = (part(x).view(len(x), -1, 2, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixed(x).mean(1)


def mixed(x: Any, scale: float = 0.5, first: str = "query") -> Any:
    """The same within a compact linen module; `first` is the projection that is called first."""
    parts = {}
    for name in sorted(("query", "key", "value"), key=lambda name: name != first):
        parts[name] = nn.Dense(8, name=name)(x).reshape(len(x), -1, 2, 4)
    products = jnp.einsum("nqhd,nkhd->nhqk", parts["query"], parts["key"]) * scale
    gathered = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(products), parts["value"])
    return nn.Dense(8)(gathered.reshape(x.shape))


class LinenTail(nn.Module):
    """The same, with what may be otherwise as fields."""

    scale: float = 0.5
    first: str = "query"

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return mixed(x, self.scale, self.first).mean(1)


class TorchZoom(torch.nn.Module):
    """Resizing between convolutions: to half the size."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 5, 1)
        self.keywords = {"mode": "bilinear", "align_corners": False, **keywords}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(F.interpolate(self.one(x), size=(6, 6), **self.keywords)).mean((2, 3))


class LinenZoom(nn.Module):
    """The same; `jax.image.resize` smooths where it shrinks unless told otherwise."""

    antialias: bool = False

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(4, (1, 1))(x)
        x = jax.image.resize(x, (len(x), 6, 6, 4), "bilinear", antialias=self.antialias)
        return nn.Conv(5, (1, 1))(x).mean((1, 2))


def torch_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross entropy."""
    return F.cross_entropy(output, target)


def flax_loss(output: Any, target: Any) -> Any:
    """The same."""
    return optax.softmax_cross_entropy_with_integer_labels(output, target).mean()


def batches(shape: tuple[int, ...], classes: int = 5, count: int = 2) -> list[parity.model.Batch]:
    """Random images or sequences, and labels."""
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(shape), rng.integers(0, classes, shape[0])) for _ in range(count)]


@dataclass(frozen=True)
class Planned:
    """A pair, and what to change in it."""

    torch: Callable[[], torch.nn.Module] = TorchNet
    linen: nn.Module = field(default_factory=LinenNet)
    shape: tuple[int, ...] = (4, 3, 16, 16)
    losses: tuple[Loss, Loss] = (torch_loss, flax_loss)
    tx: optax.GradientTransformation = field(default_factory=lambda: optax.sgd(RATE, MOMENTUM))
    decay: float = 0.0
    prepare: Callable[[Any], Any] | None = None

    def sides(self) -> tuple[parity.torch.Side, parity.linen.Side]:
        """Both, in float64, PyTorch's weights drawn with seed 0."""
        torch.manual_seed(0)
        model = self.torch().double()
        optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=self.decay)
        last = (*self.shape[:1], *self.shape[2:], self.shape[1]) if len(self.shape) == 4 else self.shape
        variables = jax.eval_shape(self.linen.init, jax.random.key(0), jnp.ones(last))
        ours = parity.torch.Side(model, self.losses[0], optimizer)
        return ours, parity.linen.Side(
            self.linen, variables, self.losses[1], self.tx, prepare=self.prepare, compiler_options=QUICK
        )

    def check(self, **options: Any) -> parity.Verdict:
        """Both compared, but for the running variance, whose definitions differ."""
        free = parity.Bounds(1e-10, share=1e-4, tensor={"*.running_var": np.inf})
        return parity.check(*self.sides(), batches(self.shape), **{"bounds": free, **options})


NET = Planned()
TAIL = replace(NET, torch=TorchTail, linen=LinenTail(), shape=(3, 6, 8))
ZOOM = replace(NET, torch=TorchZoom, linen=LinenZoom(), shape=(2, 3, 16, 16))
