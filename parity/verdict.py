"""From two models to a verdict: where they part and why, or to what they agree."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from parity import forms
from parity import model as shared
from parity.causes import Context, as_float64, follows_memory
from parity.compare import PHASES, Bounds, Difference, Report, Trace, differences, last_place
from parity.dropout import Shared, share
from parity.initialisation import begun, blank
from parity.model import Batch, Mode, Watched
from parity.pairing import Match, match

_EXACT = {8: 1e-10, 4: 1e-4}  # the bound by the bytes of a number, where none is given
_NOISES = 10  # times its own noise is what the left may differ by from the right, where that is more; 5.4 was measured
_MOST = {8: 1e-6, 4: 1e-2}  # but no more than this
_COARSE = 0.3
_SHARE = 1e-4  # of the largest gradient: what is smaller is compared on this scale
_NOTHING = {8: 1e-10, 4: 1e-5}  # of the largest gradient: what is smaller still is rounding


@dataclass(frozen=True)
class Finding:
    """A cause, and the tensors that show it.

    Attributes:
        difference: the first.
        tensors: all of the step and phase, by their names in the left side.
        between: the modules passed between the last tensor that agreed and this one, where it is a module's input.
    """

    difference: Difference
    tensors: tuple[str, ...]
    between: tuple[str, ...] = ()

    @property
    def cause(self) -> str:
        """In a sentence."""
        return self.difference.cause

    def __str__(self) -> str:
        step, phase = self.difference.step, self.difference.phase
        names = _listed(self.tensors)
        way = f" (after {', '.join(self.between)})" if self.between else ""
        figures = "" if np.isnan(self.difference.relative) else f", off by {self.difference.relative:.2g} of its scale"
        return f"step {step}, {phase}, {names}{way}{figures}. {self.cause}"


@dataclass
class Verdict:
    """What came of a comparison; `str` of it ends in a sentence.

    Attributes:
        names: of the sides.
        findings: where they part, in order; only the first unless the check went on.
        report: the largest difference of each tensor that agreed, and the losses.
        noise: how far the left side parts from itself when every weight is moved by one unit in the last place.
        bounds: on the differences.
        pairing: of modules and parameters; None where traces were compared that had it behind them.
        notes: on what was held equal, or left out.
        mode: "train" or "forward".
        steps: that were compared.
    """

    names: tuple[str, str]
    bounds: Bounds
    mode: Mode
    findings: list[Finding] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    noise: Report | None = None
    pairing: Match | None = None
    notes: list[str] = field(default_factory=list)
    steps: int = 0

    @property
    def agree(self) -> bool:
        """Whether every tensor of every step was within its bound."""
        return not self.findings

    @property
    def sentence(self) -> str:
        """The verdict in one."""
        one, other = self.names
        what = f"{self.steps} {'training step' if self.mode == 'train' else 'batch'}"
        what += ("es" if self.mode == "forward" else "s") * (self.steps != 1)
        if self.findings:
            return f"{one} and {other} part at {self.findings[0]}"
        if not self.report.worst:
            return f"Nothing of {one} and {other} was compared."
        largest = self.report.largest()
        noise = ""
        if self.noise and largest.phase in self.noise.phases():
            own = self.noise.largest(largest.phase).relative
            noise = f"; with weights moved by one unit in the last place, {one} parts from itself by {own:.2g} there"
        return (
            f"{one} and {other} agree over {what} to {largest.relative:.2g} of each tensor's scale "
            f"(the most is in {largest.phase}, {largest.tensor}){noise}."
        )

    def __bool__(self) -> bool:
        return self.agree

    def __str__(self) -> str:
        lines = [
            f"{phase:<11} {self.report.largest(phase).relative:8.2g}  {self._count(phase)}" for phase in self._phases
        ]
        table = ["largest difference of the tensors that agree, over their scale", *lines] if lines else []
        more = [f"{place}. {finding}" for place, finding in enumerate(self.findings, 1)]
        found = [f"{len(more)} causes:", *more] if len(more) > 1 else []
        return "\n".join([*table, *self.notes, *found, self.sentence])

    @property
    def _phases(self) -> list[str]:
        return [phase for phase in self.report.phases() if phase != "batch"]

    def _count(self, phase: str) -> str:
        tensors = sum(key[0] == phase for key in self.report.worst)
        own = ""
        if self.noise and any(key[0] == phase for key in self.noise.worst):
            own = f", {self.names[0]}'s own noise {self.noise.largest(phase).relative:.2g}"
        return f"{tensors} tensor{'s' * (tensors != 1)}{own}"

    def json(self) -> str:
        """The same for a program."""
        findings = [
            {**vars(f.difference), "tensors": list(f.tensors), "between": list(f.between)} for f in self.findings
        ]
        whole = {
            "agree": self.agree,
            "sentence": self.sentence,
            "names": list(self.names),
            "mode": self.mode,
            "steps": self.steps,
            "findings": findings,
            "largest": {phase: self.report.largest(phase).relative for phase in self.report.phases()},
            "noise": {phase: self.noise.largest(phase).relative for phase in self.noise.phases()} if self.noise else {},
            "losses": self.report.losses,
            "notes": self.notes,
        }
        return json.dumps(_finite(whole), indent=1)

    def html(self) -> str:
        """The same as a page."""
        colour = "#0a6" if self.agree else "#b30"
        pairing = f"<h2>Pairing</h2><pre>{html.escape(str(self.pairing))}</pre>" if self.pairing else ""
        return (
            f"<!doctype html><meta charset=utf-8><title>Parity</title><style>body{{font:16px/1.5 sans-serif;margin:2em "
            f"auto;max-width:60em;padding:0 1em}}pre{{overflow:auto}}h1{{color:{colour};font-size:1.2em}}</style>"
            f"<h1>{html.escape(self.sentence)}</h1><pre>{html.escape(str(self))}</pre>{pairing}\n"
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON, HTML or text, as the name ends."""
        path = Path(path)
        text = {".json": self.json, ".html": self.html}.get(path.suffix, self.__str__)()
        path.write_text(text + "\n", encoding="utf-8")


