"""What the commands say of themselves: each text, its values by name, and nothing that only the source explains."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import ablation
from common.arch import zoo as archs
from common.arch.initializers import INITS
from common.arch.zoo import ABLATIONS, ARCHS
from common.data.spec import DATASETS
from common.errors import UserError
from common.recipes.zoo import ABOUT, RECIPES, get_recipe
from parity_tests.results import ROOT

COMMANDS = (
    *("torch_impl.train", "flax_impl.train", "torch_impl.weights", "flax_impl.weights"),
    *(f"torch_impl.{command}" for command in ("evaluate", "predict", "export", "features", "find_lr")),
    *(f"common.commands.{command}" for command in ("data", "launch", "plot", "runs")),
    *("study", "study.compare", "parity_tests.summary", "parity_tests.table", "parity_tests.mutants"),
    *("benchmarks.ablation", "benchmarks.gpu_pack", "stress.mutate", "stress.soak"),
)
# What each option is one of, wherever there is such an option.
NAMES: dict[str, Mapping[str, object]] = {
    "--dataset NAME": DATASETS,
    "--arch NAME": ARCHS | ABLATIONS,
    "--init NAME": INITS,
    "--recipe NAME": RECIPES,
}


def run(module: str, *words: str) -> None:
    """As `python -m MODULE WORDS`, in this process."""
    with mock.patch("sys.argv", [module, *words]), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of modules that are imported already
        runpy.run_module(f"{module}.__main__" if module == "study" else module, run_name="__main__", alter_sys=True)


def helped(module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `--help` prints."""
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as end:
        run(module, "--help")
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("module", COMMANDS)
def test_a_help_can_be_read(module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = helped(module, capsys, monkeypatch)
    assert said.startswith(f"usage: python -m {module}")
    for word in ("{None}", "(default: None)", "(default: )", "common.", "see its class", "RECIPES", "STR", "{fixed}"):
        assert word not in said.replace("common.commands.", ""), word
    flat = " ".join(re.sub(r"[│|]\n[│|]|\s", " ", said).split())
    assert "-h, --help show this help message and exit" in flat
    for option in re.split(r" (?=--[a-z])", flat.partition("message and exit")[2])[1:]:
        text = re.sub(r"\(default: \S+\)|^--\S+( [A-Z]+| \S+\|\S+)?( \.\.\.)?", "", option)
        assert option.endswith(",") or re.search(r"\w+", text), option  # of a pair, the second flag has the text
        assert all(", ".join(names) in text for start, names in NAMES.items() if option.startswith(f"{start} ")), option


@pytest.mark.parametrize("module", ["torch_impl.train", "flax_impl.train"])
def test_training_names_its_recipes(
    module: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a line with a few words; and it has no option that undoes a word which takes a value."""
    said = helped(module, capsys, monkeypatch)
    for name in RECIPES:
        [line] = [line for line in said.splitlines() if line.startswith(f"  {name} ")]
        few = line.removeprefix(f"  {name} ").strip()
        assert few
        assert " ".join(ABOUT[name].split()).startswith(few)
    assert "--resume RUN" in said
    assert "--no-resume" not in said
    assert "--resumed" not in said
    assert "--preprocess.flip, --preprocess.no-flip" in said  # of a recipe that flips it can be switched off


def test_flags_of_a_command_have_one_form(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = helped("torch_impl.evaluate", capsys, monkeypatch)
    assert "--ten-crop" in said
    assert "--no-" not in said


OWN = """from dataclasses import replace

from common.arch.zoo import ARCHS
from common.recipes.zoo import get_recipe

small = replace(ARCHS["lenet"], name="small")
mine = replace(get_recipe("digits"), name="mine", arch="small")
"""


def test_a_summary_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By name or, since it has one architecture, without; names that there are not get a sentence."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    for words in (["small"], []):
        assert summary(*words, "--recipe-file", str(file)) == 0
        assert "small: input 28 x 28 x 1" in capsys.readouterr().out
    for name in ("alexnett", "small"):
        assert summary(name) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: There is no architecture {name!r}.")
        assert "alexnet_2012" in said
    file.write_text(OWN + "other = replace(small, name='other')\n")
    assert summary("--recipe-file", str(file)) == 2
    assert f"{file} has the architectures small, other: name one of them." in capsys.readouterr().err


def summary(*words: str) -> object:
    """The exit code of the command, which forgets what it knows of a file."""
    with mock.patch.dict(archs.OWN), mock.patch.dict(RECIPES), mock.patch.dict(ABOUT):
        try:
            run("parity_tests.summary", *words)
        except SystemExit as end:
            return end.code
    return 0


def test_rows_of_an_ablation_are_checked() -> None:
    assert list(ablation.rows(get_recipe("digits"), ["MixUp"])) == ["MixUp"]
    assert "alexnet_cifar_tanh" in ablation.rows(get_recipe("digits"), [])
    with pytest.raises(UserError, match=r"There is no row 'mixup'\. Did you mean 'MixUp'\?"):
        ablation.rows(get_recipe("digits"), ["mixup"])


def test_an_ablation_takes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows change its recipe, the runs are told of it, and a run that fails ends it in a sentence."""
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    asked: list[list[str]] = []

    def refuse(words: list[str], **rest: object) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        return subprocess.CompletedProcess(words, 1)

    recipe = get_recipe("digits")
    monkeypatch.setattr("subprocess.run", refuse)
    with pytest.raises(UserError, match="Training with torch_impl failed, exit code 1"):
        ablation.train(ablation.Options(recipe_file=file), recipe, "torch", 0, ())
    assert asked[0][asked[0].index("--recipe-file") + 1] == str(file)
    assert asked[0][2:4] == ["torch_impl.train", "digits"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("torch_impl.train --help", 0, "usage: python -m torch_impl.train digits [-h]"),
        ("flax_impl.train lenet --help", 2, "error: There is no recipe 'lenet'."),
        ("flax_impl.find_lr digits_typo", 2, "error: There is no recipe 'digits_typo'. Did you mean 'digits'?"),
        ("torch_impl.train digits --epoch 3", 2, "Unrecognized options: --epoch"),
        ("flax_impl.train --batch-size none", 2, "--batch-size"),
        ("flax_impl.find_lr digits --steps 0", 2, "steps"),
        ("torch_impl.evaluate RUN -h", 0, "usage: python -m torch_impl.evaluate"),
        ("flax_impl.evaluate RUN --confusions", 2, "--confusions"),
        ("torch_impl.predict cat.jpg --top many", 2, "--top"),
        ("flax_impl.features", 2, "PATH"),
        ("torch_impl.export --help", 0, "usage: python -m torch_impl.export"),
        ("flax_impl.export RUN", 2, "DEST"),
        ("torch_impl.photos pictures --help", 0, "usage: python -m torch_impl.photos pictures"),
        ("flax_impl.photos pictures --scratch --epoch 3", 2, "Unrecognized options: --epoch"),
        ("flax_impl.photos --resume", 2, "error: --resume needs RUN"),
        ("torch_impl.train digits", 1, "the framework"),
        ("torch_impl.photos pictures --epochs 3", 1, "the framework"),
        ("torch_impl.export RUN net.onnx", 1, "the framework"),
        ("flax_impl.evaluate RUN", 1, "the framework"),
    ],
)
def test_a_help_and_a_slip_need_no_framework(words: str, code: int, said: str, tmp_path: Path) -> None:
    """Which takes seconds to import, and here cannot be; a command that does something imports it."""
    for name in ("torch", "jax"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the framework')", "utf-8")
    command = [sys.executable, "-m", *words.split()]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
