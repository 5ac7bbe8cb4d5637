"""CUDA's rules on a CPU: some tensors count as on a GPU, and what a GPU would refuse, or wait for, is refused.

A tensor counts as on the GPU if it was made or put on `GPU`, or computed from one that is. Such tensors give no numpy
array by themselves, mix with none of the host but single numbers, and inside a step (`step`) are neither read back nor
made from numbers of the host. They compute as ever, so whole runs and comparisons can be taken through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cpu", 0)  # not equal to torch.device("cpu")
HOST = torch.device("cpu")

Function = TypeVar("Function", bound=Callable[..., Any])

_ARRAYS: set[Any] = {Tensor.numpy, Tensor.__array__}
_READS: set[Any] = {
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.nonzero, torch.nonzero, Tensor.__bool__),
    *(Tensor.__float__, Tensor.__int__, Tensor.__index__, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose),
    *(torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique),  # whose sizes the host must know
}
_FROM_HOST: set[Any] = {torch.tensor, torch.as_tensor, torch.from_numpy}
_CROSSES = {Tensor.copy_, Tensor.to, Tensor.cpu, Tensor.data.__set__, torch._has_compatible_shallow_copy_type}  # type: ignore[attr-defined]


class Refused(RuntimeError):
    """What a GPU would not do, or would be waited for."""


class CudaRules(TorchFunctionMode):
    """Enter it, and use `GPU` as the device."""

    def __init__(self) -> None:
        super().__init__()
        self.in_step = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if function == Tensor.device.__get__:
            return GPU if _there(tensors[0]) else HOST
        there = any(_there(tensor) for tensor in tensors)
        if there:
            self._check(function, args, kwargs)
        if self.in_step and function in _FROM_HOST and kwargs.get("device") == GPU:
            raise Refused(f"a constant is made on the GPU in a step: {args[0]}")
        target = self._target(function, args, kwargs)
        if (there and target == HOST) or (function is Tensor.to and target == GPU and not there):
            args = (_copied(args[0]), *args[1:])  # on a CPU it would be the same tensor
        result = function(*args, **kwargs)
        if target == GPU or (there and target is None):
            for tensor in tree_leaves(args[0] if function == Tensor.data.__set__ else result):  # type: ignore[attr-defined]
                if isinstance(tensor, Tensor):
                    tensor.on_gpu = True  # type: ignore[attr-defined]
        return result

    def _check(self, function: Any, args: Any, kwargs: Any) -> None:
        name = getattr(function, "__name__", str(function))
        if function in _ARRAYS and not (kwargs.get("force") or args[1:2] == (True,)):
            raise Refused(f"{name}: a tensor on the GPU becomes no numpy array")
        if self.in_step and (function in _READS or self._target(function, args, kwargs) == HOST):
            raise Refused(f"{name}: a number is read back in a step")
        if function in _CROSSES:
            return
        for argument in (*args, *kwargs.values()):
            tensors = [leaf for leaf in tree_leaves(argument) if isinstance(leaf, Tensor)]
            here = [tensor for tensor in tensors if not _there(tensor)]
            alone = isinstance(argument, Tensor)  # and not in a list, of which even single numbers must be there
            if (alone and here and here[0].dim()) or 0 < len(here) < len(tensors):
                raise Refused(f"{name}: tensors are not on the same device")

    @staticmethod
    def _target(function: Any, args: Any, kwargs: Any) -> torch.device | None:
        """The device that a call names; None: none."""
        if function in (Tensor.cpu, Tensor.numpy):
            return HOST
        named = [*args[1:], kwargs.get("device")] if function is Tensor.to else [kwargs.get("device")]
        for place in named:
            if isinstance(place, Tensor):
                return place.device
            if isinstance(place, torch.device | str) and str(place).startswith("cpu"):
                return torch.device(place)
        return None


def _there(tensor: Tensor) -> bool:
    return getattr(tensor, "on_gpu", False)


def _copied(tensor: Tensor) -> Tensor:
    """A copy, which knows nothing of the GPU."""
    with torch._C.DisableTorchFunction():
        return tensor.clone()


@contextmanager
def cuda_rules() -> Iterator[CudaRules]:
    """Hold everything in the block to CUDA's rules."""
    name = "_group_tensors_by_device_and_dtype"
    group: Any = getattr(clip_grad, name)

    def grouped(lists: Any, *args: Any, **options: Any) -> Any:
        """By the devices that the tensors count as: clipping moves its factor to the device of each group."""
        groups = group(lists, *args, **options)
        return {(tensors[0][0].device, dtype): (tensors, rest) for (_, dtype), (tensors, rest) in groups.items()}

    with mock.patch.object(clip_grad, name, grouped), CudaRules() as rules:
        yield rules


def step(rules: CudaRules, function: Function) -> Function:
    """The same function, in which nothing is read back; from its second call on no constant is made, either."""
    calls = 0

    @wraps(function)
    def strict(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls, rules.in_step = calls + 1, calls > 0
        try:
            return function(*args, **kwargs)
        finally:
            rules.in_step = False

    return strict  # type: ignore[return-value]
