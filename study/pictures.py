"""The pictures: filters and feature maps as PNG, curves as SVG in the colours of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from common.frameworks import FRAMEWORKS
from study.runs import Curves, Points

COLOURS = {about.title: about.colour for about in FRAMEWORKS.values()} | {"float32": "#8a63d2", "float64": "#2f9e63"}
WIDTHS = {"PyTorch": 4.0, "Flax": 1.5}  # so that both are seen where they lie on each other
SPLIT_STYLES: dict[str, dict[str, str]] = {
    "train": {"linestyle": "-"},
    "val": {"linestyle": ":", "marker": "^"},
    "test": {"linestyle": "--", "marker": "o"},
}
MAPS = 32  # of each layer
SIDE = 640  # pixels that a picture is enlarged to, about
STRIP, STRIP_MAPS = 320, 6  # the same of a layer's panel, and its maps in a row

SCORES = 10  # classes that the last layer is shown of
OVERLAY = 224  # pixels that an image with a map over it is enlarged to, about

_LABEL = 20  # letters of a class's name
_TILE = 32  # pixels that a tile has at least, about
_GAP = 3
_INK = "#123456"  # stands for the page's own colour of text


def save(array: np.ndarray, path: Path, side: int = SIDE) -> None:
    """Write uint8 (height, width[, 3]) as PNG, enlarged by whole pixels to about `side`."""
    factor = max(1, side // max(array.shape[:2]))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.repeat(factor, 0).repeat(factor, 1)).save(path)


def filters(weight: np.ndarray) -> np.ndarray:
    """conv1's kernels (out, in, height, width), each stretched to its own range: in colour where there are three."""
    tiles = [_stretch(kernel.transpose(1, 2, 0)) for kernel in weight]
    if weight.shape[1] == 3:
        return _grid([(tile * 255).astype(np.uint8) for tile in tiles])
    return _grid([_colour(tile[:, :, 0]) for tile in tiles])


def strip(activation: np.ndarray) -> np.ndarray:
    """The first channels in one row, or features folded: what a layer's panel has room for."""
    return feature_maps(activation[:, :STRIP_MAPS] if activation.ndim == 4 else activation)


def feature_maps(activation: np.ndarray) -> np.ndarray:
    """The first channels of (1, C, H, W), or (1, features) folded, on one scale."""
    maps = activation[0]
    if maps.ndim == 1:
        width = ceil(len(maps) ** 0.5)
        padded = np.pad(maps, (0, width * ceil(len(maps) / width) - len(maps)), constant_values=maps.min())
        return _colour(_stretch(padded.reshape(-1, width)))
    return _grid([_colour(tile) for tile in _stretch(maps[:MAPS])])


def strongest(activation: np.ndarray) -> np.ndarray:
    """The four channels of (1, C, H, W) with the largest mean, on one scale."""
    maps = activation[0]
    order = np.argsort(-maps.mean((1, 2)), kind="stable")[:4]
    return _grid([_colour(tile) for tile in _stretch(maps[order])], 2)


def profile(ours: np.ndarray, theirs: np.ndarray, name: str) -> Markup:
    """Outputs (1, features) of both frameworks, each sorted from large to small, over each other; dotted, zero."""
    low, high = float(min(ours.min(), theirs.min())), float(max(ours.max(), theirs.max()))
    ordered = {title: np.sort(values[0])[::-1] for title, values in (("PyTorch", ours), ("Flax", theirs))}
    zero = _height(0, low, high)
    axis = _dotted(f"M0 {zero:.1f}H200") if low < 0 < high else ""
    label = f"{name}: {ours.shape[1]:,} outputs, sorted, from {high:.3g} to {low:.3g}"
    return _small(axis + _lines(ordered, low, high), label)


def scores(ours: np.ndarray, theirs: np.ndarray, names: Sequence[str]) -> Markup:
    """The largest logits (1, classes) of both frameworks as bars with the classes' names; dotted, zero."""
    best = np.argsort(-ours[0], kind="stable")[:SCORES]
    rows = {"PyTorch": ours[0][best], "Flax": theirs[0][best]}
    low, high = min(0.0, *map(float, map(np.min, rows.values()))), max(0.0, *map(float, map(np.max, rows.values())))
    zero, step = _place(0, low, high), 100 / len(best)
    drawn = _dotted(f"M{zero:.1f} 0V100")
    for title, (offset, thick) in {"PyTorch": (0.15, 0.5), "Flax": (0.3, 0.2)}.items():
        for place, value in enumerate(rows[title]):
            left, right = sorted((zero, _place(value, low, high)))
            box = f'x="{left:.1f}" y="{step * (place + offset):.1f}" width="{right - left:.1f}"'
            drawn += f'<rect {box} height="{step * thick:.1f}" fill="{COLOURS[title]}"/>'
    for place, label in enumerate(best):
        short = names[label] if len(names[label]) <= _LABEL else f"{names[label][: _LABEL - 1]}…"
        drawn += f'<text x="76" y="{step * (place + 0.6):.1f}" text-anchor="end">{escape(short)}</text>'
    return _small(drawn, f"The largest of {len(names):,} logits, from {high:.3g} to {low:.3g}")


