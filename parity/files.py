"""What a side showed, as a file: for frameworks that cannot be installed together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from parity.compare import Trace
from parity.model import Array, Batch, Layout, Mode, Model, Module, Watched, map_inputs

_VERSION = 2
_BFLOAT16 = "bfloat16:"


@dataclass
class Recording:
    """A side that has run: it shows the same again, and takes nothing over.

    Attributes:
        name, layout: of the side.
        standing: its model, with the weights it began with.
        probe: of the evaluation of the first batch.
        traces: of each step.
        batches: that it was given, in its own layout.
        mode: "train" or "forward".
    """

    name: str
    layout: Layout
    standing: Model
    probe: Trace
    traces: list[Trace]
    batches: list[Batch]
    mode: Mode
    dropout: str = "on"
    recorded: bool = True
    place: int = field(default=0, repr=False)

    def model(self) -> Model:
        """As it stood at the start."""
        return self.standing

    def step(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """The next step.

        Raises:
            ValueError: there is none, or it was evaluation that was recorded.
        """
        if self.mode != "train" or self.place >= len(self.traces):
            raise ValueError(f"{self.name}: {len(self.traces)} steps of mode {self.mode!r} were recorded, no more.")
        self.place += 1
        return self.traces[self.place - 1]

    def forward(self, batch: Batch, adopt: Trace | None = None) -> Trace:
        """The evaluation of a batch that was recorded.

        Raises:
            ValueError: it was not.
        """
        given = [*map_arrays(batch[0])]
        for place, (inputs, _) in enumerate(self.batches):
            if self.mode == "forward" and _equal(given, [*map_arrays(inputs)]):
                return self.traces[place]
        if not _equal(given, [*map_arrays(self.batches[0][0])]):
            raise ValueError(f"{self.name}: its evaluation of this batch was not recorded.")
        return self.probe

    def describe(self, inputs: Any) -> None:
        """Nothing: it is known."""

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Nothing, where it has these weights already.

        Raises:
            ValueError: it has others.
        """
        own = self.standing.tensors
        wrong = [name for name in tensors if name not in own or not np.array_equal(tensors[name], own[name])]
        if wrong:
            raise ValueError(
                f"{self.name} was recorded with other weights than are to be carried over ({', '.join(wrong[:3])}): "
                "carry them first, with parity.match(left, right, batch), then record."
            )

    def overwrite(self, tensors: Mapping[str, Array], memory: Mapping[str, Array]) -> None:
        """Nothing: what has run has run."""

    def snapshot(self) -> int:
        """How far it is."""
        return self.place

    def restore(self, saved: int) -> None:
        """Back to there."""
        self.place = saved


def map_arrays(inputs: Any) -> Iterable[Array]:
    """The arrays of inputs."""
    found: list[Array] = []
    map_inputs(lambda a: found.append(np.asarray(a)), inputs)
    return found


