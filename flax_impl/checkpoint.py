"""Checkpoints in Flax: an orbax folder. Read next to `torch_impl/checkpoint.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from common.arch import Arch
from common.errors import UserError
from common.initializers import get_init
from common.run import RunFolder
from flax_impl import convert
from flax_impl.init import initialize
from flax_impl.model import build

if TYPE_CHECKING:
    from flax_impl.train import TrainState


def save(path: Path, state: TrainState) -> None:
    """Write everything that a step changes, whole or not at all (orbax renames a finished folder)."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            path.absolute(),
            ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                training=ocp.args.StandardSave(_training(state)),
            ),
        )


def load(path: Path, state: TrainState) -> TrainState:
    """A state of the same recipe with a checkpoint's values.

    Raises:
        UserError: the folder cannot be read, or is of another recipe.
    """
    content = _read(path, variables=state.variables, training=_training(state))
    variables = content["variables"]
    return state.replace(
        params=variables["params"], batch_stats=variables.get("batch_stats", {}), **content["training"]
    )


def _training(state: TrainState) -> dict[str, Any]:
    """What a step changes besides the variables; orbax does not keep the absent fields of a scaler."""
    scaled = {} if state.scaler.scale is None else {"scaler": state.scaler}
    return {"opt_state": state.opt_state, "step": state.step} | scaled


def load_variables(path: Path, arch: Arch, precision: str = "float32") -> dict[str, Any]:
    """The variables alone, from a checkpoint in this precision or a .safetensors file.

    Raises:
        UserError: the file cannot be read or does not fit `arch`.
    """
    if path.suffix == ".safetensors":
        return convert.load(path, arch)
    model = build(arch, param_dtype=jnp.dtype(precision))
    shapes = jax.eval_shape(partial(initialize, model, get_init("torch"), 0))
    return _read(path, variables=shapes)["variables"]


def latest(run: RunFolder) -> Path | None:
    """The newest checkpoint of a run."""
    found = run.checkpoints("flax")
    return found[-1] if found else None


def resume(run: RunFolder, state: TrainState) -> tuple[TrainState, int]:
    """Load the newest checkpoint of a run and drop the metrics written after it.

    Returns:
        The state, and the epochs that are finished.
    """
    path = latest(run)
    if path is None:
        run.forget_after(0)
        return state, 0
    state = load(path, state)
    epoch = run.epoch_of(path)
    run.forget_after(epoch)
    return state, epoch


def _read(path: Path, **targets: Any) -> dict[str, Any]:
    if not path.is_dir():
        raise UserError(f"There is no checkpoint {path}.")
    restore = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            content = checkpointer.restore(path.absolute(), ocp.args.Composite(**restore))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or not a checkpoint of this recipe: {error}.") from error
    return {name: content[name] for name in targets}
