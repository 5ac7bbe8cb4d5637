"""Where PyTorch computes, and in what. Read next to `flax_impl/device.py`."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.arithmetic import check_products, named, operands
from common.errors import UserError
from common.recipes.spec import Precision
from common.system import keep_freed, peak_resident_bytes


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


def memory(device: torch.device) -> float:
    """The device's, in bytes; a CPU's counts as infinite, for what is kept there is not copied."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else inf


@cache
def constant(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, made once: a GPU would be waited for each time that they are copied."""
    return torch.tensor(values, dtype=dtype, device=device)


def compute_in(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Let layers compute in a recipe's precision: autocast where parameters are kept wider, else nothing."""
    mixed = precision in ("bfloat16", "float16")
    return torch.autocast(device.type, getattr(torch, precision)) if mixed else nullcontext()


def set_precision(precision: Precision) -> None:
    """Multiply float32 numbers in float32 from now on, or in TF32 where a recipe says so, in this whole process.

    PyTorch itself takes float32 for products and TF32 for convolutions. Of its two sets of switches only the older one
    is touched: mixed with the newer, it raises.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    # Shapes hardly change, so that trying convolutions out pays; what wins may differ from run to run.
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


def be_deterministic() -> None:
    """Let this process, from before its first product on, take only algorithms that repeat their results bit for bit.

    Raises at the first step that has none.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def products(device: torch.device) -> dict[str, str]:
    """What float32 numbers are multiplied in at present, found by trying: see `common.arithmetic`."""
    rows, one, images, filters = (torch.from_numpy(array).to(device) for array in operands())
    filtered = F.conv2d(images.permute(0, 3, 1, 2), filters.permute(3, 2, 0, 1), padding=1)
    return {"dense": named(F.linear(rows, one)[:, 0].tolist()), "convolution": named(filtered[:, 0, 8, 8].tolist())}


def check_precision(precision: Precision, device: torch.device) -> dict[str, str]:
    """Try a convolution and a product in a recipe's precision, before a run begins.

    Returns:
        What float32 numbers are multiplied in: a name for each kind of product.

    Raises:
        UserError: the device does not compute in it.
    """
    set_precision(precision)
    try:
        with compute_in(precision, device):
            features = F.conv2d(torch.ones(1, 8, 4, 4, device=device), torch.ones(8, 8, 3, 3, device=device))
            F.linear(features.flatten(1), torch.ones(2, 32, device=device))
    except RuntimeError as error:
        raise UserError(f"precision is {precision}, in which {describe(device)} does not compute: {error}.") from error
    found = products(device)
    check_products(precision, found, describe(device))
    return found


def compiles(device: torch.device) -> bool:
    """Whether small functions are compiled unasked: on a GPU that PyTorch's compiler knows."""
    return (
        device.type == "cuda" and find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)
    )


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