def _place(value: float, low: float, high: float) -> float:
    return 80 + 118 * (value - low) / ((high - low) or 1.0)


def heat(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A map (height, width), at least 0, over an image uint8 (height, width, channels) in grey, both enlarged."""
    from matplotlib import colormaps

    side = pixels.shape[0] * max(1, OVERLAY // pixels.shape[0])
    grey = Image.fromarray(pixels.mean(2).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    unit = Image.fromarray((values / (values.max() or 1)).astype(np.float32)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    colours = colormaps["inferno"](np.asarray(unit))[..., :3] * 255
    return (0.4 * np.asarray(grey)[..., None] + 0.6 * colours).astype(np.uint8)


def losses(found: Mapping[str, Sequence[float]], at: int) -> Markup:
    """The losses of both frameworks over the steps, over each other, and dotted the step `at`."""
    values = [value for line in found.values() for value in line]
    low, high, last = min(values), max(values), len(values) // len(found) - 1
    x = 2 + 196 * at / last
    label = f"Losses of both frameworks over {last + 1} steps, from {low:.3g} to {high:.3g}"
    ends = f'<text x="198" y="10" text-anchor="end">losses from {high:.3g} to {low:.3g}</text>'
    ends += f'<text x="2" y="108">step 0</text><text x="198" y="108" text-anchor="end">{last}</text>'
    return _small(_dotted(f"M{x:.1f} 0V100") + _lines(found, low, high) + ends, label, 110)


def _small(inside: str, label: str, height: int = 100) -> Markup:
    return Markup(f'<svg viewBox="0 0 200 {height}" role="img" aria-label="{label}">{inside}</svg>')


def _dotted(path: str) -> str:
    return f'<path d="{path}" stroke="currentColor" stroke-dasharray="2 3" fill="none"/>'


def _height(value: Any, low: float, high: float) -> Any:
    return 4 + 92 * (high - value) / ((high - low) or 1.0)


def _lines(found: Mapping[str, Sequence[float] | np.ndarray], low: float, high: float) -> str:
    """A line for each framework, of at most 160 points from left to right."""
    drawn = ""
    for title, line in found.items():
        values = np.asarray(line)
        chosen = values[np.linspace(0, len(values) - 1, min(len(values), 160)).round().astype(int)]
        points = zip(np.linspace(2, 198, len(chosen)), _height(chosen, low, high), strict=True)
        look = f'stroke="{COLOURS[title]}" stroke-width="{WIDTHS[title] / 1.5:.1f}"'
        drawn += f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" {look}/>'
    return drawn


def confusion(counts: Sequence[Sequence[int]]) -> np.ndarray:
    """The share of each true class's examples (rows) that each guess (columns) has, by its square root."""
    table = np.asarray(counts, np.float64)
    return _colour(np.sqrt(table / table.sum(1, keepdims=True).clip(1)))


def _stretch(array: np.ndarray) -> np.ndarray:
    low, high = array.min(), array.max()
    return (array - low) / (high - low if high > low else 1)


def _colour(unit: np.ndarray) -> np.ndarray:
    """[0, 1] in viridis, uint8 with three channels."""
    from matplotlib import colormaps

    return (colormaps["viridis"](np.asarray(unit, np.float64))[..., :3] * 255).astype(np.uint8)


def _grid(tiles: Sequence[np.ndarray], most: int = 8) -> np.ndarray:
    """Tiles in rows, a little apart; small ones are enlarged first, so that the gaps stay thin."""
    factor = max(1, _TILE // tiles[0].shape[0])
    tiles = [tile.repeat(factor, 0).repeat(factor, 1) for tile in tiles]
    columns = min(len(tiles), most)
    height, width = tiles[0].shape[:2]
    rows = ceil(len(tiles) / columns)
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 128, np.uint8)
    for place, tile in enumerate(tiles):
        top, left = place // columns * (height + _GAP), place % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def curves(
    runs: Mapping[str, Curves],
    apart: Curves | None,
    noise: Curves,
    key: str,
    title: str,
    identity: str,
    more: Sequence[tuple[str, Curves]] = (),
) -> Markup:
    """Both frameworks' curves of a key over each other, and their difference below on a log axis.

    Args:
        runs: by framework.
        apart: the absolute differences, drawn below; None leaves them out.
        noise: the self-noise of PyTorch's curves, drawn behind both.
        key: of the curves.
        title: of the key.
        identity: of the picture on its page; its elements' names begin with it.
        more: frameworks and curves of further runs, drawn pale behind.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": identity, "font.size": 10}):
        figure = Figure(figsize=(6.4, 2.2 if apart is None else 4.4), layout="constrained")
        heights = (1,) if apart is None else (3, 2)
        axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        upper = axes[0, 0]
        for split, keys in noise.items():
            _band(upper, runs["PyTorch"].get(split, {}).get(key, []), keys.get(key, []), split)
        for framework, splits in more:
            for split, keys in splits.items():
                if keys.get(key):
                    line = SPLIT_STYLES[split]["linestyle"]
                    upper.plot(*zip(*keys[key], strict=True), line, color=COLOURS[framework], linewidth=1, alpha=0.45)
        for framework, splits in runs.items():
            for split, keys in splits.items():
                if keys.get(key):
                    style = {"color": COLOURS[framework], "linewidth": WIDTHS[framework], **SPLIT_STYLES[split]}
                    upper.plot(*zip(*keys[key], strict=True), label=f"{framework}, {split}", **style)
        upper.set(ylabel=title)
        _legend(upper)
        if apart is None:
            upper.set_ylim(bottom=0)
        else:
            _differences(axes[1, 0], apart, noise, key)
        axes[-1, 0].set(xlabel="step")
        for axis in axes.flat:
            _ink(axis)
        about = f"{title} of both frameworks over steps"
        return _inline(figure, identity, about + (", and their absolute difference on a log axis" if apart else ""))


def _band(axis: Any, base: Points, noise: Points, split: str) -> None:
    """The band that the base curve's own noise spans."""
    width = dict(noise)
    inside = [(step, value - width[step], value + width[step]) for step, value in base if step in width]
    if inside:
        axis.fill_between(
            *zip(*inside, strict=True),
            color=_INK,
            alpha=0.18,
            linewidth=0,
            label="self-noise" if split == "train" else "",
        )


