"""Photographs of your own in PyTorch: `python -m torch_impl.photos FOLDER`. Read next to `flax_impl/photos.py`."""

from __future__ import annotations

from common.commands.photos import Tools, run_photos
from torch_impl.evaluate import evaluate_network
from torch_impl.export import FORMATS, export
from torch_impl.train import fit
from torch_impl.weights import at_hand


def tools() -> Tools:
    """What PyTorch does of it, and the format that it exports to; see `common.commands.photos`."""
    return Tools("torch", fit, evaluate_network, export, "onnx", FORMATS["onnx"], at_hand)


if __name__ == "__main__":
    run_photos(tools())
