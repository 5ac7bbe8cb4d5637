"""Which mutations are made, and which places are left out, as data with reasons. It knows Cosmic Ray and no test.

Cosmic Ray finds the places and makes the change; its operators are chosen here, and a few of our own added to them.
"""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.operators.number_replacer import NumberReplacer
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

# Of eleven replacements that Cosmic Ray has for every arithmetic operator, the ones hardest to tell from it.
REPLACED = {
    "BinaryOperator": (
        "Add_Sub Sub_Add Mul_Div Div_Mul FloorDiv_Div FloorDiv_Mul Mod_FloorDiv Pow_Mul RShift_LShift LShift_RShift "
        "BitOr_BitAnd BitAnd_BitOr BitXor_BitAnd"
    ),
    "ComparisonOperator": (
        "Eq_NotEq NotEq_Eq Lt_LtE Lt_GtE LtE_Lt LtE_Gt Gt_GtE Gt_LtE GtE_Gt GtE_Lt Is_IsNot IsNot_Is"
    ),
    "UnaryOperator": "Delete_USub Delete_Invert Delete_Not",
}
CHOSEN = (
    "AddNot ReplaceTrueWithFalse ReplaceFalseWithTrue ReplaceAndWithOr ReplaceOrWithAnd "
    "ReplaceBreakWithContinue ReplaceContinueWithBreak RemoveDecorator ZeroIterationForLoop"
)

MESSAGES = {"print", "warn", "warning", "info", "debug", "error", "exception", "log", "UserError"}  # what calls print
GUARDS = {"frozen", "slots", "kw_only", "strict"}  # keywords
LOOKS = {  # matplotlib's keywords, in files that import it: elsewhere `alpha` is a response norm's
    *("alpha", "dpi", "figsize", "fontsize", "frameon", "gridspec_kw", "ha", "layout", "linestyle", "linewidth"),
    *("loc", "marker", "markersize", "minor_thresholds", "ncols", "va"),
}
CACHES = {"cache", "lru_cache", "cached_property"}
MARKS = {"overload", "override", "final", "abstractmethod", "runtime_checkable"}
REASONS = {
    "annotation": "an annotation is read by people and mypy",
    "assert": "an assertion that holds computes nothing; its message is for people",
    "cache": "without a cache the same is computed more slowly",
    "guard": "frozen, slots, kw_only and strict stop a programmer's mistake and change no result",
    "import": "an import computes nothing",
    "look": "how a picture looks is seen to; what it shows is tried",
    "main": "below `if __name__` and `if TYPE_CHECKING` nothing runs in a test's process",
    "mark": "a mark for the type checker or an abstract method",
    "message": "what is raised, printed or logged is for people",
    "same": "the change leaves the program as it was, or is no Python",
}


class PlusMinusOne(NumberReplacer):
    """Cosmic Ray's own, without the space it leaves before a number."""

    def mutate(self, node: Any, index: int) -> Any:
        number = super().mutate(node, index)
        number.value, number.prefix = number.value.strip(), node.prefix
        return number


