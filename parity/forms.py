"""The forms that a step between two layers may take, in numpy: tried one after the other on what was seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Form = Callable[[Array], Array]

_CHANNELS = 8  # of the first example are enough to tell two forms apart
_RECENT = 8  # tensors before the one in question from which it may have been made
_PADDED = 24  # positions up to which attention without some of them is tried
_SEQUENCE = 64  # positions up to which attention is computed anew


def explain(wanted: Array, other: Array, sources: Mapping[str, Array]) -> tuple[str, str, str]:
    """How one tensor, and the other, follow from a tensor before them.

    Args:
        wanted, other: what two models made at one place, images as N, C, H, W.
        sources: what both had before, the newest last.

    Returns:
        The name of the source, and what each made of it in words; "" where no form fits.
    """
    if wanted.shape == other.shape and wanted.ndim and len(wanted):  # the example that they differ in the most
        apart = np.abs(wanted - other).reshape(len(wanted), -1).max(1, initial=0)
        place, count = int(np.nan_to_num(apart).argmax()), len(wanted)
        sources = {name: a[place : place + 1] for name, a in sources.items() if a.ndim and len(a) == count}
        wanted, other = wanted[place : place + 1], other[place : place + 1]
    if (one_joined := _joined(wanted, sources)) and (other_joined := _joined(other, sources)):
        told = [f"a join of {' and '.join(parts)}" for parts in (one_joined, other_joined)]
        return "what came before", told[0], told[1]
    best = ("", "", "")
    for source, forms in _candidates(wanted, sources):
        one = other_form = ""
        for words, made in forms:
            one = one or (words if _same(made, wanted) else "")
            other_form = other_form or (words if _same(made, other) else "")
            if one and other_form:
                return source, one, other_form
        if (one or other_form) and not best[0]:
            best = (source, one, other_form)
    return best


def _joined(wanted: Array, sources: Mapping[str, Array]) -> list[str]:
    """The parts that were joined along the channels, in words; none where some are not found."""
    axis = 1 if wanted.ndim == 4 else wanted.ndim - 1
    whole = np.moveaxis(wanted, axis, 0)
    parts: list[str] = []
    place = 0
    while place < len(whole):
        for name, values in reversed([*sources.items()]):
            part = np.moveaxis(values, axis, 0) if values.ndim == wanted.ndim else values[:0]
            rest = whole[place : place + len(part)]
            if not 0 < len(part) < len(whole) or part.shape != rest.shape or name.endswith(" (input)"):
                continue
            form = next((words for words, form in ELEMENTWISE.items() if _near(form(part), rest)), None)
            if form is not None:
                parts.append(name if form == "nothing" else f"{form} of {name}")
                place += len(part)
                break
        else:
            return []
    return parts


def follows(wanted: Array, other: Array, sources: Mapping[str, Array], others: Mapping[str, Array]) -> bool:
    """Whether both follow by one form from what each side had: `sources`, and `others` of the same names."""
    theirs = _candidates(other, others)
    for (source, forms), (name, its) in zip(_candidates(wanted, sources), theirs, strict=True):
        assert source == name
        for (_, made), (_, too) in zip(forms, its, strict=True):
            if _same(made, wanted):
                if _same(too, other):
                    return True
                break
    return False


def _candidates(wanted: Array, sources: Mapping[str, Array]) -> Iterator[tuple[str, Iterator[tuple[str, Array]]]]:
    """(source, (words, result)...) for what has the number of examples of `wanted`."""
    recent = [(name, a) for name, a in reversed([*sources.items()]) if a.ndim and len(a) == len(wanted)][:_RECENT]
    for name, values in recent:
        yield name, _of_one(values, wanted)
    for (name, values), (other, more) in combinations(recent, 2):
        if values.shape == more.shape:
            yield f"{name} + {other}", _of_one(values + more, wanted)
    projections = [(name, a) for name, a in recent if a.shape == wanted.shape and not name.endswith(" (input)")]
    if wanted.ndim == 3 and wanted.shape[1] <= _SEQUENCE and len(projections) > 2:
        for three in combinations(projections[:4], 3):
            yield ", ".join(name for name, _ in reversed(three)), _attention([a for _, a in three])


def _of_one(values: Array, wanted: Array) -> Iterator[tuple[str, Array]]:
    """What elementwise functions, pools and resizing make of a tensor, the likeliest first."""
    if values.ndim == wanted.ndim == 4 and values.shape[1] != wanted.shape[1]:
        return
    values = _crop(values).astype(np.float64)
    size = wanted.shape[2:] if wanted.ndim == 4 else ()
    for words, form in ELEMENTWISE.items():
        made = form(values)
        yield words, made
        if values.ndim == 4:
            yield f"{words}, then the mean over each map".removeprefix("nothing, then "), made.mean((2, 3))
        if values.ndim == 3:
            for chosen, result in _positions(made):
                yield f"{words}, then {chosen}".removeprefix("nothing, then "), result
        if words in _BEFORE_POOLS and values.ndim == 4:
            for pooled, result in (*_pools(made, wanted), *_resized(made, size)):
                yield f"{words}, then {pooled}".removeprefix("nothing, then "), result
    if values.ndim == 4:
        yield from _max_pools(values, wanted, 0.0)


def _positions(values: Array) -> Iterator[tuple[str, Array]]:
    """What is made of a sequence, as one vector."""
    yield "the mean over positions", values.mean(1)
    yield "the first position", values[:, 0]
    yield "the last position", values[:, -1]
    yield "the largest over positions", values.max(1)
    for count in range(2, values.shape[1]):
        yield f"the mean over the first {count} of {values.shape[1]} positions", values[:, :count].mean(1)
        yield f"the position {count} of {values.shape[1]}", values[:, count - 1]


def _crop(values: Array) -> Array:
    return values[:1, :_CHANNELS] if values.ndim == 4 else values[:1]


def _same(made: Array, wanted: Array) -> bool:
    """Equal but for rounding, also where one is flattened."""
    wanted = _crop(wanted)
    if wanted.ndim == 2 and made.ndim > 1:
        wanted, made = wanted[:, : made[0].size], made.reshape(len(made), -1)
    if made.shape != wanted.shape or not made.size:
        return False
    return _near(made, wanted)


def _near(made: Array, wanted: Array) -> bool:
    exact = 1e-5 if wanted.dtype.itemsize < 8 else 1e-7
    return bool(np.abs(made - wanted).max() <= exact * max(np.abs(wanted).max(), 1e-30))


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(x / 2))


ELEMENTWISE: dict[str, Form] = {
    "nothing": lambda x: x,
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "GELU by the error function": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "GELU by tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "GELU as x sigmoid(1.702 x)": lambda x: x * _sigmoid(1.702 * x),
    "SiLU": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "leaky ReLU with slope 0.01": lambda x: np.where(x > 0, x, 0.01 * x),
    "leaky ReLU with slope 0.2": lambda x: np.where(x > 0, x, 0.2 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.logaddexp(x, 0),
    "hard swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}
_BEFORE_POOLS = ("nothing", "ReLU", "ReLU6", "SiLU", "GELU by the error function", "GELU by tanh")


def _pools(values: Array, wanted: Array) -> Iterator[tuple[str, Array]]:
    """Max and average pools, square, that give maps of the wanted size, or as many features."""
    yield from _max_pools(values, wanted, -np.inf)
    for words, kernel, stride, pads in _windows(values, wanted):
        average = _pooled(values, kernel, stride, pads, 0).mean((-1, -2))
        yield f"average pool {words}", average
        if any(pads):
            share = _pooled(np.ones_like(values), kernel, stride, pads, 0).mean((-1, -2))
            yield f"average pool {words} that leaves padding out", average / share


def _max_pools(values: Array, wanted: Array, fill: float) -> Iterator[tuple[str, Array]]:
    for words, kernel, stride, pads in _windows(values, wanted):
        if any(pads) or fill:
            with_zeros = "" if fill else " with zeros"
            yield f"max pool {words}{with_zeros}", _pooled(values, kernel, stride, pads, fill).max((-1, -2))


def _windows(values: Array, wanted: Array) -> Iterator[tuple[str, int, int, tuple[int, int]]]:
    """(in words, kernel, stride, padding) of what gives maps of the wanted size; equal padding first."""
    height, width = values.shape[2:]
    for kernel, stride in product((2, 3, 4, 5, 7), (1, 2, 3, 4)):
        pads = [(low, high) for low, high in product(range(kernel // 2 + 1), range(kernel)) if high <= low + 1]
        for low, high in sorted(pads, key=lambda pad: (pad[0] != pad[1], pad)):
            rows, columns = ((n + low + high - kernel) // stride + 1 for n in (height, width))
            if min(rows, columns) < 1 or kernel > min(height, width) + low + high:
                continue
            fits = wanted.ndim == 4 and wanted.shape[2:] == (rows, columns)
            if fits or (wanted.ndim == 2 and wanted.shape[1] % (rows * columns) == 0):
                padded = f", padded by {low} before and {high} after" if low or high else ""
                yield f"{kernel}x{kernel} with stride {stride}{padded}", kernel, stride, (low, high)


def _pooled(values: Array, kernel: int, stride: int, pads: tuple[int, int], fill: float) -> Array:
    padded = np.pad(values, ((0, 0), (0, 0), pads, pads), constant_values=fill)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), (2, 3))
    return windows[:, :, ::stride, ::stride]


def _resized(values: Array, size: Sequence[int]) -> Iterator[tuple[str, Array]]:
    """Images of another size, as people make them."""
    if not size or tuple(size) == values.shape[2:]:
        return
    for words, weights in RESIZES.items():
        rows, columns = (weights(old, new) for old, new in zip(values.shape[2:], size, strict=True))
        yield words, np.einsum("ncij,ki,lj->nckl", values, rows, columns)


def _nearest(old: int, new: int) -> Array:
    return np.eye(old)[np.floor(np.arange(new) * old / new).astype(int)]


def _nearest_centre(old: int, new: int) -> Array:
    return np.eye(old)[np.clip(np.floor((np.arange(new) + 0.5) * old / new), 0, old - 1).astype(int)]


def _kernel_resize(old: int, new: int, kernel: Form, support: float, antialias: bool, clamp: bool) -> Array:
    """(new, old) weights with half-pixel centres."""
    stretch = max(old / new, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    found = np.zeros((new, old))
    for row, centre in enumerate(centres):
        for place in range(math.floor(centre - support * stretch), math.ceil(centre + support * stretch) + 1):
            weight = float(kernel(np.asarray((place - centre) / stretch)))
            if clamp or 0 <= place < old:
                found[row, min(max(place, 0), old - 1)] += weight
    return found / found.sum(1, keepdims=True)


def _triangle(x: Array) -> Array:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(a: float) -> Form:
    def kernel(x: Array) -> Array:
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    return kernel


def _corners(old: int, new: int) -> Array:
    places = np.arange(new) * (old - 1) / max(new - 1, 1)
    return _triangle(places[:, None] - np.arange(old)[None])


RESIZES: dict[str, Callable[[int, int], Array]] = {
    "nearest resize": _nearest,
    "nearest resize by centres": _nearest_centre,
    "bilinear resize": lambda old, new: _kernel_resize(old, new, _triangle, 1, False, True),
    "bilinear resize that aligns corners": _corners,
    "bilinear resize with antialias": lambda old, new: _kernel_resize(old, new, _triangle, 1, True, False),
    "bicubic resize (a = -0.75)": lambda old, new: _kernel_resize(old, new, _cubic(-0.75), 2, False, True),
    "bicubic resize (a = -0.5)": lambda old, new: _kernel_resize(old, new, _cubic(-0.5), 2, False, False),
    "bicubic resize with antialias": lambda old, new: _kernel_resize(old, new, _cubic(-0.5), 2, True, False),
}


def _attention(three: Sequence[Array]) -> Iterator[tuple[str, Array]]:
    """Of query, key and value in any order, for every number of heads."""
    width = three[0].shape[-1]
    heads = [n for n in range(1, 17) if width % n == 0]
    for (query, key, value), n in product(permutations([a[:1].astype(np.float64) for a in three]), heads):
        q, k, v = (a.reshape(1, a.shape[1], n, width // n).transpose(0, 2, 1, 3) for a in (query, key, value))
        products = q @ k.transpose(0, 1, 3, 2)
        scales = {"1 / sqrt(head size)": (width // n) ** -0.5, "1": 1.0, "1 / sqrt(width)": width**-0.5}
        for by, scale in scales.items():
            weights = np.exp(scale * (products - products.max(-1, keepdims=True)))
            for masked, seen in _masks(*products.shape[-2:]):
                shares = weights * seen
                shares /= np.maximum(shares.sum(-1, keepdims=True), 1e-300)
                made = (shares @ v).transpose(0, 2, 1, 3).reshape(1, -1, width)
                yield f"attention in {n} heads, its products scaled by {by}{masked}", made


def _masks(queries: int, keys: int) -> Iterator[tuple[str, Array]]:
    """(in words, what each query sees): all, what is not later, and this without padding."""
    rows, columns = np.arange(queries)[:, None], np.arange(keys)[None]
    orders = {"": columns >= 0, ", causal": columns <= rows, ", causal the wrong way round": columns >= rows}
    for order, seen in orders.items():
        yield order, np.broadcast_to(seen, (queries, keys))
    for count in range(1, keys) if keys <= _PADDED else ():
        for order, seen in orders.items():
            yield f"{order}, of the first {count} of {keys} keys alone", seen & (columns < count)
            yield f"{order}, of the keys after the first {count} alone", seen & (columns >= count)


def mask_words(seen: Array) -> tuple[str, Array]:
    """What a mask (N, queries, keys), True where something is seen, hides in words; and which keys it leaves."""
    queries, keys = seen.shape[1:]
    rows, columns = np.arange(queries)[:, None], np.arange(keys)[None]
    orders = {
        "": np.ones((queries, keys), bool),
        "what comes later": columns <= rows,
        "what came before": columns >= rows,
        "what comes later and the place itself": columns < rows,
    }
    for order, shown in orders.items():
        keep = np.stack([(one | ~shown).all(0) for one in seen])  # keys that are hidden for no other reason
        found = [(keep, shown & keep[:, None], "")]
        if queries == keys:
            own = np.diagonal(seen, axis1=1, axis2=2)
            found.append((own, shown & own[:, None] & own[:, :, None], ", and from queries there everything"))
        for kept, mask, more in found:
            if np.array_equal(mask, seen):
                padding = "" if kept.all() else f"{1 - kept.mean():.0%} of the keys, as of padding{more}"
                parts = " and ".join(part for part in (order, padding) if part)
                return f"hides {parts or 'nothing'}", kept
    return f"hides {1 - seen.mean():.0%} of the pairs of query and key", np.asarray(seen.any(1))
