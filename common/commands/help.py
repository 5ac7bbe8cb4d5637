"""How the help of every command reads: names instead of places in the source, one word for a value, and no None."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from common.arch import zoo as archs
from common.arch.initializers import INITS
from common.data.spec import DATASETS
from common.recipes.zoo import RECIPES

# What an option or a field of this name may be, wherever there is one.
NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "dataset": lambda: DATASETS,
    "arch": lambda: archs.ARCHS | archs.ABLATIONS | archs.OWN,
    "archs": lambda: archs.ARCHS,
    "init": lambda: INITS,
    "recipe": lambda: RECIPES,
}
VALUES = {bool: "", int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH", NoneType: ""}


class Readable(ConstructorRegistry):
    """Within it, `tyro.cli` takes the same words as ever, but says them so that people can read them."""

    def __init__(self) -> None:
        super().__init__()
        self.struct_rule(self._improve)
        self.asking = False  # for tyro's own rule, whose answer is changed

    def _improve(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self.asking or not dataclasses.is_dataclass(info.type):
            return None
        self.asking = True
        try:
            spec = self.get_struct_spec(info)
        finally:
            self.asking = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        texts, given = _attributes(info.type), dataclasses.is_dataclass(info.default)
        missing = dataclasses.MISSING
        needed = {f.name for f in dataclasses.fields(info.type) if f.default is f.default_factory is missing}
        fields = (_improved(f, texts.get(f.name, ""), f.name not in needed, given) for f in spec.fields)
        return dataclasses.replace(spec, fields=tuple(fields))


def _attributes(kind: Any) -> dict[str, str]:
    """What a docstring says of each attribute, and of those that share an entry: `beta1, beta2: ...`."""
    _, _, entries = (getdoc(kind) or "").partition("\nAttributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"(?:^|\n) {4}(?=\S)", entries):
        names, _, text = entry.partition(": ")
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def _improved(field: StructFieldSpec, text: str, optional: bool, given: bool) -> StructFieldSpec:
    """A field with its text, a word for its value, and its default, if that says anything.

    Args:
        field: as tyro has it.
        text: of the docstring.
        optional: whether it may be left out.
        given: whether its default comes from a recipe or a run, so that a flag may be on and must be switched off.
    """
    annotated = get_origin(field.type) is Annotated
    kind, *extras = get_args(field.type) if annotated else (field.type,)
    if dataclasses.is_dataclass(kind):
        return dataclasses.replace(field, helptext=None)  # its own docstring says what it is
    if field.name in NAMES:
        text = f"{text.rstrip('.')}: {', '.join(NAMES[field.name]())}."
    word = "NAME" if field.name in NAMES else _word(kind)
    if tyro.conf.Positional in extras:
        word = field.name.upper() + " ..." * (get_origin(kind) is tuple)
        word = f"[{word}]" if optional else word
    said = "(default:" in text

    def default(label: str) -> str:
        return "" if said or label in ("None", "", "False") else f"(default: {label})"

    about = tyro.conf.arg(metavar=word or None, help=text, help_behavior_hint=default)
    extras += [] if given or kind is not bool else [tyro.conf.FlagCreatePairsOff]
    readable: Any = Annotated[kind, about, *extras]
    return dataclasses.replace(field, type=readable)


def _word(kind: Any) -> str:
    """What stands for a value of a type: `INT`, `all|INT`, `FLOAT ...`; nothing for None and for a flag."""
    if kind in VALUES:
        return VALUES[kind]
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return "|".join(map(str, parts))
    if get_origin(kind) in (Union, UnionType):
        return "|".join(filter(None, map(_word, parts)))
    return f"{_word(parts[0])} ..." if parts else ""
