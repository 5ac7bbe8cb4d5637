"""Datasets kept by tensorflow-datasets, prepared and read without TensorFlow: the only module that imports it."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.utils import lazy_imports_utils

from common.arch.spec import Size
from common.data.dataset import Dataset, whole
from common.data.photos import FORMATS, decoded, flatten, upright
from common.data.sources import Arrays, Photographs
from common.data.spec import DATASETS, DatasetSpec, Split
from common.errors import UserError, lookup
from common.system import expanded

ARCHIVES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
ARCHIVES_FROM = "https://image-net.org/download-images"
_CHUNK = 4096  # examples decoded at a time while a dataset is read into memory
_RETRIES = 3  # tensorflow-datasets' ten take minutes to notice that there is no connection
_TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of the answer


def load_arrays(name: str, spec: DatasetSpec, data_dir: Path | None = None) -> tuple[Dataset, Dataset]:
    """Read a dataset of small images into memory, after preparing it if it is not prepared.

    Returns:
        Training and test split: uint8 (n, *spec.image) and int32 (n,).

    Raises:
        UserError: it cannot be prepared or read: what is missing, where, and what to do about it.
    """
    assert spec.image is not None
    names, train, test = _open_splits(name, spec, data_dir)
    train_arrays = read_in_chunks(train, len(train), spec.image, f"{name}, {train.split}")
    test_arrays = read_in_chunks(test, len(test), spec.image, f"{name}, {test.split}")
    return (
        whole(name, "train", spec.image, names, train_arrays),
        whole(name, "test", spec.image, names, test_arrays),
    )


def load_photographs(name: str, spec: DatasetSpec, data_dir: Path | None = None) -> tuple[Dataset, Dataset]:
    """Open a dataset of photographs, after preparing it if it is not prepared; they are read one by one when used.

    They are turned upright by their EXIF orientation, as those of folders are; torchvision and tensorflow-datasets
    leave them as they lie.

    Returns:
        Training and test split, of `Photographs`.

    Raises:
        UserError: as `load_arrays`; a photograph that cannot be decoded raises it when it is read.
    """
    names, train, test = _open_splits(name, spec, data_dir)

    def photographs(split: Split, records: _Records) -> Dataset:
        return Dataset(name, split, None, tuple(names), Photographs(records.open), np.arange(len(records)))

    return photographs("train", train), photographs("test", test)


def prepare(name: str, data_dir: Path | None = None) -> Path:
    """Download a dataset and write it as array_record, unless it is there. Downloads are checked against known sums.

    Args:
        name: a dataset that tensorflow-datasets keeps.
        data_dir: where; else `TFDS_DATA_DIR`, else ~/tensorflow_datasets.

    Returns:
        The prepared folder, DIR/NAME/VERSION.

    Raises:
        UserError: no such dataset, or it could not be prepared; then nothing is left that looks prepared.
    """
    root = _root(data_dir)
    return (_find(name, root) or _prepare(name, root)).folder


def read_in_chunks(examples: Any, count: int, image: Size, what: str) -> Arrays:
    """Read a random-access source of {"image", "label"} into memory, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import track

    images = np.empty((count, *image), np.uint8)
    labels = np.empty(count, np.int32)
    starts = range(0, count, _CHUNK)
    console = Console(stderr=True)
    for start in track(starts, f"Reading {what}", console=console, transient=True, disable=not console.is_terminal):
        rows = examples.__getitems__(range(start, min(start + _CHUNK, count)))
        images[start : start + len(rows)] = np.stack([row["image"] for row in rows])
        labels[start : start + len(rows)] = [row["label"] for row in rows]
    return Arrays(images, labels)


@dataclass(frozen=True)
class _Prepared:
    """A prepared version of a dataset: its folder, tensorflow-datasets' `DatasetInfo`, and a source for each split."""

    folder: Path
    info: Any
    sources: dict[str, Any]


