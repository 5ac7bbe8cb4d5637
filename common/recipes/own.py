"""Recipes and architectures out of a Python file of the user's own, known by their names in this process."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from common.arch import zoo as archs
from common.arch.spec import Arch
from common.errors import UserError, first_line
from common.recipes.spec import Recipe
from common.recipes.zoo import ABOUT, DEFAULT, RECIPES, get_recipe

FILES: dict[str, Path] = {}  # of recipes that came from one, by name


def choose(name: str | None, file: Path | None) -> Recipe:
    """The recipe of a name; without one that of the file if it has just one, else the default.

    Raises:
        UserError: as `load_file`; there is none of this name, or none is named and the file has several.
    """
    own = load_file(file)
    if name is None and len(own) > 1:
        raise UserError(f"{file} has the recipes {', '.join(own)}: name one of them.")
    return get_recipe(name or (own[0] if own else DEFAULT))


def choose_arch(name: str | None, file: Path | None) -> Arch:
    """The architecture of a name; without one that of the file if it has just one, else `alexnet`.

    Raises:
        UserError: as `load_file`; there is none of this name, or none is named and the file has several.
    """
    load_file(file)
    if name is None and len(archs.OWN) > 1:
        raise UserError(f"{file} has the architectures {', '.join(archs.OWN)}: name one of them.")
    return archs.get_arch(name or next(iter(archs.OWN), archs.ALEXNET.name))


def find_option(words: Sequence[str], name: str = "recipe-file") -> Path | None:
    """The path that an option has among the words of a command line, for the recipe's fields are read after it."""
    spelled = f"--{name}", f"--{name.replace('-', '_')}"
    values = [value for word in words for flag, _, value in [word.partition("=")] if flag in spelled and value]
    values += [value for word, value in pairwise(words) if word in spelled]
    return Path(values[-1]) if values else None


def named(words: Sequence[str]) -> frozenset[str]:
    """The options that the words of a command line name, whatever they say of them: `epochs`, `optimizer.lr`."""
    flags = (word.partition("=")[0] for word in words if word.startswith("--"))
    return frozenset(flag.removeprefix("--").replace("_", "-") for flag in flags)


def load_file(file: Path | None) -> list[str]:
    """Run a Python file, and let every `Recipe` and `Arch` that its names hold at the end be found by its own name.

    Those of the project, which it may have imported, are passed over.

    Returns:
        The names of its recipes, in the order of the file.

    Raises:
        UserError: it cannot be read or run, has no recipe or architecture of its own, or one whose name is another's;
            says in which line.
    """
    if file is None:
        return []
    tree, found = _run(file)
    recipes, known = [], len(archs.OWN)
    for variable, value in found.items():
        table: dict[str, Any] = RECIPES if isinstance(value, Recipe) else archs.ARCHS | archs.ABLATIONS | archs.OWN
        if table.get(value.name) == value:
            continue
        where, kind = f"{file}, line {_line(tree, variable)}", type(value).__name__
        if value.name in table:
            raise UserError(f"{where}: another {kind} is named {value.name!r}: give {variable} a name of its own.")
        if not re.fullmatch(r"\w[\w.-]*", value.name):
            raise UserError(f"{where}: the name {value.name!r} will not do: take letters, digits, _, . and -.")
        if isinstance(value, Arch):
            archs.OWN[value.name] = value
        else:
            RECIPES[value.name], ABOUT[value.name], FILES[value.name] = value, f"A recipe of {file}.", file
            recipes.append(value.name)
    if not recipes and len(archs.OWN) == known:
        raise UserError(f"{file} defines no Recipe and no Arch of its own at its top level.")
    return recipes


def _run(file: Path) -> tuple[ast.Module, dict[str, Recipe | Arch]]:
    """The file's syntax tree, and the recipes and architectures that its names hold once it has run."""
    module = ModuleType("recipe_file")
    module.__file__ = str(file)
    try:
        tree = ast.parse(file.read_bytes(), str(file))
        exec(compile(tree, str(file), "exec"), vars(module))
    except OSError as error:
        if error.filename != str(file):
            raise UserError(_told(file, error)) from error
        raise UserError(f"Cannot read the recipe file {file}: {error.strerror}.") from error
    except (Exception, SystemExit) as error:
        raise UserError(_told(file, error)) from error
    return tree, {name: value for name, value in vars(module).items() if isinstance(value, Recipe | Arch)}


def _told(file: Path, error: BaseException) -> str:
    """What went wrong in the file, in one sentence."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return f"{file}, line {error.lineno or 1}: {error.msg}."
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if frame.filename == str(file)]
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{file}, line {lines[-1] if lines else 1}: {kind}{first_line(error)}."


def _line(tree: ast.Module, variable: str) -> int:
    """Where a top-level name is last given its value."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == variable]
    return max((node.lineno for node in names if isinstance(node.ctx, ast.Store)), default=1)
