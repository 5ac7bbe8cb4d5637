"""The two packages read across: same files, names and layer calls; imports run one way; functions stay short."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parity_tests.results import ROOT

PACKAGES = ("common", "torch_impl", "flax_impl", "parity")
ROOMS = (*PACKAGES, "parity_tests", "study", "stress", "benchmarks")
CONFIG = "pyproject.toml"

# What one framework needs and the other has no counterpart of.
UNPAIRED = {"torch_impl": {"dropout", "pth"}, "flax_impl": {"convert", "kernels", "loss_scale"}}
LACKS = {"layers"}  # each holds what its framework lacks, so the names differ
PAIRED = sorted(
    {path.stem for path in (ROOT / "torch_impl").glob("*.py")} - UNPAIRED["torch_impl"] - LACKS - {"__init__"}
)

# Names that differ: a PyTorch model holds its weights, in Flax the variables are a tree beside it.
RENAMED = {
    ("checkpoint", "load_model"): "load_variables",
    ("weights", "load_model"): "load_variables",
    ("device", "compute_in"): "compute_dtype",
}
# JAX's types are arguments of a model, PyTorch's follow from its parameters; JAX compiles everything, constants too,
# and keeps it only where it is told so.
ONE_SIDED = {
    ("flax_impl", "device"): {"model_dtypes", "keep_programs"},
    ("torch_impl", "device"): {"constant", "compiles"},
}

# A Flax module's fields and free functions are attributes in PyTorch.
NOT_LAYERS = {"arch", "activation"}
FUNCTIONS_IN_FLAX = {"pool", "after"}

# What frameworks, or a protocol that documents it, call by a name of their own.
UNDOCUMENTED = {"extra_repr", "read", "setup"}

MAX_LINES = 60


def parse(package: str, module: str) -> ast.Module:
    return ast.parse((ROOT / package / f"{module}.py").read_text(encoding="utf-8"))


def find(tree: ast.Module | ast.ClassDef, name: str) -> ast.AST:
    """The function or class of this name, defined directly in `tree`."""
    found = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
    assert len(found) == 1, name
    return found[0]


def definitions(package: str) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every class and function of a package, nested ones too, with its place in words."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def public_names(tree: ast.Module) -> list[str]:
    """Functions and classes in the order of their definitions."""
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [node.name for node in nodes if not node.name.startswith("_")]


SHARED_NAMES = {
    "self.activation": "activation",
    "activation": "activation",
    "ACTIVATIONS[self.activation]": "activation",
    "x.flatten": "flatten",
    "x.reshape": "flatten",
    "adaptive_avg_pool": "pool",
    "_after": "after",
    "self.arch.check_input": "check_input",
    "cast": None,
}


class Calls(ast.NodeVisitor):
    """What a forward pass applies, in the order of evaluation, under names that both frameworks share.

    A conditional counts as its first branch. A call that is in no table is an error, so that nothing is overlooked.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.visit(node.body)

    def visit_Call(self, node: ast.Call) -> None:
        for argument in node.args:
            self.visit(argument)
        text = ast.unparse(node.func)
        name = text.removeprefix("self.") if text.count(".") == 1 and text.startswith("self.") else SHARED_NAMES[text]
        if name:
            self.found.append(name)


def calls(tree: ast.Module, model: str, method: str) -> list[str]:
    kind = find(tree, model)
    assert isinstance(kind, ast.ClassDef)
    visitor = Calls()
    visitor.visit(find(kind, method))
    return visitor.found


def assignments(tree: ast.Module, model: str, method: str) -> list[str]:
    """The attributes that a method gives `self`, in order."""
    kind = find(tree, model)
    assert isinstance(kind, ast.ClassDef)
    targets = [
        target for node in ast.walk(find(kind, method)) if isinstance(node, ast.Assign) for target in node.targets
    ]
    own = [t for t in targets if isinstance(t, ast.Attribute) and ast.unparse(t.value) == "self"]
    return [t.attr for t in sorted(own, key=lambda t: t.lineno)]


