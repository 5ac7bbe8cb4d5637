"""Evaluate checkpoints in PyTorch: `python -m torch_impl.evaluate RUN`. Read next to `flax_impl/evaluate.py`."""

from __future__ import annotations

from math import log
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from common.commands.evaluate import run_evaluate
from common.data.dataset import Dataset
from common.recipes.spec import Recipe
from common.reports.evaluation import Watch
from common.runs.scores import Scores
from common.weights.network import Network
from torch_impl import weights
from torch_impl.device import compute_in, constant, pick_device, set_precision
from torch_impl.feed import Feed, Inputs, feeds
from torch_impl.model import AlexNet, LeNet, build
from torch_impl.preprocess import crop, preprocess
from torch_impl.world import add_up


def ten_crop(images: Tensor, side: int, pad: int = 0) -> Tensor:
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
        crop(view, constant(place, torch.int64, images.device).expand(len(images), 2), pad, side)
        for view in (images, images.flip(2))
        for place in places
    ]
    return torch.stack(crops)


def logits(model: AlexNet | LeNet, inputs: Inputs, recipe: Recipe) -> Tensor:
    """A batch's logits (N, classes) in evaluation, on the device in the parameters' dtype.

    Args:
        model: in any mode; it is left in evaluation.
        inputs: of a batch of evaluation, with central crops.
        recipe: gives preprocessing and precision.
    """
    dtype = next(model.parameters()).dtype
    model.eval()
    x = preprocess(inputs.images, inputs.draws, recipe.preprocess, dtype)
    with compute_in(recipe.precision, x.device):
        return cast(Tensor, model(x)).to(dtype)


@torch.no_grad()
def log_probabilities(model: AlexNet | LeNet, inputs: Inputs, recipe: Recipe, *, ten: bool = False) -> Tensor:
    """Log-softmax of a batch's logits (N, classes), on the device in the parameters' dtype.

    Args:
        model, inputs, recipe: see `logits`.
        ten: average the probabilities of `ten_crop`'s crops instead, from the recipe's crop and padding.
    """
    if not ten:
        return F.log_softmax(logits(model, inputs, recipe), 1)
    assert recipe.preprocess.crop
    crops = ten_crop(inputs.images, recipe.preprocess.crop, recipe.preprocess.pad)
    views = [logits(model, inputs._replace(images=view, draws={}), recipe) for view in crops]
    return F.log_softmax(torch.stack(views), 2).logsumexp(0) - log(len(crops))


def eval_step(model: AlexNet | LeNet, inputs: Inputs, recipe: Recipe, *, ten: bool = False) -> dict[str, Tensor]:
    """Sums over one batch, on the device: `loss` (cross-entropy in nats), `top1`, `top5` and `count`.

    And `log_probabilities` (N, classes); `ten` as there.
    """
    scores = log_probabilities(model, inputs, recipe, ten=ten)
    guesses = scores.topk(min(5, scores.shape[1])).indices == inputs.labels[:, None]
    return {
        "loss": F.nll_loss(scores, inputs.labels, reduction="sum"),
        "top1": guesses[:, 0].sum(),
        "top5": guesses.sum(),
        "count": guesses.new_full((), len(scores), dtype=torch.int64),
        "log_probabilities": scores,
    }


def evaluate(model: AlexNet | LeNet, feed: Feed, *, ten: bool = False, watch: Watch | None = None) -> Scores:
    """Score a model on every example of a split.

    Args:
        model: to score, where the feed takes the split.
        feed: of the split; its recipe gives batch size, preprocessing and precision. Of several processes each scores
            its rows of each batch; the sums are those of all.
        ten: average ten crops of each image.
        watch: is given each batch's labels (n,) and probabilities (n, classes).
    """
    steps = []
    for batch, inputs in feed():
        step = eval_step(model, inputs, feed.recipe, ten=ten)
        scores = step.pop("log_probabilities")  # dropped at once: all of a split's would fill the device
        if watch:
            watch(batch.labels, scores.exp().numpy(force=True))
        steps.append(step)
    totals = {name: sum(float(step[name]) for step in steps) for name in ("loss", "top1", "top5", "count")}
    sums = {name: torch.tensor(total, dtype=torch.float64, device=feed.device) for name, total in totals.items()}
    loss, top1, top5, count = (float(total) for total in add_up(sums, feed.world).values())
    return Scores(loss, int(top1), int(top5), int(count))


def open_network(network: Network, device: str) -> AlexNet | LeNet:
    """Load a trained network, ready to compute.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    set_precision(network.recipe.precision)
    if network.path:
        model = weights.load_model(network.path, network.arch, network.recipe.param_dtype)
    else:
        model = build(network.arch)
        weights.load_pretrained(model, network.arch)
    return model.to(pick_device(device)).to(memory_format=torch.channels_last)


def evaluate_network(network: Network, device: str, data: Dataset, *, ten: bool, watch: Watch | None) -> Scores:
    """Score a trained network; see `evaluate`.

    Raises:
        UserError: as `open_network`.
    """
    model = open_network(network, device)
    [feed] = feeds([data], network.recipe, next(model.parameters()).device)
    return evaluate(model, feed, ten=ten, watch=watch)


def class_names() -> tuple[str, ...]:
    """The classes of torchvision's pretrained weights, in label order."""
    return weights.class_names()


if __name__ == "__main__":
    run_evaluate("torch", evaluate_network, class_names)
