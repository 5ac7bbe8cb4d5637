"""What the pictures of several reports share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.runs.files import atomic


def shorten(text: str, length: int) -> str:
    """A text of at most so many characters; those that no encoding has, as of files' names, by their numbers."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"


def save_figure(figure: Any, path: Path, dpi: int) -> None:
    """Write a picture; letters that the font does not have become boxes, without a warning for each."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        with atomic(path) as part:
            figure.savefig(part, dpi=dpi, format="png")
