"""Reads XLA's text of a compiled program: its kernels, the bytes they move, and what should not be in it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Shape:
    """An array in a program: its dtype, its extents, and its dimensions from the fastest varying one on."""

    dtype: str
    dims: tuple[int, ...]
    layout: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """In memory; a `pred` takes one."""
        bits = re.search(r"\d+", self.dtype)
        return prod(self.dims) * max(int(bits[0]) // 8 if bits else 1, 1)

    @property
    def order(self) -> tuple[int, ...]:
        """Its dimensions in memory, the fastest varying one last, without those of one element."""
        return tuple(dim for dim in reversed(self.layout) if self.dims[dim] != 1)


@dataclass(frozen=True)
class Op:
    """An instruction: what it gives and takes, and the line that says how."""

    name: str
    kind: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    line: str

    def attribute(self, pattern: str) -> str:
        """What the first group of a pattern matches in the line, or nothing."""
        found = re.search(pattern, self.line)
        return found[1] if found else ""

    @property
    def target(self) -> str:
        """Of a custom call: whose kernel it is."""
        return self.attribute(r'custom_call_target="([^"]*)"')

    @property
    def results(self) -> tuple[Shape, ...]:
        """What it gives, without the scratch memory of a library's kernel."""
        scratch = self.kind == "custom-call" and len(self.shapes) > 1 and self.shapes[-1].dtype in ("u8", "s8")
        return self.shapes[:-1] if scratch else self.shapes


Computation = dict[str, Op]
Array = tuple[Shape, str]  # and a letter or digit for each of its dimensions, as XLA labels a convolution's

_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d\w*)\[([\d,]*)\](?:\{([\d,]*))?")
_OP = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shape>\(.*?\)|\S+) (?P<kind>[\w-]+)\((?P<rest>.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
# What starts no kernel: names of memory, and control flow, whose bodies are looked into.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "copy-done", "async-done"}
_BODIES = {"while": r"body=(%[\w.-]+)", "call": r"to_apply=(%[\w.-]+)", "conditional": r"computations?=\{?([^}]*)"}
ROLES = ("input", "kernel", "output")  # of a convolution's arrays
_PRODUCT = re.compile("gemm|matmul")  # cuBLAS's names
_HOST = {"infeed", "outfeed", "send", "recv"}


class Program:
    """A compiled program."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                name = head[2]
                self.entry = name if head[1] else self.entry
                self.computations[name] = {}
            elif found := _OP.match(line):
                operands = re.findall(r"%([\w.-]+)", found["rest"].split("), ")[0])
                op = Op(found["name"], found["kind"], _shapes(found["shape"]), tuple(operands), line.strip())
                self.computations[name][op.name] = op

    def kernels(self, name: str | None = None, times: int = 1) -> Iterator[tuple[Computation, Op, int]]:
        """Each instruction that starts a kernel, the computation it stands in, and how often it does so."""
        where = self.computations[name or self.entry]
        for op in where.values():
            if op.kind in _BODIES:
                turns = int(op.attribute(r'"known_trip_count":\{"n":"(\d+)"') or 1)
                for body in re.findall(r"%([\w.-]+)", op.attribute(_BODIES[op.kind])):
                    yield from self.kernels(body, times * turns)
            elif op.kind not in _FREE:
                yield where, op, times

    def kinds(self) -> dict[str, int]:
        """How many kernels there are of each kind: convolutions, products, copies, and what XLA fused."""
        counts: Counter[str] = Counter()
        for _, op, times in self.kernels():
            counts[_kind(op)] += times
        return dict(sorted(counts.items()))

    def bytes(self) -> int:
        """What the kernels read and write, if each reads all that it is given once and writes all that it gives."""
        return sum(times * touched(where, op) for where, op, times in self.kernels())

    def flops(self) -> int:
        """Of convolutions and products alone; a multiply-add counts as two."""
        total = 0
        for where, op, times in self.kernels():
            inside = self.computations.get(op.attribute(r"calls=%([\w.-]+)"), {})
            total += times * (_flops(where, op) + sum(_flops(inside, part) for part in inside.values()))
        return total

    def all(self) -> Iterator[tuple[Computation, Op]]:
        """Every instruction with the computation it stands in, those inside kernels as well."""
        return ((where, op) for where in self.computations.values() for op in where.values())

    def dtypes(self) -> dict[str, str]:
        """Each dtype that occurs, with the first instruction that gives it."""
        found: dict[str, str] = {}
        for _, op in self.all():
            for shape in op.shapes:
                found.setdefault(shape.dtype, op.name)
        return dict(sorted(found.items()))

    def host_calls(self) -> list[str]:
        """Instructions that wait for the host."""
        return [op.name for _, op in self.all() if op.kind in _HOST or re.search("callback|host", op.target, re.I)]

    def convolutions(self) -> dict[str, dict[str, Array]]:
        """By name, each with its input, kernel and output."""
        return {op.name: _arrays(where, op) for where, op in self.all() if "dim_labels=" in op.line}

    def not_channels_last(self) -> list[str]:
        """Convolutions of an array whose fastest varying dimension is one of the image's."""
        return [name for name, arrays in self.convolutions().items() if not all(map(_is_last, arrays.values()))]

    def reordered(self, batch: int) -> list[str]:
        """Instructions that write a batch of images, or of features, with their dimensions in another order.

        But for JAX's resize: it is two products, and a product gives its dimensions in an order of its own.
        """
        found = []
        for where, op in self.all():
            dims = op.shapes[0].dims
            if op.kind not in ("transpose", "copy") or len(dims) != 4 or batch not in dims:
                continue
            given = where[op.operands[0]]
            source = _numbers(op.attribute(r"dimensions=\{([\d,]*)\}")) or tuple(range(4))
            same = tuple(source[dim] for dim in op.shapes[0].order) == given.shapes[0].order
            if not same and "(_resize)" not in op.line + given.line:
                found.append(op.name)
        return found


def touched(where: Computation, op: Op) -> int:
    """The bytes of what an instruction takes and gives."""
    taken = [shape for name in dict.fromkeys(op.operands) for shape in where[name].shapes]
    return sum(shape.bytes for shape in (*taken, *op.results))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",")) if text else ()


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(Shape(dtype, _numbers(dims), _numbers(layout)) for dtype, dims, layout in _SHAPE.findall(text))


