"""Planted faults: each must be caught, with the right phase and tensor. `python -m parity_tests.mutants` runs them.

A check that cannot fail proves nothing. Every mutant changes one framework's side without editing a file, by patching a
name while the pair is built and trained for a few steps; the comparer must then raise a `Mismatch` at the place where
the fault first shows. What both sides share is the second part, in `parity_tests/shared_faults.py`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F
import tyro

import flax_impl.layers
import flax_impl.model
import flax_impl.optim
import flax_impl.state
import flax_impl.train
import torch_impl.dropout
import torch_impl.model
import torch_impl.optim
import torch_impl.state
import torch_impl.train
from common.arch.spec import Arch, MaxPool
from common.commands.shell import guard
from common.data.pipeline import steps_per_epoch
from common.errors import UserError
from common.recipes.spec import Optimizer, Schedule
from common.system import package_versions
from flax_impl import convert
from parity.compare import Bounds, Difference, Mismatch, compare_run
from parity_tests import results, shared_faults
from parity_tests.material import first_batches
from parity_tests.results import RESULTS
from parity_tests.shared_faults import SharedFault
from parity_tests.sides import make_pair
from parity_tests.subjects import Subject, subjects
from torch_impl.device import describe, pick_device

STEPS = 5
BOUNDS = Bounds(1e-10)
Patch = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        name: what is wrong.
        row: of the table of causes in the design, which it stands for.
        patch: plants it.
        phase, tensor: where the comparer must find it first; the tensor as a regular expression.
        subject: a key of `subjects()`.
        step: at which it must be found.
    """

    name: str
    row: str
    patch: Patch
    phase: str
    tensor: str
    subject: str = "plain"
    step: int = 0


def run(mutant: Mutant, subject: Subject) -> Difference | None:
    """Train the pair with the fault planted; the difference that was found, or None if it survived."""
    try:
        with mutant.patch():
            train(subject)
    except Mismatch as mismatch:
        return mismatch.difference
    return None


def train(subject: Subject) -> None:
    """Compare a subject's pair for a few steps, over the end of an epoch.

    Raises:
        Mismatch: they differ.
    """
    recipe, data = subject.recipe, subject.data
    left, right = make_pair(recipe, subject.arch, steps_per_epoch(data, recipe), subject.edit)
    ours, theirs = (first_batches(data, recipe, STEPS) for _ in range(2))
    compare_run(left, right, ours, theirs, BOUNDS)


def caught(mutant: Mutant, difference: Difference | None) -> bool:
    """Whether the fault was found where it is."""
    return (
        difference is not None
        and (difference.step, difference.phase) == (mutant.step, mutant.phase)
        and re.fullmatch(mutant.tensor, difference.tensor) is not None
    )


# How faults are planted. `wrap` patches a name with a function that gets the original first.


