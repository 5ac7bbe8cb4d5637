"""The room that a run takes on its disk, found out before its first step."""

from __future__ import annotations

from math import lcm
from pathlib import Path

from common.errors import UserError
from common.recipes.spec import Recipe
from common.runs.files import free_at, in_units, size_of
from common.training.options import TrainOptions


def check_room(out: Path, each: int, recipe: Recipe, steps: int, options: TrainOptions) -> str:
    """Hold what a run writes to what its disk has free.

    Args:
        out: the run folder, which need not be there.
        each: bytes of a checkpoint.
        recipe: of the run.
        steps: in an epoch.
        options: how many checkpoints are written, and how many stay.

    Returns:
        What the run takes, in words.

    Raises:
        UserError: it cannot fit.
    """
    every, whole = options.checkpoint_every, recipe.epochs * steps
    # So many steps of the run lie between two, whatever epochs they are of; the end of an epoch has its own.
    written = recipe.epochs + (whole // every - whole // lcm(every, steps) if every else 0)
    # The best stays besides, never fewer than two do, and a new one is whole before an old one goes.
    stay = written if options.kept is None else min(written, options.kept + 1)
    most = stay if stay == written else stay + 1
    need, have = (most + 1) * each - size_of(out), free_at(out)  # and the network alone, which is smaller
    said = f"{stay} checkpoints of {in_units(each)}" if stay > 1 else f"a checkpoint of {in_units(each)}"
    if need > have:
        fewer = "" if options.kept == 1 else " or keep fewer checkpoints, --keep 1,"
        raise UserError(
            f"{out} does not fit on its disk: {said}, one more while it is written and the network come to "
            f"{in_units((most + 1) * each)}, and {in_units(have)} are free. Make room,{fewer} or name a folder on "
            f"another disk with --out."
        )
    return f"up to {said}" + (f", {in_units(stay * each)} in all" if stay > 1 else "")
