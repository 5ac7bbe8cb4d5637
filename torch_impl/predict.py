"""Predict photographs in PyTorch: `python -m torch_impl.predict cat.jpg`. Read next to `flax_impl/predict.py`."""

from __future__ import annotations

import numpy as np

from common.commands.predict import run_predict
from common.data.batch import Batch
from common.reports.predictions import Predictor
from common.weights.network import Network
from torch_impl.evaluate import class_names, log_probabilities, open_network
from torch_impl.feed import to_device


def predictor(network: Network, device: str) -> Predictor:
    """Load a trained network as a function from a batch to probabilities (n, classes) on the host.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model = open_network(network, device)
    place = next(model.parameters()).device

    def predict(batch: Batch) -> np.ndarray:
        return log_probabilities(model, to_device(batch, place), network.recipe).exp().numpy(force=True)

    return predict


if __name__ == "__main__":
    run_predict("torch", predictor, class_names)
