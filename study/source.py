"""Two source texts next to each other: found with `ast`, aligned by what both have, coloured by Pygments."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from textwrap import dedent

from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from common.arch.zoo import ARCHS
from common.errors import UserError
from common.frameworks import FRAMEWORKS
from parity_tests.results import ROOT

TITLES: dict[str, str] = {name: about.title for name, about in FRAMEWORKS.items()}
MODELS = {"AlexNet": ARCHS["alexnet"], "LeNet": ARCHS["lenet"]}
DEFINITION = {"torch": "__init__", "flax": "setup"}
FORWARD = {"torch": "forward", "flax": "__call__"}

# Functions that a forward pass calls where there is no attribute of the layer's name.
_FUNCTIONS = {"adaptive_avg_pool": "pool", "flatten": "flatten", "reshape": "flatten"}
_WORTH_A_MARK = 3  # lines
_NEEDS = "the side-by-side pages need the same layers in both"

Function = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Line:
    """One line of a pane.

    Attributes:
        number: in the file; 0 for a blank line that keeps the panes level.
        html: coloured.
        group: the layer or function that it belongs to, or "".
        first: whether it is the group's first line in this place, which takes the keyboard focus.
        fold: whether a reader may skip it: an import, or a docstring after its first line.
        mark: whether it stands for the folded lines that follow, and says how many they are.
    """

    number: int
    html: Markup
    group: str = ""
    first: bool = False
    fold: bool = False
    mark: bool = False


@dataclass(frozen=True)
class Pane:
    """One side of a comparison."""

    framework: str
    path: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Pair:
    """Two panes of the same number of lines, PyTorch's first."""

    title: str
    panes: tuple[Pane, Pane]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Excerpt:
    """A few lines of a file that a text points to.

    Attributes:
        framework, module: whose file it is.
        first: its first line's number.
        text: the lines, without the indentation that they share.
    """

    framework: str
    module: str
    first: int
    text: str

    @property
    def lines(self) -> list[Markup]:
        """Each line coloured."""
        return coloured(self.text)[: self.text.count("\n") + 1]

    @property
    def path(self) -> str:
        """Of the file, from the project's root."""
        return f"{self.framework}_impl/{self.module}.py"

    @property
    def identity(self) -> str:
        """Of the first line, on the page that shows the file."""
        return f"{self.framework}-{self.module}-L{self.first}"


Row = tuple[int, int, bool, bool]  # PyTorch's line and Flax's, 0 for none; folded; a mark


@dataclass
class _Part:
    """Lines of a file, first to last, which of them belong to a group, and the lines to level, by key."""

    first: int
    last: int
    group: dict[int, str] = field(default_factory=dict)
    anchors: dict[str, int] = field(default_factory=dict)

    def mark(self, node: ast.stmt, group: str, key: str) -> None:
        """Let a statement belong to a group and be level with the other side's of the same key."""
        start = _start(node)
        for number in range(start, (node.end_lineno or start) + 1):
            self.group[number] = group
        self.anchors.setdefault(key, start)


def layers_of(model: str) -> tuple[str, ...]:
    """The layers that both classes of this name must define and call, in order."""
    arch = MODELS[model]
    dense = [name for name, _ in arch.named_dense()]
    last = [layer for name in dense for layer in (name.replace("fc", "drop"), name)]
    return (*(name for name, _ in arch.named_convs()), "pool", "flatten", *last)


def model_pairs(model: str, root: Path = ROOT) -> tuple[Pair, Pair]:
    """A class of `model.py` in both frameworks: where the layers are called, and where they are defined, level at each.

    Raises:
        UserError: a layer is missing on one side, or a file cannot be parsed.
    """
    files = {name: _file(root, name, "model") for name in TITLES}
    layers = layers_of(model)
    parts = {name: _model_part(tree, name, model, layers) for name, (tree, _) in files.items()}
    for layer in layers:
        for place in ("definition", "call"):
            missing = [name for name, part in parts.items() if layer not in part[place].anchors]
            if place == "definition" and layer in ("pool", "flatten"):
                continue  # free functions in Flax, and flattening in both
            if missing:
                raise UserError(
                    f"{layer} has no {place} in {model} of {missing[0]}_impl/model.py: {_NEEDS} frameworks."
                )
    call, definition = (
        _pair(title, "model", files, {name: part[place] for name, part in parts.items()}, layers)
        for title, place in (
            (f"{model}: what happens to an image", "call"),
            (f"{model}: what it is made of", "definition"),
        )
    )
    return call, definition