@dataclass(frozen=True)
class _Records:
    """One split, decoded with Pillow whatever else is installed, since decoders differ in their pixels.

    Attributes:
        folder, split: where the records come from.
        source: gives record `index` as a dict of undecoded features.
        image: (height, width, channels), or None for photographs.
    """

    folder: Path
    split: str
    source: Any
    image: Size | None

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, ids: range) -> list[dict[str, Any]]:
        """Images uint8 (height, width, channels) with their labels."""
        try:
            return [self._pixels(*self._decode(record)) for record in self.source.__getitems__(ids)]
        except Exception:  # whatever it is: one by one, the example at fault is named
            return [self._read(index) for index in ids]

    @contextmanager
    def open(self, index: int) -> Iterator[tuple[Image.Image, int]]:
        """One image, grey or RGB, perhaps not decoded yet, and its label.

        Raises:
            UserError: it cannot be read, decoded or used, or has another size; with its index and file name.
        """
        record: dict[str, Any] = {}
        try:
            record = self.source[index]
            yield self._decode(record)
        except Exception as error:  # what the record reader and Pillow raise on damaged data is of many kinds
            file_name = f" ({record['file_name'].decode()})" if "file_name" in record else ""
            raise UserError(
                f"Example {index}{file_name} of the split {self.split!r} in {self.folder} cannot be read: "
                f"{_cause(error)}. Move this folder away to have it prepared again."
            ) from error

    def _decode(self, record: dict[str, Any]) -> tuple[Image.Image, int]:
        image, label = decoded(io.BytesIO(record["image"])), int(record["label"])
        if not self.image:
            return flatten(upright(image)), label
        if (image.height, image.width) != self.image[:2]:
            raise ValueError(f"it has {image.height}x{image.width} pixels")
        return flatten(image, self.image[2]), label

    def _read(self, index: int) -> dict[str, Any]:
        with self.open(index) as example:
            return self._pixels(*example)

    def _pixels(self, image: Image.Image, label: int) -> dict[str, Any]:
        return {"image": np.asarray(image).reshape(self.image or -1), "label": label}


def _open_splits(name: str, spec: DatasetSpec, data_dir: Path | None) -> tuple[list[str], _Records, _Records]:
    """Class names, training and test split, prepared first if need be.

    Raises:
        UserError: it cannot be prepared, or is not the dataset that `spec` describes.
    """
    root = _root(data_dir)
    prepared = _find(name, root) or _prepare(name, root)
    features = prepared.info.features
    wanted = ("train", spec.test_split)
    if lacking := [split for split in wanted if split not in prepared.sources]:
        raise UserError(f"{prepared.folder} has no split {lacking[0]!r}, only {', '.join(prepared.sources)}.")
    if features["label"].num_classes != spec.classes or (spec.image and features["image"].shape != spec.image):
        raise UserError(
            f"{prepared.folder} is not {name}: it has {features['label'].num_classes} classes and images of "
            f"{features['image'].shape}, not {spec.classes} and {spec.image}."
        )
    train, test = (_Records(prepared.folder, split, prepared.sources[split], spec.image) for split in wanted)
    for records, expected in zip((train, test), spec.examples, strict=True):
        if len(records) != expected:
            print(
                f"Note: the split {records.split!r} in {prepared.folder} has {len(records):,} examples; "
                f"the published one has {expected:,}.",
                file=sys.stderr,
            )
    return features["label"].names, train, test


