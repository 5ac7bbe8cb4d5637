"""The pictures: filters and feature maps as PNG, curves as SVG in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

COLOURS = {"PyTorch": "#d1491f", "Flax": "#1f77c4"}
WIDTHS = {"PyTorch": 4.0, "Flax": 1.5}  # so that both are seen where they lie on each other
SPLIT_STYLES = {"train": "-", "val": ":", "test": "--"}
MAPS = 32  # of each layer
SIDE = 640  # pixels that a picture is enlarged to, about

_INK = "#123456"  # stands for the page's own colour of text
_SMALLEST = 1e-18  # what a difference of zero is drawn as


def save(array: np.ndarray, path: Path) -> None:
    """Write uint8 (height, width[, 3]) as PNG, enlarged by whole pixels."""
    factor = max(1, SIDE // max(array.shape[:2]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.repeat(factor, 0).repeat(factor, 1)).save(path)


def filters(weight: np.ndarray) -> np.ndarray:
    """conv1's kernels (out, in, height, width), each stretched to its own range: in colour where there are three."""
    tiles = [_stretch(kernel.transpose(1, 2, 0)) for kernel in weight]
    if weight.shape[1] == 3:
        return _grid([(tile * 255).astype(np.uint8) for tile in tiles])
    return _grid([_colour(tile[:, :, 0]) for tile in tiles])


def feature_maps(activation: np.ndarray) -> np.ndarray:
    """The first channels of (1, C, H, W), or (1, features) folded, on one scale."""
    maps = activation[0]
    if maps.ndim == 1:
        width = ceil(len(maps) ** 0.5)
        padded = np.pad(maps, (0, width * ceil(len(maps) / width) - len(maps)), constant_values=maps.min())
        return _colour(_stretch(padded.reshape(-1, width)))
    return _grid([_colour(tile) for tile in _stretch(maps[:MAPS])])


def _stretch(array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()
    return (array - low) / (high - low if high > low else 1)


def _colour(unit: np.ndarray) -> np.ndarray:
    """[0, 1] in viridis, uint8 with three channels."""
    from matplotlib import colormaps

    return (colormaps["viridis"](np.asarray(unit, np.float64))[..., :3] * 255).astype(np.uint8)


def _grid(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles in rows, one grey pixel apart."""
    columns = min(len(tiles), 8)
    height, width = tiles[0].shape[:2]
    rows = ceil(len(tiles) / columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 128, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // columns * (height + 1), place % columns * (width + 1)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def curves(runs: Mapping[str, Mapping[str, Any]], apart: Mapping[str, Any], key: str, identity: str) -> Markup:
    """Both frameworks' curves of a key over each other, and their difference below on a log axis.

    Args:
        runs: by framework, [step, value] pairs by split and key.
        apart: the absolute differences, likewise.
        key: "loss" or "accuracy".
        identity: of the picture on its page; its elements' names begin with it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": identity, "font.size": 10}):
        figure = Figure(figsize=(7, 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for framework, splits in runs.items():
            for split, keys in splits.items():
                if keys.get(key):
                    style = {"color": COLOURS[framework], "linestyle": SPLIT_STYLES[split]}
                    upper.plot(
                        *zip(*keys[key], strict=True),
                        label=f"{framework}, {split}",
                        linewidth=WIDTHS[framework],
                        **style,
                    )
        for split, keys in apart.items():
            if keys.get(key):
                steps, values = zip(*keys[key], strict=True)
                drawn = [max(value, _SMALLEST) for value in values]
                lower.plot(steps, drawn, color=_INK, linestyle=SPLIT_STYLES[split], label=split, linewidth=1.2)
                lower.set_yscale("log")
        upper.set(ylabel=key)
        lower.set(ylabel="difference", xlabel="step")
        for axis in (upper, lower):
            _ink(axis)
        if upper.lines:
            upper.legend(frameon=False, labelcolor=_INK, ncols=2)
        if lower.lines:
            lower.legend(frameon=False, labelcolor=_INK, ncols=3)
        else:
            lower.text(0.5, 0.5, "no step in common", transform=lower.transAxes, ha="center", color=_INK)
        return _inline(
            figure, identity, f"{key} of both frameworks over steps, and their absolute difference on a log axis"
        )


def _ink(axis: Any) -> None:
    axis.patch.set_visible(False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_INK)
    axis.tick_params(which="both", colors=_INK)
    axis.xaxis.label.set_color(_INK)
    axis.yaxis.label.set_color(_INK)
    axis.grid(alpha=0.2, color=_INK)


def _inline(figure: Any, identity: str, title: str) -> Markup:
    """A figure as an <svg> element, as wide as its place, in the page's colour of text."""
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{identity}-", text).replace(_INK, "currentColor")
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
