"""What JAX compiled is kept for the next process, and no folder that cannot hold it is in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import system

# Prints how many programs were asked for, how many were found, and what one of them gives, to the last bit.
COUNTING = """
import jax, numpy as np
found = {"compile_requests_use_cache": 0, "cache_hits": 0}
def heard(event, **_):
    name = event.rpartition("/")[2]
    found.update({name: found[name] + 1} if name in found else {})
jax.monitoring.register_event_listener(heard)
from flax_impl.device import pick_device
pick_device("cpu")
drawn = jax.jit(lambda key: jax.random.normal(key, (50,)))(jax.random.key(0))
print(*found.values(), np.asarray(drawn).tobytes().hex())
"""


def counted(home: Path, **more: str) -> tuple[int, int, str, str]:
    """Programs asked for, programs found, what one gives, and what was said of it, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XDG_"))}
    environment |= {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | more
    done = subprocess.run([sys.executable, "-c", COUNTING], env=environment, capture_output=True, text=True, check=True)
    asked, found, drawn = done.stdout.split()
    return int(asked), int(found), drawn, done.stderr


def kept(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "alexnet-twice").glob("jax-*/*-cache"))


def test_the_next_process_compiles_nothing(tmp_path: Path) -> None:
    """And what it finds gives the same bits; a program whose file was cut short is compiled, and said."""
    asked, found, drawn, _ = counted(tmp_path)
    assert asked > found
    files = kept(tmp_path)
    assert files[0].parent.stat().st_mode & 0o077 == 0
    again = counted(tmp_path)
    assert again[0] == again[1] == asked
    assert again[2:] == (drawn, "")
    (cut,) = (path for path in files if "lambda" in path.name)
    cut.write_bytes(cut.read_bytes()[:1000])
    damaged = counted(tmp_path)
    assert damaged[1:3] == (asked - 1, drawn)
    assert "lambda" in damaged[3]


def test_a_folder_that_cannot_be_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".cache").write_text("a file")
    _, found, _, said = counted(tmp_path)
    assert (found, said) == (0, "")


def test_the_users_own_folder_is_taken(tmp_path: Path) -> None:
    own = tmp_path / "own"
    counted(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own))
    assert list(own.glob("*-cache"))
    assert not kept(tmp_path)
    counted(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
    assert not kept(tmp_path)


def test_another_processor_has_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a home may differ in what their processors can do."""
    here, read = system.programs_folder(), Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **words: read(path, **words).replace("flags\t", "flags\tnew "))
    assert here != system.programs_folder()
    assert here.parent == system.programs_folder().parent
