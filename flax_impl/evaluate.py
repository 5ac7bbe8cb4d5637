"""Evaluate checkpoints in Flax: `python -m flax_impl.evaluate RUN`. Read next to `torch_impl/evaluate.py`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from common import cli
from common.arch import Arch
from common.datasets import Dataset
from common.pipeline import batches
from common.recipes import Recipe
from common.run import Scores
from flax_impl import checkpoint
from flax_impl.device import compute_dtype, pick_device, to_device
from flax_impl.model import AlexNet, LeNet, build
from flax_impl.preprocess import preprocess


@partial(jax.jit, static_argnames=("model", "recipe"))
def eval_step(
    model: AlexNet | LeNet, variables: Any, images: Array, labels: Array, draws: dict[str, Array], recipe: Recipe
) -> dict[str, Array]:
    """Sums over one batch, on the device: `loss` (cross-entropy in nats), `top1`, `top5` and `count`."""
    dtype = jnp.dtype(recipe.param_dtype)
    x = preprocess(images, draws, recipe.preprocess, dtype)
    logits = cast(Array, model.apply(variables, x, train=False)).astype(dtype)
    guesses = jax.lax.top_k(logits, min(5, logits.shape[1]))[1] == labels[:, None]
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum(),
        "top1": guesses[:, 0].sum(),
        "top5": guesses.sum(),
        "count": jnp.array(len(labels)),
    }


def evaluate(model: AlexNet | LeNet, variables: Any, data: Dataset, recipe: Recipe) -> Scores:
    """Score a model on every example of a split."""
    device = jax.tree.leaves(variables)[0].device
    steps = [
        eval_step(model, variables, *to_device(batch, device), recipe)
        for batch in batches(data, recipe, 0, train=False)
    ]
    loss, top1, top5, count = (sum(float(step[name]) for step in steps) for name in ("loss", "top1", "top5", "count"))
    return Scores(loss, int(top1), int(top5), int(count))


def evaluate_checkpoint(path: Path, arch: Arch, device: str, data: Dataset, recipe: Recipe) -> Scores:
    """Score the network of a checkpoint or a .safetensors file.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    if recipe.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    variables = jax.device_put(checkpoint.load_variables(path, arch, recipe.param_dtype), pick_device(device))
    model = build(arch, dtype=compute_dtype(recipe.precision), param_dtype=jnp.dtype(recipe.param_dtype))
    return evaluate(model, variables, data, recipe)


if __name__ == "__main__":
    cli.evaluate("flax", evaluate_checkpoint)
