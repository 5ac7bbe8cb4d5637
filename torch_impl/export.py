"""Export to the formats other tools read: `python -m torch_impl.export RUN FILE`. Read next to `flax_impl/export.py`.

Every format takes normalised images float32 (N, C, H, W), of any N, and gives logits (N, classes).
"""

from __future__ import annotations

import io
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.commands.export import run_export
from common.weights.export import (
    INPUT,
    OPSET,
    OUTPUT,
    Predict,
    check_onnx,
    check_opset,
    note,
    onnx_errors,
    prove,
    run_onnx,
    write,
)
from common.weights.network import Network
from torch_impl import weights
from torch_impl.model import AlexNet, LeNet

FORMATS = {"pt2": ".pt2", "onnx": ".onnx", "torchscript": ".pt"}
LAYOUT = "NCHW"


def export(source: Network, dest: Path, kind: str, opset: int = OPSET) -> float:
    """Write a network to a file that, reloaded, gives the network's logits.

    Args:
        source: of the network, which is exported in evaluation and in float32.
        dest: the file; a note goes beside it.
        kind: a key of `FORMATS`.
        opset: of ONNX.

    Returns:
        The largest difference of the reloaded file's logits, as a share of the largest logit.

    Raises:
        UserError: the source cannot be read, the format cannot hold the network, or the file cannot be written.
    """
    model = _load(source).eval()
    content = serialize(model, kind, opset)
    height, width, channels = source.arch.image
    worst = prove(partial(logits, model), reload(content, kind), (channels, height, width))
    write(dest, content, note(source, kind, LAYOUT, opset if kind == "onnx" else None))
    return worst


def serialize(model: AlexNet | LeNet, kind: str, opset: int = OPSET) -> bytes:
    """The content of the file.

    Args:
        model: float32, in evaluation, on the CPU.
        kind: a key of `FORMATS`.
        opset: of ONNX.

    Raises:
        UserError: the format cannot hold the network.
    """
    height, width, channels = model.arch.image
    images = torch.zeros(2, channels, height, width)  # 2: PyTorch takes an example's size of 1 to be meant
    buffer = io.BytesIO()
    match kind:
        case "pt2":
            batch = torch.export.Dim("batch")
            torch.export.save(torch.export.export(model, (images,), dynamic_shapes=({0: batch},)), buffer)
        case "torchscript":
            with warnings.catch_warnings():
                # Deprecated, and says so; and the checks of the input's size, constants here, are not recorded.
                warnings.simplefilter("ignore", FutureWarning)
                warnings.filterwarnings("ignore", "Converting a tensor to a Python boolean")
                torch.jit.save(torch.jit.trace(model, (images,)), buffer)
        case _:
            return _to_onnx(model, images, opset)
    return buffer.getvalue()


def reload(content: bytes, kind: str) -> Predict:
    """Open a file's content with what reads this format, on the CPU; none of our code is in it."""
    match kind:
        case "pt2":
            model = torch.export.load(io.BytesIO(content)).module()
        case "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                model = torch.jit.load(io.BytesIO(content))
        case _:
            return run_onnx(content)
    return partial(logits, model)


@torch.no_grad()
def logits(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Normalised images, float32 (N, C, H, W) -> (N, classes)."""
    return model(torch.from_numpy(images)).numpy()


def _load(source: Network) -> AlexNet | LeNet:
    """The network in float32."""
    assert source.path
    return weights.load_model(source.path, source.arch).float()


def _to_onnx(model: AlexNet | LeNet, images: torch.Tensor, opset: int) -> bytes:
    with onnx_errors(opset), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        check_opset(opset)
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=opset,
            verbose=False,
        )
        assert program is not None
        return check_onnx(program.model_proto, opset)


if __name__ == "__main__":
    run_export("torch", FORMATS, export)
