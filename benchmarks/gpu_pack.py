"""What a GPU machine without a network needs, in one folder: `python -m benchmarks.gpu_pack`.

Writes .gpu-pack: `wheels` of what the machine lacks, `data` (benchmarks/packed.py), `sources` of the commit and
pack.json, which says what they are. `make gpu-run` uses it there (benchmarks/gpu_run.py).
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import packed
from benchmarks.gpu_run import ABOUT, DATA, SOURCES, WHEELS, fingerprint
from common.commands.shell import guard
from common.errors import UserError
from common.runs.files import atomic, write_json
from common.system import commit
from parity_tests.results import ROOT

# What the machine lacks, by the names that pip knows, and why a stage needs it. Versions are requirements.lock's.
LACKING = {
    "attrs": "cattrs is built on it",
    "cattrs": "recipes and run folders are read with it",
    "docstring-parser": "tyro needs it",
    "safetensors": "the machine has 0.8.0, which writes transposed numpy arrays wrongly",
    "typeguard": "tyro needs it",
    "tyro": "command lines are read with it",
}
# What the machine has, by the names that are imported.
PRESENT = (
    *("flax", "jax", "ml_dtypes", "optax", "orbax", "torch", "torchvision"),
    *("matplotlib", "numpy", "PIL", "psutil", "rich", "scipy", "sklearn", "typing_extensions"),
    *("_pytest", "hypothesis", "pytest", "xdist"),
)
# What no stage comes to need, though a function of a module that a stage imports would, and why.
SPARED = {
    "simplejpeg": "no stage reads photographs",
    "tensorboardX": "no stage logs beyond metrics.jsonl",
    "tensorflow_datasets": "packed data takes its place",
    "wandb": "as tensorboardX",
}
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64")


@dataclass(frozen=True)
class Options:
    """Pack what a GPU machine without a network needs.

    Attributes:
        python: the machine's version, of CPython on x86-64 Linux.
        data: datasets, which must be prepared here.
        most: megabytes that the folder may have.
        out: the folder; what is there is replaced.
    """

    python: str = "3.12"
    data: tuple[str, ...] = ("cifar10", "fashion_mnist")
    most: float = 50.0
    out: Path = ROOT / ".gpu-pack"


def wheels(folder: Path, python: str) -> None:
    """Download what the machine lacks.

    Raises:
        UserError: pip could not.
    """
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:", "--no-deps", *platforms]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", *target]
    command += ["-c", str(ROOT / "requirements.lock"), "-d", str(folder), *LACKING]
    done = subprocess.run(command, cwd=folder.parent, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = " ".join(errors) or done.stderr
        raise UserError(f"pip could not download the wheels for Python {python}; is there a network? It says: {said}")


def sources(folder: Path) -> str:
    """Write the sources of the commit; returns it.

    Raises:
        UserError: this is no checkout.
    """
    whole = commit()
    if whole is None:
        raise UserError(f"{ROOT} is no git checkout with a commit: the sources of one are packed.")
    found = whole.removesuffix("+changes")
    tar = subprocess.run(["git", "-C", str(ROOT), "archive", found], stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        archive.extractall(folder, filter="data")
    return found


def data(folder: Path, name: str) -> None:
    """Put a packed dataset there, packed now if it was not before.

    Raises:
        UserError: it is not prepared.
    """
    path = packed.FOLDER / f"{name}.npz.xz"
    if path.exists():
        print(f"{name}: taken from {path}; delete that to pack it anew", flush=True)
    else:
        print(f"{name}: packing, about a minute ...", flush=True)
        packed.pack(name)
    folder.mkdir(exist_ok=True)
    shutil.copy(path, folder)


def size(path: Path) -> float:
    """Of a file or a folder, in megabytes."""
    files = (file for file in [path, *path.rglob("*")] if file.is_file())
    return sum(file.stat().st_size for file in files) / 1e6


def check_size(folder: Path, most: float) -> str:
    """What each part of a pack takes, in words.

    Raises:
        UserError: all together more than it may.
    """
    parts = [
        path for part in sorted(folder.iterdir()) for path in (sorted(part.iterdir()) if part.name == DATA else [part])
    ]
    words = ", ".join(f"{path.name} {size(path):.1f} MB" for path in parts)
    if size(folder) > most:
        raise UserError(
            f"The pack would have {size(folder):.1f} MB and may have {most:g}: {words}. Leave a dataset out "
            f"(--data fashion_mnist), or allow more (--most {size(folder) + 1:.0f})."
        )
    return f"{size(folder):.1f} MB: {words}"


def pack(options: Options) -> str:
    """Write the folder, whole or not at all; returns what its parts take.

    Raises:
        UserError: a part is not to be had, or they are too large.
    """
    with atomic(options.out) as folder:
        folder.mkdir()
        found = sources(folder / SOURCES)
        changed = commit() != found
        wheels(folder / WHEELS, options.python)
        for name in options.data:
            data(folder / DATA, name)
        about = {"commit": found, "changes_left_out": changed, "fingerprint": fingerprint(folder / SOURCES)}
        named = {"python": options.python, "wheels": LACKING, "data": options.data}
        write_json(folder / ABOUT, about | named)
        words = check_size(folder, options.most)
    if changed:
        print("note: files have changes that are not committed; the packed sources do not have them")
    return f"{options.out} has the sources of {found[:12]}; {words}"


def main() -> None:
    """Pack, and say how large it is."""
    print(pack(tyro.cli(Options, prog="python -m benchmarks.gpu_pack")))


if __name__ == "__main__":
    guard(main)
