"""Photographs of your own in Flax: `python -m flax_impl.photos FOLDER`. Read next to `torch_impl/photos.py`."""

from __future__ import annotations

from common.commands.photos import Tools, run_photos
from flax_impl.evaluate import evaluate_network
from flax_impl.export import FORMATS, export
from flax_impl.train import fit
from flax_impl.weights import at_hand


def tools() -> Tools:
    """What Flax does of it, and the format that it exports to; see `common.commands.photos`."""
    return Tools("flax", fit, evaluate_network, export, "stablehlo", FORMATS["stablehlo"], at_hand)


if __name__ == "__main__":
    run_photos(tools())
