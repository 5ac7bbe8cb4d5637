"""The command line that trains on a folder of photographs and shows in one page what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro

from common.arch.zoo import get_arch
from common.commands.evaluate import Score
from common.commands.shell import guard
from common.commands.train import resuming
from common.data.dataset import Dataset
from common.data.load import check_classes, load_splits
from common.errors import UserError
from common.frameworks import FRAMEWORKS, Framework
from common.recipes import own
from common.recipes.fitted import LEAST, check_counts, fit_length, fit_start
from common.recipes.spec import Recipe
from common.recipes.zoo import RECIPES, get_recipe
from common.reports.evaluation import Recorder, class_scores, confusion_files, leave_confusion
from common.reports.mistakes import SHOWN, Mistake, draw_mistakes, find_mistakes, write_mistakes
from common.reports.page import Page, write_page
from common.runs import hints
from common.runs.choice import Choice
from common.runs.folder import RunFolder, default_folder
from common.runs.scores import Scores, percent
from common.stopping import Stopped
from common.training.options import TrainOptions
from common.weights.examples import examples
from common.weights.export import OPSET
from common.weights.network import Network, other_photographs, result_at, run_at
from common.weights.result import result_of_run
from common.world import World, leaving_at_once

BACKBONE = "ALEXNET_FEATURES"  # names a file of torchvision's convolutions alone
FOLDER = "folder:"
SHARES = (0.2, 0.25, 0.3, 0.4)  # held out where the recipe's share leaves a class without a picture


@dataclass(frozen=True)
class Tools:
    """What one framework does.

    Attributes:
        framework: which.
        fit: trains a recipe and leaves a run folder.
        score: scores a network on a split.
        export: writes a network to a file of a kind.
        kind: of that file.
        suffix: of its name.
        at_hand: finds torchvision's ImageNet weights where the machine has them; downloads nothing.
    """

    framework: Framework
    fit: Callable[[Recipe, TrainOptions], Path | None]
    score: Score
    export: Callable[[Network, Path, str, int], float]
    kind: str
    suffix: str
    at_hand: Callable[[], Path | None]


@dataclass(frozen=True)
class _PhotosCommand:
    """What a command line says.

    Attributes:
        scratch: start from random weights, even where others are at hand.
        resume: continue a run: its recipe and options are in its folder; any that are given besides must be the
            recipe's own, but for more epochs.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    options: Annotated[TrainOptions, tyro.conf.arg(name="")]
    scratch: bool = False
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None