def wrap(target: Any, name: str, fault: Callable[..., Any]) -> Patch:
    """A patch that puts `fault(original, *args, **kwargs)` in the place of `target.name`."""
    original = getattr(target, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return fault(original, *args, **kwargs)

    return lambda: mock.patch.object(target, name, replacement)


def spec_of_flax(**changes: Any) -> Patch:
    """Flax preprocesses by a recipe with other fields."""
    return wrap(flax_impl.train, "preprocess", lambda f, x, d, spec, t: f(x, d, replace(spec, **changes), t))


def draws_of_torch(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Patch:
    """PyTorch preprocesses with draws changed after they arrived on the device."""

    def fault(f: Any, x: Any, draws: dict[str, torch.Tensor], *rest: Any) -> Any:
        return f(x, draws | {name: change(draws[name]) for name, change in changes.items()}, *rest)

    return wrap(torch_impl.state, "preprocess", fault)


def optimizer_of_torch(**changes: Any) -> Patch:
    """PyTorch builds its optimizer from other fields."""
    return wrap(torch_impl.state, "build_optimizer", lambda f, spec, *rest: f(replace(spec, **changes), *rest))


def layer_of_flax(kind: str, **changes: Any) -> Patch:
    """A layer of Flax's made with other arguments."""
    return wrap(flax_impl.model, kind, lambda f, *args, **kwargs: f(*args, **{**kwargs, **changes}))


def rounded(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """Round mantissas to this many bits, as reduced-precision units do to their inputs."""
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp(torch.round(mantissa * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent).to(tensor.dtype)


class EvenPool(torch.nn.Module):
    """A max pool whose gradient is shared by all that tie."""

    def __init__(self, pool: MaxPool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = x.unfold(2, self.pool.size, self.pool.stride).unfold(3, self.pool.size, self.pool.stride)
        return windows.flatten(4).amax(4)


def _after_with(make: Callable[[MaxPool], torch.nn.Module]) -> Patch:
    return wrap(torch_impl.model, "_after", lambda f, step: make(step) if isinstance(step, MaxPool) else f(step))


def _lrn_alpha(f: Any, step: Any) -> Any:
    layer = f(step)
    if isinstance(layer, torch.nn.LocalResponseNorm):
        layer.alpha /= layer.size
    return layer


def _plain_fc6(f: Any, name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    return array.T if name == "fc6.weight" else f(name, array, arch)


def _untransposed_fc7(f: Any, name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    return array if name == "fc7.weight" else f(name, array, arch)


def _swapped_kernel(f: Any, name: str, array: np.ndarray, arch: Arch) -> np.ndarray:
    return f(name, array, arch).swapaxes(0, 1) if name == "conv3.conv.weight" else f(name, array, arch)


def _averaged_bins(f: Any, x: jax.Array, bins: int) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], bins, bins, x.shape[3]), "linear")


@contextmanager
def _linen_batch_norm() -> Iterator[None]:
    def plain(**kwargs: Any) -> nn.BatchNorm:
        return nn.BatchNorm(**kwargs, use_fast_variance=False)

    with mock.patch.object(flax_impl.model, "BatchNorm", plain):
        yield


def _batch_norm_with(**changes: Any) -> Patch:
    return wrap(flax_impl.model, "BatchNorm", lambda f, **kwargs: f(**{**kwargs, **changes}))


def _batch_norm_momentum(f: Any, **kwargs: Any) -> Any:
    return f(**{**kwargs, "momentum": 1 - kwargs["momentum"]})


def _decay_last(f: Any, spec: Optimizer, rate: Any, *rest: Any) -> Any:
    return optax.chain(
        optax.sgd(1.0, spec.momentum), optax.add_decayed_weights(-spec.weight_decay), optax.scale_by_schedule(rate)
    )


def _default_adamw(f: Any, spec: Optimizer, rate: Any, *rest: Any) -> Any:
    return optax.adamw(rate, spec.beta1, spec.beta2, spec.eps)


def _eps_in_root(f: Any, spec: Optimizer, rate: Any, *rest: Any) -> Any:
    return optax.adamw(rate, spec.beta1, spec.beta2, 0.0, eps_root=spec.eps**2, weight_decay=spec.weight_decay)


def _no_bias_correction(f: Any, spec: Optimizer, rate: Any, *rest: Any) -> Any:
    def update(updates: Any, state: Any, params: Any = None) -> Any:
        mu = jax.tree.map(lambda g, m: 0.1 * g + 0.9 * m, updates, state.mu)
        nu = jax.tree.map(lambda g, v: 0.001 * g * g + 0.999 * v, updates, state.nu)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + spec.eps), mu, nu)
        return updates, optax.ScaleByAdamState(state.count + 1, mu, nu)

    plain = optax.GradientTransformation(optax.scale_by_adam().init, update)
    return optax.chain(plain, optax.scale_by_learning_rate(rate))


def _late_rate(f: Any, *args: Any) -> Any:
    rate = f(*args)
    return lambda count: rate(count + 1)


def _rate_per_step(f: Any, optimizer: Any, spec: Schedule, steps: int, epochs: int) -> Any:
    return f(optimizer, spec, 1, epochs)


def _smoothed(f: Any, *tensors: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return f(*tensors, **{**keywords, "label_smoothing": 0.1})


def _over_full_batch(f: Any, logits: torch.Tensor, *rest: torch.Tensor, **keywords: Any) -> torch.Tensor:
    return f(logits, *rest, **keywords) * len(logits) / 8


def _weighed_alike(f: Any, state: Any, x: torch.Tensor, targets: torch.Tensor, count: int) -> Any:
    loss, logits = f(state, x, targets, count)
    return loss * count / (len(logits) * -(-count // state.recipe.micro_batch)), logits


def _other_neighbour(f: Any, x: torch.Tensor, draws: Any, partner: torch.Tensor) -> torch.Tensor:
    return f(x, draws, partner.roll(-2))


def _in_float32(f: Any, self: Any, x: jax.Array) -> jax.Array:
    return f(self, x.astype(jnp.float32)).astype(x.dtype)


def _noise(f: Any, *args: Any) -> Any:
    state = f(*args)
    generator = torch.Generator().manual_seed(0)
    for parameter in state.model.parameters():
        parameter.register_hook(lambda g: g * (1 + 1e-7 * torch.randn(g.shape, generator=generator, dtype=g.dtype)))
    return state


def _poisoned(f: Any, parameters: Any, norm: float) -> None:
    first = next(iter(parameters)).grad
    first[(0,) * first.ndim] = float("nan")


def _one_more(f: Any, self: Any, step: int) -> None:
    f(self, step + 1)


def _unpermuted(f: Any, model: Any, size: Any, *args: Any, **options: Any) -> Any:
    key = f(model, size, *args, **options)
    model.drop6.size = None
    return key


def _other_path(f: Any, key: Any, path: tuple[str, ...], count: int = 1) -> Any:
    return f(key, (*path, "mask"), count)


MUTANTS: tuple[Mutant, ...] = (
    Mutant("fc6 transposed but not reordered", "flatten order", wrap(convert, "to_flax_layout", _plain_fc6), "activation", "fc6"),
    Mutant("fc6's dropout mask not permuted", "flatten order", wrap(torch_impl.state, "share_dropout", _unpermuted), "activation", "drop6"),
    Mutant("square fc7 not transposed", "converter", wrap(convert, "to_flax_layout", _untransposed_fc7), "activation", "fc7"),
    Mutant("a kernel's height and width swapped", "converter", wrap(convert, "to_flax_layout", _swapped_kernel), "activation", r"conv3\.conv"),
    Mutant("TF32 in PyTorch's convolutions", "TF32", wrap(torch.nn.Conv2d, "_conv_forward", lambda f, self, x, w, b: f(self, rounded(x, 10), rounded(w, 10), b)), "activation", r"conv1\.conv"),
    Mutant("TF32 in PyTorch's dense layers", "TF32", wrap(torch.nn.Linear, "forward", lambda f, self, x: F.linear(rounded(x, 10), rounded(self.weight, 10), self.bias)), "activation", "fc6"),
    Mutant("bfloat16 in Flax's first convolution", "TF32", layer_of_flax("Conv", dtype=jnp.bfloat16), "activation", r"conv1\.conv"),
    Mutant('"SAME" padding of a strided convolution', "SAME", layer_of_flax("Conv", padding="SAME"), "activation", r"conv1\.conv"),
    Mutant("a pool that rounds its size up", "max pool", _after_with(lambda p: torch.nn.MaxPool2d(p.size, p.stride, p.padding, ceil_mode=True)), "activation", "conv1|drop6|conv2", "lrn"),
    Mutant("a pool's gradient shared by ties", "max pool", _after_with(EvenPool), "gradient", r"conv5\.conv\.weight", "ties"),
    Mutant("an average pool for a max pool", "max pool", _after_with(lambda p: torch.nn.AvgPool2d(p.size, p.stride)), "activation", "conv1"),
    Mutant("antialiased resize", "resize", wrap(F, "interpolate", lambda f, *args, **kwargs: f(*args, **{**kwargs, "antialias": True})), "input", "images", "shrink"),
    Mutant("resize with aligned corners", "resize", wrap(F, "interpolate", lambda f, *args, **kwargs: f(*args, **{**kwargs, "align_corners": True})), "input", "images", "shrink"),
    Mutant("local response norm's alpha divided twice", "local response norm", wrap(torch_impl.model, "_after", _lrn_alpha), "activation", "conv1", "lrn"),
    Mutant("local response norm's k of 2", "local response norm", wrap(flax_impl.model, "local_response_norm", lambda f, x, spec: f(x, replace(spec, k=2.0))), "activation", "conv1", "lrn"),
    Mutant("batch norm's momentum turned round", "batch norm", wrap(flax_impl.model, "BatchNorm", _batch_norm_momentum), "statistic", r"conv1\.norm\.running_mean", "batch norm"),
    Mutant("batch norm's biased running variance", "batch norm", _linen_batch_norm, "statistic", r"conv1\.norm\.running_var", "batch norm"),
    Mutant("batch norm's eps of 1e-3", "batch norm", _batch_norm_with(epsilon=1e-3), "activation", r"conv1\.norm", "batch norm"),
    Mutant("weight decay after the momentum", "weight decay", wrap(flax_impl.state, "build_optimizer", _decay_last), "optimizer", r"momentum_buffer/.*"),
    Mutant("no weight decay", "weight decay", optimizer_of_torch(weight_decay=0.0), "optimizer", r"momentum_buffer/.*"),
    Mutant("decoupled decay in Adam", "weight decay", optimizer_of_torch(name="adamw"), "optimizer", r"exp_avg/.*", "adam"),
    Mutant("optax's default decay in AdamW", "weight decay", wrap(flax_impl.state, "build_optimizer", _default_adamw), "parameter", r".*weight", "adamw"),
    Mutant("Adam's eps of 1e-7", "Adam", optimizer_of_torch(eps=1e-7), "parameter", ".*", "adamw"),
    Mutant("Adam's eps inside the root", "Adam", wrap(flax_impl.state, "build_optimizer", _eps_in_root), "parameter", ".*", "adamw"),
    Mutant("Adam without bias correction", "Adam", wrap(flax_impl.state, "build_optimizer", _no_bias_correction), "parameter", ".*", "adamw"),
    Mutant("momentum of 0.8", "SGD", optimizer_of_torch(momentum=0.8), "optimizer", r"momentum_buffer/.*", step=1),
    Mutant("plain momentum for Nesterov's", "SGD", optimizer_of_torch(nesterov=False), "parameter", ".*", "nesterov"),
    Mutant("optax's own clipping", "gradient clip", wrap(flax_impl.optim, "clip_gradients", lambda f, norm: optax.clip_by_global_norm(norm)), "optimizer", r"momentum_buffer/.*", "clip"),
    Mutant("the next step's learning rate", "schedule", wrap(flax_impl.state, "build_schedule", _late_rate), "parameter", ".*", step=3),
    Mutant("milestones counted in steps", "schedule", wrap(torch_impl.state, "build_schedule", _rate_per_step), "parameter", ".*", step=1),
    Mutant("label smoothing on one side", "loss", wrap(F, "cross_entropy", _smoothed), "loss", "loss"),
    Mutant("a small batch's sum over the full batch's size", "mean of means", wrap(F, "cross_entropy", _over_full_batch), "loss", "loss", step=3),
    Mutant("a dense layer in float32", "dtype", wrap(nn.Dense, "__call__", _in_float32), "activation", "fc6"),
    Mutant("an adaptive pool that interpolates", "adaptive pool", wrap(flax_impl.model, "adaptive_avg_pool", _averaged_bins), "activation", "drop6", "odd"),
    Mutant("noise in a gradient", "nondeterminism", wrap(torch_impl.state, "init_state", _noise), "gradient", r"fc8\.bias"),
    Mutant("NaN in a gradient after the backward pass", "nondeterminism", wrap(torch_impl.train, "clip_gradients", _poisoned), "optimizer", r"momentum_buffer/conv1\.conv\.weight"),
    Mutant("dropout keys a step ahead", "draws", wrap(torch_impl.dropout.StepKey, "at", _one_more), "activation", "drop6"),
    Mutant("dropout keys of another path", "draws", wrap(torch_impl.dropout, "module_key", _other_path), "activation", "drop6"),
    Mutant("another dropout rate", "draws", wrap(nn, "Dropout", lambda f, rate: f(0.4 if rate else 0.0)), "activation", "drop6"),
    Mutant("flips the other way", "draws", draws_of_torch(flip=torch.logical_not), "input", "images"),
    Mutant("crops off by one row", "draws", draws_of_torch(crop=lambda places: (places - 1).clamp(min=0)), "input", "images"),
    Mutant("colour noise with the other sign", "draws", draws_of_torch(pca=torch.neg), "input", "images"),
    Mutant("a micro-batch with the first rows' masks", "accumulation", wrap(torch_impl.dropout, "below", lambda f, key, bound, mask, first, wide: f(key, bound, mask, 0, wide)), "activation", "drop6", "everything"),
    Mutant("micro-batches of a ragged batch weighed alike", "mean of means", wrap(torch_impl.train, "backward", _weighed_alike), "loss", "loss", "everything", step=3),
    Mutant("mixed with the other neighbour", "mixing", wrap(torch_impl.train, "mix", _other_neighbour), "input", "images", "everything"),
    Mutant("pixels mixed, labels not", "mixing", wrap(torch_impl.train, "soft_targets", lambda f, labels, draws, partner, *rest: f(labels, draws, None, *rest)), "loss", "loss", "everything"),
    Mutant("a cosine over one epoch more", "schedule", wrap(flax_impl.state, "build_schedule", lambda f, spec, base, steps, epochs: f(spec, base, steps, epochs + 1)), "parameter", ".*", "everything", step=3),
    Mutant("biases decay on one side", "weight decay", optimizer_of_torch(decay_biases=False), "optimizer", r"momentum_buffer/.*bias", step=1),
    Mutant("contrast before brightness", "jitter", draws_of_torch(jitter=lambda factors: factors[:, [1, 0, 2]]), "input", "images", "everything"),
    Mutant("another standard deviation", "preprocess", spec_of_flax(std=(0.247, 0.243, 0.262)), "input", "images"),
)  # fmt: skip


COLUMNS = {
    "fault": "fault",
    "stands_for": "stands for",
    "found_at": "found at",
    "cause": "likely cause, as reported",
    "caught": "caught",
}
PARTS = {"frameworks": "in one framework, found by the comparer", "shared": "in what both share, found by a test"}


@dataclass(frozen=True)
class Options:
    """Plant every fault, print where it is found, and file the table.

    Attributes:
        words: only the faults whose names hold these words, and nothing filed.
        part: those of one framework, which the comparer finds; those of what both share, which tests find; or all.
        out: where the table goes as mutants-cpu.json; a part that is not run stays there as it is.
    """

    words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    part: Literal["all", "frameworks", "shared"] = "all"
    out: Path = RESULTS


def plant(chosen: Sequence[Mutant]) -> list[dict[str, str]]:
    """Run mutants, with a progress bar; a row each, with the keys of `COLUMNS`."""
    rows = []
    with jax.enable_x64(True):
        known = subjects()
        for mutant in _tracked(chosen, len(chosen)):
            found = run(mutant, known[mutant.subject])
            place = f"step {found.step}, {found.phase}, {found.tensor}" if found else "nowhere"
            rows.append(_row(mutant, place, found.cause if found else "", caught(mutant, found)))
    return rows


def plant_shared(chosen: Sequence[SharedFault]) -> list[dict[str, str]]:
    """Run faults in what both frameworks share; a row each, with the keys of `COLUMNS`."""
    rows = []
    for fault, said in _tracked(shared_faults.run(chosen), len(chosen)):
        words = re.sub(" at 0x[0-9a-f]+", "", " ".join(" ".join((said or "").split("\n")[:4]).split()))[:200]
        rows.append(_row(fault, fault.test if said else "nowhere", words, shared_faults.caught(fault, said)))
    return rows


Item = TypeVar("Item")
Fault = TypeVar("Fault", Mutant, SharedFault)


def _tracked(items: Iterable[Item], total: int) -> Iterable[Item]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, "Planting", total, console=console, transient=True, disable=not console.is_terminal)


def _row(fault: Mutant | SharedFault, place: str, cause: str, found: bool) -> dict[str, str]:
    return dict(zip(COLUMNS, (fault.name, fault.row, place, cause, "yes" if found else "NO"), strict=True))


def _choose(faults: Sequence[Fault], options: Options, part: str) -> list[Fault]:
    """Those of a part that the command asks for."""
    words = " ".join(options.words).lower()
    return [fault for fault in faults if options.part in ("all", part) and words in fault.name.lower()]


def _file(path: Path, rows: Mapping[str, list[dict[str, str]]]) -> None:
    """Write the parts that were run: `frameworks` at the top, as the pages read it, the other under its name."""
    filed = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for part, found in rows.items():
        about = {"device": describe(pick_device("cpu")), "versions": package_versions(), "rows": found}
        filed |= about if part == "frameworks" else {part: about}
    path.parent.mkdir(parents=True, exist_ok=True)
    results.file(path, filed)


def main() -> None:
    """Run the mutants, print the table and file it; exit 1 if one survives.

    Raises:
        UserError: no mutant has such a name.
    """
    from rich.console import Console
    from rich.table import Table

    options = tyro.cli(Options, prog="python -m parity_tests.mutants")
    ours, shared = _choose(MUTANTS, options, "frameworks"), _choose(shared_faults.FAULTS, options, "shared")
    if not (ours or shared):
        known = [mutant.name for mutant in MUTANTS] + [fault.name for fault in shared_faults.FAULTS]
        names = "\n  ".join(known)
        raise UserError(f"No fault has {' '.join(options.words)!r} in its name. There are:\n  {names}")
    rows = {"frameworks": plant(ours), "shared": plant_shared(shared) if shared else []}
    survivors = 0
    for part, found in rows.items():
        if found:
            table = Table(*COLUMNS.values(), title=f"Planted faults: {PARTS[part]}")
            for row in found:
                table.add_row(*row.values())
            lost = sum(row["caught"] != "yes" for row in found)
            survivors += lost
            Console(width=160).print(table, f"{len(found) - lost} of {len(found)} faults caught where they are")
    if not options.words:
        _file(options.out / "mutants-cpu.json", {part: found for part, found in rows.items() if found})
    sys.exit(survivors > 0)


if __name__ == "__main__":
    guard(main)
