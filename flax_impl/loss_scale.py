"""Dynamic loss scaling for float16, step by step as `torch.amp.GradScaler`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from common.recipes.spec import LossScale


class Scaler(struct.PyTreeNode):
    """The scale and its history. `flax.training.dynamic_scale` grows a step later and cannot add up micro-batches.

    Attributes:
        scale: multiplies the loss; None leaves it alone.
        good: steps in a row without overflow.
    """

    scale: Array | None
    good: Array | None
    spec: LossScale = struct.field(pytree_node=False)

    def scaled(self, loss: Array) -> Array:
        """Multiply a loss by the scale."""
        return loss if self.scale is None else loss * self.scale

    def unscale(self, gradients: Any) -> Any:
        """Divide gradients by the scale."""
        return gradients if self.scale is None else jax.tree.map(lambda g: g / self.scale, gradients)

    def after(self, finite: Array) -> Scaler:
        """The scale for the next step, given whether this one's gradients were finite."""
        if self.scale is None or self.good is None:
            return self
        good = jnp.where(finite, self.good + 1, 0)
        grow = good == self.spec.interval
        grown = self.scale * self.spec.growth
        kept = jnp.where(grow & jnp.isfinite(grown), grown, self.scale)  # PyTorch, too, keeps it below infinity
        scale = jnp.where(finite, kept, self.scale * self.spec.backoff)
        return self.replace(scale=scale, good=jnp.where(grow, 0, good))
