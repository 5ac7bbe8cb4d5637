"""Evaluate checkpoints in Flax: `python -m flax_impl.evaluate RUN`. Read next to `torch_impl/evaluate.py`."""

from __future__ import annotations

from functools import partial
from math import log
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from common.commands.evaluate import run_evaluate
from common.data.dataset import Dataset
from common.recipes.spec import Recipe
from common.reports.evaluation import Watch
from common.runs.scores import Scores
from common.weights import exchange
from common.weights.network import Network
from flax_impl import weights
from flax_impl.device import model_dtypes, pick_device, set_precision
from flax_impl.feed import Feed, Inputs, feeds
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


def logits(model: AlexNet | LeNet, variables: Any, inputs: Inputs, recipe: Recipe) -> Array:
    """A batch's logits (N, classes) in evaluation, on the device in the parameters' dtype.

    Args:
        model, variables: the network.
        inputs: of a batch of evaluation, with central crops.
        recipe: gives preprocessing and precision.
    """
    dtype = jnp.dtype(recipe.param_dtype)
    x = preprocess(inputs.images, inputs.draws, recipe.preprocess, dtype)
    return cast(Array, model.apply(variables, x, train=False)).astype(dtype)


@partial(jax.jit, static_argnames=("model", "recipe", "ten"))
def log_probabilities(
    model: AlexNet | LeNet, variables: Any, inputs: Inputs, recipe: Recipe, *, ten: bool = False
) -> Array:
    """Log-softmax of a batch's logits (N, classes), on the device in the parameters' dtype.

    Args:
        model, variables, inputs, recipe: see `logits`.
        ten: average the probabilities of `ten_crop`'s crops instead, from the recipe's crop and padding.
    """
    if not ten:
        return jax.nn.log_softmax(logits(model, variables, inputs, recipe), 1)
    assert recipe.preprocess.crop
    crops = ten_crop(inputs.images, recipe.preprocess.crop, recipe.preprocess.pad)
    views = jax.lax.map(lambda view: logits(model, variables, inputs._replace(images=view, draws={}), recipe), crops)
    return jax.nn.logsumexp(jax.nn.log_softmax(views, 2), 0) - log(len(crops))


@partial(jax.jit, static_argnames=("model", "recipe", "ten"))
def eval_step(
    model: AlexNet | LeNet, variables: Any, inputs: Inputs, recipe: Recipe, *, ten: bool = False
) -> dict[str, Array]:
    """Sums over one batch, on the device: `loss` (cross-entropy in nats), `top1`, `top5` and `count`.

    And `log_probabilities` (N, classes); `ten` as there.
    """
    scores = log_probabilities(model, variables, inputs, recipe, ten=ten)
    labels, real = inputs.labels[:, None], inputs.facts.real
    guesses = jax.lax.top_k(scores, min(5, scores.shape[1]))[1] == labels
    real = None if real is None else real[:, None]
    return {
        "loss": -jnp.take_along_axis(scores, labels, 1).sum(where=real),
        "top1": guesses[:, :1].sum(where=real),
        "top5": guesses.sum(where=real),
        "count": jnp.array(len(labels)) if real is None else real.sum(),
        "log_probabilities": scores,
    }


def evaluate(
    model: AlexNet | LeNet, variables: Any, feed: Feed, *, ten: bool = False, watch: Watch | None = None
) -> Scores:
    """Score a model on every example of a split.

    Args:
        model, variables: to score, where the feed takes the split.
        feed: of the split; its recipe gives batch size, preprocessing and precision. Of several processes each scores
            its rows of each batch; the sums are those of all.
        ten: average ten crops of each image.
        watch: is given each batch's labels (n,) and probabilities (n, classes).
    """
    steps = []
    for batch, inputs in feed():
        step = eval_step(model, variables, inputs, feed.recipe, ten=ten)
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
    set_precision(recipe.precision)
    model = build(network.arch, **model_dtypes(recipe))
    path = network.path or exchange.pretrained_file()
    variables = weights.load_variables(path, network.arch, recipe.param_dtype)
    return model, jax.device_put(variables, pick_device(device))


def evaluate_network(network: Network, device: str, data: Dataset, *, ten: bool, watch: Watch | None) -> Scores:
    """Score a trained network; see `evaluate`.

    Raises:
        UserError: as `open_network`.
    """
    model, variables = open_network(network, device)
    [feed] = feeds([data], network.recipe, jax.tree.leaves(variables)[0].device)
    return evaluate(model, variables, feed, ten=ten, watch=watch)


def class_names() -> tuple[str, ...]:
    """The classes of torchvision's pretrained weights, in label order.

    Raises:
        UserError: as `weights.class_names`.
    """
    return weights.class_names()


if __name__ == "__main__":
    run_evaluate("flax", evaluate_network, class_names)
