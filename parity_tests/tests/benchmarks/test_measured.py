"""What the recipes come to: tables are what is filed, what is filed is of the recipes as they are; the queue."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import age, measured, pairs, photos
from benchmarks.measured import CPU, FILE, GPU, Run, add, read, settings
from benchmarks.measured_tables import NONE, OWN, PAGES, RESULTS_PAGE, cell, fill, pages
from common.data.dataset import whole
from common.data.sources import Arrays
from common.errors import UserError
from common.recipes.zoo import RECIPES
from parity_tests import results
from parity_tests.results import RESULTS, ROOT

ROWS = read(FILE)


def test_the_tables_are_what_is_filed() -> None:
    for name, text in pages(ROOT, ROWS).items():
        assert (ROOT / name).read_text("utf-8") == text, f"{name}: make results-table writes it anew"


@pytest.mark.parametrize("name", PAGES)
def test_every_recipe_has_its_row(name: str) -> None:
    filled = fill((ROOT / name).read_text("utf-8"), ROWS)
    for recipe in RECIPES:
        (line,) = (line for line in filled.split("\n") if line.startswith("|") and f"`{recipe}`" in line.split("|")[1])
        said = "data.md#one-command-for-a-folder-of-photographs)" if recipe in OWN else cell(recipe, ROWS)
        assert line.rstrip(" |").endswith(said) or f"`{recipe}`: {said}" in line


def test_a_figure_that_is_typed_is_found() -> None:
    row = next(row for row in ROWS if row["recipe"] == "digits")
    better = [{**each, "test_accuracy": [0.999]} if each is row else each for each in ROWS]
    written = {name: (ROOT / name).read_text("utf-8") for name in (*PAGES, RESULTS_PAGE)}
    anew = pages(ROOT, better)
    assert all(anew[name] != text for name, text in written.items())


def stale(row: dict[str, Any]) -> bool:
    """Whether a row's recipe has other settings by now."""
    told = {word.strip("-").replace("-", "_") for word in row["changes"][::2]}
    usual, had = (
        {path: value for path, value in found.items() if path not in told}
        for found in (settings(RECIPES[row["recipe"]]), row["settings"])
    )
    return bool(usual != had)


def test_readme_says_of_pairs_what_is_filed() -> None:
    ours, theirs = pairs.by_seed(read(RESULTS / "pairs-digits.json"))
    found = pairs.difference(ours, theirs)
    said = (
        f"is {found.mean:+.2f} points (90 % interval {found.low:+.2f} to {found.high:+.2f}): [it does not matter which"
    )
    assert f"Over {found.pairs} pairs of `digits` from equal weights, PyTorch less Flax {said}" in " ".join(
        (ROOT / "README.md").read_text("utf-8").split()
    )
    assert "it does not matter" in found.verdict()


def test_what_is_filed_is_of_the_recipes_as_they_are() -> None:
    assert not [row["recipe"] for row in ROWS if stale(row)]
    keys = [tuple(map(str, map(row.get, measured.KEY))) for row in ROWS]
    assert keys == sorted(set(keys))
    for row in ROWS:
        assert len(row["test_accuracy"]) == row["epochs"] <= row["of_epochs"], row["recipe"]
        assert row["of_epochs"] == row["settings"]["epochs"]
    other = json.loads(json.dumps(ROWS[0]))
    other["settings"]["optimizer.lr"] *= 2
    assert stale(other)


def test_several_seeds_are_a_mean_and_a_part_of_a_run_says_so() -> None:
    row = {"recipe": "cifar10", "framework": "torch", "seed": 0, "changes": [], "gpu": False, "of_epochs": 3}
    whole = [row | {"seed": seed, "epochs": 3, "test_accuracy": [0.5, last]} for seed, last in ((0, 0.7), (1, 0.8))]
    assert cell("cifar10", whole) == "PyTorch 75.0 ± 7.1 % (2 seeds)"
    part = row | {"epochs": 1, "test_accuracy": [0.456]}
    assert cell("cifar10", [part]) == "PyTorch 45.6 % after 1 of 3 epochs"
    assert cell("cifar10", [part, *whole[1:]]) == "PyTorch 80.0 %"
    other = whole[0] | {"changes": ["--precision", "bfloat16"], "gpu": True}
    assert cell("cifar10", [other]) == "PyTorch 70.0 % (--precision bfloat16, GPU)"
    assert cell("digits", whole) == NONE
    table = "| recipe | measured here |\n|---|---|\n| `cifar10`, `digits` | old |\n| `photos` | of others |\n"
    table += "\n| `cifar10` | another table |"
    assert fill(table, [part]).split("\n")[2:] == [
        "| `cifar10`, `digits` | `cifar10`: PyTorch 45.6 % after 1 of 3 epochs; `digits`: not measured |",
        "| `photos` | of others |",
        "",
        "| `cifar10` | another table |",
    ]


def test_the_queues_are_of_recipes_that_there_are() -> None:
    for queue in (CPU, GPU):
        assert len({run.name for run in queue}) == len(queue)
        assert all(run.recipe in RECIPES for run in queue)


