"""The first minute on a GPU: `python -m benchmarks.gpu_smoke gpu OUT`.

Whether both frameworks see it, what a float32 product is there, one comparison, and one step of each training command.
Prints and files what it finds; the rest is of no use without a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import jax

from common.commands.shell import guard
from common.errors import first_line
from common.runs.files import write_json
from common.system import package_versions
from flax_impl import device as flax_device
from parity_tests.results import ROOT
from parity_tests.single_step import compare_step
from torch_impl import device as torch_device


def devices(name: str) -> str:
    """What both frameworks compute on.

    Raises:
        UserError: one of them sees no GPU.
    """
    ours, theirs = torch_device.pick_device(name), flax_device.pick_device(name)
    return f"PyTorch {torch_device.describe(ours)}; JAX {flax_device.describe(theirs)}"


def products(name: str) -> str:
    """What each framework multiplies float32 numbers in, where a recipe says float32 and where it says TF32."""
    found = []
    for precision in ("float32", "tf32"):
        torch_device.set_precision(precision)
        flax_device.set_precision(precision)
        ours = torch_device.products(torch_device.pick_device(name))
        found.append(f"{precision}: PyTorch {ours}, JAX {flax_device.products(flax_device.pick_device(name))}")
    return "; ".join(found)


def comparison(name: str) -> str:
    """One step in float64 of a network in both frameworks."""
    arch = "alexnet_cifar" if name == "gpu" else "lenet"
    with jax.enable_x64(True):
        report = compare_step(arch, "float64", device=name)
    return f"{arch} in float64: {report.largest()}"


def step(framework: str, name: str, out: Path) -> str:
    """One step of a training command, on all training images of `digits` at once, with what it leaves of a run."""
    arch = "alexnet_cifar" if name == "gpu" else "lenet"
    with tempfile.TemporaryDirectory() as folder:
        words = ["--arch", arch, "--epochs", "1", "--batch-size", "1437", "--device", name, "--out", f"{folder}/run"]
        command = [sys.executable, "-m", f"{framework}_impl.train", "digits", *words]
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stdout)
        for file in ("manifest.json", "metrics.jsonl"):
            shutil.copy(Path(folder) / "run" / file, out / f"{framework}-{file}")
    return next(line for line in done.stdout.splitlines() if line.startswith("epoch"))


def look(found: dict[str, Any], what: str, how: Callable[[], str]) -> None:
    """Note one thing and its seconds; what fails is told and does not hide the others."""
    started = perf_counter()
    try:
        found[what] = {"found": how()}
    except Exception as error:
        found[what] = {"failed": str(error)}
        print(f"{what} FAILED: {first_line(error)}", flush=True)
    else:
        print(f"{what}: {found[what]['found']}", flush=True)
    found[what]["seconds"] = round(perf_counter() - started, 1)


def main() -> None:
    """Look at everything, and end with 1 if a thing failed."""
    name, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"devices": devices(name), "versions": package_versions()}
    print(f"devices: {found['devices']}", flush=True)
    looks: dict[str, Callable[[], str]] = {
        "products": lambda: products(name),
        "comparison": lambda: comparison(name),
        "torch step": lambda: step("torch", name, out),
        "flax step": lambda: step("flax", name, out),
    }
    for what, how in looks.items():
        look(found, what, how)
        write_json(out / "smoke.json", found)
    if any("failed" in found[what] for what in looks):
        raise SystemExit(1)


if __name__ == "__main__":
    guard(main)
