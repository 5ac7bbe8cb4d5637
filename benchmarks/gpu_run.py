"""Everything that is to be known on a GPU, in stages, on a machine without a network: `python -m benchmarks.gpu_run`.

Needs Python's own library alone: it installs the wheels of a pack (benchmarks/gpu_pack.py) beside the machine's
packages and runs each stage in processes of its own. What a stage finds is filed as it goes; one that was cut off
goes on in the next call.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from common.commands.shell import guard
from common.errors import UserError
from common.runs.files import atomic, write_json, write_text
from common.system import package_versions
from common.training.launch import end_with_parent

ROOT = Path(__file__).parents[1]
ABOUT, DATA, SOURCES, WHEELS = "pack.json", "data", "sources", "wheels"  # in a pack
INSTALLED, PROGRAMS = "installed", "programs"  # made beside them: the wheels' packages, what XLA compiled
TESTS, ALL = "tests.jsonl", "all-tests.json"  # what benchmarks/gpu_proof.py files: outcomes, and all that there are
STATE, SUMMARY, ARCHIVE = "state.json", "summary.txt", "gpu-results.tar.gz"  # in the results
MOST = 15_000_000  # bytes of the archive
GRACE = 10.0  # seconds in which a stage that must end may do so, and the results be filed
SPARE = 20.0  # seconds by which a stage that watches the time itself is told less
NO_GPU = 2  # what the first stage ends with where the others are of no use
LEFT = 3  # what the last two end with where something was left out or failed
TEST = 120  # seconds of one test


@dataclass
class Call:
    """One call of this command.

    Attributes:
        pack: the folder.
        results: where they go.
        device: all stages compute on; on the CPU everything is small.
        deadline: when the call must have ended (monotonic).
        again: stages to begin anew.
        keep: go on with what was found on other sources.
        about: what pack.json says.
        sources: the fingerprint of those that run.
    """

    pack: Path
    results: Path
    device: str
    deadline: float
    again: tuple[str, ...] = ()
    keep: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    sources: str = ""

    @property
    def tiny(self) -> bool:
        """On a CPU, to try the stages themselves."""
        return self.device == "cpu"

    def environment(self) -> dict[str, str]:
        """Of every stage: the wheels first, the packed data, and memory that both frameworks can share."""
        before = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(self.pack / INSTALLED), *([before] if before else [])])
        hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""} if self.tiny else {}
        return os.environ | {
            **hidden,
            "PYTHONPATH": path,
            "PACKED_DATA": str(self.pack / DATA),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONUNBUFFERED": "1",
        }


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Attributes:
        limit: seconds, on a GPU.
        least: seconds without which it is not begun.
        command: its words after `python -m`, given the seconds that it has.
        environment: more of it.
    """

    limit: float
    least: float
    command: Callable[[Call, float], list[str]]
    environment: Callable[[Call], dict[str, str]] = lambda call: {}


def _smoke(call: Call, seconds: float) -> list[str]:
    return ["benchmarks.gpu_smoke", call.device, str(call.results / "smoke")]


def _proof(call: Call, seconds: float) -> list[str]:
    stopping = ["-o", f"faulthandler_timeout={TEST}", "-o", "faulthandler_exit_on_timeout=true"]
    spread = ["-n", "2" if call.tiny else "4", "--dist", "worksteal", *stopping]
    plugins = ["-p", "benchmarks.gpu_proof", "-p", "no:cacheprovider"]
    return ["pytest", "-q", "--tb=short", *plugins, *spread, *_tests(call)]


def _tests(call: Call) -> list[str]:
    """Those of a GPU alone: other files may import what the machine lacks."""
    tests = ROOT / "parity_tests" / "tests"
    mark = re.compile(r"^(pytestmark|@pytest)\b.*\bmark\.gpu\b", re.MULTILINE)
    marked = [path for path in sorted(tests.rglob("test_*.py")) if mark.search(path.read_text("utf-8"))]
    few = ["-k", "lenet"] if call.tiny else []
    return ["-m", "gpu", *few, *(str(path.relative_to(ROOT)) for path in marked)]


