"""Predict photographs in Flax: `python -m flax_impl.predict cat.jpg`. Read next to `torch_impl/predict.py`."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from common.commands.predict import run_predict
from common.data.batch import Batch
from common.reports.predictions import Predictor
from common.weights.network import Network
from flax_impl.evaluate import class_names, log_probabilities, open_network
from flax_impl.features import grad_cam
from flax_impl.feed import to_device
from flax_impl.preprocess import preprocess


def predictor(network: Network, device: str) -> Predictor:
    """Load a trained network as functions of a batch on the host.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model, variables = open_network(network, device)
    place = jax.tree.leaves(variables)[0].device

    def probabilities(batch: Batch) -> np.ndarray:
        return np.asarray(jnp.exp(log_probabilities(model, variables, to_device(batch, place), network.recipe)))

    def heat(batch: Batch) -> np.ndarray:
        inputs = to_device(batch, place)
        return np.asarray(grad_cam(model, variables, inputs, network.recipe, inputs.labels))

    def seen(batch: Batch) -> np.ndarray:
        inputs, plain = to_device(batch, place), replace(network.recipe.preprocess, mean=(0.0,), std=(1.0,))
        return np.asarray(preprocess(inputs.images, inputs.draws, plain, jnp.dtype("float32")))

    return Predictor(probabilities, heat, seen)


if __name__ == "__main__":
    run_predict("flax", predictor, class_names)
