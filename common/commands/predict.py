"""The command line of prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.own import load_file
from common.reports import predictions
from common.reports.predictions import Predictor, Wishes
from common.training.options import Device
from common.weights.network import NOTHING, ClassNames, Given, Network, complete, pretrained, result_at
from common.weights.result import said_of


@dataclass(frozen=True)
class PredictCommand:
    """Say what a network sees in an image, or in each image of a folder, and draw it.

    Attributes:
        image: a file, or a folder of images.
        run: a run folder or a checkpoint in one (default: torchvision's pretrained AlexNet).
        weights: a .safetensors file instead of a run.
        arch: the architecture of a .safetensors file that does not say it.
        recipe: of the training of a .safetensors file that does not say how images become its input.
        classes: class names of a .safetensors file in label order: a list with commas between, or a file of lines.
        recipe_file: a Python file with recipes and architectures of your own, which the names may be of.
        top: how many classes to name.
        grad_cam: show where in the image the network sees what speaks for its first guess, and leave the maps.
        each: draw every image of a folder into a picture of its own too; grad-cam does anyway.
        invert: exchange dark and light, for a network of digits light on dark, and ink on paper.
        out: folder for the pictures.
        device: to compute on.
    """

    image: tyro.conf.Positional[str]
    run: Path | None = None
    weights: Path | None = None
    arch: str | None = None
    recipe: str | None = None
    classes: str | None = None
    recipe_file: Path | None = None
    top: int = 5
    grad_cam: bool = False
    each: bool = False
    invert: bool = False
    out: Path = Path("predictions")
    device: Device = "auto"


def run_predict(
    framework: Framework,
    open_network: Callable[[Network, str], Predictor],
    names: ClassNames,
    arguments: Sequence[str] | None = None,
) -> None:
    """`predict IMAGE [--run RUN | --weights FILE] [--top 5] [--out DIR]`: the most probable classes, and a picture."""

    def run() -> None:
        command = tyro.cli(PredictCommand, args=arguments, prog=f"python -m {framework}_impl.predict")
        load_file(command.recipe_file)
        if command.top < 1:
            raise UserError(f"--top is {command.top}; it must be at least 1.")
        if command.run and command.weights:
            raise UserError("--run and --weights exclude each other: a run has its own weights.")
        predictions.find_images(command.image)  # before minutes are spent on weights
        given = Given(command.arch, command.recipe, command.classes)
        if path := command.run or command.weights:
            network = complete(result_at(path, framework, "predict", given), names)
        elif given != NOTHING:
            raise UserError("--arch, --recipe and --classes are for a file: name it with --weights.")
        else:
            network = pretrained(names())
        ready = open_network(network, command.device)
        if said := said_of(network.path):
            print(said)
        wishes = Wishes(command.top, command.out, command.grad_cam, command.each, command.invert)
        predictions.predict_place(command.image, network, ready, wishes)

    guard(run)
