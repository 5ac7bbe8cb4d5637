"""What both runs of a pair start from."""

from __future__ import annotations

from pathlib import Path

import torch

import torch_impl.train
from common.arch.spec import Arch
from common.data.load import load_dataset
from common.recipes.spec import Recipe
from torch_impl.engine import Engine
from torch_impl.model import AlexNet, LeNet
from torch_impl.state import init_state


def start(recipe: Recipe, data_dir: Path | None = None) -> tuple[AlexNet | LeNet, Arch]:
    """A recipe's network with its own initial or pretrained weights, as PyTorch has them with the recipe's seed.

    Raises:
        UserError: its data or the weights cannot be had.
    """
    train, _ = load_dataset(recipe.dataset, data_dir)
    arch = recipe.model_arch(train.image, len(train.class_names))
    state = init_state(recipe, arch, 1, torch.device("cpu"))
    Engine(torch_impl.train.train_epoch).start_weights(state, None)
    return state.model, arch
