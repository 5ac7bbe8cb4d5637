"""What make runs, without running it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from parity_tests.results import ROOT

PATH = "my runs/a b"
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TAKES = dict(re.findall(r"^TAKES\.(\S+) := (.*)$", MAKEFILE, re.MULTILINE))
TAKES = {target: re.sub(r"\$\(TAKES\.(\S+)\)", lambda found: TAKES[found[1]], names) for target, names in TAKES.items()}
GIVEN = {"RUN": "r", "IMAGE": "i", "TO": "t.onnx", "DATASET": "d", "RUNS": "a", "FRAMEWORK": "flax"}
GIVEN |= {"FOLDER": "f", "LOG": "wandb"}


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """What make would run; it is told nothing by the make that runs the tests."""
    command = ["make", "--no-print-directory", "-n", *words]
    return subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)


def refused(*words: str) -> str:
    """The one sentence with which make refuses, before it runs anything."""
    done = make(*words)
    assert done.returncode == 2
    assert not done.stdout
    [line] = done.stderr.splitlines()
    return line.partition("*** ")[2].removesuffix("  Stop.").rstrip(".")


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("train-torch", ("DATASET", "OUT")),
        ("train-flax", ("DATASET", "OUT")),
        ("find-lr-torch", ("DATASET", "TO")),
        ("find-lr-flax", ("DATASET", "TO")),
        ("resume-torch", ("RUN",)),
        ("resume-flax", ("RUN",)),
        ("photos-torch", ("FOLDER", "OUT")),
        ("photos-flax", ("FOLDER", "OUT")),
        ("evaluate-torch", ("RUN",)),
        ("evaluate-flax", ("RUN",)),
        ("predict-torch", ("IMAGE", "RUN")),
        ("predict-flax", ("IMAGE", "RUN")),
        ("export-torch", ("RUN", "TO")),
        ("export-flax", ("RUN", "TO")),
        ("data", ("DATASET",)),
        ("gpu-run", ("RESULTS", "DEVICE")),
        ("study", ("IMAGE", "RUN_TORCH", "RUN_FLAX", "NOISE", "WEIGHTS")),
        ("break", ("FAULT",)),
    ],
)
def test_paths_with_spaces_are_one_word(target: str, names: tuple[str, ...]) -> None:
    done = make(target, *(f"{name}={PATH}/{name}" for name in names))
    assert done.returncode == 0, done.stderr
    command = shlex.split(done.stdout.replace("\\\n", " ").splitlines()[-1])
    assert {f"{PATH}/{name}" for name in names} <= set(command)


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_what_people_type_reaches_the_command(framework: str) -> None:
    typed = ("RECIPE=cifar10", "EPOCHS=5", "BATCH=32", "LR=0.02", "SEED=3", "DEVICE=cpu", "LOG=wandb", "ARGS=--keep 1")
    command = make(f"train-{framework}", *typed).stdout.replace("\\\n", " ").splitlines()[-1]
    fields = "--epochs 5 --optimizer.lr 0.02 --batch-size 32 --seed 3 --device cpu --log wandb --keep 1"
    assert shlex.split(command)[1:] == ["-m", f"{framework}_impl.train", "cifar10", *fields.split()]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train-torch recipe=cifar10", "There is no variable recipe: did you mean RECIPE=cifar10?"),
        ("train-torch EPOCH=5", "There is no variable EPOCH: did you mean EPOCHS=5?"),
        ("train-flax batch_size=4", "There is no variable batch_size: did you mean BATCH=4?"),
        ("evaluate-flax run=a", "There is no variable run: did you mean RUN=a?"),
        ("summary WIDTH=2", "There is no variable WIDTH; make summary takes ARCH"),
        ("parity RUN=a", "make parity does not use RUN; it takes ARGS"),
        ("bench EPOCHS=1", "make bench does not use EPOCHS"),
        ("train-torch cifar10", "make train-torch takes no word cifar10: did you mean RECIPE=cifar10?"),
        ("predict docs", "make predict takes no word docs: did you mean IMAGE=docs?"),
        ("train-flax EPOCHS", "EPOCHS takes a value: EPOCHS=VALUE"),
        ("train", "There is no target train: did you mean one of train-torch train-flax?"),
        ("trian-torch", "There is no target trian-torch; `make` lists them all"),
        ("evaluate-torch", "make evaluate-torch needs RUN=runs/"),
        ("export-flax RUN=a", "make export-flax needs TO="),
        ("predict", "make predict needs IMAGE="),
        ("photos", "make photos needs FOLDER=pictures, a folder that has a folder of pictures for each class"),
        ("photos pictures", "make photos takes no word pictures: did you mean FOLDER=pictures?"),
        ("features", "make features needs RUN="),
        ("data", "make data needs DATASET="),
        ("resume", "make resume needs RUN="),
        ("resume RUN=none", "none/manifest.json does not say in which framework the run began"),
        ("train-torch LOG=tensorbord", 'LOG is tensorboard, wandb or "tensorboard wandb", not tensorbord'),
        ("predict IMAGE=a FRAMEWORK=keras", "FRAMEWORK is torch or flax, not keras"),
    ],
)
def test_a_slip_of_the_keyboard_gets_a_sentence(words: str, sentence: str) -> None:
    assert refused(*words.split()).startswith(sentence)


@pytest.mark.parametrize(
    ("name", "framework"),
    [("jax", "flax"), ("JAX", "flax"), ("Flax", "flax"), ("pytorch", "torch"), ("PyTorch", "torch")],
)
def test_a_framework_has_several_names(name: str, framework: str) -> None:
    assert f"{framework}_impl.predict" in make("predict", "IMAGE=a", f"FRAMEWORK={name}").stdout


@pytest.mark.parametrize("framework", ["torch", "flax"])
def test_a_run_is_resumed_in_its_framework(framework: str, tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"seed": 0, "framework": framework, "device": "cpu"}, indent=2))
    assert f"-m  {framework}_impl.train --resume" in make("resume", f"RUN={run}").stdout


def test_others_variables_are_let_through() -> None:
    assert make("data", "DATASET=cifar10", "TFDS_DATA_DIR=/data", "CUDA_VISIBLE_DEVICES=1").returncode == 0


@pytest.mark.parametrize("target", TAKES)
def test_no_target_takes_what_it_does_not_use(target: str) -> None:
    given = {name: GIVEN.get(name, "x") for name in TAKES[target].split()}
    whole = make(target, *(f"{name}={value}" for name, value in given.items())).stdout
    assert whole
    for left_out in given:
        assert make(target, *(f"{name}={value}" for name, value in given.items() if name != left_out)).stdout != whole


def test_help_lists_targets_by_theme() -> None:
    done = subprocess.run(["make"], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    themes = [line for line in done.stdout.splitlines() if line and not line.startswith(" ")]
    listed = re.findall(r"^  ([a-z-]+) ", done.stdout, re.MULTILINE)
    assert len(themes) == 5
    assert len(set(listed)) == len(listed) == len(re.findall(r"^[a-z-]+:.*  ## ", MAKEFILE, re.MULTILINE))


def test_what_pip_says_besides_errors_is_not_shown_and_it_tells_that_it_goes_on() -> None:
    installs = [line for line in MAKEFILE.splitlines() if re.search(r"\$\(INSTALL\)|\$\(PIP\) -r", line)]
    assert len(installs) == 8
    [beat] = re.findall(r"^BEAT := (.*\n.*)$", MAKEFILE, re.MULTILINE)
    script = beat.replace("\\\n\t", "").replace("$$", "$").replace("% 30", "% 1") + " sleep 2.5"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert "... still installing, after 1 s" in done.stdout.splitlines()
    assert "-qq " in re.findall(r"^PIP := (.*)$", MAKEFILE, re.MULTILINE)[0]


class Names:
    """A plugin: the tests that are found."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.found = {item.name.split("[")[0] for item in session.items}


def test_what_make_check_runs_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no test's would end pytest with exit code 4; both proofs and planted faults are among them."""
    monkeypatch.chdir(ROOT)
    names = Names()
    assert pytest.main(["--collect-only", "-q", "@parity_tests/check.txt"], plugins=[names]) == 0
    assert {"test_caught", "test_curve", "test_no_false_alarm"} <= names.found