def _equal(one: list[Array], other: list[Array]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def record(side: Watched, batches: Iterable[Batch], mode: Mode = "train") -> Recording:
    """Run a side over batches in its own layout, and keep all that it shows; it is left where it began."""
    given = [(map_inputs(np.asarray, x), None if y is None else map_inputs(np.asarray, y)) for x, y in batches]
    if not given:
        raise ValueError("There is no batch to record.")
    if getattr(side, "dropout", "on") == "shared":
        raise ValueError(f"{side.name} shares its dropout masks with another side and cannot be recorded by itself.")
    probe = side.forward((given[0][0], None))
    standing, start = side.model(), side.snapshot()
    traces = [(side.step if mode == "train" else side.forward)(batch) for batch in given]
    side.restore(start)
    dropout = getattr(side, "dropout", "on")
    return Recording(side.name, side.layout, standing, probe, traces, given, mode, dropout)


def save(recording: Recording, path: str | Path) -> None:
    """Write a recording as one .npz."""
    arrays: dict[str, Array] = {}
    standing = recording.standing
    for place, trace in enumerate((recording.probe, *recording.traces)):
        for phase, tensors in trace.items():
            arrays |= {f"trace/{place}/{phase}/{name}": values for name, values in tensors.items()}
    arrays |= {f"parameter/{name}": values for name, values in standing.parameters.items()}
    arrays |= {f"statistic/{name}": values for name, values in standing.statistics.items()}
    shapes = []
    for place, batch in enumerate(recording.batches):
        parts = []
        for kind, part in zip(("inputs", "targets"), batch, strict=True):
            keys = [*part] if isinstance(part, Mapping) else [*range(len(part))] if isinstance(part, tuple) else None
            values = [*map_arrays(part)] if part is not None else []
            arrays |= {f"batch/{place}/{kind}/{number}": value for number, value in enumerate(values)}
            form = "none" if part is None else "dict" if isinstance(part, Mapping) else "tuple" if keys else "array"
            parts.append([form, keys])
        shapes.append(parts)
    facts = {
        "version": _VERSION,
        "name": recording.name,
        "layout": recording.layout,
        "mode": recording.mode,
        "dropout": recording.dropout,
        "torch": standing.torch,
        "optimizer": dict(standing.optimizer),
        "modules": [vars(module) for module in standing.modules.values()],
        "calls": list(standing.calls),
        "batches": shapes,
        "order": list(arrays),
    }
    stored = {_stored_name(place, values): _plain(values) for place, values in enumerate(arrays.values())}
    with Path(path).open("wb") as file:
        np.savez_compressed(file, facts=np.array(json.dumps(facts)), **stored)  # type: ignore[arg-type]


def load(path: str | Path) -> Recording:
    """Read a recording.

    Raises:
        ValueError: the file is none.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            facts = json.loads(str(file["facts"]))
            stored = {name: file[name] for name in file.files if name != "facts"}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is no recording that `parity.save` wrote ({error}).") from error
    if facts.get("version") != _VERSION:
        raise ValueError(f"{path} was written by another version of parity: {facts.get('version')}, not {_VERSION}.")
    arrays = {
        name: values.view(ml_dtypes.bfloat16) if key.startswith(_BFLOAT16) else values
        for name, (key, values) in zip(facts["order"], stored.items(), strict=True)
    }
    traces: list[dict[str, dict[str, Array]]] = []
    for name, values in arrays.items():
        kind, _, rest = name.partition("/")
        if kind == "trace":
            place, phase, tensor = rest.split("/", 2)
            while len(traces) <= int(place):
                traces.append({})
            traces[int(place)].setdefault(phase, {})[tensor] = values
    standing = Model(
        facts["name"],
        facts["layout"],
        facts["torch"],
        {module["path"]: Module(**module) for module in facts["modules"]},
        facts["calls"],
        _under("parameter/", arrays),
        _under("statistic/", arrays),
        facts["optimizer"],
    )
    batches = [
        (_batch(arrays, f"batch/{place}/inputs/", inputs), _batch(arrays, f"batch/{place}/targets/", targets))
        for place, (inputs, targets) in enumerate(facts["batches"])
    ]
    return Recording(
        facts["name"], facts["layout"], standing, traces[0], list(traces[1:]), batches, facts["mode"], facts["dropout"]
    )


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _batch(arrays: Mapping[str, Array], prefix: str, form: Any) -> Any:
    kind, keys = form
    values = list(_under(prefix, arrays).values())
    if kind == "none":
        return None
    if kind == "dict":
        return dict(zip(keys, values, strict=True))
    return tuple(values) if kind == "tuple" else values[0]


def _stored_name(place: int, values: Array) -> str:
    return f"{_BFLOAT16 if values.dtype.name == 'bfloat16' else ''}{place:06d}"


def _plain(values: Array) -> Array:
    return values.view(np.uint16) if values.dtype.name == "bfloat16" else values
