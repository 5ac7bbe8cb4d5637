"""Pictures of a run, from its metrics alone."""

from __future__ import annotations

import sys
from pathlib import Path

from common.errors import first_line
from common.frameworks import FRAMEWORKS
from common.runs.files import atomic
from common.runs.folder import RunFolder

COLOURS = {"train": "#3b6fb6", "val": "#e08a1e", "test": "#b3323a"}


def redraw(run: RunFolder) -> None:
    """Draw `curves`, or say why not: no run ends for its picture."""
    try:
        curves(run)
    except Exception as error:  # of any kind, from what a library of pictures may have
        print(f"warning: {run.path / 'curves.png'} is not drawn: {first_line(error)}", file=sys.stderr)


def curves(run: RunFolder) -> Path:
    """Draw loss, accuracy and learning rate of every split against epochs into `curves.png`.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, manifest = run.metrics(), run.manifest
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    title = f"{run.recipe.name}: {run.arch.name} in {FRAMEWORKS[manifest['framework']].title} on {manifest['device']}"
    figure.suptitle(title, parse_math=False)  # a name may hold dollars
    axes = figure.subplots(1, 3)
    last = max(rows, key=lambda row: row["step"])
    steps = last["step"] / last["epoch"]  # in one epoch
    for axis, key, label in zip(axes, ("loss", "accuracy", "lr"), ("loss", "accuracy", "learning rate"), strict=True):
        for split, colour in COLOURS.items():
            points = [(row["step"] / steps, row[key]) for row in rows if row["split"] == split and key in row]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, label=split, marker="." if split != "train" else "")
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0)
    axes[2].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    path = run.path / "curves.png"
    with atomic(path) as part:
        figure.savefig(part, dpi=120, format="png")
    return path
