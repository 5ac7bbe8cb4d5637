"""Where JAX computes, and how a batch gets there. Read next to `torch_impl/device.py`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from common.datasets import Dataset
from common.errors import UserError
from common.memory import keep_freed
from common.pipeline import Batch, one_ahead
from common.recipes import Precision
from common.run import peak_resident_bytes

Inputs = tuple[Array, Array, dict[str, Array]]

RESIDENT_SHARE = 0.25  # of a device's memory that a dataset may take for good


def pick_device(name: str) -> jax.Device:
    """`auto` takes the GPU if JAX sees one, `cpu` and `gpu` insist. On the CPU, memory is kept: `keep_freed`.

    Raises:
        UserError: a GPU is asked for and JAX sees none; says why that may be.
    """
    device = jax.local_devices(backend="cpu" if name == "cpu" else None)[0]
    if name == "gpu" and device.platform != "gpu":
        raise UserError(
            f"--device gpu: JAX {jax.__version__} sees no GPU; is an extra installed (pip install '.[flax,cuda13]', "
            f"or cuda12), and does the driver support it?"
        )
    if device.platform == "cpu":
        keep_freed()
    return device


def compute_dtype(precision: Precision) -> Any:
    """The `dtype` for a model in a recipe's precision: given where parameters are kept wider, else None."""
    return jnp.dtype(precision) if precision in ("bfloat16", "float16") else None


def check_precision(precision: Precision, device: jax.Device) -> None:
    """Try a convolution and a product in a recipe's precision, before a run begins.

    Raises:
        UserError: the device does not compute in it.
    """
    dtype = compute_dtype(precision) or jnp.float32
    try:
        with jax.default_device(device):
            features = jax.lax.conv(jnp.ones((1, 8, 4, 4), dtype), jnp.ones((8, 8, 3, 3), dtype), (1, 1), "VALID")
            jax.block_until_ready(features.reshape(1, 32) @ jnp.ones((32, 2), dtype))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"precision is {precision}, in which {describe(device)} does not compute: {error}.") from error


def check_compiler(device: jax.Device) -> None:
    """XLA brings its own compiler, so there is nothing that could be missing."""


def describe(device: jax.Device) -> str:
    """The device in words."""
    if device.platform == "cpu":
        return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return device.device_kind


def peak_memory(device: jax.Device) -> int:
    """The most bytes that arrays held on a GPU so far, or this process on a CPU."""
    return peak_resident_bytes() if device.platform == "cpu" else device.memory_stats()["peak_bytes_in_use"]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full; of it JAX has no class of its own."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def to_device(batch: Batch, device: jax.Device | Sharding) -> Inputs:
    """Images uint8 (N, H, W, C), labels int32 (N,) and draws on the device; the copies do not wait for it.

    On the devices of several processes N counts the rows of all.
    """
    return _put_rows((batch.images, batch.labels, batch.draws), device)


def _put_rows(arrays: Any, device: jax.Device | Sharding) -> Any:
    """Arrays of this process's rows on its device, or of all rows on those of all processes."""
    if not isinstance(device, NamedSharding):
        return jax.device_put(arrays, device)
    rows = NamedSharding(device.mesh, PartitionSpec(device.mesh.axis_names))
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(rows, array), arrays)


class Feed:
    """Takes the pipeline's batches to the device, one ahead of the step that computes.

    Examples that are in memory and take up to `RESIDENT_SHARE` of the device's are kept there as uint8, so that only
    their indices and draws travel. Others are copied batch by batch, beside the computation.

    Args:
        data: that the batches are of.
        device: where they go.
    """

    def __init__(self, data: Dataset, device: jax.Device | Sharding) -> None:
        self.device, arrays = device, data.arrays
        self.kept: tuple[Array, Array] | None = None
        if arrays and arrays.images.nbytes <= RESIDENT_SHARE * _memory(device):
            self.kept = jax.device_put((arrays.images, arrays.labels), device)

    def __call__(self, source: Iterable[Batch]) -> Iterator[tuple[Batch, Inputs]]:
        """Each batch with its inputs on the device: images uint8 (N, H, W, C), labels int32 (N,) and draws."""
        return one_ahead((batch, self._put(batch)) for batch in source)

    def _put(self, batch: Batch) -> Inputs:
        if not self.kept:
            return to_device(batch, self.device)
        ids, draws = _put_rows((batch.ids.astype(np.int32), batch.draws), self.device)
        return *_take(self.kept, ids), draws


@jax.jit
def _take(kept: tuple[Array, Array], ids: Array) -> tuple[Array, Array]:
    """Images and labels of these examples."""
    images, labels = kept
    return images[ids], labels[ids]


def _memory(device: jax.Device | Sharding) -> float:
    """The device's, in bytes; on the CPU, where the examples are anyway, there is no limit."""
    if isinstance(device, Sharding):
        [device] = device.addressable_devices
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else inf
