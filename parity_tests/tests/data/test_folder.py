"""People's own folders of pictures: which folders are splits and classes, what is no picture, what one picture is."""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

import common.data.bad
from common.data import tfds
from common.data.bad import check_bad, find_bad
from common.data.crops import HostCrop
from common.data.dataset import Dataset, described
from common.data.folder import SPLIT_NAMES
from common.data.listing import IMAGE_SUFFIXES
from common.data.load import check_classes, load_dataset, load_split, load_splits, load_unseen
from common.data.photos import FORMATS, open_image
from common.data.pipeline import batches
from common.data.sources import Photographs
from common.data.spec import Split
from common.errors import UserError
from common.recipes.zoo import get_recipe
from common.reports.predictions import Prediction, draw, find_images, write_predictions
from common.runs.folder import RunFolder

RECIPE = replace(get_recipe("digits"), batch_size=8)
COUNTS = {"train": 3, "val": 2, "test": 1}  # of each class


def picture(path: Path, grey: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 12, 3), (grey, 90, 200), np.uint8)).save(path, **options)
    return path


def fill(root: Path, count: int, classes: Sequence[str] = ("ants", "bees")) -> None:
    for label, name in enumerate(classes):
        for number in range(count):
            picture(root / name / f"{number:02d}.png", 10 * number + label)


def splits_of(root: Path, **fields: Any) -> dict[str, int]:
    found = load_splits(replace(RECIPE, dataset=f"folder:{root}", **fields))
    assert {data.class_names for data in found.values()} == {("ants", "bees")}
    return {split: len(data) for split, data in found.items()}


def refusal(root: Path, **fields: Any) -> str:
    with pytest.raises(UserError) as error:
        check_classes(load_splits(replace(RECIPE, dataset=f"folder:{root}", **fields)))
    return str(error.value)


