"""What a layer makes of images: `python -m flax_impl.features RUN --layer fc7`. Read next to `torch_impl/features.py`.

And Grad-CAM: where in an image the network sees what speaks for a class.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from common.commands.features import run_features
from common.data.batch import Batch
from common.recipes.spec import Recipe
from common.reports.features import Features
from common.weights.network import Network
from flax_impl.evaluate import class_names, logits, open_network
from flax_impl.feed import Inputs, to_device
from flax_impl.model import ACTIVATIONS, AlexNet, LeNet


@partial(jax.jit, static_argnames=("model", "recipe", "layer"))
def layer_output(model: AlexNet | LeNet, variables: Any, inputs: Inputs, recipe: Recipe, layer: str) -> Array:
    """What a layer hands on, in evaluation and in the parameters' dtype.

    Args:
        model, variables: the network.
        inputs: of a batch of evaluation.
        recipe: gives preprocessing and precision.
        layer: a convolution block or a dense layer.

    Returns:
        Of a block (N, H, W, C), after its pools and norms; of a dense layer (N, features), after the activation, which
        the last one has none of.
    """
    found: list[Array] = []

    def catch(call: Any, given: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
        output = call(*given, **keywords)
        if (context.module.name, context.method_name) == (layer, "__call__"):
            found.append(output)
        return output

    with nn.intercept_methods(catch):
        scores = logits(model, variables, inputs, recipe)
    output = found[-1]  # linen's own call is inside that of `flax_impl.layers`
    *hidden, _ = (name for name, _ in model.arch.named_dense())
    return (ACTIVATIONS[model.arch.activation](output) if layer in hidden else output).astype(scores.dtype)


@partial(jax.jit, static_argnames=("model", "recipe"))
def grad_cam(model: AlexNet | LeNet, variables: Any, inputs: Inputs, recipe: Recipe, labels: Array) -> Array:
    """Where each image shows what speaks for a class (Selvaraju et al., arXiv:1610.02391, equations 1 and 2).

    The last convolution's maps, after the activation and before any pool, are added up with the mean of the gradient of
    the class's logit as each map's weight; what speaks against it is cut off.

    Args:
        model, variables: the network.
        inputs: of a batch of evaluation.
        recipe: gives preprocessing and precision.
        labels: int32 (N,), the class to look for in each image.

    Returns:
        (N, H, W), at least 0, in the parameters' dtype; not scaled.
    """
    *_, (block, _) = model.arch.named_convs()

    def speaks(change: Array | float) -> tuple[Array, Array]:
        """The classes' logits as a function of what is added to the maps, and the maps."""
        found: list[Array] = []

        def catch(call: Any, given: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
            output = call(*given, **keywords)
            if (context.module.name, context.method_name) != (block, "maps"):
                return output
            found.append(output + change)
            return found[0]

        with nn.intercept_methods(catch):
            scores = logits(model, variables, inputs, recipe)
        return jnp.take_along_axis(scores, labels[:, None], 1).sum(), found[0]

    _, shape = jax.eval_shape(speaks, 0.0)
    gradient, maps = jax.grad(speaks, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    maps, gradient = (array.astype(recipe.param_dtype) for array in (maps, gradient))
    return nn.relu((maps * gradient.mean((1, 2), keepdims=True)).sum(3))


def features(network: Network, device: str, layer: str) -> Features:
    """Load a trained network as a function from a batch to what a layer makes of it, on the host, channels first.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model, variables = open_network(network, device)
    place = jax.tree.leaves(variables)[0].device

    def compute(batch: Batch) -> np.ndarray:
        output = np.asarray(layer_output(model, variables, to_device(batch, place), network.recipe, layer))
        return np.moveaxis(output, -1, 1)  # (N, C, H, W), as PyTorch has it; (N, features) stays

    return compute


if __name__ == "__main__":
    run_features("flax", features, class_names)
