"""Evaluate checkpoints in PyTorch: `python -m torch_impl.evaluate RUN`. Read next to `flax_impl/evaluate.py`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from common import cli
from common.arch import Arch
from common.datasets import Dataset
from common.pipeline import Batch, batches
from common.recipes import Recipe
from common.run import Scores
from torch_impl import checkpoint
from torch_impl.device import compute_in, pick_device, to_device
from torch_impl.model import AlexNet, LeNet
from torch_impl.preprocess import preprocess


@torch.no_grad()
def eval_step(model: AlexNet | LeNet, batch: Batch, recipe: Recipe) -> dict[str, Tensor]:
    """Sums over one batch, on the device: `loss` (cross-entropy in nats), `top1`, `top5` and `count`."""
    parameter = next(model.parameters())
    images, labels, draws = to_device(batch, parameter.device)
    model.eval()
    x = preprocess(images, draws, recipe.preprocess, parameter.dtype)
    with compute_in(recipe.precision, x.device):
        logits = model(x).to(parameter.dtype)
    guesses = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    return {
        "loss": F.cross_entropy(logits, labels, reduction="sum"),
        "top1": guesses[:, 0].sum(),
        "top5": guesses.sum(),
        "count": torch.tensor(len(labels)),
    }


def evaluate(model: AlexNet | LeNet, data: Dataset, recipe: Recipe) -> Scores:
    """Score a model on every example of a split."""
    steps = [eval_step(model, batch, recipe) for batch in batches(data, recipe, 0, train=False)]
    loss, top1, top5, count = (sum(float(step[name]) for step in steps) for name in ("loss", "top1", "top5", "count"))
    return Scores(loss, int(top1), int(top5), int(count))


def evaluate_checkpoint(path: Path, arch: Arch, device: str, data: Dataset, recipe: Recipe) -> Scores:
    """Score the network of a checkpoint or a .safetensors file.

    Raises:
        UserError: the file cannot be read or does not fit.
    """
    model = checkpoint.load_model(path, arch).to(pick_device(device)).to(memory_format=torch.channels_last)
    return evaluate(model, data, recipe)


if __name__ == "__main__":
    cli.evaluate("torch", evaluate_checkpoint)
