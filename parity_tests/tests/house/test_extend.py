"""docs/extend.md holds: what it says, done in a copy, is enough, and each of its lines is needed.

The page's diffs are applied as they stand. Each kind is then tried as a command in the copy, `python -m` this module.
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from _pytest.mark import ParameterSet

from common.recipes import spec
from parity_tests.results import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = {part.split("\n")[0].lower(): part for part in PAGE.split("\n## ")[1:]}
TABLE = re.findall(r"^\| (an? .+?) \| (.+) \|$", PAGE, re.M)
FILES = {kind: set(re.findall(r"`(.+?)`", files)) for kind, files in TABLE}
MEASURED = [f"benchmarks/{name}" for name in ("measured.py", "measured_tables.py", "results/accuracy.json")]
COPIED = ("common", "torch_impl", "flax_impl", "parity", "parity_tests", "study", "docs")
MOST_LINES = 200


@dataclass(frozen=True)
class Change:
    """Lines of a file of which there is one like them, and what becomes of them."""

    file: str
    old: str
    new: str


def changes(kind: str) -> list[Change]:
    """A section's diff: lines that are there or go, then lines that come, and so on."""
    found = []
    [diff] = re.findall(r"^```diff\n(.*?)^```$", SECTIONS[kind], re.M | re.S)
    for file, body in re.findall(r"^\+\+\+ (.+)\n((?:[ +-](?!\+\+ ).*\n)+)", diff, re.M):
        for hunk in re.findall(r"(?:[ -].*\n)+(?:\+.*\n)+", body):
            old, new = (re.findall(rf"^[ {sign}](.*\n)", hunk, re.M) for sign in "-+")
            found.append(Change(file, "".join(old), "".join(new)))
    return found


def commands(kind: str) -> list[str]:
    """What a section says to try."""
    tries = re.findall(r"Try it: `make (\S+?)(?:` with\s`| )(.+?)`", SECTIONS[kind])
    assert tries, kind
    return [f"make {target} {words}" for target, words in tries]


def copied(folder: Path) -> Path:
    """The project once more."""
    for room in COPIED:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "requirements.lock", "Makefile", *MEASURED):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)
    return folder


def apply(change: Change, folder: Path) -> None:
    file = folder / change.file
    text = file.read_text(encoding="utf-8")
    assert text.count(change.old) == 1, f"{change.file} does not have once:\n{change.old}"
    file.write_text(text.replace(change.old, change.new), encoding="utf-8")