def _differences(axis: Any, apart: Curves, noise: Curves, key: str) -> None:
    """The differences of a key with the self-noise behind them; a difference of zero lies on the bottom edge."""
    drawn = {split: keys[key] for split, keys in apart.items() if keys.get(key)}
    behind = {split: keys[key] for split, keys in noise.items() if keys.get(key)}
    axis.set(ylabel="difference")
    if not drawn:
        axis.text(0.5, 0.5, "no step in common", transform=axis.transAxes, ha="center", color=_INK)
        return
    sizes = [value for points in (*drawn.values(), *behind.values()) for _, value in points if value > 0]
    floor = min(sizes, default=1e-16) / 3
    for split, points in behind.items():
        steps, widths = zip(*points, strict=True)
        drawn_to = [max(width, floor) for width in widths]
        axis.fill_between(
            steps, floor, drawn_to, color=_INK, alpha=0.18, linewidth=0, label="self-noise" if split == "train" else ""
        )
    for split, points in drawn.items():
        steps, values = zip(*points, strict=True)
        axis.plot(steps, [max(value, floor) for value in values], color=_INK, label=split, **SPLIT_STYLES[split])
    axis.set_yscale("log")
    axis.set_ylim(bottom=floor)
    _legend(axis)


def by_layer(layers: Sequence[Mapping[str, Any]], identity: str) -> Markup:
    """The largest relative difference of each layer's output, in each precision, on a log axis."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = [layer["name"] for layer in layers]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": identity, "font.size": 10}):
        figure = Figure(figsize=(6.4, 3), layout="constrained")
        axis = figure.subplots()
        for precision, marker in (("float32", "o"), ("float64", "D")):
            sizes = [layer["difference"][precision]["relative"] or None for layer in layers]
            shown = [(name, size) for name, size in zip(names, sizes, strict=True) if size]
            if shown:
                axis.plot(*zip(*shown, strict=True), marker, color=COLOURS[precision], label=precision)
            axis.axhline(float(np.finfo(precision).eps), color=COLOURS[precision], linewidth=1, linestyle=":")
        axis.set_yscale("log")
        axis.set_xticks(range(len(names)), names, rotation=0 if len(names) < 12 else 30)
        axis.set(ylabel="largest difference")
        _legend(axis)
        _ink(axis)
        return _inline(figure, identity, "the largest difference of each layer's output over its largest value")


def _legend(axis: Any) -> None:
    axis.legend(frameon=False, labelcolor=_INK, ncols=3, fontsize=9)


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
