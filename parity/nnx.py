"""A side for any `flax.nnx.Module`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax
import numpy as np
import optax
from flax import nnx

from parity.jax_side import JaxSide, padding, stretched, train_flags
from parity.model import Dropout, Layout, Module

_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_STATE = "batch_stats:"


class Side(JaxSide):
    """Watches a model through its modules' calls, and trains a copy of it in a compiled step.

    Args:
        model: with its parameters; it stays as it is.
        loss: takes the model's output and the targets; one with a parameter `params` gets those, too.
        tx: the optimizer; None where only `forward` is wanted.
        prepare: makes the model's inputs of a batch's; by default they are the same.
        train, evaluate: keywords of the model's call; by default those among train, training, deterministic,
            use_running_average and their like that it has. The model's modes are set by `train()` and `eval()`, too.
        dropout: "off" makes every dropout the identity; "shared" lets dropout layers draw as those of the other side
            do; "on" leaves them.
        layout: of images and feature maps.
        compiler_options: for `jax.jit`; `{"xla_backend_optimization_level": 0}` compiles faster.
        name: in reports.
    """

    def __init__(
        self,
        model: nnx.Module,
        loss: Callable[..., Any] | None = None,
        tx: optax.GradientTransformation | None = None,
        *,
        prepare: Callable[[Any], Any] | None = None,
        train: Mapping[str, Any] | None = None,
        evaluate: Mapping[str, Any] | None = None,
        dropout: Dropout = "off",
        layout: Layout = "channels last",
        compiler_options: Mapping[str, Any] | None = None,
        name: str = "NNX",
    ) -> None:
        self.layout = layout
        self._flags = train_flags(model.__call__, train, evaluate)
        self._modules: dict[str, Module] = {}
        self._graph, *self._states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
        params, state = (nnx.to_pure_dict(part) for part in self._states[:2])
        super().__init__(params, state, loss, tx, prepare, dropout, compiler_options, name)

    def apply(self, params: Any, state: Any, inputs: Any, train: bool, key: Any) -> tuple[Any, Any]:
        """The model's output and new state."""
        states = [jax.tree.map(lambda leaf: leaf, part) for part in self._states]
        for part, values in zip(states, (params, state), strict=False):
            nnx.replace_by_pure_dict(part, values)
        model = nnx.merge(self._graph, *states)
        (model.train if train else model.eval)()
        keywords = dict(self._flags[train])
        arguments = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
        with self._watching(model):
            output = model(*arguments, **keywords, **(inputs if isinstance(inputs, Mapping) else {}))
        return output, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)) if train else state

    @contextmanager
    def _watching(self, model: nnx.Module) -> Iterator[None]:
        """The classes of all modules report the calls of this model's."""
        paths = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}
        self._modules = {}
        inside: list[str] = []

        def watched(call: Any) -> Any:
            def __call__(module: Any, *given: Any, **keywords: Any) -> Any:  # noqa: N807
                path = paths.get(id(module))
                if path is None or (inside and inside[-1] == path):  # a subclass calls its parent's
                    return call(module, *given, **keywords)
                if path not in self._modules:
                    self._modules[path] = _described(path, module, np.shape(given[0]) if given else ())
                inside.append(path)
                try:
                    own: Any = lambda *a, **k: call(module, *a, **k)  # noqa: E731
                    if isinstance(module, nnx.Dropout):
                        own = self.dropping(own, module.rate, module.broadcast_dims, module.deterministic)
                    return self.seen.call(path, own, given, keywords, isinstance(module, nnx.MultiHeadAttention))[1]
                finally:
                    inside.pop()

            return __call__

        with ExitStack() as stack:
            self._silence(model, paths)
            for kind in {type(module) for _, module in nnx.iter_modules(model)}:
                if callable(getattr(kind, "__call__", None)):  # noqa: B004
                    stack.enter_context(mock.patch.object(kind, "__call__", watched(kind.__call__)))
            yield

    def _silence(self, model: nnx.Module, paths: Mapping[int, str]) -> None:
        """No dropout, but in layers that share."""
        for _, module in nnx.iter_modules(model):
            layer = self.dropout == "shared" and isinstance(module, nnx.Dropout)
            for field in ("rate", "dropout_rate") if self.dropout != "on" and not layer else ():
                if getattr(module, field, 0.0) and isinstance(module, nnx.Dropout | nnx.MultiHeadAttention):
                    self.seen.silenced[paths[id(module)]] = None
                    setattr(module, field, 0.0)

    def modules(self) -> dict[str, Module]:
        """Those of the last pass, with the tensors that lie under their paths."""
        found = dict(self._modules)
        for state, tree in ((False, self.params), (True, self.state)):
            for name in self.names(tree, state):
                path, _, leaf = name.removeprefix(_STATE).rpartition(".")
                module = found.get(path, Module(path))
                role = _NAMES.get(leaf, leaf) if module.kind else leaf
                found[path] = Module(path, module.kind, {**module.tensors, role: name}, module.config)
        return found

    def names(self, tree: Any, state: bool) -> dict[str, Any]:
        """Leaves by path; statistics after a word of their own."""
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        prefix = _STATE if state else ""
        return {prefix + ".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def _described(path: str, module: Any, size: tuple[int, ...]) -> Module:
    kind = next((kind for kind, types in _KINDS.items() if isinstance(module, types)), "")
    config: dict[str, Any] = {}
    if kind == "conv":
        kernel, stride, dilation = _geometry(module)
        pads = padding(module.padding, size[-1 - len(kernel) : -1], kernel, stride, dilation)
        config = {"padding": pads, "stride": stride, "dilation": dilation, "groups": module.feature_group_count}
        config["written"] = str(module.padding)
    elif kind == "conv_transpose":
        kernel, stride, dilation = _geometry(module)
        pads = stretched(module.padding, kernel, stride, dilation)
        config = {"stretched": pads, "stride": stride, "dilation": dilation}
        config["transpose_kernel"] = module.transpose_kernel
    elif kind == "dense":
        axis = getattr(module, "axis", -1)
        config = {"in_axes": len(axis) if isinstance(axis, tuple) else 1}
    elif kind.endswith("_norm"):
        config = {"epsilon": module.epsilon, **({"momentum": module.momentum} if kind == "batch_norm" else {})}
    elif kind:
        config = {"heads": module.num_heads} if kind == "attention" else {}
    return Module(path, kind, {}, config)


def _geometry(module: Any) -> list[list[int]]:
    """Kernel, stride and dilation of a convolution, a number for each axis."""
    kernel = [module.kernel_size] if isinstance(module.kernel_size, int) else list(module.kernel_size)
    sizes = (module.strides, module.kernel_dilation)
    return [kernel, *([n] * len(kernel) if isinstance(n, int) else [*(n or [1] * len(kernel))] for n in sizes)]


_KINDS: dict[str, Any] = {
    "conv": nnx.Conv,
    "conv_transpose": nnx.ConvTranspose,
    "dense": (nnx.Linear, nnx.LinearGeneral),
    "batch_norm": nnx.BatchNorm,
    "layer_norm": nnx.LayerNorm,
    "group_norm": nnx.GroupNorm,
    "rms_norm": nnx.RMSNorm,
    "embedding": nnx.Embed,
    "dropout": nnx.Dropout,
    "attention": nnx.MultiHeadAttention,
}
