"""Recipes and architectures of a user's own file, in both frameworks, and runs that are opened without it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file as read_file
from safetensors.numpy import save_file

import flax_impl.evaluate
import flax_impl.export
import flax_impl.predict
import flax_impl.train
import study.compare
import torch_impl.evaluate
import torch_impl.export
import torch_impl.predict
import torch_impl.train
from common.arch import zoo as archs
from common.commands.evaluate import run_evaluate
from common.commands.export import run_export
from common.commands.predict import run_predict
from common.commands.train import run_train
from common.errors import UserError
from common.frameworks import Framework
from common.recipes import zoo as recipes
from common.recipes.own import FILES, load_file
from common.recipes.spec import Recipe
from common.runs.folder import RunFolder
from common.training.options import TrainOptions
from parity_tests.results import ROOT
from study import measure

TRAIN: dict[Framework, Any] = {"torch": torch_impl.train, "flax": flax_impl.train}
EVALUATE: dict[Framework, Any] = {"torch": torch_impl.evaluate, "flax": flax_impl.evaluate}
PREDICT: dict[Framework, Any] = {"torch": torch_impl.predict, "flax": flax_impl.predict}
EXPORT: dict[Framework, Any] = {"torch": torch_impl.export, "flax": flax_impl.export}
SUFFIX: dict[Framework, str] = {"torch": ".pt2", "flax": ".stablehlo"}
[EXAMPLE] = re.findall(r"`mine\.py`:\n\n```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text("utf-8"), re.DOTALL)


@contextmanager
def new_process() -> Iterator[None]:
    """What is known by its name in here is forgotten afterwards."""
    with ExitStack() as stack:
        for table in (archs.OWN, recipes.RECIPES, recipes.ABOUT):
            stack.enter_context(mock.patch.dict(table))
        yield


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    with new_process():
        yield


def written(folder: Path, text: str = EXAMPLE) -> Path:
    (folder / "mine.py").write_text(text)
    return folder / "mine.py"


@pytest.fixture(scope="module", params=["torch", "flax"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Framework, Path]:
    """A framework, and its run of the example."""
    framework, folder = request.param, tmp_path_factory.mktemp("own")
    words = ["--recipe-file", str(written(folder)), "--epochs", "1", "--out", str(folder / "run")]
    with new_process():
        run_train(TRAIN[framework].fit, words)
    assert "small" not in archs.OWN
    assert "mine" not in recipes.RECIPES
    return framework, folder / "run"


def image(folder: Path) -> str:
    Image.fromarray(np.full((40, 40), 200, np.uint8)).save(folder / "seven.png")
    return str(folder / "seven.png")


def test_a_run_is_evaluated_without_the_file(trained: tuple[Framework, Path], tmp_path: Path) -> None:
    framework, run = trained
    module, out = EVALUATE[framework], tmp_path / "out"
    run_evaluate(framework, module.evaluate_network, module.class_names, [str(run), "--out", str(out)])
    assert (out / "test.csv").is_file()


@pytest.mark.parametrize("alone", [False, True], ids=["a run", "its weights alone"])
def test_a_run_predicts_without_the_file(alone: bool, trained: tuple[Framework, Path], tmp_path: Path) -> None:
    framework, run = trained
    weights = Path(shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors"))
    words = ["--weights", str(weights)] if alone else ["--run", str(run)]
    words += [image(tmp_path), "--out", str(tmp_path / "pictures")]
    run_predict(framework, PREDICT[framework].predictor, EVALUATE[framework].class_names, words)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["seven.png.png"]


def test_a_run_is_exported_without_the_file(trained: tuple[Framework, Path], tmp_path: Path) -> None:
    framework, run = trained
    file = tmp_path / f"model{SUFFIX[framework]}"
    run_export(framework, EXPORT[framework].FORMATS, EXPORT[framework].export, [str(run), str(file)])
    assert file.is_file()


def test_a_run_is_resumed_without_the_file(trained: tuple[Framework, Path], tmp_path: Path) -> None:
    framework, run = trained
    run = Path(shutil.copytree(run, tmp_path / "run"))
    TRAIN[framework].fit(replace(RunFolder(run).recipe, epochs=2), TrainOptions(out=run, resume=True))
    assert [row["epoch"] for row in RunFolder(run).metrics() if row["split"] == "test"] == [1, 2]


def test_a_resumed_run_is_held_to_the_file_that_is_named(
    trained: tuple[Framework, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By name or without: more epochs are taken, fewer are those that the run has, any other change is refused."""
    framework, source = trained
    run = Path(shutil.copytree(source, tmp_path / "run"))
    metrics = (run / "metrics.jsonl").read_bytes()

    def resume(text: str, *words: str) -> str:
        with new_process():
            file = str(written(tmp_path, text))
            with mock.patch.dict(FILES, clear=True):
                run_train(TRAIN[framework].fit, [*words, "--recipe-file", file, "--resume", str(run)])
        return capsys.readouterr().out

    changed, last = EXAMPLE.replace('arch="small", epochs=3', 'arch="small", epochs=3, batch_size=32'), "epochs=1"
    for text, sentence in (
        (changed, "ran with batch_size = 64, not 32: a resumed run keeps its recipe."),
        (EXAMPLE.replace('name="mine"', 'name="other"'), "ran with name = mine, not other: "),
    ):
        assert text != EXAMPLE
        for words in ([], [re.findall(r'name="(mine|other)"', text)[-1]]):
            with pytest.raises(SystemExit):
                resume(text, *words)
            assert f"error: {run} {sentence}" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == metrics
    assert "resuming after epoch 1, the last" in resume(EXAMPLE.replace("epochs=3", last))
    resume(EXAMPLE.replace("epochs=3", "epochs=2"), "mine")
    assert RunFolder(run).recipe.epochs == 2
    assert "resuming after epoch 2, the last" in resume(EXAMPLE.replace("epochs=3", last), "mine")


