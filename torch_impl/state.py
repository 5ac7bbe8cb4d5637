"""What a training step changes. Read next to `flax_impl/state.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from common.arch.initializers import get_init
from common.arch.spec import Arch
from common.recipes.spec import Recipe
from common.world import ALONE, World
from torch_impl.device import compiles, set_precision
from torch_impl.dropout import StepKey, share_dropout
from torch_impl.init import initialize
from torch_impl.model import AlexNet, LeNet, build
from torch_impl.optim import build_optimizer, build_scaler, build_schedule
from torch_impl.preprocess import preprocess


@dataclass
class TrainState:
    """Everything that a training step changes, in place, and the recipe that says how.

    Attributes:
        model: the network.
        optimizer, schedule, scaler: PyTorch's own, of the recipe.
        dropout: the key of the shared masks.
        recipe: that is trained.
        device, dtype: of the parameters, set once.
        freeze_steps: so many optimizer steps leave the backbone as it is.
        network: what is called in training: the model, or the model that exchanges gradients with other processes.
        preprocess: pixels to inputs, perhaps compiled.
        world: the process among others.
        step: training steps so far.
    """

    model: AlexNet | LeNet
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: GradScaler
    dropout: StepKey
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype
    freeze_steps: int
    network: nn.Module
    preprocess: Callable[..., Tensor]
    world: World = ALONE
    step: int = 0


def init_state(recipe: Recipe, arch: Arch, steps: int, device: torch.device, *, compiled: bool = False) -> TrainState:
    """Fresh parameters, optimizer and schedule.

    Args:
        recipe: what to train.
        arch: adapted to the data.
        steps: in one epoch.
        device: to train on.
        compiled: let PyTorch compile preprocessing and network, once for each shape; see `check_compiler`.
    """
    set_precision(recipe.precision)
    model = build(arch)
    initialize(model, get_init(recipe.init), recipe.seed)
    dropout = share_dropout(model, arch.feature_size, recipe.seed, compiled=compiles(device))
    dtype = getattr(torch, recipe.param_dtype)
    model.to(device, dtype).to(memory_format=torch.channels_last)  # the batches arrive channels last: no copies
    tune = recipe.finetune
    optimizer = build_optimizer(recipe.optimizer, *_head_and_backbone(model, recipe), tune.backbone_lr)
    schedule = build_schedule(optimizer, recipe.schedule, steps, recipe.epochs)
    scaler = build_scaler(recipe.loss_scale, recipe.precision, device)
    prepare = preprocess
    if compiled:
        model.compile(dynamic=False)
        prepare = torch.compile(preprocess, dynamic=False)
    freeze_steps = tune.freeze_epochs * steps
    return TrainState(model, optimizer, schedule, scaler, dropout, recipe, device, dtype, freeze_steps, model, prepare)


def freeze(state: TrainState) -> None:
    """Let the backbone get no gradients during the first `freeze_steps` optimizer steps; its memory stays empty."""
    state.model.requires_grad_(True)
    if state.schedule.last_epoch < state.freeze_steps:
        for parameter in _head_and_backbone(state.model, state.recipe)[1]:
            parameter.requires_grad_(False)


def _head_and_backbone(model: AlexNet | LeNet, recipe: Recipe) -> tuple[list[Parameter], list[Parameter]]:
    layers, named = recipe.head_layers(model.arch), list(model.named_parameters())
    head = [parameter for name, parameter in named if name.split(".")[0] in layers]
    return head, [parameter for name, parameter in named if name.split(".")[0] not in layers]