@pytest.mark.parametrize(("package", "other"), [("torch_impl", "flax_impl"), ("flax_impl", "torch_impl")])
def test_every_file_has_its_counterpart(package: str, other: str) -> None:
    ours, theirs = ({path.stem for path in (ROOT / name).glob("*.py")} for name in (package, other))
    assert ours - UNPAIRED[package] == theirs - UNPAIRED[other]
    assert ours >= UNPAIRED[package], "the table names a file that is gone"
    assert not UNPAIRED[package] & theirs, "an unpaired file has a counterpart now"


@pytest.mark.parametrize("module", PAIRED)
def test_same_public_names_in_the_same_order(module: str) -> None:
    in_torch, in_flax = (
        [name for name in public_names(parse(package, module)) if name not in ONE_SIDED.get((package, module), ())]
        for package in UNPAIRED
    )
    assert [RENAMED.get((module, name), name) for name in in_torch] == in_flax
    assert in_flax, "the file defines nothing"


def test_no_renaming_is_stale() -> None:
    for (module, name), other in RENAMED.items():
        assert name in public_names(parse("torch_impl", module))
        assert other in public_names(parse("flax_impl", module))


def test_packages_export_the_same() -> None:
    exported = [
        ast.literal_eval(node.value)
        for package in UNPAIRED
        for node in parse(package, "__init__").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    assert len(exported) == 2
    assert exported[0] == exported[1]


@pytest.mark.parametrize("model", ["ConvBlock", "AlexNet", "LeNet"])
def test_models_define_the_same_layers_in_the_same_order(model: str) -> None:
    in_torch = assignments(parse("torch_impl", "model"), model, "__init__")
    in_flax = assignments(parse("flax_impl", "model"), model, "setup")
    assert [name for name in in_torch if name not in NOT_LAYERS | FUNCTIONS_IN_FLAX] == in_flax
    assert "conv" in in_flax or "conv1" in in_flax


@pytest.mark.parametrize("model", ["ConvBlock", "AlexNet", "LeNet"])
def test_models_call_the_same_layers_in_the_same_order(model: str) -> None:
    in_torch = calls(parse("torch_impl", "model"), model, "forward")
    assert in_torch == calls(parse("flax_impl", "model"), model, "__call__")
    assert len(in_torch) == {"ConvBlock": 2, "AlexNet": 16, "LeNet": 10}[model]


def test_blocks_make_their_maps_alike() -> None:
    in_torch, in_flax = (calls(parse(f"{name}_impl", "model"), "ConvBlock", "maps") for name in ("torch", "flax"))
    assert in_torch == in_flax == ["conv", "norm", "activation"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("x = self.conv4(x, train=train)", "x = self.conv3(x, train=train)", id="a layer twice"),
        pytest.param("x = self.drop7(x, deterministic=not train)\n", "pass\n", id="a layer left out"),
        pytest.param("activation(self.fc6(x))", "self.fc6(activation(x))", id="the activation before the layer"),
        pytest.param("activation(self.fc7(x))", "self.fc7(x)", id="no activation"),
    ],
)
def test_a_planted_difference_is_seen(old: str, new: str) -> None:
    source = (ROOT / "flax_impl" / "model.py").read_text(encoding="utf-8")
    assert old in source
    planted = ast.parse(source.replace(old, new))
    assert calls(planted, "AlexNet", "__call__") != calls(parse("torch_impl", "model"), "AlexNet", "forward")


def test_an_unknown_call_is_not_overlooked() -> None:
    source = (ROOT / "flax_impl" / "model.py").read_text(encoding="utf-8")
    planted = ast.parse(source.replace("activation(self.fc6(x))", "nn.gelu(self.fc6(x))"))
    with pytest.raises(KeyError, match=r"nn\.gelu"):
        calls(planted, "AlexNet", "__call__")


@pytest.mark.parametrize("package", ROOMS)
def test_functions_are_short(package: str) -> None:
    sizes = {
        place: (node.end_lineno or 0) - node.lineno + 1
        for place, node in definitions(package)
        if not isinstance(node, ast.ClassDef)
    }
    assert len(sizes) > 8
    assert {place: size for place, size in sizes.items() if size > MAX_LINES} == {}