def run_photos(tools: Tools, arguments: Sequence[str] | None = None) -> None:
    """`photos FOLDER [--scratch] [--field VALUE ...]`, or `photos --resume RUN`: a run folder with an index.html."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    place = words.pop(0) if words and not words[0].startswith("-") else None

    def run() -> None:
        rest, folder = resuming(words)
        before = RunFolder(folder) if folder and RunFolder.is_at(folder) else None
        if before:
            recipe, options, start = before.recipe, TrainOptions().of_run(before), ""
        else:
            recipe, file, start = _start(rest, tools.at_hand)
            recipe, options = replace(recipe, dataset=FOLDER), TrainOptions(init_from=file, check_data=True)
        recipe = replace(recipe, dataset=f"{FOLDER}{place}") if place else recipe
        command = _read(rest, recipe, options, f"python -m {tools.framework}_impl.photos {place or 'FOLDER'}")
        if command.resume:
            command = replace(command, options=replace(command.options, out=command.resume, resume=True))
        named = own.named(words)
        (command.recipe if before else fit_start(command.recipe, named)).check()
        command.options.check()
        if folder and not before:
            raise UserError(f"{folder} is not a run folder: nothing to resume. Name the folder itself: --resume RUN.")
        if not command.recipe.dataset.startswith(FOLDER):
            raise UserError(
                f"This command trains on a folder of photographs, not on {command.recipe.dataset}: see train."
            )
        fitted = command.recipe if before else _fit_to_folder(command, named, start)
        started = perf_counter()
        if path := _train(tools, fitted, command.options):
            _report(tools, RunFolder(path), command.options.device, perf_counter() - started)

    with leaving_at_once():
        guard(run, "; if its folder is there, the same command with --resume RUN continues it")


def check_words(framework: Framework, words: Sequence[str]) -> None:
    """Say what is wrong with a command line, or its help, before a framework looks for weights to start from.

    Raises:
        SystemExit: all is said.
    """
    rest, _ = resuming(words)
    place = rest.pop(0) if rest and not rest[0].startswith("-") else "FOLDER"
    recipe = get_recipe("photos_scratch" if "--scratch" in rest else "photos")
    _read(
        rest,
        replace(recipe, dataset=FOLDER),
        TrainOptions(check_data=True),
        f"python -m {framework}_impl.photos {place}",
    )


def _read(words: Sequence[str], recipe: Recipe, options: TrainOptions, program: str) -> _PhotosCommand:
    """What the words say, by this recipe and these options where they do not."""
    return tyro.cli(
        _PhotosCommand,
        args=words,
        default=_PhotosCommand(recipe, options),
        prog=program,
        description="Train on a folder of photographs, a folder for each class, and show what came of it.",
    )


def _start(words: Sequence[str], at_hand: Callable[[], Path | None]) -> tuple[Recipe, Path | None, str]:
    """The recipe to train, the weights to start from, torchvision's where there are any, and what to say of them.

    Without any, what comes before a warning.
    """
    given = own.find_option(words, "init-from")
    if given:
        run = run_at(given) if given.exists() else None
        return _like(run.recipe) if run else get_recipe("photos"), given, f"starting from {given}"
    named = os.environ.get(BACKBONE)
    if "--scratch" not in words and (file := at_hand()):
        return get_recipe("photos"), file, f"starting from torchvision's ImageNet weights, {file}"
    if "--scratch" not in words and named and Path(named).is_file():
        said = f"starting from torchvision's convolutions alone, {named}: the dense layers are fresh"
        return replace(get_recipe("photos"), pretrained="backbone"), Path(named), said
    return get_recipe("photos_scratch"), None, "" if "--scratch" in words else "no pretrained weights on this machine: "


def _like(before: Recipe) -> Recipe:
    """The recipe of an earlier run, without what was fitted to its pictures."""
    named = RECIPES.get(before.name, before)
    fitted = {name: getattr(named, name) for name in ("epochs", "batch_size", "val_fraction", "patience")}
    return replace(before, **fitted, class_weights="equal")


def _fit_to_folder(command: _PhotosCommand, named: Collection[str], start: str) -> Recipe:
    """The recipe for the pictures of its folder; the fields that the command line names stay. Says what it does.

    Raises:
        UserError: there is no folder, or it has not the pictures that it takes.
    """
    chosen = command.recipe
    if chosen.dataset == FOLDER:
        raise UserError("Name a folder that has a folder of pictures for each class: make photos FOLDER=pictures.")
    splits = load_splits(replace(chosen, val_fraction=0.0))
    check_classes(splits)
    train, notes = splits["train"], list[str]()
    if "val" not in splits:
        chosen, train, notes = _hold_out(chosen, train, named)
    elif "val-fraction" not in named:
        chosen = replace(chosen, val_fraction=0.0)
    counts = train.counts()
    assert counts is not None
    notes = check_counts(counts.tolist(), train.class_names, chosen.dataset.removeprefix(FOLDER)) + notes
    fitted = fit_start(fit_length(chosen, len(train), named), named)
    notes += _fitted(command.recipe, fitted, len(train))
    if not World.of_environment(even=True).main:
        return fitted
    if command.options.init_from:
        print(start)
    else:
        _warn(start, chosen)
    for note in notes:
        print(f"note: {note}", flush=True)
    return fitted


def _fitted(before: Recipe, now: Recipe, pictures: int) -> list[str]:
    """What of a recipe was fitted to so many pictures to train on, a line each."""
    of_pictures, of_epochs = f"{pictures:,} pictures to train on", "half of all epochs at most"
    fields: tuple[tuple[str, Callable[[Recipe], float], str], ...] = (
        ("batches of {}", lambda recipe: recipe.batch_size, of_pictures),
        ("{} epochs", lambda recipe: recipe.epochs, of_pictures),
        ("{:g} epochs of warm-up", lambda recipe: recipe.schedule.warmup_epochs, of_epochs),
        ("{} epochs with a frozen backbone", lambda recipe: recipe.finetune.freeze_epochs, of_epochs),
        ("a share of {:g} held out", lambda recipe: recipe.val_fraction or before.val_fraction, "some of each class"),
    )
    changed = [(what, value(before), value(now), why) for what, value, why in fields if value(now) != value(before)]
    return [f"{what.format(new)} in place of {old:g}: {why}" for what, old, new, why in changed]


def _warn(why: str, recipe: Recipe) -> None:
    """Say what training from scratch means, and where it was not asked for, what to do about it."""
    side = recipe.preprocess.input_size(None, get_arch(recipe.arch))[0]
    print(
        f"warning: {why}training {recipe.arch} from scratch at {side} x {side} pixels, which needs many more pictures "
        f"and gets fewer of them right" + ("; `make weights` brings torchvision's" if why else ""),
        file=sys.stderr,
    )


def _hold_out(recipe: Recipe, train: Dataset, named: Collection[str] = ()) -> tuple[Recipe, Dataset, list[str]]:
    """The recipe with a share that holds out some of each class, what is left to train on, and what to say.

    Raises:
        UserError: the share that the command line names leaves a class without a picture.
    """
    if "val-fraction" in named and recipe.val_fraction:
        left, held = train.hold_out(recipe.val_fraction, recipe.seed)
        check_classes({"train": left, "val": held})
        return recipe, left, []
    shares = (recipe.val_fraction, *SHARES) if recipe.val_fraction else ()
    for share in shares:
        if 0 < round(share * len(train)) < len(train):
            parts = train.hold_out(share, recipe.seed)
            counts = parts[0].counts()
            if counts is not None and counts.min() >= LEAST and not parts[1].lacking():
                return replace(recipe, val_fraction=share), parts[0], []
    why = "too few pictures to hold some of each class out for validation: " if shares else ""
    said = f"{why}the last epoch is the result, whether or not it is the best"
    patience = recipe.patience if "patience" in named else 0
    return replace(recipe, val_fraction=0.0, patience=patience), train, [said]


def _train(tools: Tools, recipe: Recipe, options: TrainOptions) -> Path | None:
    """Train as `fit` does; who stops it is told how this command goes on, which makes the page too.

    Raises:
        Stopped: a signal has asked to stop.
    """
    out = options.out or default_folder(recipe, tools.framework)
    try:
        return tools.fit(recipe, replace(options, out=out))
    except Stopped as stopped:
        said = str(stopped).replace(hints.resume(tools.framework, out), hints.photos(tools.framework, out))
        raise Stopped(stopped.number, said) from None


def _report(tools: Tools, run: RunFolder, device: str, seconds: float) -> None:
    """Score the result on what it was not trained on, and write the page and all that it shows.

    Raises:
        UserError: the data is gone, or the files cannot be written.
    """
    network = result_at(run.path, tools.framework, "photos")
    network, data = network.take(examples(network, run.path, None, "test"))
    recorder = Recorder(len(data.class_names), keep=True)
    scores = tools.score(network, device, data, ten=False, watch=recorder)
    choice = result_of_run(run)
    assert choice
    folder = run.path / "evaluation"
    classes, table, _ = confusion_files("test")
    files = {"model.safetensors": "the network, which both frameworks open, train on and predict with"}
    try:
        folder.mkdir(exist_ok=True)
        title = f"{data.name}, test split: {scores.top1:,} of {scores.count:,} right"
        print()
        leave_confusion(folder, "test", recorder.confusion, data.class_names, title)
        found = find_mistakes(recorder, data)
        write_mistakes(folder / "mistakes.csv", found)
        if found:
            draw_mistakes(folder / "mistakes.png", found)
    except OSError as error:
        raise UserError(f"Cannot write to {folder}: {error.strerror or error}.") from error
    exported = run.path / f"model{tools.suffix}"
    try:
        tools.export(network, exported, tools.kind, OPSET)
        files |= {exported.name: "the network for other programs", f"{exported.name}.json": "how to feed it"}
    except UserError as error:
        print(f"note: {exported.name} is not written: {error}", file=sys.stderr)
    files |= {f"evaluation/{classes}": "the table above", f"evaluation/{table}": "which is taken for which"}
    files |= {"evaluation/mistakes.csv": f"every picture that is named wrong, {len(found):,} of them"}
    files |= {"metrics.jsonl": "the numbers behind the curves", "manifest.json": "versions, device, seed, data"}
    page = _page(tools, run, choice, scores, recorder, data, found, files, seconds)
    write_page(run.path / "index.html", page)
    print(f"\n{page.result}\n{run.path / 'index.html'} shows it: open it in a browser", flush=True)


def _page(
    tools: Tools,
    run: RunFolder,
    choice: Choice,
    scores: Scores,
    recorder: Recorder,
    data: Dataset,
    found: Sequence[Mistake],
    files: dict[str, str],
    seconds: float,
) -> Page:
    """What the page says."""
    recipe, manifest = run.recipe, run.manifest
    commonest = recorder.confusion.sum(1).max() / scores.count
    chance = 1.96 * sqrt(max(scores.accuracy * (1 - scores.accuracy), 1 / scores.count) / scores.count)
    result = (
        f"The network names {scores.top1:,} of {scores.count:,} pictures right that it was not trained on: "
        f"{percent(scores.accuracy)}, give or take {percent(chance)} by chance. "
        f"To call all of them the commonest class would get {percent(commonest)}."
    )
    given = manifest.get("init_from")
    if given and (told := other_photographs(Path(given["path"]), manifest["data"]["train"]["sha256"])):
        result += f" {told}."
    counts = ", ".join(f"{part['examples']:,} {split}" for split, part in manifest["data"].items())
    facts = {
        "pictures": f"{counts}, from {recipe.dataset.removeprefix(FOLDER)}",
        "network": f"{run.arch.name} at {' x '.join(map(str, run.arch.image[:2]))} pixels, "
        f"{run.arch.parameters:,} parameters",
        "began with": given["path"] if given else "random weights",
        "result": f"epoch {choice.epoch} of {recipe.epochs}, {choice.why}",
        "on": f"{FRAMEWORKS[tools.framework].title}, {manifest['device']}; {seconds:,.0f} s",
    }
    pictures = {f"evaluation/{confusion_files('test')[-1]}": "What is taken for what, a row for each class"}
    if found:
        which = f"The {SHOWN} surest mistakes" if len(found) > SHOWN else "The mistakes"
        pictures = {"evaluation/mistakes.png": f"{which}: what the network says, what it is"} | pictures
    pictures["curves.png"] = "Loss, accuracy and learning rate while it was trained"
    names = ", ".join(data.class_names[:4]) + (" ..." if len(data.class_names) > 4 else "")
    scored = class_scores(recorder.confusion, data.class_names)
    return Page(
        f"Photographs of {names}", result, facts, scored, pictures, files, hints.after_photos(tools.framework, run.path)
    )
