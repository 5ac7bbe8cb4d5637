"""Photographs read by worker processes: the same bytes, little memory, faults that are named, nobody left behind."""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import signal
import subprocess
import sys
import time
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

from benchmarks.input import make_photographs, ours
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
from common.training.options import TrainOptions
from parity_tests.tests.data.asked import Noted, Spy, arrays, double_id, process_id, refuse, slow, wrong

COUNT = 22
TINY = Preprocess(host_resize=28, random_resized_crop=True, crop=24, flip=True)
RECIPE = replace(get_recipe("imagenet"), batch_size=4, preprocess=TINY)


def sample_images() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images  # takes two seconds, and each worker imports this module

    images: list[np.ndarray] = load_sample_images().images
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of differing sizes in two classes, with names that a file system may hold."""
    root = tmp_path_factory.mktemp("photographs")
    china, flower = map(Image.fromarray, sample_images())
    for split in ("train", "test"):
        for i in range(COUNT):
            file = root / split / ("a class", "ß")[i % 2] / f"{i}\n{'é' * (i % 3)}.{('jpeg', 'PNG')[i % 5 == 0]}"
            file.parent.mkdir(parents=True, exist_ok=True)
            (china, flower)[i % 2].resize((80 + 3 * i, 120 - 2 * i)).save(file)
    return root


def load(folder: Path, count: int) -> Dataset:
    return replace(load_dataset(f"folder:{folder}")[0], workers=count)


def digests(read: Iterator[Batch]) -> list[str]:
    """Of all in each batch, its pixels too."""
    found = []
    for batch in read:
        assert batch.images is not None
        digest = hashlib.sha256(batch.images)
        batch.update(digest)
        found.append(digest.hexdigest())
    return found


@pytest.mark.parametrize("crop", [24, 96])
def test_any_number_of_workers_gives_the_same_batches(folder: Path, crop: int) -> None:
    """Of pixels that travel within the pickle, and of so many that they travel by themselves."""
    assert (4 * crop * crop * 3 >= workers._LARGE) == (crop == 96)
    recipe = replace(RECIPE, preprocess=replace(TINY, crop=crop))
    assert steps_per_epoch(load(folder, 0), recipe) == 6
    expected = digests(batches(load(folder, 0), recipe, 1, train=True))
    assert len(set(expected)) == 6
    for count in (1, 2, 3):
        assert digests(batches(load(folder, count), recipe, 1, train=True)) == expected
    for count in (0, 2):
        assert digests(batches(load(folder, count), recipe, 1, train=True, start=3)) == expected[3:]
        assert digests(batches(load(folder, count), recipe, 1, train=True, start=6)) == []
    assert digests(batches(load(folder, 9), recipe, 0, train=False)) == digests(
        batches(load(folder, 0), recipe, 0, train=False)
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
        for own, theirs in zip(one, other, strict=True):
            assert own.draws.keys() == theirs.draws.keys() >= {"crop", "flip", "jitter", "pca"}
            for name, array in own.draws.items():
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
    with pytest.raises(UserError, match=f"Cannot read the image {bad}: .* Put a picture that can be read in its place"):
        list(batches(data, RECIPE, 0, train=True))


def test_a_worker_loads_no_framework_and_may_talk() -> None:
    data = Dataset("spied", "train", None, ("a", "b"), Spy(), np.arange(20), workers=2)
    assert [batch.labels.tolist() for batch in batches(data, RECIPE, 0, train=True)] == [[0] * 4] * 5


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_a_dead_worker_is_an_error() -> None:
    results = workers.read(process_id, range(1000), 2)
    seen = [next(results) for _ in range(4)]
    assert len(set(seen)) == 2
    os.kill(seen[1], signal.SIGKILL)
    with pytest.raises(UserError, match=r"process that reads images died.*--workers 0"):
        list(results)
    assert all(map(is_gone, seen))


def test_workers_end_with_the_iterator() -> None:
    """However early, and even if nobody closes it."""
    with closing(workers.read(process_id, range(1000), 2)) as results:  # type: ignore[type-var]
        seen = [next(results) for _ in range(2)]
        assert not any(map(is_gone, seen))
    assert all(map(is_gone, seen))
    seen = [pid for pid, _ in zip(workers.read(process_id, range(1000), 2), range(2), strict=False)]
    assert all(map(is_gone, seen))
    seen = list(workers.read(process_id, range(3), 2))
    assert all(map(is_gone, seen))


def test_the_photographs_of_the_benchmark_can_be_read(tmp_path: Path) -> None:
    assert make_photographs(tmp_path, (60, 45), names=120, files=8) > 0
    assert next(ours(tmp_path, 0)).images.shape == (32, 224, 224, 3)


def test_workers_are_kept_for_the_next_pass() -> None:
    """Another one, of fewer steps, too; one that is left early ends its own, and all end with what keeps them."""
    with workers.kept():
        first = set(workers.read(process_id, range(8), 2))
        assert len(first) == 2
        assert set(workers.read(double_id, range(1), 2)) < {2 * pid for pid in first}
        assert set(workers.read(process_id, range(8), 2)) == first
        with closing(workers.read(process_id, range(1000), 3)) as results:  # type: ignore[type-var]
            second = {next(results) for _ in range(6)}
        assert first < second
        assert all(map(is_gone, second))
        with pytest.raises(UserError, match="no step 0"):
            list(workers.read(refuse, range(8), 1))
        third = set(workers.read(process_id, range(8), 1))
        assert not any(map(is_gone, third))
    assert all(map(is_gone, third))


def test_a_worker_ends_amid_a_step_with_the_iterator() -> None:
    with closing(workers.read(slow, range(9), 1)) as results:  # type: ignore[type-var]
        seen = next(results)
    assert is_gone(seen)


def test_no_worker_is_without_a_step() -> None:
    before = {child.pid for child in psutil.Process().children()}
    with closing(workers.read(process_id, range(2), 9)) as results:  # type: ignore[type-var]
        seen = next(results)
        started = {child.pid for child in psutil.Process().children()} - before
    assert len(started) == 2
    assert seen in started


def test_workers_are_deaf_to_signals_from_their_start() -> None:
    """A terminal's Ctrl-C reaches them while they import, too; this process hears it as before."""
    with closing(workers.read(process_id, range(100), 2)) as results:  # type: ignore[type-var]
        pid = next(results)
        status = Path(f"/proc/{pid}/status").read_text()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert pid in [next(results) for _ in range(20)][10:]
    blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
    assert all(blocked & 1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM))
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


