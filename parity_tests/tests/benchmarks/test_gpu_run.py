"""The pack for a GPU machine and the stages there, in small: what is skipped, goes on, is cut off, and comes back."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu_run
from benchmarks.gpu_pack import LACKING, PRESENT, SPARED, check_size
from benchmarks.gpu_run import ABOUT, ALL, ARCHIVE, INSTALLED, STATE, SUMMARY, WHEELS, Call, Results, Stage
from common.config import read_json
from common.errors import UserError
from common.runs.files import write_json
from common.stopping import Stopped
from parity_tests.results import ROOT

# A stage: notes each time that it runs, then does what the test has it do.
MODULE = """
import os, pathlib, subprocess, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
with (folder / "ran.txt").open("a") as file:
    file.write(sys.argv[1] + "\\n")
(folder / "stage.txt").write_text(str(os.getpid()))
if (folder / "hang").exists():  # with a process of its own that does not end when it is asked to
    ignore = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(3600)"
    child = subprocess.Popen([sys.executable, "-c", ignore], stdout=subprocess.PIPE)
    child.stdout.readline()
    (folder / "child.part").write_text(str(child.pid))
    (folder / "child.part").rename(folder / "child.txt")
    time.sleep(3600)
sys.exit(int((folder / "code").read_text()) if (folder / "code").exists() else 0)
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """A call with two stages, each of which is the module above."""
    pack = tmp_path / "pack"
    (pack / INSTALLED).mkdir(parents=True)
    (pack / INSTALLED / "a_stage.py").write_text(MODULE)
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.delenv("OUT", raising=False)
    stages = {
        name: Stage(limit, 1.0, lambda call, seconds, name=name: ["a_stage", name])  # type: ignore[misc]
        for name, limit in (("smoke", 600.0), ("proof", 600.0))
    }
    monkeypatch.setattr(gpu_run, "STAGES", stages)
    return Call(pack, tmp_path / "results", "gpu", monotonic() + 10_000, about={"commit": "c0ffee"}, sources="these")


def ran(call: Call) -> list[str]:
    path = call.pack.parent / "ran.txt"
    return path.read_text().split() if path.exists() else []


def status(call: Call) -> dict[str, str]:
    return {name: entry["status"] for name, entry in json.loads((call.results / STATE).read_text()).items()}