def _kind(op: Op) -> str:
    if "dim_labels=" in op.line:
        return "convolutions"
    if _PRODUCT.search(op.target) or op.name.startswith("gemm"):
        return "products"
    return {"copy": "copies", "fusion": "fusions"}.get(op.kind, op.target or op.kind)


def _arrays(where: Computation, op: Op) -> dict[str, Array]:
    """A convolution's arrays, in cuDNN's names for its gradients as well."""
    order = ROLES
    labels = dict(zip(ROLES, re.split("_|->", op.attribute(r"dim_labels=([\w>-]+)")), strict=True))
    first, second = (where[name].shapes[0] for name in op.operands[:2])
    if "BackwardInput" in op.target:
        order = ("output", "kernel", "input")
    elif "BackwardFilter" in op.target:
        order = ("input", "output", "kernel")
    shapes = zip(order, (first, second, op.shapes[0]), strict=True)
    return {role: (shape, labels[role]) for role, shape in shapes}


def _is_last(array: Array) -> bool:
    """One channel alone lies in memory the same way in every order."""
    shape, labels = array
    channels = labels.index("i" if "o" in labels else "f")
    return shape.dims[channels] == 1 or not labels[shape.order[-1]].isdigit()


def _flops(where: Computation, op: Op) -> int:
    """Of a convolution, whose padding counts as if it were pixels, or of a product."""
    if "dim_labels=" in op.line:
        arrays = _arrays(where, op)
        kernel, labels = arrays["kernel"]
        return 2 * prod(arrays["output"][0].dims) * prod(kernel.dims) // kernel.dims[labels.index("o")]
    if op.kind == "dot" or _PRODUCT.search(op.target):
        contracted = op.attribute(r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)')
        dims = where[op.operands[0]].shapes[0].dims
        return 2 * prod(op.shapes[0].dims) * prod(dims[int(dim)] for dim in re.findall(r"\d+", contracted))
    return 0
