"""Which module, parameter and call of one model is which of another; and what has to be turned to carry values over."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from parity import model as shared
from parity.compare import Trace
from parity.model import Array, Batch, Layout, Model, Module, Watched

_RUNS = 100  # of the right model, to try a pairing
_OVER_SPACE = ("conv", "conv_transpose", "batch_norm", "group_norm")  # in one dimension, too
_OVER_FEATURES = ("dense", "layer_norm", "rms_norm", "embedding", "attention")  # whose last axis stays the last
_NEAR = 8  # pairs before a difference whose order may be its reason
_AGREE = {8: 1e-6, 4: 1e-3}  # by the bytes of a number: outputs that are nearer than this are of the same module
_COARSE = 0.1


class Unmatched(ValueError):
    """Two models have parts without a partner."""


@dataclass(frozen=True)
class Pair:
    """Two modules, or two tensors, that are each other's.

    Attributes:
        left, right: paths of the modules.
        tensors: (left's, right's) names of their parameters and statistics.
        kind: of the left one.
        flatten: (C, H, W) of the feature map that was flattened before this dense layer, in another order on each side.
        how: it was found.
        tried: what came of it when both models were evaluated with the same weights: "agrees", "input differs" (what
            they were given), "differs" (what they made of the same input), or "" for one that is not called by itself.
    """

    left: str
    right: str
    tensors: tuple[tuple[str, str], ...]
    kind: str = ""
    flatten: tuple[int, int, int] | None = None
    how: str = ""
    tried: str = ""


@dataclass
class Match:
    """The pairing of two models: `str` of it is a table.

    Attributes:
        left, right: the sides.
        pairs: in the left's order of calls.
        models: both, as they stood.
        notes: on what is odd.
        parted: the left's calls, or inputs of calls, at which the models part in evaluation.
    """

    left: Watched
    right: Watched
    pairs: list[Pair]
    models: tuple[Model, Model]
    notes: list[str] = field(default_factory=list)
    parted: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ours, theirs = self.models
        rows = [(ours.name, theirs.name, "kind", "shape", "paired by", "tried")]
        for pair in self.pairs:
            shape = "x".join(map(str, self._torch(0, pair.tensors[0][0]).shape)) if pair.tensors else ""
            if pair.flatten:
                shape += " of {}x{}x{} flattened".format(*pair.flatten)
            rows.append((pair.left or "(model)", pair.right or "(model)", pair.kind, shape, pair.how, pair.tried))
        widths = [max(len(row[place]) for row in rows) for place in range(6)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        names = ", ".join(self.parted[:4]) + f" and {len(self.parted) - 4} more" * (len(self.parted) > 4)
        parted = [f"With the same weights the models part in evaluation at {names}."] if names else []
        return "\n".join([*lines, *self.notes, *parted])

    def save(self, path: str | Path) -> None:
        """Keep the pairing as a JSON file, to be edited and given to `match` again."""
        fields = ("left", "right", "tensors", "flatten", "how")
        rows = [{name: getattr(pair, name) for name in fields} for pair in self.pairs]
        lines = ",\n".join("  " + json.dumps(row) for row in rows)
        Path(path).write_text(f"[\n{lines}\n]\n", encoding="utf-8")

    def carry(self, to: str = "right") -> None:
        """Overwrite the weights and statistics of one side with the other's; nothing but axes is changed.

        Raises:
            ValueError: `to` is neither "right" nor "left"; or the other side holds another dtype.
        """
        if to not in ("left", "right"):
            raise ValueError(f"Weights are carried to 'left' or to 'right', not to {to!r}.")
        side = self.right if to == "right" else self.left
        side.load(self.carried(side.model().tensors, self._giver(to).model().tensors, to))

    def _giver(self, to: str) -> Watched:
        return self.left if to == "right" else self.right

    def carried(self, own: Mapping[str, Array], given: Mapping[str, Array], to: str) -> dict[str, Array]:
        """The tensors of one side in the layout of the other, whose `own` have the shapes."""
        source, target = (0, 1) if to == "right" else (1, 0)
        found = dict(own)
        for pair in self.pairs:
            for names in pair.tensors:
                if names[source] in given:
                    values = self._to_torch(source, names[source], given[names[source]])
                    values = self._flattened(pair, values, target, names)
                    found[names[target]] = self._to_own(target, names[target], values, own[names[target]].shape)
        return found

    def adopted(self, trace: Trace, own: Trace, phase: str, tensors: Iterable[str]) -> dict[str, Array]:
        """Some of the left's tensors, named and laid out as the right has them.

        Args:
            trace: the left's, in its own layout.
            own: the right's, in its own layout.
            phase: `activation`, `gradient`, `optimizer`, `parameter` or `statistic`.
            tensors: the left's names.
        """
        found = {}
        if phase == "activation":
            partners = {name: (other, pair) for name, other, pair in self.calls()}
            for name in tensors:
                other, pair = partners[name]
                shape = own[phase][other].shape
                aligned = self._aligned(trace[phase][name], shape, 0, 1, pair, name)
                if aligned.shape == shape:  # otherwise there is no place for it
                    found[other] = aligned
            return found
        for name in tensors:
            slot, slash, plain = name.rpartition("/")
            pair, partner = self._partner(plain)
            shape = own[phase][slot + slash + partner].shape
            values = self._flattened(pair, self._to_torch(0, plain, trace[phase][name]), 1, (plain, partner))
            found[slot + slash + partner] = self._to_own(1, partner, values, shape)
        return found

    def translated(self, left: Trace, right: Trace) -> tuple[Trace, Trace]:
        """Both traces under the left's names and in the layout of PyTorch, without what has no partner."""
        ours: dict[str, dict[str, Array]] = {}
        theirs: dict[str, dict[str, Array]] = {}
        for phase in left:
            ours[phase], theirs[phase] = {}, {}
            if phase in ("batch", "input", "loss"):
                ours[phase], theirs[phase] = dict(left[phase]), dict(right.get(phase, {}))
            if phase == "input":
                for part, side in ((ours[phase], self.models[0]), (theirs[phase], self.models[1])):
                    part.update({name: shared.relay(a, side.layout, "channels first") for name, a in part.items()})
            elif phase == "activation":
                partners = {name: (other, pair) for name, other, pair in self.calls()}
                for name, values in left[phase].items():
                    other, pair = partners.get(name, ("", None))
                    if other in right.get(phase, {}):
                        aligned = self._aligned(right[phase][other], values.shape, 1, 0, pair, name)
                        layout = self.models[0].layout
                        ours[phase][name] = shared.relay(values, layout, "channels first")
                        theirs[phase][name] = shared.relay(aligned, layout, "channels first")
            elif phase not in ("batch", "loss"):
                self._translate(left[phase], right.get(phase, {}), ours[phase], theirs[phase], phase == "gradient")
        return ours, theirs

    def _translate(self, left: Any, right: Any, ours: Any, theirs: Any, backward: bool) -> None:
        """Parameters, or what belongs to them."""
        slots = dict.fromkeys(name.rpartition("/")[0] for tensors in (left, right) for name in tensors)
        for slot in slots:
            prefix = slot + "/" * bool(slot)
            for pair in reversed(self.pairs) if backward else self.pairs:
                for names in pair.tensors:
                    key = prefix + names[0]
                    if key in left:
                        ours[key] = self._to_torch(0, names[0], left[key])
                    if prefix + names[1] in right:
                        values = self._to_torch(1, names[1], right[prefix + names[1]])
                        values = self._flattened(pair, values, 0, names)
                        theirs[key] = values.reshape(self._torch(0, names[0]).shape)

    def calls(self) -> Iterable[tuple[str, str, Pair | None]]:
        """(left's, right's, the pair) of each call and of its input that both have, and of the model's output."""
        ours, theirs = ({*model.calls} for model in self.models)
        paths = [[*model.modules] for model in self.models]
        for pair in self.pairs:
            count = 1
            if not pair.kind and any(
                _holds(path, known) for path, known in zip((pair.left, pair.right), paths, strict=True)
            ):
                continue  # only tensors of theirs are each other's
            while shared.call_name(pair.left, count) in ours and shared.call_name(pair.right, count) in theirs:
                left, right = shared.call_name(pair.left, count), shared.call_name(pair.right, count)
                yield shared.input_of(left), shared.input_of(right), pair
                yield left, right, pair
                count += 1
        yield shared.OUTPUT, shared.OUTPUT, None

    def _partner(self, name: str) -> tuple[Pair, str]:
        return next((pair, right) for pair in self.pairs for left, right in pair.tensors if left == name)

    def _owner(self, side: int, name: str) -> tuple[Module, str]:
        owners = self.__dict__.setdefault(f"_owners{side}", {})
        if not owners:
            owners.update({tensor: (module, role) for module, role, tensor in self.models[side].owners()})
        return owners[name]

    def _to_torch(self, side: int, name: str, values: Array) -> Array:
        return values if self.models[side].torch else shared.to_torch(values, *self._owner(side, name))

    def _to_own(self, side: int, name: str, values: Array, shape: tuple[int, ...]) -> Array:
        if self.models[side].torch:
            return values.reshape(shape)
        module, role = self._owner(side, name)
        if module.kind == "conv" and values.ndim == 2:  # a dense layer's, for a convolution of one pixel
            values = values.reshape(*values.shape, *[1] * (len(shape) - 2))
        elif module.kind == "dense" and role == "weight":
            values = values.reshape(len(values), -1)
        return shared.from_torch(values, module, role, shape)

    def in_torch(self, side: int, name: str, values: Array) -> Array:
        """A tensor of the left (0) or the right (1) as PyTorch lays it out."""
        return self._to_torch(side, name, values)

    def _torch(self, side: int, name: str) -> Array:
        return self._to_torch(side, name, self.models[side].tensors[name])

    def _flattened(self, pair: Pair, values: Array, to: int, names: tuple[str, str]) -> Array:
        """A dense weight (O, features) with its features in the order of side `to`."""
        if not pair.flatten or self._owner(0, names[0])[1] != "weight":
            return values
        return _turn(values.reshape(len(values), -1), pair.flatten, self.models[to].layout)

    def _aligned(
        self, values: Array, shape: tuple[int, ...], source: int, target: int, pair: Pair | None, name: str
    ) -> Array:
        """An activation of one side as the other has it, where it has this shape."""
        given, wanted = self.models[source].layout, self.models[target].layout
        if pair and pair.flatten and name.endswith(" (input)") and values.ndim == 2:
            return _turn(values, pair.flatten, wanted)
        if pair and pair.kind in _OVER_FEATURES:
            heads = values.ndim != len(shape) and values.size == np.prod(
                shape
            )  # (N, L, D), or (N, L, heads, D / heads)
            if values.shape == shape or (heads and values.shape[0] == shape[0]):
                return values.reshape(shape)
        moved = shared.relay(values, given, wanted)
        if values.ndim == 3 and given != wanted and pair and pair.kind in _OVER_SPACE:
            moved = shared.space_last(values) if wanted == "channels last" else shared.space_first(values)
        if moved.shape == shape or values.shape == shape:
            return moved if moved.shape == shape else values
        if values.ndim == 3 and given != wanted:
            turned = shared.space_last(values) if wanted == "channels last" else shared.space_first(values)
            if turned.shape == shape:
                return turned
        return moved.reshape(shape) if moved.size == np.prod(shape) and len(moved) == shape[0] else moved


