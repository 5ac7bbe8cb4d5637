"""What a function of JAX's computes on its way, as outputs of it: no callbacks, so that a compiled one can be kept.

`mark` names a value where it arises, also below `jax.grad` and in the body of a `jax.lax.scan`; `shown` gives a
function that returns what was marked besides its result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxpr_as_fun

Result = TypeVar("Result")
Marked = OrderedDict[str, list[Any]]  # in the order of their computation; JAX would sort a dict

_MARK = "marked: "


def mark(name: str, value: Array) -> Array:
    """The same value, which `shown` returns under this name."""
    marked: Array = checkpoint_name(value, _MARK + name)
    return marked


def shown(function: Callable[..., Result]) -> Callable[..., tuple[Result, Marked]]:
    """The function, which returns the marked values too, as lists.

    A scan's are concatenated along their first axis. Those within other control flow are not found.
    """

    def showing(*args: Any) -> tuple[Result, Marked]:
        # A function of its own: JAX would take an earlier trace of the given one, whoever marked values in that.
        closed, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
        seen: list[tuple[str, Array]] = []
        results = _run(closed, jax.tree.leaves(args), seen)
        marked: Marked = OrderedDict()
        for name, value in seen:
            marked.setdefault(name, []).append(value)
        return jax.tree.unflatten(jax.tree.structure(shapes), results), marked

    return showing


def _run(closed: ClosedJaxpr, args: Sequence[Any], seen: list[tuple[str, Array]]) -> list[Any]:
    """Run a trace, equation by equation, noting the marked values on the way."""
    jaxpr = closed.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True))
    for eqn in jaxpr.eqns:
        given = [atom.val if isinstance(atom, Literal) else values[atom] for atom in eqn.invars]
        if _is_mark(eqn):
            seen.append((eqn.params["name"].removeprefix(_MARK), given[0]))
            found: Sequence[Any] = given
        elif _is_marked_scan(eqn):
            found = _scan(eqn.params, given, seen)
        else:
            variables = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
            alone = jaxpr.replace(constvars=[], invars=variables, outvars=eqn.outvars, eqns=[eqn])
            found = jaxpr_as_fun(ClosedJaxpr(alone, []))(*(values[variable] for variable in variables))
        values.update(zip(eqn.outvars, found, strict=True))
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in jaxpr.outvars]


def _is_mark(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "name" and eqn.params["name"].startswith(_MARK)


def _is_marked_scan(eqn: JaxprEqn) -> bool:
    body = eqn.params["jaxpr"].eqns if eqn.primitive.name == "scan" else ()
    return any(_is_mark(inner) or _is_marked_scan(inner) for inner in body)


def _scan(params: dict[str, Any], given: Sequence[Any], seen: list[tuple[str, Array]]) -> list[Any]:
    """A scan whose body has marked values: they are stacked as its other outputs are."""
    consts, carries = params["num_consts"], params["num_carry"]
    names: list[str] = []

    def body(carry: list[Any], row: list[Any]) -> tuple[list[Any], tuple[list[Any], list[Array]]]:
        inside: list[tuple[str, Array]] = []
        results = _run(params["jaxpr"], [*given[:consts], *carry, *row], inside)
        names[:] = [name for name, _ in inside]
        return results[:carries], (results[carries:], [value for _, value in inside])

    first, rows = list(given[consts : consts + carries]), list(given[consts + carries :])
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    last, (stacked, marked) = jax.lax.scan(body, first, rows, **options)
    seen += zip(names, (value.reshape(-1, *value.shape[2:]) for value in marked), strict=True)
    return [*last, *stacked]
