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
from flax_impl.feed import to_device


def predictor(network: Network, device: str) -> Predictor:
    """Load a trained network as a function from a batch to probabilities (n, classes) on the host.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model, variables = open_network(network, device)
    place = jax.tree.leaves(variables)[0].device

    def predict(batch: Batch) -> np.ndarray:
        return np.asarray(jnp.exp(log_probabilities(model, variables, to_device(batch, place), network.recipe)))

    return predict


if __name__ == "__main__":
    run_predict("flax", predictor, class_names)