def check(
    left: Watched,
    right: Watched,
    batches: Iterable[Batch] | None = None,
    *,
    pairs: Match | str | Path | None = None,
    bounds: Bounds | None = None,
    mode: Mode = "train",
    go_on: bool = False,
    noise: bool = True,
) -> Verdict:
    """Give the right side the left's weights, train both on the same batches, and say where they part and why.

    Afterwards both sides are where they began, with the left's weights.

    Args:
        left, right: sides, such as `parity.torch.Side` and `parity.linen.Side`, or recordings of them.
        batches: (inputs, targets), in the left's layout; a recording has its own.
        pairs: what `match` found, or its file; otherwise they are matched on the first batch.
        bounds: by default 1e-10 of each tensor's scale in float64, 1e-4 in float32; or 10 times the noise, up to 1e-6
            and 1e-2, where that is more.
        mode: "train" for training steps, "forward" for evaluation.
        go_on: after a difference let the right take the left's value there and look for the next; also note where the
            weights that were there before were drawn otherwise.
        noise: also measure how far the left parts from itself with weights moved by one unit in the last place.

    Raises:
        Unmatched: a module has no partner.
        ValueError: there is no batch, or a side cannot be compared.
    """
    given = list(getattr(left, "batches", ())) if batches is None else [(x, y) for x, y in batches]
    if not given:
        raise ValueError("There is no batch to compare on.")
    found = pairs if isinstance(pairs, Match) else match(left, right, given[0], pairs)
    theirs = [(shared.map_inputs(lambda a: shared.relay(a, left.layout, right.layout), x), y) for x, y in given]
    walk = _Walk(found, mode, bounds, go_on, (given[0][0], theirs[0][0]))
    verdict = walk.verdict
    starts = left.snapshot(), right.snapshot()
    try:
        for side, batch in ((left, given[0]), (right, theirs[0])):
            _repeats(side, batch, walk)
        if noise and not getattr(left, "recorded", False):
            verdict.noise = _noise(found, given, walk)
        left.restore(starts[0])
        for step, (ours, other) in enumerate(zip(given, theirs, strict=True)):
            if not walk.step(step, ours, other):
                break
        for side in (left, right):
            if axes := getattr(side, "axes", []):
                verdict.notes.append(f"{side.name} averages over devices ({', '.join(axes)}): there is one.")
        if go_on:
            verdict.notes += _begun(found)
        if walk.exempt:
            verdict.notes.append(f"Exempt, as asked: {_listed([*walk.exempt])}.")
    finally:
        left.restore(starts[0])
        right.restore(starts[1])
    return verdict


