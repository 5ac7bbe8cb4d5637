"""JPEGs decoded past Pillow: its pixels, its faults, and no pixel of the image before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

from common.data import photos
from common.data.crops import HostCrop, central_square, random_boxes, random_resized_crop
from common.data.photos import cut, opened
from common.errors import UserError

BOX = (11, 7, 58, 64)


def china(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(load_sample_images().images[0]).crop((40, 40, 133, 121)).convert(mode)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether simplejpeg decoded, for each call of `cut` that asked it."""
    found, decode = [], photos._decode_jpeg

    def watched(image: Image.Image) -> np.ndarray | None:
        pixels = decode(image)
        found.append(pixels is not None)
        return pixels

    monkeypatch.setattr(photos, "_decode_jpeg", watched)
    return found


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [40, 95])
def test_a_jpeg_has_pillows_pixels(
    mode: str, subsampling: str, progressive: bool, quality: int, tmp_path: Path, decoded: list[bool]
) -> None:
    file = tmp_path / "image.jpeg"
    china(mode).save(file, subsampling=subsampling, progressive=progressive, quality=quality)
    for box in (BOX, (0, 0, *china().size)):
        with opened(file, 3 if mode == "RGB" else 1) as image:
            found = np.asarray(cut(image, box))
        np.testing.assert_array_equal(found, np.asarray(Image.open(file).crop(box)))
    assert decoded == [True, True]


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_next_image_leaves_the_last_as_it_is(mode: str, tmp_path: Path) -> None:
    """Both are decoded into the same memory."""
    whole = (0, 0, *china().size)
    china(mode).save(tmp_path / "one.jpeg")
    Image.new(mode, china().size).save(tmp_path / "other.jpeg")
    with Image.open(tmp_path / "one.jpeg") as lazy:
        one = cut(lazy, whole)
    with Image.open(tmp_path / "other.jpeg") as lazy:
        other = cut(lazy, whole)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(Image.open(tmp_path / "one.jpeg")))
    assert not np.asarray(other).any()


@pytest.mark.parametrize("case", ["png", "cmyk", "decoded", "grey as colours", "drafted", "on its side"])
def test_what_is_left_to_pillow(case: str, tmp_path: Path, decoded: list[bool]) -> None:
    file = tmp_path / ("image.png" if case == "png" else "image.jpeg")
    exif = Image.Exif()
    exif[0x0112] = 6 if case == "on its side" else 1
    china({"cmyk": "CMYK", "grey as colours": "L"}.get(case, "RGB")).save(file, exif=exif)
    with opened(file) as image, opened(file) as same:
        for each in (image, same) if case == "drafted" else ():
            assert each.draft(None, (40, 40))
        if case == "decoded":
            image.load()
        np.testing.assert_array_equal(np.asarray(cut(image, (2, 3, 30, 31))), np.asarray(same.crop((2, 3, 30, 31))))
    assert decoded == ([False] if case == "drafted" else [])


def test_what_simplejpeg_refuses_is_pillows_to_mend(tmp_path: Path, decoded: list[bool]) -> None:
    """Bytes between two segments, as some cameras leave them, are a fault to one and none to the other."""
    file = tmp_path / "image.jpeg"
    china().save(file)
    whole = file.read_bytes()
    scan = whole.index(b"\xff\xda")
    file.write_bytes(whole[:scan] + bytes(3) + whole[scan:])
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(file.read_bytes())
    with opened(file) as image:
        np.testing.assert_array_equal(np.asarray(cut(image, BOX)), np.asarray(Image.open(file).crop(BOX)))
    assert decoded == [False]


