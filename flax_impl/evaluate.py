"""Evaluate checkpoints in Flax: `python -m flax_impl.evaluate RUN`. Read next to `torch_impl/evaluate.py`."""

from __future__ import annotations

from functools import partial
from math import log
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from common import cli
from common.datasets import Dataset
from common.evaluation import Watch
from common.networks import Network
from common.pipeline import batches
from common.recipes import Recipe
from common.run import Scores
from common.world import ALONE, World
from flax_impl import checkpoint, convert
from flax_impl.device import compute_dtype, pick_device, to_device
from flax_impl.model import AlexNet, LeNet, build
from flax_impl.preprocess import crop, preprocess


def ten_crop(images: Array, side: int, pad: int = 0) -> Array:
    """The four corners and the centre of each image, then those of its mirror image.

    Args:
        images: uint8 (N, H, W, C).
        side: of a crop.
        pad: zeros added on every side first.

    Returns:
        uint8 (10, N, side, side, C): top left, top right, bottom left, bottom right, centre, and the mirrored ones
        in the same order of their places, as `torchvision.transforms.v2.TenCrop` orders them (2012 paper, section 4.1).
    """
    height, width = (extent + 2 * pad - side for extent in images.shape[1:3])
    places = [(0, 0), (0, width), (height, 0), (height, width), (round(height / 2), round(width / 2))]
    crops = [
        crop(view, jnp.broadcast_to(jnp.array(place), (len(images), 2)), pad, side)
        for view in (images, jnp.flip(images, 2))
        for place in places
    ]
    return jnp.stack(crops)


@partial(jax.jit, static_argnames=("model", "recipe", "ten"))
def log_probabilities(
    model: AlexNet | LeNet, variables: Any, images: Array, draws: dict[str, Array], recipe: Recipe, *, ten: bool = False
) -> Array:
    """Log-softmax of a batch's logits (N, classes), on the device in the parameters' dtype.

    Args:
        model, variables: the network.
        images, draws: of a batch of evaluation, with central crops.
        recipe: gives preprocessing and precision.
        ten: average the probabilities of `ten_crop`'s crops instead, from the recipe's crop and padding.
    """
    spec, dtype = recipe.preprocess, jnp.dtype(recipe.param_dtype)

    def forward(view: Array, draws: dict[str, Array]) -> Array:
        x = preprocess(view, draws, spec, dtype)
        logits = cast(Array, model.apply(variables, x, train=False))
        return jax.nn.log_softmax(logits.astype(dtype), 1)

    if not ten:
        return forward(images, draws)
    assert spec.crop
    crops = ten_crop(images, spec.crop, spec.pad)
    return jax.nn.logsumexp(jax.lax.map(lambda view: forward(view, {}), crops), 0) - log(len(crops))


@partial(jax.jit, static_argnames=("model", "recipe", "ten"))
def eval_step(
    model: AlexNet | LeNet,
    variables: Any,
    images: Array,
    labels: Array,
    draws: dict[str, Array],
    recipe: Recipe,
    *,
    ten: bool = False,
) -> dict[str, Array]:
    """Sums over one batch, on the device: `loss` (cross-entropy in nats), `top1`, `top5` and `count`.

    And `log_probabilities` (N, classes); `ten` as there.
    """
    scores = log_probabilities(model, variables, images, draws, recipe, ten=ten)
    guesses = jax.lax.top_k(scores, min(5, scores.shape[1]))[1] == labels[:, None]
    real = draws["real"][:, None] if "real" in draws else None
    return {
        "loss": -jnp.take_along_axis(scores, labels[:, None], 1).sum(where=real),
        "top1": guesses[:, :1].sum(where=real),
        "top5": guesses.sum(where=real),
        "count": jnp.array(len(labels)) if real is None else real.sum(),
        "log_probabilities": scores,
    }


def evaluate(
    model: AlexNet | LeNet,
    variables: Any,
    data: Dataset,
    recipe: Recipe,
    *,
    ten: bool = False,
    watch: Watch | None = None,
    world: World = ALONE,
) -> Scores:
    """Score a model on every example of a split.

    Args:
        model, variables: to score.
        data: the split.
        recipe: gives batch size, preprocessing and precision.
        ten: average ten crops of each image.
        watch: is given each batch's labels (n,) and probabilities (n, classes).
        world: the process that scores its rows of each batch; the sums are those of all processes.
    """
    device = jax.tree.leaves(variables)[0].device
    steps = []
    for batch in batches(data, recipe, 0, train=False, world=world):
        step = eval_step(model, variables, *to_device(batch, device), recipe, ten=ten)
        scores = step.pop("log_probabilities")  # dropped at once: all of a split's would fill the device
        if watch:
            watch(batch.labels, np.asarray(jnp.exp(scores)))
        steps.append(step)
    loss, top1, top5, count = (sum(float(step[name]) for step in steps) for name in ("loss", "top1", "top5", "count"))
    return Scores(loss, int(top1), int(top5), int(count))


def open_network(network: Network, device: str) -> tuple[AlexNet | LeNet, dict[str, Any]]:
    """Load a trained network and its variables, ready to compute.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    recipe = network.recipe
    if recipe.precision == "float64":
        jax.config.update("jax_enable_x64", True)
    if network.path:
        variables = checkpoint.load_variables(network.path, network.arch, recipe.param_dtype)
    else:
        variables = convert.load(convert.pretrained_file(), network.arch)
    model = build(network.arch, dtype=compute_dtype(recipe.precision), param_dtype=jnp.dtype(recipe.param_dtype))
    return model, jax.device_put(variables, pick_device(device))


def evaluate_network(network: Network, device: str, data: Dataset, *, ten: bool, watch: Watch | None) -> Scores:
    """Score a trained network; see `evaluate`.

    Raises:
        UserError: as `open_network`.
    """
    return evaluate(*open_network(network, device), data, network.recipe, ten=ten, watch=watch)


def class_names() -> tuple[str, ...]:
    """The classes of torchvision's pretrained weights, in label order.

    Raises:
        UserError: as `convert.class_names`.
    """
    return convert.class_names()


if __name__ == "__main__":
    cli.evaluate("flax", evaluate_network, class_names)
