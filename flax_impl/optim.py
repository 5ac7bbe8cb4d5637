"""A recipe's optimizer and schedule in optax. Read next to `torch_impl/optim.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from common.recipes import Optimizer, Schedule


def build_optimizer(spec: Optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that a recipe names, with its rate. Defaults differ between frameworks, so all is passed."""
    decay = optax.add_decayed_weights(spec.weight_decay) if spec.weight_decay else optax.identity()
    clip = clip_gradients(spec.clip_norm)
    match spec.name:
        case "sgd":  # L2 decay enters the momentum, as in PyTorch, so it comes first in the chain
            return optax.chain(clip, decay, optax.sgd(rate, spec.momentum or None, spec.nesterov))
        case "adam":
            return optax.chain(clip, decay, optax.adam(rate, spec.beta1, spec.beta2, spec.eps))
        case "adamw":
            return optax.chain(
                clip, optax.adamw(rate, spec.beta1, spec.beta2, spec.eps, weight_decay=spec.weight_decay)
            )


def build_schedule(spec: Schedule, base: float, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The rate at each optimizer step, looked up in a table that the recipe's own definition fills."""
    rates = jnp.asarray([base * spec.factor(step, steps_per_epoch) for step in range(epochs * steps_per_epoch)])
    return lambda count: rates[count]


def clip_gradients(norm: float) -> optax.GradientTransformation:
    """Scale all gradients down so that their common norm is at most `norm`; 0 leaves them alone.

    `optax.clip_by_global_norm` divides by the norm itself, PyTorch by the norm plus 1e-6.
    """

    def clip(gradients: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        factor = jnp.minimum(1, norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda gradient: gradient * factor, gradients)

    return optax.stateless(clip) if norm else optax.identity()
