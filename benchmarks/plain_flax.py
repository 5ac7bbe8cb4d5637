"""The loop that ours is measured against, in Flax: a jitted step on one fixed tensor, as a tutorial writes it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from jax import Array

from benchmarks.settings import Contestant, Data
from common.arch.spec import Arch, MaxPool


class Network(nn.Module):
    """The layers of an `Arch` without batch norm or response norm, in a loop; linen's own initialisers."""

    arch: Arch
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for spec in self.arch.convs:
            size, stride = (spec.kernel,) * 2, (spec.stride,) * 2
            x = nn.relu(nn.Conv(spec.features, size, stride, padding=spec.padding, dtype=self.dtype)(x))
            for pool in spec.after:
                if isinstance(pool, MaxPool):
                    x = nn.max_pool(x, (pool.size,) * 2, (pool.stride,) * 2)
        x = x.reshape(len(x), -1)
        for dense in self.arch.dense[:-1]:
            x = nn.Dropout(dense.dropout, deterministic=not train)(x)
            x = nn.relu(nn.Dense(dense.features, dtype=self.dtype)(x))
        return nn.Dense(self.arch.classes, dtype=self.dtype)(x)


@partial(jax.jit, static_argnums=0)
def initialize(model: Network, key: Array, images: Array) -> Any:
    """Fresh variables."""
    return model.init(key, images, train=False)


def train(state: TrainState, images: Array, labels: Array, key: Array) -> tuple[TrainState, Array]:
    """One step: the loss before it, averaged."""

    def loss_fn(params: Any) -> Array:
        dropout = {"dropout": jax.random.fold_in(key, state.step)}
        logits = state.apply_fn({"params": params}, images, train=True, rngs=dropout)
        return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=gradients), loss


class PlainFlax:
    """A jitted loop on a fixed batch of normal noise; the loss is read at every step."""

    step: Any = staticmethod(jax.jit(train))

    def __init__(self, contestant: Contestant, arch: Arch) -> None:
        self.dtype = jnp.bfloat16 if contestant.precision == "bfloat16" else None
        model = Network(arch, self.dtype)
        noise, labels, init, self.key = jax.random.split(jax.random.key(0), 4)
        self.images = jax.random.normal(noise, (contestant.batch, *arch.image))
        self.labels = jax.random.randint(labels, (contestant.batch,), 0, arch.classes)
        params = initialize(model, init, self.images[:1])["params"]
        tx = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))
        state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        # As a step leaves it, or the second step would compile again.
        self.state = jax.device_put(state.replace(step=jnp.zeros((), jnp.int32)), self.images.device)

    def launch(self, steps: int, data: Data) -> float:
        """Train; returns the seconds spent waiting for input: none."""
        for _ in range(steps):
            self.state, loss = self.step(self.state, self.images, self.labels, self.key)
            self.read(loss)
        return 0.0

    def read(self, loss: Array) -> None:
        """Read the loss, for which the device is waited for."""
        float(loss)

    def wait(self) -> None:
        """Until the device has finished."""
        jax.block_until_ready(self.state)

    def lowered(self) -> Any:
        """See `benchmarks.worker.Runs`."""
        return self.step.lower(self.state, self.images, self.labels, self.key)


class StrongFlax(PlainFlax):
    """The same with what is known to make it fast: images in bfloat16, the state's memory used again, no read-back."""

    step: Any = staticmethod(jax.jit(train, donate_argnums=0))

    def __init__(self, contestant: Contestant, arch: Arch) -> None:
        super().__init__(contestant, arch)
        self.images = self.images.astype(self.dtype or jnp.float32)

    def read(self, loss: Array) -> None:
        """Leave the loss on the device."""
