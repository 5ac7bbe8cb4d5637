"""The command line of features."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from common.commands.shell import guard
from common.data.spec import Split
from common.errors import UserError, lookup
from common.frameworks import Framework
from common.recipes.own import load_file
from common.reports import features
from common.runs.files import replaced
from common.training.options import Device, check_workers
from common.weights.examples import examples
from common.weights.network import ClassNames, Given, Network, complete, result_at


@dataclass(frozen=True)
class FeaturesCommand:
    """Write what a layer of a trained network makes of images to a .npz file, channels first in both frameworks.

    Attributes:
        path: a run folder, one of its checkpoints or its model.safetensors.
        images: an image or a folder of images (default: a split of the run's dataset).
        layer: a convolution block (conv1 ...), after its pools and norms, or a dense layer (fc6 ...), after the
            activation; the last one gives the logits.
        split: of the run's dataset.
        dataset: another one in its place, such as folder:PATH, with the same classes.
        arch: the architecture of a .safetensors file that does not say it.
        recipe: of the training of a .safetensors file that does not say how images become its input.
        classes: class names of a .safetensors file in label order: a list with commas between, or a file of lines.
        recipe_file: a Python file with recipes and architectures of your own, which the names may be of.
        out: the file (default: features-LAYER.npz).
        data_dir: where tensorflow-datasets keeps its data.
        device: to compute on.
        workers: processes that decode photographs ahead; 0 decodes in threads of this one.
    """

    path: tyro.conf.Positional[Path]
    images: tyro.conf.Positional[str | None] = None
    layer: str = "fc7"
    split: Split = "test"
    dataset: str | None = None
    arch: str | None = None
    recipe: str | None = None
    classes: str | None = None
    recipe_file: Path | None = None
    out: Path | None = None
    data_dir: Path | None = None
    device: Device = "auto"
    workers: int = 0


def run_features(
    framework: Framework,
    open_layer: Callable[[Network, str, str], features.Features],
    names: ClassNames,
    arguments: Sequence[str] | None = None,
) -> None:
    """`features RUN [IMAGES] [--layer LAYER]`: an array with a row for each image, its name or its label."""

    def run() -> None:
        command = tyro.cli(FeaturesCommand, args=arguments, prog=f"python -m {framework}_impl.features")
        check_workers(command.workers)
        load_file(command.recipe_file)
        given = Given(command.arch, command.recipe, command.classes)
        network = complete(result_at(command.path, framework, "features", given), names)
        layers = [name for name, _ in (*network.arch.named_convs(), *network.arch.named_dense())]
        lookup(dict.fromkeys(layers), command.layer, "layer")
        out = command.out or Path(f"features-{command.layer}.npz")
        features.check_destination(out)
        failed: list[str] = []
        if command.images is None:
            data = examples(network, command.path, command.dataset, command.split, command.data_dir)
            network, data = network.take(data)
            data = replace(data, workers=command.workers)
            arrays = features.of_split(open_layer(network, command.device, command.layer), network, data)
            of = f"{data.name}, {data.split}"
        else:
            compute = open_layer(network, command.device, command.layer)
            arrays, of = features.of_images(compute, network, command.images, failed), command.images
        before = replaced(out)
        features.write_features(out, arrays, command.layer)
        print(f"{out}{before}: {command.layer} of {of}, {' x '.join(map(str, arrays['features'].shape))}")
        for text in failed:
            print(f"error: {text}", file=sys.stderr)
        if failed:
            total = len(failed) + len(arrays["features"])
            raise UserError(f"{len(failed)} of {total} images could not be read and have no row.")

    guard(run)
