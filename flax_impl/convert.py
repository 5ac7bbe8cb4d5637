"""PyTorch's weights as Flax variables and back: transposed, and fc6's inputs reordered, bit for bit.

numpy and .safetensors only: torch is not needed, and `torch_impl.weights` turns other formats into .safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict

from common import exchange
from common.arch import Arch, get_arch
from common.cli import guard
from common.errors import UserError
from common.run import RunFolder

_TO_FLAX = {
    ("conv", "weight"): ("params", "kernel"),
    ("norm", "weight"): ("params", "scale"),
    ("norm", "running_mean"): ("batch_stats", "mean"),
    ("norm", "running_var"): ("batch_stats", "var"),
}

_SLOTS = {"momentum_buffer": "trace", "exp_avg": "mu", "exp_avg_sq": "nu"}  # PyTorch's names: optax's


def from_torch(state_dict: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """A PyTorch state dict -> Flax variables.

    Args:
        state_dict: every tensor of the network by name, ours or torchvision's: numpy arrays or CPU tensors.
        arch: of the network.

    Returns:
        {"params": ...} and, with batch norm, "batch_stats": numpy arrays of the dtypes given.

    Raises:
        UserError: lists every missing, unknown, mis-shaped and non-finite tensor.
    """
    tensors = exchange.check(state_dict, arch, "The state dict")
    # Copies: PyTorch updates its tensors in place, and a view would follow.
    copies = {name: np.array(to_flax_layout(name, array, arch), order="C") for name, array in tensors.items()}
    return unflatten_dict({flax_path(name): array for name, array in copies.items()})


def to_torch(variables: Mapping[str, Any], arch: Arch) -> dict[str, np.ndarray]:
    """Flax variables -> a PyTorch state dict with our names; `load_state_dict` takes it after `torch.from_numpy`.

    Args:
        variables: {"params": ...} and, with batch norm, "batch_stats".
        arch: of the network.

    Raises:
        UserError: lists every missing, unknown, mis-shaped and non-finite tensor.
    """
    return exchange.check(named(variables, arch), arch, "The tree of variables")


def named(variables: Mapping[str, Any], arch: Arch) -> dict[str, np.ndarray]:
    """Any tree shaped like the variables, or its "params" alone, by our names in PyTorch's layout, unchecked.

    A leaf that the architecture does not have keeps its path as its name.
    """
    expected = {flax_path(name): name for name in exchange.shapes(arch)}
    tensors = {}
    for path, leaf in flatten_dict(dict(variables)).items():
        name = expected.get(path, "/".join(path))
        array = np.asarray(leaf)
        tensors[name] = np.array(to_torch_layout(name, array, arch), order="C") if path in expected else array
    return tensors


def optimizer_to_torch(opt_state: Any, arch: Arch) -> exchange.OptimizerState:
    """optax's state of `flax_impl.optim.build_optimizer` -> PyTorch's slots, by our names in PyTorch's layout."""
    slots: dict[str, dict[tuple[str, ...], Any]] = {}
    clocks: dict[bool, int] = {}
    for path, leaf in _leaves(opt_state):
        slot, place = _slot(path)
        if slot:
            slots.setdefault(slot, {})[("params", *place)] = leaf
        elif path[-1] == "count":
            clocks["backbone" in path] = int(leaf)
    step = clocks.get(False, 0)
    memory = {slot: named(unflatten_dict(rows), arch) for slot, rows in slots.items()}
    frozen = step - clocks.get(True, step)
    late = [place for path, _ in _leaves(opt_state) if "backbone" in path for place in [_slot(path)[1]] if place]
    names = {flax_path(name)[1:]: name for name in exchange.shapes(arch)}
    return exchange.OptimizerState(step, memory, {names[place]: frozen for place in late} if frozen else {})