def match(
    left: Watched, right: Watched, batch: Batch | Any, pairs: str | Path | None = None, *, values: bool = True
) -> Match:
    """Pair the modules, parameters and calls of two models, and carry the left's weights to the right.

    Modules are paired by kind and the shapes of their tensors, in the order of their first call; then both models are
    evaluated with the same weights, and pairings whose outputs differ are tried in other orders.

    Args:
        left, right: sides; the left's weights stay.
        batch: inputs, or (inputs, targets), in the left's layout.
        pairs: a file that `Match.save` wrote, perhaps edited.
        values: try it. Otherwise by order and shapes alone.

    Raises:
        Unmatched: a module has no partner; the names of all are in it.
    """
    given = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    probe: Batch = (given[0], None)
    seen = left.forward(probe)
    theirs = shared.map_inputs(lambda array: shared.relay(array, left.layout, right.layout), given[0])
    right.describe(theirs)
    models = left.model(), right.model()
    found = Match(left, right, [], models)
    if pairs is not None:
        found.pairs = _read(pairs, models)
    else:
        found.pairs = _propose(models)
        found.pairs = _find_flattened(found, seen)
    if getattr(right, "recorded", False):
        if pairs is None:
            _by_weights(found)
        found.carry()
        values = False  # it cannot be evaluated again
    else:
        found.carry()
    if values:
        _try(found, seen, (theirs, None), pairs is None)
    found.notes += _notes(found)
    return found


