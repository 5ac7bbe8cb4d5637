"""The two packages read across: same files, names and layer calls; imports run one way; functions stay short."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "torch_impl", "flax_impl")
CONFIG = "pyproject.toml"

# What one framework needs and the other has no counterpart of: see DESIGN, section 1.
UNPAIRED = {"torch_impl": {"weights", "dropout", "sync_norm"}, "flax_impl": {"convert", "layers", "loss_scale"}}
PAIRED = sorted({path.stem for path in (ROOT / "torch_impl").glob("*.py")} - UNPAIRED["torch_impl"] - {"__init__"})

# Names that differ: a PyTorch model holds its weights, in Flax the variables are a tree beside it.
RENAMED = {("checkpoint", "load_model"): "load_variables", ("device", "compute_in"): "compute_dtype"}

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
    for path in sorted((ROOT / package).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{package}/{path.name}:{node.lineno} {node.name}", node


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
    in_torch, in_flax = public_names(parse("torch_impl", module)), public_names(parse("flax_impl", module))
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
    assert len(in_torch) == {"ConvBlock": 4, "AlexNet": 16, "LeNet": 10}[model]


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


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_short(package: str) -> None:
    sizes = {
        place: (node.end_lineno or 0) - node.lineno + 1
        for place, node in definitions(package)
        if not isinstance(node, ast.ClassDef)
    }
    assert len(sizes) > 20
    assert {place: size for place, size in sizes.items() if size > MAX_LINES} == {}


def public_definitions(package: str) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    """Public classes and functions of the modules, and their public methods."""
    for path in sorted((ROOT / package).glob("*.py")):
        nodes: list[ast.stmt] = list(ast.parse(path.read_text(encoding="utf-8")).body)
        for node in nodes:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield f"{package}/{path.name}:{node.lineno} {node.name}", node
                if isinstance(node, ast.ClassDef):
                    nodes += node.body


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_public_has_a_docstring(package: str) -> None:
    nodes = dict(public_definitions(package))
    assert len(nodes) > 20
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
    files = [path for path in (ROOT / package).glob("*.py") if path.stat().st_size]
    assert [path.name for path in files if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))] == []


@pytest.mark.parametrize("function", ["init_state", "train_step", "fit", "start_weights"])
@pytest.mark.parametrize("package", UNPAIRED)
def test_train_loops_hold_no_hyperparameters(package: str, function: str) -> None:
    """Numbers come from the recipe. 0 and 1 are axes, counts and first elements."""
    node = find(parse(package, "train"), function)
    assert isinstance(node, ast.FunctionDef)
    numbers = [
        constant.value
        for statement in node.body
        for constant in ast.walk(statement)
        if isinstance(constant, ast.Constant) and type(constant.value) in (int, float, complex)
    ]
    assert [number for number in numbers if isinstance(number, float) or number not in (0, 1)] == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages and the contracts, where a test may plant something."""
    for package in (*PACKAGES, "parity_tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / CONFIG, tmp_path / CONFIG)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run([*command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


CONTRACTS = (ROOT / CONFIG).read_text(encoding="utf-8").count("[[tool.importlinter.contracts]]")
LAYERS = "parity_tests -> torch_impl | flax_impl -> common"


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
        ("flax_impl/model.py", "import torch", "flax_impl knows no PyTorch"),
        ("flax_impl/convert.py", "from torchvision import models", "flax_impl knows no PyTorch"),
        ("flax_impl/layers.py", "import torch_impl", LAYERS),
        ("common/arch.py", "import torch", "common knows no framework"),
        ("common/draws.py", "from jax import random", "common knows no framework"),
        ("common/cli.py", "from torch_impl import train as planted_train", LAYERS),
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


WITHOUT = """
import importlib, sys

class Absent:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {modules}:
    importlib.import_module(name)
from common import cli
cli.train(importlib.import_module("{package}.train").fit, ["digits", "--help"])
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