def block_pair(root: Path = ROOT) -> Pair:
    """`ConvBlock` in both frameworks, and `_after`, which makes its pools and norms and stands below it.

    Raises:
        UserError: it is missing on one side, or a file cannot be parsed.
    """
    files = {name: _file(root, name, "model") for name in TITLES}
    parts = {}
    for name, (tree, _) in files.items():
        block, after = (_find(tree, part, f"{name}_impl/model.py") for part in ("ConvBlock", "_after"))
        part = parts[name] = _Part(_start(block), after.end_lineno or 0)
        part.anchors["after"] = _start(after)
        for key, method in (("definition", DEFINITION[name]), ("call", FORWARD[name])):
            part.anchors[key] = _start(_find(block, method, f"{name}_impl/model.py"))
    return _pair("ConvBlock: the block that each convolution is", "model", files, parts, ())


def module_pair(module: str, root: Path = ROOT) -> Pair:
    """A whole module in both frameworks, level at each public function or class.

    Raises:
        UserError: a public name is missing on one side or in another place, or a file cannot be parsed.
    """
    files = {name: _file(root, name, module) for name in TITLES}
    names = {name: [node.name for node in _functions(tree)] for name, (tree, _) in files.items()}
    for ours, theirs in (("torch", "flax"), ("flax", "torch")):
        for name in names[ours]:
            if name not in names[theirs]:
                raise UserError(
                    f"{name} of {ours}_impl/{module}.py has no counterpart in {theirs}_impl/{module}.py: "
                    "the side-by-side pages need the same functions in both frameworks."
                )
    if names["torch"] != names["flax"]:
        raise UserError(f"The functions of {module}.py are in another order in torch_impl than in flax_impl.")
    parts = {}
    for name, (tree, text) in files.items():
        part = parts[name] = _Part(1, len(text.removesuffix("\n").split("\n")))
        for node in _functions(tree):
            part.mark(node, node.name, node.name)
    return _pair(f"{module}.py", module, files, parts, names["torch"])


def file_pane(framework: str, module: str, root: Path = ROOT) -> Pane:
    """A whole module of one framework."""
    tree, text = _file(root, framework, module)
    part = _Part(1, len(text.removesuffix("\n").split("\n")))
    rows = _merge(_runs(range(part.first, part.last + 1), _folded(tree, text)), [])
    return _pane(framework, module, text, part, rows, 0)


def excerpt(framework: str, module: str, begins: str, count: int = 1, root: Path = ROOT) -> Excerpt:
    """The lines of a file from the one on that holds a text, which no other line may hold.

    Args:
        framework, module: whose file it is.
        begins: part of the first line.
        count: of lines.
        root: holds torch_impl and flax_impl.

    Raises:
        UserError: no line holds the text, or several do.
    """
    text = _file(root, framework, module)[1]
    lines = text.split("\n")
    found = [number for number, line in enumerate(lines, 1) if begins in line]
    if len(found) != 1:
        raise UserError(
            f"The notes cite {begins!r} of {framework}_impl/{module}.py, where {len(found) or 'no'} lines hold it: "
            "name one line in study/notes."
        )
    return Excerpt(framework, module, found[0], dedent("\n".join(lines[found[0] - 1 : found[0] - 1 + count])))


def _file(root: Path, framework: str, module: str) -> tuple[ast.Module, str]:
    path = root / f"{framework}_impl" / f"{module}.py"
    try:
        text = path.read_text(encoding="utf-8")
        return ast.parse(text), text
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except SyntaxError as error:
        raise UserError(f"Cannot parse {path}, line {error.lineno}: {error.msg}.") from error


def _functions(tree: ast.Module) -> list[Function]:
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return [node for node in nodes if not node.name.startswith("_")]


def _find(tree: ast.Module | ast.ClassDef | ast.FunctionDef, name: str, path: str) -> Function:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    raise UserError(f"There is no {name} in {path}: {_NEEDS} frameworks.")