def _root(data_dir: Path | None) -> Path:
    """Where datasets are kept, absolute."""
    return expanded(str(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")).absolute()


def _command(name: str, root: Path) -> str:
    """What prepares a dataset in `root`."""
    if root == _root(None):
        return f"`make data DATASET={name}`"
    return f"`python -m common.commands.data {name} --data-dir {root}`"


def _find(name: str, root: Path) -> _Prepared | None:
    """The newest prepared version that can be read, whichever the installed tensorflow-datasets would prepare.

    Raises:
        UserError: versions are there and none of them can be read.
    """
    folders = [path for path in (root / name).glob("*.*.*") if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    faults = []
    for folder in sorted(folders, key=lambda path: [int(part) for part in path.name.split(".")], reverse=True):
        try:
            return _open_folder(folder)
        except ImportError as error:
            raise UserError(f"Reading {folder} needs the package {error.name}, which is not installed.") from error
        except UserError as fault:
            faults.append(str(fault))
    if faults:
        raise UserError(f"{' '.join(faults)} Move it away and prepare {name} again with {_command(name, root)}.")
    return None


def _open_folder(folder: Path) -> _Prepared:
    """Open a prepared version.

    Raises:
        UserError: it is damaged, incomplete, or of a format without random access.
        ImportError: the package that reads its format is not installed.
    """
    try:
        with _quiet():
            builder = tfds.builder_from_directory(folder)
            formats = builder.info.available_file_formats()
            if not formats & set(tfds.core.FileFormat.with_random_access()):
                found = ", ".join(form.value for form in formats) or "unknown"
                raise UserError(f"{folder} is in the format {found}; it must be array_record to be read at random.")
            if not {"image", "label"} <= set(builder.info.features):
                raise UserError(f"{folder} does not hold labelled images.")
            sources = builder.as_data_source(decoders={"image": tfds.decode.SkipDecoding()})
    except (ImportError, UserError):
        raise
    except Exception as error:  # what a damaged folder raises depends on the file that is damaged
        raise UserError(f"{folder} cannot be read: {_cause(error)}.") from error
    files = [Path(file) for split in builder.info.splits.values() for file in split.filepaths]
    if lacking := [file.name for file in files if not file.exists()]:
        raise UserError(f"{folder} is incomplete: {len(lacking)} of {len(files)} files are missing ({lacking[0]}).")
    return _Prepared(folder, builder.info, sources)


def _prepare(name: str, root: Path) -> _Prepared:
    """Prepare a dataset that is not in `root`; tensorflow-datasets renames the folder once it is complete."""
    lookup({key: spec for key, spec in DATASETS.items() if "tensorflow-datasets" in spec.source}, name, "dataset")
    official = tfds.builder_cls(name)
    print(f"Preparing {name} in {root} ({_what_it_takes(name, root, official)})", flush=True)
    config = tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True)
    tfds.display_progress_bar(sys.stderr.isatty())
    failure: Exception = RuntimeError("nothing was written")
    try:
        with _quiet(), _without_tensorflow():
            builder = _with_pictures(official)(data_dir=root)
            builder.download_and_prepare(file_format="array_record", download_config=config)
    except Exception as error:  # network, disk, archives, tensorflow-datasets: any of them may fail
        failure = error
    if prepared := _find(name, root):  # also where another process has been faster
        return prepared
    raise UserError(
        f"{name} is not in {root}, and preparing it there failed: {_cause(failure)}. Mend that and run "
        f"{_command(name, root)}, or set TFDS_DATA_DIR to a folder that holds {name}."
    ) from failure


def _what_it_takes(name: str, root: Path, official: Any) -> str:
    """Where the data will come from, in a few words.

    Raises:
        UserError: it must be fetched by hand and is not there.
    """
    manual = root / "downloads" / "manual"
    if name not in ARCHIVES:
        size = sum(info.size for info in official.url_infos.values())
        hosts = {str(urlsplit(url).hostname) for url in official.url_infos}
        return f"downloads {size / 2**20:.0f} MiB from {', '.join(sorted(hosts))}"
    if lacking := [archive for archive in ARCHIVES[name] if not (manual / archive).is_file()]:
        raise UserError(
            f"{name} is not in {root}, and it cannot be downloaded without an account: get {' and '.join(lacking)} "
            f"from {ARCHIVES_FROM}, put them in {manual} and run {_command(name, root)}, or set TFDS_DATA_DIR to a "
            f"folder that holds {name}."
        )
    return f"from the archives in {manual}; this takes hours"


def _with_pictures(official: Any) -> Any:
    """A dataset's official builder, except that arrays of pixels become pictures, which Pillow encodes as PNG."""

    class Builder(official, skip_registration=True):  # type: ignore[call-arg]
        __module__ = official.__module__  # the checksums are found by it
        name = official.name

        def _generate_examples(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
            for key, example in super()._generate_examples(*args, **kwargs):
                image = example["image"]
                yield key, {**example, "image": _picture(image) if isinstance(image, np.ndarray) else image}

    return Builder


def _picture(pixels: np.ndarray) -> Image.Image:
    """From uint8 (height, width, 1 or 3)."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))


@contextmanager
def _without_tensorflow() -> Iterator[None]:
    """Put plain Python where tensorflow-datasets calls TensorFlow while it prepares, and bound the wait for servers.

    A TensorFlow that is loaded already stays: tensorflow-datasets then asks it for types, too.
    """
    files = SimpleNamespace(GFile=_open_file, exists=os.path.exists, remove=os.remove)
    stand_in = SimpleNamespace(
        io=SimpleNamespace(gfile=files),
        compat=SimpleNamespace(as_text=str),
        errors=SimpleNamespace(ResourceExhaustedError=NotImplementedError, UnimplementedError=NotImplementedError),
    )
    replaced = {} if "tensorflow" in sys.modules else {"_module": stand_in}
    open_url: Callable[..., Any] = partial(downloader._open_url, timeout=_TIMEOUT)
    with (
        mock.patch.dict(vars(lazy_imports_utils.tensorflow), replaced),
        mock.patch.multiple(tfds.core.utils, jpeg_cmyk_to_rgb=_rgb_jpeg, png_to_jpeg=_rgb_jpeg),
        mock.patch.multiple(downloader, MAX_RETRIES=_RETRIES, _open_url=open_url),
    ):
        yield


def _open_file(path: str | os.PathLike[str], mode: str = "r") -> IO[Any]:
    """Open a file, of which a large dataset needs a thousand at a time while it is shuffled."""
    try:
        return Path(path).open(mode)
    except OSError as error:
        if "Too many open files" not in str(error):
            raise
        shuffle._increase_open_files_limit()
        return Path(path).open(mode)


def _rgb_jpeg(encoded: bytes) -> bytes:
    """Any image as an RGB JPEG of quality 100."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        upright(image).convert("RGB").save(stream, "JPEG", quality=100)
    return stream.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back warnings and notices, of which tensorflow-datasets has many; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _cause(error: BaseException) -> str:
    """What went wrong, in a few words."""
    while error.__cause__ is not None:
        error = error.__cause__
    if request := getattr(error, "request", None):  # the errors of requests carry it
        return f"no answer from {urlsplit(request.url).hostname} ({type(error).__name__})"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:")[:400] if lines else type(error).__name__