def optimizer_from_torch(state: exchange.OptimizerState, opt_state: Any, arch: Arch) -> Any:
    """PyTorch's slots -> an optax state of the same structure as `opt_state`.

    Raises:
        UserError: a slot or a tensor is missing, unknown or mis-shaped, or the optimizers differ.
    """
    wanted = optimizer_to_torch(opt_state, arch)
    exchange.check_optimizer(state, wanted)
    values = {
        (slot, flax_path(name)[1:]): jnp.array(to_flax_layout(name, array, arch))
        for slot, tensors in state.slots.items()
        for name, array in tensors.items()
    }
    frozen = max(state.frozen.values(), default=0)

    def fill(path: Any, old: Any) -> Any:
        names = tuple(_key(key) for key in path)
        slot, place = _slot(names)
        if slot:
            return values[slot, place]
        behind = frozen if "backbone" in names and names[-1] == "count" else 0
        return jnp.asarray(state.step - behind, old.dtype)

    return jax.tree_util.tree_map_with_path(fill, opt_state)


def _leaves(opt_state: Any) -> list[tuple[tuple[str, ...], Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(opt_state)
    return [(tuple(_key(key) for key in path), leaf) for path, leaf in flat]


def _key(key: Any) -> str:
    return str(next(getattr(key, kind) for kind in ("name", "key", "idx") if hasattr(key, kind)))


def _slot(path: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """PyTorch's name of the slot that a leaf of optax's state belongs to, and its parameter's path; empty if none."""
    for ours, theirs in _SLOTS.items():
        if theirs in path:
            return ours, path[path.index(theirs) + 1 :]
    return "", ()


def flax_path(name: str) -> tuple[str, ...]:
    """`conv1.norm.running_var` -> ("batch_stats", "conv1", "norm", "var")."""
    *layer, part = name.split(".")
    kind = layer[-1] if layer[-1] in ("conv", "norm") else "conv"  # a dense layer's weight is a kernel too
    collection, leaf = _TO_FLAX.get((kind, part), ("params", part))
    return (collection, *layer, leaf)


def to_flax_layout(name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    """(O, I, H, W) -> (H, W, I, O); (out, in) -> (in, out), the first dense layer's inputs from C, H, W to H, W, C."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 2 and name == _first_dense(arch):
        height, width, channels = arch.feature_size
        return array.reshape(-1, channels, height, width).transpose(2, 3, 1, 0).reshape(array.shape[::-1])
    return array.T


def to_torch_layout(name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    """The inverse of `to_flax_layout`. An array of a shape that does not fit is left for the caller to refuse."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    height, width, channels = arch.feature_size
    if array.ndim == 2 and name == _first_dense(arch) and len(array) == height * width * channels:
        return array.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(array.shape[::-1])
    return array.T


def _first_dense(arch: Arch) -> str:
    return f"{next(arch.named_dense())[0]}.weight"


def save(path: Path, variables: Mapping[str, Any], arch: Arch, batches_tracked: int = 0, **about: Any) -> None:
    """Write variables in the exchange format, which `torch_impl` opens; `about` as for `exchange.write`.

    Raises:
        UserError: as `to_torch`.
    """
    exchange.write(path, to_torch(variables, arch), arch, batches_tracked, **about)


def load(path: Path | str, arch: Arch) -> dict[str, Any]:
    """Read variables of `arch` from a .safetensors file, ours or with torchvision's names.

    Raises:
        UserError: the file cannot be read, holds another network, or not exactly these tensors.
    """
    return from_torch(exchange.check(exchange.read_for(path, arch), arch, str(path)), arch)


def load_partial(
    path: Path | str, variables: dict[str, Any], arch: Arch, *, backbone: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Start from a file: a whole network, one with another last layer, or a backbone alone.

    Args:
        path: of the file.
        variables: to replace.
        arch: of the network.
        backbone: load the convolutions alone, whatever else the file holds.

    Returns:
        The variables, and the names of the layers that stayed as they were.

    Raises:
        UserError: the file cannot be read, or more is missing than the classifier.
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"Flax reads .safetensors only. Convert: python -m torch_impl.weights {path} DEST.safetensors")
    state, _ = exchange.read(path)
    loaded = exchange.check_partial(exchange.backbone(state, arch) if backbone else state, arch, str(path))
    flat = flatten_dict(variables)
    for name, array in loaded.tensors.items():
        old = flat[flax_path(name)]
        flat[flax_path(name)] = to_flax_layout(name, array, arch).astype(old.dtype)
    return unflatten_dict(flat), loaded.fresh


def load_pretrained(
    variables: dict[str, Any], arch: Arch, path: Path | None = None, *, backbone: bool = False
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Load torchvision's ImageNet weights; the last layer stays fresh for another number of classes.

    Args:
        variables: to replace.
        arch: of the network.
        path: of the .safetensors file; the one that `make weights` writes when not given.
        backbone: load the convolutions alone; the dense layers stay fresh.

    Returns:
        The variables, and the names of the layers that stayed as they were.

    Raises:
        UserError: there is no such file, or `arch` is another network.
    """
    return load_partial(pretrained_file(path), variables, arch, backbone=backbone)


def class_names(path: Path | None = None) -> tuple[str, ...]:
    """ImageNet's 1,000 classes by torchvision's names, in label order, from the file that `make weights` writes.

    Raises:
        UserError: there is no such file, or it was written before files carried names.
    """
    path = pretrained_file(path)
    metadata, _ = exchange.read_metadata(path)
    names = exchange.read_class_names(metadata, get_arch("alexnet"), str(path))
    if not names:
        raise UserError(f"{path} does not name its classes. `make weights` writes it anew (needs PyTorch, once).")
    return names


def pretrained_file(path: Path | None = None) -> Path:
    """The file that `make weights` writes, or the one named.

    Raises:
        UserError: it is not there; says how to get it.
    """
    path = path or exchange.pretrained_path()
    if not path.is_file():
        raise UserError(
            f"torchvision's pretrained AlexNet is not in {path}. `make weights` puts it there (needs PyTorch, once), "
            f"or give a file you have: --init-from FILE to start from (predict: --weights FILE)."
        )
    return path


@dataclass(frozen=True)
class _Command:
    """Write a Flax checkpoint, or a .safetensors file of ours, as .safetensors in PyTorch's layout.

    Attributes:
        source: a checkpoint inside a run folder, or a .safetensors file that one of this project's commands wrote.
        dest: the .safetensors file to write.
        names: of the tensors in it: ours, which both frameworks here open, or torchvision's.
    """

    source: Annotated[Path, tyro.conf.Positional]
    dest: Annotated[Path, tyro.conf.Positional]
    names: Literal["ours", "torchvision"] = "ours"


def main() -> None:
    """`python -m flax_impl.convert SOURCE DEST.safetensors`.

    Raises:
        UserError: the source cannot be read, or has no counterpart in torchvision; then nothing is written.
    """
    from flax_impl.checkpoint import load_variables

    command = tyro.cli(_Command, prog="python -m flax_impl.convert")
    exchange.check_destination(command.dest)
    if command.source.suffix in (".pth", ".pt"):
        raise UserError(f"{command.source} is PyTorch's: python -m torch_impl.weights {command.source} {command.dest}")
    if command.source.suffix == ".safetensors":
        given, metadata = exchange.read(command.source)
        arch = exchange.read_arch(metadata, str(command.source))
        tensors = exchange.check(given, arch, str(command.source))
        names = exchange.read_class_names(metadata, arch, str(command.source))
        preprocess = exchange.read_preprocess(metadata, str(command.source))
    else:
        run = RunFolder.open(command.source)
        arch, names, preprocess = run.arch, tuple(run.class_names), None  # a run's needs its data's size too
        tensors = to_torch(load_variables(command.source, arch, run.recipe.param_dtype), arch)
    if command.names == "torchvision":
        tensors = {exchange.to_torchvision(name): array for name, array in tensors.items()}
    exchange.write(command.dest, tensors, arch, class_names=names, preprocess=preprocess)
    print(f"{command.dest}: {len(tensors)} tensors of {arch.name}, {arch.classes} classes")


if __name__ == "__main__":
    guard(main)
