"""A recipe's optimizer, schedule and loss scale in optax. Read next to `torch_impl/optim.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from common.arch.spec import Arch
from common.recipes.spec import LossScale, Optimizer, Schedule
from common.weights import exchange
from flax_impl import convert
from flax_impl.loss_scale import Scaler


@dataclass(frozen=True)
class Kind:
    """An optimizer that a recipe can name.

    Attributes:
        make: the direction of a step, from the recipe's fields and its weight decay.
        slots: what it remembers of each parameter: PyTorch's name, and optax's.
    """

    make: Callable[[Optimizer, optax.GradientTransformation], optax.GradientTransformation]
    slots: dict[str, str]


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
        backbone_lr: see `common.recipes.spec.FineTune`.
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
    return OPTIMIZERS[spec.name].make(spec, decay)


def _sgd(spec: Optimizer, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    """L2 decay enters the momentum, as in PyTorch, so it comes first in the chain."""
    return optax.chain(decay, optax.trace(spec.momentum, spec.nesterov) if spec.momentum else optax.identity())


def _adam(spec: Optimizer, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(decay, optax.scale_by_adam(spec.beta1, spec.beta2, spec.eps))


def _adamw(spec: Optimizer, decay: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(spec.beta1, spec.beta2, spec.eps), decay)


OPTIMIZERS: dict[str, Kind] = {
    "sgd": Kind(_sgd, {"momentum_buffer": "trace"}),
    "adam": Kind(_adam, {"exp_avg": "mu", "exp_avg_sq": "nu"}),
    "adamw": Kind(_adamw, {"exp_avg": "mu", "exp_avg_sq": "nu"}),
}


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


def optimizer_state(opt_state: Any, arch: Arch) -> exchange.OptimizerState:
    """optax's state of `build_optimizer` -> PyTorch's slots, by our names in PyTorch's layout."""
    slots: dict[str, dict[tuple[str, ...], Any]] = {}
    clocks: dict[bool, int] = {}
    names = _names(opt_state)
    for path, leaf in _leaves(opt_state):
        slot, place = _slot(path, names)
        if slot:
            slots.setdefault(slot, {})[("params", *place)] = leaf
        elif path[-1] == "count":
            clocks["backbone" in path] = int(leaf)
    step = clocks.get(False, 0)
    memory = {slot: convert.named(unflatten_dict(rows), arch) for slot, rows in slots.items()}
    frozen = step - clocks.get(True, step)
    late = [place for path, _ in _leaves(opt_state) if "backbone" in path for place in [_slot(path, names)[1]] if place]
    parameters = {convert.flax_path(name)[1:]: name for name in exchange.shapes(arch)}
    return exchange.OptimizerState(step, memory, {parameters[place]: frozen for place in late} if frozen else {})


def load_optimizer(state: exchange.OptimizerState, opt_state: Any, arch: Arch) -> Any:
    """PyTorch's slots -> an optax state of the same structure as `opt_state`.

    Raises:
        UserError: a slot or a tensor is missing, unknown or mis-shaped, or the optimizers differ.
    """
    wanted = optimizer_state(opt_state, arch)
    exchange.check_optimizer(state, wanted)
    values = {
        (slot, convert.flax_path(name)[1:]): jnp.array(convert.to_flax_layout(name, array, arch))
        for slot, tensors in state.slots.items()
        for name, array in tensors.items()
    }
    frozen = max(state.frozen.values(), default=0)
    names = _names(opt_state)

    def fill(keys: Any, old: Any) -> Any:
        path = tuple(_key(key) for key in keys)
        slot, place = _slot(path, names)
        if slot:
            return values[slot, place]
        behind = frozen if "backbone" in path and path[-1] == "count" else 0
        return jnp.asarray(state.step - behind, old.dtype)

    return jax.tree_util.tree_map_with_path(fill, opt_state)


def _leaves(opt_state: Any) -> list[tuple[tuple[str, ...], Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(opt_state)
    return [(tuple(_key(key) for key in path), leaf) for path, leaf in flat]


def _key(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ("name", "key", "idx") if hasattr(key, kind)))


def _names(opt_state: Any) -> dict[str, str]:
    """optax's names of the slots in a state, and PyTorch's: those of the optimizer that has them all and no others."""
    kinds = [{theirs: ours for ours, theirs in kind.slots.items()} for kind in OPTIMIZERS.values()]
    held = {name for path, _ in _leaves(opt_state) for name in path if any(name in kind for kind in kinds)}
    return next((kind for kind in kinds if kind.keys() == held), {})


def _slot(path: tuple[str, ...], names: dict[str, str]) -> tuple[str, tuple[str, ...]]:
    """PyTorch's name of the slot that a leaf of optax's state belongs to, and its parameter's path; empty if none."""
    for theirs, ours in names.items():
        if theirs in path:
            return ours, path[path.index(theirs) + 1 :]
    return "", ()
