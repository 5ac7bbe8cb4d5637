"""Several processes as one, on `torch.distributed`. Read next to `flax_impl/world.py`."""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError
from common.world import PATIENCE, World
from torch_impl.layers import synchronise_norms
from torch_impl.state import TrainState


def join(name: str) -> World:
    """Meet the other processes, if the environment says that there are any; see `common.world.World`.

    Args:
        name: `--device`.

    Raises:
        UserError: the environment does not describe a process, or the others are not to be met.
    """
    world = World.of_environment(even=False)
    if world.alone:
        return world
    backend = "gloo"
    if name != "cpu" and torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(world.local_rank)
    # DistributedDataParallel imports it. Were the group there by then, its functions' defaults would hold that forever.
    import_module("torch.distributed.nn.functional")
    with world.meeting():
        dist.init_process_group(backend, timeout=timedelta(seconds=PATIENCE))
    return world


@contextmanager
def in_touch() -> Iterator[None]:
    """Say in a sentence that another process is gone.

    Raises:
        UserError: names this one.
    """
    try:
        yield
    except RuntimeError as error:
        if not dist.is_initialized() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise UserError(f"process {dist.get_rank()} of {dist.get_world_size()} has lost another one.") from error


def leave(world: World) -> None:
    """Part from the other processes, once all have done their work.

    gloo's threads end with the last object that holds the group. The interpreter may not end before them: one that is
    still to give back a tensor of the last sum would abort the process.
    """
    if not world.alone:
        dist.barrier()
        gc.collect()  # DistributedDataParallel holds the group, and lies in a circle
        dist.destroy_process_group()


def share(state: TrainState, world: World, first: int) -> int:
    """Give every process the state that process 0 has, and join them: gradients are added, batch norm synchronised.

    Args:
        state: of this process; changed in place.
        world: its place.
        first: any number that process 0 has.

    Returns:
        That number.
    """
    if world.alone:
        return first
    parts = (state.model, state.optimizer, state.schedule, state.scaler)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in parts], buffer)
    message: list[Any] = [buffer.getvalue(), state.step, first] if world.main else [None] * 3
    dist.broadcast_object_list(message, device=state.device)
    content, state.step, first = message
    for part, values in zip(parts, torch.load(io.BytesIO(content), "cpu", weights_only=True), strict=True):
        part.load_state_dict(values)
    synchronise_norms(state.model)
    state.world = world
    with warnings.catch_warnings():  # newer versions call the first option otherwise
        warnings.simplefilter("ignore", FutureWarning)
        # Buffers differ: each process has its row of the dropout masks. A frozen backbone gets no gradients.
        state.network = DistributedDataParallel(
            state.model, broadcast_buffers=False, find_unused_parameters=state.freeze_steps > 0
        )
    return first


def agree(goes_on: bool, world: World) -> bool:
    """What process 0 says, in all of them; every one has to call it."""
    if world.alone:
        return goes_on
    said = [goes_on]
    dist.broadcast_object_list(said)
    return said[0]


def add_up(sums: Mapping[str, Tensor], world: World) -> Mapping[str, Tensor]:
    """The same scalars, added over all processes; every one has to call it."""
    if world.alone:
        return sums
    total = torch.stack([value.double() for value in sums.values()])
    dist.all_reduce(total)
    return dict(zip(sums, total, strict=True))
