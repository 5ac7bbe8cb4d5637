"""Predict photographs in PyTorch: `python -m torch_impl.predict cat.jpg`. Read next to `flax_impl/predict.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from common.commands.predict import run_predict
from common.data.batch import Batch
from common.reports.predictions import Predictor
from common.weights.network import Network
from torch_impl.evaluate import class_names, log_probabilities, open_network
from torch_impl.features import grad_cam
from torch_impl.feed import to_device
from torch_impl.preprocess import preprocess


def predictor(network: Network, device: str) -> Predictor:
    """Load a trained network as functions of a batch on the host.

    Raises:
        UserError: its file cannot be had or read, or does not fit.
    """
    model = open_network(network, device)
    place = next(model.parameters()).device

    def probabilities(batch: Batch) -> np.ndarray:
        return log_probabilities(model, to_device(batch, place), network.recipe).exp().numpy(force=True)

    def heat(batch: Batch) -> np.ndarray:
        inputs = to_device(batch, place)
        return grad_cam(model, inputs, network.recipe, inputs.labels).numpy(force=True)

    def seen(batch: Batch) -> np.ndarray:
        inputs, plain = to_device(batch, place), replace(network.recipe.preprocess, mean=(0.0,), std=(1.0,))
        return preprocess(inputs.images, inputs.draws, plain, torch.float32).permute(0, 2, 3, 1).numpy(force=True)

    return Predictor(probabilities, heat, seen)


if __name__ == "__main__":
    run_predict("torch", predictor, class_names)