def _start(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _model_part(tree: ast.Module, framework: str, model: str, layers: Sequence[str]) -> dict[str, _Part]:
    """A class, its head with the definition and its call, with the lines that assign a layer and those that call it."""
    path = f"{framework}_impl/model.py"
    kind = _find(tree, model, path)
    parts = {}
    for place, method in (("definition", DEFINITION[framework]), ("call", FORWARD[framework])):
        node = _find(kind, method, path)
        part = parts[place] = _Part(_start(kind if place == "definition" else node), node.end_lineno or 0)
        part.anchors["method"] = _start(node)
        for statement in node.body:
            layer = _layer(statement, place, layers)
            if layer:
                part.mark(statement, layer, layer)
    return parts


def _layer(statement: ast.stmt, place: str, layers: Sequence[str]) -> str:
    """The layer that a statement defines or calls, or ""."""
    if not isinstance(statement, ast.Assign):
        return ""
    if place == "definition":
        target = statement.targets[0]
        own = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self" and target.attr in layers
        return target.attr if own and isinstance(target, ast.Attribute) else ""
    for node in ast.walk(statement.value):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            layer = _FUNCTIONS.get(name, name)
            if layer in layers and (name in _FUNCTIONS or ast.unparse(node.func) == f"self.{name}"):
                return layer
    return ""


def coloured(text: str) -> list[Markup]:
    """Python source as one piece of HTML for each line; what is not markup of ours is escaped."""
    formatter = HtmlFormatter(nowrap=True)
    html = highlight(text, PythonLexer(stripnl=False), formatter)
    return [Markup(line) for line in html.split("\n")]  # Pygments escapes the source


def _pair(
    title: str,
    module: str,
    files: Mapping[str, tuple[ast.Module, str]],
    parts: Mapping[str, _Part],
    groups: Iterable[str],
) -> Pair:
    """Fill up the shorter side before each line that both sides have, and where lines fold."""
    ours, theirs = parts["torch"], parts["flax"]
    common = sorted((key for key in ours.anchors if key in theirs.anchors), key=lambda key: ours.anchors[key])
    stops: list[tuple[int, int]] = [(ours.first, theirs.first)]
    for key in common:
        place = (ours.anchors[key], theirs.anchors[key])
        if place[0] > stops[-1][0] and place[1] > stops[-1][1]:
            stops.append(place)
    stops.append((ours.last + 1, theirs.last + 1))
    folds = [_folded(*files[name]) for name in TITLES]
    rows: list[Row] = []
    for begin, end in pairwise(stops):
        left, right = (_runs(range(begin[side], end[side]), folds[side]) for side in (0, 1))
        rows += _merge(left, right)
    left_pane, right_pane = (
        _pane(name, module, files[name][1], parts[name], rows, side) for side, name in enumerate(TITLES)
    )
    return Pair(title, (left_pane, right_pane), tuple(groups))


def _folded(tree: ast.Module, text: str) -> set[int]:
    """The lines that a reader may skip: a module's imports, docstrings after their first line, blanks after those."""
    lines = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            lines |= {*range(node.body[0].lineno + 1, (node.body[0].end_lineno or 0) + 1)}
        if isinstance(node, ast.Import | ast.ImportFrom) and not node.col_offset:
            lines |= {*range(node.lineno, (node.end_lineno or 0) + 1)}
    written = text.split("\n")
    for number in range(2, len(written)):
        if not written[number - 1].strip() and number - 1 in lines:
            lines.add(number)
    runs = _runs(range(1, len(written) + 1), lines)
    return {number for fold, run in runs if fold and len(run) >= _WORTH_A_MARK for number in run}


def _runs(numbers: range, folds: set[int]) -> list[tuple[bool, list[int]]]:
    """Lines in runs of those that fold and those that do not."""
    return [(fold, list(run)) for fold, run in groupby(numbers, folds.__contains__)]


def _merge(left: list[tuple[bool, list[int]]], right: list[tuple[bool, list[int]]]) -> list[Row]:
    """Both sides' runs beside each other: folded ones beside folded ones or nothing, headed by a mark."""
    rows: list[Row] = []
    left, right = list(left), list(right)
    while left or right:
        fold = any(side and side[0][0] for side in (left, right))
        ours, theirs = (side.pop(0)[1] if side and side[0][0] == fold else [] for side in (left, right))
        if fold:
            rows.append((len(ours), len(theirs), True, True))
        rows += [(*pair, fold, False) for pair in zip_longest(ours, theirs, fillvalue=0)]
    return rows


def _pane(framework: str, module: str, text: str, part: _Part, rows: Sequence[Row], side: int) -> Pane:
    html = coloured(text)
    lines, before = [], ""
    for *numbers, fold, mark in rows:
        number = numbers[side]
        if mark:
            said = f"⋯ {number} line{'s' * (number != 1)}" if number else ""
            lines.append(Line(0, Markup(said), mark=True))
            continue
        if not number:
            lines.append(Line(0, Markup(), fold=fold))
            continue
        group = part.group.get(number, "")
        lines.append(Line(number, html[number - 1], group, bool(group) and group != before, fold))
        before = group
    return Pane(framework, f"{framework}_impl/{module}.py", tuple(lines))
