"""Export to the formats other tools read: `python -m flax_impl.export RUN FILE`. Read next to `torch_impl/export.py`.

Every format takes normalised images float32 (N, H, W, C), of any N, and gives logits (N, classes).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export  # a module of its own: `import jax` alone does not bring it
import jax.numpy as jnp
import numpy as np

from common.arch.spec import MaxPool
from common.commands.export import run_export
from common.errors import UserError
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
from flax_impl import weights
from flax_impl.model import AlexNet, LeNet, build

FORMATS = {"stablehlo": ".stablehlo", "onnx": ".onnx"}
LAYOUT = "NHWC"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


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
    with jax.default_device(jax.devices("cpu")[0]):
        model, variables = build(source.arch), _load(source)
        content = serialize(model, variables, kind, opset)
        worst = prove(partial(logits, model, variables), reload(content, kind), source.arch.image)
    write(dest, content, note(source, kind, LAYOUT, opset if kind == "onnx" else None))
    return worst


def serialize(model: AlexNet | LeNet, variables: Any, kind: str, opset: int = OPSET) -> bytes:
    """The content of the file.

    Args:
        model: of the variables.
        variables: float32.
        kind: a key of `FORMATS`.
        opset: of ONNX.

    Raises:
        UserError: the format cannot hold the network, or its exporter is not installed.
    """
    if kind == "onnx":
        return _to_onnx(model, variables, opset)
    images = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), *model.arch.image), jnp.float32)
    with jax.default_matmul_precision("highest"):  # written into the file: a GPU would otherwise take TF32
        network = jax.jit(partial(model.apply, variables, train=False))
        return bytes(jax.export.export(network, platforms=PLATFORMS)(images).serialize())


def reload(content: bytes, kind: str) -> Predict:
    """Open a file's content with what reads this format, on the CPU; none of our code is in it."""
    if kind == "onnx":
        return run_onnx(content)
    network = jax.export.deserialize(bytearray(content))
    return lambda images: np.asarray(network.call(images))


def logits(model: AlexNet | LeNet, variables: Any, images: np.ndarray) -> np.ndarray:
    """Normalised images, float32 (N, H, W, C) -> (N, classes)."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(partial(model.apply, train=False))(variables, images))


def _load(source: Network) -> Any:
    """The variables in float32."""
    assert source.path
    with jax.enable_x64(source.param_dtype == "float64"):
        variables = weights.load_variables(source.path, source.arch, source.param_dtype)
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float32), variables)


def _to_onnx(model: AlexNet | LeNet, variables: Any, opset: int) -> bytes:
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(
            "ONNX from Flax needs jax2onnx, which pins an older orbax than training takes: "
            "`make export-flax RUN=... TO=FILE.onnx` makes it an environment of its own."
        ) from error
    if any(isinstance(after, MaxPool) and after.padding for spec in model.arch.convs for after in spec.after):
        raise UserError(f"{model.arch.name} pads before a pool, which jax2onnx leaves out: take .stablehlo.")
    with onnx_errors(opset):
        check_opset(opset)
        proto = to_onnx(
            partial(model.apply, variables, train=False),
            inputs=[("batch", *model.arch.image)],
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset=opset,
        )
        del proto.graph.value_info[:]  # optional, and jax2onnx notes some shapes behind batch norm as NHWC
        return check_onnx(proto, opset)


if __name__ == "__main__":
    run_export("flax", FORMATS, export)
