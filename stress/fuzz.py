"""Damage files of every kind that the project reads, and open them: each must be refused in a sentence, or be whole.

`python -m stress.fuzz [FILES]` damages 10,000 and files the counts under benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import io
import shutil
import signal
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import torch

import flax_impl.checkpoint
import flax_impl.state
import flax_impl.train
import torch_impl.checkpoint
import torch_impl.state
import torch_impl.train
from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.config import to_dict
from common.data.photos import cut, open_image, opened
from common.errors import UserError, first_line
from common.recipes.spec import Recipe
from common.recipes.zoo import get_recipe
from common.runs.files import SUMS, write_json, write_sums
from common.runs.folder import RunFolder
from common.runs.progress import Progress
from common.system import package_versions
from common.weights import exchange
from parity_tests import results
from parity_tests.material import narrow
from parity_tests.results import RESULTS

SECONDS = 20  # that a file may take, on a slow machine
WORDS = (b"\0\0\0\0", b"\xff\xff\xff\x7f", b"9999", b"null", b'{"":', b"[[[[")  # that formats may stumble over
SHARES = {"torch": 3, "torch resealed": 2, "flax": 2, "flax resealed": 1, "safetensors": 4, "run": 3, "image": 4}


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        write: leaves a sound one in a folder and gives its path.
        hurt: damages it.
        read: opens it as the project does, and raises AssertionError for what is neither refused nor whole.
    """

    write: Callable[[Path], Path]
    hurt: Callable[[Path, np.random.Generator], None]
    read: Callable[[Path], None]


@cache
def arch() -> Arch:
    """A small network with dropout."""
    return replace(narrow(ARCHS["alexnet_cifar"], conv=16, dense=16), name="small").adapt(channels=1, classes=10)


@cache
def recipe() -> Recipe:
    """Of the digits."""
    return get_recipe("digits")


@cache
def torch_state() -> Any:
    return torch_impl.state.init_state(recipe(), arch(), 1, torch.device("cpu"))


@cache
def flax_state() -> Any:
    return flax_impl.state.init_state(recipe(), arch(), 1, jax.devices("cpu")[0])


def write_torch(folder: Path) -> Path:
    torch_impl.checkpoint.save(folder / "epoch_0001.pt", torch_state(), Progress.start(recipe(), arch()))
    return folder / "epoch_0001.pt"


def write_flax(folder: Path) -> Path:
    flax_impl.checkpoint.save(folder / "epoch_0001.orbax", flax_state(), Progress.start(recipe(), arch()))
    return folder / "epoch_0001.orbax"


def read_torch(path: Path) -> None:
    """A file with the right checksums holds what was written."""
    found = torch_impl.checkpoint.load_model(path, arch()).state_dict()
    assert all(torch.equal(found[name], value) for name, value in torch_state().model.state_dict().items())


def read_torch_resealed(path: Path) -> None:
    """Anything may be in it, so long as it is a network of this shape."""
    torch_impl.checkpoint.load_model(path, arch())
    state = torch_impl.state.init_state(recipe(), arch(), 1, torch.device("cpu"))
    torch_impl.checkpoint.load(path, state)


