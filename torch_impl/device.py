"""Where PyTorch computes, and how a batch gets there. Read next to `flax_impl/device.py`."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.pipeline import Batch
from common.recipes import Precision
from common.run import peak_resident_bytes


def pick_device(name: str) -> torch.device:
    """`auto` takes the GPU if PyTorch sees one, `cpu` and `gpu` insist.

    Raises:
        UserError: a GPU is asked for and PyTorch sees none; says why that may be.
    """
    if name == "gpu" and not torch.cuda.is_available():
        built = f"it was built for CUDA {torch.version.cuda}" if torch.version.cuda else "it was built without CUDA"
        raise UserError(
            f"--device gpu: PyTorch {torch.__version__} sees no GPU ({built}; does the driver support it?)."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Images uint8 (N, H, W, C), labels int64 (N,) and draws on the device; the copies do not wait for it."""

    def move(array: object) -> Tensor:
        tensor = torch.as_tensor(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return move(batch.images), move(batch.labels).long(), {name: move(array) for name, array in batch.draws.items()}
