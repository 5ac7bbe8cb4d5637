"""A recipe's optimizer and schedule in PyTorch. Read next to `flax_impl/optim.py`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from common.recipes import Optimizer, Schedule


def build_optimizer(spec: Optimizer, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, at its base rate. Defaults differ between frameworks, so all is passed."""
    parameters = list(parameters)
    betas = (spec.beta1, spec.beta2)
    match spec.name:
        case "sgd":
            return torch.optim.SGD(
                parameters, spec.lr, spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.nesterov
            )
        case "adam":
            return torch.optim.Adam(parameters, spec.lr, betas, spec.eps, spec.weight_decay)
        case "adamw":
            return torch.optim.AdamW(parameters, spec.lr, betas, spec.eps, spec.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, spec: Schedule, steps_per_epoch: int) -> LambdaLR:
    """Multiply the base rate by the recipe's factor; `.step()` after every optimizer step."""
    return LambdaLR(optimizer, lambda step: spec.factor(step, steps_per_epoch))


def clip_gradients(parameters: Iterable[Parameter], norm: float) -> None:
    """Scale all gradients down, in place, so that their common norm is at most `norm`; 0 leaves them alone."""
    if norm:
        torch.nn.utils.clip_grad_norm_(parameters, norm)