def test_weights_that_say_nothing_take_their_names_of_the_file(trained: tuple[Framework, Path], tmp_path: Path) -> None:
    framework, run = trained
    silent, module = tmp_path / "silent.safetensors", EVALUATE[framework]
    save_file(read_file(run / "model.safetensors"), silent)
    words = [str(silent), "--arch", "small", "--recipe", "mine", "--classes", ",".join("0123456789")]
    with pytest.raises(SystemExit):
        run_evaluate(framework, module.evaluate_network, module.class_names, words)
    words += ["--recipe-file", str(written(tmp_path))]
    run_evaluate(framework, module.evaluate_network, module.class_names, words)
    assert (tmp_path / "evaluation").is_dir()


def test_a_runs_architecture_does_not_take_a_name_that_is_anothers(
    trained: tuple[Framework, Path], tmp_path: Path
) -> None:
    load_file(written(tmp_path, EXAMPLE.replace("DenseSpec(64", "DenseSpec(32")))
    before = archs.get_arch("small")
    assert RunFolder(trained[1]).recipe.arch == "small"
    assert archs.get_arch("small") == before != RunFolder(trained[1]).arch


def test_an_own_architecture_under_a_recipe_of_the_project(tmp_path: Path) -> None:
    file, taken = written(tmp_path, EXAMPLE.partition("digits =")[0]), []

    def fit(recipe: Recipe, options: TrainOptions) -> None:
        taken.append(recipe)

    run_train(fit, ["--recipe-file", str(file), "--arch", "small"])
    run_train(fit, ["digits", "--arch", "small"])  # of the same process, which knows it now
    assert [(recipe.name, recipe.model_arch((8, 8, 1), 10).name) for recipe in taken] == [("digits", "small")] * 2


def test_a_comparison_hands_the_file_on(tmp_path: Path) -> None:
    file, asked = written(tmp_path), []

    def refuse(words: list[str], **_: Any) -> Any:
        asked.append(words)
        return mock.Mock(returncode=1)

    options = study.compare.Options(recipe_file=file, out=tmp_path / "out")
    with mock.patch("subprocess.run", refuse), pytest.raises(UserError, match="Training with torch_impl failed"):
        study.compare.compare(options)
    [words] = asked
    assert words[2:4] == ["torch_impl.train", "mine"]
    assert words[words.index("--recipe-file") + 1] == str(file)


def test_the_pages_show_an_own_recipe(tmp_path: Path) -> None:
    assert load_file(written(tmp_path)) == ["mine"]
    assert measure.fresh_network("mine").arch.name == "small"


def test_two_recipes_want_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, EXAMPLE + "other = replace(mine, name='other')\n")
    with pytest.raises(SystemExit) as end:
        run_train(torch_impl.train.fit, ["--recipe-file", str(file), "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert f"{file} has the recipes mine, other: name one of them." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


HEAD = "from common.recipes.zoo import get_recipe\nfrom common.arch.zoo import ALEXNET\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "{file} defines no Recipe and no Arch of its own at its top level."),
        (HEAD + "base = get_recipe('digits')\n", "{file} defines no Recipe and no Arch of its own at its top level."),
        ("x = 1\ny = (\n", "{file}, line 2: '(' was never closed."),
        ("x = 1\nx = 1 / 0\n", "{file}, line 2: ZeroDivisionError: division by zero."),
        ("import nonesuch\n", "{file}, line 1: ModuleNotFoundError: No module named 'nonesuch'."),
        (HEAD + "\nopen('/nonesuch/a')\n", "{file}, line 4: FileNotFoundError: [Errno 2] No such file or directory"),
        (HEAD + "raise SystemExit(3)\n", "{file}, line 3: SystemExit: 3."),
        (HEAD + "get_recipe('digitz')\n", "{file}, line 3: There is no recipe 'digitz'. Did you mean 'digits'?"),
        (
            HEAD + "from dataclasses import replace\n\nmine = replace(get_recipe('digits'), epochs=3)\n",
            "{file}, line 5: another Recipe is named 'digits': give mine a name of its own.",
        ),
        (
            HEAD + "from dataclasses import replace\nwide = replace(ALEXNET, activation='tanh')\n",
            "{file}, line 4: another Arch is named 'alexnet': give wide a name of its own.",
        ),
        (
            HEAD + "from dataclasses import replace\nmine = replace(ALEXNET, name='a/b')\n",
            "{file}, line 4: the name 'a/b' will not do",
        ),
    ],
)
def test_a_file_that_will_not_do_gets_a_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        load_file(file)
    assert str(error.value).startswith(sentence.format(file=file))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read the recipe file .*none\.py: No such file or directory\."):
        load_file(tmp_path / "none.py")
