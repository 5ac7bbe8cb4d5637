"""What a process computes that takes only repeatable algorithms: `python -m parity_tests.repeat torch gpu lenet`.

Prints a hash of each architecture's parameters after a few steps, narrow, dropout and decay on; two processes on one
device must print the same.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from importlib import import_module
from typing import Any

from common.arch.spec import Arch
from common.arch.zoo import ARCHS
from common.data.pipeline import batches
from common.data.synthetic import pixels
from common.recipes.spec import Recipe
from parity_tests.material import narrow
from parity_tests.single_step import recipe_for

STEPS, BATCH = 4, 32


def torch_hash(recipe: Recipe, arch: Arch, device: str) -> str:
    """Of the parameters after the steps, in PyTorch."""
    from torch_impl import device as places
    from torch_impl import feed, state, train

    run = state.init_state(recipe, arch, STEPS, places.pick_device(device))
    for batch in batches(pixels(arch, STEPS * BATCH), recipe, 0, train=True):
        train.train_step(run, feed.to_device(batch, run.device))
    return _hash(parameter.numpy(force=True) for parameter in run.model.parameters())


def flax_hash(recipe: Recipe, arch: Arch, device: str) -> str:
    """The same in Flax."""
    import jax
    import numpy as np

    from flax_impl import device as places
    from flax_impl import feed, state, train

    run = state.init_state(recipe, arch, STEPS, places.pick_device(device))
    for batch in batches(pixels(arch, STEPS * BATCH), recipe, 0, train=True):
        run, _ = train.train_step(run, feed.to_device(batch, run.device))
    return _hash(np.asarray(parameter) for parameter in jax.tree.leaves(run.params))


def _hash(arrays: Any) -> str:
    found = sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()


def main() -> None:
    """`repeat FRAMEWORK DEVICE ARCH ...`."""
    framework, device, *names = sys.argv[1:]
    import_module(f"{framework}_impl.device").be_deterministic()
    one = {"torch": torch_hash, "flax": flax_hash}[framework]
    print(json.dumps({name: one(recipe_for(name, "float32", BATCH), narrow(ARCHS[name]), device) for name in names}))


if __name__ == "__main__":
    main()
