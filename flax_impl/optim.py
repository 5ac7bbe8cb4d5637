"""A recipe's optimizer, schedule and loss scale in optax. Read next to `torch_impl/optim.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from common.recipes import LossScale, Optimizer, Schedule
from flax_impl.loss_scale import Scaler


def build_optimizer(
    spec: Optimizer,
    rate: optax.Schedule,
    is_head: Callable[[str], bool] | None = None,
    backbone_lr: float = 1.0,
    freeze_steps: int = 0,
) -> optax.GradientTransformation:
    """The optimizer that a recipe names, with its rate. Defaults differ between frameworks, so all is passed.

    Args:
        spec: the recipe's.
        rate: at each step.
        is_head: whether a layer is trained at the full rate; None: every one is.
        backbone_lr: see `common.recipes.FineTune`.
        freeze_steps: for so many steps the backbone's memory stays empty, and its own clock at 0.
    """
    direction = _direction(spec)
    if is_head is not None:
        backbone = optax.transforms.conditionally_mask(
            optax.chain(direction, optax.scale(backbone_lr)), lambda step: step >= freeze_steps
        )

        def label(params: Any) -> Any:
            return {layer: "head" if is_head(layer) else "backbone" for layer in params}

        direction = optax.partition({"head": _direction(spec), "backbone": backbone}, label)
    return optax.chain(clip_gradients(spec.clip_norm), direction, optax.scale_by_learning_rate(rate))


def _direction(spec: Optimizer) -> optax.GradientTransformation:
    """What is multiplied by the rate: `optax.sgd`, `optax.adam` and `optax.adamw` without it."""
    mask = None if spec.decay_biases else _is_kernel
    decay = optax.add_decayed_weights(spec.weight_decay, mask) if spec.weight_decay else optax.identity()
    adam = optax.scale_by_adam(spec.beta1, spec.beta2, spec.eps)
    match spec.name:
        case "sgd":  # L2 decay enters the momentum, as in PyTorch, so it comes first in the chain
            return optax.chain(decay, optax.trace(spec.momentum, spec.nesterov) if spec.momentum else optax.identity())
        case "adam":
            return optax.chain(decay, adam)
        case "adamw":
            return optax.chain(adam, decay)


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda parameter: parameter.ndim > 1, params)


def build_schedule(spec: Schedule, base: float, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """The rate at each optimizer step, looked up in a table that the recipe's own definition fills."""
    rates = [base * spec.factor(step, steps_per_epoch, epochs) for step in range(epochs * steps_per_epoch)]
    table = jnp.asarray(rates)
    return lambda count: table[count]


def build_scaler(spec: LossScale, precision: str) -> Scaler:
    """Dynamic loss scaling under float16; otherwise one that does nothing."""
    if precision != "float16":
        return Scaler(None, None, spec)
    return Scaler(jnp.float32(spec.initial), jnp.int32(0), spec)


def clip_gradients(norm: float) -> optax.GradientTransformation:
    """Scale all gradients down so that their common norm is at most `norm`; 0 leaves them alone.

    `optax.clip_by_global_norm` divides by the norm itself, PyTorch by the norm plus 1e-6.
    """

    def clip(gradients: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        factor = jnp.minimum(1, norm / (optax.tree.norm(gradients) + 1e-6))
        return jax.tree.map(lambda gradient: gradient * factor, gradients)

    return optax.stateless(clip) if norm else optax.identity()
