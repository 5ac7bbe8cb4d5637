"""Checkpoints in Flax: an orbax folder. Read next to `torch_impl/checkpoint.py`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from common.arch.initializers import get_init
from common.arch.spec import Arch
from common.config import to_dict
from common.errors import DamagedError, NonFiniteError, UserError, first_line
from common.runs.files import atomic, check_sums, missing, write_sums
from common.runs.progress import Progress
from flax_impl.init import initialize
from flax_impl.model import build
from flax_impl.state import TrainState

_STILL, _PATIENCE = 0.3, 10.0  # seconds


def save(path: Path, state: TrainState, progress: Progress) -> None:
    """Write everything that a step changes, whole or not at all.

    Raises:
        NonFiniteError: a parameter is NaN or infinite.
        UserError: it cannot be written.
    """
    _hush()
    state = _on_host(state)
    if not all(bool(jnp.isfinite(parameter).all()) for parameter in jax.tree.leaves(state.params)):
        raise NonFiniteError("a parameter is not finite", int(state.step))
    content = ocp.args.Composite(
        variables=ocp.args.StandardSave(state.variables),
        training=ocp.args.StandardSave(_training(state)),
        progress=ocp.args.JsonSave(to_dict(progress)),
    )
    with atomic(path.absolute()) as part:
        try:
            with _quiet(), _checkpointer() as checkpointer:
                checkpointer.save(part, content)
        except Exception:
            _settle(part.parent)  # or its threads would write anew what is cleared away
            raise
        write_sums(part)


def size(state: TrainState) -> int:
    """The bytes of a checkpoint's arrays."""
    return sum(array.nbytes for array in jax.tree.leaves((state.variables, state.opt_state)))


def load(path: Path, state: TrainState) -> tuple[TrainState, Progress]:
    """A state of the same recipe with a checkpoint's values.

    Returns:
        The state, and where in the run it was written.

    Raises:
        DamagedError: the folder is not as it was written.
        UserError: it is of another recipe or architecture.
    """
    fields = _read(path, progress=ocp.args.JsonRestore())["progress"]
    progress = Progress.read(fields, state.recipe, state.model.arch, path)
    try:
        content = _restore(path, variables=_like(state.variables), training=_like(_training(state)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a checkpoint of this recipe: {error}.") from error
    variables = content["variables"]
    state = state.replace(
        params=variables["params"], batch_stats=variables.get("batch_stats", {}), **content["training"]
    )
    return state, progress


def _training(state: TrainState) -> dict[str, Any]:
    """What a step changes besides the variables; orbax does not keep the absent fields of a scaler."""
    scaled = {} if state.scaler.scale is None else {"scaler": state.scaler}
    return {"opt_state": state.opt_state, "step": state.step} | scaled


def load_variables(path: Path, arch: Arch, precision: str = "float32") -> dict[str, Any]:
    """The network's variables alone, of a checkpoint in this precision.

    Raises:
        UserError: the file cannot be read or does not fit `arch`.
    """
    model = build(arch, param_dtype=jnp.dtype(precision))
    shapes = jax.eval_shape(partial(initialize, model, get_init("torch"), 0))
    return _read(path, variables=_like(shapes))["variables"]


def _like(target: Any) -> ocp.args.StandardRestore:
    return ocp.args.StandardRestore(_on_host(target))


def _read(path: Path, **parts: Any) -> dict[str, Any]:
    if not path.is_dir():
        raise missing(path)
    check_sums(path)  # which orbax does not look for
    try:
        return _restore(path, **parts)
    except Exception as error:  # of any kind, from what damaged bytes can mean
        raise DamagedError(f"{path} is damaged or not a checkpoint of this recipe: {first_line(error)}.") from error


def _restore(path: Path, **parts: Any) -> dict[str, Any]:
    with _quiet(), _checkpointer() as checkpointer:
        content = checkpointer.restore(path.absolute(), ocp.args.Composite(**parts))
    return {name: content[name] for name in parts}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep orbax's log off the screen; what it raises says the same."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _settle(folder: Path) -> None:
    """Wait until nothing more is added to a folder: orbax's threads go on for a moment after a write has failed."""
    before, deadline = None, monotonic() + _PATIENCE
    while (found := list(os.walk(folder))) != before and monotonic() < deadline:
        before = found
        sleep(_STILL)


@cache
def _hush() -> None:
    """Keep off the screen what orbax's threads go on to say after a write has failed: what is raised says it."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others


def _on_host(tree: Any) -> Any:
    """Arrays of numpy, where there are other processes: orbax would have all of them take part with JAX's own."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype) if isinstance(a, jax.ShapeDtypeStruct) else np.array(a), tree
    )


def _checkpointer() -> ocp.Checkpointer:
    """One that does not wait for other processes: only the one that writes or reads calls it."""
    alone = ocp.options.MultiprocessingOptions(primary_host=jax.process_index(), active_processes={jax.process_index()})
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        variables=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        training=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        progress=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
