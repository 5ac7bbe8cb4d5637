"""Runs listed and drawn together, from their files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.arch.zoo import ARCHS
from common.commands.plot import run_plot
from common.commands.runs import run_runs
from common.config import to_dict
from common.recipes.zoo import get_recipe
from common.reports import figures, overlay
from common.runs import plots
from common.runs.folder import RunFolder
from parity_tests.results import ROOT


def made(path: Path, framework: str, day: int, accuracies: dict[str, list[float]], epochs: int = 4) -> RunFolder:
    """A run of a step an epoch, begun on a day of January, with what it scored on each split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    run = RunFolder.create(path, replace(get_recipe("digits"), epochs=epochs))
    manifest = {"framework": framework, "started": f"2026-01-{day:02d}T00:00:00+00:00", "device": "cpu"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    for epoch in range(1, len(next(iter(accuracies.values()))) + 1):
        run.log(step=2 * epoch, epoch=epoch, split="train", loss=2.0 / epoch, accuracy=0.5, lr=0.1, seconds=1.5)
        for split, values in accuracies.items():
            run.log(step=2 * epoch, epoch=epoch, split=split, loss=1.0 / epoch, accuracy=values[epoch - 1], top5=1.0)
    return run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    made(tmp_path / "runs/old", "torch", 1, {"test": [0.5, 0.75, 0.75]})
    made(tmp_path / "runs/compare/flax", "flax", 3, {"test": [0.9, 0.1], "val": [0.25, 0.5]}, epochs=2)
    made(tmp_path / "runs/middle", "torch", 2, {"test": []})
    return tmp_path / "runs"


def test_runs_are_listed_newest_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "old/checkpoints/epoch_0001.pt").write_bytes(bytes(2**20))
    RunFolder(runs / "old").log(step=7, epoch=4, split="train", loss=1.0, accuracy=1.0)  # no epoch is finished by that
    run_runs([str(runs)])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "framework", "recipe", "epochs", "best", "accuracy", "seconds", "MiB"]
    assert [line.split() for line in lines] == [
        [str(runs / "compare/flax"), "Flax", "digits", "2/2", "0.5000", "val,", "epoch", "2", "3", "0.0"],
        [str(runs / "middle"), "PyTorch", "digits", "0/4", "0", "0.0"],
        [str(runs / "old"), "PyTorch", "digits", "3/4", "0.7500", "test,", "epoch", "3", "4", "1.0"],
    ]


def test_damaged_folders_are_named_and_passed_over(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "old/recipe.json").unlink()
    (runs / "middle/metrics.jsonl").write_text("{\n")
    (runs / "compare/pictures").mkdir()  # no run, nor one that was
    made(runs / "strange", "keras", 4, {"test": [0.5]})
    run_runs([str(runs)])
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()[1:]] == [str(runs / "compare/flax")]
    first, second, third = said.err.splitlines()
    assert first.startswith(f"warning: {runs / 'middle/metrics.jsonl'}, line 1 is not valid JSON")
    assert second == f"warning: {runs / 'old'} has no recipe.json."
    assert third == f"warning: {runs / 'strange/manifest.json'} is damaged: it does not say the framework of the run."


