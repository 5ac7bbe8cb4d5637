"""The picture of a range test of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from common.reports.figures import save_figure


def draw_rates(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggested: float, title: str, dest: Path
) -> None:
    """Draw the loss of each step against its rate, on a logarithmic axis, and mark the suggested rate.

    Raises:
        UserError: it cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    figure.suptitle(title, parse_math=False)  # a name may hold dollars
    axis = figure.subplots()
    axis.plot(rates, losses, color="#9bb3d4", linewidth=0.8, label="loss of the batch")
    axis.plot(rates, smoothed, color="#1f4e9c", label="smoothed")
    axis.axvline(suggested, color="#b3323a", linestyle="--", label=f"suggested: {suggested:.2g}")
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(0, 1.5 * max(smoothed[0], min(smoothed))))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, dest, dpi=120)
    except OSError as error:
        raise UserError(f"Cannot write {dest}: {error.strerror or error}.") from error