def hurt_entry(path: Path, rng: np.random.Generator) -> None:
    """Damage one entry of an archive and make its checksum right again, as an attacker would."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = str(rng.choice([name for name in entries if "/data/" not in name or rng.random() < 0.1]))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for each, body in entries.items():
            archive.writestr(each, damage(body, rng) if each == name else body)


def read_flax(path: Path) -> None:
    """A folder with the right checksums holds what was written."""
    found = flax_impl.checkpoint.load_variables(path, arch())
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), found, flax_state().variables)))


def read_flax_resealed(path: Path) -> None:
    """Anything may be in it, so long as it is a network of this shape."""
    flax_impl.checkpoint.load_variables(path, arch())
    flax_impl.checkpoint.load(path, flax_state())


def write_safetensors(folder: Path) -> Path:
    rng, path = np.random.default_rng(0), folder / "model.safetensors"
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in exchange.shapes(arch()).items()}
    exchange.write(path, tensors, arch(), 0, list("0123456789"), recipe().preprocess)
    return path


def read_safetensors(path: Path) -> None:
    """What is accepted is complete, finite and of the right shapes; its architecture is one that can be built."""
    tensors, metadata = exchange.read(path)
    found = exchange.read_arch(metadata, str(path))
    accepted = exchange.check(tensors, found, str(path))
    assert {name: array.shape for name, array in accepted.items()} == exchange.shapes(found)
    exchange.read_class_names(metadata, found, str(path))
    exchange.read_preprocess(metadata, str(path))


def write_run(folder: Path) -> Path:
    run = RunFolder.create(folder / "run", recipe())
    for step in range(1, 6):
        run.log(step=step, epoch=1, split="train", loss=2.3, accuracy=0.1, lr=0.1)
    write_json(run.path / "manifest.json", {"framework": "torch", "arch": to_dict(arch()), "class_names": ["0"] * 10})
    return run.path


def read_run(path: Path) -> None:
    """What is accepted is a recipe that a run can have, an architecture, and rows."""
    run = RunFolder.open(path)
    run.recipe.check()
    run.check_framework("torch")
    assert all(isinstance(name, str) for name in run.class_names)
    assert run.arch.parameters > 0
    run.rewind(1, [])
    assert all({"step", "epoch", "split"} <= row.keys() for row in run.metrics())


def write_image(folder: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (24, 31, 3), np.uint8))
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm"):
        (image.quantize() if suffix == "gif" else image).save(folder / f"image.{suffix}")
    return folder


def read_image(path: Path) -> None:
    """What is accepted has pixels."""
    for file in sorted(path.iterdir()):
        image = open_image(file)
        assert np.asarray(image).shape == (image.height, image.width, 3)
        with opened(file) as lazy:
            assert cut(lazy, (0, 0, *image.size)).size == image.size


def hurt_file(path: Path, rng: np.random.Generator) -> None:
    """Damage a file, or one of those in a folder."""
    files = sorted(file for file in (path, *path.rglob("*")) if file.is_file())
    file = files[int(rng.integers(len(files)))]
    file.write_bytes(damage(file.read_bytes(), rng))


def hurt_and_seal(path: Path, rng: np.random.Generator) -> None:
    """Damage one file of a folder and make its checksum right again, as an attacker would."""
    (path / SUMS).unlink()
    hurt_file(path, rng)
    write_sums(path)


TARGETS = {
    "torch": Target(write_torch, hurt_file, read_torch),
    "torch resealed": Target(write_torch, hurt_entry, read_torch_resealed),
    "flax": Target(write_flax, hurt_file, read_flax),
    "flax resealed": Target(write_flax, hurt_and_seal, read_flax_resealed),
    "safetensors": Target(write_safetensors, hurt_file, read_safetensors),
    "run": Target(write_run, hurt_file, read_run),
    "image": Target(write_image, hurt_file, read_image),
}


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """A file's bytes with one to four things done to them; the first KiB, where formats have their headers, most."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        size = len(data)
        at = int(rng.integers(min(size, 1024 if rng.random() < 0.7 else size) or 1))
        length = int(rng.integers(1, 17))
        other = int(rng.integers(size or 1))
        kind = rng.integers(8)
        if kind == 0 and size:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(length)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.bytes(length)
        elif kind == 5:
            data[at : at + length] = data[other : other + length]
        elif kind == 6:
            data[at : at + 4] = bytes(
                rng.choice([b"\0\0\0\0", b"\xff\xff\xff\x7f", b"9999", b"null", b'{"":', b"[[[["])
            )
        else:
            data[at : at + 8] = b"[" * int(rng.integers(1, 20_000))
    return bytes(data)


@contextmanager
def in_time() -> Iterator[None]:
    """Raise where a file takes longer than `SECONDS`."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"still busy after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attack(kind: str, seed: int, folder: Path) -> str:
    """Damage a sound file of a kind and open it.

    Args:
        kind: of `TARGETS`.
        seed: of the damage.
        folder: to work in; the sound file stays there for the next time.

    Returns:
        "refused" or "opened".

    Raises:
        AssertionError: it was opened and is not whole, or took too long.
        Exception: what was not turned into a `UserError`.
    """
    target, sound = TARGETS[kind], folder / "sound"
    if not sound.exists():
        sound.mkdir()
        target.write(sound)
    path = folder / "damaged"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(sound, path)
    if kind != "image":
        path = next(path.iterdir())
    target.hurt(path, np.random.default_rng(seed))
    try:
        with in_time():
            target.read(path)
    except UserError:
        return "refused"
    return "opened"


def main(files: int) -> int:
    """Attack every kind by its share; print and file the counts, and return how many were neither refused nor whole."""
    counts: dict[str, Counter[str]] = {}
    faults: list[str] = []
    for kind, share in SHARES.items():
        counts[kind] = Counter()
        with TemporaryDirectory() as folder, redirect_stderr(io.StringIO()):
            for seed in range(-(-files * share // sum(SHARES.values()))):
                try:
                    counts[kind][attack(kind, seed, Path(folder))] += 1
                except Exception as error:
                    counts[kind]["fault"] += 1
                    faults.append(f"{kind}, seed {seed}: {type(error).__name__}: {first_line(error)}")
        print(f"{kind:15}", dict(counts[kind]), flush=True)
    result = {
        "files": sum(sum(each.values()) for each in counts.values()),
        "counts": {kind: dict(each) for kind, each in counts.items()},
        "faults": faults,
        "versions": package_versions(("safetensors", "pillow", "cattrs")),
    }
    results.file(RESULTS / "fuzz.json", result)
    print(f"{result['files']:,} files, {len(faults)} faults", *faults[:40], sep="\n")
    return len(faults)


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000), 1))
