"""Other people's state dicts: which part of a file is the network, and its names without what tools put before them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from common.arch.spec import Arch
from common.arch.zoo import ARCHS, get_arch
from common.errors import UserError
from common.recipes.spec import Recipe
from common.weights import exchange
from common.weights.network import image_of

# What DataParallel, torch.compile, FSDP and activation checkpointing put into names, at any depth.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
COUNTERS = ("n_averaged", exchange.COUNTER)  # of updates, by AveragedModel and batch norm: no weights
AVERAGED = ("ema", "averag", "swa")  # in the name of a part: a running mean of the weights


@dataclass(frozen=True)
class Part:
    """Tensors in a file whose names, without prefix and wrappers, are those of a network.

    Attributes:
        place: the keys and prefixes that lead to it, with dots between; empty for the file itself.
        state: its tensors under the remaining names.
        others: the tensors beside them that belong to no part.
        wrappers: what was taken out of the names.
    """

    place: str
    state: dict[str, Any]
    others: dict[str, Any]
    wrappers: tuple[str, ...]

    @property
    def averaged(self) -> bool:
        """Whether it is a running mean of another part."""
        return any(word in self.place.lower() for word in AVERAGED)


def choose(content: Mapping[Any, Any], where: str, wanted: str | None = None) -> tuple[Part, list[str]]:
    """The network in what a file holds, and sentences on what was taken and what was left.

    Args:
        content: names to tensors, or to mappings that hold them somewhere.
        where: the file, for messages.
        wanted: the place of the part, where the file holds several.

    Raises:
        UserError: there is none, several, or none at that place.
    """
    found = choose_all(content)
    full = [part for part in found if len(part.state) == max(len(other.state) for other in found)]
    if wanted is not None:
        full = [part for part in found if part.place == wanted]
        if not full:
            places = ", ".join(part.place or '""' for part in found)
            raise UserError(f"--part {wanted}: {where} has no network there. It has {places or 'none'}.")
    if not full:
        names = [str(name) for name in content]
        raise UserError(
            f"{where} holds no tensor by the name of one of torchvision's AlexNet or of a network here, but "
            f"{', '.join(names[:5]) or 'nothing'}{' ...' if len(names) > 5 else ''}."
        )
    raw = [part for part in full if not part.averaged] or full
    if len(raw) > 1:
        places = ", ".join(part.place or '""' for part in raw)
        raise UserError(f"{where} holds several networks: {places}. Say which, with --part {raw[0].place}.")
    part, said = raw[0], list[str]()
    part.state.update(part.others)  # to be refused by name
    if part.place:
        said.append(f"took {part.place!r}")
    if rest := [other.place or "the rest" for other in found if other is not part]:
        averaged = any(other.averaged for other in found if other is not part)
        said.append(f"left {', '.join(rest)}{' (a running mean of the weights)' * averaged}: --part takes another")
    if part.wrappers:
        said.append(f"took {', '.join(repr(f'{word}.') for word in part.wrappers)} off the names")
    return part, said


def choose_all(content: Mapping[Any, Any]) -> list[Part]:
    """Every part of a file that may be a network."""
    return [part for place, state in _states(content, ()) for part in _parts(place, state)]


def fit(state: Mapping[str, Any], arch: str | None, recipe: Recipe | None = None) -> Arch:
    """The architecture that tensors are of, with their number of channels and classes.

    Args:
        state: tensors by name.
        arch: its name; None looks for the first whose shapes are theirs, the recipe's first of all.
        recipe: whose images are the network's input, where it is known.

    Returns:
        `alexnet` or the recipe's, where the tensors fit none: what is wrong with them is told of that.
    """
    ours = exchange.rename(state)
    given = {ours[name]: tuple(value.shape) for name, value in state.items() if not name.endswith(exchange.COUNTER)}
    first = arch or (recipe.arch if recipe else "alexnet")
    for name in dict.fromkeys([first] if arch else [first, *ARCHS]):
        try:
            found = exchange.fit(state, get_arch(name))
            if recipe:
                height, width, _ = recipe.preprocess.input_size(image_of(recipe), found)
                found = found.adapt(height=height, width=width)
        except UserError:  # so many channels or classes, or this image, no such network has
            continue
        if exchange.shapes(found) == given:
            return found
    return exchange.fit(state, get_arch(first))


def _states(content: Mapping[Any, Any], keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The mappings of names to tensors in a file, with the keys that lead there."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and hasattr(value, "shape")}
    if tensors:
        yield keys, tensors
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _states(value, (*keys, str(key)))


def _parts(keys: tuple[str, ...], state: Mapping[str, Any]) -> list[Part]:
    """The networks among tensors: their names end in those that a network here, or torchvision's, has."""
    known = {name for arch in ARCHS.values() for name in exchange.shapes(arch)}
    known |= {f"{layer}.{kind}" for layer in exchange.TORCHVISION_LAYERS for kind in ("weight", "bias")}
    parts: dict[str, dict[str, Any]] = {}
    wrappers: dict[str, list[str]] = {}
    others: dict[str, Any] = {}
    for name, value in state.items():
        words = [word for word in name.split(".") if word not in WRAPPERS]
        for cut in range(len(words)):
            own = ".".join(words[cut:])
            if own in known or own.endswith(f".norm.{exchange.COUNTER}"):
                prefix = ".".join(words[:cut])
                if own in parts.get(prefix, ()):
                    raise UserError(f"{own} is there twice: {name} is another name of it.")
                parts.setdefault(prefix, {})[own] = value
                wrappers.setdefault(prefix, []).extend(word for word in name.split(".") if word in WRAPPERS)
                break
        else:
            if words[-1] not in COUNTERS:
                others[name] = value
    return [
        Part(".".join([*keys, prefix] if prefix else keys), tensors, others, tuple(sorted({*wrappers[prefix]})))
        for prefix, tensors in parts.items()
    ]
