"""A recipe's optimizer, schedule and loss scale in PyTorch. Read next to `flax_impl/optim.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from common.recipes.spec import LossScale, Optimizer, Schedule
from common.weights import exchange

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """An optimizer that a recipe can name.

    Attributes:
        make: it, from the recipe's fields and groups of parameters.
        slots: PyTorch's names of what it remembers of each parameter.
        counts: whether it keeps its own count of steps.
    """

    make: Callable[[Optimizer, Groups], torch.optim.Optimizer]
    slots: tuple[str, ...]
    counts: bool


def build_optimizer(
    spec: Optimizer, head: Iterable[Parameter], backbone: Iterable[Parameter] = (), backbone_lr: float = 1.0
) -> torch.optim.Optimizer:
    """The optimizer that a recipe names, at its base rate. Defaults differ between frameworks, so all is passed.

    Args:
        spec: the recipe's.
        head: parameters trained at the full rate.
        backbone: parameters trained at `backbone_lr` times it.
        backbone_lr: see `common.recipes.spec.FineTune`.
    """
    groups = [
        {"params": [p for p in parameters if _is_decayed(p, spec) == decay], "lr": rate, "weight_decay": weight_decay}
        for parameters, rate in ((list(head), spec.lr), (list(backbone), spec.lr * backbone_lr))
        for decay, weight_decay in ((True, spec.weight_decay), (False, 0.0))
    ]
    groups = [group for group in groups if group["params"]]
    return OPTIMIZERS[spec.name].make(spec, groups)


def _sgd(spec: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(groups, spec.lr, spec.momentum, nesterov=spec.nesterov, fused=True)
    return _with_momentum(optimizer) if spec.momentum else optimizer


def _adam(spec: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, spec.lr, (spec.beta1, spec.beta2), spec.eps, fused=True)


def _adamw(spec: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, spec.lr, (spec.beta1, spec.beta2), spec.eps, fused=True)


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


OPTIMIZERS: dict[str, Kind] = {
    "sgd": Kind(_sgd, ("momentum_buffer",), counts=False),
    "adam": Kind(_adam, ("exp_avg", "exp_avg_sq"), counts=True),
    "adamw": Kind(_adamw, ("exp_avg", "exp_avg_sq"), counts=True),
}


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


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> exchange.OptimizerState:
    """An optimizer's memory by our names; Adam's is empty before its first step, when PyTorch has made none."""
    named = dict(model.named_parameters())
    slots: dict[str, exchange.Tensors] = {}
    steps = dict.fromkeys(named, 0)
    for name, parameter in named.items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if slot == "step":
                steps[name] = int(value)
            elif value is not None:
                slots.setdefault(slot, {})[name] = value.detach().cpu().numpy().copy()
    for slot, rows in slots.items():  # Adam makes no memory for a parameter while it is frozen
        slots[slot] = {name: rows.get(name, np.zeros_like(p.numpy(force=True))) for name, p in named.items()}
    last = max(steps.values())
    return exchange.OptimizerState(last, slots, {name: last - step for name, step in steps.items() if step < last})


def load_optimizer(state: exchange.OptimizerState, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Give an optimizer the memory that another one had, of either framework.

    Raises:
        UserError: a tensor is missing, unknown or mis-shaped; the optimizer is then untouched.
    """
    parameters = dict(model.named_parameters())
    wanted = {slot: {name: p.detach().numpy(force=True) for name, p in parameters.items()} for slot in state.slots}
    exchange.check_optimizer(state, exchange.OptimizerState(state.step, wanted))
    counts = any(kind.counts and {*state.slots} == {*kind.slots} for kind in OPTIMIZERS.values())
    for name, parameter in parameters.items():
        # In the parameter's memory layout, which may be channels last: fused optimizers go through both as they lie.
        memory = {slot: torch.empty_like(parameter) for slot in state.slots}
        for slot, rows in state.slots.items():
            memory[slot].copy_(torch.from_numpy(rows[name]))
        if counts:
            memory["step"] = torch.tensor(float(state.step - state.frozen.get(name, 0)), device=parameter.device)
        optimizer.state[parameter] = memory
