"""Photographs read by worker processes: the same bytes, little memory, faults that are named, nobody left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from common.data import draws, workers
from common.data.batch import Batch
from common.data.crops import random_resized_crop
from common.data.dataset import Dataset
from common.data.load import load_dataset
from common.data.pipeline import batches, steps_per_epoch
from common.data.sources import Arrays, Files
from common.errors import UserError
from common.recipes.spec import Mix, Preprocess
from common.recipes.zoo import get_recipe

COUNT = 22
TINY = Preprocess(host_resize=28, random_resized_crop=True, crop=24, flip=True)
RECIPE = replace(get_recipe("imagenet"), batch_size=4, preprocess=TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of differing sizes in two classes, with names that a file system may hold."""
    root = tmp_path_factory.mktemp("photographs")
    china, flower = map(Image.fromarray, load_sample_images().images)
    for split in ("train", "test"):
        for i in range(COUNT):
            file = root / split / ("a class", "ß")[i % 2] / f"{i}\n{'é' * (i % 3)}.{('jpeg', 'PNG')[i % 5 == 0]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            (china, flower)[i % 2].resize((80 + 3 * i, 120 - 2 * i)).save(file)
    return root


def load(folder: Path, count: int) -> Dataset:
    return replace(load_dataset(f"folder:{folder}")[0], workers=count)


def digests(read: Iterator[Batch]) -> list[str]:
    found = []
    for batch in read:
        digest = hashlib.sha256()
        batch.update(digest)
        found.append(digest.hexdigest())
    return found


def test_any_number_of_workers_gives_the_same_batches(folder: Path) -> None:
    assert steps_per_epoch(load(folder, 0), RECIPE) == 6
    expected = digests(batches(load(folder, 0), RECIPE, 1, train=True))
    assert len(set(expected)) == 6
    for count in (1, 2, 3):
        assert digests(batches(load(folder, count), RECIPE, 1, train=True)) == expected
    for count in (0, 2):
        assert digests(batches(load(folder, count), RECIPE, 1, train=True, start=3)) == expected[3:]
        assert digests(batches(load(folder, count), RECIPE, 1, train=True, start=6)) == []
    assert digests(batches(load(folder, 9), RECIPE, 0, train=False)) == digests(
        batches(load(folder, 0), RECIPE, 0, train=False)
    )


@pytest.mark.parametrize("mix", [Mix(), Mix(mixup=0.2, cutmix=1.0)])
def test_draws_of_photographs_are_those_of_stored_images(folder: Path, mix: Mix) -> None:
    """Made for each batch here, for all examples at once there."""
    spec = Preprocess(host_resize=28, crop=24, pad=1, flip=True, brightness=0.1, saturation=0.3, pca_std=0.1)
    recipe = replace(RECIPE, preprocess=spec, mix=mix)
    photographs, _ = load(folder, 0).hold_out(0.3, seed=1)
    stored = Arrays(np.zeros((COUNT, 28, 28, 3), np.uint8), np.zeros(COUNT, np.int32))
    for epoch in (0, 5):
        one, other = (
            list(batches(data, recipe, epoch, train=True))
            for data in (photographs, replace(photographs, image=(28, 28, 3), source=stored))
        )
        for ours, theirs in zip(one, other, strict=True):
            assert ours.draws.keys() == theirs.draws.keys() >= {"crop", "flip", "jitter", "pca"}
            for name, array in ours.draws.items():
                np.testing.assert_array_equal(array, theirs.draws[name], strict=True)


def test_memory_hardly_grows_with_the_data() -> None:
    """A pass over n photographs needs their order, 8 bytes each, and while it is drawn four times that."""

    def peak(count: int) -> int:
        source = SimpleNamespace(read=lambda ids, view: (np.zeros(1, np.uint8), np.zeros(1, np.int32)))
        data = Dataset("many", "train", None, ("a", "b"), source, np.arange(count))
        next(batches(data, RECIPE, 0, train=True))
        tracemalloc.start()
        next(batches(data, RECIPE, 1, train=True))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(10_000), peak(1_000_000)
    assert (large - small) / 990_000 < 40


def test_paths_take_little_memory(folder: Path) -> None:
    data = load(folder, 0)
    assert sorted(data.files) == sorted(str(path) for path in (folder / "train").rglob("*") if path.is_file())
    many = [(folder / "train" / "n01440764" / f"n01440764_{i}.JPEG", 0) for i in range(1000)]
    tracemalloc.start()
    files = Files(folder, iter(many))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert size < 1000 * 64
    assert list(files) == [str(path) for path, _ in many]
    assert files[990:] == [str(path) for path, _ in many[990:]]


