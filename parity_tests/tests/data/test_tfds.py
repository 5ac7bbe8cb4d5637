"""Datasets of tensorflow-datasets: prepared from archives written here, read back, and the mistakes on the way.

No test reaches the network: `requests` fails at once.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import ExifTags, Image, ImageOps
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.image_classification import mnist

from common.data import tfds as tfds_data
from common.data.crops import HostCrop, central_square
from common.data.dataset import Dataset
from common.data.load import load_dataset
from common.data.pipeline import batches
from common.data.spec import DATASETS
from common.errors import UserError
from common.recipes.zoo import get_recipe
from parity_tests.results import ROOT

Rows = tuple[np.ndarray, np.ndarray]
SMALL = ("mnist", "fashion_mnist", "cifar10")
TRAIN, TEST = 25, 10
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(autouse=True)
def without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: requests.Session, url: str, **kwargs: Any) -> None:
        raise requests.ConnectionError("offline", request=requests.Request("GET", url).prepare())

    monkeypatch.setattr(requests.Session, "get", refuse)


def draw(name: str) -> tuple[Rows, Rows]:
    """Images and labels for both splits."""
    rng = np.random.default_rng(1)
    image = DATASETS[name].image
    assert image is not None
    return tuple(  # type: ignore[return-value]
        (rng.integers(0, 256, (n, *image), np.uint8), rng.integers(0, 10, n).astype(np.uint8)) for n in (TRAIN, TEST)
    )


def write_idx(folder: Path, prefix: str, rows: Rows) -> None:
    images, labels = rows
    header = struct.pack(">IIII", 0x803, len(images), 28, 28)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    header = struct.pack(">II", 0x801, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_cifar10(folder: Path, train: Rows, test: Rows) -> None:
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for number in range(6):
            images, labels = test if number == 5 else (part[number * 5 : number * 5 + 5] for part in train)
            planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
            name = "test_batch.bin" if number == 5 else f"data_batch_{number + 1}.bin"
            add(archive, f"cifar-10-batches-bin/{name}", np.column_stack([labels, planes]).astype(np.uint8).tobytes())
        add(archive, "cifar-10-batches-bin/batches.meta.txt", "\n".join([*CIFAR10_NAMES, ""]).encode())


def write_archives(name: str, root: Path, train: Rows, test: Rows) -> Path:
    """Write both splits in the published format to where hand-made downloads are looked for."""
    folder = root / "downloads" / "manual"
    folder.mkdir(parents=True)
    if name == "cifar10":
        write_cifar10(folder, train, test)
    else:
        write_idx(folder, "train", train)
        write_idx(folder, "t10k", test)
    return folder


def register(monkeypatch: pytest.MonkeyPatch, name: str, folder: Path) -> None:
    """Make tensorflow-datasets expect the checksums and the counts of our archives."""
    infos = {}
    for url, info in tfds.builder_cls(name).url_infos.items():
        data = (folder / info.filename).read_bytes()
        infos[url] = replace(info, size=len(data), checksum=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(checksums, "load_url_infos", lambda path: infos)
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: dict(infos))
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", TRAIN)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", TEST)


@pytest.fixture
def archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Rows, Rows]:
    """The rows in archives of the dataset that is the test's parameter, below `tmp_path`."""
    train, test = draw(request.param)
    register(monkeypatch, request.param, write_archives(request.param, tmp_path, train, test))
    return train, test


def small_spec(name: str, train: int = TRAIN, test: int = TEST) -> Any:
    return replace(DATASETS[name], examples=(train, test))


def versions(root: Path, name: str) -> list[str]:
    return sorted(path.name for path in (root / name).glob("[0-9]*"))


