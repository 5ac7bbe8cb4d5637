"""Pictures of a run, from its metrics alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import first_line
from common.frameworks import FRAMEWORKS
from common.runs.choice import best_epochs, choose
from common.runs.files import atomic
from common.runs.folder import RunFolder

# Of the figure; a layout that is computed takes half as long as all the rest, after every epoch.
MARGINS = {"left": 0.06, "right": 0.99, "bottom": 0.25, "top": 0.89, "wspace": 0.34}
COLOURS = {"train": "#3b6fb6", "val": "#e08a1e", "test": "#b3323a"}


def redraw(run: RunFolder) -> None:
    """Draw `curves`, or say why not: no run ends for its picture."""
    try:
        curves(run)
    except Exception as error:  # of any kind, from what a library of pictures may have
        print(f"warning: {run.path / 'curves.png'} is not drawn: {first_line(error)}", file=sys.stderr)


def curves(run: RunFolder) -> Path:
    """Draw loss, accuracy and learning rate of every split against epochs into `curves.png`.

    A line marks the epoch that is the run's result, as far as it has come.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, manifest = run.metrics(), run.manifest
    figure = Figure(figsize=(12, 3.6))
    title = f"{run.recipe.name}: {run.arch.name} in {FRAMEWORKS[manifest['framework']].title} on {manifest['device']}"
    figure.suptitle(title, parse_math=False)  # a name may hold dollars
    axes = figure.subplots(1, 3, gridspec_kw=MARGINS)
    last = max(rows, key=lambda row: row["step"])
    steps = last["step"] / last["epoch"]  # in one epoch
    for axis, key, scale in zip(axes, ("loss", "accuracy", "lr"), (1, 100, 1), strict=True):
        for split, colour in COLOURS.items():
            points = [(row["step"] / steps, scale * row[key]) for row in rows if row["split"] == split and key in row]
            if points:
                look = {"drawstyle": "steps-pre"} if key == "lr" else {"marker": "" if split == "train" else "."}
                axis.plot(*zip(*points, strict=True), color=colour, label=split, **look)
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    _label(axes, rows, last["epoch"])
    path = run.path / "curves.png"
    with atomic(path) as part:
        figure.savefig(part, dpi=120, format="png")
    return path


def _label(axes: Sequence[Any], rows: Sequence[Mapping[str, Any]], epoch: int) -> None:
    """Scales, the chosen epoch, the last rate."""
    from matplotlib.ticker import LogLocator, NullFormatter

    loss, accuracy, rate = axes
    if all(row["loss"] > 0 for row in rows):
        loss.set_yscale("log")
        loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss.yaxis.set_major_formatter("{x:.3g}")
        loss.yaxis.set_minor_formatter(NullFormatter())
    loss.set_ylabel("loss")
    accuracy.set(ylabel="accuracy, %", ylim=(0, 100))
    rate.set(ylabel="learning rate")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter("{x:.3g}")
    rates = [row for row in rows if "lr" in row]
    if rates:
        rate.annotate(
            f"{rates[-1]['lr']:.3g}", (1, rates[-1]["lr"]), xycoords=("axes fraction", "data"), ha="right", va="bottom"
        )
    choice = choose(best_epochs(rows), epoch)
    for axis in (loss, accuracy):
        axis.axvline(
            choice.epoch,
            color="#555555",
            linewidth=1,
            linestyle=":",
            label=f"epoch {choice.epoch}: {choice.why.split(' (')[0]}",
        )
    loss.figure.legend(*accuracy.get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False)