def test_the_order_is_that_of_the_recorded_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = draws.uniforms(3, draws.Stream.ORDER, 2, 1000, 1)[:, 0]
    monkeypatch.setattr(draws, "_CHUNK", 64)
    np.testing.assert_array_equal(draws.order(3, 2, 1000), np.argsort(keys, kind="stable"))


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("damage", ["truncated", "empty", "gone"])
def test_an_unreadable_image_is_named(folder: Path, tmp_path: Path, count: int, damage: str) -> None:
    for name in ("train", "test"):
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (60, 60), (i, 9, 9)).save(tmp_path / name / label / f"{i}.jpg")
    data, bad = load(tmp_path, count), tmp_path / "train" / "b" / "2.jpg"
    if damage == "gone":
        bad.unlink()
    else:
        bad.write_bytes(bad.read_bytes()[: 400 if damage == "truncated" else 0])
    with pytest.raises(UserError, match=f"Cannot read the image {bad}: .* Mend or remove it"):
        list(batches(data, RECIPE, 0, train=True))


def test_a_worker_loads_no_framework_and_a_dead_one_is_an_error() -> None:
    def read(step: int) -> SimpleNamespace:
        loaded = [name for name in ("torch", "jax", "flax", "orbax") if sys.modules.get(name)]
        return SimpleNamespace(pid=os.getpid(), loaded=loaded)

    results = workers.read(read, range(1000), 2)
    seen = [next(results) for _ in range(4)]
    assert [result.loaded for result in seen] == [[]] * 4
    assert len({result.pid for result in seen}) == 2
    os.kill(seen[1].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"process that reads images died.*--workers 0"):
        list(results)
    assert not [child for child in psutil.Process().children() if child.pid in {result.pid for result in seen}]


def test_workers_are_deaf_to_signals_from_their_start() -> None:
    """A terminal's Ctrl-C reaches them while they import, too; this process hears it as before."""
    with closing(workers.read(lambda step: SimpleNamespace(pid=os.getpid()), range(100), 2)) as results:  # type: ignore[type-var]
        status = Path(f"/proc/{next(results).pid}/status").read_text()
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert all(blocked & 1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


def test_without_grain_the_sentence_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r"needs the package grain, which is not installed: .* --workers 0"):
        next(batches(load(folder, 2), RECIPE, 0, train=True))
    assert sys.modules["jax"] is not None


ENDLESS = """
import sys
from dataclasses import replace
from itertools import count
from common import cli, datasets
from common.pipeline import batches
from common.recipes import get_recipe

def run():
    train = replace(load_dataset(sys.argv[1])[0], workers=2)
    recipe = replace(get_recipe("imagenet"), batch_size=4)
    for epoch in count():
        for batch in batches(train, recipe, epoch, train=True):
            print(len(batch.labels), "jax" in sys.modules, flush=True)

cli.guard(run)
"""


@pytest.mark.parametrize("how", ["ctrl-c", "interrupted alone", "killed"])
def test_no_worker_is_left_behind(folder: Path, tmp_path: Path, how: str) -> None:
    """The script has no `__main__` guard, as none of a user's need one."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "endless.py"), f"folder:{folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert [process.stdout.readline() for _ in range(3)] == ["4 False\n"] * 3
    family = psutil.Process(process.pid).children(recursive=True)
    assert len([child for child in family if "spawn_main" in str(child.cmdline())]) == 2
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT if how == "interrupted alone" else signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    if how != "killed":
        assert (process.returncode, error.strip()) == (130, "interrupted")
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_a_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    """At a half, a quarter or an eighth, as long as the box has pixels to spare; hardly another picture."""
    file = tmp_path / "large.jpeg"
    Image.fromarray(load_sample_images().images[0]).resize((1601, 1067)).save(file, quality=90)
    rng = np.random.default_rng(0)
    sizes, largest = set(), 0.0
    for _ in range(20):
        numbers = rng.random(22)
        with Image.open(file) as lazy, Image.open(file) as whole:
            whole.load()
            found, exact = (random_resized_crop(image, 32, numbers).astype(int) for image in (lazy, whole))
            again = random_resized_crop(Image.open(file), 32, numbers)
            np.testing.assert_array_equal(found, again)
            sizes.add(lazy.size[0])
            largest = max(largest, float(np.abs(found - exact).mean()))
    assert sizes <= {1601, 801, 401, 201}
    assert len(sizes) > 1
    assert 0 < largest < 2
    with Image.open(file) as image:
        random_resized_crop(image, 600, rng.random(22))
        assert image.size == (1601, 1067)
