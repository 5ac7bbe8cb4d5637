"""Where JAX computes, and how a batch gets there. Read next to `torch_impl/device.py`."""

from __future__ import annotations

import os
import platform
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from common.errors import UserError
from common.pipeline import Batch
from common.recipes import Precision
from common.run import peak_resident_bytes


def pick_device(name: str) -> jax.Device:
    """`auto` takes the GPU if JAX sees one, `cpu` and `gpu` insist.

    Raises:
        UserError: a GPU is asked for and JAX sees none; says why that may be.
    """
    if name == "cpu":
        return jax.devices("cpu")[0]
    device = jax.devices()[0]
    if name == "gpu" and device.platform != "gpu":
        raise UserError(
            f"--device gpu: JAX {jax.__version__} sees no GPU; is an extra installed (pip install '.[flax,cuda13]', "
            f"or cuda12), and does the driver support it?"
        )
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


def to_device(batch: Batch, device: jax.Device) -> tuple[Array, Array, dict[str, Array]]:
    """Images uint8 (N, H, W, C), labels int32 (N,) and draws on the device; the copies do not wait for it."""
    return jax.device_put((batch.images, batch.labels, batch.draws), device)