class ScaleFloat(Operator):
    """A tenth more: a constant that is nearly right. Cosmic Ray's own plus and minus one are coarse for 1e-5."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "number" and isinstance(ast.literal_eval(node.value), float) and float(node.value):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        more = float(f"{float(node.value) * 1.1:.12g}")
        return parso.python.tree.Number(repr(more), node.start_pos, node.prefix)

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class DropKeyword(Operator):
    """A keyword argument left out: the callee's default is taken instead."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        yield from [(node.children[place].start_pos, node.children[place].end_pos) for place in self._places(node)]

    def mutate(self, node: Any, index: int) -> Any:
        place = self._places(node)[index]
        comma = place + 1 if place + 1 < len(node.children) and node.children[place + 1].type == "operator" else place
        del node.children[place : comma + 1 if node.type == "arglist" else place + 1]
        return node

    @staticmethod
    def _places(node: Any) -> list[int]:
        if node.type not in ("arglist", "trailer"):
            return []
        return [
            place
            for place, child in enumerate(node.children)
            if child.type == "argument" and getattr(child.children[1], "value", "") == "="
        ]

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class DropCall(Operator):
    """A statement that is nothing but a call, left out."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "atom_expr" and node.parent.type in ("simple_stmt", "expr_stmt") and self._calls(node):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return parso.python.tree.Name("pass", node.start_pos, node.get_first_leaf().prefix)

    @staticmethod
    def _calls(node: Any) -> bool:
        alone = node.parent.type == "simple_stmt" and node.parent.children[0] is node
        return alone and node.children[-1].type == "trailer" and node.children[-1].children[0].value == "("

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class OtherException(Operator):
    """An exception that is caught, replaced by one that nothing raises. Cosmic Ray's own knows no dotted names."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        yield from [(each.start_pos, each.end_pos) for each in self._caught(node)]

    def mutate(self, node: Any, index: int) -> Any:
        old = self._caught(node)[index]
        new = parso.python.tree.Name("NothingRaisesThis", old.start_pos, old.get_first_leaf().prefix)
        new.parent = old.parent
        old.parent.children[old.parent.children.index(old)] = new
        return node

    @staticmethod
    def _caught(node: Any) -> list[Any]:
        if node.type != "except_clause":
            return []
        several = node.children[1]
        if several.type != "atom":
            return [several]
        inner = several.children[1]
        return inner.children[::2] if inner.type == "testlist_comp" else [inner]

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


