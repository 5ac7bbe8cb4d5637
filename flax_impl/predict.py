"""Predict photographs in Flax: `python -m flax_impl.predict cat.jpg`. Read next to `torch_impl/predict.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from common import cli
from common.networks import Network
from common.pipeline import Batch
from common.predictions import Predictor
from flax_impl.device import to_device
from flax_impl.evaluate import class_names, log_probabilities, open_network


def predictor(network: Network, device: str) -> Predictor:
    """Load a trained network as a function from a batch to probabilities (n, classes) on the host.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model, variables = open_network(network, device)
    place = jax.tree.leaves(variables)[0].device

    def predict(batch: Batch) -> np.ndarray:
        images, _, draws = to_device(batch, place)
        return np.asarray(jnp.exp(log_probabilities(model, variables, images, draws, network.recipe)))

    return predict


if __name__ == "__main__":
    cli.predict("flax", predictor, class_names)
