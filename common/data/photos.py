"""Photographs of any kind as 8 bit pixels: upright, without transparency, in the colours that a network takes."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND = (255, 255, 255)  # behind what is transparent
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's others, EPS is a program to be run
_PNG = b"\x89PNG\r\n\x1a\n"  # what such a file begins with
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_LARGEST = 32 << 20  # bytes of a file that are read at once, and of memory that a thread keeps for the next JPEG
_kept = threading.local()


@contextmanager
def opened(path: Path, channels: int = 3, advice: str = "Mend or remove it.") -> Iterator[Image.Image]:
    """Open one image file, turned upright by its EXIF orientation; of an animation, the first picture.

    Pixels that can be decoded are, whatever is wrong with the metadata beside them.

    A JPEG that needs no conversion is decoded when its pixels are asked for, so that `Image.draft` may still choose a
    smaller size.

    Transparency is laid over white. Grey of 16 bits keeps its upper 8, also where it is stored as 32 bit integers.
    CMYK and the others are converted by Pillow's plain formulas, colour profiles aside.

    Args:
        path: of the file.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).
        advice: what to do about a file that cannot be used.

    Raises:
        UserError: the file is missing, damaged, too large (Pillow's limit) or no image, or its pixels cannot be used
            as the `with` block does; with its path.
    """
    try:
        with decoded(path) as image:
            yield flatten(upright(image), channels)
    except Exception as error:  # damaged bytes lead Pillow's decoders to exceptions of any kind
        raise UserError(f"Cannot read the image {path}: {cause(error)}. {advice}") from error


def open_image(path: Path, channels: int = 3) -> Image.Image:
    """Decode one image file; see `opened`."""
    with opened(path, channels) as image:
        image.load()
    return image


def cut(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The part of an image within (left, top, right, bottom), as `Image.crop` gives it.

    Of a JPEG that is not decoded yet, simplejpeg gives the same pixels as Pillow, for both leave them to libjpeg-turbo,
    but in four fifths of the time. What it refuses is left to Pillow, which mends some and says what ails the others.
    """
    from PIL import Image

    undecoded = image.format == "JPEG" and image.mode in ("RGB", "L") and bool(getattr(image, "tile", None))
    pixels = _decode_jpeg(image) if undecoded else None
    if pixels is None:
        return image.crop(box)
    left, top, right, bottom = box
    return Image.fromarray(pixels[top:bottom, left:right].copy())  # the memory is the next image's, too


def _decode_jpeg(image: Any) -> np.ndarray | None:
    """The pixels of a JPEG, until this thread decodes another; None if it was drafted smaller or has faults."""
    import simplejpeg

    stored = min(image.fp.seek(0, os.SEEK_END), _LARGEST)
    image.fp.seek(0)
    data, (width, height), channels = image.fp.read(stored), image.size, len(image.getbands())
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (height, width):
            return None
        memory = _memory(width * height * channels)
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", buffer=memory)
    except ValueError:
        return None
    return pixels if channels == 3 else pixels[..., 0]


def _memory(size: int) -> bytearray:
    """At least `size` bytes; the kernel would clear fresh pages for each image."""
    kept: bytearray = getattr(_kept, "memory", bytearray())
    if len(kept) < size:
        kept = bytearray(size)
        if size <= _LARGEST:
            _kept.memory = kept
    return kept


def flatten(image: Image.Image, channels: int = 3) -> Image.Image:
    """An image of any Pillow mode as RGB or grey of 8 bits; see `opened`.

    Raises:
        ValueError: its numbers have no range that says what is black and what is white.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers; save it with 8 or 16 bits")
    if image.mode in _DEEP:
        image = Image.fromarray(_upper_bits(np.asarray(image).astype(np.int64)))
    if image.has_transparency_data:
        # Premultiplied modes know no direct way to RGB.
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    if image.mode in ("LAB", "HSV", "CMYK", "P", "PA"):
        image = image.convert("RGB")  # which the way to grey leads through
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def decoded(source: Path | BytesIO) -> Image.Image:
    """An image with its pixels, or a JPEG that has read its header; a PNG whose notes are damaged is read without them.

    Raises:
        Exception: of any kind, where it is none.
    """
    from PIL import Image

    try:
        return _loaded(Image.open(source, formats=FORMATS))
    except Exception:
        stored = source.getvalue() if isinstance(source, BytesIO) else b""
        if isinstance(source, Path):
            with suppress(OSError), source.open("rb") as file:
                stored = file.read(_LARGEST)
        if not stored.startswith(_PNG):
            raise
        return _loaded(Image.open(BytesIO(b"".join(_pixel_chunks(stored))), formats=FORMATS))


def _loaded(image: Image.Image) -> Image.Image:
    try:
        if image.format != "JPEG":
            image.load()
    except BaseException:
        image.close()
        raise
    return image


def _pixel_chunks(stored: bytes) -> Iterator[bytes]:
    """Of a PNG file what its pixels need: critical chunks (their names have a capital), transparency, whole EXIF."""
    yield _PNG
    start = len(_PNG)
    while start < len(stored):
        end = start + 12 + int.from_bytes(stored[start : start + 4], "big")  # length, name, content, checksum
        name = stored[start + 4 : start + 8]
        whole = zlib.crc32(stored[start + 4 : end - 4]).to_bytes(4, "big") == stored[end - 4 : end]
        if name[:1].isupper() or name == b"tRNS" or (name == b"eXIf" and whole):
            yield stored[start:end]
        start = end


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF orientation says, if that can be read."""
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF, of any kind; the pixels are none the worse
        return image
    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def _upper_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError("its grey values lie outside 16 bits")
    return (pixels >> 8).astype(np.uint8)


def cause(error: Exception) -> str:
    """What is wrong with an image, in a few words and without its path."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
