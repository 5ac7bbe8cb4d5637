"""Predict photographs in PyTorch: `python -m torch_impl.predict cat.jpg`. Read next to `flax_impl/predict.py`."""

from __future__ import annotations

import numpy as np

from common import cli
from common.networks import Network
from common.pipeline import Batch
from common.predictions import Predictor
from torch_impl.evaluate import class_names, log_probabilities, open_network


def predictor(network: Network, device: str) -> Predictor:
    """Load a trained network as a function from a batch to probabilities (n, classes) on the host.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model = open_network(network, device)

    def predict(batch: Batch) -> np.ndarray:
        return log_probabilities(model, batch, network.recipe).exp().numpy(force=True)

    return predict


if __name__ == "__main__":
    cli.predict("torch", predictor, class_names)