def test_runs_are_trained_filed_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that is cut short is filed as that, goes on where it stopped, and ends; what is filed is not run again."""
    small = ("--arch", "lenet", "--preprocess.resize", "16", "--epochs", "2")
    monkeypatch.setattr(measured, "CPU", (Run("digits", "torch", 1, small),))
    words = ["--runs", str(tmp_path / "runs"), "--file", str(tmp_path / "accuracy.json")]
    measured.main([*words, "--show"])
    assert not list(tmp_path.iterdir())
    measured.main([*words, "--limit", "0"])
    assert "goes on" in capfd.readouterr().out
    assert not (tmp_path / "accuracy.json").exists()
    measured.main(words)
    (row,) = read(tmp_path / "accuracy.json")
    assert (row["epochs"], row["of_epochs"], row["seed"], row["changes"]) == (2, 2, 1, list(small))
    assert row["settings"]["arch"] == "lenet"
    assert row["data"] == "scikit-learn's digits"
    folder = tmp_path / "runs" / measured.CPU[0].name
    rows = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in rows if json.loads(line)["epoch"] < 2))
    half = measured.outcome(measured.CPU[0], folder)
    assert half
    assert (half["epochs"], len(half["test_accuracy"])) == (1, 1)
    measured.add(tmp_path / "accuracy.json", half)
    measured.main(words)
    (again,) = read(tmp_path / "accuracy.json")
    assert again["test_accuracy"] == row["test_accuracy"]
    capfd.readouterr()
    measured.main(words)
    assert "All of them" in capfd.readouterr().out
    measured.main([*words, "--again", "--show"])
    assert capfd.readouterr().out == f"{measured.CPU[0].name}\n"


def test_what_is_not_in_the_queue_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        measured.main(["--recipes", "digist"])
    with pytest.raises(UserError, match="no such run"):
        measured.main(["--recipes", "imagenet"])


# How old results are


def test_every_result_says_what_it_comes_from() -> None:
    for file in RESULTS.glob("*.json"):
        assert list(age.commits(file.name, json.loads(file.read_text("utf-8")))), file.name
    for found in age.ORIGINS.values():
        paths = (path.removeprefix(":(exclude)") for path in found.code)
        assert all((ROOT / path).exists() for path in paths), found
    with pytest.raises(UserError, match=r"unheard\.json"):
        age.origin("unheard.json")


def test_a_result_of_earlier_code_is_told(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *name, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    def commit(file: str) -> str:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"{file} {len(list(tmp_path.iterdir()))}")
        git("add", ".")
        git("commit", "-m", file)
        return git("rev-parse", "HEAD")

    git("init")
    first = commit("code.py")
    commit("page.md")
    assert age.since(first, ("code.py",), tmp_path) == ""
    assert "not committed" in age.since(f"{first}+changes", ("code.py",), tmp_path)
    commit("code.py")
    assert age.since(first, ("code.py",), tmp_path) == f"is of {first[:8]}; code.py changed in 1 commit since"
    second, code = commit("made/code.py"), ("made", ":(exclude)made/results.json")
    commit("made/results.json")  # which is no code
    assert age.since(second, code, tmp_path) == ""
    assert age.since(first, code, tmp_path) == f"is of {first[:8]}; made changed in 1 commit since"
    assert "does not know" in age.since("0" * 40, ("code.py",), tmp_path)
    assert "does not say" in age.since(None, ("code.py",), tmp_path)


def test_a_part_of_a_run_takes_no_whole_ones_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "accuracy.json", {"recipe": "digits", "framework": "torch", "seed": 0, "changes": []}
    for epochs, kept in ((1, 1), (3, 3), (2, 3), (4, 4)):
        add(file, run | {"epochs": epochs, "of_epochs": max(epochs, 3)})
        assert [row["epochs"] for row in read(file)] == [kept]
    assert "of 2 epochs: it stays" in capsys.readouterr().out


def test_a_result_is_of_the_code_that_files_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where what was filed before is filed with it."""
    monkeypatch.setattr(results, "commit", lambda: "of now")
    results.file(tmp_path / "it.json", {"commit": "of then", "rows": []})
    assert json.loads((tmp_path / "it.json").read_text()) == {"commit": "of now", "rows": []}


def test_photographs_are_told_by_start_and_framework() -> None:
    """Mean and sample standard deviation of the seeds, in place of the table that was there."""
    rows = [
        {"start": "scratch", "framework": "torch", "test_accuracy": 0.01 * score} for score in (70.0, 73.0, 76.0)
    ] + [{"start": "scratch", "framework": "flax", "test_accuracy": 0.5}]
    page = f"before\n{photos.HEAD}\n|---|---|---|\n| scratch | 99 % | 99 % |\n\n| other |\n"
    assert photos.fill(page, rows).split("\n") == [
        *("before", photos.HEAD, "|---|---|---|"),
        "| torchvision's convolutions | not measured | not measured |",
        "| scratch | 73.0 ± 3.0 % (3 seeds) | 50.0 % (1 seed) |",
        *("", "| other |", ""),
    ]


def test_photographs_are_the_first_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, rng = ("cat", "frog", "ship", "horse", "airplane"), np.random.default_rng(0)
    splits = [
        whole(
            "cifar10",
            split,
            (4, 4, 3),
            names,
            Arrays(rng.integers(0, 256, (60, 4, 4, 3), np.uint8), rng.integers(0, 5, 60).astype(np.int32)),
        )
        for split in ("train", "test")
    ]
    monkeypatch.setattr(photos, "load_dataset", lambda name: splits)
    monkeypatch.setattr(photos, "EACH", {"train": 3, "test": 2})
    photos.write_pictures(folder := tmp_path / "runs" / "pictures")
    for data, (split, each) in zip(splits, photos.EACH.items(), strict=True):
        assert {path.name for path in (folder / split).iterdir()} == {*photos.CLASSES}
        images, labels = data.source.read(data.ids, None)
        for name in photos.CLASSES:
            first = np.flatnonzero(labels == names.index(name))[:each]
            assert {path.name for path in (folder / split / name).iterdir()} == {f"{place}.png" for place in first}
            with Image.open(folder / split / name / f"{first[0]}.png") as picture:
                np.testing.assert_array_equal(np.asarray(picture), images[first[0]])
