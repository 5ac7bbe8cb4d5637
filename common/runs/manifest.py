"""manifest.json: what a run's numbers depend on besides its recipe."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.arch.spec import Arch
from common.config import to_dict
from common.data.classes import difference
from common.data.dataset import Dataset
from common.data.spec import Split
from common.errors import UserError
from common.frameworks import Framework
from common.runs.files import write_json
from common.runs.folder import RunFolder, result_of, weights_sha256
from common.system import commit, package_versions


def write_manifest(
    run: RunFolder,
    framework: Framework,
    device: str,
    arch: Arch,
    class_names: tuple[str, ...],
    init_from: Path | None = None,
    data: Mapping[Split, Dataset] | None = None,
    arithmetic: Mapping[str, Any] | None = None,
    skipped: Sequence[str] = (),
) -> None:
    """Record what the run's numbers depend on besides the recipe; a resumed run keeps what it recorded first.

    Args:
        run: the folder.
        framework: that trains.
        device: in words.
        arch: of the network.
        class_names: in label order.
        init_from: the weights that training starts from.
        data: the splits, whose examples are counted and hashed.
        arithmetic: how the device computes. A resumed run that computes otherwise says so.
        skipped: images that `data` goes without, by their path in its folder.

    Raises:
        UserError: a resumed run's `data`, by split, is not what it began with.
    """
    prints = {split: _print(part) for split, part in (data or {}).items()}
    init_from = result_of(init_from) if init_from else None
    if run.begun:
        moved = any(part.name != run.recipe.dataset for part in (data or {}).values())
        _check_data(run, prints, class_names, moved=moved)
        _note_arithmetic(run, arithmetic)
        return
    write_json(
        run.path / "manifest.json",
        {
            "framework": framework,
            "device": device,
            "arithmetic": arithmetic,
            "seed": run.recipe.seed,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "commit": commit(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": package_versions(),
            "class_names": class_names,
            "data": prints,
            "skipped": list(skipped),
            "arch": to_dict(arch),
            "init_from": init_from and {"path": str(init_from.absolute()), "sha256": weights_sha256(init_from)},
        },
    )


def _print(part: Dataset) -> dict[str, Any]:
    """What tells a split from another."""
    hashes = {"sha256": part.fingerprint(), "pixels_sha256": part.content(), "sizes_sha256": part.sizes()}
    return {"examples": len(part)} | hashes


def _note_arithmetic(run: RunFolder, now: Mapping[str, Any] | None) -> None:
    """Say where a resumed run computes otherwise than it began; older runs do not say how."""
    before: Any = run.manifest.get("arithmetic")
    if isinstance(before, dict) and now is not None and before != now:
        changed = ", ".join(
            f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]
        )
        print(
            f"note: the run began with {changed}: what follows may differ from it in its last digits", file=sys.stderr
        )


def _check_data(
    run: RunFolder, prints: Mapping[Split, dict[str, Any]], class_names: Sequence[str], *, moved: bool
) -> None:
    """Hold the data to what the manifest says of it; older runs' say nothing but the names of the classes.

    Where it was, a picture may have been mended, which is said; at another place, its files must have their sizes.
    """
    found = []
    if run.class_names != list(class_names):
        told = difference(class_names, run.class_names)
        then, since = (", ".join(names[:5]) for names in (run.class_names, class_names))
        found.append(f"the classes {then}, and there are {since} now{f' ({told})' if told else ''}")
    recorded: Any = run.manifest.get("data")
    for split, now in prints.items() if isinstance(recorded, dict) else ():
        before = recorded[split] if isinstance(recorded.get(split), dict) else {}
        if before.get("examples") != now["examples"]:
            found.append(f"{before.get('examples', 'no')} {split} images, and there are {now['examples']} now")
            continue
        kinds = {"sha256": "names or labels", "pixels_sha256": "pixels"}
        same_names = before.get("sha256", now["sha256"]) == now["sha256"]
        other_sizes = same_names and before.get("sizes_sha256", now["sizes_sha256"]) != now["sizes_sha256"]
        if other_sizes and moved:
            kinds["sizes_sha256"] = "files under the same names"
        elif other_sizes:
            print(f"note: {split} images have other files than when the run began, by their sizes", file=sys.stderr)
        if differ := [kind for key, kind in kinds.items() if before.get(key, now[key]) != now[key]]:  # older lack one
            found.append(f"{now['examples']} {split} images, but not the same ones (other {' and '.join(differ)})")
    gone = recorded.keys() - prints.keys() if isinstance(recorded, dict) else ()
    found += [f"a {split} split, which is not there now" for split in sorted(gone)]
    if found:
        raise UserError(f"{run.path} began with {'; '.join(found)}: a resumed run needs the same data.")
