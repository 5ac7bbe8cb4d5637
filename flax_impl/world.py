"""Several processes as one, on `jax.distributed`. Read next to `torch_impl/world.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import AxisType, PartitionSpec

from common.errors import UserError
from common.world import HEARTBEAT, PATIENCE, World
from flax_impl.state import TrainState


def join(name: str) -> World:
    """Meet the other processes, if the environment says that there are any; see `common.world.World`.

    Args:
        name: `--device`.

    Raises:
        UserError: the environment does not describe a process, or the others are not to be met.
    """
    world = World.of_environment(even=True)
    if world.alone:
        return world
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")  # a GPU of each process would join the world, too
    with world.meeting():
        jax.distributed.initialize(
            world.address,
            world.size,
            world.rank,
            local_device_ids=world.local_rank,
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=PATIENCE,
        )
    return world


@contextmanager
def in_touch() -> Iterator[None]:
    """Say in a sentence that another process is gone.

    Raises:
        UserError: names this one.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or not any(word in str(error) for word in ("Gloo", "NCCL", "coordination")):
            raise
        raise UserError(f"process {jax.process_index()} of {jax.process_count()} has lost another one.") from error


def leave(world: World) -> None:
    """Part from the other processes."""
    if not world.alone:
        jax.distributed.shutdown()


def share(state: TrainState, world: World, first: int) -> tuple[TrainState, int]:
    """Give every process the state that process 0 has, laid out on the devices of all.

    Args:
        state: of this process.
        world: its place.
        first: any number that process 0 has.

    Returns:
        The state and that number.
    """
    if world.alone:
        return state, first
    state, first = multihost_utils.broadcast_one_to_all((state, np.int64(first)))
    state = state.replace(processes=world.size)
    mesh = jax.make_mesh((world.size,), ("data",), axis_types=(AxisType.Auto,))
    return multihost_utils.host_local_array_to_global_array(state, mesh, PartitionSpec()), int(first)


def agree(goes_on: bool, world: World) -> bool:
    """What process 0 says, in all of them; every one has to call it."""
    if world.alone:
        return goes_on
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(goes_on)))


def add_up(sums: Mapping[str, Array], world: World) -> Mapping[str, Array]:
    """The same scalars, which are those of all processes: this one's copy, for which it needs no other."""
    return sums if world.alone else {name: value.addressable_data(0) for name, value in sums.items()}
