"""What XLA makes of Flax's programs for a GPU that is not there: compiled for an H100, and read instead of run.

`python -m parity_tests.programs` files their figures as benchmarks/results/programs-h100.json. It needs JAX's CUDA
plugin and no device. The autotuner, which measures, is off: on a device it may choose other kernels for a single
product or convolution; the passes between them stay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from common.arch.spec import Arch
from common.arch.zoo import ARCHS, get_arch
from common.commands.shell import guard
from common.data.augment import central, draw
from common.data.batch import NO_FACTS
from common.data.spec import DATASETS
from common.errors import UserError
from common.recipes.spec import Precision, Recipe
from common.recipes.zoo import RECIPES
from common.system import package_versions
from flax_impl.device import set_precision
from flax_impl.evaluate import eval_step
from flax_impl.feed import Inputs
from flax_impl.preprocess import preprocess
from flax_impl.state import TrainState, init_state
from flax_impl.train import train_step
from parity_tests import results
from parity_tests.hlo import Program
from parity_tests.results import RESULTS

FILE = "programs-h100"
PLUGINS = {"jax_cuda13_plugin": "jax_plugins.xla_cuda13", "jax_cuda12_plugin": "jax_plugins.xla_cuda12"}
CASES: tuple[tuple[str, Precision, int], ...] = (
    *((name, "float32", 128) for name in ARCHS),
    ("alexnet", "bfloat16", 1024),
)
TRAINED_BY = {  # the recipe that an architecture is compiled in; the others in that of ImageNet
    "alexnet_2012": "imagenet_2012",
    "alexnet_fashion": "fashion_mnist",
    "alexnet_cifar": "cifar10",
    "lenet": "fashion_mnist_lenet",
}
# XLA's GpuTargetConfigProto of an H100 SXM. From NVIDIA's data sheet, and from the CUDA programming guide's tables of
# compute capability 9.0: 132 multiprocessors of 128 float32 units, 1.98 GHz, 80 GB at 3.35 TB/s, 50 MB of L2 cache.
H100 = """
platform_name: "CUDA"
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 SXM"
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 80000000000
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  device_address_bits: 64
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  dnn_version: "9.19.0"
}
"""


@dataclass(frozen=True)
class Case:
    """What is compiled: a recipe on its architecture, and what its steps are given, in shapes."""

    recipe: Recipe
    arch: Arch
    train: Inputs
    evaluate: Inputs


def missing() -> str:
    """Why nothing can be compiled for a GPU here, or nothing."""
    return "" if any(map(find_spec, PLUGINS)) else "JAX has no CUDA plugin here: pip install '.[flax,cuda13]'"


@cache
def h100() -> SingleDeviceSharding:
    """Where the programs would run.

    Raises:
        UserError: JAX has no plugin for it.
    """
    if missing():
        raise UserError(f"{missing()}.")
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # or the plugin asks for its device, and gives up
    find = partial(topologies.get_topology_desc, platform="cuda", topology="1x1x1", target_config=H100)
    try:
        topology = find()
    except NotImplementedError:  # which it did, before this was called
        import_module(next(module for name, module in PLUGINS.items() if find_spec(name))).initialize()
        topology = find()
    return SingleDeviceSharding(topology.devices[0])


def compile_for(function: Any, *args: Any, options: dict[str, Any] | None = None) -> Any:
    """Compile a jitted function for `h100`.

    Args:
        function: what `jax.jit` gives.
        args: trees of arrays, or of anything that has their shape and dtype.
        options: of XLA, by name.

    Raises:
        UserError: it calls the host, which JAX does not compile for a device that is not there.
    """

    traced = function.trace(*jax.tree.map(partial(_shape, sharding=h100()), args))
    if calls := re.findall(r"\w*callback\w*(?=\[)", str(traced.jaxpr)):
        raise UserError(f"{function.__name__} waits for the host: {', '.join(sorted(set(calls)))}.")
    return traced.lower(lowering_platforms=("cuda",)).compile({"xla_gpu_autotune_level": 0} | (options or {}))


def _shape(array: Any, sharding: SingleDeviceSharding | None = None) -> Any:
    """Of an array, on a device; without its 64-bit mode JAX makes float32 of a float64."""
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype), sharding=sharding)


def case(name: str, precision: Precision, batch: int) -> Case:
    """An architecture in a recipe, on a batch of its data."""
    recipe = replace(RECIPES[TRAINED_BY.get(name, "imagenet")], arch=name, batch_size=batch, precision=precision)
    spec, data = recipe.preprocess, DATASETS[recipe.dataset]
    height, width, channels = spec.input_size(data.image, get_arch(name))
    arch = get_arch(name).adapt(height=height, width=width, channels=channels, classes=data.classes)
    photo = spec.photo_side(arch)
    cut = spec.crop if spec.random_resized_crop and spec.crop else photo  # of a photograph in training, on the host

    def inputs(side: int, draws: dict[str, np.ndarray]) -> Inputs:
        images: Any = jax.ShapeDtypeStruct((batch, *(data.image or (side, side, 3))), jnp.uint8)
        labels: Any = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return Inputs(images, labels, jax.tree.map(_shape, draws), NO_FACTS)

    drawn = draw(recipe, data.image, lambda stream, width: np.full((batch, width), 0.5))
    return Case(recipe, arch, inputs(cut, drawn), inputs(photo, central(recipe, data.image, batch)))


def state_of(given: Case) -> TrainState:
    """Its state at the beginning of a run, in shapes."""
    return jax.eval_shape(partial(init_state, given.recipe, given.arch, 1, jax.devices("cpu")[0]))


def _train(given: Case, **options: Any) -> Any:
    return compile_for(train_step, state_of(given), given.train, options=options)


def _evaluate(given: Case, **options: Any) -> Any:
    state = state_of(given)
    step = jax.jit(lambda variables, inputs: eval_step(state.model, variables, inputs, given.recipe))
    return compile_for(step, state.variables, given.evaluate, options=options)


def _preprocess(given: Case, **options: Any) -> Any:
    spec, dtype = given.recipe.preprocess, jnp.dtype(given.recipe.param_dtype)
    step = jax.jit(lambda images, draws: preprocess(images, draws, spec, dtype))
    return compile_for(step, given.train.images, given.train.draws, options=options)


PARTS: dict[str, Callable[..., Any]] = {"train": _train, "evaluate": _evaluate, "preprocess": _preprocess}


def compile_part(part: str, name: str, precision: Precision, batch: int, **options: Any) -> Any:
    """A key of `PARTS`, of an architecture, with XLA's options."""
    h100()  # before JAX looks for devices
    set_precision(precision)
    return PARTS[part](case(name, precision, batch), **options)


