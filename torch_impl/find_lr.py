"""Find a learning rate in PyTorch: `python -m torch_impl.find_lr digits`. Read next to `flax_impl/find_lr.py`."""

from __future__ import annotations

from common.commands.find_lr import run_find_lr
from common.recipes.spec import Recipe
from common.training import rates
from common.training.rates import Curve, RateOptions
from torch_impl.engine import Engine
from torch_impl.train import train_epoch


def find_lr(recipe: Recipe, options: RateOptions) -> Curve:
    """Take the steps of `train_epoch` at growing rates; see `common.training.rates.find_rate`."""
    return rates.find_rate(Engine(train_epoch), recipe, options)


if __name__ == "__main__":
    run_find_lr("torch", find_lr)
