"""Photographs of any kind as 8 bit pixels: upright, without transparency, in the colours that a network takes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND = (255, 255, 255)  # behind what is transparent
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's others, EPS is a program to be run
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_LARGEST = 32 << 20  # bytes of a file that are read at once, and of memory that a thread keeps for the next JPEG
_kept = threading.local()


@contextmanager
def opened(path: Path, channels: int = 3) -> Iterator[Image.Image]:
    """Open one image file, turned upright by its EXIF orientation; of an animation, the first picture.

    A JPEG that needs no conversion is decoded when its pixels are asked for, so that `Image.draft` may still choose a
    smaller size.

    Transparency is laid over white. Grey of 16 bits keeps its upper 8, also where it is stored as 32 bit integers.
    CMYK and the others are converted by Pillow's plain formulas, colour profiles aside.

    Args:
        path: of the file.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).

    Raises:
        UserError: the file is missing, damaged, too large (Pillow's limit) or no image, or its pixels cannot be used
            as the `with` block does; with its path.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            yield flatten(_upright(image), channels)
    except Exception as error:  # damaged bytes lead Pillow's decoders to exceptions of any kind
        raise UserError(f"Cannot read the image {path}: {_cause(error)}. Mend or remove it.") from error


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


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ExifTags, ImageOps

    if image.format == "JPEG" and image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _upper_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError("its grey values lie outside 16 bits")
    return (pixels >> 8).astype(np.uint8)


def _cause(error: Exception) -> str:
    """What is wrong with an image, in a few words and without its path."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