def _holds(path: str, known: Sequence[str]) -> bool:
    """Whether a module holds others."""
    return not path or any(other.startswith(path + ".") for other in known)


def path_count(calls: Sequence[str], path: str) -> int:
    """How often a module is called in a pass."""
    return sum(shared.path_of(call) == path for call in calls)


def _notes(found: Match) -> list[str]:
    notes = []
    ours, theirs = found.models
    for pair in found.pairs:
        left, right = path_count(ours.calls, pair.left), path_count(theirs.calls, pair.right)
        if left != right and left and right and pair.kind:
            notes.append(f"{pair.left} is called {left} times in {ours.name}, {pair.right} {right} in {theirs.name}.")
    return notes


def _propose(models: tuple[Model, Model]) -> list[Pair]:
    """By kind and shapes, in the order of calls; then single tensors by role and shape, then by shape alone."""
    left, right = ([m for m in model.modules.values() if m.tensors or m.kind == "attention"] for model in models)
    pairs: list[Pair] = []
    order = {module.path: place for place, module in enumerate(left)}
    for ours, theirs in _zipped(left, right, models, _signature):
        left.remove(ours)
        right.remove(theirs)
        tensors = tuple((ours.tensors[role], theirs.tensors[role]) for role in ours.tensors)
        pairs.append(Pair(ours.path, theirs.path, tensors, ours.kind, how="kind, shapes, order"))
    singles = [[(module, role) for module in modules for role in module.tensors] for modules in (left, right)]
    for by, signature_of in (("role, shape", _role_signature), ("shape alone", _shape_signature)):
        for ours, theirs in _zipped(singles[0], singles[1], models, signature_of):
            singles[0].remove(ours)
            singles[1].remove(theirs)
            (one, role), (other, its) = ours, theirs
            tensors = ((one.tensors[role], other.tensors[its]),)
            pairs.append(Pair(one.path, other.path, tensors, one.kind, how=by))
    if singles[0] or singles[1]:
        raise Unmatched(_unpaired(singles, models))
    pairs = _joined(pairs)
    return sorted(pairs, key=lambda pair: order[pair.left])


