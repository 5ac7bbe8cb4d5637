"""A side for any `torch.nn.Module`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from parity import model as shared
from parity.compare import Trace
from parity.dropout import Drop, off_words
from parity.model import Array, Batch, Dropout, Layout, Module

_MEMORY = {"square_avg": "exp_avg_sq", "sum": "exp_avg_sq", "max_exp_avg_sq": "exp_avg_sq_max"}
_HIDDEN = -1e4  # what is added to products to hide them is minus infinity, or lower than this
_HYPER = ("momentum", "nesterov", "betas")
_DROPS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")


class Side:
    """Watches a model through forward hooks, and trains it as a plain loop would, in place.

    Args:
        model: in the dtype in which it is to be compared: `model.double()` for the mathematics.
        loss: takes the model's output and the targets; one with a parameter `model` gets that, too.
        optimizer: of the model's parameters; None where only `forward` is wanted.
        prepare: makes the model's inputs of a batch's; by default they are the same.
        before_step: called with the model after the backward pass: gradient clipping.
        scheduler: stepped after the optimizer.
        dropout: "off" makes every dropout the identity; "shared" lets dropout layers draw as those of the other side
            do; "on" leaves them.
        layout: of images and feature maps.
        name: in reports.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        prepare: Callable[[Any], Any] | None = None,
        before_step: Callable[[nn.Module], Any] | None = None,
        scheduler: Any = None,
        dropout: Dropout = "off",
        layout: Layout = "channels first",
        name: str = "PyTorch",
    ) -> None:
        self.net, self.loss, self.optimizer, self.prepare = model, loss, optimizer, prepare
        self.before_step, self.scheduler, self.dropout = before_step, scheduler, dropout
        self.layout: Layout = layout
        self.name = name
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        self.drawn: dict[str, Array] = {}
        self._last: _Seen | None = None
        self._fresh = self._memory()

    def step(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """Train on one batch; see `parity.model.Watched`.

        Raises:
            ValueError: the side has no loss or no optimizer.
        """
        if self.loss is None or self.optimizer is None:
            raise ValueError(f"{self.name} has no loss or no optimizer to train with: give both, or mode='forward'.")
        self.net.train()
        adopt = adopt or {}
        trace, loss = self._pass(batch, adopt)
        self.optimizer.zero_grad()
        loss.backward()
        named = dict(self.net.named_parameters())
        for name, values in adopt.get("gradient", {}).items():
            named[name].grad = self._tensor(values).to(named[name].dtype)
        gradient = {name: _numpy(_gradient(parameter)) for name, parameter in reversed(named.items())}
        if self.before_step:
            self.before_step(self.net)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        model = self.model()
        return {
            **trace,
            "gradient": _parts(self.net, gradient),
            "optimizer": self._slots(),
            "parameter": model.parameters,
            "statistic": model.statistics,
        }

    def forward(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """Evaluate one batch; see `parity.model.Watched`."""
        self.net.eval()
        with torch.no_grad():
            return self._pass(batch, adopt or {})[0]

    def describe(self, inputs: Any) -> None:
        """See what calls there are; see `parity.model.Watched`."""
        self.forward((inputs, None))

    @property
    def masks(self) -> Mapping[str, Array]:
        """What attention layers let queries see, by their calls, in the last pass."""
        return self._last.masks if self._last else {}

    def drops(self, inputs: Any) -> tuple[list[Drop], list[str]]:
        """What is dropped in training; see `parity.dropout.Dropping`."""
        start, last, self.drawn = self.snapshot(), self._last, {}
        self.net.train()
        with torch.no_grad():
            self._pass((inputs, None), {})
        seen, self._last = self._last, last
        self.restore(start)
        assert seen is not None
        return seen.drops, off_words(self.name, seen.functions)

    def _pass(self, batch: Batch, adopt: Trace) -> tuple[Trace, Tensor]:
        inputs, targets = batch
        inputs = shared.map_inputs(self._tensor, inputs)
        if self.prepare:
            inputs = self.prepare(inputs)
        given = {name: _numpy(value) for name, value in shared.named_inputs(inputs).items()}
        seen = self._last = _Seen(adopt.get("activation", {}), self._tensor, self.drawn)
        with seen.watching(self.net), _without_dropout(self.dropout != "on", seen):
            output = _call(self.net, inputs)
        trace: Trace = {"input": given, "activation": seen.arrays}
        if targets is None or self.loss is None:
            return trace, torch.zeros(())
        more = {"model": self.net} if "model" in inspect.signature(self.loss).parameters else {}
        aims = shared.map_inputs(self._tensor, targets)
        loss = self.loss(output, aims, **more)
        named = {f"target{name[5:]}": _numpy(value) for name, value in shared.named_inputs(aims).items()}
        return {"batch": named, **trace, "loss": {"loss": _numpy(loss)}}, loss

    def _tensor(self, values: Any) -> Tensor:
        """On the device; floating-point numbers in the parameters' dtype."""
        if isinstance(values, np.ndarray | np.generic):
            values = torch.from_numpy(np.array(values))
        values = torch.as_tensor(values, device=self.device)
        return values.to(self.dtype) if values.is_floating_point() else values

    def model(self) -> shared.Model:
        """As it stands; see `parity.model.Watched`."""
        if self._last is None:
            raise ValueError(f"{self.name} has not been called yet: run a step first.")
        called = dict.fromkeys(map(shared.path_of, self._last.begun))
        named = dict(self.net.named_modules())
        modules: dict[str, Module] = {}
        for path in (*called, *(path for path in named if path not in called)):
            if path in named and path not in modules:
                modules |= _described(path, named[path], self._last.sizes.get(path, ()))
        whole = {name: _numpy(parameter) for name, parameter in self.net.named_parameters()}
        buffers = self.net.named_buffers()
        statistics = {name: _numpy(b) for name, b in buffers if name.split(".")[-1].startswith("running_")}
        calls = [name for name in self._last.arrays if not name.endswith(" (input)")]
        parameters = _parts(self.net, whole)
        groups = self.optimizer.param_groups if self.optimizer is not None else [{}]
        known: dict[str, Any] = {name: groups[0][name] for name in _HYPER if name in groups[0]}
        return shared.Model(self.name, self.layout, True, modules, calls, parameters, statistics, known)

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Overwrite all parameters and statistics; see `parity.model.Watched`."""
        current = self.model().tensors
        shared.check_tensors(self.name, current, tensors)
        for name, values in tensors.items():
            if values.dtype != current[name].dtype:
                raise ValueError(
                    f"{self.name}: {name} is {current[name].dtype} and cannot hold {values.dtype}: convert the model "
                    "first, by model.double() or model.float()."
                )
        self._write(tensors)
        if self.optimizer is not None:
            self._set_memory(self._fresh)

    def overwrite(self, tensors: Mapping[str, Array], memory: Mapping[str, Array]) -> None:
        """Overwrite some of it; see `parity.model.Watched`."""
        self._write(tensors)
        slots = self._slots(live=True)
        with torch.no_grad():
            for name, values in memory.items():
                slots[name].copy_(torch.from_numpy(np.array(values)))

    def _write(self, tensors: Mapping[str, Array]) -> None:
        places = {**dict(self.net.named_parameters()), **dict(self.net.named_buffers())}
        places = _parts(self.net, places)
        with torch.no_grad():
            for name, values in tensors.items():
                places[name].copy_(self._tensor(values))

    def _slots(self, live: bool = False) -> dict[str, Any]:
        """The optimizer's memory, slot/parameter; scalars, which count steps, left out."""
        found: dict[str, Any] = {}
        named = dict(self.net.named_parameters())
        state = self.optimizer.state if self.optimizer is not None else {}
        slots = {slot: None for parameter in named.values() for slot in state.get(parameter, {})}
        for slot in slots:
            held = {name: state.get(parameter, {}).get(slot) for name, parameter in named.items()}
            own = {name: t for name, t in held.items() if isinstance(t, Tensor) and t.shape == named[name].shape}
            scalar = all(t.ndim == 0 for t in own.values()) and slot == "step"
            if own and not scalar:
                own = _parts(self.net, own if live else {name: _numpy(t) for name, t in own.items()})
                found |= {f"{_MEMORY.get(slot, slot)}/{name}": t for name, t in own.items()}
        return found

    def snapshot(self) -> Any:
        """All that a step changes."""
        tensors = {name: t.clone() for name, t in self.net.state_dict().items()}
        return tensors, self._memory(), self.scheduler.state_dict() if self.scheduler is not None else None

    def restore(self, saved: Any) -> None:
        """Back to a snapshot."""
        tensors, memory, schedule = saved
        self.net.load_state_dict(tensors)
        self._set_memory(memory)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(schedule)

    def _memory(self) -> Any:
        if self.optimizer is None:
            return None
        whole = self.optimizer.state_dict()
        state = {place: _cloned(slots) for place, slots in whole["state"].items()}
        return {"state": state, "param_groups": [dict(group) for group in whole["param_groups"]]}

    def _set_memory(self, memory: Any) -> None:
        if self.optimizer is not None:
            state = {place: _cloned(slots) for place, slots in memory["state"].items()}
            self.optimizer.load_state_dict({**memory, "state": state})


class _Adopted(torch.autograd.Function):
    """Another value, through which gradients pass as through the own one."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, other: Tensor) -> Tensor:
        return other.to(own.dtype).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Seen:
    """What one pass showed: copies of the first tensor that each call was given, and of the first it returned."""

    def __init__(self, adopt: Mapping[str, Array], tensor: Callable[[Any], Tensor], drawn: Mapping[str, Array]) -> None:
        self.adopt, self.tensor, self.drawn = adopt, tensor, drawn
        self.masks: dict[str, Array] = {}
        self.drops: list[Drop] = []
        self.functions: dict[str, None] = {}
        self._modules: dict[str, nn.Module] = {}
        self.arrays: dict[str, Array] = {}
        self.begun: list[str] = []
        self.sizes: dict[str, tuple[int, ...]] = {}
        self._counts: dict[str, int] = {}
        self._open: list[str] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        self._modules = dict(model.named_modules())
        with ExitStack() as stack:
            for path, module in self._modules.items():
                before = module.register_forward_pre_hook(
                    lambda _, inputs, keywords, path=path: self._enter(path, inputs, keywords), with_kwargs=True
                )
                after = module.register_forward_hook(lambda module, _, output: self._leave(module, output))
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _enter(self, path: str, inputs: Any, keywords: Any) -> Any:
        count = self._counts[path] = self._counts.get(path, 0) + 1
        name = shared.call_name(path, count)
        self.begun.append(name)
        self._open.append(name)
        first = _first((*inputs, *keywords.values()))
        if first is None:
            return None
        if isinstance(module := self._modules[path], nn.MultiheadAttention):
            self.masks[name] = _mask(module, *inputs, **keywords)
        wanted = self.adopt.get(shared.input_of(name))
        if wanted is not None and inputs and inputs[0] is first:
            inputs = (_Adopted.apply(first, self.tensor(wanted)), *inputs[1:])
            first = inputs[0]
        self.sizes[path] = tuple(first.shape)
        self.arrays[shared.input_of(name)] = _numpy(first)
        return inputs, keywords

    def function(self, rate: float, training: bool) -> None:
        """Dropout is called as a function, perhaps by a layer of its own."""
        path = shared.path_of(self._open[-1]) if self._open else ""
        if training and rate and not isinstance(self._modules.get(path), nn.modules.dropout._DropoutNd):
            self.functions.setdefault(path or "the model")

    def _leave(self, module: nn.Module, output: Any) -> Any:
        name = self._open.pop()
        first = _first(output)
        if first is None:
            return output
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p:
            calls = (call for call in self.arrays if not call.endswith(" (input)"))
            self.drops.append(Drop(name, tuple(first.shape), module.p, tuple(calls)))
            if name in self.drawn:
                output = first = _dropped(module, first, self.tensor(self.drawn[name]))
        if name in self.adopt and output is first:
            output = first = _Adopted.apply(first, self.tensor(self.adopt[name]))
        self.arrays[name] = _numpy(first)
        return output


def _mask(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Array:
    """What queries see; a mask that hides is True, or minus infinity."""
    first = 0 if module.batch_first else 1
    count, queries, keys = (query.shape[first], query.shape[1 - first], key.shape[1 - first])
    if query.ndim == 2:
        count, queries, keys = 1, len(query), len(key)
    masks = []
    if key_padding_mask is not None:
        masks.append(_numpy(_shown(key_padding_mask)).reshape(-1, 1, 1, keys))
    if attn_mask is not None:
        masks.append(_numpy(_shown(attn_mask)).reshape(1 if attn_mask.ndim == 2 else count, -1, queries, keys))
    return shared.seen_keys(masks, count, queries, keys)


def _shown(mask: Tensor) -> Tensor:
    return ~mask if mask.dtype == torch.bool else mask > _HIDDEN


def _described(path: str, module: nn.Module, size: tuple[int, ...]) -> dict[str, Module]:
    """A module, and those that it holds as parts of one tensor."""
    kind = next((kind for kind, types in _KINDS.items() if isinstance(module, types)), "")
    prefix = path + "." * bool(path)
    own = [name for name, _ in module.named_parameters(recurse=False)]
    own += [name for name, _ in module.named_buffers(recurse=False) if name.startswith("running_")]
    tensors = {name.removeprefix("running_"): prefix + name for name in own}
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        modules = {path: Module(path, kind, {}, {"heads": module.num_heads})}
        for place, part in enumerate(("query", "key", "value")):
            roles = {
                role: f"{prefix}in_proj_{role}[{place}]" for role in ("weight", "bias") if f"in_proj_{role}" in own
            }
            modules[prefix + part] = Module(prefix + part, "dense", roles)
        return modules | _described(f"{prefix}out_proj", module.out_proj, ())  # which it does not call
    return {path: Module(path, kind, tensors, _config(module, kind, size))}


def _config(module: Any, kind: str, size: tuple[int, ...]) -> dict[str, Any]:
    """What a module's arithmetic depends on; see `parity.model.Module`."""
    found: dict[str, Any] = {}
    if kind == "conv":
        pads, space = module.padding, size[-len(module.kernel_size) :]
        geometry = zip(module.kernel_size, module.stride, module.dilation, strict=True)
        if pads == "same":
            pads = [shared.same_pads(n, *axis) for n, axis in zip(space, geometry, strict=True)] if size else []
        else:
            pads = [(n, n) for n in ([0] * len(module.kernel_size) if pads == "valid" else pads)]
        found = {"padding": pads, "stride": [*module.stride], "dilation": [*module.dilation], "groups": module.groups}
    elif kind == "conv_transpose":
        axes = zip(module.kernel_size, module.dilation, module.padding, module.output_padding, strict=True)
        reach = [((kernel - 1) * dilation, pad, more) for kernel, dilation, pad, more in axes]
        found = {"stretched": [(full - pad, full - pad + more) for full, pad, more in reach]}
        found |= {"stride": [*module.stride], "dilation": [*module.dilation]}
    elif kind.endswith("_norm"):
        found = {"epsilon": module.eps}
        if kind == "batch_norm" and module.momentum is not None:
            found["momentum"] = 1 - module.momentum
        if kind == "group_norm":
            found["groups"] = module.num_groups
    elif kind == "dropout":
        found = {"rate": module.p}
    return found


_KINDS: dict[str, Any] = {
    "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "conv_transpose": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    "dense": nn.Linear,
    "batch_norm": nn.modules.batchnorm._BatchNorm,
    "layer_norm": nn.LayerNorm,
    "group_norm": nn.GroupNorm,
    "rms_norm": nn.RMSNorm,
    "embedding": nn.Embedding,
    "dropout": nn.modules.dropout._DropoutNd,
    "attention": nn.MultiheadAttention,
}


def _parts(model: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the fused projections of attention layers taken apart; views."""
    fused = {
        f"{path}.in_proj_{role}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
        for role in ("weight", "bias")
    }
    found: dict[str, Any] = {}
    for name, values in tensors.items():
        if name in fused:
            third = len(values) // 3
            found |= {f"{name}[{place}]": values[place * third : (place + 1) * third] for place in range(3)}
        else:
            found[name] = values
    return found


def _dropped(module: nn.Module, values: Tensor, numbers: Tensor) -> Tensor:
    """What a layer leaves, by numbers from 0 to 1; layers for maps drop whole ones, by their first number."""
    if isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        numbers = numbers[(slice(None), slice(None), *[slice(0, 1)] * (values.ndim - 2))]
    rate = float(module.p)  # type: ignore[arg-type]
    return torch.where(numbers >= rate, values / (1 - rate), torch.zeros_like(values))


@contextmanager
def _without_dropout(off: bool, seen: _Seen) -> Iterator[None]:
    """Every dropout is the identity, in modules, functions and attention; what layers share is done after them."""
    plain = nn.functional.scaled_dot_product_attention

    def identity(values: Tensor, p: float = 0.5, training: bool = True, *_: Any, **__: Any) -> Tensor:
        seen.function(p, training)
        return values

    def attention(q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, *more: Any, **kw: Any) -> Any:
        seen.function(dropout_p, True)
        return plain(q, k, v, attn_mask, 0.0, *more, **kw)

    with ExitStack() as stack:
        if off:
            for name in _DROPS:
                stack.enter_context(mock.patch.object(nn.functional, name, identity))
            stack.enter_context(mock.patch.object(nn.functional, "scaled_dot_product_attention", attention))
        yield


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def _first(values: Any) -> Tensor | None:
    """The first tensor in nested outputs."""
    if isinstance(values, Tensor):
        return values
    inside = values.values() if isinstance(values, Mapping) else values
    if isinstance(inside, list | tuple) or isinstance(values, Mapping):
        return next((found for value in inside if (found := _first(value)) is not None), None)
    return None


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _cloned(slots: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in slots.items()}


def _numpy(tensor: Any) -> Array:
    """A copy: a later layer may work in place."""
    tensor = torch.as_tensor(tensor).detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().clone().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.array(tensor.numpy())
