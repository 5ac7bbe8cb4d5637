"""The run folder, the same for both frameworks.

recipe.json  manifest.json  metrics.jsonl  checkpoints/  curves.png  model.safetensors
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from common.arch import Arch
from common.config import from_dict, read_json, to_dict
from common.errors import UserError
from common.recipes import Recipe

Framework = Literal["torch", "flax"]

PACKAGES = ("torch", "torchvision", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
SUFFIX: dict[str, str] = {"torch": ".pt", "flax": ".orbax"}
RESUME_MAY_CHANGE = ("epochs",)


@dataclass(frozen=True)
class Scores:
    """Sums over a whole split: cross-entropy, right first guesses, right among the first five, and examples."""

    loss: float
    top1: int
    top5: int
    count: int

    @property
    def accuracy(self) -> float:
        """Share of right first guesses."""
        return self.top1 / self.count

    @property
    def mean_loss(self) -> float:
        """Cross-entropy per example, in nats."""
        return self.loss / self.count


@dataclass(frozen=True)
class RunFolder:
    """A run on disk. `create` makes a new one, `open` reads one; nothing here overwrites a run."""

    path: Path

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> RunFolder:
        """Make the folder and write its recipe.

        Raises:
            UserError: it exists, or cannot be made.
        """
        if path.exists():
            raise UserError(f"{path} exists. Continue that run with --resume, or name another folder with --out.")
        try:
            (path / "checkpoints").mkdir(parents=True)
        except OSError as error:
            raise UserError(f"Cannot make the run folder {path}: {error.strerror}.") from error
        write_json(path / "recipe.json", to_dict(recipe))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Find the run that a folder, or a file inside it, belongs to.

        Raises:
            UserError: there is none.
        """
        for folder in (path, *path.absolute().parents[:2]):
            if (folder / "recipe.json").is_file():
                return cls(folder)
        raise UserError(f"{path} is not a run folder, nor a checkpoint inside one: there is no recipe.json.")

    @property
    def recipe(self) -> Recipe:
        """The recipe as it ran, overrides included."""
        file = self.path / "recipe.json"
        return from_dict(read_json(file), Recipe, str(file))

    @property
    def manifest(self) -> dict[str, Any]:
        """Versions, device, seed, commit, architecture and class names."""
        return read_json(self.path / "manifest.json")

    @property
    def arch(self) -> Arch:
        """The architecture, adapted to the dataset."""
        return from_dict(self.manifest["arch"], Arch, str(self.path / "manifest.json"))

    @property
    def class_names(self) -> list[str]:
        """In label order."""
        return self.manifest["class_names"]

    def checkpoint(self, epoch: int, framework: Framework) -> Path:
        """Where the checkpoint after this many epochs goes."""
        return self.path / "checkpoints" / f"epoch_{epoch:04d}{SUFFIX[framework]}"

    @staticmethod
    def epoch_of(checkpoint: Path) -> int:
        """The finished epochs that a checkpoint's name tells."""
        return int(checkpoint.stem.removeprefix("epoch_"))

    def check_framework(self, framework: Framework, command: str = "evaluate") -> None:
        """Refuse a run of the other framework.

        Args:
            framework: that would read it.
            command: the module to name instead.

        Raises:
            UserError: says what to use instead.
        """
        made_by = self.manifest["framework"]
        if made_by != framework:
            raise UserError(
                f"{self.path} was trained with {made_by}_impl: use `python -m {made_by}_impl.{command}`, "
                f"or give its model.safetensors, which both frameworks open."
            )

    def checkpoints(self, framework: Framework) -> list[Path]:
        """The finished checkpoints, oldest first.

        Raises:
            UserError: the run belongs to the other framework.
        """
        self.check_framework(framework)
        return sorted((self.path / "checkpoints").glob(f"epoch_*{SUFFIX[framework]}"))

    def metrics(self) -> list[dict[str, Any]]:
        """Every row of metrics.jsonl.

        Raises:
            UserError: a line is not a row, with its number.
        """
        file, rows = self.path / "metrics.jsonl", []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else [], 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{file}, line {number} is not valid JSON: {error}.") from error
        return rows

    def log(self, **row: Any) -> None:
        """Append one row to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget_after(self, epoch: int) -> None:
        """Drop the rows of epochs later than this one, which a resumed run writes again."""
        kept = [row for row in self.metrics() if row["epoch"] <= epoch]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))


def default_folder(recipe: Recipe, framework: Framework) -> Path:
    """A folder below `runs` that does not exist yet: recipe, framework and time."""
    stem = Path("runs") / f"{recipe.name}-{framework}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = stem, 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{number}")
    return path


def open_or_create(path: Path, recipe: Recipe, framework: Framework, *, resume: bool) -> RunFolder:
    """The folder of a new run, or of one to be continued with the same recipe (more epochs are welcome).

    Raises:
        UserError: a new run's folder exists, or the run to resume is missing or had another recipe.
    """
    if not resume:
        return RunFolder.create(path, recipe)
    if not (path / "recipe.json").is_file():
        raise UserError(f"{path} is not a run folder: nothing to resume. Name the folder itself with --out.")
    run = RunFolder(path)
    run.check_framework(framework)
    if recipe.epochs < run.recipe.epochs:
        raise UserError(f"{path} is a run of {run.recipe.epochs} epochs: a resumed run cannot have {recipe.epochs}.")
    if recipe.schedule.name == "cosine" and recipe.epochs != run.recipe.epochs:
        raise UserError(f"{path} ran with a cosine over {run.recipe.epochs} epochs: a resumed run keeps its epochs.")
    old, new = to_dict(run.recipe), to_dict(recipe)
    changed = [name for name in old if old[name] != new[name] and name not in RESUME_MAY_CHANGE]
    if changed:
        name = changed[0]
        raise UserError(f"{path} ran with {name} = {old[name]}, not {new[name]}: a resumed run keeps its recipe.")
    write_json(path / "recipe.json", new)
    return run


def write_manifest(run: RunFolder, framework: Framework, device: str, arch: Arch, class_names: tuple[str, ...]) -> None:
    """Record what the run's numbers depend on besides the recipe; a resumed run keeps what it recorded first."""
    if (run.path / "manifest.json").exists():
        return
    write_json(
        run.path / "manifest.json",
        {
            "framework": framework,
            "device": device,
            "seed": run.recipe.seed,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "commit": _commit(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": package_versions(),
            "class_names": class_names,
            "arch": to_dict(arch),
        },
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def package_versions(more: tuple[str, ...] = ()) -> dict[str, str]:
    """The installed versions of the packages that a run's numbers depend on, and of more."""
    found = {}
    for package in (*PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_resident_bytes() -> int:
    """The most memory that this process has held at once, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:  # no Linux
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    # ru_maxrss would count what the parent process held when it started this one.
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _commit() -> str | None:
    """The git commit of the code, with "+changes" when files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")
