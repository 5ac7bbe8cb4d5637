"""The network drawn to scale, from its architecture alone: an inline SVG whose every layer links to its panel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from typing import Any

from markupsafe import Markup, escape

from common.arch.spec import Arch, ConvSpec, LocalResponseNorm, MaxPool
from study.anatomy import settings, sides

HEIGHT, TOP, BOTTOM = 280.0, 62.0, 40.0  # of the picture, and its margins for what is written above and below
ROOM = HEIGHT - TOP - BOTTOM
SIDE = 120.0  # of the image; a feature map's is to scale with it
DEPTH = 0.4  # of a map's side: how far its far edge lies right of and above the near one
WIDTH = 380.0  # of all maps' channels together
BAR = 12.0  # of a dense layer
LEAST = 3.0  # so that an image of one channel is seen
LETTER = 5.9  # how wide one of those written above and below is, about
GAP = 14.0  # between layers


@dataclass(frozen=True)
class Box:
    """A feature map: left edge, centre and size in the drawing's units; `depth` is 0 for a row of numbers."""

    x: float
    y: float
    width: float
    height: float
    depth: float = 0.0

    @property
    def right(self) -> float:
        """Where the box ends, with its depth."""
        return self.x + self.width + self.depth

    def draw(self, kind: str) -> str:
        """Front, top and right side."""
        x, y, w, h, d = self.x, self.y - self.height / 2 + self.depth / 2, self.width, self.height, self.depth
        front = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}"/>'
        if not d:
            return front
        top = f"M{x:.1f} {y:.1f}l{d:.1f} {-d:.1f}h{w:.1f}l{-d:.1f} {d:.1f}z"
        side = f"M{x + w:.1f} {y:.1f}l{d:.1f} {-d:.1f}v{h:.1f}l{-d:.1f} {d:.1f}z"
        return f'{front}<path class="{kind} top" d="{top}"/><path class="{kind} side" d="{side}"/>'

    def window(self, share: float) -> str:
        """A square on the right side that measures this share of it: where a kernel looks."""
        h, d = self.height * share, self.depth * share
        x, y = self.x + self.width + self.depth / 2, self.y
        left, top = x - d / 2, y - h / 2 + d / 2
        return f'<path class="window" d="M{left:.1f} {top:.1f}l{d:.1f} {-d:.1f}v{h:.1f}l{-d:.1f} {d:.1f}z"/>'


@dataclass
class Stage:
    """One layer of the drawing.

    Attributes:
        name: of the layer; "input" is none.
        head, foot: what is written above and below, a line each.
        boxes: what it makes, in the order that it makes them, each of one or more groups.
        window: the share of the last map's side that this layer's kernel covers.
        left, right: the column that it takes.
    """

    name: str
    head: list[str]
    foot: list[str]
    boxes: list[list[Box]] = field(default_factory=list)
    window: float = 0.0
    left: float = 0.0
    right: float = 0.0

    def place(self, left: float) -> float:
        """Move the boxes to the middle of a column that begins here and has room for the words; where it ends."""
        letters = max(len(line) * (1 + 0.35 * (line == self.name)) for line in (*self.head, *self.foot))
        drawn = sum(boxes[0].right - boxes[0].x + GAP for boxes in self.boxes) - GAP
        self.left, self.right = left, left + GAP + max(drawn, letters * LETTER)
        x = (self.left + self.right - drawn) / 2
        for i, boxes in enumerate(self.boxes):
            self.boxes[i] = [replace(box, x=x) for box in boxes]
            x = self.boxes[i][0].right + GAP
        return self.right


def draw(arch: Arch) -> Markup:
    """The whole network as an <svg>. Sides, channels and rows of numbers each keep one scale throughout."""
    stages, end = _lay_out(arch)
    parts = [_boxes(stages[0]) + _words(stages[0])]
    for before, stage in pairwise(stages):
        about = "; ".join(f"{key} {value}" for key, value in settings(arch, stage.name))
        looks = "".join(box.window(stage.window) for box in before.boxes[-1]) if stage.window else ""
        parts.append(
            f'<a class="stage" id="diagram-{stage.name}" href="#layer-{stage.name}" data-group="{stage.name}">'
            f"<title>{escape(stage.name)}: {escape(about)}</title>{_hit(stage)}"
            f"{_links(before.boxes[-1], stage.boxes[0])}{looks}{_boxes(stage)}{_words(stage)}</a>"
        )
    label = f"{arch.name} to scale: {', '.join(stage.name for stage in stages)}"
    size = f'viewBox="0 0 {end:.0f} {HEIGHT:.0f}" style="--width: {end:.0f}px"'
    return Markup(f'<svg class="diagram" {size} role="group" aria-label="{escape(label)}">{"".join(parts)}</svg>')