def faults(program: Program, batch: int) -> list[str]:
    """What a step in float32 or below must not have on a GPU, each with the instruction that has it."""
    wide = [f"float64: {name}" for dtype, name in program.dtypes().items() if dtype in ("f64", "c128")]
    found = {
        "waits for the host": program.host_calls(),
        "convolution not channels last": program.not_channels_last(),
        "images in another order": program.reordered(batch),
    }
    return wide + [f"{fault}: {name}" for fault, names in found.items() for name in names]


def figures(compiled: Any) -> dict[str, Any]:
    """Kernels, bytes and flops of a compiled program, and the memory that XLA plans for it."""
    program, memory = Program(compiled.as_text()), compiled.memory_analysis()
    kinds = program.kinds()
    return {
        "kernels": sum(kinds.values()),
        "kinds": kinds,
        "bytes": program.bytes(),
        "flops": program.flops(),
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "dtypes": list(program.dtypes()),
    }


def survey() -> tuple[dict[str, Any], list[str]]:
    """Compile all programs of `CASES`: the result to be filed, and the faults found."""
    rows, found = [], []
    for name, precision, batch in CASES:
        for part in PARTS:
            compiled = compile_part(part, name, precision, batch)
            title = {"arch": name, "part": part, "precision": precision, "batch": batch}
            rows.append(title | figures(compiled))
            found += [f"{name} {part} {precision}: {fault}" for fault in faults(Program(compiled.as_text()), batch)]
    versions = package_versions(tuple(name.replace("_", "-") for name in PLUGINS))
    return {"device": "compiled for H100, no device", "versions": versions, "programs": rows}, found


def main() -> None:
    """Print the figures and file them."""
    result, found = survey()
    for row in result["programs"]:
        print(
            f"{row['arch']:16} {row['part']:11} {row['precision']:9} {row['batch']:5} {row['kernels']:4} kernels "
            f"{row['bytes'] / 1e6:9,.1f} MB {row['flops'] / 1e9:9,.1f} GFLOP {row['temp_bytes'] / 1e6:9,.1f} MB held"
        )
    print(*found, sep="\n")
    results.file(RESULTS / f"{FILE}.json", result)


if __name__ == "__main__":
    guard(main)