def by_pixels(images: np.ndarray, labels: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


@pytest.mark.parametrize(("archives", "name"), [(name, name) for name in SMALL], indirect=["archives"])
def test_prepared_without_tensorflow_and_read_back_exactly(
    archives: tuple[Rows, Rows],
    name: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Into memory some at a time: here in several parts, the last of them smaller."""
    monkeypatch.setattr(tfds_data, "_CHUNK", 8)
    loaded_before = "tensorflow" in sys.modules
    folder = tfds_data.prepare(name, tmp_path)
    assert ("tensorflow" in sys.modules) == loaded_before
    out, err = capfd.readouterr()
    assert out.startswith(f"Preparing {name} in {tmp_path} (downloads ")
    assert out.count("\n") == 1
    assert err == ""
    assert folder == tmp_path / name / str(tfds.builder_cls(name).VERSION)
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "array_record"

    spec = small_spec(name)
    loaded = tfds_data.load_arrays(name, spec, tmp_path)
    for data, split, written in zip(loaded, ("train", "test"), archives, strict=True):
        images, labels = data.source.read(data.ids, None)
        assert (data.name, data.split, data.image, len(data)) == (name, split, spec.image, len(written[0]))
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert by_pixels(images, labels) == by_pixels(*written)
        assert len(data.class_names) == 10
        assert name != "cifar10" or data.class_names == CIFAR10_NAMES
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("archives", ["cifar10"], indirect=True)
def test_loading_prepares_first_and_only_once(archives: tuple[Rows, Rows], tmp_path: Path, capfd: Any) -> None:
    spec = small_spec("cifar10")
    first = tfds_data.load_arrays("cifar10", spec, tmp_path)[0].source.read(np.arange(TRAIN), None)
    assert "Preparing cifar10" in capfd.readouterr().out
    shutil.rmtree(tmp_path / "downloads")
    again = tfds_data.load_arrays("cifar10", spec, tmp_path)[0].source.read(np.arange(TRAIN), None)
    assert "Preparing" not in capfd.readouterr().out
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])


def test_archive_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    write_archives("cifar10", tmp_path, *draw("cifar10"))
    with pytest.raises(UserError, match="wrong checksum"):
        tfds_data.prepare("cifar10", tmp_path)
    assert versions(tmp_path, "cifar10") == []


@pytest.mark.parametrize("archives", ["cifar10"], indirect=True)
def test_a_failure_half_way_leaves_nothing_that_looks_prepared(
    archives: tuple[Rows, Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Image.Image] = []

    def fill_the_disk(pixels: np.ndarray) -> Image.Image:
        if len(made) == TRAIN + 3:  # the training split is written by then
            raise OSError(28, "No space left on device")
        made.append(picture(pixels))
        return made[-1]

    picture = tfds_data._picture
    with monkeypatch.context() as patch:
        patch.setattr(tfds_data, "_picture", fill_the_disk)
        with pytest.raises(UserError, match="No space left on device"):
            tfds_data.prepare("cifar10", tmp_path)
    assert len(made) == TRAIN + 3
    assert list((tmp_path / "cifar10").iterdir()) == []
    assert len(tfds_data.load_arrays("cifar10", small_spec("cifar10"), tmp_path)[0]) == TRAIN


@pytest.mark.parametrize("name", SMALL)
def test_missing_data_without_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = tmp_path / name / f"incomplete.ABCDEF_{tfds.builder_cls(name).VERSION}"
    killed.mkdir(parents=True)
    (killed / "dataset_info.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            load_dataset(name, tmp_path)
        text = str(caught.value)
        assert f"{name} is not in {tmp_path}" in text
        assert "no answer from" in text
        assert f"python -m common.commands.data {name} --data-dir {tmp_path}" in text
        assert "\n" not in text
    assert versions(tmp_path, name) == []

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}.*make data DATASET={name}"):
        load_dataset(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name} is not in {tmp_path}/below"):
        load_dataset(name, Path("below"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=f"cifar10 is not in {tmp_path}/file/below, and preparing it there failed: .*dir"
    ):
        load_dataset("cifar10", tmp_path / "file" / "below")


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "common.commands.data", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("imagenet2012", "--data-dir"),
            "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from https://image-net.org",
        ),
        (("cifar1", "--data-dir"), "There is no dataset 'cifar1'. Did you mean 'cifar10'?"),
        (("digits", "--data-dir"), "There is no dataset 'digits'."),
    ],
)
def test_command_line_mistakes_are_one_line(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = run_module(*arguments, str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert arguments[0] != "imagenet2012" or str(tmp_path / "downloads" / "manual") in done.stderr


@pytest.mark.parametrize("archives", ["cifar10"], indirect=True)
def test_command_line_says_where_the_data_is(archives: tuple[Rows, Rows], tmp_path: Path) -> None:
    folder = tfds_data.prepare("cifar10", tmp_path)
    done = run_module("cifar10", "--data-dir", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"cifar10 is in {folder}\n", "")


@pytest.mark.parametrize("archives", ["cifar10"], indirect=True)
def test_any_version_that_reads_will_do(archives: tuple[Rows, Rows], tmp_path: Path, capfd: Any) -> None:
    folder = tfds_data.prepare("cifar10", tmp_path)
    (tmp_path / "cifar10" / "10.0.0").mkdir()  # newest and empty
    info = json.loads((folder / "dataset_info.json").read_text())
    older = folder.rename(folder.parent / "2.10.0")
    (older / "dataset_info.json").write_text(json.dumps({**info, "version": "2.10.0"}))
    shutil.copytree(older, folder.parent / "2.9.9")
    capfd.readouterr()
    train, _ = tfds_data.load_arrays("cifar10", DATASETS["cifar10"], tmp_path)
    images, labels = train.source.read(train.ids, None)
    assert by_pixels(images, labels) == by_pixels(*archives[0])
    out, err = capfd.readouterr()
    assert "Preparing" not in out
    assert f"'train' in {older} has {TRAIN} examples; the published one has 50,000" in err


@pytest.mark.parametrize("archives", ["cifar10"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("format", "is in the format tfrecord; it must be array_record"),
        ("shard", r"is incomplete: 1 of 2 files are missing \(cifar10-test.array_record-00000-of-00001\)"),
        ("info", "cannot be read: Expecting property name"),
        ("split", "has no split 'validation', only train, test"),
        ("classes", "is not cifar10: it has 10 classes"),
    ],
)
def test_prepared_data_that_cannot_be_used(
    archives: tuple[Rows, Rows], tmp_path: Path, fault: str, expected: str
) -> None:
    folder = tfds_data.prepare("cifar10", tmp_path)
    info = folder / "dataset_info.json"
    spec = small_spec("cifar10")
    if fault == "format":
        info.write_text(info.read_text().replace("array_record", "tfrecord"))
    elif fault == "shard":
        (folder / "cifar10-test.array_record-00000-of-00001").unlink()
    elif fault == "info":
        info.write_text("{")
    else:
        spec = replace(spec, test_split="validation") if fault == "split" else replace(spec, classes=100)
    with pytest.raises(UserError, match=expected) as caught:
        tfds_data.load_arrays("cifar10", spec, tmp_path)
    assert str(folder) in str(caught.value)
    if fault in ("format", "shard", "info"):
        assert f"python -m common.commands.data cifar10 --data-dir {tmp_path}" in str(caught.value)
        with pytest.raises(UserError, match=expected):
            tfds_data.prepare("cifar10", tmp_path)


# Photographs


def jpeg(width: int, height: int, mode: str = "RGB", seed: int = 0) -> bytes:
    """A smooth random photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).convert(mode).save(stream, "JPEG", quality=90)
    return stream.getvalue()


PHOTOGRAPHS = [
    jpeg(300, 260, seed=1),
    jpeg(256, 400, seed=2),
    jpeg(40, 30, seed=3),
    jpeg(640, 280, "L", seed=4),
    jpeg(500, 375, "CMYK", seed=5),
    jpeg(224, 224, seed=6),
    jpeg(257, 255, seed=7),
]
SYNSETS = [f"n{number:08}" for number in range(1000)]


def write_photographs(root: Path, train: list[bytes], validation: list[bytes]) -> None:
    """A dataset as imagenet2012 is prepared; photograph i has label 900 + i."""

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "imagenet2012"
        VERSION = tfds.core.Version("5.1.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=SYNSETS),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(train), "validation": self._generate_examples(validation)}

        def _generate_examples(self, photographs: list[bytes]) -> Iterator[tuple[str, dict[str, Any]]]:
            for i, data in enumerate(photographs):
                yield f"photo_{i}.JPEG", {"image": data, "label": 900 + i, "file_name": f"photo_{i}.JPEG"}

    config = tfds.download.DownloadConfig(try_download_gcs=False)
    Builder(data_dir=root).download_and_prepare(file_format="array_record", download_config=config)


def load_photographs(root: Path, train: int, test: int) -> tuple[Dataset, Dataset]:
    return tfds_data.load_photographs("imagenet2012", small_spec("imagenet2012", train, test), root)


def test_photographs_through_the_pipeline(tmp_path: Path) -> None:
    write_photographs(tmp_path, PHOTOGRAPHS, PHOTOGRAPHS[:3])
    train, test = load_photographs(tmp_path, 7, 3)
    assert (train.split, test.split, train.image, len(train), len(test)) == ("train", "test", None, 7, 3)
    assert train.class_names == tuple(SYNSETS)
    np.testing.assert_array_equal(train.ids, np.arange(7))
    recipe = replace(get_recipe("imagenet"), batch_size=3)

    def run(epoch: int, workers: int = 0) -> tuple[list[tuple[int, ...]], list[int], str]:
        digest = hashlib.sha256()
        shapes, labels = [], []
        for batch in batches(replace(train, workers=workers), recipe, epoch, train=True):
            assert batch.images.dtype == np.uint8
            assert batch.labels.dtype == np.int32
            batch.update(digest)
            shapes.append(batch.images.shape)
            labels += batch.labels.tolist()
        return shapes, labels, digest.hexdigest()

    shapes, labels, digest = run(0)
    assert shapes == [(3, 224, 224, 3), (3, 224, 224, 3), (1, 224, 224, 3)]
    assert sorted(labels) == list(range(900, 907))
    assert run(0) == run(0, workers=2) == (shapes, labels, digest)
    assert run(1)[2] != digest


def test_photographs_are_decoded_as_they_were_written(tmp_path: Path) -> None:
    write_photographs(tmp_path, PHOTOGRAPHS[:2], PHOTOGRAPHS)
    _, test = load_photographs(tmp_path, 2, 7)
    (batch,) = batches(test, replace(get_recipe("imagenet"), batch_size=7), 0, train=False)
    assert sorted(batch.labels.tolist()) == list(range(900, 907))
    for image, label in zip(batch.images, batch.labels, strict=True):
        original = Image.open(io.BytesIO(PHOTOGRAPHS[label - 900])).convert("RGB")
        np.testing.assert_array_equal(image, central_square(original, 256))


def test_a_photograph_of_a_record_is_turned_upright() -> None:
    """As one in a file is: Pillow's own turn, by the orientation that a camera held on its side writes."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    lying = Image.open(io.BytesIO(PHOTOGRAPHS[0]))
    lying.save(stream, "JPEG", quality=90, exif=exif)
    records = tfds_data._Records(Path("here"), "train", [{"image": stream.getvalue(), "label": 3}], None)
    with records.open(0) as (image, label):
        expected = ImageOps.exif_transpose(Image.open(stream))
        assert expected.size == lying.size[::-1]
        np.testing.assert_array_equal(image, expected)
        assert label == 3


@pytest.mark.parametrize("damage", ["truncated", "not an image"])
def test_a_damaged_photograph_is_named(tmp_path: Path, damage: str) -> None:
    bad = PHOTOGRAPHS[4][:900] if damage == "truncated" else b"no photograph"
    write_photographs(tmp_path, [*PHOTOGRAPHS[:4], bad], PHOTOGRAPHS[:2])
    train, test = load_photographs(tmp_path, 5, 2)
    failed = []
    for index in range(5):
        try:
            with train.source.open(index) as (image, label):  # type: ignore[attr-defined]
                image.load()
            assert image.mode == "RGB"
            assert image.size == Image.open(io.BytesIO(PHOTOGRAPHS[label - 900])).size
        except UserError as error:
            failed.append((index, str(error)))
    ((index, text),) = failed
    assert f"Example {index} (photo_4.JPEG) of the split 'train' in {tmp_path / 'imagenet2012' / '5.1.0'}" in text

    recipe = get_recipe("imagenet")
    with pytest.raises(UserError, match=rf"Example {index} \(photo_4.JPEG\)"):
        list(batches(train, recipe, 0, train=True))
    assert len(list(batches(test, recipe, 0, train=False))) == 1


@pytest.mark.parametrize("archives", ["mnist"], indirect=True)
def test_a_damaged_record_is_named(archives: tuple[Rows, Rows], tmp_path: Path) -> None:
    file = tfds_data.prepare("mnist", tmp_path) / "mnist-train.array_record-00000-of-00001"
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    file.write_bytes(data)
    with pytest.raises(UserError, match=rf"Example \d+ of the split 'train' in {file.parent} cannot be read"):
        tfds_data.load_arrays("mnist", small_spec("mnist"), tmp_path)


def test_imagenet_from_its_archives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Archives within an archive, a CMYK photograph that the official builder mends, and shuffling on disk."""
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    classes = {"n01440764": {"n01440764_1.JPEG": PHOTOGRAPHS[0]}, "n01739381": {"n01739381_1309.JPEG": PHOTOGRAPHS[4]}}
    with tarfile.open(manual / "ILSVRC2012_img_train.tar", "w") as archive:
        for synset, files in classes.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_archive:
                for file_name, data in files.items():
                    add(class_archive, file_name, data)
            add(archive, f"{synset}.tar", inner.getvalue())
    with pytest.raises(UserError, match=r"get ILSVRC2012_img_val\.tar from"):
        tfds_data.prepare("imagenet2012", tmp_path)
    with tarfile.open(manual / "ILSVRC2012_img_val.tar", "w") as archive:
        for number in (1, 2):
            add(archive, f"ILSVRC2012_val_{number:08}.JPEG", PHOTOGRAPHS[number])
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 0)
    capfd.readouterr()
    tfds_data.prepare("imagenet2012", tmp_path)
    assert capfd.readouterr().err == ""
    assert not caplog.records

    train, test = load_photographs(tmp_path, 2, 2)
    photographs = {}
    for index in range(2):
        with train.source.open(index) as (image, label):  # type: ignore[attr-defined]
            photographs[train.class_names[label]] = np.asarray(image, int)
    assert sorted(photographs) == ["n01440764", "n01739381"]
    for synset, original in (("n01440764", PHOTOGRAPHS[0]), ("n01739381", PHOTOGRAPHS[4])):
        wanted = np.asarray(Image.open(io.BytesIO(original)).convert("RGB"), int)
        assert photographs[synset].shape == wanted.shape
        assert np.abs(photographs[synset] - wanted).mean() < 2
    stored = [train.source.open.__self__.source[index] for index in range(2)]  # type: ignore[attr-defined]
    assert {Image.open(io.BytesIO(record["image"])).mode for record in stored} == {"RGB"}
    labels = test.source.read(np.arange(2), HostCrop(8))[1]
    assert {test.class_names[label] for label in labels} == {"n01751748", "n09193705"}  # the published first two


# Real data


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        pytest.param("cifar10", (0.4913, 0.4821, 0.4465), (0.2452, 0.2428, 0.2606), marks=pytest.mark.full),
        ("fashion_mnist", (0.2860,), (0.3530,)),
        ("mnist", (0.1307,), (0.3081,)),
    ],
)
def test_published_data(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    root = os.environ.get("TFDS_DATA_DIR")
    if not root or not versions(Path(root), name):
        pytest.skip(f"TFDS_DATA_DIR names no folder with {name}")
    spec = DATASETS[name]
    for data, split, count in zip(load_dataset(name), ("train", "test"), spec.examples, strict=True):
        images, labels = data.source.read(data.ids, None)
        assert (data.split, images.shape, images.dtype) == (split, (count, *spec.image), np.uint8)  # type: ignore[misc]
        assert labels.dtype == np.int32
        if name != "mnist":
            assert np.bincount(labels).tolist() == [count // 10] * 10
        pixels = [images[..., channel] / np.float32(255) for channel in range(len(mean))]
        tolerance = 5e-4 if split == "train" else 5e-3
        np.testing.assert_allclose([p.mean(dtype=np.float64) for p in pixels], mean, atol=tolerance)
        np.testing.assert_allclose([p.std(dtype=np.float64) for p in pixels], std, atol=tolerance)