def _lay_out(arch: Arch) -> tuple[list[Stage], float]:
    """Every stage with its place, left to right, and where the drawing ends."""
    scale = SIDE / max(arch.image[:2])
    maps = [arch.image, *(row.output for row in arch.layers() if row.kind in ("conv", "max_pool", "avg_pool"))]
    wide = WIDTH / sum(size[2] for size in maps)
    height, width, channels = arch.feature_size
    numbers = ROOM / max(height * width * channels, *(spec.features for _, spec in arch.named_dense()))
    into, rows = sides(arch), {row.name: row for row in arch.layers()}
    stages = [Stage("input", ["image"], [_size(arch.image)], [_maps(arch.image, scale, wide)])]
    for name, spec in arch.named_convs():
        stage = Stage(name, [name, *_kernel(spec)], [_size(rows[name].output)], window=spec.kernel / into[name][0])
        stage.boxes.append(_maps(rows[name].output, scale, wide, spec.groups))
        pool = rows.get(name.replace("conv", "pool"))
        if pool:
            stage.boxes.append(_maps(pool.output, scale, wide, spec.groups))
            stage.foot.append(f"then {_size(pool.output)}")
        stages.append(stage)
    if arch.adaptive_pool:
        size = rows["pool"].output
        head = ["pool", f"to {arch.adaptive_pool} × {arch.adaptive_pool}"]
        stages.append(Stage("pool", head, [_size(size)], [_maps(size, scale, wide)]))
    for name, features, head in _rows(arch, height * width * channels):
        row = Box(0, TOP + ROOM / 2, BAR, max(features * numbers, LEAST))
        stages.append(Stage(name, head, [f"{features:,}"], [[row]]))
    x = 0.0
    for stage in stages:
        x = stage.place(x)
    return stages, x


def _maps(size: tuple[int, int, int], scale: float, wide: float, groups: int = 1) -> list[Box]:
    """Feature maps, one box above the other for each group."""
    height, depth = size[0] * scale, size[1] * scale * DEPTH
    width = max(size[2] * wide / groups, LEAST)
    pitch = max(height + depth + GAP, ROOM / 2.5)
    places = [TOP + ROOM / 2 + (i - (groups - 1) / 2) * pitch for i in range(groups)]
    return [Box(0, y, width, height, depth) for y in places]


def _rows(arch: Arch, flat: int) -> Iterator[tuple[str, int, list[str]]]:
    """What has no places: name, how many numbers, and what is written above; dropout where it does something."""
    yield "flatten", flat, ["flatten"]
    inputs = flat
    for name, spec in arch.named_dense():
        if spec.dropout:
            yield name.replace("fc", "drop"), inputs, [name.replace("fc", "drop"), f"rate {spec.dropout:g}"]
        yield name, spec.features, [name]
        inputs = spec.features


def _kernel(spec: ConvSpec) -> list[str]:
    """What is written above a convolution."""
    first = f"{spec.kernel} × {spec.kernel}" + (f", stride {spec.stride}" if spec.stride > 1 else "")
    then = ["batch norm"] if spec.norm else []
    for step in spec.after:
        pool = "max pool" if isinstance(step, MaxPool) else "mean pool"
        then.append("response norm" if isinstance(step, LocalResponseNorm) else f"{pool} {step.size} × {step.size}")
    return [first + (f", {spec.groups} groups" if spec.groups > 1 else ""), *then]


def _size(size: tuple[int, int, int]) -> str:
    return " × ".join(map(str, size))


def _boxes(stage: Stage) -> str:
    shape = "row" if stage.boxes[0][0].depth == 0 else "map"
    if stage.name.startswith("drop"):
        shape = "row dropped"
    drawn = [box.draw(shape if i == 0 else "map pooled") for i, boxes in enumerate(stage.boxes) for box in boxes]
    return "".join([*(_links(*both) for both in pairwise(stage.boxes)), *drawn])


def _links(ours: list[Box], theirs: list[Box]) -> str:
    """Lines from boxes to the next ones: each group to its own, or to all where the numbers of groups differ."""
    pairs = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else product(ours, theirs)
    return "".join(
        f'<path class="link" d="M{a.x + a.width + a.depth / 2:.1f} {a.y:.1f}L{b.x:.1f} {b.y + b.depth / 2:.1f}"/>'
        for a, b in pairs
    )


def _words(stage: Stage) -> str:
    middle = (stage.left + stage.right) / 2
    head = [line for line in stage.head if line]
    lines = [(15.0 + 13 * i, line, "quiet" if i else "name") for i, line in enumerate(head)]
    lines += [(HEIGHT - 22 + 14 * i, line, "quiet") for i, line in enumerate(stage.foot)]
    return "".join(
        f'<text class="{look}" x="{middle:.1f}" y="{y:.1f}">{escape(line)}</text>' for y, line, look in lines
    )


def _hit(stage: Stage) -> str:
    """What can be pointed at: the whole column of a stage."""
    return (
        f'<rect class="hit" x="{stage.left:.1f}" y="0" width="{stage.right - stage.left:.1f}" height="{HEIGHT:.0f}"/>'
    )


def bars(arch: Arch) -> list[dict[str, Any]]:
    """What each layer has of the parameters and of the multiply-adds, for bars of 100 %."""
    found: list[dict[str, Any]] = []
    for key, whole in (("parameters", arch.parameters), ("multiply_adds", arch.multiply_adds)):
        parts: dict[str, int] = {}
        for row in arch.layers():
            name = row.name.replace("norm", "conv")
            parts[name] = parts.get(name, 0) + getattr(row, key)
        found.append({"key": key, "parts": [(name, part / whole) for name, part in parts.items() if part]})
    return found