def test_a_run_that_was_killed_before_it_began_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder.create(tmp_path / "run", get_recipe("digits"))
    run_runs([str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[1].split()[1:] == ["digits", "not", "begun", "0", "0.0"]


def test_no_runs_and_no_folder_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_runs([str(tmp_path)])
    assert capsys.readouterr().out == f"There are no runs in {tmp_path} yet: `make train-torch` makes one.\n"
    with pytest.raises(SystemExit):
        run_runs([str(tmp_path / "none")])
    assert "There is no folder" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["runs", "plot"])
def test_neither_needs_a_framework(module: str, runs: Path, tmp_path: Path) -> None:
    words = [str(runs)] if module == "runs" else [str(runs / "old"), "--to", str(tmp_path / "a.png")]
    code = (
        f"import sys; from common.commands.{module} import run_{module} as run; run({words!r}); "
        "sys.exit(len({'torch', 'jax'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def drawn(runs: list[Path], dest: Path) -> Figure:
    """The figure that a picture was made of."""
    kept: list[Any] = []

    def keep(figure: Figure, path: Path, dpi: int) -> None:
        kept.append(figure)
        save(figure, path, dpi)

    save = figures.save_figure
    with mock.patch.object(overlay, "save_figure", keep):
        overlay.draw_runs(runs, dest)
    return kept[0]


def test_a_long_name_is_cut_to_its_length() -> None:
    assert [figures.shorten(text, 4) for text in ("abcd", "abcde", "a\udcffbc")] == ["abcd", "abc…", "a\\u…"]


def test_the_picture_shows_every_run(runs: Path, tmp_path: Path) -> None:
    made(tmp_path / "$a_1$", "torch", 5, {"test": [0.5, 0.6]})
    paths = [runs / "old", runs / "compare/flax", tmp_path / "$a_1$"]
    figure = drawn(paths, tmp_path / "all.png")
    losses, accuracies = figure.axes
    assert losses.get_yscale() == "log"
    assert accuracies.get_yscale() == "linear"
    by_epoch = [np.asarray(line.get_xydata()).tolist() for line in accuracies.lines]
    assert [[1, 0.5], [2, 0.75], [3, 0.75]] in by_epoch
    assert [[1, 0.25], [2, 0.5]] in by_epoch
    assert len(losses.lines) == 2 + 3 + 2
    colours = list(dict.fromkeys(str(line.get_color()) for line in losses.lines))
    assert len(colours) == len(paths)
    [legend] = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert [text.rpartition(": ")[2].partition(",")[0] for text in texts[:3]] == ["PyTorch", "Flax", "PyTorch"]
    assert texts[3:] == ["train", "val", "test"]
    assert [str(line.get_color()) for line in legend.get_lines()[:3]] == colours
    assert [(axis.get_xlabel(), axis.get_ylabel()) for axis in figure.axes] == [
        ("epoch", "loss"),
        ("epoch", "accuracy"),
    ]
    for axis in figure.axes:  # outside the data
        assert not axis.get_window_extent().overlaps(legend.get_window_extent())
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size[0] > 1000


def test_a_runs_curves_stand_over_epochs(tmp_path: Path) -> None:
    """Losses as they are, accuracies in percent, and each rate over the steps before its row; the best epoch marked."""
    run = made(tmp_path / "run", "torch", 1, {"val": [0.25, 0.5, 0.25], "test": [0.5, 0.75, 0.5]})
    (run.path / "manifest.json").write_text(json.dumps(run.manifest | {"arch": to_dict(ARCHS["lenet"])}))
    run.log(step=7, epoch=4, split="train", loss=0.25, accuracy=0.75, lr=0.01)
    run.log(step=8, epoch=4, split="train", loss=0.25, accuracy=0.75, lr=0.02)
    kept: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *where: Any, **how: Any) -> None:
        kept.append(figure)
        save(figure, *where, **how)

    with mock.patch.object(Figure, "savefig", keep):
        plots.curves(run)
    losses, accuracies, rates = (
        {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axis.lines} for axis in kept[0].axes
    )
    assert losses["train"] == [[1, 2], [2, 1], [3, pytest.approx(2 / 3)], [3.5, 0.25], [4, 0.25]]
    assert losses["val"] == losses["test"] == [[1, 1], [2, 0.5], [3, pytest.approx(1 / 3)]]
    assert accuracies["train"] == [[1, 50], [2, 50], [3, 50], [3.5, 75], [4, 75]]
    assert accuracies["test"] == [[1, 50], [2, 75], [3, 50]]
    assert rates == {"train": [[1, 0.1], [2, 0.1], [3, 0.1], [3.5, 0.01], [4, 0.02]]}
    assert kept[0].axes[2].lines[0].get_drawstyle() == "steps-pre"
    for axis in (losses, accuracies):
        [mark] = (points for label, points in axis.items() if label.startswith("epoch 2: the best"))
        assert [x for x, _ in mark] == [2, 2]
    run = made(tmp_path / "without", "torch", 1, {"test": [0.5, 0.75, 0.5]})
    rows = run.path / "metrics.jsonl"
    rows.write_text(rows.read_text().replace('"lr": 0.1', '"lr": 0.0003'))
    run.log(step=7, epoch=4, split="train", loss=0.0123, accuracy=0.75, lr=0.000125)
    run.log(step=8, epoch=4, split="test", loss=0.0123, accuracy=0.5)
    (run.path / "manifest.json").write_text(json.dumps(run.manifest | {"arch": to_dict(ARCHS["lenet"])}))
    with mock.patch.object(Figure, "savefig", keep):
        plots.curves(run)
    [last] = (line for line in kept[1].axes[0].lines if str(line.get_label()).startswith("epoch 4: the last"))
    assert np.asarray(last.get_xdata()).tolist() == [4, 4]
    for figure in kept:  # scales and their names stand beside each other's axes
        figure.draw_without_rendering()
        boxes: list[Any] = [axis.get_tightbbox() for axis in figure.axes]
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
        assert boxes[0].x0 > 0
        assert boxes[0].y0 > figure.legends[0].get_window_extent().y1


def test_a_picture_that_takes_anothers_place_is_told_of(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for told in ("", " (replaced)"):
        run_plot([str(runs / "old"), "--to", str(tmp_path / "a.png")])
        assert capsys.readouterr().out == f"{tmp_path}/a.png{told}\n"


def test_many_runs_have_a_colour_each(tmp_path: Path) -> None:
    paths = [made(tmp_path / f"{number}", "torch", 1, {"test": [0.5]}).path for number in range(12)]
    assert len({tuple(line.get_color()) for line in drawn(paths, tmp_path / "all.png").axes[0].lines}) == 12


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Name the run folders to draw"),
        (["{runs}/none"], "{runs}/none is no run folder."),
        (["{runs}/middle"], "{runs}/middle has no numbers yet"),
        (["{runs}/old", "--to", "{runs}/a.pdf"], "so give it a name that ends in .png."),
        (["{runs}/old", "--to", "{runs}/old/recipe.json/a.png"], "Cannot write"),
    ],
)
def test_what_cannot_be_drawn_gets_a_sentence(
    words: list[str], sentence: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run_plot([word.format(runs=runs) for word in words])
    assert end.value.code == 2
    assert sentence.format(runs=runs) in capsys.readouterr().err
    assert not list(runs.glob("*.p*"))