class TestSplits:
    @pytest.mark.parametrize(
        "pattern", ["{}", "seg_{}", "{}_images", "data-{}", "{}Set", "a.{}.b", "archive/set/{}", "seg_{0}/seg_{0}"]
    )
    @pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
    def test_every_name_is_known(self, pattern: str, case: Any, tmp_path: Path) -> None:
        names = {split: [name for name in SPLIT_NAMES if SPLIT_NAMES[name] == split] for split in COUNTS}
        assert [len(each) for each in names.values()] == [2, 4, 2]
        for number, chosen in enumerate(product(*names.values())):
            root = tmp_path / str(number)
            for (_, count), name in zip(COUNTS.items(), chosen, strict=True):
                fill(root / pattern.format(case(name)), count)
            assert splits_of(root) == {"train": 6, "test": 2, "val": 4}

    @pytest.mark.parametrize("held", ["val", "valid", "Validation", "dev", "test"])
    def test_the_only_one_held_out_is_tested(self, held: str, tmp_path: Path) -> None:
        fill(tmp_path / "train", 5)
        fill(tmp_path / held, 2)
        assert splits_of(tmp_path) == {"train": 10, "test": 4}
        assert splits_of(tmp_path, val_fraction=0.2) == {"train": 8, "test": 4, "val": 2}

    def test_without_a_folder_to_test_on_it_is_every_fifth(self, tmp_path: Path) -> None:
        fill(tmp_path / "train", 10)
        assert splits_of(tmp_path) == {"train": 16, "test": 4}
        _, test = load_dataset(f"folder:{tmp_path}")
        assert [Path(file).name for file in test.files] == ["00.png", "05.png"] * 2
        assert len(load_unseen(f"folder:{tmp_path}")) == 20

    @pytest.mark.parametrize("found", [("test", "val", "train"), ("val", "train"), ("train",)])
    def test_a_network_from_elsewhere_is_tested_on_what_is_for_it(self, found: tuple[str, ...], tmp_path: Path) -> None:
        """On the test part, else the validation part, else all that there is."""
        for split in found:
            fill(tmp_path / split, COUNTS[split])
        assert len(load_unseen(f"folder:{tmp_path}")) == 2 * COUNTS[found[0]]

    def test_a_validation_folder_goes_before_a_fraction(self, tmp_path: Path) -> None:
        for name, count in COUNTS.items():
            fill(tmp_path / name, count)
        recipe = replace(RECIPE, dataset=f"folder:{tmp_path}", val_fraction=0.5)
        lines = described(load_splits(recipe))
        assert lines == [
            f"train: 6 from {tmp_path}/train",
            f"test: 2 from {tmp_path}/test",
            f"val: 4 from {tmp_path}/val",
            f"val_fraction 0.5 is left aside: {tmp_path}/val is the validation split",
        ]
        assert load_split(recipe, "val", None).files[0] == str(tmp_path / "val" / "ants" / "00.png")

    @pytest.mark.parametrize("name", ["seg_pred/seg_pred", "seg_test/seg_test", "seg_test"])
    def test_pictures_without_labels_are_passed_over(self, name: str, tmp_path: Path) -> None:
        fill(tmp_path / "seg_train" / "seg_train", 5)
        fill(tmp_path / "seg_val", 2)
        picture(tmp_path / name / "1.png")
        (tmp_path / "notes").mkdir()
        assert splits_of(tmp_path) == {"train": 10, "test": 4}
        lines = described(load_splits(replace(RECIPE, dataset=f"folder:{tmp_path}")))
        assert any(f"{tmp_path / name.split('/')[0]}" in line and "passed over" in line for line in lines)
        assert f"{tmp_path / 'notes'} is passed over: it holds no pictures." in lines

    def test_classes_may_have_a_splits_name_within_theirs(self, tmp_path: Path) -> None:
        classes = ("contest", "device", "test_tube", "train_station", "valley")
        fill(tmp_path, 5, classes)
        assert load_dataset(f"folder:{tmp_path}")[0].class_names == classes

    @pytest.mark.parametrize(
        ("folders", "said"),
        {
            ("train", "ants", "bees"): "holds train, named as splits are, beside ants, bees: rename what is a class",
            ("bus", "car", "Train"): "holds Train, named as splits are, beside bus, car",
            ("train", "test", "extra"): "holds train, test, named as splits are, beside extra|holds test, train",
            ("train", "val", "valid", "test"): "holds val, valid, two folders for one split",
            ("Train", "train", "test"): "holds Train, train, two folders for one split",
            ("test", "val"): "holds test, val, but no split to train on",
            ("ants/train", "ants/test", "bees/train", "bees/test"): "ants holds test, train, named as splits are",
            ("train/test", "train/ants", "test/test", "test/ants"): "train holds test, named as splits are",
        }.items(),
    )
    def test_what_cannot_be_told_is_refused(self, folders: Sequence[str], said: str, tmp_path: Path) -> None:
        for name in folders:
            fill(tmp_path / name, 3)
        assert any(each in refusal(tmp_path) for each in said.split("|"))

    def test_splits_without_classes_are_refused(self, tmp_path: Path) -> None:
        for name in ("train", "test"):
            picture(tmp_path / name / "1.png")
        assert f"{tmp_path}/train must hold one folder of images per class, at least two" in refusal(tmp_path)

    @pytest.mark.parametrize("classes", [("ants",), ("ants", "wasps"), ("ants", "bees", "wasps")])
    def test_every_split_has_the_same_classes(self, classes: Sequence[str], tmp_path: Path) -> None:
        fill(tmp_path / "train", 3)
        fill(tmp_path / "test", 3)
        fill(tmp_path / "val", 3, classes)
        differing = ", ".join(sorted({"ants", "bees"} ^ {*classes}))
        if len(classes) > 1:
            assert f"must hold the same classes, one folder each; only one has {differing}." in refusal(tmp_path)
        else:
            assert "val must hold one folder of images per class, at least two; it has ['ants']" in refusal(tmp_path)

    def test_one_folder_is_not_two_splits(self, tmp_path: Path) -> None:
        fill(tmp_path / "train", 3)
        (tmp_path / "test").symlink_to("train")
        assert "are the same folder: what is trained on cannot be tested on" in refusal(tmp_path)

    @pytest.mark.parametrize("fraction", [0.0, 0.1])
    def test_every_class_is_on_both_sides(self, fraction: float, tmp_path: Path) -> None:
        fill(tmp_path, 10, ["ants"])
        fill(tmp_path, 2 if fraction else 1, ["bees"])
        split = "val" if fraction else "train"
        assert f"There is no image of bees in the {split} split of folder:{tmp_path}" in refusal(
            tmp_path, val_fraction=fraction
        )
        assert len(load_unseen(f"folder:{tmp_path}")) == (12 if fraction else 11)

    def test_a_class_of_digits_that_is_not_held_out_is_named(self) -> None:
        with pytest.raises(UserError, match=r"There is no image of .* in the val split of digits"):
            check_classes(load_splits(replace(RECIPE, val_fraction=0.003)))
        check_classes(load_splits(replace(RECIPE, val_fraction=0.1)))


