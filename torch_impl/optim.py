"""A recipe's optimizer, schedule and loss scale in PyTorch. Read next to `flax_impl/optim.py`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from common.recipes import LossScale, Optimizer, Schedule


def build_optimizer(
    spec: Optimizer, head: Iterable[Parameter], backbone: Iterable[Parameter] = (), backbone_lr: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, at its base rate. Defaults differ between frameworks, so all is passed.

    Args:
        spec: the recipe's.
        head: parameters trained at the full rate.
        backbone: parameters trained at `backbone_lr` times it.
        backbone_lr: see `common.recipes.FineTune`.
    """
    groups = [
        {"params": [p for p in parameters if _is_decayed(p, spec) == decay], "lr": rate, "weight_decay": weight_decay}
        for parameters, rate in ((list(head), spec.lr), (list(backbone), spec.lr * backbone_lr))
        for decay, weight_decay in ((True, spec.weight_decay), (False, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    betas = (spec.beta1, spec.beta2)
    match spec.name:
        case "sgd":
            optimizer = torch.optim.SGD(groups, spec.lr, spec.momentum, nesterov=spec.nesterov, fused=True)
            return _with_momentum(optimizer) if spec.momentum else optimizer
        case "adam":
            return torch.optim.Adam(groups, spec.lr, betas, spec.eps, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, spec.lr, betas, spec.eps, fused=True)


def _with_momentum(optimizer: torch.optim.SGD) -> torch.optim.SGD:
    """Start from a momentum of zeros, as optax does.

    Fused SGD makes it of uninitialised memory in its first step, and fills it only if that step is taken: a first step
    that loss scaling leaves out would give the second one garbage.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _is_decayed(parameter: Parameter, spec: Optimizer) -> bool:
    return spec.decay_biases or parameter.ndim > 1


def build_schedule(optimizer: torch.optim.Optimizer, spec: Schedule, steps_per_epoch: int, epochs: int) -> LambdaLR:
    """Multiply the base rates by the recipe's factor; `.step()` after every optimizer step."""
    return LambdaLR(optimizer, lambda step: spec.factor(step, steps_per_epoch, epochs))


def build_scaler(spec: LossScale, precision: str, device: torch.device) -> GradScaler:
    """Dynamic loss scaling under float16; otherwise one that does nothing."""
    enabled = precision == "float16"
    return GradScaler(device.type, spec.initial, spec.growth, spec.backoff, spec.interval, enabled)


def clip_gradients(parameters: Iterable[Parameter], norm: float) -> None:
    """Scale all gradients down, in place, so that their common norm is at most `norm`; 0 leaves them alone."""
    if norm:
        torch.nn.utils.clip_grad_norm_(parameters, norm)