def _of_proof(call: Call) -> dict[str, str]:
    """Four processes compile many programs twice over: the first that does so keeps them for all."""
    return {
        "GPU": "" if call.tiny else "required",
        "PARITY_DEVICE": call.device,
        "PARITY_RESULTS": str(call.results / "proof"),
        "PROOF_LOG": str(call.results / "proof" / TESTS),
        "JAX_COMPILATION_CACHE_DIR": str(call.pack / PROGRAMS),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


def _bench(part: str) -> Callable[[Call, float], list[str]]:
    def command(call: Call, seconds: float) -> list[str]:
        words = ["benchmarks.bench_gpu", part, "--out", str(call.results / part), "--seconds", f"{seconds - SPARE:.0f}"]
        return [*words, *(["--tiny"] if call.tiny else [])]

    return command


STAGES = {
    "smoke": Stage(140, 30, _smoke),
    "proof": Stage(420, 60, _proof, _of_proof),
    "bench": Stage(350, 100, _bench("bench")),
    "accuracy": Stage(180, 90, _bench("accuracy")),
}


def fingerprint(root: Path) -> str:
    """Of the sources: what was found on others does not count for these."""
    files = [root / "pyproject.toml"]
    files += [path for room in root.glob("*/__init__.py") for path in room.parent.rglob("*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def find_pack(given: Path | None) -> Path:
    """The pack: the one that is named, one in the project's folder, or the one that holds the project.

    Raises:
        UserError: there is none.
    """
    for folder in [given] if given else [ROOT / ".gpu-pack", ROOT.parent]:
        if (folder / ABOUT).is_file():
            return folder.resolve()
    raise UserError(
        f"There is no pack in {given or ROOT / '.gpu-pack'}: `make gpu-pack` writes one, where a network is."
    )


def install(pack: Path) -> None:
    """Install the pack's wheels into a folder of it, once.

    Raises:
        UserError: they are of another Python, or there is no pip.
    """
    files = sorted((pack / WHEELS).glob("*.whl"))
    mark, content = pack / INSTALLED / "wheels.json", {"python": sys.version, "wheels": [file.name for file in files]}
    with suppress(OSError, ValueError):
        if json.loads(mark.read_text("utf-8")) == content:
            return
    with atomic(pack / INSTALLED) as folder:
        folder.mkdir()
        quiet = ["-q", "--disable-pip-version-check", "--root-user-action=ignore", "--no-index", "--no-deps"]
        command = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(folder), *map(str, files)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"The wheels in {pack / WHEELS} cannot be installed by {sys.executable}, Python "
                f"{sys.version.split()[0]}: {' '.join(done.stderr.split())}"
            )
        write_json(folder / mark.name, content)


def run(words: list[str], environment: Mapping[str, str], log: Path, seconds: float) -> int | None:
    """Run a module, its output here and in a file, and end it with all that it started.

    Returns:
        Its exit code; None: it was not ready in time.
    """
    with log.open("ab") as file:
        command = [sys.executable, "-m", *words]
        file.write(f"\n$ {' '.join(command)}\n".encode())
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        teller = threading.Thread(target=_tell, args=(process, file), daemon=True)
        teller.start()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)
            teller.join(2)


def _tell(process: subprocess.Popen[bytes], file: io.BufferedWriter) -> None:
    assert process.stdout
    # The file is closed where a process outside of the group still holds the pipe.
    with suppress(ValueError), process.stdout as lines:
        for line in lines:
            file.write(line)
            file.flush()
            sys.stdout.write(line.decode("utf-8", "replace"))
            sys.stdout.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """A stage has a session, and so a process group, of its own: what is left of it holds the GPU's memory."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE / 2)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Results:
    """The results' folder: the state of every stage, the summary, the archive."""

    def __init__(self, call: Call) -> None:
        self.call, self.folder = call, call.results
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / STATE
        self.stages: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def begin(self, name: str) -> str:
        """Get ready for a stage; returns what is to be done: "done", "on" or "anew"."""
        before = self.stages.get(name, {})
        same = before.get("device") == self.call.device
        same = same and (self.call.keep or before["sources"] == self.call.sources)
        if not same or name in self.call.again:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / f"{name}.log").unlink(missing_ok=True)
            self.stages.pop(name, None)
        elif before["status"] == "done":
            return "done"
        (self.folder / name).mkdir(exist_ok=True)
        return "on" if name in self.stages else "anew"

    def note(self, name: str, status: str, seconds: float | None = None) -> None:
        """File how a stage stands, with the seconds of this call."""
        entry = self.stages.setdefault(name, {"seconds": []})
        entry |= {"status": status, "device": self.call.device, "sources": self.call.sources}
        entry["at"] = datetime.now(UTC).isoformat(timespec="seconds")
        entry["seconds"] += [] if seconds is None else [round(seconds, 1)]
        write_json(self.folder / STATE, self.stages)

    def file(self) -> None:
        """Write the summary and the archive, here and where OUT says."""
        write_text(self.folder / SUMMARY, summary(self.call, self.stages))
        archive(self.folder)
        if out := os.environ.get("OUT"):
            Path(out).mkdir(parents=True, exist_ok=True)
            for name in (SUMMARY, ARCHIVE):
                with atomic(Path(out) / name) as part:
                    shutil.copy(self.folder / name, part)


def proved(folder: Path) -> dict[str, dict[str, Any]]:
    """The last outcome of every test."""
    path = folder / "proof" / TESTS
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):  # the last line of a process that was killed
            row = json.loads(line)
            found[row["test"]] = row
    return found


