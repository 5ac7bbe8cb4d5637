"""Predict photographs in Flax: `python -m flax_impl.predict cat.jpg`. Read next to `torch_impl/predict.py`."""

from __future__ import annotations

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

    return Predictor(probabilities, heat)


if __name__ == "__main__":
    run_predict("flax", predictor, class_names)
