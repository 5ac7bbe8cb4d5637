"""What a training step changes. Read next to `torch_impl/state.py`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.training import train_state
from jax import Array
from jax.sharding import Sharding

from common.arch.initializers import get_init
from common.arch.spec import Arch
from common.recipes.spec import Recipe
from flax_impl.device import model_dtypes, set_precision
from flax_impl.init import initialize
from flax_impl.loss_scale import Scaler
from flax_impl.model import AlexNet, LeNet, build
from flax_impl.optim import build_optimizer, build_scaler, build_schedule


class TrainState(train_state.TrainState):
    """Everything that a training step changes, as a pytree, and the recipe that says how.

    Attributes:
        step: training steps so far.
        params, batch_stats: the variables of the network.
        opt_state: of `tx`, the recipe's optimizer with its schedule.
        scaler: of the loss.
        key: of the run, two words made from the recipe's seed; a leaf, so that another seed is another value and not
            another program.
        model, recipe: what is trained; no leaves.
        freeze_steps: so many optimizer steps leave the backbone as it is.
        processes: that train together, each with equally many rows of a batch.
    """

    batch_stats: Any
    scaler: Scaler
    key: Array
    model: AlexNet | LeNet = struct.field(pytree_node=False)
    recipe: Recipe = struct.field(pytree_node=False)
    freeze_steps: int = struct.field(pytree_node=False)
    processes: int = struct.field(pytree_node=False, default=1)

    @property
    def device(self) -> jax.Device | Sharding:
        """Where the parameters are; among several processes how they lie on the devices of all."""
        return jax.tree.leaves(self.params)[0].device

    @property
    def dtype(self) -> Any:
        """Of the parameters."""
        return jnp.dtype(self.recipe.param_dtype)

    @property
    def variables(self) -> dict[str, Any]:
        """What `apply_fn` takes."""
        return {"params": self.params} | ({"batch_stats": self.batch_stats} if self.batch_stats else {})

    @property
    def updates(self) -> Array:
        """Optimizer steps done: fewer than `step` where float16 overflowed."""
        return self.opt_state[-1].count

    @property
    def dropout_key(self) -> Array:
        """Of this step's masks."""
        return jax.random.fold_in(jax.random.wrap_key_data(self.key), self.step)


def init_state(recipe: Recipe, arch: Arch, steps: int, device: jax.Device) -> TrainState:
    """Fresh parameters, optimizer and schedule.

    Args:
        recipe: what to train.
        arch: adapted to the data.
        steps: in one epoch.
        device: to train on.
    """
    set_precision(recipe.precision)
    model = build(arch, **model_dtypes(recipe))
    with jax.default_device(device):
        variables = initialize(model, get_init(recipe.init), recipe.seed)
        rate = build_schedule(recipe.schedule, recipe.optimizer.lr, steps, recipe.epochs)
        tune = recipe.finetune
        is_head = None if tune.head == "all" else recipe.head_layers(arch).__contains__
        freeze_steps = tune.freeze_epochs * steps
        state = TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            tx=build_optimizer(recipe.optimizer, rate, is_head, tune.backbone_lr, freeze_steps),
            batch_stats=variables.get("batch_stats", {}),
            scaler=build_scaler(recipe.loss_scale, recipe.precision),
            key=jax.random.key_data(jax.random.key(recipe.seed)),
            model=model,
            recipe=recipe,
            freeze_steps=freeze_steps,
        )
    # As a step leaves them, arrays of a definite type on a definite device, or the second step would compile again.
    return jax.device_put(state.replace(step=jnp.zeros((), jnp.int32)), device)


def freeze(state: TrainState, gradients: Any) -> Any:
    """Zero the backbone's gradients during the first `freeze_steps` optimizer steps; its memory stays empty, too."""
    if not state.freeze_steps:
        return gradients
    head = state.recipe.head_layers(state.model.arch)
    frozen = {layer: (state.updates < state.freeze_steps) & (layer not in head) for layer in gradients}
    return {
        layer: jax.tree.map(lambda g, layer=layer: jnp.where(frozen[layer], 0, g), tree)
        for layer, tree in gradients.items()
    }