def test_a_header_of_another_size_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow has checked the size that it read; simplejpeg gets memory for no more."""
    file = tmp_path / "image.jpeg"
    china().save(file)
    monkeypatch.delattr(photos, "_memory")
    with opened(file) as image:
        monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda data: (60_000, 60_000, "YCbCr", "420"))
        np.testing.assert_array_equal(np.asarray(cut(image, BOX)), np.asarray(Image.open(file).crop(BOX)))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_damage(tmp_path: Path, decoded: list[bool]) -> None:
    """Bytes changed, lost or repeated: an image or a sentence, and simplejpeg is no laxer than Pillow."""
    rng, file, outcomes = np.random.default_rng(0), tmp_path / "image.jpeg", set()
    china().save(file)
    whole = file.read_bytes()
    for turn in range(300):
        damaged, place = bytearray(whole), int(rng.integers(2, len(whole)))
        if turn % 3 == 0:
            damaged[place] = int(rng.integers(256))
        elif turn % 3 == 1:
            del damaged[place : place + int(rng.integers(1, 400))]
        else:
            damaged[place:place] = damaged[max(0, place - 50) : place]
        file.write_bytes(damaged)
        decoded.clear()
        try:
            with opened(file) as image:
                cut(image, BOX)
            outcomes.add("image, " + ("simplejpeg's" if True in decoded else "Pillow's"))
        except UserError:
            outcomes.add("sentence")
        if True in decoded:
            with opened(file) as image:
                image.load()
    assert outcomes == {"image, simplejpeg's", "image, Pillow's", "sentence"}


def test_a_file_with_much_behind_its_image_is_not_read_whole(tmp_path: Path, decoded: list[bool]) -> None:
    file = tmp_path / "image.jpeg"
    china().save(file)
    with file.open("r+b") as stream:
        stream.truncate(1 << 40)  # zeros that take no place
    with opened(file) as image:
        np.testing.assert_array_equal(np.asarray(cut(image, BOX)), np.asarray(Image.open(file).crop(BOX)))
    assert len(decoded) == 1


def test_memory_of_a_large_image_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "_LARGEST", 1000)
    monkeypatch.setattr(photos._kept, "memory", bytearray(10), raising=False)
    assert len(photos._memory(2000)) == 2000
    assert len(photos._memory(500)) == 500
    assert photos._memory(400) is photos._memory(300)


def test_a_picture_may_be_as_narrow_as_pillow_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 x 40 pixels become 8 x 32, whose product counts."""
    image = Image.new("RGB", (10, 40))
    for limit in (None, 256, 255):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if limit == 255:
            with pytest.raises(ValueError, match="so narrow that it would become 8x32 pixels"):
                central_square(image, 8)
        else:
            assert central_square(image, 8).shape == (8, 8, 3)


# A box's area and ratio as uniforms, the side of the result, and by how much the JPEG is reduced while it is decoded.
DRAFTS = [
    ((1.0, 0.5), 20, 4),
    ((1.0, 0.5), 50, 2),
    ((1.0, 0.5), 90, 1),
    ((0.3, 0.9), 20, 4),
    ((0.3, 0.1), 15, 4),
    ((1.0, 0.95), 12, 8),
    ((0.05, 0.5), 20, 2),
    ((0.05, 0.5), 40, 1),
    ((0.89, 0.956), 20, 4),  # its width alone would let it be an eighth
]


@pytest.mark.parametrize(("numbers", "side", "scale"), DRAFTS)
def test_a_jpeg_is_decoded_at_the_size_that_its_box_needs(
    numbers: tuple[float, float], side: int, scale: int, tmp_path: Path
) -> None:
    """At an eighth, a quarter, a half: the smallest in which the box has twice the pixels that it is resized to."""
    uniforms = np.full(22, 0.4)
    uniforms[0], uniforms[10] = numbers
    china().resize((403, 321)).save(tmp_path / "image.jpeg", quality=95)
    top, left, height, width = random_boxes(321, 403, uniforms[None])[0]
    roomy = [each for each in (8, 4, 2, 1) if min(width, height) / each >= 2 * side]
    assert scale == next(iter(roomy), 1)
    with Image.open(tmp_path / "image.jpeg") as image:
        found = random_resized_crop(image, side, uniforms)
        assert image.size == (-(-403 // scale), -(-321 // scale))
    with Image.open(tmp_path / "image.jpeg") as image:
        image.draft(None, (403 // scale, 321 // scale))
        box = np.array([left, top, left + width, top + height]) / scale
        (x, y), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        part = image.crop((x, y, right, bottom))
        x0, y0, x1, y1 = box - [x, y, x, y]
        expected = part.resize((side, side), Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))
    np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("numbers", [None, np.full((1, 22), 0.5)])
def test_a_network_of_one_channel_gets_grey(numbers: np.ndarray | None) -> None:
    """Made of the photograph before it is resized; grey stays as it is, and others keep their colours."""
    image, grey = china(), china().convert("L")
    found = HostCrop(16, numbers, channels=1)(image, 0)
    assert found.shape == (16, 16, 1)
    np.testing.assert_array_equal(found, HostCrop(16, numbers, channels=1)(grey, 0))
    np.testing.assert_array_equal(found[..., 0], HostCrop(16, numbers)(grey, 0)[..., 0])
    assert HostCrop(16, numbers)(image, 0).shape == (16, 16, 3)
