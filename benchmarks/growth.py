"""Throughput and memory against batch size and image size: `python -m benchmarks.growth SUITE` plots what is filed.

Reads benchmarks/results/bench-SUITE.json and writes bench-SUITE.png beside it.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.settings import Contestant
from benchmarks.worker import adapted
from common.commands.shell import guard
from common.config import read_json
from common.frameworks import FRAMEWORKS
from parity_tests.results import RESULTS


def plot(source: Path) -> Path:
    """Draw the four curves of each framework; returns the picture's path.

    Raises:
        UserError: the file is not there, or not JSON.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    content = read_json(source)
    rows = [row for row in content["rows"] if "failed" not in row]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), constrained_layout=True, sharex="col")
    usual = Counter(row["batch"] for row in rows if row["side"]).most_common(1)[0][0]
    native = adapted(Contestant("torch", rows[0]["arch"], 1)).image[0]
    by_batch, by_side = [row for row in rows if not row["side"]], [row for row in rows if row["batch"] == usual]
    for column, (label, key, shown) in enumerate((("batch size", "batch", by_batch), ("image side", "side", by_side))):
        for loop in FRAMEWORKS:
            points = sorted(
                (row[key] or native, row["images_per_second"], row["peak_bytes"] / 2**30)
                for row in shown
                if row["loop"] == loop
            )
            for axis, values in zip(axes[:, column], list(zip(*points, strict=True))[1:], strict=True):
                axis.plot(
                    [point[0] for point in points],
                    values,
                    marker="o",
                    label=FRAMEWORKS[loop].title,
                    color=FRAMEWORKS[loop].colour,
                )
        axes[1, column].set_xlabel(label)
    for axis, label in zip(axes[:, 0], ("images/s", "peak memory, GiB"), strict=True):
        axis.set_ylabel(label)
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.suptitle(f"{rows[0]['arch']}, {rows[0]['precision']}, training, {content['limits']['device']}", fontsize=10)
    path = source.with_suffix(".png")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main() -> None:
    """`growth.py [SUITE]`."""
    suite: Any = sys.argv[1] if len(sys.argv) > 1 else "growth"
    print(plot(RESULTS / f"bench-{suite}.json"))


if __name__ == "__main__":
    guard(main)
