"""Fresh variables in Flax, drawn as an `Init` says. Read next to `torch_impl/init.py`."""

from __future__ import annotations

from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from common.arch.initializers import Init, Kernel, fans
from flax_impl.model import AlexNet, LeNet


def initialize(model: AlexNet | LeNet, init: Init, seed: int) -> dict[str, Any]:
    """Draw every parameter anew.

    Args:
        model: whose `arch` gives the input size and the layers' fans.
        init: the scheme.
        seed: of the key.

    Returns:
        {"params": ...} and, where the model has batch norm, "batch_stats", in the model's parameter dtype.
    """
    key = jax.random.key(seed)
    return (_draw_within if isinstance(key, jax.core.Tracer) else _draw_alone)(model, init, key)


def _draw(model: AlexNet | LeNet, init: Init, key: Array) -> dict[str, Any]:
    variables = model.init(key, jnp.zeros((1, *model.arch.image), model.param_dtype), train=False)
    flat = flatten_dict(variables["params"])
    keys = dict(zip(flat, jax.random.split(key, len(flat)), strict=True))
    for path, old in flat.items():
        if path[-1] == "kernel":
            kernel = init.conv if old.ndim == 4 else init.dense
            flat[path] = draw_kernel(keys[path], old.shape, old.dtype, kernel, init.std)
        elif path[-1] == "bias" and path[-2] != "norm":
            fan_in, _ = fans(path[0], model.arch)
            flat[path] = draw_bias(keys[path], old.shape, old.dtype, init, path[0], fan_in)
    # linen keeps batch statistics in float32 whatever the parameters are.
    stats = jax.tree.map(lambda x: x.astype(model.param_dtype), variables.get("batch_stats", {}))
    return {"params": unflatten_dict(flat)} | ({"batch_stats": stats} if stats else {})


_draw_within = jax.jit(_draw, static_argnums=(0, 1))
# By itself LLVM spends longer on making sixteen draws fast than they take. A function within another has its options.
_draw_alone = jax.jit(_draw, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 1})


def draw_kernel(key: Array, shape: tuple[int, ...], dtype: Any, kernel: Kernel, std: float) -> Array:
    """Draw a kernel, (in, out) or (height, width, in, out), from the named distribution."""
    scaling = jax.nn.initializers.variance_scaling
    match kernel:
        case "fan_in_uniform":
            draw = scaling(1 / 3, "fan_in", "uniform")  # variance b^2 / 3 of U(-b, b)
        case "he_fan_in":
            draw = scaling(2, "fan_in", "normal")  # not "truncated_normal", which linen's own default is
        case "he_fan_out":
            draw = scaling(2, "fan_out", "normal")
        case "xavier_uniform":
            draw = scaling(1, "fan_avg", "uniform")
        case "normal":
            draw = jax.nn.initializers.normal(std)
    return draw(key, shape, dtype)


def draw_bias(key: Array, shape: tuple[int, ...], dtype: Any, init: Init, layer: str, fan_in: int) -> Array:
    """Draw a bias (out,) of the layer named."""
    if layer in init.ones:
        return jnp.ones(shape, dtype)
    if init.bias == "zeros":
        return jnp.zeros(shape, dtype)
    return jax.random.uniform(key, shape, dtype, -1 / sqrt(fan_in), 1 / sqrt(fan_in))