def public_definitions(package: str) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Public classes and functions of the modules, and their public methods."""
    for path in sorted((ROOT / package).rglob("*.py")):
        nodes: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
        for node in nodes:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node
                if isinstance(node, ast.ClassDef):
                    nodes += node.body


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_public_has_a_docstring(package: str) -> None:
    nodes = dict(public_definitions(package))
    assert len(nodes) > 8
    assert [p for p, n in nodes.items() if not ast.get_docstring(n) and n.name not in UNDOCUMENTED] == []


def raises_user_error(function: ast.FunctionDef) -> bool:
    """Whether its own body does, functions inside it left out."""
    nodes: list[ast.AST] = list(function.body)
    for node in nodes:
        if isinstance(node, ast.Raise) and "UserError(" in ast.unparse(node):
            return True
        if not isinstance(node, ast.FunctionDef):
            nodes += ast.iter_child_nodes(node)
    return False


@pytest.mark.parametrize("package", PACKAGES)
def test_docstrings_name_the_errors_that_are_raised(package: str) -> None:
    """A public function that raises `UserError` in its own body says so."""
    silent = []
    for place, node in public_definitions(package):
        if (
            isinstance(node, ast.FunctionDef)
            and raises_user_error(node)
            and "UserError" not in (ast.get_docstring(node) or "")
        ):
            silent.append(place)
    assert silent == []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_have_a_docstring(package: str) -> None:
    files = [path for path in (ROOT / package).rglob("*.py") if path.stat().st_size]
    assert [path.name for path in files if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


LESSON = [("train", "train_step"), ("train", "backward"), ("train", "update"), ("train", "train_epoch")]
BEGINNING = [("state", "init_state"), ("state", "freeze"), ("engine", "Engine"), ("accumulate", "accumulate")]


def numbers(node: ast.AST) -> list[Any]:
    """Constants but 0 and 1, which are axes, counts and first elements."""
    found = [constant.value for constant in ast.walk(node) if isinstance(constant, ast.Constant)]
    return [n for n in found if type(n) in (int, float, complex) and (isinstance(n, float) or n not in (0, 1))]


@pytest.mark.parametrize(("module", "name"), [*LESSON, *BEGINNING])
@pytest.mark.parametrize("package", UNPAIRED)
def test_training_holds_no_hyperparameters(package: str, module: str, name: str) -> None:
    """Numbers come from the recipe."""
    node = find(parse(package, module), name)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    assert [number for statement in node.body for number in numbers(statement) if number != -1] == []


def test_a_planted_hyperparameter_is_seen() -> None:
    assert numbers(ast.parse("optimizer.step(lr=0.1, groups=3)")) == [0.1, 3]


@pytest.mark.parametrize("package", UNPAIRED)
def test_the_lesson_is_short_and_free_of_machinery(package: str) -> None:
    """`train.py`: the step and the loop over batches, in 120 lines; nothing of a run folder, nor of a driver's."""
    source = (ROOT / package / "train.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 120
    assert public_names(ast.parse(source)) == [*(name for _, name in LESSON), "fit"]
    taken = {node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in taken if module and module.startswith(("common.runs", "common.data"))}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and the contracts, where a test may plant something."""
    for package in ROOMS:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / CONFIG, tmp_path / CONFIG)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run([*command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


CONTRACTS = (ROOT / CONFIG).read_text(encoding="utf-8").count("[[tool.importlinter.contracts]]")
LAYERS = "study | stress | benchmarks -> parity_tests -> torch_impl | flax_impl -> common"
WITHIN = "the rooms of common"


def test_imports_keep_the_contracts(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{CONTRACTS} kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("torch_impl/model.py", "import jax", "torch_impl knows no JAX"),
        ("torch_impl/train.py", "import optax", "torch_impl knows no JAX"),
        ("torch_impl/weights.py", "from flax_impl import convert", LAYERS),
        ("torch_impl/dropout.py", "import parity_tests.summary", LAYERS),
        ("parity_tests/sides.py", "import study.site", LAYERS),
        ("flax_impl/train.py", "from stress import soak", LAYERS),
        ("parity_tests/noise.py", "from benchmarks import bench", LAYERS),
        ("flax_impl/model.py", "import torch", "flax_impl knows no PyTorch"),
        ("flax_impl/convert.py", "from torchvision import models", "flax_impl knows no PyTorch"),
        ("flax_impl/layers.py", "import torch_impl", LAYERS),
        ("common/arch/spec.py", "import torch", "common knows no framework"),
        ("common/data/draws.py", "from jax import random", "common knows no framework"),
        ("common/commands/train.py", "from torch_impl import train as planted_train", LAYERS),
        ("common/data/pipeline.py", "from common.training import loop", WITHIN),
        ("common/arch/spec.py", "from common.recipes import zoo", WITHIN),
        ("common/runs/folder.py", "import common.weights.exchange", WITHIN),
        ("parity/compare.py", "import torch", "parity knows a framework only in its sides"),
        ("parity/verdict.py", "import parity.linen", "parity knows a framework only in its sides"),
        ("parity/causes.py", "from common import errors", "parity stands alone"),
    ],
)
def test_a_planted_import_breaks_its_contract(copy: Path, file: str, line: str, contract: str) -> None:
    """Inside a function, where it would not fail on import."""
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n\ndef planted():\n    {line}\n")
    done = lint_imports(copy)
    assert done.returncode != 0
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())
    assert f"{file.removesuffix('.py').replace('/', '.')} -> {line.split()[1].split('.')[0]}" in done.stdout


def imports(files: dict[str, str]) -> dict[str, set[str]]:
    """Which of these modules, sources by dotted name, each one imports: anywhere, for a type or in a function too."""
    found: dict[str, set[str]] = {}
    for name, source in files.items():
        taken = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                taken |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                taken |= {each if each in files else node.module for each in whole}
        found[name] = (taken & files.keys()) - {name}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle and those above it, or none: what imports nothing that is left is taken away."""
    left = {name: set(taken) for name, taken in graph.items()}
    while done := [name for name, taken in left.items() if not taken & left.keys()]:
        for name in done:
            del left[name]
    return sorted(left)


def test_no_imports_run_in_a_circle() -> None:
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    dotted = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph = imports({name: path.read_text(encoding="utf-8") for name, path in dotted.items()})
    assert sum(map(len, graph.values())) > 500
    assert circle(graph) == []


@pytest.mark.parametrize(
    "back",
    [
        "import b",
        "def f():\n    from b import x",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import b",
    ],
    ids=["plain", "in a function", "for a type"],
)
def test_a_planted_circle_is_seen(back: str) -> None:
    assert circle(imports({"a": "from c import y", "b": "import a", "c": back, "d": "import a"})) == [
        "a",
        "b",
        "c",
        "d",
    ]
    assert circle(imports({"a": "from c import y", "b": "import a", "c": "import os"})) == []


def test_one_owner_for_names_of_frameworks() -> None:
    """Titles, suffixes of checkpoints and colours stand in `common/frameworks.py` alone."""
    ours = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "tests" not in path.parts]
    for word in ('".orbax"', '"#d1491f"', '"#1f77c4"'):
        assert [path.name for path in ours if word in path.read_text(encoding="utf-8")] == ["frameworks.py"], word


WITHOUT = """
import importlib, sys

class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {modules}:
    importlib.import_module(name)
from common.commands.train import run_train
run_train(importlib.import_module("{package}.train").fit, ["digits", "--help"])
"""


def run_without(package: str, absent: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Import every module of a package and run its command where some packages are not installed."""
    modules = sorted(f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py") if path.stem != "__init__")
    code = WITHOUT.format(package=package, absent=absent, modules=modules)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("torch_impl", ("jax", "jaxlib", "flax", "optax", "orbax", "chex")),
        ("flax_impl", ("torch", "torchvision")),
    ],
)
def test_one_framework_is_enough(package: str, absent: tuple[str, ...]) -> None:
    done = run_without(package, absent)
    assert done.returncode == 0, done.stderr
    assert "--optimizer.lr" in done.stdout


@pytest.mark.parametrize(("package", "absent"), [("torch_impl", "torch"), ("flax_impl", "optax")])
def test_its_own_framework_is_needed(package: str, absent: str) -> None:
    """So that the test above cannot pass because nothing is blocked."""
    done = run_without(package, (absent,))
    assert done.returncode != 0
    assert f"No module named {absent!r}" in done.stderr
