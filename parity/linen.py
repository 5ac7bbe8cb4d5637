"""A side for any `flax.linen.Module`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from parity.jax_side import JaxSide, padding, stretched, train_flags
from parity.model import Dropout, Layout, Module

_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_RATES = ("rate", "dropout_rate")
_DROPOUTS = (nn.Dropout, nn.MultiHeadDotProductAttention)


class Side(JaxSide):
    """Watches a model through an interceptor of its modules' calls, and trains it in a compiled step.

    Args:
        model: unbound.
        variables: what `model.init` returned: parameters, and statistics if it has any; or only their shapes, from
            `jax.eval_shape(model.init, ...)`, where weights are carried over anyway.
        loss: takes the model's output and the targets; one with a parameter `params` gets those, too.
        tx: the optimizer; None where only `forward` is wanted.
        prepare: makes the model's inputs of a batch's; by default they are the same.
        train, evaluate: keywords of the model's call; by default those among train, training, deterministic,
            use_running_average and their like that it has.
        dropout: "off" makes every dropout the identity; "shared" lets dropout layers draw as those of the other side
            do; "on" leaves them.
        layout: of images and feature maps.
        compiler_options: for `jax.jit`; `{"xla_backend_optimization_level": 0}` compiles faster.
        name: in reports.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, Any],
        loss: Callable[..., Any] | None = None,
        tx: optax.GradientTransformation | None = None,
        *,
        prepare: Callable[[Any], Any] | None = None,
        train: Mapping[str, Any] | None = None,
        evaluate: Mapping[str, Any] | None = None,
        dropout: Dropout = "off",
        layout: Layout = "channels last",
        compiler_options: Mapping[str, Any] | None = None,
        name: str = "Flax",
    ) -> None:
        self.net, self.layout = model, layout
        self._flags = train_flags(model.__call__, train, evaluate)
        self._modules: dict[str, Module] = {}
        state = {name: tree for name, tree in variables.items() if name != "params"}
        super().__init__(variables.get("params", {}), state, loss, tx, prepare, dropout, compiler_options, name)

    def apply(self, params: Any, state: Any, inputs: Any, train: bool, key: Any) -> tuple[Any, Any]:
        """The model's output and new state."""
        self._modules = {}
        inside: list[tuple[str, ...]] = []

        def intercept(call: Any, given: Any, keywords: Any, context: nn.module.InterceptorContext) -> Any:
            module, path = context.module, context.module.path
            if context.method_name != "__call__" or (inside and inside[-1] == path):  # a subclass calls its parent's
                return call(*given, **keywords)
            name = ".".join(path)
            layer = self.dropout == "shared" and isinstance(module, nn.Dropout)
            for field in _RATES if self.dropout != "on" and not layer else ():
                if getattr(module, field, 0.0) and isinstance(module, _DROPOUTS):
                    self.seen.silenced[name] = None
                    object.__setattr__(module, field, 0.0)  # of a copy that lives as long as this pass
            inside.append(path)
            if name not in self._modules:
                self._modules[name] = _described(name, module, np.shape(given[0]) if given else ())
            try:
                if layer:
                    call = self.dropping(call, module.rate, module.broadcast_dims, module.deterministic)
                attention = isinstance(module, nn.MultiHeadDotProductAttention)
                return self.seen.call(name, call, given, keywords, attention)[1]
            finally:
                inside.pop()

        keywords = dict(self._flags[train])
        arguments = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
        if isinstance(inputs, Mapping):
            keywords |= inputs
        mutable = list(state) if train else False
        with nn.intercept_methods(intercept):
            result = self.net.apply(
                {"params": params, **state}, *arguments, **keywords, rngs={"dropout": key}, mutable=mutable
            )
        return result if mutable is not False else (result, state)

    def modules(self) -> dict[str, Module]:
        """Those of the last pass, with the tensors that lie under their paths."""
        found = dict(self._modules)
        for state, tree in ((False, self.params), (True, self.state)):
            for name in self.names(tree, state):
                path, _, leaf = name.removeprefix(f"{name.split(':')[0]}:" if state else "").rpartition(".")
                module = found.get(path, Module(path))
                role = _NAMES.get(leaf, leaf) if module.kind else leaf
                found[path] = Module(path, module.kind, {**module.tensors, role: name}, module.config)
        return found

    def names(self, tree: Any, state: bool) -> dict[str, Any]:
        """Leaves by path; those of the state after the name of their collection."""
        found = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
            found[f"{keys[0]}:{'.'.join(keys[1:])}" if state else ".".join(keys)] = leaf
        return found


def _described(path: str, module: Any, size: tuple[int, ...]) -> Module:
    kind = next((kind for kind, types in _KINDS.items() if isinstance(module, types)), "")
    return Module(path, kind, {}, _config(module, kind, size))


def _config(module: Any, kind: str, size: tuple[int, ...]) -> dict[str, Any]:
    """What a module's arithmetic depends on; see `parity.model.Module`."""
    if kind in ("conv", "conv_transpose"):
        kernel = _each(module.kernel_size, 1)
        stride, dilation = (_each(getattr(module, name), len(kernel)) for name in ("strides", "kernel_dilation"))
        found: dict[str, Any] = {"stride": stride, "dilation": dilation}
        if kind == "conv_transpose":
            pads = stretched(module.padding, kernel, stride, dilation)
            return {**found, "stretched": pads, "transpose_kernel": module.transpose_kernel}
        found["padding"] = padding(module.padding, size[-1 - len(kernel) : -1], kernel, stride, dilation)
        return {**found, "groups": module.feature_group_count, "written": str(module.padding)}
    if kind == "dense":
        axis = getattr(module, "axis", -1)
        return {"in_axes": len(axis) if isinstance(axis, tuple) else 1}
    if kind.endswith("_norm"):
        momentum = {"momentum": module.momentum} if kind == "batch_norm" else {}
        return {"epsilon": module.epsilon, **momentum}
    if kind == "attention":
        return {"heads": module.num_heads}
    return {"rate": module.rate} if kind == "dropout" else {}


def _each(value: Any, axes: int) -> list[int]:
    """One number for each axis."""
    return [1 if value is None else value] * axes if value is None or isinstance(value, int) else list(value)


_KINDS: dict[str, Any] = {
    "conv": (nn.Conv, nn.ConvLocal),
    "conv_transpose": nn.ConvTranspose,
    "dense": (nn.Dense, nn.DenseGeneral),
    "batch_norm": nn.BatchNorm,
    "layer_norm": nn.LayerNorm,
    "group_norm": nn.GroupNorm,
    "rms_norm": nn.RMSNorm,
    "embedding": nn.Embed,
    "dropout": nn.Dropout,
    "attention": nn.MultiHeadDotProductAttention,
}