def test_each_worker_is_three_steps_ahead(tmp_path: Path) -> None:
    """Which bounds the memory that results take."""
    results = workers.read(Noted(tmp_path).read, range(10, 30), 2)
    for taken in range(3):
        assert next(results) == 10 + taken
        expected = {str(10 + step) for step in range(6 + taken)}
        limit = time.monotonic() + 60
        while len(list(tmp_path.iterdir())) < len(expected) and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(0.2)
        assert {path.name for path in tmp_path.iterdir()} == expected
    assert list(results) == [*range(13, 30)]


def memory_files() -> tuple[int, int]:
    """Files in memory that this process has mapped, and that it has open."""
    found = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return Path("/proc/self/maps").read_text().count("/memfd:batch"), sum("/memfd:batch" in name for name in found)


def test_arrays_arrive_whole_and_each_is_freed_by_itself() -> None:
    for step, result in enumerate(workers.read(arrays, range(7), 2)):
        for name, array in arrays(step).items():
            np.testing.assert_array_equal(result[name], array, strict=True)
            assert result[name].flags.writeable == array.flags.writeable
    gc.collect()
    assert memory_files() == (5, 5)  # the large ones of the last
    kept = result.pop("small"), result.pop("other")
    del result, array
    assert memory_files() == (1, 1)
    del kept
    assert memory_files() == (0, 0)


def test_any_other_exception_comes_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)reads images.*in wrong.*KeyError: 'no such step: 0'"):
        list(workers.read(wrong, range(9), 2))


def test_what_a_worker_cannot_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds what this process finds on its path, and says what it does not find."""
    (tmp_path / "reads_a_step.py").write_text("def read(step):\n    return 2 * step\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("reads_a_step")
    assert list(workers.read(own.read, range(4), 2)) == [0, 2, 4, 6]
    (tmp_path / "reads_a_step.py").unlink()
    with pytest.raises(RuntimeError, match="No module named 'reads_a_step'"):
        list(workers.read(own.read, range(4), 2))


def test_elsewhere_than_on_linux_the_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UserError, match="needs Linux: say --workers 0"):
        list(workers.read(process_id, range(4), 2))
    with pytest.raises(UserError, match="needs Linux: say --workers 0"):  # before a folder is made
        TrainOptions(workers=2).check()
    TrainOptions(workers=0).check()


ENDLESS = """
import sys
from dataclasses import replace
from itertools import count
from common.commands.shell import guard
from common.data.load import load_dataset
from common.data.pipeline import batches
from common.recipes.zoo import get_recipe

def run():
    train = replace(load_dataset(sys.argv[1])[0], workers=2)
    recipe = replace(get_recipe("imagenet"), batch_size=4)
    for epoch in count():
        for number, batch in enumerate(batches(train, recipe, epoch, train=True)):
            print(len(batch.labels), "jax" in sys.modules, flush=True)
            if number == 1:
                sys.stdin.read()  # within a pass: its workers are there

guard(run)
"""


@pytest.mark.parametrize("how", ["ctrl-c", "interrupted alone", "killed"])
def test_no_worker_is_left_behind(folder: Path, tmp_path: Path, how: str) -> None:
    """The script has no `__main__` guard, as none of a user's need one."""
    (tmp_path / "endless.py").write_text(ENDLESS)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "endless.py"), f"folder:{folder}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    assert [process.stdout.readline() for _ in range(2)] == ["4 False\n"] * 2
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 2
    for pid in (process.pid, *(child.pid for child in family)):
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()  # where a kill would leave what lies there
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT if how == "interrupted alone" else signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    expected = (-signal.SIGKILL, "") if how == "killed" else (130, "interrupted")
    assert (process.returncode, error.strip()) == expected
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


def test_a_large_jpeg_is_decoded_small(tmp_path: Path) -> None:
    """At a half, a quarter or an eighth, as long as the box has pixels to spare; hardly another picture."""
    file = tmp_path / "large.jpeg"
    Image.fromarray(sample_images()[0]).resize((1601, 1067)).save(file, quality=90)
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
