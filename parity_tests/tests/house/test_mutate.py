"""Mutation testing finds what it must: a toy package has mutants of every fate, and a run that is killed goes on."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from parity_tests.results import RESULTS, ROOT
from stress.mutate import Options, alone, mutate
from stress.mutation import mutations, report
from stress.mutation.sessions import Tree

SUMS = '''"""Sums."""

LIMIT = 3


def area(width: int, height: int) -> int:
    return width * height


def clipped(x: int) -> int:
    return LIMIT if x > LIMIT else x


def unseen(x: float) -> float:
    return x + 1.5


def never(x: int) -> int:
    return -x


def refused(x: int) -> None:
    raise ValueError(f"{x + 1} is wrong")
'''
LOOPS = """def counted(n: int, step: int) -> int:
    while n > 0:
        n -= step
    return n
"""
TESTS = """import time

import pytest
from toy import loops, sums


class One:
    def __rsub__(self, other):
        return other - 1

    def __gt__(self, other):
        time.sleep(0.1)
        return True


def test_area():
    assert sums.area(2, 3) == 6


def test_clipped():
    assert [sums.clipped(x) for x in (1, 3, 5)] == [1, 3, 3]


def test_unseen():
    sums.unseen(1)


def test_refused():
    with pytest.raises(ValueError):
        sums.refused(1)


def test_counted():
    assert loops.counted(3, One()) == 0
"""
CONFTEST = """from pathlib import Path


def pytest_sessionfinish():
    with Path({path!r}).open("a") as file:
        file.write("run\\n")
"""
EQUIVALENT = """[[mutant]]
file = "toy/sums.py"
line = "return LIMIT if x > LIMIT else x"
mutation = "return LIMIT if x >= LIMIT else x"
reason = "At the limit both are the limit."
"""


def toy(folder: Path) -> Tree:
    """A package and its tests; every session of pytest adds a line to the file `runs`."""
    files = {
        "toy/__init__.py": "",
        "toy/sums.py": SUMS,
        "toy/loops.py": LOOPS,
        "tests/test_toy.py": TESTS,
        "tests/conftest.py": CONFTEST.format(path=str(folder / "runs")),
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["full", "gpu"]\n',
        "parity_tests/equivalent_mutants.toml": EQUIVALENT,
    }
    for name, text in files.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(folder / "tree", ("toy",), "tests", imported=(), grace=12)


def fates(row: dict[str, Any]) -> set[tuple[str, str]]:
    return {(each["mutation"], each["outcome"]) for each in row["survivors"]}


def test_every_fate(tmp_path: Path) -> None:
    """A mutant is killed, hangs, survives, is reached by no test or is known to be equivalent; and tests change."""
    tree = toy(tmp_path)
    options = Options(processes=2, out=tmp_path / "out", root=tree.root)
    result = mutate(options, tree)
    sums, loops = result["files"]["toy/sums.py"], result["files"]["toy/loops.py"]
    unseen = {("return x - 1.5", "survived"), ("return x + 2.5", "survived"), ("return x + 0.5", "survived")}
    assert fates(sums) == unseen | {("return x + 1.65", "survived"), ("return x", "unreached")}
    assert sums["equivalent"] == 1
    assert sums["score"] == round(sums["killed"] / (sums["killed"] + 5), 4)
    assert sums["left_out"]["message"] >= 3
    assert (loops["timeout"], loops["survived"]) == (1, 0)
    assert loops["killed"] >= 5
    assert json.loads((tmp_path / "out" / "mutation.json").read_text()) == result
    assert "+return x - 1.5" in (tmp_path / "out" / "mutation.md").read_text()
    # A test that sees it: the survivors of the tests that changed are tried again, and only they.
    before = len((tmp_path / "runs").read_text().splitlines())
    path = tree.root / "tests" / "test_toy.py"
    path.write_text(path.read_text().replace("    sums.unseen(1)", "    assert sums.unseen(1) == 2.5"))
    again = mutate(options, tree)["files"]["toy/sums.py"]
    assert fates(again) == {("return x", "unreached")}
    most = 1 + 1 + 4 + 1  # the map, the tests without a mutant, what survived, what is equivalent
    assert len((tmp_path / "runs").read_text().splitlines()) - before <= most


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    """After SIGKILL, what has a result is not tried again, and all of it is there in the end."""
    tree = toy(tmp_path)
    program = (
        "from pathlib import Path; from stress.mutate import Options, mutate;"
        "from stress.mutation.sessions import Tree;"
        f"root = Path({str(tree.root)!r}); out = root.parent / 'out';"
        "mutate(Options(('toy/sums.py',), processes=1, out=out, root=root), Tree(root, ('toy',), 'tests', (), 12))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(finished(tree)) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = finished(tree)
    assert 2 <= len(kept) < 9
    before = len((tmp_path / "runs").read_text().splitlines())
    result = mutate(Options(("toy/sums.py",), processes=1, out=tmp_path / "out", root=tree.root), tree)
    row = result["files"]["toy/sums.py"]
    assert row["pending"] == 0
    assert kept.items() <= finished(tree).items()
    reached = row["tried"] - row["unreached"]
    runs = len((tmp_path / "runs").read_text().splitlines()) - before
    assert runs - (1 + reached - len(kept)) in (0, 1)  # the killed run's last mutant may end later


def finished(tree: Tree) -> dict[str, str]:
    """Jobs of the toy's sums that were tried, with what is kept of them."""
    found: dict[str, str] = {}
    for path in (tree.store / "sessions").glob("toy.sums.py.*.sqlite"):
        with suppress(sqlite3.OperationalError):
            database = sqlite3.connect(path)
            query = "select job_id, output from work_results where test_outcome is not null"
            found |= {job: output for job, output in database.execute(query) if '"unreached"' not in output}
            database.close()
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = 1e-5\n", {"x = 1.00001", "x = -0.99999", "x = 1.1e-05"}),
        ("f(a, b=1 < 2)\n", {"pass", "f(a,)"} | {f"f(a, b={each})" for each in ("1 <= 2", "1 >= 2", "2 < 2", "0 < 2")}
         | {"f(a, b=1 < 3)", "f(a, b=1 < 1)"}),
        ("x = 10.0\n", {"x = 11.0", "x = 9.0"}),
        ("x += y\n", {"x = y"}),
        ("def f(x: int | None = None) -> int | None:\n    return not x\n", {"return x"}),
        ("for x in y:\n    break\n", {"for x in []:", "continue"}),
        ("@cache\ndef f():\n    '''1 + 1'''\n", set()),
        ("@property\ndef f():\n    return True\n", {"", "return False"}),
        ("@dataclass(frozen=True)\nclass C:\n    x: A | B\n", {""}),
        ("print(1 + 1)\nlog.warning('x', 1)\nassert x == 1, 2\nraise E(1)\n", set()),
        ("from a import *\nPair = tuple[int, A | B]\nx = cast(A | B, y)\n", set()),
        ("if __name__ == '__main__':\n    f(1)\nif TYPE_CHECKING:\n    f(1)\n", set()),
        ("zip(a, b, strict=True)\n", {"pass"}),
        ("def f():\n    from matplotlib import plot\n    x = {'alpha': 1, 'a': y()}\n    plot(x, dpi=2)\n", {"pass"}),
        ("norm(alpha=2)\n", {"pass", "norm()", "norm(alpha=3)", "norm(alpha=1)"}),
        ("try:\n    x\nexcept a.b.C as e:\n    y\n", {"except NothingRaisesThis as e:"}),
        ("try:\n    x\nexcept (A, b.C):\n    y\n",
         {"except (NothingRaisesThis, b.C):", "except (A, NothingRaisesThis):"}),
    ],
)  # fmt: skip
def test_what_is_mutated(source: str, expected: set[str]) -> None:
    """Lines that compute are, each in every chosen way; what is for people, for mypy or a guard is not."""
    found = mutations.mutations(source)
    tried = [each.new for each in found if not each.left_out]
    assert set(tried) == expected
    assert len(tried) == len(expected), "a mutant is made twice"
    assert {each.left_out for each in found} <= {"", *mutations.REASONS}


