"""The command line of exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.commands.shell import guard
from common.errors import UserError
from common.frameworks import Framework
from common.recipes.own import load_file
from common.runs.folder import RunFolder, result_of
from common.weights import export as exports
from common.weights.network import Given, Network, result_at
from common.weights.result import said_of


@dataclass(frozen=True)
class ExportCommand:
    """Write a network in a format that other tools read, and beside it a .json that says how to feed it.

    Attributes:
        source: a run folder, one of its checkpoints, or a .safetensors file.
        dest: the file to write; its suffix says the format.
        format: if the suffix does not say it: pt2, onnx or torchscript from PyTorch, stablehlo or onnx from Flax.
        opset: of ONNX (default: 18).
        arch: the architecture of a .safetensors file that does not say it.
        recipe: whose preprocessing the .json shall give, for a .safetensors file outside a run folder.
        classes: class names for the .json in label order, of such a file: a list with commas between, or a file.
        recipe_file: a Python file with recipes and architectures of your own, which the names may be of.
    """

    source: tyro.conf.Positional[Path]
    dest: tyro.conf.Positional[Path]
    format: str | None = None
    opset: int | None = None
    arch: str | None = None
    recipe: str | None = None
    classes: str | None = None
    recipe_file: Path | None = None


def run_export(
    framework: Framework,
    formats: Mapping[str, str],
    write: Callable[[Network, Path, str, int], float],
    arguments: Sequence[str] | None = None,
) -> None:
    """`export SOURCE DEST [--format FORMAT]`: write the file and say how near its logits come to the source's."""

    def run() -> None:
        command = tyro.cli(ExportCommand, args=arguments, prog=f"python -m {framework}_impl.export")
        load_file(command.recipe_file)
        kind = exports.pick_format(command.dest, command.format, formats)
        if command.opset is not None and kind != "onnx":
            raise UserError(f"--opset {command.opset} is for ONNX; {command.dest} becomes {kind}.")
        if command.dest.is_dir():
            raise UserError(f"{command.dest} is a folder: name the file to write.")
        source = _source(command, framework)
        worst = write(source, command.dest, kind, exports.OPSET if command.opset is None else command.opset)
        if said := said_of(source.path):
            print(said)
        batches = ", ".join(map(str, exports.BATCHES))
        print(f"{command.dest}: {source.arch.name}, {source.arch.classes} classes, as {kind}")
        print(f"{command.dest}.json: how to feed it")
        print(f"reloaded, its logits differ by at most {worst:.1e} of their scale (batches of {batches})")

    guard(run)


def _source(command: ExportCommand, framework: Framework) -> Network:
    """The network to export.

    Raises:
        UserError: there is none, or a run folder has no result yet.
    """
    if RunFolder.is_at(command.source):  # a run folder; Flax's checkpoints are folders too
        run = RunFolder.open(command.source)
        run.check_framework(framework, "export")
        result_of(run.path)
    return result_at(command.source, framework, "export", Given(command.arch, command.recipe, command.classes))
