"""What make runs, without running it."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from parity_tests.results import ROOT

PATH = "my runs/a b"


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("evaluate-torch", ("RUN",)),
        ("evaluate-flax", ("RUN",)),
        ("predict-torch", ("IMAGE", "RUN")),
        ("predict-flax", ("IMAGE", "RUN")),
        ("export-torch", ("RUN", "TO")),
        ("export-flax", ("RUN", "TO")),
        ("data", ("DATASET",)),
        ("gpu-run", ("RESULTS", "DEVICE")),
        ("study", ("IMAGE", "RUN_TORCH", "RUN_FLAX", "NOISE")),
    ],
)
def test_paths_with_spaces_are_one_word(target: str, names: tuple[str, ...]) -> None:
    words = ["make", "-n", target, *(f"{name}={PATH}/{name}" for name in names)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    command = shlex.split(done.stdout.replace("\\\n", " ").splitlines()[-1])
    assert {f"{PATH}/{name}" for name in names} <= set(command)
