"""The pages: everything is gathered into one dict, written as data.json, and shown from it."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.arch.spec import Arch
from common.errors import UserError
from common.frameworks import FRAMEWORKS
from common.recipes import own
from common.reports.evaluation import COUNTS_FIT
from common.runs.files import write_json, write_text
from common.system import package_versions
from common.weights import exchange
from common.weights.network import Network
from parity import PHASES
from parity_tests import mutants, noise, table
from parity_tests.results import RESULTS, ROOT
from study import anatomy, deviations, diagram, measure, notes, pictures, runs, source
from study.break_it import CURVES, SLIGHT
from study.measure import Arrays, Subject
from study.notes import faults, glossary, questions, training
from study.notes.faults import Exercise
from study.notes.glossary import Term
from study.notes.note import Concept
from study.notes.questions import Question

HERE = Path(__file__).parent
MODULES = ("train", "optim", "preprocess", "evaluate")
PAGES = {
    "index": "Start",
    "model": "Model",
    "training": "Training",
    "pictures": "Pictures",
    "parity": "Parity",
    "break": "Break it",
    "deviations": "What differs",
    "glossary": "Glossary",
    "files": "Other files",
}
_UNITS = {
    "percent": (100, "{:.1f} %"),
    "seconds": (1, "{:,.1f} s"),
    "rate": (1, "{:,.0f}"),
    "memory": (2**-20, "{:,.0f} MiB"),
}
BY_TITLE = {about.title: name for name, about in FRAMEWORKS.items()}


@dataclass(frozen=True)
class Options:
    """Write the study site: both implementations side by side, and what was measured.

    Attributes:
        recipe: whose network and preprocessing are shown, where no run says so (default: digits, or the recipe file's).
        run_torch: a run folder of torch_impl, for curves and trained weights, or several with spaces between: the first
            is compared. Without any run, those of the site's last build stay.
        run_flax: the same of flax_impl.
        noise: the noise.json of a comparison: the self-noise of the curves.
        forget: leave out the runs of the last build.
        image: a file to measure and draw the layers on, instead of scikit-learn's images; or a folder of some.
        weights: a .safetensors or .pth file of weights to show, of a whole network or of its convolutions alone; of
            torchvision's alexnet unless --arch names another.
        arch: show this architecture instead of the recipe's, with fresh weights.
        recipe_file: a Python file with recipes and architectures of your own, which the names may be of.
        out: folder for the pages.
    """

    recipe: str | None = None
    run_torch: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    run_flax: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    noise: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    forget: bool = False
    image: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    arch: str | None = None
    recipe_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    out: Path = Path("site")


def build(options: Options, *, subject: Subject | None = None, root: Path = ROOT, results: Path = RESULTS) -> Path:
    """Write the site.

    Args:
        options: of the command.
        subject: what is measured; by default what the options say.
        root: holds torch_impl and flax_impl, whose source is shown.
        results: holds parity-cpu.json, mutants-cpu.json and curve-*.json.

    Returns:
        The first page.

    Raises:
        UserError: a layer or a function has no counterpart in the other framework, a layer has no text, a text cites
            what is not there, a name is unknown, the image cannot be read, or the folder cannot be written.
    """
    sources = _sources(root)
    models, problems = sources.pop("models"), list[str]()
    given, kept = _given(options)
    if not subject:
        subject = find_subject(options, {} if kept and options.recipe else given, problems)
    arch = subject.network.arch
    kind = "LeNet" if len(arch.convs) == 2 else "AlexNet"
    texts = {layer: _text(arch, layer) for layer in anatomy.layer_names(arch)}
    for layer in texts:
        if layer not in models[kind][0].groups:
            raise UserError(f"{layer} of {arch.name} is nowhere in {kind}'s source.")
    _claim(options.out)
    print(f"measuring {arch.name} in both frameworks on {subject.image}", flush=True)
    network, *activations, weights = measure.measure(subject)
    for layer in network["layers"]:
        layer.update(texts[layer["name"]])
    data: dict[str, Any] = {
        "network": network | {"class": kind, "problems": problems},
        "training": _training(given),
        "given": runs.remember(options.out, given),
        "parity": _table(results / "parity-cpu.json", {*(column.name for column in fields(table.Row)), "verdict"}),
        "mutants": _table(results / "mutants-cpu.json", set(mutants.COLUMNS)),
        "exercises": _table(results / CURVES, {"fault", "losses"}),
        "curves": _curve_files(results),
        "deviations": deviations.grids(),
        "versions": package_versions(),
    }
    print(f"drawing its layers, and what speaks for the first guess of {1 + len(subject.more)} images", flush=True)
    data["pictures"] = _pictures(options.out, subject, network, activations[0], weights)
    _layer_pictures(options.out, network["layers"], *activations)
    data["speaks"] = _speaks(options.out, subject)
    data["pictures"]["confusions"] = _confusions(options.out, data["training"]["runs"])
    _tell(problems, data["training"], given if kept else {})
    drawn = _drawn(data["training"]) | {"layers": pictures.by_layer(network["layers"], "layers")}
    drawn |= {"network": diagram.draw(arch), "bars": diagram.bars(arch), "profiles": _profiles(subject, *activations)}
    sources["pairs"] = [*models[kind], sources.pop("block")]
    sources["others"] = [pair for name, both in models.items() if name != kind for pair in both]
    sources["exercises"] = _exercises(sources["exercises"], data["mutants"]["rows"], data["exercises"]["rows"])
    for one in sources["questions"]:
        one["curve"] = _curve(data["exercises"]["rows"], one["entry"].fault, SLIGHT.step)
    sources["curves"] = {key: title for key, title in runs.KEYS.items() if key in drawn}
    sources |= {"drawn": drawn, "grids": data["deviations"], "parity": _by_check(data["parity"]["rows"])}
    _render(options.out, data, sources)
    return options.out / "index.html"


def _sources(root: Path) -> dict[str, Any]:
    """Everything of the source that the pages show.

    Raises:
        UserError: something has no counterpart in the other framework, or a note cites what is not there.
    """
    found: dict[str, Any] = {
        "models": {name: source.model_pairs(name, root) for name in source.MODELS},
        "block": source.block_pair(root),
        "modules": [source.module_pair(module, root) for module in MODULES],
    }
    concepts = [_cited(concept, root) for concept in training.CONCEPTS]
    terms = [_cited(term, root) for term in glossary.TERMS]
    exercises = [_cited(exercise, root) for exercise in faults.EXERCISES]
    asked = [_cited(question, root) for question in questions.questions()]
    entries = (*concepts, *terms, *exercises, *asked)
    cited = {(one.framework, one.module) for entry in entries for one in (*entry["torch"], *entry["flax"])}
    others = sorted((file for file in cited if page_of(file[1]) == "files"), key=lambda file: file[::-1])
    files = [source.file_pane(*file, root) for file in others]
    found |= {"concepts": concepts, "terms": terms, "exercises": exercises, "questions": asked}
    return found | {"files": files}


def _text(arch: Arch, layer: str) -> dict[str, Any]:
    """What a layer's panel says without having measured anything."""
    return {
        "note": vars(notes.about(arch, layer)),
        "settings": anatomy.settings(arch, layer),
        "follows": anatomy.follows(arch, layer),
        "sums": anatomy.cost_sums(arch, layer),
    }


def _cited(entry: Concept | Term | Exercise | Question, root: Path) -> dict[str, Any]:
    """A concept, a term, an exercise or a question with the lines that it cites of each framework."""
    excerpts = {
        name: [source.excerpt(cite.side or name, cite.module, cite.begins, cite.count, root) for cite in found]
        for name, found in (("torch", entry.torch), ("flax", entry.flax))
    }
    return {"entry": entry, **excerpts}


def _exercises(
    entries: Sequence[dict[str, Any]], rows: Sequence[Mapping[str, str]], measured: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Exercises with what the table of planted faults says of each answer; one whose faults it lacks is left out.

    Args:
        entries: cited.
        rows: of the table.
        measured: the losses with each fault planted; gets where they part.
    """
    by_name, found = {row["fault"]: row for row in rows}, []
    for cited in entries:
        entry = cited["entry"]
        if all(name in by_name for name in entry.choices):
            choices = [{**by_name[name], "right": name == entry.fault} for name in entry.choices]
            row = by_name[entry.fault]
            seen = int(row["found_at"].split(",")[0].split()[1])
            found.append({**cited, "row": row, "choices": choices, "curve": _curve(measured, entry.fault, seen)})
    return found


def _curve(measured: Sequence[dict[str, Any]], fault: str, seen: int) -> dict[str, Any] | None:
    """The losses of a fault as a picture, and the row that they are of, which gets where they part; None without one.

    Args:
        measured: rows.
        fault: by name.
        seen: the step at which the comparer sees it.
    """
    for place, row in enumerate(measured):
        if row["fault"] == fault:
            row |= runs.parting(*row["losses"].values())
            return {"place": place, "drawn": pictures.losses(row["losses"], seen)}
    return None


def page_of(module: str) -> str:
    """The page that shows a module's lines."""
    return {"model": "model", **dict.fromkeys(MODULES, "training")}.get(module, "files")


def _given(options: Options) -> tuple[dict[str, list[Path]], bool]:
    """The runs of each framework and the noise, by their names in `Options`; and whether they are of the last build."""
    keys = ("run_torch", "run_flax", "noise")
    given = {key: runs.listed(getattr(options, key)) for key in keys}
    if any(given.values()) or options.forget:
        return given, False
    kept = runs.remembered(options.out)
    return {key: kept.get(key, []) for key in keys}, any(kept.values())


def _tell(problems: Sequence[str], training: Mapping[str, Any], kept: Mapping[str, Sequence[Path]]) -> None:
    """Say on the terminal what is missing or damaged, and which runs of the last build stay."""
    if kept:
        names = ", ".join(str(path) for paths in kept.values() for path in paths)
        print(f"note: of the last build stay {names} (ARGS=--forget leaves them out)", file=sys.stderr)
    told = [problems, *(run["problems"] for run in (*training["runs"].values(), *training["more"]))]
    for problem in dict.fromkeys([*itertools.chain.from_iterable(told), training["noise"]["problem"]]):
        if problem:
            print(f"note: {problem}", file=sys.stderr)


def find_subject(options: Options, given: Mapping[str, Sequence[Path]], problems: list[str]) -> Subject:
    """What is measured: a run's network if one can be read and no architecture is named, else a fresh one.

    Args:
        options: of the command.
        given: the runs, as `_given` has them.
        problems: takes a sentence for each run whose weights cannot be read.

    Raises:
        UserError: an unknown recipe or architecture, or an image that cannot be read.
    """
    first = {name: given.get(f"run_{key}", [])[:1] for name, key in BY_TITLE.items()}
    for name, path in [(name, path) for name, paths in first.items() for path in paths]:
        if options.arch or options.weights:
            break
        network, problem = runs.trained(path, BY_TITLE[name])
        problems += [problem] if problem else []
        if network is None:
            continue
        if network.path.suffix != ".safetensors":
            problems.append(f"{path} has not finished: there is no model.safetensors.")
            continue
        try:
            tensors = exchange.check(exchange.read(network.path)[0], network.arch, str(network.path))
        except UserError as error:
            problems.append(str(error))
            continue
        return _seen(network, tensors, f"trained in {name}, {path}", options.image, ())
    arch = options.arch or ("alexnet" if options.weights else None)
    network = measure.fresh_network(own.choose(options.recipe, options.recipe_file).name, arch)
    recipe = network.recipe
    drawn = f"initial weights of the recipe {recipe.name} ({recipe.init}, seed {recipe.seed}), drawn by PyTorch"
    how = f"untrained: {drawn}"
    if options.weights:
        tensors, fresh = measure.with_weights(network, options.weights)
        how = str(options.weights) + (f"; {', '.join(fresh)} untrained: {drawn}" if fresh else "")
        return _seen(network, tensors, how, options.image, fresh)
    return _seen(network, None, how, options.image)


def _seen(
    network: Network, tensors: Arrays | None, how: str, place: Path | None, fresh: tuple[str, ...] | None = None
) -> Subject:
    (pixels, shown), *more = measure.images_for(network, place)
    return Subject(network, tensors, how, pixels, shown, fresh, tuple(more))


def _claim(out: Path) -> None:
    """Make the folder; one with other files in it is left alone."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the site with --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / "data.json").is_file():
        raise UserError(f"{out} holds files that are not a study site: name another folder with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {out}: {error.strerror}.") from error


def _training(given: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """The first run of each framework, which are compared, and what there is more of."""
    every: dict[str, list[dict[str, Any]]] = {}
    for name, key in BY_TITLE.items():
        every[name] = [runs.read_run(path, key) for path in given.get(f"run_{key}", [])] or [runs.read_run(None, key)]
    found = {name: first for name, (first, *_) in every.items()}
    more = [{"framework": name, **run} for name, (_, *others) in every.items() for run in others]
    ours, theirs = found["PyTorch"], found["Flax"]
    moved = runs.read_noise(next(iter(given.get("noise", [])), None))
    for name in ("recipe", "epochs"):
        if name in ours and name in theirs and ours[name] != theirs[name]:
            theirs["problems"].append(
                f"The runs are not of the same {name}: {ours[name]} in PyTorch, {theirs[name]} in Flax. What follows "
                f"compares them all the same."
            )
    return {
        "runs": found,
        "more": more,
        "figures": [key for key in runs.FIGURES if any(key in run["final"] for run in (*found.values(), *more))],
        "summary": runs.summary(ours, theirs, moved["curves"]),
        "differences": runs.differences(ours["curves"], theirs["curves"]),
        "noise": moved,
    }


def _drawn(training: Mapping[str, Any]) -> dict[str, Any]:
    """The curves' pictures by key, where there is anything to draw."""
    lines = {name: run["curves"] for name, run in training["runs"].items()}
    drawn = {}
    for key, title in runs.KEYS.items():
        apart, width = (None, {}) if key == "lr" else (training["differences"], training["noise"]["curves"])
        if any(key in split for run in lines.values() for split in run.values()):
            more = [(run["framework"], run["curves"]) for run in training["more"]]
            drawn[key] = pictures.curves(lines, apart, width, key, title, f"curves-{key}", more)
    return drawn


def _table(path: Path, columns: Set[str]) -> dict[str, Any]:
    """A filed table: what is wrong with it, device, versions and rows."""
    found, problem = runs.read_result(path)
    rows = found.get("rows") if isinstance(found, dict) else None
    if not problem and not (rows and all(isinstance(row, dict) and columns <= row.keys() for row in rows)):
        problem = f"{path.name} holds no table of {', '.join(sorted(columns))}."
    if problem:
        return {"problem": problem, "rows": []}
    about = {"device": found.get("device", ""), "versions": found.get("versions", {})}
    return {"problem": "", **about, "rows": rows}


def _by_check(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Where each architecture's check in each precision stands among the rows."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row["arch"], {}).setdefault(row["check"], {})[row["precision"]] = place
    return found


def _curve_files(results: Path) -> dict[str, Any]:
    """The largest difference of each phase of each curve-*.json, a row each."""
    rows, problems = [], []
    files = sorted(results.glob("curve-*.json")) if results.is_dir() else []
    for path in files:
        found, problem = runs.read_result(path)
        if not problem and not (isinstance(found, dict) and isinstance(found.get("largest"), dict)):
            problem = f"{path.name} holds no largest differences."
        if problem:
            problems.append(problem)
            continue
        about = {"file": path.name, **{key: found.get(key) for key in ("recipe", "precision", "steps")}}
        keys = ("phase", "tensor", "step", "absolute", "relative", "ulp", "bound", "unit")
        rows += [
            about | {"at_step" if key == "step" else key: row.get(key) for key in keys}
            for row in found["largest"].values()
        ]
    if not files:
        problems.append("There are no curve-*.json files.")
    return {"problems": problems, "rows": rows}


def _pictures(
    out: Path, subject: Subject, network: Mapping[str, Any], activations: Arrays, weights: Arrays
) -> dict[str, Any]:
    """Write the pictures and list them: file, what they show, and the layer."""
    folder = out / "pictures"
    first = network["layers"][0]["name"]
    pixels = subject.pixels if subject.pixels.shape[2] == 3 else subject.pixels[:, :, 0]
    pictures.save(pixels, folder / "image.png")
    pictures.save(pictures.filters(weights[f"{first}.conv.weight"]), folder / "filters.png")
    maps = []
    for layer in network["layers"]:
        if layer["name"].startswith(("conv", "fc")):
            name = layer["name"]
            pictures.save(pictures.feature_maps(activations[name]), folder / f"{name}.png")
            channels = activations[name].shape[1]
            if activations[name].ndim == 4:
                pictures.save(pictures.strongest(activations[name]), folder / f"{name}-strongest.png", pictures.STRIP)
            maps.append(
                {"layer": name, "file": f"pictures/{name}.png", "shown": min(channels, pictures.MAPS), "of": channels}
            )
    return {"image": "pictures/image.png", "filters": "pictures/filters.png", "first": first, "maps": maps}


def _layer_pictures(out: Path, layers: Sequence[dict[str, Any]], ours: Arrays, theirs: Arrays) -> None:
    """Draw what enters each layer, what both frameworks make of it, and how far they are apart."""
    before = ours["input"]
    for layer in layers:
        name = layer["name"]
        shown = {"in": before, "PyTorch": ours[name], "Flax": theirs[name], "apart": np.abs(ours[name] - theirs[name])}
        for key, array in shown.items():
            pictures.save(pictures.strip(array), out / "pictures" / f"{name}-{key}.png", pictures.STRIP)
        layer["maps"] = min(pictures.STRIP_MAPS, ours[name].shape[1]) if ours[name].ndim == 4 else 0
        before = ours[name]


def _speaks(out: Path, subject: Subject) -> list[dict[str, Any]]:
    """Draw what speaks for the first guess of each image, in both frameworks."""
    found, shown = measure.speaks(subject)
    for place, (row, arrays) in enumerate(zip(found, shown, strict=True)):
        seen = arrays.pop("image")
        row["files"] = {"image": f"pictures/seen-{place}.png"}
        pictures.save(seen if seen.shape[2] == 3 else seen[:, :, 0], out / row["files"]["image"], pictures.OVERLAY)
        for title, values in arrays.items():
            row["files"][title] = f"pictures/speaks-{place}-{BY_TITLE[title]}.png"
            pictures.save(pictures.heat(seen, values), out / row["files"][title], 0)
    return found


def _profiles(subject: Subject, ours: Arrays, theirs: Arrays) -> dict[str, Markup]:
    """The dense layers' outputs in both frameworks: sorted, but of the last one the largest, by class."""
    *hidden, last = (name for name in ours if name.startswith("fc"))
    found = {name: pictures.profile(ours[name], theirs[name], name) for name in hidden}
    return found | {last: pictures.scores(ours[last], theirs[last], subject.network.names)}


def _confusions(out: Path, found: Mapping[str, Any]) -> dict[str, str]:
    """Draw the confusion matrices that are too large for a table; by framework, the file."""
    files = {}
    for name, run in found.items():
        if run["confusion"] and len(run["confusion"]["names"]) > COUNTS_FIT:
            files[name] = f"pictures/confusion-{BY_TITLE[name]}.png"
            pictures.save(pictures.confusion(run["confusion"]["counts"]), out / files[name])
    return files


def lookup(data: Any, key: str) -> Any:
    """The value at a path of names and indices, "network/layers/0/parameters"."""
    for part in key.split("/"):
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def written(value: Any, kind: str = "") -> str:
    """A figure as the pages write it: integers in full, others to three digits; or with the unit of its kind."""
    if value is None:
        return "none"
    if kind in _UNITS:
        factor, form = _UNITS[kind]
        return form.format(factor * value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _render(out: Path, data: dict[str, Any], sources: Mapping[str, Any]) -> None:
    """Write data.json and every page; figures are looked up in what data.json will say."""
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError as error:
        raise UserError(f"A figure of the site is not finite: {error}.") from error
    shown = json.loads(text)

    def figure(key: str, kind: str = "") -> Markup:
        value = lookup(shown, key)
        return Markup('<data data-key="{}" value="{}">{}</data>').format(key, json.dumps(value), written(value, kind))

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(figure=figure, pages=PAGES, names=source.TITLES, frameworks=BY_TITLE)
    environment.globals.update(references=deviations.ABOUT, mutant_columns=mutants.COLUMNS, precisions=table.PRECISIONS)
    environment.globals.update(
        floor=noise.FLOOR, factor=noise.FACTOR, seen=runs.SEEN, figures=runs.FIGURES, page_of=page_of, phases=PHASES
    )
    write_json(out / "data.json", shown)
    print(f"writing {', '.join(f'{page}.html' for page in PAGES)}", flush=True)
    for page in PAGES:
        html = environment.get_template(f"{page}.html").render(page=page, data=shown, **sources)
        write_text(out / f"{page}.html", html)
    for file in (HERE / "static").iterdir():
        shutil.copyfile(file, out / file.name)