def _joined(pairs: list[Pair]) -> list[Pair]:
    """Pairs of single tensors of the same two modules as one."""
    found: dict[tuple[str, str], Pair] = {}
    for pair in pairs:
        key = (pair.left, pair.right)
        found[key] = replace(found[key], tensors=found[key].tensors + pair.tensors) if key in found else pair
    return list(found.values())


def _zipped(left: Any, right: Any, models: tuple[Model, Model], signature: Any) -> list[tuple[Any, Any]]:
    """The first of each signature with the first, the second with the second, where both have as many."""
    groups: tuple[dict[Any, list[Any]], dict[Any, list[Any]]] = ({}, {})
    for group, members, model in zip(groups, (left, right), models, strict=True):
        for member in members:
            group.setdefault(signature(member, model), []).append(member)
    return [
        (ours, theirs)
        for key, members in groups[0].items()
        if len(members) == len(groups[1].get(key, []))
        for ours, theirs in zip(members, groups[1][key], strict=True)
    ]


def _signature(module: Module, model: Model) -> Any:
    """Kind, and shapes by role; a convolution of one pixel is a dense layer."""
    shapes = {role: _torch_shape(module, role, model) for role in module.tensors}
    kind = module.kind
    weight = shapes.get("weight", ())
    if kind == "conv" and {*weight[2:]} == {1} and module.config.get("groups", 1) == 1:
        kind, shapes["weight"] = "dense", weight[:2]
    return kind, tuple(sorted(shapes.items()))


def _role_signature(single: tuple[Module, str], model: Model) -> Any:
    module, role = single
    return role, _torch_shape(module, role, model)


def _shape_signature(single: tuple[Module, str], model: Model) -> Any:
    return _torch_shape(*single, model)


def _torch_shape(module: Module, role: str, model: Model) -> tuple[int, ...]:
    values = model.tensors[module.tensors[role]]
    shape = (values if model.torch else shared.to_torch(values, module, role)).shape
    return shape if module.kind else tuple(n for n in shape if n != 1)  # a scale C, 1, 1 is one of C


