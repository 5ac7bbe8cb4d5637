"""The run folder, the same for both frameworks.

recipe.json  options.json  manifest.json  metrics.jsonl  checkpoints/  curves.png  model.safetensors
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common.arch.spec import Arch
from common.arch.zoo import ABLATIONS, ARCHS, OWN, know_arch
from common.config import from_dict, read_json, to_dict
from common.errors import UserError
from common.frameworks import FRAMEWORKS, Framework
from common.recipes.spec import RECIPE, Recipe
from common.runs.files import PART, SUMS, atomic, locked, remove, sha256, unused, write_json, write_text, writing

OPTIONS = "options.json"
RESUME_MAY_CHANGE = ("epochs",)
_FOLDER = "folder:"  # begins the name of a dataset that may move; the manifest knows what must be in it


@dataclass(frozen=True)
class RunFolder:
    """A run on disk. `create` makes a new one, `open` reads one; nothing here overwrites a run."""

    path: Path

    @staticmethod
    def is_at(path: Path) -> bool:
        """Whether a folder is one: its recipe is the mark."""
        return (path / RECIPE).is_file()

    @classmethod
    def create(cls, path: Path, recipe: Recipe, options: Mapping[str, Any] | None = None) -> RunFolder:
        """Make the folder and write its recipe and options; until they are in it, the folder has another name.

        Raises:
            UserError: it exists, or cannot be made.
        """
        part = path.with_name(path.name + PART)
        try:
            if path.exists():
                raise UserError(
                    f"{path} exists. Continue that run with --resume {path}, or name another folder with --out."
                )
            (part / "checkpoints").mkdir(parents=True, exist_ok=True)
            if options is not None:
                write_json(part / OPTIONS, options)
            write_json(part / RECIPE, to_dict(recipe))
            part.rename(path)
        except OSError as error:
            with suppress(OSError):
                remove(part)
            raise UserError(f"Cannot make the run folder {path}: {error.strerror}.") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Find the run that a folder, or a file inside it, belongs to.

        Raises:
            UserError: there is none.
        """
        for folder in (path, *path.absolute().parents[:2]):
            if cls.is_at(folder):
                return cls(folder)
        raise UserError(f"{path} is not a run folder, nor a checkpoint inside one: there is no {RECIPE}.")

    @property
    def recipe(self) -> Recipe:
        """The recipe as it ran, overrides included."""
        file = self.path / RECIPE
        recipe = from_dict(read_json(file), Recipe, str(file))
        recipe.check()
        if recipe.arch not in ARCHS | ABLATIONS | OWN and self.begun and self.arch.name == recipe.arch:
            know_arch(self.arch)
        return recipe

    @property
    def options(self) -> Any:
        """What the command that began or last continued the run said besides the recipe; None of older runs."""
        file = self.path / OPTIONS
        return read_json(file) if file.exists() else None

    @property
    def begun(self) -> bool:
        """Whether it is known what the run's numbers depend on; not of one that was killed before."""
        return (self.path / "manifest.json").exists()

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, device, seed, commit, architecture and class names."""
        return read_json(self.path / "manifest.json")

    @property
    def arch(self) -> Arch:
        """The architecture, adapted to the dataset."""
        return from_dict(self._recorded("arch"), Arch, str(self.path / "manifest.json"))

    @property
    def class_names(self) -> list[str]:
        """In label order.

        Raises:
            UserError: the manifest does not say them.
        """
        names = self._recorded("class_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{self.path / 'manifest.json'} has class_names that are no list of names.")
        return names

    @property
    def skipped(self) -> list[str]:
        """The images of the dataset's folder that the run goes without, by their path in it; none of a run that has not
        begun.

        Raises:
            UserError: the manifest does not say them properly.
        """
        manifest: Any = self.manifest if self.begun else {}
        paths = manifest.get("skipped", []) if isinstance(manifest, dict) else None
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise UserError(f"{self.path / 'manifest.json'} is damaged: its skipped is no list of paths.")
        return paths

    def _recorded(self, field: str) -> Any:
        manifest = self.manifest
        if not isinstance(manifest, dict) or field not in manifest:
            raise UserError(f"{self.path / 'manifest.json'} is damaged: it does not say the {field} of the run.")
        return manifest[field]

    def checkpoint(self, epochs: int, framework: Framework, step: int | None = None) -> Path:
        """Where the checkpoint after this many epochs goes, or after step `step` in the epoch that follows them."""
        name = epoch_name(epochs) + (f"_step_{step:08d}" if step else "")
        return self.path / "checkpoints" / f"{name}{FRAMEWORKS[framework].suffix}"

    def check_framework(self, framework: Framework, command: str = "evaluate") -> None:
        """Refuse a run of the other framework.

        Args:
            framework: that would read it.
            command: the module to name instead.

        Raises:
            UserError: says what to use instead.
        """
        made_by = self._recorded("framework")
        if made_by not in FRAMEWORKS:
            raise UserError(f"{self.path / 'manifest.json'} is damaged: its framework is {made_by!r}.")
        if made_by != framework:
            raise UserError(
                f"{self.path} was trained with {made_by}_impl: use `python -m {made_by}_impl.{command}`, "
                f"or give its model.safetensors, which both frameworks open."
            )

    def check_manifest(self) -> None:
        """Find out at once what would fail after an epoch.

        Raises:
            UserError: names the field that is not as it was written.
        """
        manifest, file = self.manifest, self.path / "manifest.json"
        _ = self.arch, self.class_names
        given = manifest.get("init_from")
        whole = {
            "device": isinstance(manifest.get("device"), str),
            "batches_sha256": isinstance(manifest.get("batches_sha256", {}), dict),
            "init_from": given is None
            or (isinstance(given, dict) and all(isinstance(given.get(key), str) for key in ("path", "sha256"))),
        }
        for field, fits in whole.items():
            if not fits:
                raise UserError(f"{file} is damaged: it does not say the {field} of the run.")

    @property
    def init_from(self) -> Path | None:
        """The file of weights that `--init-from` named when the run began.

        Raises:
            UserError: it is no longer that file.
        """
        given = self.manifest.get("init_from")
        if not given:
            return None
        file = Path(given["path"])
        if not file.exists() or weights_sha256(file) != given["sha256"]:
            raise UserError(f"{self.path} began with the weights {file}, which are gone or were changed since.")
        return file

    def checkpoints(self, framework: Framework, command: str = "evaluate") -> list[Path]:
        """The finished checkpoints, oldest first; `command` as for `check_framework`.

        Raises:
            UserError: the run belongs to the other framework.
        """
        self.check_framework(framework, command)
        found = (self.path / "checkpoints").glob(f"epoch_*{FRAMEWORKS[framework].suffix}")
        return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.stem)])

    def metrics(self) -> list[dict[str, Any]]:
        """Every row of metrics.jsonl.

        Raises:
            UserError: a line is not a row, with its number.
        """
        file, rows = self.path / "metrics.jsonl", []
        for number, line in enumerate(self._read_metrics().splitlines(), 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file}, line {number} is not valid JSON: {error}.") from error
            if lacking := _lacking(row):
                raise UserError(f"{file}, line {number} is no row of metrics: it lacks a proper {lacking}.")
            rows.append(row)
        return rows

    def _read_metrics(self) -> bytes:
        file = self.path / "metrics.jsonl"
        try:
            return file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise UserError(f"Cannot read {file}: {error.strerror}.") from error

    def keep(self, recipe: Recipe, options: Mapping[str, Any]) -> None:
        """Write the recipe and options of a run that goes on, with more epochs or other places, once its data has been
        checked.
        """
        write_json(self.path / RECIPE, to_dict(recipe))
        write_json(self.path / OPTIONS, options)

    def log(self, **row: Any) -> None:
        """Append one row to metrics.jsonl.

        Raises:
            UserError: it cannot be written.
        """
        file = self.path / "metrics.jsonl"
        with writing(file), file.open("a", encoding="utf-8") as end:
            end.write(json.dumps(row) + "\n")

    def rewind(self, epochs: int, rows: list[dict[str, Any]], evaluations: list[dict[str, Any]] | None = None) -> None:
        """Put metrics.jsonl back to where a checkpoint was written.

        Args:
            epochs: whose rows stay.
            rows: of the epoch after them, which the checkpoint carries.
            evaluations: the rows of `epochs` that are not of training, which it carries too; None: those that stay.
        """
        self._drop_cut_line()
        kept = [row for row in self.metrics() if row["epoch"] <= epochs]
        if evaluations is not None:
            trained = [row for row in kept if row["split"] == "train"]
            steps = {row["step"] for row in trained}
            if gone := sorted({row["epoch"] for row in evaluations if row["step"] not in steps}):
                said = f"epoch {gone[0]}" + (f" and {len(gone) - 1} more" if len(gone) > 1 else "")
                print(f"warning: {self.path / 'metrics.jsonl'} has lost training rows of {said}", file=sys.stderr)
            kept = sorted([*trained, *evaluations], key=lambda row: row["step"])  # stable: training comes first
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in [*kept, *rows]))

    def _drop_cut_line(self) -> None:
        """Take away a last line that was not finished, saying so."""
        file = self.path / "metrics.jsonl"
        whole, newline, cut = self._read_metrics().rpartition(b"\n")
        if cut:
            print(f"note: the last line of {file} was cut off; it is dropped", file=sys.stderr)
            with atomic(file) as part:
                part.write_bytes(whole + newline)

    def clear_parts(self) -> None:
        """Delete what a killed process left half written."""
        for part in (*self.path.glob(f"*{PART}*"), *(self.path / "checkpoints").glob(f"*{PART}*")):
            with writing(part):
                remove(part)


def epoch_name(epochs: int) -> str:
    """What the checkpoint after so many epochs is called, without its suffix."""
    return f"epoch_{epochs:04d}"


def _lacking(row: Any) -> str:
    """The field that a row of metrics must have and has not, or not of its type."""
    if not isinstance(row, dict):
        return "step"
    types: dict[str, Any] = {"step": int, "epoch": int, "split": str}
    if row.get("split") != "train":
        types["accuracy"] = (int, float)
    return next((name for name, kind in types.items() if not isinstance(row.get(name), kind)), "")


def weights_sha256(file: Path) -> str:
    """The hash of a file of weights; of a checkpoint that is a folder, of the hashes of its files."""
    return sha256(file / SUMS if file.is_dir() else file)


def result_of(path: Path) -> Path:
    """The file of weights that a path names: a run folder's result, or the path itself.

    Raises:
        UserError: the run has no result yet.
    """
    if not RunFolder.is_at(path):
        return path
    if not (path / "model.safetensors").is_file():
        raise UserError(f"{path} has no model.safetensors yet: finish the run, or name one of its checkpoints.")
    return path / "model.safetensors"


def default_folder(recipe: Recipe, framework: Framework) -> Path:
    """A folder below `runs` that does not exist yet: recipe, framework and time."""
    return unused(Path("runs") / f"{recipe.name}-{framework}-{datetime.now():%Y%m%d-%H%M%S}")


@contextmanager
def open_or_create(
    path: Path, recipe: Recipe, framework: Framework, *, resume: bool, options: Mapping[str, Any] | None = None
) -> Iterator[RunFolder]:
    """The folder of a new run, or of one to be continued with the same recipe (more epochs are welcome), locked.

    Raises:
        UserError: a new run's folder exists or its name is not UTF-8, another process has it, or the run to resume is
            missing or had another recipe.
    """
    try:
        os.fsencode(path.absolute()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.absolute()} is not UTF-8, and libraries write into no other folders: name another one with --out."
        ) from error
    if not resume:
        run = RunFolder.create(path, recipe, options)
    else:
        run, found = RunFolder(path), False
        with suppress(OSError):  # a name that is too long, and others that no file can have
            found = RunFolder.is_at(path)
        if not found:
            raise UserError(f"{path} is not a run folder: nothing to resume. Name the folder itself: --resume RUN.")
    with locked(path):
        if resume:
            _check_resumable(run, recipe, framework)
            run.clear_parts()
        yield run


def _check_resumable(run: RunFolder, recipe: Recipe, framework: Framework) -> None:
    path, before = run.path, run.recipe
    if run.begun:  # else the run was killed before it began
        run.check_framework(framework, "train")
        run.check_manifest()
    if recipe.epochs < before.epochs:
        raise UserError(f"{path} is a run of {before.epochs} epochs: a resumed run cannot have {recipe.epochs}.")
    if recipe.schedule.name == "cosine" and recipe.epochs != before.epochs:
        raise UserError(f"{path} ran with a cosine over {before.epochs} epochs: a resumed run keeps its epochs.")
    if change := changed(before, recipe):
        name, old, new = change
        raise UserError(f"{path} ran with {name} = {old}, not {new}: a resumed run keeps its recipe.")


def changed(before: Recipe, now: Recipe) -> tuple[str, Any, Any] | None:
    """The first field that differs, as the command line names it, with both values; not the number of epochs, which a
    resumed run may raise, nor the place of a folder of photographs.
    """
    old, new = to_dict(before), to_dict(now)
    if before.dataset.startswith(_FOLDER) and now.dataset.startswith(_FOLDER):
        old["dataset"] = new["dataset"]
    for name in RESUME_MAY_CHANGE:
        old[name] = new[name]
    return _difference(old, new, "")


def _difference(old: Any, new: Any, name: str) -> tuple[str, Any, Any] | None:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return (name, old, new) if old != new else None
    parts = [*old, *(part for part in new if part not in old)]
    found = (_difference(old.get(part), new.get(part), f"{name}.{part}".strip(".")) for part in parts)
    return next((change for change in found if change), None)