class _Walk:
    """Two sides on their way through the batches."""

    def __init__(self, found: Match, mode: Mode, bounds: Bounds | None, go_on: bool, inputs: tuple[Any, Any]) -> None:
        self.found, self.mode, self.go_on = found, mode, go_on
        left, right = found.left, found.right
        self.width = min(a.dtype.itemsize for a in found.models[0].parameters.values() if a.dtype.kind == "f")
        self.bounds = bounds or Bounds(_EXACT.get(self.width, _COARSE), share=_SHARE)
        self.verdict = Verdict((left.name, right.name), self.bounds, mode, pairing=found)
        self.shared = _shared(found, inputs) if mode == "train" else None
        self.verdict.notes += found.notes + (self.shared.notes() if self.shared else _held(left, right))
        self.modules = {}
        for pair in found.pairs:
            ours, theirs = (model.modules.get(path) for model, path in zip(found.models, _paths(pair), strict=True))
            if ours and theirs:
                self.modules[pair.left] = (pair.kind, ours.config, theirs.config)
        self.optimizer = {**found.models[1].optimizer, **found.models[0].optimizer}
        self.context = Context()
        self.before: tuple[Trace, Trace] = found.translated(*(_standing(side) for side in (left, right)))
        self.adopted: list[str] = []
        self.natural: dict[str, Any] = {}  # what the right had where it adopted
        self.agreed: set[str] = set()  # activations of this step
        self.known: set[tuple[str, str]] = set()
        self.idle: set[str] = set()
        self.exempt: dict[str, None] = {}
        self.noises: list[dict[tuple[str, str], float]] = []  # the left's own, up to each step
        self.given = bounds is not None

    def run(self, side: Watched, batch: Batch, step: int, adopt: Trace | None = None) -> Trace:
        """Take a step, the one of this number, or evaluate."""
        if self.go_on and adopt is None:
            adopt = {"activation": {}}  # so that compiled sides have one form
        if self.shared:
            self.shared.draw(self.found.left, self.found.right, step)  # type: ignore[arg-type]
        return (side.step if self.mode == "train" else side.forward)(batch, adopt)

    def step(self, step: int, ours: Batch, theirs: Batch) -> bool:
        """Compare one step; false where there is nothing to go on with."""
        verdict, start = self.verdict, self.found.right.snapshot()
        left = self.run(self.found.left, ours, step)
        right = self.run(self.found.right, theirs, step)
        adopt: dict[str, dict[str, Any]] = {"activation": {}, "gradient": {}}
        if self.adopted:
            right = self._again(theirs, step, adopt, left, right, start)
        verdict.steps = step + 1
        self.agreed = set()
        for phase in PHASES:
            while wrong := self._wrong(left, right, step, phase):
                if not self._name(wrong, phase, left, right):
                    return False
                if phase == "activation":
                    self._adopt(wrong[0].tensor, right, left)
                elif phase == "gradient":
                    adopt["gradient"] = self.found.adopted(left, right, phase, [d.tensor for d in wrong])
                elif phase in ("optimizer", "parameter", "statistic"):
                    there = [d.tensor for d in wrong if not np.isnan(d.absolute)]
                    self._overwrite(phase, self.found.adopted(left, right, phase, there))
                if phase not in ("activation", "gradient"):
                    break
                right = self._again(theirs, step, adopt, left, right, start)
                if phase == "gradient":
                    break
        self._end(left, right)
        return True

    def _end(self, left: Trace, right: Trace) -> None:
        """Of a step that was compared."""
        one, other = self.found.translated(left, right)
        if "loss" in one.get("loss", {}):
            self.verdict.report.losses.append((one["loss"]["loss"].item(), other["loss"]["loss"].item()))
        self.before = (one, one if self.go_on else other)
        for phase in ("parameter", "optimizer") if self.mode == "train" else ():
            names = [name for name in one[phase] if name.split("/")[-1] in self.idle and name in other[phase]]
            self._overwrite(phase, self.found.adopted(left, right, phase, names))

    def _adopt(self, name: str, right: Trace, left: Trace) -> None:
        self.adopted.append(name)
        self.natural[name] = self.found.translated(left, right)[1]["activation"][name]

    def _inherited(self, name: str, left: Trace, right: Trace) -> bool:
        """Whether an input differs only because another one did, which flows past the layers that adopted it."""
        ours, theirs = (trace["activation"] for trace in self.found.translated(left, right))
        sources: dict[str, Any] = {}
        for other in ours:
            if other == name:
                break
            sources[other] = ours[other]
        if not any(other in self.natural for other in sources) or not (
            name.endswith(" (input)") or name == shared.OUTPUT
        ):
            return False
        return forms.follows(ours[name], theirs[name], sources, {n: self.natural.get(n, theirs[n]) for n in sources})

    def _again(self, batch: Batch, step: int, adopt: Any, left: Trace, right: Trace, start: Any) -> Trace:
        """The right's step from where it stood, with what it adopts."""
        self.found.right.restore(start)
        adopt["activation"] = self.found.adopted(left, right, "activation", self.adopted)
        return self.run(self.found.right, batch, step, adopt)

    def _wrong(self, left: Trace, right: Trace, step: int, phase: str) -> list[Difference]:
        one, other = self.found.translated(left, right)
        return [d for d in self._differences(one, other, step, phase) if not d.within]

    def _overwrite(self, phase: str, tensors: Mapping[str, Any]) -> None:
        memory = phase == "optimizer"
        self.found.right.overwrite({} if memory else tensors, tensors if memory else {})

    def _differences(self, left: Trace, right: Trace, step: int, phase: str) -> Iterator[Difference]:
        """Of one phase, those already named left out."""
        self.context = context = Context(self.before, self.modules, self.optimizer, step, self._masks())
        if phase in ("optimizer", "parameter"):
            self._find_idle(left, right)
        names, agreed = self.verdict.names, self.agreed if phase == "activation" else ()
        for difference in differences(left, right, step, self.bounds, names, context, (phase,), agreed):
            idle = difference.tensor.split("/")[-1] in self.idle and phase in ("optimizer", "parameter")
            if not difference.within and phase == "activation" and difference.tensor in self.adopted:
                continue
            if not idle:
                difference = self._within_noise(difference)
                if difference.within and np.isinf(difference.bound):
                    self.exempt.setdefault(difference.tensor)
                elif difference.within:
                    self.verdict.report.add(difference)
                if difference.within:
                    self.agreed.add(difference.tensor)
                yield difference
                if not difference.within and (phase == "activation" or not self.go_on):
                    return

    def _masks(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Of attention layers in the last pass, by the left's calls."""
        ours, theirs = (getattr(side, "masks", {}) for side in (self.found.left, self.found.right))
        return ours, {left: theirs[right] for left, right, _ in self.found.calls() if right in theirs}

    def _within_noise(self, difference: Difference) -> Difference:
        """A difference that the left's own noise explains, where no bound was given, without its cause."""
        if self.given or difference.step >= len(self.noises) or np.isnan(difference.relative):
            return difference
        own = self.noises[difference.step].get((difference.phase, difference.tensor), 0.0)
        bound = min(max(self.bounds.of(difference.phase), _NOISES * own), _MOST.get(self.width, _COARSE))
        return replace(difference, bound=bound, cause="") if difference.relative <= bound else difference

    def _find_idle(self, left: Trace, right: Trace) -> None:
        """Parameters whose gradient is rounding's: an optimizer such as Adam makes whole steps of it."""
        if not any(slot.startswith("exp_avg_sq/") for slot in left.get("optimizer", {})):
            return
        ours, theirs = left.get("gradient", {}), right.get("gradient", {})
        largest = max((float(np.abs(as_float64(g)).max(initial=0)) for g in ours.values()), default=0.0)
        limit = _NOTHING.get(self.width, 1e-2) * largest
        idle = set()
        for name in ours.keys() & theirs.keys():
            if max(float(np.abs(as_float64(g[name])).max(initial=0)) for g in (ours, theirs)) < limit:
                idle.add(name)
        if idle and not self.idle:
            self.verdict.notes.append(
                f"{_listed(sorted(idle))}: the gradient is nothing but rounding, as of a bias before a norm; what "
                "the optimizer makes of it is not compared, and the left's is taken."
            )
        self.idle |= idle

    def _name(self, wrong: list[Difference], phase: str, left: Trace, right: Trace) -> bool:
        """Add findings; whether to go on."""
        groups: dict[str, list[Difference]] = {}
        if phase == "activation" and self._inherited(wrong[0].tensor, left, right):
            self.known.add((phase, wrong[0].tensor))
        for difference in wrong:
            if (phase, difference.tensor) not in self.known and not self._follows(difference, left, right):
                groups.setdefault(_kind_of(difference.cause), []).append(difference)
            self.known.add((phase, difference.tensor))
        for group in groups.values():
            self._add(group, phase, left)
        if not self.go_on and not groups:
            return True
        return self.go_on and not any(np.isnan(d.absolute) and phase != "optimizer" for d in wrong)

    def _add(self, group: list[Difference], phase: str, left: Trace) -> None:
        first, tensors = group[0], tuple(d.tensor for d in group)
        for place, finding in enumerate(self.verdict.findings):
            same = _kind_of(finding.cause) == _kind_of(first.cause) and finding.difference.phase == phase
            if same:
                self.verdict.findings[place] = replace(finding, tensors=finding.tensors + tensors)
                return
        between = self._between(first, phase, left)
        if self.shared and (cause := self._dropped(first, between, left)):
            first = replace(first, cause=cause)
        self.verdict.findings.append(Finding(first, tensors, between))

    def _dropped(self, difference: Difference, between: Sequence[str], left: Trace) -> str:
        """That dropout differs on the way to a layer's input."""
        partners = {name: other for name, other, pair in self.found.calls() if pair and " (input)" not in name}
        if self.shared is None or not _is_way(difference):
            return ""
        calls = list(left["activation"])
        before = calls[: calls.index(difference.tensor)]
        last = next((partners[name] for name in reversed(before) if name in partners), "")
        return self.shared.cause(between, last, self.verdict.names)

    def _follows(self, difference: Difference, left: Trace, right: Trace) -> bool:
        """Whether a difference follows from one that was named.

        That of a gradient which passed backwards through a layer whose output was adopted, or which holds the decay
        that the loss was found to hold; that of a parameter which is made of the optimizer's memory as on the other
        side.
        """
        if difference.phase == "parameter":
            ours, theirs = self.found.translated(left, right)
            remembered = any(phase == "optimizer" for phase, _ in self.known)
            return remembered and follows_memory(difference.tensor, ours, theirs, self.context)
        if difference.phase != "gradient":
            return False
        if "decay" in difference.cause:
            return any(
                "decay" in finding.cause for finding in self.verdict.findings if finding.difference.phase == "loss"
            )
        if not self.adopted:
            return False
        places = {pair.left: place for place, pair in enumerate(self.found.pairs)}
        owner = {names[0]: pair.left for pair in self.found.pairs for names in pair.tensors}
        last = max(places.get(shared.path_of(name), len(places)) for name in self.adopted)
        return places[owner[difference.tensor]] <= last

    def _between(self, difference: Difference, phase: str, left: Trace) -> tuple[str, ...]:
        """The left's modules whose outputs come between the last paired one and this input, such as a pool."""
        if not _is_way(difference):
            return ()
        paired = {name for name, _, pair in self.found.calls() if pair and not name.endswith(" (input)")}
        calls = list(left["activation"])
        found: list[str] = []
        for name in reversed(calls[: calls.index(difference.tensor)]):
            if name in paired:
                break
            if not name.endswith(" (input)") and name != shared.OUTPUT:
                found.append(name)
        return tuple(reversed(found))


def _is_way(difference: Difference) -> bool:
    """Whether it is of what comes between two layers."""
    name = difference.tensor
    return difference.phase == "activation" and (name.endswith(" (input)") or name == shared.OUTPUT)


def _listed(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)


def _kind_of(cause: str) -> str:
    """A cause without its numbers: differences of one kind are told together."""
    return "".join(letter for letter in cause if not letter.isdigit() and letter not in ".-+e")


def _paths(pair: Any) -> tuple[str, str]:
    return pair.left, pair.right


def _standing(side: Watched) -> Trace:
    """A side's parameters and statistics, as a trace."""
    model = side.model()
    return {"parameter": model.parameters, "statistic": model.statistics}


def _held(left: Watched, right: Watched) -> list[str]:
    """What was switched off."""
    off = [side for side in (left, right) if getattr(side, "dropout", "on") == "off"]
    drops = [side for side in off if any(m.kind == "dropout" for m in side.model().modules.values())]
    return ["Dropout is off on both sides."] if drops and len(off) == 2 else []


def _begun(found: Match) -> list[str]:
    """That the weights which were there before others were carried over have other distributions."""
    tensors = found.models[0].tensors, found.models[1].tensors
    if any(map(blank, tensors)):
        return []
    return [f"Before weights were carried over {line}" for line in begun(found, [tensors]).lines() if "begin" in line]


def _shared(found: Match, inputs: tuple[Any, Any]) -> Shared | None:
    """Dropout of which both sides draw the same.

    Raises:
        ValueError: one side alone is to.
    """
    asked = [side for side in (found.left, found.right) if getattr(side, "dropout", "on") == "shared"]
    if len(asked) == 1:
        other = found.right if asked[0] is found.left else found.left
        raise ValueError(f"dropout='shared' is asked of {asked[0].name} alone: {other.name} must share, too.")
    return share(found, inputs) if asked else None


def _repeats(side: Watched, batch: Batch, walk: _Walk) -> None:
    """Refuse a side that gives something else when it is asked again."""
    start = side.snapshot()
    traces = []
    for _ in range(2):
        side.restore(start)
        traces.append(walk.run(side, batch, 0))
    side.restore(start)
    for difference in differences(traces[0], traces[1], 0, replace(walk.bounds, tensor={}), (side.name, side.name)):
        if "NaN" in difference.cause:
            return  # told of as a difference
        if not difference.within:
            place = f"{difference.phase}, {difference.tensor}"
            raise ValueError(f"{side.name} is not deterministic: {place} differs between two runs of the same step.")


def _noise(found: Match, batches: list[Batch], walk: _Walk) -> Report:
    """The left against itself with every weight moved by one unit in the last place, up or down by turns."""
    left, report = found.left, Report()
    start = left.snapshot()
    plain = [walk.run(left, batch, step) for step, batch in enumerate(batches)]
    left.restore(start)
    tensors = dict(left.model().parameters)
    moved = {}
    for name, values in tensors.items():
        ulp = last_place(values.dtype) * np.exp2(np.floor(np.log2(np.maximum(np.abs(as_float64(values)), 1e-300))))
        signs = np.where(np.arange(values.size).reshape(values.shape) % 2, 1.0, -1.0)
        moved[name] = (as_float64(values) + signs * ulp).astype(values.dtype)
    left.overwrite(moved, {})
    free = replace(walk.bounds, default=np.inf, phase={}, tensor={})
    for step, (batch, trace) in enumerate(zip(batches, plain, strict=True)):
        for difference in differences(trace, walk.run(left, batch, step), step, free):
            idle = difference.phase in ("optimizer", "parameter") and difference.tensor.split("/")[-1] in walk.idle
            if difference.within and difference.phase not in ("batch", "input") and not idle:
                report.add(difference)
        walk.noises.append({key: worst.relative for key, worst in report.worst.items()})
    return report


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