def test_what_is_done_is_skipped_and_can_be_repeated(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_run.work(call, ["smoke", "proof"])
    assert gpu_run.work(call, ["smoke", "proof"])
    assert ran(call) == ["smoke", "proof"]
    assert "smoke: done before" in capsys.readouterr().out
    call.again = ("proof",)
    assert gpu_run.work(call, ["smoke", "proof"])
    assert ran(call) == ["smoke", "proof", "proof"]


def test_what_was_found_on_other_sources_does_not_count(call: Call) -> None:
    assert gpu_run.work(call, ["proof"])
    left = call.results / "proof" / "found.json"
    left.write_text("{}")
    call.sources = "others"
    call.keep = True
    assert gpu_run.work(call, ["proof"])
    assert ran(call) == ["proof"]
    assert left.exists()
    call.keep = False
    assert gpu_run.work(call, ["proof"])
    assert ran(call) == ["proof"] * 2
    assert not left.exists()


def test_what_failed_runs_again_and_goes_on(call: Call) -> None:
    code = call.pack.parent / "code"
    for number, word in ((gpu_run.LEFT, "not whole"), (1, "failed")):
        code.write_text(str(number))
        assert not gpu_run.work(call, ["smoke", "proof"])
        assert status(call) == {"smoke": word, "proof": word}
    kept = call.results / "proof" / "found.json"
    kept.write_text("{}")
    code.unlink()
    assert gpu_run.work(call, ["proof"])
    assert status(call) == {"smoke": "failed", "proof": "done"}
    assert kept.exists()
    assert len((call.results / SUMMARY).read_text().split("proof     done")) == 2


def test_without_a_gpu_the_others_are_not_begun(call: Call) -> None:
    (call.pack.parent / "code").write_text(str(gpu_run.NO_GPU))
    assert not gpu_run.work(call, ["smoke", "proof"])
    assert ran(call) == ["smoke"]


def test_no_stage_is_begun_without_the_time_for_it(call: Call) -> None:
    call.deadline = monotonic()
    assert not gpu_run.work(call, ["smoke"])
    assert ran(call) == []
    assert status(call) == {"smoke": "left"}


def cut_off(call: Call, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the first stage run into its limit; returns the process that it has started. A slow machine tries longer."""
    (call.pack.parent / "hang").touch()
    pid = call.pack.parent / "child.txt"
    for seconds in (2.0, 8.0, 32.0, 128.0):
        monkeypatch.setitem(gpu_run.STAGES, "smoke", Stage(seconds, 1.0, gpu_run.STAGES["smoke"].command))
        assert not gpu_run.work(call, ["smoke"])
        assert status(call) == {"smoke": "cut off"}
        if pid.exists():
            return int(pid.read_text())
    raise AssertionError("the stage has not begun")


def alive(pid: int) -> bool:
    """And no zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_time_limit_ends_all_that_a_stage_has_started(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not alive(cut_off(call, monkeypatch))
    (call.pack.parent / "hang").unlink()
    before = len(ran(call))
    assert gpu_run.work(call, ["smoke"])  # the next call
    assert len(ran(call)) == before + 1
    seconds = json.loads((call.results / STATE).read_text())["smoke"]["seconds"]
    assert len(seconds) == before + 1


def test_a_process_that_stays_would_be_seen(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: the stage alone is ended."""

    def end(process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    monkeypatch.setattr(gpu_run, "_end", end)
    pid = cut_off(call, monkeypatch)
    try:
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_call_that_is_killed_takes_its_stage_with_it(call: Call) -> None:
    (call.pack.parent / "hang").touch()
    log, environment = call.pack.parent / "log", call.environment()
    code = "import os, pathlib, sys; from benchmarks.gpu_run import run; "
    code += "run(['a_stage', 'smoke'], os.environ, pathlib.Path(sys.argv[1]), 3600)"
    with subprocess.Popen([sys.executable, "-c", code, str(log)], cwd=ROOT, env=environment) as process:
        child, stage = (call.pack.parent / name for name in ("child.txt", "stage.txt"))
        wait_for(child.exists)
        process.kill()
    wait_for(lambda: not alive(int(stage.read_text())))
    os.kill(int(child.read_text()), signal.SIGKILL)  # of which the kernel was not told


def wait_for(what: Callable[[], bool]) -> None:
    """However slow the machine is."""
    until = monotonic() + 120
    while not what():
        assert monotonic() < until
        sleep(0.05)


def test_a_call_that_is_stopped_files_what_it_has(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*args: Any) -> int:
        raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(gpu_run, "run", stopped)
    with pytest.raises(Stopped):
        gpu_run.work(call, ["smoke", "proof"])
    assert status(call) == {"smoke": "cut off"}
    assert f"gpu-results/{STATE}" in members(call.results / ARCHIVE)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def test_the_archive_has_everything(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    out = call.pack.parent / "out"
    monkeypatch.setenv("OUT", str(out))
    assert gpu_run.work(call, ["smoke", "proof"])
    (call.results / "proof" / "found.json").write_text("{}")
    Results(call).file()
    files = {path for path in call.results.rglob("*") if path.is_file() and path.name != ARCHIVE}
    expected = {f"gpu-results/{path.relative_to(call.results)}": path.read_bytes() for path in files}
    assert members(call.results / ARCHIVE) == members(out / ARCHIVE) == expected
    assert expected.keys() >= {f"gpu-results/{name}" for name in (STATE, SUMMARY, "smoke.log", "proof/found.json")}
    assert sorted(path.name for path in out.iterdir()) == [ARCHIVE, SUMMARY]
    assert "c0ffee" in (out / SUMMARY).read_text()


def test_an_archive_that_would_be_too_large_is_without_the_largest(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call.results.mkdir()
    (call.results / "large").write_bytes(os.urandom(50_000))
    (call.results / "small").write_bytes(os.urandom(1_000))
    monkeypatch.setattr(gpu_run, "MOST", 60_000)
    assert members(gpu_run.archive(call.results)).keys() == {"gpu-results/large", "gpu-results/small"}
    monkeypatch.setattr(gpu_run, "MOST", 40_000)
    kept = members(gpu_run.archive(call.results))
    assert kept.keys() == {"gpu-results/small", "gpu-results/left-out.txt"}
    assert kept["gpu-results/left-out.txt"] == b"large"
    assert (call.results / ARCHIVE).stat().st_size <= 40_000
    assert "without large" in capsys.readouterr().out


def test_an_archive_is_written_whole_or_not_at_all(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    call.results.mkdir()
    (call.results / "one").write_text("1")
    before = members(gpu_run.archive(call.results))

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (call.results / "two").write_text("2")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        gpu_run.archive(call.results)
    assert members(call.results / ARCHIVE) == before
    assert sorted(path.name for path in call.results.iterdir()) == [ARCHIVE, "one", "two"]


def wheel(folder: Path, name: str, tag: str = "py3-none-any") -> None:
    """A wheel with one module."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: absent\n")
        file.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        file.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_wheels_are_installed_once_and_come_first(call: Call) -> None:
    folder = call.pack / WHEELS
    folder.mkdir()
    wheel(folder, "tyro")  # which is installed here, as safetensors is on the machine
    gpu_run.install(call.pack)
    where = [sys.executable, "-c", "import tyro; print(tyro.__file__)"]
    found = subprocess.run(where, env=call.environment(), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()) == call.pack / INSTALLED / "tyro.py"
    (call.pack / INSTALLED / "tyro.py").touch()
    (call.pack / INSTALLED / "mark").touch()
    gpu_run.install(call.pack)
    assert (call.pack / INSTALLED / "mark").exists()
    wheel(folder, "other", "cp27-cp27m-win32")
    with pytest.raises(UserError, match=r"cannot be installed by .* Python 3\..*not a supported wheel"):
        gpu_run.install(call.pack)
    assert (call.pack / INSTALLED / "mark").exists()


def test_a_pack_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the project's folder, or around it."""
    root = tmp_path / "outer" / "inner"
    (root / ".gpu-pack").mkdir(parents=True)
    monkeypatch.setattr(gpu_run, "ROOT", root)
    with pytest.raises(UserError, match="make gpu-pack"):
        gpu_run.find_pack(None)
    for folder in (root.parent, root / ".gpu-pack"):
        write_json(folder / ABOUT, {})
        assert gpu_run.find_pack(None) == folder
    with pytest.raises(UserError, match="nowhere"):
        gpu_run.find_pack(tmp_path / "nowhere")


def test_every_source_counts(tmp_path: Path) -> None:
    (tmp_path / "room" / "below").mkdir(parents=True)
    for file in ("pyproject.toml", "room/__init__.py", "room/below/one.py", "other.py"):
        (tmp_path / file).write_text("")
    before = gpu_run.fingerprint(tmp_path)
    (tmp_path / "other.py").write_text("1")
    assert gpu_run.fingerprint(tmp_path) == before
    (tmp_path / "room" / "below" / "one.py").write_text("1")
    assert gpu_run.fingerprint(tmp_path) != before


def test_a_pack_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cifar10").write_bytes(bytes(3_000_000))
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one").write_bytes(bytes(1_000_000))
    assert check_size(tmp_path, 4.0) == "4.0 MB: cifar10 3.0 MB, wheels 1.0 MB"
    with pytest.raises(UserError, match=r"would have 4.0 MB and may have 3.9: cifar10 3.0 MB.*--most 5"):
        check_size(tmp_path, 3.9)


TESTS = """
import os, time, pytest
def test_good(): pass
def test_good_too(): pass
@pytest.mark.skipif(True, reason="not here")
def test_skipped(): pass
def test_bad(): assert "MENDED" in os.environ, "a reason"
def test_endless(): time.sleep(0 if "MENDED" in os.environ else 3600)
"""


def test_the_proof_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes are filed test by test, also of one that takes too long; what has passed is not run again."""
    (tmp_path / "test_it.py").write_text(TESTS)
    log = tmp_path / "proof" / "tests.jsonl"
    monkeypatch.setenv("PROOF_LOG", str(log))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than the tests
    stopping = ["-o", "faulthandler_timeout=3", "-o", "faulthandler_exit_on_timeout=true"]
    words = [
        "-p",
        "benchmarks.gpu_proof",
        "-p",
        "xdist",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        *stopping,
        "--rootdir",
        str(tmp_path),
    ]
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, *words, str(tmp_path)]

    def proof() -> tuple[int, list[str], str]:
        before = len(log.read_text().splitlines()) if log.exists() else 0
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        tests = [json.loads(line)["test"].partition("::")[2] for line in log.read_text().splitlines()[before:]]
        return done.returncode, sorted(tests), done.stdout

    code, tests, _ = proof()
    assert code == 1
    assert tests == ["test_bad", "test_endless", "test_good", "test_good_too", "test_skipped"]
    assert sorted(test.partition("::")[2] for test in read_json(log.with_name(ALL))) == tests
    found = {test.partition("::")[2]: row for test, row in gpu_run.proved(tmp_path).items()}
    outcomes = {test: row["outcome"] for test, row in found.items()}
    assert outcomes["test_good"] == outcomes["test_good_too"] == "passed"
    assert outcomes["test_skipped"] == "skipped"
    assert outcomes["test_bad"] == outcomes["test_endless"] == "failed"
    assert "a reason" in found["test_bad"]["why"]
    assert "def test_bad" in found["test_bad"]["told"]
    assert "test_endless" in found["test_endless"]["why"]
    with log.open("a") as file:
        file.write('{"test": "cut')  # a process that was killed while it wrote
    with log.open("a") as file:
        file.write("\n")
    monkeypatch.setenv("MENDED", "1")
    code, tests, _ = proof()
    assert (code, tests) == (0, ["test_bad", "test_endless", "test_skipped"])
    log.write_text("".join(line for line in log.read_text().splitlines(True) if "skipped" not in line))
    (tmp_path / "test_it.py").write_text(TESTS.replace("def test_skipped", "def no_test"))
    code, tests, said = proof()
    assert (code, tests) == (0, []), said


def module(name: str) -> Path | None:
    """The file of one of this project's modules."""
    stem = ROOT / name.replace(".", "/")
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it, or names as one that it starts."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(name), names=names):
                yield name
                yield from (f"{name}.{alias.name}" for alias in names if module(f"{name}.{alias.name}"))
            case ast.Constant(value=str(text)) if re.fullmatch(r"\w+(\.\w+)+", text) and module(text):
                yield text


def packages(entries: Iterable[Path]) -> set[str]:
    """Every package besides this project's that the files and all that they come to import would import."""
    todo, seen, found = list(entries), set[Path](), set[str]()
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    while todo:
        if (path := todo.pop()) in seen:
            continue
        seen.add(path)
        for name in imports(path):
            if name.partition(".")[0] not in rooms:
                found.add(name.partition(".")[0])
            elif file := module(name):
                todo.append(file)
    return found - set(sys.stdlib_module_names)


def entries() -> list[Path]:
    """What the stages start."""
    call = Call(Path(), Path(), "gpu", 0.0)
    tests = [ROOT / word for word in gpu_run._tests(call) if word.endswith(".py")]
    started = [module(name) for name in ("benchmarks.gpu_run", "torch_impl.train", "flax_impl.train")]
    return [*tests, ROOT / "parity_tests" / "tests" / "conftest.py", *(path for path in started if path)]


def test_the_pack_has_all_that_the_machine_lacks(tmp_path: Path) -> None:
    """Whatever a stage imports is on the machine, in the pack, or is known not to be needed."""
    assert ROOT / "parity_tests" / "tests" / "proof" / "test_gpu.py" in entries()
    found = packages(entries())
    assert found >= {"torch", "jax", "tyro", "pytest"}
    known = {*PRESENT, *SPARED, *(name.replace("-", "_") for name in LACKING)}
    assert found <= known
    assert SPARED.keys() <= found
    more = tmp_path / "more.py"
    more.write_text("def later():\n    import grain.python\n")
    assert packages([*entries(), more]) - known == {"grain"}


def test_the_pack_has_all_that_its_wheels_need() -> None:
    have = {canonicalize_name(name) for name in (*LACKING, *PRESENT)}
    for name in LACKING:
        for requirement in map(Requirement, requires(name) or []):
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                assert canonicalize_name(requirement.name) in have, f"{name} needs {requirement}"


@pytest.mark.full
def test_all_stages_on_the_cpu(tmp_path: Path) -> None:
    """`make gpu-run` as a user types it, with a pack that brings nothing: this environment has everything."""
    (tmp_path / "pack" / WHEELS).mkdir(parents=True)
    wheel(tmp_path / "pack" / WHEELS, "nothing")
    write_json(tmp_path / "pack" / ABOUT, {"commit": "c0ffee"})
    (tmp_path / "out").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "MAKE", "MFLAGS"))}
    settings = [f"PYTHON={sys.executable}", "DEVICE=cpu", f"RESULTS={tmp_path / 'results'}"]
    command = ["make", "gpu-run", *settings, f"ARGS=--pack {tmp_path / 'pack'}"]
    environment["OUT"] = str(tmp_path / "out")

    def make(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    done = make("STAGES=smoke", "LIMIT=1")
    assert done.returncode
    assert "left for the next call" in done.stdout
    done = make("LIMIT=10000")
    assert done.returncode == 0, done.stdout + done.stderr
    names = members(tmp_path / "out" / ARCHIVE).keys()
    assert names >= {f"gpu-results/{name}" for name in ("smoke/smoke.json", "proof/tests.jsonl", STATE, SUMMARY)}
    assert [stage for stage in gpu_run.STAGES if f"{stage}: done before" in make().stdout] == list(gpu_run.STAGES)
