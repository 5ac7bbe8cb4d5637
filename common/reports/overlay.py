"""The curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.frameworks import FRAMEWORKS
from common.reports.figures import save_figure, shorten
from common.runs.folder import RunFolder

STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 0.8, "alpha": 0.45},
    "val": {"linewidth": 1.4, "linestyle": "--", "marker": ".", "markersize": 5},
    "test": {"linewidth": 1.4, "marker": ".", "markersize": 5},
}
LABEL = 70  # characters
FEW = 10  # colours that are told apart at once; more runs take theirs from a scale


def draw_runs(paths: Sequence[Path], dest: Path) -> None:
    """Draw loss, on a logarithmic axis, and accuracy of runs against their epochs.

    Args:
        paths: of the run folders.
        dest: the PNG to write.

    Raises:
        UserError: a folder is no run, is damaged, or has no numbers yet; `dest` cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogFormatter, MaxNLocator

    read = [_read(path) for path in paths]
    many = colormaps["tab10"] if len(read) <= FEW else colormaps["turbo"]
    colours = [many(number if len(read) <= FEW else number / (len(read) - 1)) for number in range(len(read))]
    figure = Figure(figsize=(11, 4.2 + 0.22 * (len(read) + 1)), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for axis, key in ((losses, "loss"), (accuracies, "accuracy")):
        for (_, rows, steps), colour in zip(read, colours, strict=True):
            for split, style in STYLES.items():
                points = [(row["step"] / steps, row[key]) for row in rows if row["split"] == split and key in row]
                if points:
                    axis.plot(*zip(*points, strict=True), color=colour, **style)
        axis.set(xlabel="epoch", ylabel=key)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3, which="both")
        axis.spines[["top", "right"]].set_visible(False)
    losses.set_yscale("log")
    losses.yaxis.set_major_formatter(LogFormatter())
    losses.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    drawn = {row["split"] for _, rows, _ in read for row in rows}
    labels = [label for label, *_ in read]
    entries = [Line2D([], [], color=colour, label=label) for colour, label in zip(colours, labels, strict=True)]
    entries += [Line2D([], [], color="black", label=name, **style) for name, style in STYLES.items() if name in drawn]
    legend = figure.legend(handles=entries, loc="outside lower left", frameon=False, fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold dollars
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, dest, dpi=120)
    except OSError as error:
        raise UserError(f"Cannot write {dest}: {error.strerror or error}.") from error


def _read(path: Path) -> tuple[str, list[dict[str, Any]], float]:
    """What the legend says of a run, its rows, and its steps in one epoch."""
    if not RunFolder.is_at(path):
        raise UserError(f"{path} is no run folder.")
    run = RunFolder(path)
    rows, framework = run.metrics(), run.manifest.get("framework")
    if framework not in FRAMEWORKS:
        raise UserError(f"{path / 'manifest.json'} is damaged: it does not say the framework of the run.")
    if not rows:
        raise UserError(f"{path} has no numbers yet: its first come after ten steps.")
    whole = [row for row in rows if row["split"] != "train" and row["epoch"] > 0] or rows[-1:]
    steps = whole[-1]["step"] / max(whole[-1]["epoch"], 1)
    recipe = run.recipe
    about = f"{recipe.name}, batch {recipe.batch_size}, rate {recipe.optimizer.lr:g}"
    return f"{shorten(str(path), LABEL)}: {FRAMEWORKS[framework].title}, {about}", rows, max(steps, 1)