LEFT_BEHIND = (
    *(".ipynb_checkpoints/0.png", ".thumb.png", "._00.png", "__MACOSX/ants/._00.png", "@eaDir/00.png/M.png"),
    *("#recycle/0.png", "$RECYCLE.BIN/0.png", "lost+found/0.png", "System Volume Information/0.png", "runs/1/a.png"),
    *("predictions/00.png.png", "Thumbs.db", "desktop.ini", ".DS_Store"),
)


class TestListing:
    @pytest.mark.parametrize("place", ["", "ants", "ants/below"])
    def test_what_is_left_behind_is_no_picture(self, place: str, tmp_path: Path) -> None:
        fill(tmp_path, 5)
        for name in LEFT_BEHIND:
            picture(tmp_path / place / "x.png").rename(_parent(tmp_path / place / name))
        run = RunFolder.create(tmp_path / place / "mine", RECIPE)
        picture(run.path / "evaluation" / "confusion.png")
        picture(tmp_path / place / "seen" / "00.png.png")
        (tmp_path / place / "seen" / "predictions.csv").touch()
        assert splits_of(tmp_path) == {"train": 8, "test": 2}
        [line] = described(load_splits(replace(RECIPE, dataset=f"folder:{tmp_path}")))[2:]
        hidden = len(LEFT_BEHIND) - 2
        assert f"passed over: {hidden} hidden or left there by systems (" in line
        assert "4 of this project's runs and predictions (" in line
        root, files, passed = find_images(str(tmp_path))
        assert [str(file.relative_to(root)) for file in files] == [
            f"{name}/{i:02d}.png" for name in ("ants", "bees") for i in range(5)
        ]
        assert passed == line

    def test_pictures_by_their_suffix(self, tmp_path: Path) -> None:
        Image.init()
        known = {suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS}
        assert set(IMAGE_SUFFIXES) == known - {".pfm"} >= set(IMG_EXTENSIONS)
        fill(tmp_path, 2, ["bees"])
        for suffix in IMAGE_SUFFIXES:
            mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
            _parent(tmp_path / "ants" / "0")
            Image.new(mode, (8, 8)).save(tmp_path / "ants" / f"0{suffix}", form_of(suffix))
        for name in ("1.JPG", "1.Png", "1.TIFF"):  # as cameras and scanners write them
            Image.new("RGB", (8, 8)).save(tmp_path / "ants" / name)
        for name in ("a.heic", "b.heic", "c.txt", "d"):
            (tmp_path / "ants" / name).touch()
        data = load_unseen(f"folder:{tmp_path}")
        assert len(data) == len(IMAGE_SUFFIXES) + 3 + 2
        assert data.source.read(data.ids, HostCrop(8))[0].shape == (len(data), 8, 8, 3)
        assert data.notes == ("passed over: 4 with a suffix of no picture (.heic 2, .txt 1, none 1)",)

    def test_links_are_followed_and_circles_are_not(self, tmp_path: Path) -> None:
        fill(tmp_path / "store", 4, ["ants", "bees"])
        root = tmp_path / "data"
        fill(root, 1, ["ants"])
        (root / "ants" / "more").symlink_to(tmp_path / "store" / "ants")
        (root / "ants" / "again").symlink_to(tmp_path / "store" / "ants")
        (root / "ants" / "up").symlink_to("..")
        (root / "ants" / "itself").symlink_to("itself")
        (root / "ants" / "gone.png").symlink_to("nowhere.png")
        (root / "bees").symlink_to(tmp_path / "store" / "bees")
        (root / "round").symlink_to(root)
        (tmp_path / "store" / "bees" / "back").symlink_to(root)
        (root / "ants" / "one.png").symlink_to(tmp_path / "store" / "bees" / "00.png")
        data = load_unseen(f"folder:{root}")
        assert data.class_names == ("ants", "bees")
        assert np.bincount(data.source.read(data.ids, HostCrop(8))[1]).tolist() == [1 + 4 + 1, 4]
        [line] = data.notes
        for words in ("3 in a circle of links (", "1 linked twice (ants/", "2 linked to nothing (ants/gone.png ...)"):
            assert words in line

    def test_pictures_beside_the_classes_are_counted(self, tmp_path: Path) -> None:
        fill(tmp_path, 5)
        picture(tmp_path / "cover.png")
        assert load_dataset(f"folder:{tmp_path}")[0].notes == ("passed over: 1 beside the class folders (cover.png)",)

    def test_names_of_any_bytes(self, tmp_path: Path) -> None:
        fill(tmp_path, 4)
        os.rename(tmp_path / "ants" / "00.png", os.fsencode(tmp_path / "ants") + b"/\xff\xfe.png")  # noqa: PTH104
        (tmp_path / "ants" / "01.png").rename(tmp_path / "ants" / f"{'x' * 251}.png")
        data = load_unseen(f"folder:{tmp_path}")
        assert data.source.read(data.ids, HostCrop(8))[0].shape[0] == 8
        assert len(data.fingerprint()) == 64
        os.rename(tmp_path / "bees", os.fsencode(tmp_path) + b"/\xff")  # noqa: PTH104
        assert "holds a class whose name is not UTF-8, '\\udcff': rename it" in refusal(tmp_path)


