"""Train while being killed again and again, and compare with a run that nobody disturbs: the same bits, or an error.

`python -m stress.soak` takes half an hour and files what happened under benchmarks/results/soak-FRAMEWORK.json.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import numpy as np
import tyro

from common.arch.zoo import ARCHS
from common.commands.shell import guard
from common.commands.train import run_train
from common.frameworks import Framework
from common.runs.folder import RunFolder
from common.system import package_versions
from common.weights import exchange
from parity_tests import results
from parity_tests.material import narrow
from parity_tests.results import RESULTS, ROOT

AUGMENTED = "--preprocess.pad 1 --preprocess.crop 8 --preprocess.flip --preprocess.resize 32 --mix.mixup 0.2"
WORDS = f"digits --arch tiny --device cpu {AUGMENTED} --checkpoint-every 7 --keep 3".split()
TIMES = ("seconds", "images/s")  # of a row, which no two runs share


@dataclass(frozen=True)
class Soak:
    """Kill a training run again and again, and compare what it leaves with a run that nobody disturbed.

    Attributes:
        framework: that trains, torch or flax.
        minutes: for which it kills; then the run may end in peace.
        shortest, longest: seconds from start to kill, drawn at random between them.
        epochs: of the run.
        seed: of the kills.
        out: folder for the two runs (default: a temporary one).
    """

    framework: tyro.conf.Positional[Framework] = "torch"
    minutes: float = 30
    shortest: float = 20
    longest: float = 60
    epochs: int = 400
    seed: int = 0
    out: Path | None = None


def register_tiny() -> None:
    """A narrow `alexnet_cifar`, dropout included, as the architecture `tiny`."""
    ARCHS["tiny"] = replace(narrow(ARCHS["alexnet_cifar"]), name="tiny")


def start(soak: Soak, out: Path, *words: str) -> subprocess.Popen[str]:
    """A training process of its own."""
    command = [sys.executable, "-m", __spec__.name, "train", soak.framework, *WORDS, "--epochs", str(soak.epochs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, "--out", str(out), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end.

    Raises:
        RuntimeError: it was not a good one.
    """
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {said[-2000:]}")


def torment(soak: Soak, out: Path) -> int:
    """Train with kills until the time is over, then to the end; gives the number of kills."""
    rng, kills, until = np.random.default_rng(soak.seed), 0, monotonic() + 60 * soak.minutes
    while True:
        process = start(soak, out, *(["--resume"] if out.exists() else []))
        try:
            if monotonic() > until:
                finish(process)
                return kills
            process.wait(rng.uniform(soak.shortest, soak.longest))
            finish(process)
            return kills
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1


def differences(path: Path, other: Path) -> list[str]:
    """What is not the same in two runs: rows without their times, hashes of batches, weights."""
    found = []
    rows = [
        [{key: value for key, value in row.items() if key not in TIMES} for row in RunFolder(each).metrics()]
        for each in (path, other)
    ]
    found += [f"row {i + 1}" for i in range(max(map(len, rows))) if rows[0][i : i + 1] != rows[1][i : i + 1]]
    if RunFolder(path).manifest["batches_sha256"] != RunFolder(other).manifest["batches_sha256"]:
        found.append("batches_sha256")
    (ours, about), (theirs, about_theirs) = (exchange.read(each / "model.safetensors") for each in (path, other))
    if about != about_theirs or ours.keys() != theirs.keys():
        return [*found, "the names or metadata of model.safetensors"]
    found += [name for name in theirs if not np.array_equal(ours[name], theirs[name])]
    files = [(each / "model.safetensors").read_bytes() for each in (path, other)]
    return found or ([] if files[0] == files[1] else ["the bytes of model.safetensors"])


def run(soak: Soak, out: Path) -> dict[str, Any]:
    """The calm run and the tormented one, and how they compare."""
    began = monotonic()
    finish(start(soak, out / "calm"))
    calm = monotonic() - began
    kills = torment(soak, out / "killed")
    return {
        "framework": soak.framework,
        "epochs": soak.epochs,
        "kills": kills,
        "calm_seconds": round(calm),
        "killed_seconds": round(monotonic() - began - calm),
        "rows": len(RunFolder(out / "calm").metrics()),
        "differences": differences(out / "killed", out / "calm"),
        "versions": package_versions(),
    }


def main() -> None:
    """Run it, file the result, and fail where the runs differ."""
    soak = tyro.cli(Soak, prog="python -m stress.soak")
    register_tiny()
    with TemporaryDirectory() as folder:
        result = run(soak, soak.out or Path(folder))
    path = RESULTS / f"soak-{soak.framework}.json"
    results.file(path, result)
    print(f"{path}: {result['kills']} kills, {len(result['differences'])} differences")
    sys.exit(bool(result["differences"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        import importlib

        register_tiny()
        run_train(importlib.import_module(f"{sys.argv[2]}_impl.train").fit, sys.argv[3:])
    else:
        guard(main)