def test_no_two_commands_share_a_folder(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(UserError, match="Another process mutates"), alone(tmp_path):
        pass


def test_a_file_that_is_not_mutated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"toy/other\.py"):
        mutate(Options(("toy/other.py",), out=tmp_path, root=tmp_path), toy(tmp_path))


def test_known_equivalents_are_still_there() -> None:
    """Each is a mutant that is made, of a file as it is, with a reason."""
    known = report.equivalents(ROOT)
    for file in {file for file, _, _ in known}:
        made = {(each.old, each.new) for each in mutations.mutations((ROOT / file).read_text("utf-8"))}
        assert {(line, mutation) for name, line, mutation in known if name == file} <= made
    assert all(len(reason) > 20 for reason in known.values())


@pytest.mark.full
def test_a_sample_of_the_files_that_were_tried_whole(tmp_path: Path) -> None:
    """60 mutants of theirs: none survives but those that are filed as survivors."""
    filed = json.loads((RESULTS / "mutation.json").read_text("utf-8"))["files"]
    whole = {file: row for file, row in filed.items() if not row["pending"]}
    tests = {test for row in whole.values() for test in row["tests"]}
    result = mutate(Options(tuple(whole), sample=60, tests=tuple(sorted(tests)), out=tmp_path), Tree(ROOT))
    assert result["totals"]["killed"] + result["totals"]["timeout"] > 50
    for file, row in result["files"].items():
        known = {(each["line"], each["mutation"]) for each in whole[file]["survivors"]}
        assert {(each["line"], each["mutation"]) for each in row["survivors"]} <= known, file
