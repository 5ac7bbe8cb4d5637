"""What the sides of linen and NNX models share: a compiled step that shows what it computes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import get_opaque_trace_state

from parity import model as shared
from parity.compare import Trace
from parity.dropout import Drop, off_words
from parity.model import Array, Batch, Dropout, Layout, Module

_MEMORY = {"trace": "momentum_buffer", "mu": "exp_avg", "nu": "exp_avg_sq", "sum_of_squares": "exp_avg_sq"}
_MASK = " (mask)"
_TRAIN = {"train": True, "training": True, "is_training": True, "is_train": True}
_TRAIN |= {"deterministic": False, "use_running_average": False, "inference": False}


class JaxSide:
    """The part of a side that knows no module: subclasses say how a model is called and what its modules are."""

    layout: Layout

    def __init__(
        self,
        params: Any,
        state: Any,
        loss: Callable[..., Any] | None,
        tx: optax.GradientTransformation | None,
        prepare: Callable[[Any], Any] | None,
        dropout: Dropout,
        compiler_options: Mapping[str, Any] | None,
        name: str,
    ) -> None:
        self.params, self.state = jax.tree.map(_leaf, params), jax.tree.map(_leaf, state)
        self.loss, self.tx, self.prepare, self.dropout, self.name = loss, tx, prepare, dropout, name
        self.memory = tx.init(self.params) if tx else None
        self.count = 0
        self.axes: list[str] = []
        self.seen = Seen()
        self.drawn: dict[str, Array] = {}
        options = dict(compiler_options or {})
        self._train = jax.jit(jax.value_and_grad(self._lossy(True), has_aux=True), compiler_options=options)
        self._evaluate = jax.jit(self._lossy(False), compiler_options=options)
        self._update = jax.jit(self._updated, compiler_options=options)

    def apply(self, params: Any, state: Any, inputs: Any, train: bool, key: Any) -> tuple[Any, Any]:
        """The model's output and new state; calls are reported to `self.seen`."""
        raise NotImplementedError

    def modules(self) -> dict[str, Module]:
        """Those of the last pass, by path, in the order of their first call."""
        raise NotImplementedError

    def names(self, tree: Any, state: bool) -> dict[str, Any]:
        """Leaves of parameters or of the state, by name."""
        raise NotImplementedError

    def tree(self, tensors: Mapping[str, Any], state: bool) -> Any:
        """The opposite: the own parameters or state with these leaves in their place."""
        own = self.state if state else self.params
        names = list(self.names(own, state))
        leaves, structure = jax.tree.flatten(own)
        new = [tensors.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        return jax.tree.unflatten(structure, [_array(self.name, value) for value in new])

    def _lossy(self, train: bool) -> Callable[..., Any]:
        def lossy(params: Any, state: Any, inputs: Any, targets: Any, key: Any, adopt: Any, drawn: Any) -> Any:
            self.seen.begin(adopt, drawn)
            if self.prepare:
                inputs = self.prepare(inputs)
            output, state = self.apply(params, state, inputs, train, key)
            arrays = {**self.seen.arrays, **self.seen.masks}
            if targets is None or self.loss is None:
                return jnp.zeros(()), (inputs, arrays, state)
            more = {"params": params} if "params" in inspect.signature(self.loss).parameters else {}
            return self.loss(output, targets, **more), (inputs, arrays, state)

        def bound(*given: Any) -> Any:
            """With the axes over devices that the model averages over, each of one device."""
            while True:
                call: Callable[..., Any] = lossy
                for axis in self.axes:
                    call = _with_axis(axis, call)
                try:
                    return call(*given)
                except NameError as error:
                    unbound = re.search(r"unbound axis name: (\w+)", str(error))
                    if not unbound or unbound[1] in self.axes:
                        raise
                    self.axes.append(unbound[1])

        return bound

    def _updated(self, gradients: Any, memory: Any, params: Any) -> Any:
        assert self.tx is not None
        updates, memory = self.tx.update(gradients, memory, params)
        return optax.apply_updates(params, updates), memory

    def step(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """Train on one batch; see `parity.model.Watched`.

        Raises:
            ValueError: the side has no loss or no optimizer.
        """
        if self.loss is None or self.tx is None:
            raise ValueError(f"{self.name} has no loss or no optimizer to train with: give both, or mode='forward'.")
        adopt = adopt or {}
        inputs, targets = (shared.map_inputs(self._given, part) for part in batch)
        key, wanted = jax.random.fold_in(jax.random.key(0), self.count), self._adopted(adopt, inputs)
        drawn = {name: jnp.asarray(numbers) for name, numbers in self.drawn.items()}
        (loss, (given, arrays, state)), gradients = self._train(
            self.params, self.state, inputs, targets, key, wanted, drawn
        )
        named = self.names(gradients, False)
        if "gradient" in adopt:
            named |= {name: jnp.asarray(values) for name, values in adopt["gradient"].items()}
            gradients = self.tree(named, False)
        self.params, self.memory = self._update(gradients, self.memory, self.params)
        self.state, self.count = state, self.count + 1
        return {
            **self._trace(given, targets, arrays, loss),
            "gradient": {name: np.array(values) for name, values in reversed(named.items())},
            "optimizer": {name: np.array(values) for name, values in self._slots().items()},
            "parameter": _numpy(self.names(self.params, False)),
            "statistic": _numpy(self.names(self.state, True)),
        }

    def forward(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """Evaluate one batch; see `parity.model.Watched`."""
        inputs, targets = (shared.map_inputs(self._given, part) for part in batch)
        wanted, key = self._adopted(adopt or {}, inputs), jax.random.key(0)
        loss, (given, arrays, _) = self._evaluate(self.params, self.state, inputs, targets, key, wanted, {})
        return self._trace(given, targets, arrays, loss)

    def _given(self, values: Any) -> Any:
        """Floating-point numbers in the parameters' dtype."""
        if values is None:
            return None
        array = np.asarray(values)
        leaves = [leaf.dtype for leaf in jax.tree.leaves(self.params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return jnp.asarray(array, leaves[0] if leaves and array.dtype.kind == "f" else None)

    def describe(self, inputs: Any) -> None:
        """See what calls there are, without computing them; see `parity.model.Watched`."""
        given = shared.map_inputs(self._given, inputs)
        jax.eval_shape(self._lossy(False), self.params, self.state, given, None, jax.random.key(0), {}, {})

    def drops(self, inputs: Any) -> tuple[list[Drop], list[str]]:
        """What is dropped in training; see `parity.dropout.Dropping`."""
        given = shared.map_inputs(self._given, inputs)
        jax.eval_shape(self._lossy(True), self.params, self.state, given, None, jax.random.key(0), {}, {})
        return list(self.seen.drops.values()), off_words(self.name, self.seen.silenced)

    def dropping(self, call: Callable[..., Any], rate: float, axes: Sequence[int], deterministic: Any) -> Any:
        """In the place of a dropout layer's call: it drops by the numbers that it is given.

        Args:
            call: the layer's own.
            rate: the layer's.
            axes: along which all is dropped, or nothing.
            deterministic: the layer's own setting, which a call may overrule.
        """
        if self.dropout != "shared":
            return call

        def drop(values: Any, *given: Any, **keywords: Any) -> Any:
            told = keywords.get("deterministic", given[0] if given else None)
            name = self.seen.begun[-1]
            if not rate or (deterministic if told is None else told):
                return values
            before = tuple(name for name in self.seen.order if not name.endswith(" (input)"))
            self.seen.drops[name] = Drop(name, tuple(values.shape), rate, before)
            if name not in self.seen.drawn:
                return values
            whole = [slice(0, 1) if axis in axes else slice(None) for axis in range(values.ndim)]
            return jnp.where(self.seen.drawn[name][tuple(whole)] >= rate, values / (1 - rate), 0)

        return drop

    def _adopted(self, adopt: Trace, inputs: Any) -> Any:
        """(whether, what) to adopt; of all calls where there is any, so that one compiled step serves them all."""
        wanted = adopt.get("activation")
        if wanted is None:
            return {}
        if not self.seen.shapes:
            self.describe(inputs)
        shapes = self.seen.shapes
        return {
            name: (name in wanted, jnp.asarray(wanted.get(name, np.zeros(size)), dtype))
            for name, (size, dtype) in shapes.items()
        }

    def _trace(self, inputs: Any, targets: Any, arrays: Any, loss: Any) -> Trace:
        given = _numpy(shared.named_inputs(inputs))
        self.masks = {name: _shown(np.array(arrays[f"{name}{_MASK}"]), size) for name, size in self.seen.pairs.items()}
        seen = {name: np.array(arrays[name]) for name in self.seen.order if name in arrays}
        trace: Trace = {"input": given, "activation": seen}
        if targets is None or self.loss is None:
            return trace
        named = {f"target{name[5:]}": np.array(value) for name, value in shared.named_inputs(targets).items()}
        return {"batch": named, **trace, "loss": {"loss": np.array(loss)}}

    def _slots(self) -> dict[str, Any]:
        """The optimizer's memory, slot/parameter: leaves whose path ends in that of a parameter."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.params)
        paths = {path: name for (path, _), name in zip(leaves, self.names(self.params, False), strict=True)}
        found = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(self.memory)[0]:
            for start in range(len(path)):
                if path[start:] in paths and np.ndim(leaf) == np.ndim(dict(leaves)[path[start:]]):
                    before = [key.name for key in path[:start] if isinstance(key, jax.tree_util.GetAttrKey)]
                    slot = before[-1] if before else "memory"
                    found[f"{_MEMORY.get(slot, slot)}/{paths[path[start:]]}"] = leaf
                    break  # a shorter end may be another parameter's path
        return found

    def model(self) -> shared.Model:
        """As it stands; see `parity.model.Watched`."""
        if not self.seen.order:
            raise ValueError(f"{self.name} has not been called yet: run a step first.")
        calls = [name for name in self.seen.order if not name.endswith(" (input)")]
        parameters, statistics = _numpy(self.names(self.params, False)), _numpy(self.names(self.state, True))
        return shared.Model(self.name, self.layout, False, self.modules(), calls, parameters, statistics)

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Overwrite all parameters and statistics; see `parity.model.Watched`."""
        shared.check_tensors(self.name, {**self.names(self.params, False), **self.names(self.state, True)}, tensors)
        self.overwrite(tensors, {})
        self.memory = self.tx.init(self.params) if self.tx else None
        self.seen.shapes = {}  # in another dtype, perhaps

    def overwrite(self, tensors: Mapping[str, Array], memory: Mapping[str, Array]) -> None:
        """Overwrite some of it; see `parity.model.Watched`."""
        self.params, self.state = self.tree(tensors, False), self.tree(tensors, True)
        slots = self._slots()
        places = {id(leaf): name for name, leaf in slots.items()}
        self.memory = jax.tree.map(
            lambda leaf: _array(self.name, memory.get(places.get(id(leaf), ""), leaf)), self.memory
        )

    def snapshot(self) -> Any:
        """All that a step changes; JAX's arrays do not change."""
        return self.params, self.state, self.memory, self.count

    def restore(self, saved: Any) -> None:
        """Back to a snapshot."""
        self.params, self.state, self.memory, self.count = saved


class Seen:
    """What a pass shows while it is traced: of each call the first array that it was given and that it returned."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.order: list[str] = []
        self.shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
        self.begun: list[str] = []
        self.drawn: Any = {}
        self.drops: dict[str, Drop] = {}
        self.silenced: dict[str, None] = {}
        self.masks: dict[str, Any] = {}
        self.pairs: dict[str, tuple[int, int, int]] = {}  # examples, queries and keys of attention layers
        self._counts: dict[str, int] = {}
        self._adopt: Any = {}
        self._level: Any = None

    def begin(self, adopt: Any, drawn: Any) -> None:
        """A new pass; what is shown later under another transformation, inside a loop or map, does not get out."""
        self.drawn, self.drops, self.silenced, self.masks, self.pairs = drawn, {}, {}, {}, {}
        self.arrays, self.order, self.begun, self._counts = {}, [], [], {}
        self._adopt, self._level = adopt, get_opaque_trace_state(convention="flax")

    def call(
        self, path: str, call: Callable[..., Any], inputs: Any, keywords: Any, attention: bool = False
    ) -> tuple[str, Any]:
        """Make a call, of an attention layer or another, and record it; returns its name and what it returns."""
        count = self._counts[path] = self._counts.get(path, 0) + 1
        name = shared.call_name(path, count)
        self.begun.append(name)
        seen = get_opaque_trace_state(convention="flax") == self._level
        first = _first((*inputs, *keywords.values())) if seen else None
        if inputs and first is inputs[0]:
            inputs = (self._record(shared.input_of(name), first), *inputs[1:])
        elif first is not None:
            self._record(shared.input_of(name), first)
        if attention and seen:
            self._attention(name, *inputs, **keywords)
        output = call(*inputs, **keywords)
        first = _first(output) if seen else None
        if first is None:
            return name, output
        shown = self._record(name, first)
        return name, shown if output is first else output

    def _attention(self, name: str, queries: Any, keys: Any = None, *_: Any, mask: Any = None, **more: Any) -> None:
        """What queries see; batches of one axis."""
        keys = queries if keys is None else keys
        if np.ndim(queries) != 3 or np.ndim(keys) != 3:
            return
        self.pairs[name] = (queries.shape[0], queries.shape[1], keys.shape[1])
        self.masks[f"{name}{_MASK}"] = jnp.ones((1, 1, 1, 1)) if mask is None else mask

    def _record(self, name: str, value: Any) -> Any:
        if name in self._adopt:
            value = adopted(value, *self._adopt[name])
        self.arrays[name] = value
        self.order.append(name)
        self.shapes[name] = (tuple(value.shape), value.dtype)
        return value


@jax.custom_jvp
def adopted(own: Any, whether: Any, other: Any) -> Any:
    """Another value in the place of the own one, through which gradients pass as through the own."""
    return jnp.where(whether, other, own)


@adopted.defjvp
def _adopted_jvp(primals: Any, tangents: Any) -> Any:
    return adopted(*primals), tangents[0]


def _with_axis(axis: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same where the named axis is bound, with one place."""

    def bound(*given: Any) -> Any:
        return jax.tree.map(lambda a: a[0], jax.vmap(lambda _: call(*given), axis_name=axis)(jnp.zeros(1)))

    return bound


def train_flags(
    call: Callable[..., Any], train: Mapping[str, Any] | None, evaluate: Mapping[str, Any] | None
) -> dict[bool, dict[str, Any]]:
    """What a model is called with in training (True) and in evaluation (False): what is given for each.

    Where none is, those of its arguments that say whether it trains, under the names that people give them.
    """
    known = inspect.signature(call).parameters
    usual = [{name: value == on for name, value in _TRAIN.items() if name in known} for on in (False, True)]
    return {on: usual[on] if given is None else dict(given) for on, given in ((True, train), (False, evaluate))}


def padding(given: Any, space: Any, kernel: list[int], stride: list[int], dilation: list[int]) -> list[tuple[int, int]]:
    """A pair for each axis, of whatever a convolution was given."""
    if isinstance(given, str):
        if given.upper() == "SAME":
            return [shared.same_pads(*axis) for axis in zip(space, kernel, stride, dilation, strict=True)]
        return [(0, 0)] * len(kernel)
    pairs = [given] * len(kernel) if isinstance(given, int) else given
    return [(pair, pair) if isinstance(pair, int) else (int(pair[0]), int(pair[1])) for pair in pairs]


def _first(values: Any) -> Any:
    """The first array in nested values."""
    return next((leaf for leaf in jax.tree.leaves(values) if isinstance(leaf, jax.Array | np.ndarray)), None)


def stretched(given: Any, kernel: list[int], stride: list[int], dilation: list[int]) -> list[tuple[int, int]]:
    """A pair for each axis, of whatever a transposed convolution was given."""
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilation, strict=True)]
    if isinstance(given, str):
        same = given.upper() == "SAME"
        return [shared.same_stretched(*axis, same) for axis in zip(reach, stride, strict=True)]
    return padding(given, (), kernel, stride, dilation)


def _shown(mask: Array, size: tuple[int, int, int]) -> Array:
    """(N, queries, keys) of a mask of more axes, which is True where something is seen."""
    return shared.seen_keys([mask.reshape((1,) * (4 - mask.ndim) + mask.shape)], *size)


def _leaf(value: Any) -> jax.Array:
    """An array; zeros in the place of a shape, where `jax.eval_shape` spared the initialisation."""
    return jnp.zeros(value.shape, value.dtype) if isinstance(value, jax.ShapeDtypeStruct) else jnp.asarray(value)


def _array(name: str, values: Any) -> jax.Array:
    array = jnp.asarray(values)
    if isinstance(values, np.ndarray) and array.dtype != values.dtype:
        raise ValueError(
            f"{name}: {values.dtype} becomes {array.dtype} in JAX: call jax.config.update('jax_enable_x64', True) "
            "before anything else, or compare in float32."
        )
    return array


def _numpy(tensors: Mapping[str, Any]) -> dict[str, Array]:
    return {name: np.array(values) for name, values in tensors.items()}