def test_names_that_are_not_utf8_are_drawn_and_written(tmp_path: Path) -> None:
    image = Image.new("RGB", (12, 9))
    seen = Prediction("\udcff.png", image, 1.0, np.zeros((8, 8, 3), np.float32), (("ants", 1.0),))
    draw(tmp_path / "\udcff.png", seen, "a network")
    write_predictions(tmp_path / "predictions.csv", [seen])
    assert "\\udcff.png,1,1,ants" in (tmp_path / "predictions.csv").read_text("utf-8")


def form_of(suffix: str) -> str:
    return Image.registered_extensions()[suffix]


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def chunk(name: bytes, content: bytes, right: bool = True) -> bytes:
    checksum = zlib.crc32(name + content) ^ (not right)
    return len(content).to_bytes(4, "big") + name + content + checksum.to_bytes(4, "big")


class TestOnePicture:
    @pytest.mark.parametrize(
        ("name", "content", "right"),
        [
            (b"zTXt", b"Comment\0\x07nothing", True),
            (b"tEXt", b"Comment\0kept", False),
            (b"iCCP", b"profile\0\x09nothing", True),
            (b"pHYs", b"\0", True),
            (b"eXIf", b"Exif\0\0garbage", True),
            (b"eXIf", b"MM\0*", False),
        ],
    )
    @pytest.mark.parametrize("last", [False, True])
    def test_a_png_is_read_whatever_its_notes_say(
        self, name: bytes, content: bytes, right: bool, last: bool, tmp_path: Path
    ) -> None:
        file = picture(tmp_path / "a.png")
        pixels, stored = np.asarray(Image.open(file)).copy(), file.read_bytes()
        place = stored.index(b"IEND" if last else b"IDAT") - 4
        file.write_bytes(stored[:place] + chunk(name, content, right) + stored[place:])
        np.testing.assert_array_equal(open_image(file), pixels)

    def test_a_transparent_png_stays_so_whatever_its_notes_say(self, tmp_path: Path) -> None:
        """What shines through is white; a colour is declared transparent in a part that may be left out."""
        file, pixels = tmp_path / "a.png", np.full((9, 12, 3), (10, 90, 200), np.uint8)
        pixels[:, 6:] = (200, 20, 30)
        Image.fromarray(pixels).save(file, transparency=(200, 20, 30))
        stored = file.read_bytes()
        place = stored.index(b"IDAT") - 4
        file.write_bytes(stored[:place] + chunk(b"zTXt", b"Comment\0\x07nothing") + stored[place:])
        pixels[:, 6:] = 255
        np.testing.assert_array_equal(open_image(file), pixels)

    def test_damaged_pixels_are_not_read(self, tmp_path: Path) -> None:
        file = tmp_path / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(file)
        stored = file.read_bytes()
        for damaged in (stored[: len(stored) // 2], stored.replace(b"IDAT", b"IDBT"), stored[:8]):
            file.write_bytes(damaged)
            with pytest.raises(UserError, match="Cannot read the image"):
                open_image(file)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
    def test_damaged_exif_and_profiles_change_nothing(self, suffix: str, tmp_path: Path) -> None:
        plain, noted = tmp_path / f"plain.{suffix}", tmp_path / f"noted.{suffix}"
        exif: dict[str, Any] = {} if suffix == "tif" else {"exif": b"Exif\0\0garbage"}
        picture(plain)
        picture(noted, icc_profile=b"no profile", **exif)
        np.testing.assert_array_equal(open_image(noted), open_image(plain))

    @pytest.mark.parametrize("suffix", ["jpg", "png"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_both_ways_turn_photographs_upright(self, suffix: str, orientation: int, tmp_path: Path) -> None:
        """From a folder and from tensorflow-datasets' records, in training and evaluation."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        rng = np.random.default_rng(1)
        for name in ("ants", "bees"):
            for number in range(5):
                stored = io.BytesIO()
                image = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
                image.save(stored, {"jpg": "JPEG", "png": "PNG"}[suffix], exif=exif)
                _parent(tmp_path / name / f"{number}.{suffix}").write_bytes(stored.getvalue())
        folder = load_unseen(f"folder:{tmp_path}")
        records = [
            {"image": Path(file).read_bytes(), "label": int(label)}
            for file, label in zip(folder.files, [0] * 5 + [1] * 5, strict=True)
        ]
        source = tfds._Records(tmp_path, "train", records, None)
        other = replace(folder, source=replace(folder.source, open=source.open, files=()))  # type: ignore[type-var]
        recipe = replace(get_recipe("imagenet"), batch_size=10)
        recipe = replace(recipe, preprocess=replace(recipe.preprocess, host_resize=24, crop=16))
        for train in (True, False):
            (ours,), (theirs,) = (batches(data, recipe, 0, train=train) for data in (folder, other))
            np.testing.assert_array_equal(ours.images, theirs.images)
        size = {True: (24, 40), False: (40, 24)}[orientation > 4]
        for each in (folder.source, source):
            with each.open(0) as (image, _):  # type: ignore[union-attr]
                assert image.size == size

    def test_a_network_of_one_channel_gets_grey(self, tmp_path: Path) -> None:
        fill(tmp_path, 5)
        picture(tmp_path / "ants" / "grey.png").unlink()
        Image.new("L", (12, 9), 77).save(tmp_path / "ants" / "grey.pgm")
        train, _ = load_dataset(f"folder:{tmp_path}")
        for arch, channels in (("lenet", 1), ("alexnet_fashion", 1), ("alexnet_cifar", 3)):
            recipe = replace(RECIPE, arch=arch, batch_size=len(train))
            side = 28 if arch != "alexnet_fashion" else 224
            recipe = replace(recipe, preprocess=replace(recipe.preprocess, resize=side))
            assert recipe.model_arch(None, 2).image == (side, side, channels)
            (batch,) = batches(train, recipe, 0, train=False)
            assert batch.images.shape == (len(train), side, side, channels)
            for image, file in zip(batch.images, train.files, strict=True):
                flat = open_image(Path(file), channels)
                assert (image == np.asarray(flat).reshape(9, 12, channels)[0, 0]).all()


class TestBadOnes:
    def spoil(self, root: Path) -> list[str]:
        fill(root, 10)
        (root / "ants" / "03.png").write_bytes(b"nothing")
        (root / "bees" / "05.png").write_bytes((root / "bees" / "05.png").read_bytes()[:-30])
        Image.new("RGB", (1, 60000)).save(root / "bees" / "07.png")
        return ["ants/03.png", "bees/05.png"]

    @pytest.mark.parametrize("chunk", [1, 4096])
    def test_all_are_found_and_named(self, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(common.data.bad, "_CHUNK", chunk)
        expected = self.spoil(tmp_path)
        recipe = replace(RECIPE, dataset=f"folder:{tmp_path}", preprocess=replace(RECIPE.preprocess, resize=4000))
        splits = load_splits(recipe)
        bad = find_bad(splits, recipe)
        assert sorted(each.path or "" for each in bad) == [*expected, "bees/07.png"]
        assert check_bad(bad, splits, 3) == [each.path for each in bad]
        with pytest.raises(UserError) as error:
            check_bad(bad, splits, 2)
        text = str(error.value)
        assert text.startswith(f"3 of 20 images of folder:{tmp_path} cannot be read: ")
        assert "ants/03.png (it is not an image of a known format)" in text
        assert "bees/07.png (it is so narrow that it would become" in text
        assert text.endswith("mend or remove them, or say --skip-bad 3 to go on without them.")

    def test_what_is_skipped_is_as_if_it_were_not_there(self, tmp_path: Path) -> None:
        expected = self.spoil(tmp_path)
        recipe = replace(RECIPE, dataset=f"folder:{tmp_path}", val_fraction=0.3)

        def prints() -> dict[str, str]:
            return {split: data.fingerprint() for split, data in load_splits(recipe, None, expected).items()}

        before = prints()
        assert sum(map(len, load_splits(recipe, None, expected).values())) == 18
        assert load_split(recipe, "val", None, expected).fingerprint() == before["val"]
        picture(tmp_path / expected[0])
        assert prints() == before
        for name in expected:
            (tmp_path / name).unlink()
        assert prints() == before == {split: data.fingerprint() for split, data in load_splits(recipe).items()}

    def test_records_are_named_and_not_skipped(self) -> None:
        source = tfds._Records(Path("here"), "train", [{"image": b"nothing", "label": 0}], None)
        digits, _ = load_dataset("digits")
        splits: dict[Split, Dataset] = {
            "train": replace(digits, image=None, source=Photographs(source.open), ids=np.arange(1))
        }
        bad = find_bad(splits, RECIPE)
        with pytest.raises(UserError, match=r"1 examples cannot be read: Example 0 of the split 'train' in here"):
            check_bad(bad, splits, 5)


@pytest.mark.parametrize("name", ["runs", "predictions"])
def test_a_class_may_be_called_as_what_commands_leave(name: str, tmp_path: Path) -> None:
    """Where its pictures lie in it; a prediction's picture has two suffixes."""
    for place in (name, "walks"):
        (tmp_path / place).mkdir()
        for number in range(5):
            Image.new("RGB", (9, 9)).save(tmp_path / place / f"{number}.png")
    assert load_dataset(f"folder:{tmp_path}")[0].class_names == tuple(sorted((name, "walks")))
