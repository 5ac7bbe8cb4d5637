"""A recipe fitted to how many pictures there are, and what has to be said of so few or so uneven ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from common.errors import UserError
from common.recipes.spec import Recipe

STEPS = 10  # in an epoch, at least; fewer pictures get smaller batches
SMALLEST = 4  # batch
TYPICAL = 500  # pictures to train on that a recipe's epochs are for; fewer get more, to the double, more get half
LEAST, FEW = 3, 20  # pictures of a class to train on: fewer teach nothing; fewer teach little
UNEVEN = 4  # times as many pictures of one class as of another


def fit_length(recipe: Recipe, examples: int, named: Collection[str] = ()) -> Recipe:
    """A batch that gives an epoch its steps, and epochs that make up for few pictures.

    Args:
        recipe: whose batch is the largest.
        examples: to train on.
        named: the fields that the command line names, which stay.
    """
    if "batch-size" not in named:
        recipe = replace(recipe, batch_size=min(recipe.batch_size, max(examples // STEPS, SMALLEST)))
    if "epochs" not in named:
        factor = min(max(TYPICAL / examples, 1 / 2), 2)
        recipe = replace(recipe, epochs=max(round(factor * recipe.epochs), 1))
    return recipe


def fit_start(recipe: Recipe, named: Collection[str] = ()) -> Recipe:
    """A warm-up, and a backbone that is frozen, for half of the epochs at most.

    Args:
        recipe: as the command line has it.
        named: the fields that it names, which stay.
    """
    half, schedule, tune = recipe.epochs / 2, recipe.schedule, recipe.finetune
    if "schedule.warmup-epochs" not in named:
        schedule = replace(schedule, warmup_epochs=min(schedule.warmup_epochs, half))
    if "finetune.freeze-epochs" not in named:
        tune = replace(tune, freeze_epochs=min(tune.freeze_epochs, int(half)))
    return replace(recipe, schedule=schedule, finetune=tune)


def check_counts(counts: Sequence[int], names: Sequence[str], where: str) -> list[str]:
    """Refuse a class of which nothing can be learnt.

    Args:
        counts: of each class the pictures to train on.
        names: of the classes.
        where: the folder that they lie in.

    Returns:
        What ought to be said of the others, a sentence each.

    Raises:
        UserError: a class has fewer than `LEAST`.
    """
    fewest, most = (pick(zip(counts, names, strict=True), key=lambda each: each[0]) for pick in (min, max))
    if fewest[0] < LEAST:
        raise UserError(
            f"{fewest[1]} in {where} has {fewest[0]} {'picture' if fewest[0] == 1 else 'pictures'} to train on, beside "
            f"those for testing, and a class cannot be learnt from fewer than {LEAST}: add pictures, to 50 or more, or "
            f"remove the class."
        )
    said = []
    if fewest[0] < FEW:
        said.append(
            f"few pictures: {fewest[0]} of {fewest[1]} to train on. Expect little, and scores that chance moves; 50 or "
            f"more of each class are better"
        )
    if most[0] > UNEVEN * fewest[0]:
        said.append(
            f"uneven classes: {most[0]:,} pictures of {most[1]} and {fewest[0]:,} of {fewest[1]}; "
            f"--class-weights balanced lets each class count alike"
        )
    return said
