"""Where JAX computes, and in what. Read next to `torch_impl/device.py`."""

from __future__ import annotations

import os
import platform
import sys
from math import inf
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding

from common.arithmetic import check_products, named, operands
from common.errors import UserError, first_line
from common.recipes.spec import Precision, Recipe
from common.system import keep_freed, peak_resident_bytes, programs_folder


def pick_device(name: str) -> jax.Device:
    """`auto` takes the GPU if JAX sees one, `cpu` and `gpu` insist. On the CPU, memory is kept: `keep_freed`.

    From here on what is compiled is kept for the next process: `keep_programs`.

    Raises:
        UserError: a GPU is asked for and JAX sees none, or JAX_PLATFORMS names what is not there; says why that may be.
    """
    keep_programs()
    try:
        device = jax.local_devices(backend="cpu" if name == "cpu" else None)[0]
    except (RuntimeError, AssertionError) as error:  # the latter where a platform has no plugin
        given = os.environ.get("JAX_PLATFORMS")
        advice = f"JAX_PLATFORMS is {given!r}: unset it, or set it to cpu" if given else "JAX has no device"
        raise UserError(f"{advice}. JAX says: {first_line(error)}.") from error
    if name == "gpu" and device.platform != "gpu":
        raise UserError(
            f"--device gpu: JAX {jax.__version__} sees no GPU; is an extra installed (pip install '.[flax,cuda13]', "
            f"or cuda12), and does the driver support it?"
        )
    if device.platform == "cpu":
        keep_freed()
    return device


def keep_programs() -> None:
    """Let JAX keep what it compiles for the next process, also what took it less than a second.

    JAX_COMPILATION_CACHE_DIR names another folder than `programs_folder`, JAX_ENABLE_COMPILATION_CACHE=false none. One
    that cannot be written is left alone, and each process compiles for itself.
    https://docs.jax.dev/en/latest/persistent_compilation_cache.html
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        folder = programs_folder()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # who writes here has this user run what they wrote
        except OSError:
            return
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def memory(device: jax.Device | Sharding) -> float:
    """The device's, in bytes; a CPU's counts as infinite, for the examples are there anyway."""
    if isinstance(device, Sharding):
        [device] = device.addressable_devices
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else inf


def compute_dtype(precision: Precision) -> Any:
    """The `dtype` for a model in a recipe's precision: given where parameters are kept wider, else None."""
    return jnp.dtype(precision) if precision in ("bfloat16", "float16") else None


def model_dtypes(recipe: Recipe) -> dict[str, Any]:
    """`dtype` and `param_dtype` of a recipe's model."""
    return {"dtype": compute_dtype(recipe.precision), "param_dtype": jnp.dtype(recipe.param_dtype)}


def set_precision(precision: Precision) -> None:
    """Multiply float32 numbers in float32 from now on, or in TF32 where a recipe says so, in this whole process.

    XLA itself may take TF32 on a GPU. A float64 recipe switches JAX's 64-bit mode on, without which JAX makes float32
    of every float64.
    """
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "highest")
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)


def be_deterministic() -> None:
    """Let this process, from before its first use of a device on, take only algorithms that repeat their results bit
    for bit; XLA then no longer chooses them by trying."""
    flag = "--xla_gpu_deterministic_ops=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def products(device: jax.Device) -> dict[str, str]:
    """What float32 numbers are multiplied in at present, found by trying: see `common.arithmetic`."""
    dense, filtered = map(np.asarray, _multiply(*jax.device_put(operands(), device)))
    return {"dense": named(dense[:, 0].tolist()), "convolution": named(filtered[:, 8, 8, 0].tolist())}


@jax.jit
def _multiply(rows: Array, one: Array, images: Array, filters: Array) -> tuple[Array, Array]:
    layout = ("NHWC", "HWIO", "NHWC")
    return rows @ one, jax.lax.conv_general_dilated(images, filters, (1, 1), "SAME", dimension_numbers=layout)


def check_precision(precision: Precision, device: jax.Device) -> dict[str, str]:
    """Try a convolution and a product in a recipe's precision, before a run begins.

    A note on stderr says where bfloat16 is the slower choice: for it XLA has no faster products on a CPU.

    Returns:
        What float32 numbers are multiplied in: a name for each kind of product.

    Raises:
        UserError: the device does not compute in it.
    """
    set_precision(precision)
    dtype = compute_dtype(precision) or jnp.float32
    try:
        with jax.default_device(device):
            features = jax.lax.conv(jnp.ones((1, 8, 4, 4), dtype), jnp.ones((8, 8, 3, 3), dtype), (1, 1), "VALID")
            jax.block_until_ready(features.reshape(1, 32) @ jnp.ones((32, 2), dtype))
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"precision is {precision}, in which {describe(device)} does not compute: {error}.") from error
    found = products(device)
    check_products(precision, found, describe(device))
    if precision == "bfloat16" and device.platform == "cpu":
        print("note: on a CPU Flax is slower in bfloat16 than in float32 (--precision float32)", file=sys.stderr)
    return found


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
