"""A recipe's optimizer and schedule in optax. Read next to `torch_impl/optim.py`."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from common.recipes import Optimizer, Schedule


def build_optimizer(spec: Optimizer, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that a recipe names, with its rate. Defaults differ between frameworks, so all is passed."""
    decay = optax.add_decayed_weights(spec.weight_decay) if spec.weight_decay else optax.identity()
    match spec.name:
        case "sgd":  # L2 decay enters the momentum, as in PyTorch, so it comes first in the chain
            return optax.chain(decay, optax.sgd(rate, spec.momentum or None, spec.nesterov))
        case "adam":
            return optax.chain(decay, optax.adam(rate, spec.beta1, spec.beta2, spec.eps))
        case "adamw":
            return optax.adamw(rate, spec.beta1, spec.beta2, spec.eps, weight_decay=spec.weight_decay)


def build_schedule(spec: Schedule, base: float, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The rate at each optimizer step, looked up in a table that the recipe's own definition fills."""
    rates = jnp.asarray([base * spec.factor(step, steps_per_epoch) for step in range(epochs * steps_per_epoch)])
    return lambda count: rates[count]