def summary(call: Call, stages: Mapping[str, dict[str, Any]]) -> str:
    """What a reader wants to know first."""
    packed = "as packed" if call.sources == call.about.get("fingerprint") else "with changes since it was packed"
    versions = package_versions(("jax-cuda13-plugin", "safetensors"))
    lines = [
        f"commit    {call.about.get('commit')}, {packed}",
        f"device    {gpu() or 'no GPU that nvidia-smi knows'}{', but computed on the CPU, in small' * call.tiny}",
        f"versions  Python {sys.version.split()[0]}, {', '.join(f'{k} {v}' for k, v in versions.items())}",
        "",
    ]
    for name in STAGES:
        entry = stages.get(name, {"status": "not begun", "seconds": []})
        stale = ", on other sources" if entry.get("sources", call.sources) != call.sources else ""
        times = " + ".join(f"{seconds:.0f}" for seconds in entry["seconds"])
        lines.append(f"{name:9} {entry['status']}{stale}{f', {times} s' if times else ''}")
    tests = proved(call.results)
    if tests:
        outcomes = [row["outcome"] for row in tests.values()]
        counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}
        path = call.results / "proof" / ALL
        left = set(json.loads(path.read_text("utf-8")) if path.exists() else []) - tests.keys()
        counts["not run yet"] = len(left)
        lines += ["", "proof: " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items())]
        lines += [f"FAILED {row['test']}: {row['why']}" for row in tests.values() if row["outcome"] == "failed"]
    return "\n".join(lines) + "\n"


def gpu() -> str:
    """The GPUs and their driver, as nvidia-smi names them; "" without."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.splitlines()) if done.returncode == 0 else ""


def archive(folder: Path) -> Path:
    """Write all results into one file, whole or not at all, without the largest if it were too large."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(ARCHIVE)]
    left: list[str] = []
    while True:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            for path in files:
                tar.add(path, Path("gpu-results") / path.relative_to(folder))
            if left:
                entry = tarfile.TarInfo("gpu-results/left-out.txt")
                text = "\n".join(left).encode()
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
        if content.tell() <= MOST:
            break
        largest = max(files, key=lambda path: path.stat().st_size)
        files.remove(largest)
        left.append(str(largest.relative_to(folder)))
    if left:
        print(f"note: {ARCHIVE} is without {', '.join(left)}, which are too large for it")
    with atomic(folder / ARCHIVE) as part:
        part.write_bytes(content.getvalue())
    return folder / ARCHIVE


def work(call: Call, names: list[str]) -> bool:
    """Run the stages that are not done; whether all of them are, then."""
    results = Results(call)
    for name in names:
        stage, started = STAGES[name], monotonic()
        ready = results.begin(name)
        if ready == "done":
            print(f"{name}: done before; AGAIN={name} repeats it", flush=True)
            continue
        seconds = min(math.inf if call.tiny else stage.limit, call.deadline - started - GRACE)
        if seconds < stage.least:
            print(f"{name}: left for the next call, {max(seconds, 0):.0f} s are too few", flush=True)
            results.note(name, "left")
            continue
        print(f"{name}: {'going on' if ready == 'on' else 'begun'}, with at most {seconds:.0f} s", flush=True)
        results.note(name, "cut off")  # what holds if this process is killed
        status = "cut off"
        try:
            environment = call.environment() | stage.environment(call)
            code = run(stage.command(call, seconds), environment, results.folder / f"{name}.log", seconds)
            status = {0: "done", None: "cut off", LEFT: "not whole"}.get(code, "failed")
        finally:
            took = monotonic() - started
            results.note(name, status, took)
            results.file()
            print(f"{name}: {status}, {took:.0f} s", flush=True)
        if name == "smoke" and code == NO_GPU:
            print("The other stages are left: they need the GPU.")
            break
    results.file()
    print(f"\n{(results.folder / SUMMARY).read_text('utf-8')}\nAll of it: {results.folder / ARCHIVE}")
    return all(results.stages.get(name, {}).get("status") == "done" for name in names)


def parse(words: list[str] | None = None) -> tuple[Call, list[str]]:
    """Read the command line; tyro is not there before the wheels are.

    Raises:
        UserError: there is no pack.
    """
    parser = argparse.ArgumentParser(prog="gpu_run", description="Prove and measure on a GPU, without a network.")
    names = tuple(STAGES)
    parser.add_argument("--stages", nargs="+", choices=names, default=list(names), help="these alone (default: all)")
    parser.add_argument("--again", nargs="+", choices=names, default=[], help="begin these anew")
    parser.add_argument("--keep", action="store_true", help="go on with what was found on other sources")
    parser.add_argument("--limit", type=float, default=520.0, help="seconds of this call (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=ROOT / "gpu-results", help="folder (default: %(default)s)")
    parser.add_argument("--pack", type=Path, help="folder (default: .gpu-pack here, or what holds the sources)")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: everything in small")
    parser.add_argument("--tiny", dest="device", action="store_const", const="cpu", help="the same as --device cpu")
    given = parser.parse_args(words)
    pack = find_pack(given.pack)
    about = json.loads((pack / ABOUT).read_text("utf-8"))
    deadline, again = monotonic() + given.limit, tuple(given.again)
    results = given.results.resolve()
    call = Call(pack, results, given.device, deadline, again, given.keep, about, fingerprint(ROOT))
    return call, [name for name in STAGES if name in given.stages]


def main() -> None:
    """Run the stages; ends with 1 if any is not done."""
    call, names = parse()
    install(call.pack)
    sys.path.insert(0, str(call.pack / INSTALLED))  # for the versions
    if not work(call, names):
        raise SystemExit(1)


if __name__ == "__main__":
    guard(main)