def _unpaired(singles: Any, models: tuple[Model, Model]) -> str:
    parts = []
    for left_over, model in zip(singles, models, strict=True):
        named = [
            f"{module.tensors[role]} ({'x'.join(map(str, _torch_shape(module, role, model))) or 'a number'})"
            for module, role in left_over
        ]
        if named:
            more = f" and {len(named) - 6} more" if len(named) > 6 else ""
            parts.append(f"{model.name}'s {', '.join(named[:6])}{more}")
    return "The models have parameters without a partner, in PyTorch's layout: " + "; ".join(parts) + "."


def _read(path: str | Path, models: tuple[Model, Model]) -> list[Pair]:
    """An edited table.

    Raises:
        Unmatched: it names a tensor that is not there, or leaves one out.
    """
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
    pairs = []
    for row in rows:
        kind = models[0].modules[row["left"]].kind if row["left"] in models[0].modules else ""
        tensors = tuple((left, right) for left, right in row["tensors"])
        flatten = tuple(row["flatten"]) if row.get("flatten") else None
        pairs.append(Pair(row["left"], row["right"], tensors, kind, flatten, row.get("how", "the file")))
    for side, model in enumerate(models):
        named = [names[side] for pair in pairs for names in pair.tensors]
        wrong = {*named} ^ {*model.tensors}
        twice = {name for name in named if named.count(name) > 1}
        if wrong or twice:
            raise Unmatched(f"{path}: {', '.join(sorted(wrong | twice)[:6])} of {model.name} must be named once.")
    return pairs


def _find_flattened(found: Match, seen: Trace) -> list[Pair]:
    """Mark dense layers whose input is a feature map that was flattened, where the sides have another order."""
    if found.models[0].layout == found.models[1].layout:
        return found.pairs
    arrays = seen["activation"]
    names = list(arrays)
    pairs = []
    for pair in found.pairs:
        given = arrays.get(shared.input_of(pair.left))
        flatten = None
        if pair.kind == "dense" and given is not None and given.ndim == 2:
            before = [arrays[name] for name in names[: names.index(shared.input_of(pair.left))]]
            maps = [a for a in before if a.ndim == 4 and a[0].size == given.shape[1] and a[0].size > max(a.shape[1:])]
            if maps:
                size = shared.relay(maps[-1], found.models[0].layout, "channels first").shape[1:]
                flatten = (int(size[0]), int(size[1]), int(size[2]))
        pairs.append(replace(pair, flatten=flatten))
    return pairs


def _turn(values: Array, size: tuple[int, int, int], to: Layout) -> Array:
    """(N, features) of a flattened map from the other order into that of a layout."""
    channels, height, width = size
    if to == "channels last":
        return np.moveaxis(values.reshape(-1, channels, height, width), 1, -1).reshape(values.shape)
    return np.moveaxis(values.reshape(-1, height, width, channels), -1, 1).reshape(values.shape)


def _by_weights(found: Match) -> None:
    """Put the pairing right where the right side has the left's weights already, as a recording must."""
    given, own = (model.tensors for model in found.models)
    for place in range(len(found.pairs)):
        for other in range(place, len(found.pairs)):
            if not _alike(found.pairs[place], found.pairs[other], found.models[0]):
                continue
            pairs = _permuted(found.pairs, (place, other), (other, place)) if other > place else found.pairs
            plain = [replace(pair, flatten=None) if at == place else pair for at, pair in enumerate(pairs)]
            for trial in (pairs, plain):
                carried = replace(found, pairs=[trial[place]]).carried(own, given, "right")
                if all(np.array_equal(carried[name], own[name]) for _, name in trial[place].tensors):
                    found.pairs = trial
                    break
            else:
                continue
            break


def _try(found: Match, seen: Trace, probe: Batch, search: bool) -> None:
    """Evaluate the right with the carried weights, and look for another pairing where what a layer is given differs.

    What differs all the same is noted, and the left's value taken there, so that the rest can be tried.
    """
    adopted: list[str] = []
    wrong: dict[str, str] = {}
    for _ in range(_RUNS):
        right = _evaluate(found, seen, probe, adopted)
        name = _first_wrong(found, seen, right, adopted)
        if name is None:
            break
        path = shared.path_of(name)
        places = [place for place, pair in enumerate(found.pairs) if pair.left == path]
        if search and places and name.endswith(" (input)"):
            others = _rewired(found, seen, right, name, places[0])
        elif search and places and found.pairs[places[0]].flatten:
            others = [replace(pair, flatten=None) if pair.left == path else pair for pair in found.pairs]
        else:
            others = None
        if others is None and search and (name.endswith(" (input)") or name == shared.OUTPUT):
            others = _siblings(found, seen, probe, adopted, name)
        if others is not None:
            found.pairs = others
            found.carry()
            continue
        adopted.append(name)
        wrong[path] = "input differs" if name.endswith(" (input)") else "differs"
    found.carry()
    called = {shared.path_of(name) for name, _, pair in found.calls() if pair}
    found.pairs = [
        replace(pair, tried=wrong.get(pair.left, "agrees") if pair.left in called else "") for pair in found.pairs
    ]
    found.parted = [name for name in adopted if name != shared.OUTPUT or len(adopted) == 1]


