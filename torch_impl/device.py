"""Where PyTorch computes, and how a batch gets there. Read next to `flax_impl/device.py`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import inf

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.datasets import Dataset
from common.errors import UserError
from common.memory import keep_freed
from common.pipeline import Batch, one_ahead
from common.recipes import Precision
from common.run import peak_resident_bytes

Inputs = tuple[Tensor, Tensor, dict[str, Tensor]]

RESIDENT_SHARE = 0.25  # of a device's memory that a dataset may take for good


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU if PyTorch sees one, `cpu` and `gpu` insist. On the CPU, memory is kept: `keep_freed`.

    Raises:
        UserError: a GPU is asked for and PyTorch sees none; says why that may be.
    """
    if name == "gpu" and not torch.cuda.is_available():
        built = f"it was built for CUDA {torch.version.cuda}" if torch.version.cuda else "it was built without CUDA"
        raise UserError(
            f"--device gpu: PyTorch {torch.__version__} sees no GPU ({built}; does the driver support it?)."
        )
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    keep_freed()
    return torch.device("cpu")


def compute_in(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Let layers compute in a recipe's precision: autocast where parameters are kept wider, else nothing."""
    mixed = precision in ("bfloat16", "float16")
    return torch.autocast(device.type, getattr(torch, precision)) if mixed else nullcontext()


def check_precision(precision: Precision, device: torch.device) -> None:
    """Try a convolution and a product in a recipe's precision, before a run begins.

    Raises:
        UserError: the device does not compute in it.
    """
    try:
        with compute_in(precision, device):
            features = F.conv2d(torch.ones(1, 8, 4, 4, device=device), torch.ones(8, 8, 3, 3, device=device))
            F.linear(features.flatten(1), torch.ones(2, 32, device=device))
    except RuntimeError as error:
        raise UserError(f"precision is {precision}, in which {describe(device)} does not compute: {error}.") from error


def check_compiler(device: torch.device) -> None:
    """Let `torch.compile` compile a product, before a run begins.

    Raises:
        UserError: it cannot; says what it needs.
    """
    try:
        torch.compile(torch.mul)(torch.ones(2, device=device), 2)
    except (torch._dynamo.exc.BackendCompilerFailed, torch._dynamo.exc.Unsupported, RuntimeError) as error:
        needs = "a GPU of compute capability 7.0 with triton" if device.type == "cuda" else "a C++ compiler (g++)"
        what = str(error).strip().splitlines()[0]
        raise UserError(f"--compile: PyTorch cannot compile here; it needs {needs}. It says: {what}") from error


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def peak_memory(device: torch.device) -> int:
    """The most bytes that tensors held on a GPU so far, or this process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_bytes()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory is full; of CPU memory PyTorch has no class of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def to_device(batch: Batch, device: torch.device) -> Inputs:
    """Images uint8 (N, H, W, C), labels int64 (N,) and draws on the device; the copies do not wait for it."""
    return _move(batch.images, device), _move(batch.labels, device).long(), _move_all(batch.draws, device)


class Feed:
    """Takes the pipeline's batches to the device, one ahead of the step that computes.

    Examples that are in memory and take up to `RESIDENT_SHARE` of the device's are kept there as uint8, so that only
    their indices and draws travel. Others are copied batch by batch, beside the computation.

    Args:
        data: that the batches are of.
        device: where they go.
    """

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.device, arrays = device, data.arrays
        self.kept: tuple[Tensor, Tensor] | None = None
        if arrays and arrays.images.nbytes <= RESIDENT_SHARE * _memory(device):
            self.kept = _move(arrays.images, device), _move(arrays.labels, device).long()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, source: Iterable[Batch]) -> Iterator[tuple[Batch, Inputs]]:
        """Each batch with its inputs on the device: images uint8 (N, H, W, C), labels int64 (N,) and draws."""
        return one_ahead((batch, self._put(batch)) for batch in source)

    def _put(self, batch: Batch) -> Inputs:
        if not self.stream:
            return self._take(batch)
        with torch.cuda.stream(self.stream):
            images, labels, draws = self._take(batch)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self.stream)
        for tensor in (images, labels, *draws.values()):
            tensor.record_stream(now)  # else its memory could be given to the next batch before the step has read it
        return images, labels, draws

    def _take(self, batch: Batch) -> Inputs:
        if not self.kept:
            return to_device(batch, self.device)
        ids = _move(batch.ids, self.device)
        images, labels = self.kept
        return images[ids], labels[ids], _move_all(batch.draws, self.device)


def _move(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.as_tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _move_all(draws: dict[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    return {name: _move(array, device) for name, array in draws.items()}


def _memory(device: torch.device) -> float:
    """The device's, in bytes; on the CPU nothing is copied, so there is no limit."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else inf
