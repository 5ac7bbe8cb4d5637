"""What both frameworks' exports share: the note on how to feed the file, and the proof that it is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from common.arch.spec import Arch, Size
from common.data.photos import BACKGROUND
from common.errors import UserError, lookup
from common.recipes.spec import Recipe
from common.system import package_versions
from common.weights.network import Network, image_of

Predict = Callable[[np.ndarray], np.ndarray]  # images float32 (N, ...), normalised, in the file's layout -> logits

INPUT, OUTPUT = "images", "logits"
BATCHES = (1, 3)
TOLERANCE = 1e-5  # of the largest logit: float32 sums of up to 9,216 products, in another order
OPSET = 18  # of ONNX: what PyTorch's exporter writes unconverted, and jax2onnx writes too
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "jax2onnx")


def pick_format(dest: Path, name: str | None, formats: Mapping[str, str]) -> str:
    """The format that is asked for by name, or else by the suffix of the file to write.

    Args:
        dest: the file to write.
        name: the user's word, if any.
        formats: the suffix of each format.

    Raises:
        UserError: there is no such format or suffix; lists those that there are.
    """
    if name is not None:
        lookup(formats, name, "format")
        return name
    for known, suffix in formats.items():
        if dest.suffix == suffix:
            return known
    known = ", ".join(f"{suffix} ({format_})" for format_, suffix in formats.items())
    raise UserError(f"The suffix of {dest} names no format. Known: {known}; or say --format.")


def note(source: Network, kind: str, layout: str, opset: int | None) -> dict[str, Any]:
    """What a user of the file must know: input, output, preprocessing, classes, origin and versions."""
    height, width, channels = source.arch.image
    shape = {"NCHW": [channels, height, width], "NHWC": [height, width, channels]}[layout]
    return {
        "format": kind,
        "opset": opset,
        "input": {"name": INPUT, "dtype": "float32", "layout": layout, "shape": ["batch", *shape]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": ["batch", source.arch.classes]},
        "preprocess": preprocess_steps(source.known, source.arch, source.image) if source.known else None,
        "class_names": list(source.class_names) or None,
        "arch": source.arch.name,
        "source": str(source.path),
        "versions": package_versions(PACKAGES),
    }


def preprocess_steps(recipe: Recipe, arch: Arch, image: Size | None = None) -> list[dict[str, Any]]:
    """What prediction does to a picture of any size and kind, in order; `image` as of `Network`.

    The first five steps make of it what the network's data is stored as, in whole numbers of 8 bits, and change nothing
    in a picture that is stored so.
    """
    spec = recipe.preprocess
    side = spec.photo_side(arch)
    height, width, channels = image or image_of(recipe) or (side, side, arch.image[2])
    steps: list[dict[str, Any]] = [
        {"step": "orient", "by": "EXIF orientation"},
        {"step": "flatten", "background": list(BACKGROUND)},
        {"step": "convert", "mode": "RGB" if channels == 3 else "L", "dtype": "uint8"},
        {"step": "resize", "shorter_side": height, "mode": "bilinear", "antialias": True, "dtype": "uint8"},
        {"step": "center_crop", "size": [height, width]},
    ]
    if spec.crop:
        steps.append({"step": "center_crop", "size": [spec.crop, spec.crop]})
    steps.append({"step": "divide", "by": 255})
    if spec.resize:
        size = [spec.resize, spec.resize]
        steps.append({"step": "resize", "size": size, "mode": "bilinear", "half_pixel_centers": True})
        steps[-1]["antialias"] = False
    return [*steps, {"step": "normalize", "mean": list(spec.mean), "std": list(spec.std)}]


def prove(model: Predict, exported: Predict, shape: Sequence[int]) -> float:
    """Compare a reloaded export with its source on random images, at several batch sizes.

    Args:
        model: the source's logits.
        exported: the export's, reloaded.
        shape: of one image.

    Returns:
        The largest difference, as a share of the source's largest logit.

    Raises:
        UserError: it is more than `TOLERANCE`.
    """
    worst, rng = 0.0, np.random.default_rng(0)
    for batch in BATCHES:
        images = rng.standard_normal((batch, *shape), np.float32)
        worst = max(worst, difference(exported(images), model(images)))
    if not worst <= TOLERANCE:
        raise UserError(f"Not written: the export's logits differ from the model's by {worst:.2g} of their scale.")
    return worst


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the largest expected value; infinite for NaN or another shape or dtype."""
    alike = got.shape == expected.shape and got.dtype == expected.dtype
    if not alike or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(got - expected).max() / (np.abs(expected).max() or 1.0))


def write(dest: Path, content: bytes, about: Mapping[str, Any]) -> Path:
    """Write an export and, beside it, the note on how to feed it; each whole or not at all.

    Returns:
        The path of the note.

    Raises:
        UserError: a file cannot be written.
    """
    beside = dest.with_name(dest.name + ".json")
    contents = {beside: (json.dumps(about, indent=2) + "\n").encode(), dest: content}
    parts = {path: path.with_name(path.name + ".part") for path in contents}
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        for path, part in parts.items():
            part.write_bytes(contents[path])
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        for part in parts.values():
            with suppress(OSError):
                part.unlink()
        raise UserError(f"Cannot write {dest}: {error.strerror}.") from error
    return beside


@contextmanager
def onnx_errors(opset: int) -> Iterator[None]:
    """Say in one sentence why an exporter or onnxruntime refused, and keep its log off the screen.

    Raises:
        UserError: a package is missing, or anything else went wrong inside.
    """
    import logging

    logging.disable(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(
            f"ONNX needs the package {error.name}: pip install -c requirements.lock -e '.[export]'."
        ) from error
    except Exception as error:  # the exporters raise whatever their parts raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"This network cannot be written in ONNX opset {opset}: {reason[0].rstrip('.')}.") from error
    finally:
        logging.disable(logging.NOTSET)


def check_onnx(proto: Any, opset: int) -> bytes:
    """Check an ONNX model against the rules of its operator set.

    Args:
        proto: an `onnx.ModelProto`.
        opset: that was asked for.

    Returns:
        The file's content.

    Raises:
        UserError: an operator is not in this operator set as the network needs it.
    """
    import onnx

    written = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise UserError(
            f"--opset {opset} lacks operators of this network, which the exporter wrote in opset {written}. "
            f"Take {written} or leave --opset out."
        )
    # What each exporter writes is its newest; the runtimes of this operator set open files up to that of its time.
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")  # of IR 10, and full of this machine's paths
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"--opset {opset} lacks an operator: {reason}. Take {OPSET} or leave --opset out.") from error
    return proto.SerializeToString()


def check_opset(opset: int) -> None:
    """Refuse an operator set that the installed onnx does not know; onnxruntime is needed too, for the proof.

    Raises:
        UserError: says which there are.
    """
    import onnx
    import onnxruntime  # noqa: F401

    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        raise UserError(f"--opset {opset}: onnx {onnx.__version__} knows 1 to {newest}.")


def run_onnx(content: bytes) -> Predict:
    """Open an ONNX file's content with onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]