def _evaluate(found: Match, seen: Trace, probe: Batch, adopted: list[str]) -> Trace:
    shapes = found.right.forward(probe, {"activation": {}})
    if not adopted:
        return shapes
    return found.right.forward(probe, {"activation": found.adopted(seen, shapes, "activation", adopted)})


def _first_wrong(found: Match, seen: Trace, right: Trace, adopted: Sequence[str]) -> str | None:
    """The first call, or input of one, that differs, in the left's order."""
    ours, theirs = (trace["activation"] for trace in found.translated({"activation": seen["activation"]}, right))
    order = [name for name in seen["activation"] if name in ours]
    return next((name for name in order if name not in adopted and not _same(ours[name], theirs[name])), None)


def _rewired(found: Match, seen: Trace, right: Trace, name: str, place: int) -> list[Pair] | None:
    """With a right module exchanged for the one that is given, in the left, what this one is given."""
    partners = {ours: (theirs, pair) for ours, theirs, pair in found.calls()}
    model, arrays = found.models[0], seen["activation"]
    for other, pair in enumerate(found.pairs):
        wanted = shared.input_of(pair.left)
        if other == place or wanted not in arrays or not _alike(found.pairs[place], pair, model):
            continue
        own = right["activation"][partners[name][0]]
        given = found._aligned(own, arrays[wanted].shape, 1, 0, pair, wanted)
        if _same(arrays[wanted], given):
            return _permuted(found.pairs, (place, other), (other, place))
    return None


def _siblings(found: Match, seen: Trace, probe: Batch, adopted: list[str], name: str) -> list[Pair] | None:
    """With layers of one shape that are given the same, such as query and key, in another order."""
    arrays, model = seen["activation"], found.models[0]
    order = list(arrays)
    before = [
        place
        for place, pair in enumerate(found.pairs)
        if pair.left in order and order.index(pair.left) < order.index(name)
    ]
    for last in reversed(before[-_NEAR:]):
        given = arrays.get(shared.input_of(found.pairs[last].left))
        same = [
            place
            for place in before
            if _alike(found.pairs[place], found.pairs[last], model)
            and given is not None
            and _same(given, arrays[shared.input_of(found.pairs[place].left)])
        ]
        if not 2 <= len(same) <= 3 or same[-1] != last:
            continue
        for other in [*permutations(same)][1:]:
            trial = replace(found, pairs=_permuted(found.pairs, same, other))
            trial.carry()
            later = _first_wrong(trial, seen, _evaluate(trial, seen, probe, adopted), adopted)
            if later is None or order.index(later) > order.index(name):
                return trial.pairs
        found.carry()
    return None


def _alike(pair: Pair, other: Pair, model: Model) -> bool:
    """Whether two modules may be taken for each other."""
    one, two = (model.modules.get(p.left) for p in (pair, other))
    return bool(one and two and one.kind and _signature(one, model) == _signature(two, model))


def _same(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    limit = _AGREE.get(min(a.dtype.itemsize, b.dtype.itemsize), _COARSE)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool(np.linalg.norm(a - b) <= limit * max(np.linalg.norm(a), np.linalg.norm(b)))


def _permuted(pairs: list[Pair], places: Sequence[int], order: Sequence[int]) -> list[Pair]:
    """The right modules at some places in another order."""
    found = list(pairs)
    for place, other in zip(places, order, strict=True):
        tensors = zip(pairs[place].tensors, pairs[other].tensors, strict=True)
        swapped = tuple((ours[0], theirs[1]) for ours, theirs in tensors)
        found[place] = replace(pairs[place], right=pairs[other].right, tensors=swapped, how="their values")
    return found
