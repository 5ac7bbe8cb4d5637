"""`make parity`: every architecture in every precision, the largest difference of each phase, and the verdict.

Prints one table and writes it to benchmarks/results/parity-DEVICE.json and .md.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from common.arch.zoo import ARCHS
from common.commands.shell import guard
from common.errors import UserError, lookup
from common.recipes.spec import Precision
from common.recipes.zoo import RECIPES
from common.runs.files import write_text
from common.system import package_versions
from parity.compare import Bounds, Difference, Report
from parity_tests import curves, results
from parity_tests.results import RESULTS
from parity_tests.single_step import avoids_kinks, bounds_for, compare_step, measure_step, recipe_for
from torch_impl.device import describe, pick_device

PRECISIONS: tuple[Precision, ...] = ("float64", "float32", "bfloat16")
CURVE_STEPS = 12


@dataclass(frozen=True)
class Options:
    """Compare both frameworks and print one table.

    Attributes:
        archs: only these architectures, and no training curves.
        out: where the table goes as parity-DEVICE.json and parity-DEVICE.md.
        device: cpu or gpu.
    """

    archs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    out: Path = RESULTS
    device: Literal["cpu", "gpu"] = "cpu"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        arch, check, precision: what was compared.
        largest: difference of a tensor, in `unit`.
        rounding: what either framework's own comes to in the same step, against float64; None in float64 itself.
        tensor: the one with the largest difference.
    """

    arch: str
    check: str
    precision: str
    largest: float
    bound: float
    unit: str
    rounding: float | None
    tensor: str

    @property
    def verdict(self) -> str:
        """NaN is no agreement."""
        return "equal" if self.largest <= self.bound else "DIFFERENT"


def step_rows(name: str, precision: Precision, device: str) -> Iterator[Row]:
    """One step at full width: a row for each phase."""
    bounds, noise = bounds_for(name, precision), None
    if precision == "float64":
        with jax.enable_x64(True):
            found = compare_step(name, precision, replace(bounds, default=inf, phase={}), device)
    else:
        step, avoid = recipe_for(name, precision), avoids_kinks(precision)
        found, noise = measure_step(step, ARCHS[name], bounds.unit, device, avoid_kinks=avoid)
    for phase in found.phases():
        own = noise.largest(phase).size if noise else None
        yield _row(name, phase, precision, found.largest(phase), bounds, own)


def curve_rows(name: str) -> Iterator[Row]:
    """A few steps of a recipe with everything on: one row, the loss."""
    bounds = curves.bounds_for(RECIPES[name].optimizer.name)
    with jax.enable_x64(True):
        report: Report = curves.narrow_run(name, CURVE_STEPS)
    check = f"{CURVE_STEPS} steps of {name}"
    yield _row(RECIPES[name].arch, check, "float64", report.largest(), bounds, None)


def _row(arch: str, check: str, precision: str, worst: Difference, bounds: Bounds, own: float | None) -> Row:
    return Row(arch, check, precision, worst.size, bounds.of(worst.phase), bounds.unit, own, worst.tensor)


def measure(options: Options) -> list[Row]:
    """Every row, with a progress bar."""
    names = [lookup(ARCHS, name, "architecture").name for name in options.archs] or list(ARCHS)
    precisions: tuple[Precision, ...] = (*PRECISIONS, "tf32") if options.device == "gpu" else PRECISIONS
    jobs: list[Any] = [lambda n=n, p=p: step_rows(n, p, options.device) for n in names for p in precisions]
    if not options.archs and options.device == "cpu":
        jobs += [lambda n=n: curve_rows(n) for n in RECIPES]
    console = Console(stderr=True)
    bar = track(jobs, "Comparing", console=console, transient=True, disable=not console.is_terminal)
    rows = []
    for job in bar:
        rows += job()
        gc.collect()  # networks in reference cycles
    return rows


COLUMNS = ("architecture", "check", "precision", "largest difference", "bound", "rounding alone", "tensor", "verdict")


def cells(row: Row) -> tuple[str, ...]:
    """A row as text."""
    unit = {"ulp": " ULP", "norm": " of the norm", "relative": ""}[row.unit]
    own = "" if row.rounding is None else f"{row.rounding:.2g}"
    sizes = (f"{row.largest:.2g}{unit}", f"{row.bound:.2g}", own)
    return (row.arch, row.check, row.precision, *sizes, row.tensor, row.verdict)


def main() -> None:
    """Measure, print and write the table; exit 1 if anything differs."""
    options = tyro.cli(Options, prog="python -m parity_tests.table")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out}: no folder can be made there: {error.strerror}.") from error
    rows = measure(options)
    device, versions = describe(pick_device(options.device)), package_versions()
    table = Table(title=f"PyTorch and Flax on {device}")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        table.add_row(*cells(row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    path = options.out / f"parity-{options.device}.json"
    verdicts = [asdict(row) | {"verdict": row.verdict} for row in rows]
    results.file(path, {"device": device, "versions": versions, "rows": verdicts})
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in rows)]
    head = f"On {device}, {', '.join(f'{name} {version}' for name, version in versions.items())}.\n\n"
    write_text(path.with_suffix(".md"), head + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    different = sum(row.verdict != "equal" for row in rows)
    print(
        f"{len(rows) - different} of {len(rows)} equal within their bounds; {path} and {path.with_suffix('.md').name}"
    )
    sys.exit(different > 0)


if __name__ == "__main__":
    guard(main)
