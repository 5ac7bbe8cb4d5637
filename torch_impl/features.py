"""What a layer makes of images: `python -m torch_impl.features RUN --layer fc7`. Read next to `flax_impl/features.py`.

And Grad-CAM: where in an image the network sees what speaks for a class.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.commands.features import run_features
from common.data.batch import Batch
from common.recipes.spec import Recipe
from common.reports.features import Features
from common.weights.network import Network
from torch_impl.evaluate import class_names, logits, open_network
from torch_impl.feed import Inputs, to_device
from torch_impl.model import AlexNet, LeNet


@torch.no_grad()
def layer_output(model: AlexNet | LeNet, inputs: Inputs, recipe: Recipe, layer: str) -> Tensor:
    """What a layer hands on, in evaluation and in the parameters' dtype.

    Args:
        model: the network.
        inputs: of a batch of evaluation.
        recipe: gives preprocessing and precision.
        layer: a convolution block or a dense layer.

    Returns:
        Of a block (N, C, H, W), after its pools and norms; of a dense layer (N, features), after the activation, which
        the last one has none of.
    """
    found: list[Tensor] = []
    with model.get_submodule(layer).register_forward_hook(lambda module, given, output: found.append(output)):
        scores = logits(model, inputs, recipe)
    [output] = found
    *hidden, _ = (name for name, _ in model.arch.named_dense())
    return (model.activation(output) if layer in hidden else output).to(scores.dtype)


def grad_cam(model: AlexNet | LeNet, inputs: Inputs, recipe: Recipe, labels: Tensor) -> Tensor:
    """Where each image shows what speaks for a class (Selvaraju et al., arXiv:1610.02391, equations 1 and 2).

    The last convolution's maps, after the activation and before any pool, are added up with the mean of the gradient of
    the class's logit as each map's weight; what speaks against it is cut off.

    Args:
        model: the network.
        inputs: of a batch of evaluation.
        recipe: gives preprocessing and precision.
        labels: int64 (N,), the class to look for in each image.

    Returns:
        (N, H, W), at least 0, in the parameters' dtype; not scaled.
    """
    found: list[Tensor] = []

    def catch(module: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
        found.append(given[0].detach().requires_grad_())
        return found[0]

    *_, (block, _) = model.arch.named_convs()
    with torch.enable_grad(), model.get_submodule(f"{block}.after").register_forward_pre_hook(catch):
        scores = logits(model, inputs, recipe)
        speaks = scores.gather(1, labels[:, None]).sum()
    [maps] = found
    [gradient] = torch.autograd.grad(speaks, maps)
    maps, gradient = maps.detach().to(scores.dtype), gradient.to(scores.dtype)
    return F.relu((maps * gradient.mean((2, 3), keepdim=True)).sum(1))


def features(network: Network, device: str, layer: str) -> Features:
    """Load a trained network as a function from a batch to what a layer makes of it, on the host.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model = open_network(network, device)
    place = next(model.parameters()).device

    def compute(batch: Batch) -> np.ndarray:
        return layer_output(model, to_device(batch, place), network.recipe, layer).numpy(force=True)

    return compute


if __name__ == "__main__":
    run_features("torch", features, class_names)