class PlainAssignment(Operator):
    """`x += y` becomes `x = y`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "operator" and re.fullmatch(r"[^=!<>:]+=", node.value):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.value = "="
        return node

    @classmethod
    def examples(cls) -> Sequence[Any]:
        return ()


OURS: dict[str, type[Operator]] = {
    each.__name__: each for each in (PlusMinusOne, ScaleFloat, DropKeyword, DropCall, OtherException, PlainAssignment)
}


@dataclass(frozen=True)
class Mutation:
    """A change of one place.

    Attributes:
        operator, occurrence: how Cosmic Ray finds it again.
        start, end: line and column.
        old, new: the changed lines, without their indentation.
        left_out: a key of REASONS; "": it is tried.
    """

    operator: str
    occurrence: int
    start: tuple[int, int]
    end: tuple[int, int]
    old: str
    new: str
    left_out: str


@cache
def operators() -> dict[str, Operator]:
    """Every operator that is applied, by name."""
    names = [f"Replace{kind}_{name}" for kind, all_of in REPLACED.items() for name in all_of.split()]
    found = {name: get_operator(f"core/{name}")() for name in (*names, *CHOSEN.split())}
    return found | {name: kind() for name, kind in OURS.items()}


def mutated(source: str, operator: str, occurrence: int) -> str:
    """The source with one change."""
    changed = MutationVisitor.mutate_code(source, operators()[operator], occurrence)
    return source if changed is None else str(changed)


def mutations(source: str) -> list[Mutation]:
    """Every mutation of a file, those that are left out too, by place. No two give the same program."""
    spans, found, seen = _left_out(source), [], {_meaning(source)}
    places = get_ast(source)
    parsed = pickle.dumps(places)  # reading it again is faster than parsing again
    for name, operator in operators().items():
        positions = (each for node in ast_nodes(places) for each in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(positions):
            reason = next((reason for first, last, reason in spans if first <= start and end <= last), "")
            visitor = MutationVisitor(occurrence, operator)
            text = visitor.walk(pickle.loads(parsed)).get_code()
            if not reason:
                meaning = _meaning(text)
                reason = "same" if meaning in seen else ""
                seen.add(meaning)
            found.append(Mutation(name, occurrence, start, end, *_lines(source, text), reason))
    return sorted(found, key=lambda each: (each.start, each.end, each.operator, each.occurrence))


def _meaning(source: str) -> str:
    """The program without its layout; "" for what is none."""
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:
        return ""


def _lines(before: str, after: str) -> tuple[str, str]:
    """What stands between the first and the last changed line, before and after."""
    old, new = before.splitlines(), after.splitlines()
    alike = [
        list(takewhile(lambda two: two[0] == two[1], zip(*both, strict=False)))
        for both in ((old, new), (old[::-1], new[::-1]))
    ]
    first = len(alike[0])
    last = min(len(alike[1]), len(old) - first, len(new) - first)
    return _text(old[first : len(old) - last]), _text(new[first : len(new) - last])


def _text(lines: Sequence[str]) -> str:
    return "\n".join(re.sub(r"([(\[]) +|( ) +", r"\1\2", line.strip()) for line in lines)


def _left_out(source: str) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """Spans whose mutations are left out, each with its reason."""
    spans = [((1, -1), (1, -1), "same")]
    draws = re.search(r"^ *(from|import) matplotlib", source, re.MULTILINE) is not None
    for node in ast.walk(ast.parse(source)):
        parts = [*_parts(node), *(_looks(node) if draws else ())]
        spans += [(*_span(part), reason) for part, reason in parts if part is not None and reason]
    return spans


def _parts(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """The parts of a node that compute nothing."""
    match node:
        case ast.AnnAssign(annotation=annotation) | ast.arg(annotation=annotation):
            yield annotation, "annotation"
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_alias(name, value):
            yield value, "annotation"
        case ast.Call(func=function) if _last(function) == "cast":
            yield node.args[0], "annotation"
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield getattr(node, "returns", None), "annotation"
            for decorator in node.decorator_list:  # to Cosmic Ray, one goes from its sign to the end of its line
                line = ast.Pass(
                    **_place(decorator.lineno, decorator.col_offset - 1, (decorator.end_lineno or 0) + 1, 0)
                )
                yield line, _reason(decorator)
        case ast.keyword(arg=name) if name in GUARDS:
            yield node, "guard"
        case ast.stmt():
            yield node, _reason(node)


def _looks(node: ast.AST) -> Iterator[tuple[Any, str]]:
    """The parts of a node that say how a picture looks."""
    match node:
        case ast.keyword(arg=name) if name in LOOKS:
            yield node, "look"
        case ast.Dict(keys=keys, values=values):
            looks = (value for key, value in zip(keys, values, strict=True) if getattr(key, "value", "") in LOOKS)
            yield from ((value, "look") for value in looks)


def _reason(node: ast.AST) -> str:
    """Why a whole statement or decorator is left out; "": it is not."""
    match node:
        case ast.Import() | ast.ImportFrom():
            return "import"
        case ast.Raise():
            return "message"
        case ast.Assert():
            return "assert"
        case ast.Expr(value=ast.Call(func=function)) if _last(function) in MESSAGES:
            return "message"
        case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return "main"
        case ast.expr():
            last = _last(node.func if isinstance(node, ast.Call) else node)
            return "cache" if last in CACHES else "mark" if last in MARKS else ""
    return ""


def _place(line: int, column: int, end_line: int, end_column: int) -> dict[str, int]:
    return {"lineno": line, "col_offset": column, "end_lineno": end_line, "end_col_offset": end_column}


def _is_alias(name: str, value: ast.expr) -> bool:
    """`Name = int | list[str]`: a type's other name."""
    kinds = ast.Name | ast.Attribute | ast.Subscript | ast.BinOp | ast.BitOr | ast.Tuple | ast.List | ast.Load
    return re.fullmatch(r"_?[A-Z][a-z]\w*", name) is not None and all(
        isinstance(each, kinds) or (isinstance(each, ast.Constant) and not isinstance(each.value, int | float))
        for each in ast.walk(value)
    )


def _last(function: ast.expr) -> str:
    return ast.unparse(function).rsplit(".", 1)[-1]


def _span(node: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