def ruff(kind: str, folder: Path, *words: str) -> int:
    files = [file for file in FILES[kind] if file.endswith(".py")]
    command = [sys.executable, "-m", "ruff", *words, "-q", *files]
    return subprocess.run(command, cwd=folder, check=False).returncode


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the project's in a folder, by name."""
    files = (file for room in COPIED for file in (folder / room).rglob("*") if file.suffix in (".py", ".md", ".html"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# Python, after the imports that take the most time: each line that it reads is a command, run in a process of its own.
ASK = """
import json, os, runpy, sys, traceback
import jax, flax.linen, optax, orbax.checkpoint, torch, torchvision, scipy.stats, sklearn.datasets, tyro, cattrs, pytest
for line in sys.stdin:
    folder, log, *command = json.loads(line)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(1, 2)
            sys.argv = command
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
# Networks as small as these take longer to compile than to run.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Python:
    """Runs modules of a copy as commands."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, folder: Path, *command: str) -> tuple[int, str]:
        """The exit code, and what was printed."""
        assert self.process.stdin
        assert self.process.stdout
        log = folder / "log.txt"
        self.process.stdin.write(json.dumps([str(folder), str(log), *command]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def python() -> Iterator[Python]:
    command, environment = [sys.executable, "-c", ASK], {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(
        command, cwd="/", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Python(process)
        process.kill()


def tried(kind: str, folder: Path, python: Python) -> str:
    """What is wrong with a copy in which a section was followed; "" for nothing."""
    if ruff(kind, folder, "format") or ruff(kind, folder, "check"):
        return "style"
    code, said = python(folder, __name__, kind)
    return f"exit code {code}: {said}" if code else ""


def test_the_page_is_short_and_its_table_whole() -> None:
    assert len(PAGE.splitlines()) <= MOST_LINES
    assert {kind: {change.file for change in changes(kind)} for kind in SECTIONS} == FILES
    assert SECTIONS.keys() == TRIALS.keys()
    assert all(commands(kind) for kind in SECTIONS)


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_section_is_enough(kind: str, tmp_path: Path, python: Python) -> None:
    folder = copied(tmp_path)
    before = contents(folder)
    for change in changes(kind):
        apply(change, folder)
    assert tried(kind, folder, python) == ""
    after = contents(folder)
    assert {file for file in before | after if before.get(file) != after.get(file)} == FILES[kind]


# What is left out in every run, the first change of this file; the others in the complete run.
LEFT_OUT = {
    "an architecture": "study/deviations.py",
    "a recipe": "parity_tests/tests/training/test_published_recipes.py",
    "an augmentation": "flax_impl/preprocess.py",
    "an optimizer": "common/recipes/spec.py",
    "an export format": "parity_tests/tests/weights/test_export.py",
}


def each_change() -> Iterator[ParameterSet]:
    for kind in SECTIONS:
        seen: list[str] = []
        for number, change in enumerate(changes(kind)):
            quick = change.file == LEFT_OUT[kind] and change.file not in seen
            seen.append(change.file)
            yield pytest.param(kind, number, marks=() if quick else pytest.mark.full, id=f"{kind}, {number + 1}")


@pytest.mark.parametrize(("kind", "number"), list(each_change()))
def test_nothing_can_be_left_out(kind: str, number: int, tmp_path: Path, python: Python) -> None:
    folder = copied(tmp_path)
    for place, change in enumerate(changes(kind)):
        if place != number:
            apply(change, folder)
    assert tried(kind, folder, python)


def test_every_field_of_a_recipe_is_explained() -> None:
    """The command line's help is made of it."""
    kinds: list[Any] = [kind for kind in vars(spec).values() if is_dataclass(kind) and kind.__module__ == spec.__name__]
    assert len(kinds) >= 7
    for kind in kinds:
        explained = set(re.findall(r"\w+", kind.__doc__ or ""))
        names = {field.name for field in fields(kind)} | {*get_args(get_type_hints(kind).get("name"))}
        assert names <= explained, f"{kind.__name__}: {', '.join(names - explained)}"


def test_no_optimizer_is_forgotten() -> None:
    """Both frameworks know it, give its memory the same names, and take a thousand equal steps with it."""
    from flax_impl.optim import OPTIMIZERS as FLAX
    from parity_tests.tests.training.test_optim import SPECS
    from torch_impl.optim import OPTIMIZERS as TORCH

    names = set(get_args(get_type_hints(spec.Optimizer)["name"]))
    assert names == TORCH.keys() == FLAX.keys() == {spec.name for spec in SPECS.values()}
    assert {name: list(kind.slots) for name, kind in FLAX.items()} == {n: list(kind.slots) for n, kind in TORCH.items()}
    slots = {frozenset(kind.slots.values()): set(kind.slots) for kind in FLAX.values()}
    for name, kind in FLAX.items():
        assert slots[frozenset(kind.slots.values())] == set(kind.slots), f"{name} has the memory of another in optax"


def test_no_augmentation_is_forgotten() -> None:
    """Everything at once has all but the random boxes, which take the place of the random crops."""
    from common.data.augment import AUGMENTATIONS
    from parity_tests.subjects import subjects

    everything = subjects()["everything"]
    asked = {name for name, entry in AUGMENTATIONS.items() if entry.asked(everything.recipe, everything.data.image)}
    assert asked | {"box"} == AUGMENTATIONS.keys()
    streams = [entry.stream for entry in AUGMENTATIONS.values()]
    assert len({*streams}) == len(streams)


def test_no_export_format_is_forgotten() -> None:
    from parity_tests.tests.weights.test_export import MODULES, OPEN, SUFFIXES

    assert {suffix for module in MODULES.values() for suffix in module.FORMATS.values()} == SUFFIXES.keys()
    assert SUFFIXES.keys() == OPEN.keys()


def obey(kind: str) -> None:
    """Run a section's commands; of training, read the command line."""
    from common.commands.train import run_train

    for command in commands(kind):
        words = [*shlex.split(command), "-n", "--no-print-directory"]
        said = subprocess.run(words, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
        [line] = re.findall(r"^\.venv/bin/python -m +([a-z]\w+_\w+\.\w+ .*)$", said.stdout, re.M)
        module, *arguments = shlex.split(line)
        if module.endswith(".train"):
            run_train(lambda recipe, options: None, arguments)
        else:
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)


def try_architecture() -> None:
    from common.arch.zoo import ARCHS
    from parity_tests.tests.models import test_arch, test_published
    from parity_tests.tests.study import test_study

    name = "mnist_example"
    obey("an architecture")
    test_arch.test_no_architecture_is_forgotten()
    test_arch.test_parameter_count(ARCHS[name], test_arch.PARAMETERS[name])
    test_arch.test_logits_equal_the_transcription(name)
    test_published.test_no_architecture_is_without_a_table()
    test_published.test_every_field_of_an_architecture_is_its_sources(name)
    test_study.test_every_deviation_has_a_reason()
    test_study.test_every_reason_is_for_a_deviation()


def try_recipe() -> None:
    import jax

    from parity_tests.curves import narrow_run
    from parity_tests.tests.benchmarks import test_measured
    from parity_tests.tests.training import test_published_recipes, test_recipes

    name = "digits_lenet"
    obey("a recipe")
    test_published_recipes.test_no_recipe_is_without_a_table()
    test_published_recipes.test_every_field_of_a_recipe_is_its_sources(name)
    test_measured.test_every_recipe_has_its_row("docs/recipes.md")
    test_recipes.test_recipes_refer_to_what_exists(name)
    test_recipes.test_recipes_say_where_they_come_from_and_what_to_expect(name)
    with jax.enable_x64(True):
        assert len(narrow_run(name, 3).losses) == 3


def lenet(**changes: Any) -> tuple[Any, Any, Any]:
    """A narrow LeNet for 16 x 16 pixels of a photograph: recipe, architecture, and batches over two epochs."""
    from common.arch.zoo import ARCHS
    from common.data.synthetic import tiles
    from parity_tests.material import first_batches, narrow
    from parity_tests.subjects import subjects

    recipe = replace(subjects()["plain"].recipe, **{"preprocess": spec.Preprocess(), **changes})
    data = tiles(16, 3)
    data = replace(data, ids=data.ids[:: len(data) // 21][:21])
    arch = narrow(ARCHS["lenet"].adapt(height=16, width=16, channels=3), conv=5, dense=16)
    return recipe, arch, list(first_batches(data, recipe, 6))


def try_tables() -> None:
    """A new field has its default in the table of them, and every recipe has it from there."""
    from parity_tests.tests.models import test_published
    from parity_tests.tests.training import test_published_recipes

    for kind in test_published.BY_DEFAULT:
        test_published.test_every_default_is_its_sources(kind)
    for name in test_published_recipes.TABLES:
        test_published_recipes.test_every_field_of_a_recipe_is_its_sources(name)


def try_augmentation() -> None:
    import jax
    import numpy as np

    from parity.compare import Bounds, compare_run
    from parity_tests.sides import make_pair
    from parity_tests.tests.data.test_preprocess import TestAgainstNumpy

    obey("an augmentation")
    test_every_field_of_a_recipe_is_explained()
    test_no_augmentation_is_forgotten()
    try_tables()
    asked: Any = {"solarize": 0.5}
    recipe, arch, batches = lenet(preprocess=spec.Preprocess(**asked))
    plain, _, plain_batches = lenet()
    numpy: Any = TestAgainstNumpy()
    with jax.enable_x64(True):
        numpy.test_solarize()
        left, right = make_pair(recipe, arch, 3)
        compare_run(left, right, batches, batches, Bounds(1e-11))
        seen, unchanged = (
            make_pair(recipe, arch, 3)[0].step(batch)["input"]["images"]
            for recipe, [batch, *_] in ((recipe, batches), (plain, plain_batches))
        )
    assert 0 < np.mean(seen != unchanged) < 1


def try_optimizer() -> None:
    import jax
    import numpy as np

    from flax_impl import optim as flax_optim
    from parity.compare import Bounds, compare_run
    from parity_tests.sides import make_pair
    from torch_impl import optim as torch_optim

    obey("an optimizer")
    test_every_field_of_a_recipe_is_explained()
    test_no_optimizer_is_forgotten()
    try_tables()
    name: Any = "rmsprop"
    recipe, arch, batches = lenet(optimizer=spec.Optimizer(name=name, lr=1e-3, weight_decay=5e-4))
    with jax.enable_x64(True):
        left, right = make_pair(recipe, arch, 3)
        compare_run(left, right, batches[:3], batches[:3], Bounds(1e-9))
        ours = torch_optim.optimizer_state(left.state.optimizer, left.state.model)
        theirs = flax_optim.optimizer_state(right.state.opt_state, arch)
        # Each goes on with the other's memory.
        left.state.optimizer.state.clear()
        torch_optim.load_optimizer(theirs, left.state.optimizer, left.state.model)
        opt_state = flax_optim.load_optimizer(ours, right.state.tx.init(right.state.params), arch)
        right.state = right.state.replace(opt_state=jax.device_put(opt_state, right.state.device))
        for given, taken in (
            (theirs, torch_optim.optimizer_state(left.state.optimizer, left.state.model)),
            (ours, flax_optim.optimizer_state(opt_state, arch)),
        ):
            assert given.step == taken.step == 3
            assert given.slots
            jax.tree.map(np.testing.assert_array_equal, given.slots, taken.slots)
        compare_run(left, right, batches[3:], batches[3:], Bounds(1e-9))


def try_export_format() -> None:
    import numpy as np

    from common.weights.export import TOLERANCE
    from parity_tests.tests.weights import test_export

    test_no_export_format_is_forgotten()
    arch = test_export.NETWORKS["lenet"]
    source = test_export.saved(Path(), arch).rename("model.safetensors")
    obey("an export format")
    assert json.loads(Path("model.ort.json").read_text())["format"] == "ort"
    scope: dict[str, Any] = {"path": "model.ort"}
    exec(test_export.OPEN[".ort"], scope)
    images = test_export.batches(arch)
    got = {name: np.asarray(scope["run"](test_export.nchw(array))) for name, array in images.items()}
    assert test_export.worst(got, test_export.expected("torch", source, arch)) <= TOLERANCE


TRIALS: dict[str, Callable[[], None]] = {
    "an architecture": try_architecture,
    "a recipe": try_recipe,
    "an augmentation": try_augmentation,
    "an optimizer": try_optimizer,
    "an export format": try_export_format,
}

if __name__ == "__main__":
    assert Path(__file__).parents[3] == Path.cwd() == Path(spec.__file__).parents[2], "not the copy"
    TRIALS[sys.argv[1]]()
