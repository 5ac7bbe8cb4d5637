"""Whether it matters which framework trains: the interval is SciPy's, and each sentence is the one that is due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from benchmarks import pairs
from benchmarks.measured import Run, read
from common.errors import UserError


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    draw = np.random.default_rng(0)
    ours, theirs = draw.uniform(0.9, 1, 7), draw.uniform(0.9, 1, 7)
    found = pairs.difference(list(ours), list(theirs))
    expected = ttest_rel(100 * ours, 100 * theirs).confidence_interval(0.90)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-12)
    assert found.pairs == 7
    with pytest.raises(UserError, match="at least two"):
        pairs.difference([0.5], [0.5])


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((0.980, 0.975, 0.978), (0.979, 0.976, 0.978), "equivalent within 1"),
        ((0.980, 0.985, 0.982), (0.950, 0.951, 0.953), "PyTorch came out ahead"),
        ((0.950, 0.951, 0.953), (0.980, 0.985, 0.982), "Flax came out ahead"),
        ((0.98, 0.95), (0.96, 0.96), "too few pairs"),
    ],
)
def test_each_outcome_has_its_sentence(ours: list[float], theirs: list[float], said: str) -> None:
    assert said in pairs.difference(ours, theirs).verdict()


def test_pairs_are_trained_from_equal_weights_and_filed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With training left out: who is trained from what, what is filed, what is not done again, and the sentence."""
    begun: list[tuple[str, str]] = []

    def train(run: Run, folder: Path, seconds: float, more: tuple[str, str]) -> bool:
        begun.append((run.name, Path(more[1]).name))
        return True

    def outcome(run: Run, folder: Path) -> dict[str, Any]:
        told = {"recipe": run.recipe, "framework": run.framework, "seed": run.seed, "changes": [], "gpu": False}
        return told | {"epochs": 8, "of_epochs": 8, "test_accuracy": [0.98], "batches_sha256": {"1": f"of {run.seed}"}}

    monkeypatch.setattr(pairs, "train", train)
    monkeypatch.setattr(pairs, "outcome", outcome)
    words = ["digits", "--seeds", "2", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    pairs.main(words)
    assert begun == [
        (f"digits-{framework}-{seed}", f"digits-{seed}.safetensors")
        for seed in (0, 1)
        for framework in ("torch", "flax")
    ]
    ours, theirs = ((tmp_path / "runs" / f"digits-{seed}.safetensors").read_bytes() for seed in (0, 1))
    assert ours != theirs
    assert "it does not matter which framework trains it" in capsys.readouterr().out
    pairs.main(words)
    assert len(begun) == 4
    rows = read(tmp_path / "pairs-digits.json")
    rows[0]["batches_sha256"] = {"1": "others"}
    with pytest.raises(UserError, match="seed 0 were fed different"):
        pairs.check_batches(rows)
