"""Settings against a table of them: every field, nested ones too, and none that the table does not know."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

KIND = "kind"  # stands for the class of a layer in a sequence, such as "MaxPool"
Table = Mapping[str, Mapping[str, Any]]  # a source in words, and what it gives: values by the field's dotted path


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """What a dataclass holds, field by field: `{"optimizer.lr": 0.01, "convs[0].after[1].kind": "MaxPool", ...}`.

    Fields are found by walking, so one that is added later is among them. A plain mapping, as a table is written, gives
    the same. Sequences of numbers stay whole; sequences of layers are walked, each with its class as `kind`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        parts = [(f"{path}.{name}" if path else name, part) for name, part in value.items()]
        return {name: leaf for place, part in parts for name, leaf in leaves(part, place).items()}
    if isinstance(value, tuple) and any(_walked(part) for part in value):
        found: dict[str, Any] = {}
        for place, part in enumerate(value):
            kind = {} if isinstance(part, Mapping) else {f"{path}[{place}].{KIND}": type(part).__name__}
            found |= kind | leaves(part, f"{path}[{place}]")
        return found
    return {path: value}


def _walked(value: Any) -> bool:
    return isinstance(value, Mapping) or is_dataclass(value)


def defaults(kind: type) -> dict[str, Any]:
    """What each field of a dataclass is when nobody sets it, field by field; `"required"` where somebody must."""
    return leaves({field.name: _default(field) for field in fields(kind)})


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return "required" if field.default is MISSING else field.default


def differences(name: str, found: Mapping[str, Any], table: Table) -> list[str]:
    """A sentence for each field that is not what its source gives, with both named; none if all are.

    Args:
        name: of what is held to the table.
        found: its `leaves` or `defaults`.
        table: the later of two sources that give the same field counts.
    """
    expected = {field: (value, source) for source, values in table.items() for field, value in values.items()}
    problems = []
    for field in {**expected, **found}:
        if field not in expected:
            problems.append(f"{name}: {field} is {found[field]!r}, and no source in the table says what it must be.")
            continue
        value, source = expected[field]
        if field not in found:
            problems.append(f"{name}: {field} is gone; {source}: {value!r}.")
        elif not _same(found[field], value):
            problems.append(f"{name}: {field} is {found[field]!r}; {source}: {value!r}.")
    return problems


def _same(one: Any, other: Any) -> bool:
    """Equal, where True is no 1."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 1.5 + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple):
        return (changed(value[0]), *value[1:]) if value else (1,)
    assert value is None, value
    return 1


def faults(value: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a dataclass with one leaf changed in each, and the field's dotted path."""
    for path in leaves(value):
        if not path.endswith(f".{KIND}"):
            yield path, _spoilt(value, path.replace("[", ".[").split("."))


def unnamed(name: str, value: Any, table: Table) -> list[str]:
    """The fields of a dataclass whose change `differences` does not name, alone and with its source."""
    sources = {path: source for source, values in table.items() for path in values}

    def is_named(path: str, wrong: Any) -> bool:
        problems = differences(name, leaves(wrong), table)
        return [p.startswith(f"{name}: {path} is ") and sources[path] in p for p in problems] == [True]

    return [path for path, wrong in faults(value) if not is_named(path, wrong)]


def _spoilt(value: Any, path: Sequence[str]) -> Any:
    """A copy with one leaf changed, without asking the class whether it may be so; siblings may be one object."""
    if not path:
        return changed(value)
    step, rest = path[0], path[1:]
    if step.startswith("["):
        place = int(step[1:-1])
        return (*value[:place], _spoilt(value[place], rest), *value[place + 1 :])
    copied = copy.copy(value)
    object.__setattr__(copied, step, _spoilt(getattr(value, step), rest))
    return copied
