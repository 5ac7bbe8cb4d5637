"""Frozen dataclasses to JSON and back, strictly: an unknown or missing field is an error that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import cattrs

from common.errors import UserError

T = TypeVar("T")

_converter = cattrs.Converter(forbid_extra_keys=True)


def _exactly(*kinds: type) -> Callable[[Any, Any], Any]:
    """Take JSON's values of these types as they are; cattrs would make 1 of true, and true of "no"."""

    def structure(value: Any, kind: type) -> Any:
        if type(value) not in kinds:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return kind(value)

    return structure


for _kinds in ((int,), (float, int), (bool,), (str,)):
    _converter.register_structure_hook(_kinds[0], _exactly(*_kinds))


def _is_words(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _word_or_numbers(kind: Any) -> bool:
    """Whether a type is a union of words and numbers: `Literal["equal"] | tuple[float, ...]`, or with `int`."""
    parts = get_args(kind) if get_origin(kind) is Union else ()
    return sorted(map(_is_words, parts)) == [False, True]


def _structure_either(value: Any, kind: Any) -> Any:
    numbers, words = sorted(get_args(kind), key=_is_words)
    return _converter.structure(value, words if isinstance(value, str) else numbers)


_converter.register_structure_hook_func(_word_or_numbers, _structure_either)


def to_dict(value: Any) -> dict[str, Any]:
    """Turn a dataclass into plain dicts and lists that JSON can hold."""
    return _converter.unstructure(value)


def from_dict(fields: Any, kind: type[T], where: str) -> T:
    """Build a `kind` from `to_dict`'s output.

    Args:
        fields: dicts and lists, for example from `json.load`.
        kind: the dataclass to build.
        where: what holds the fields, for the message (a path).

    Raises:
        UserError: a field is unknown, missing or of the wrong type, with its path in the structure.
    """
    if not isinstance(fields, dict):
        raise UserError(f"{where} does not describe a {kind.__name__}: it holds no fields.")
    try:
        return _converter.structure(fields, kind)
    except cattrs.errors.ClassValidationError as error:
        problems = "; ".join(cattrs.transform_error(error, path=kind.__name__))
        raise UserError(f"{where} does not describe a {kind.__name__}: {problems}.") from error


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        UserError: the file is missing, unreadable or not JSON, with its path.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
