"""Predicting photographs: which files, how they become a network's pixels, what is printed and drawn."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.batch import Batch
from common.data.crops import central_square
from common.data.dataset import whole
from common.data.listing import IMAGE_SUFFIXES, PREDICTIONS, Tree
from common.data.photos import open_image
from common.data.pipeline import batches
from common.data.sources import Arrays
from common.errors import UserError
from common.frameworks import FRAMEWORKS
from common.reports.figures import save_figure, shorten
from common.reports.sheets import Cell, draw_sheet, thumbnail
from common.runs.files import REPLACED, atomic, replaced, write_csv
from common.runs.scores import percent
from common.system import expanded
from common.weights.network import Network, run_at

if TYPE_CHECKING:
    from PIL import Image

_CHUNK = 32  # images decoded and predicted at a time
_BARS = 30  # guesses that a picture has room for
_FILL = 6  # guesses whose bars make a panel square
_MIDDLE = 127.5  # between black and white
SHEET = 240  # images on a sheet
_THUMBNAIL = 640  # pixels at the longer side, in the picture


@dataclass(frozen=True)
class Predictor:
    """A trained network: functions of a batch on the host.

    Attributes:
        probabilities: float (n, classes).
        grad_cam: float (n, height, width), where each image shows what speaks for the class that is its label.
        seen: float32 (n, height, width, channels) in [0, 1], what goes into the network but for mean and deviation.
    """

    probabilities: Callable[[Batch], np.ndarray]
    grad_cam: Callable[[Batch], np.ndarray]
    seen: Callable[[Batch], np.ndarray]


@dataclass(frozen=True)
class Prediction:
    """What a network makes of one image.

    Attributes:
        name: the file's, below the folder that was asked for.
        image: for the picture, not larger than it needs.
        seen: share of the shorter side that the network sees, a square around the middle.
        pixels: of it as the network gets them, float32 (height, width, channels) in [0, 1].
        guesses: class names and probabilities, the most probable first.
        light: whether its border is light, as that of ink on paper.
        heat: Grad-CAM's map of the first guess of what the network sees, float (height, width), where asked for.
    """

    name: str
    image: Image.Image
    seen: float
    pixels: np.ndarray
    guesses: tuple[tuple[str, float], ...]
    light: bool = False
    heat: np.ndarray | None = None


def find_images(place: str) -> tuple[Path, list[Path], str]:
    """The image that is named, or the images in and below a folder, by the rules of `common.data.listing`.

    Returns:
        The folder that names are told from, the files in order, and what was passed over, in a line.

    Raises:
        UserError: it is a URL, is not there, or holds no images.
    """
    if not place:
        raise UserError("Name an image, or a folder of images: make predict IMAGE=cat.jpg.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", place) and not Path(place).exists():
        raise UserError(f"{shorten(place, 100)} is a URL: download the image, then name the file.")
    path = expanded(place)
    try:
        if path.is_file():
            return path.parent, [path], ""
        if not path.is_dir():
            raise UserError(f"There is no image and no folder {path.absolute()}.")
        tree = Tree(path)
        files = tree.images(path)
    except OSError as error:
        raise UserError(f"Cannot read {place}: {error.strerror or error}.") from error
    if not files:
        passed = f"; {tree.passed}" if tree.passed else ""
        raise UserError(f"{path.absolute()} holds no images ({', '.join(IMAGE_SUFFIXES)}{passed}).")
    return path, files, tree.passed


def to_pixels(image: Image.Image, network: Network) -> np.ndarray:
    """A photograph as the network's dataset would store it: its central square, uint8 (height, width, channels).

    Raises:
        UserError: it is so narrow that it cannot be resized.
    """
    height, width, channels = network.stored
    assert height == width
    if max(image.size) > 100 * min(image.size):
        raise UserError(f"it measures {image.width} x {image.height} pixels, too narrow to be resized")
    return central_square(image, height).reshape(height, width, channels)


def to_batch(pixels: Sequence[np.ndarray], network: Network) -> Batch:
    """A batch as an evaluation would read it from the network's dataset; the labels are zeros."""
    source = Arrays(np.stack(pixels), np.zeros(len(pixels), np.int32))
    data = whole("photographs", "test", network.stored, network.names, source)
    (batch,) = batches(data, replace(network.recipe, batch_size=len(pixels)), 0, train=False)
    return batch


def has_light_border(pixels: np.ndarray) -> bool:
    """Whether the outermost pixels of an image, uint8 (height, width, channels), are light in the mean."""
    inside = np.zeros(pixels.shape, bool)
    inside[1:-1, 1:-1] = True
    return bool(pixels[~inside].mean() > _MIDDLE)


def read_images(
    network: Network, root: Path, files: Sequence[Path], failed: list[str], *, invert: bool = False
) -> Iterator[tuple[list[str], list[Image.Image], Batch]]:
    """Every file that can be read, some at a time: names, images for a picture, and a batch for the network.

    Args:
        network: that is to see them.
        root: names are told from here.
        files: below it.
        failed: takes a sentence for each file that cannot be read.
        invert: show the network dark for light and light for dark.
    """
    for start in range(0, len(files), _CHUNK):
        names, images, pixels = [], [], []
        for file in files[start : start + _CHUNK]:
            try:
                with warnings.catch_warnings():  # of what Pillow could mend, or finds rather large
                    warnings.simplefilter("ignore")
                    image = open_image(file, network.stored[2])
                found = to_pixels(image, network)
                pixels.append(255 - found if invert else found)
            except UserError as error:
                text = str(error)
                failed.append(text if str(file) in text else f"Cannot take the image {file}: {text}.")
                continue
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
            names.append(str(file.relative_to(root)))
            images.append(image)
        if pixels:
            yield names, images, to_batch(pixels, network)


def predictions(
    predict: Predictor,
    network: Network,
    root: Path,
    files: Sequence[Path],
    top: int,
    failed: list[str],
    *,
    grad_cam: bool = False,
    invert: bool = False,
) -> Iterator[Prediction]:
    """Predict every file that can be read.

    Args:
        predict: the network, loaded.
        network: what it is.
        root, files, failed, invert: see `read_images`.
        top: how many guesses, at most one a class.
        grad_cam: show what speaks for the first guess.
    """
    side = network.stored[0]
    seen = min(1.0, (network.recipe.preprocess.crop or side) / side)
    for names, images, batch in read_images(network, root, files, failed, invert=invert):
        rows, pixels = predict.probabilities(batch), predict.seen(batch)
        assert batch.images is not None
        light = [has_light_border(each) for each in batch.images]
        best = np.argsort(-rows, 1, kind="stable")[:, :top]
        heats = predict.grad_cam(replace(batch, labels=best[:, 0].astype(np.int32))) if grad_cam else [None] * len(rows)
        for i, (name, image) in enumerate(zip(names, images, strict=True)):
            guesses = tuple((network.names[label], float(rows[i, label])) for label in best[i])
            yield Prediction(name, image, seen, pixels[i], guesses, light[i], heats[i])


@dataclass(frozen=True)
class Wishes:
    """What is asked of a prediction besides its images.

    Attributes:
        top: how many guesses, at most one a class.
        out: folder for what is written.
        grad_cam: show what speaks for the first guess, and leave the maps.
        each: draw every image of a folder into a picture of its own too; `grad_cam` does anyway.
        invert: show the network dark for light and light for dark.
    """

    top: int
    out: Path
    grad_cam: bool
    each: bool
    invert: bool


def predict_place(place: str, network: Network, predict: Predictor, wishes: Wishes) -> None:
    """Print and draw what a network makes of an image, or of the images of a folder: these on one sheet.

    Raises:
        UserError: nothing, or not everything, could be predicted: each file is named with its reason.
    """
    root, files, passed = find_images(place)
    failed: list[str] = []
    read = predictions(
        predict, network, root, files, wishes.top, failed, grad_cam=wishes.grad_cam, invert=wishes.invert
    )
    try:
        done, written = _write_all(read, wishes, in_words(network), folder=expanded(place).is_dir())
    except OSError as error:
        raise UserError(f"Cannot write to {wishes.out}: {error.strerror or error}.") from error
    show(done, network.title, as_table=len(files) > 1)
    for note in [passed, _ground(done, network, wishes.invert)]:
        if note:
            print(note, file=sys.stderr)
    if done:
        print(f"{wishes.out}: {', '.join(written)}")
    if len(files) == 1 and failed:
        raise UserError(failed[0])
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(files)} images could not be predicted.")


def _write_all(
    read: Iterator[Prediction], wishes: Wishes, by: str, *, folder: bool
) -> tuple[list[Prediction], list[str]]:
    """Draw and write predictions as they come; what they were, without large images, and what was written."""
    out, done, single = wishes.out, list[Prediction](), list[str]()
    for prediction in read:
        if not folder or wishes.each or wishes.grad_cam:
            single.append(_leave(out, f"{prediction.name}.png", partial(draw, prediction=prediction, by=by)))
        kept = thumbnail(prediction.image) if folder and len(done) < SHEET else None
        done.append(replace(prediction, image=kept, pixels=None))  # type: ignore[arg-type]
    written = [*_leave_of_folder(out, done, by)] if folder and done else []
    written += single if len(single) < 2 else [_counted(single)]
    if wishes.grad_cam and done:
        written.append(_leave(out, "grad_cam.npz", partial(write_grad_cam, done=done)))
    return done, written


def _leave(out: Path, name: str, write: Callable[[Path], None]) -> str:
    """Write a file below the folder; its name, and whether it has taken another's place."""
    path = out / name
    before = replaced(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return f"{name}{before}"


def _leave_of_folder(out: Path, done: Sequence[Prediction], by: str) -> Iterator[str]:
    """Draw the sheet and write the table of a folder's images."""
    sheet = _leave(out, "predictions.png", partial(draw_sheet_of, done=done[:SHEET], total=len(done), by=by))
    yield f"{sheet} of the first {SHEET:,} of {len(done):,}" if len(done) > SHEET else sheet
    yield _leave(out, PREDICTIONS, partial(write_predictions, done=done))


def _counted(single: Sequence[str]) -> str:
    """Many pictures in few words."""
    again = sum(name.endswith(REPLACED) for name in single)
    return f"{len(single):,} pictures" + (f" ({again:,} of them replaced)" if again else "")


def _ground(done: Sequence[Prediction], network: Network, invert: bool) -> str:
    """What to say where pictures are dark on light and the network knows light on dark alone; empty where they fit."""
    light = [each.name for each in done if each.light]
    if not light or not network.on_dark:
        return ""
    which = f"{light[0]} is" if len(done) == 1 else f"{len(light):,} of {len(done):,} images ({light[0]} ...) are"
    remedy = "leave --invert out" if invert else "--invert exchanges dark and light"
    return (
        f"note: {which} dark on a light ground as the network sees it, which was trained on {network.recipe.dataset}, "
        f"light on dark: its guesses mean little; {remedy}"
    )


def in_words(network: Network) -> str:
    """A network in the title of a picture: of a run what was trained, in what and where."""
    run = run_at(network.path) if network.path else None
    if not run:
        return network.title
    framework = FRAMEWORKS[run.manifest["framework"]].title
    return f"{run.recipe.name} in {framework}, {run.path.absolute().name}"


def draw_sheet_of(path: Path, done: Sequence[Prediction], total: int, by: str) -> None:
    """Draw thumbnails with the first guess, its probability and the file's name, of these images of so many."""
    cells = [Cell(each.image, (f"{percent(each.guesses[0][1])} {each.guesses[0][0]}", each.name)) for each in done]
    first = f"The first {len(done):,} of " if len(done) < total else ""
    draw_sheet(path, cells, f"{first}{total:,} {'image' if total == 1 else 'images'}, by {by}")


def show(done: Sequence[Prediction], title: str, *, as_table: bool) -> None:
    """Print guesses: a block for one image; for several a table, or a line each where there is no terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if as_table and console.is_terminal:
        table = Table("image", "probability", "class", "then", title=Text(title), title_justify="left")
        for prediction in done:
            (name, probability), *others = prediction.guesses
            then = ", ".join(f"{other} {share:.4f}" for other, share in others)
            table.add_row(Text(prediction.name), f"{probability:.4f}", Text(name), Text(then))
        console.print(table)
        return
    for prediction in done:
        if as_table:
            print(prediction.name, *(f"{share:.4f} {name}" for name, share in prediction.guesses), sep="  ")
        else:
            print(f"{prediction.name}, by {title}")
            print(*(f"  {share:.4f}  {name}" for name, share in prediction.guesses), sep="\n")


def write_predictions(path: Path, done: Sequence[Prediction]) -> None:
    """Write every guess as CSV: image, rank, probability, class."""
    rows = [
        (prediction.name, rank, f"{share:.6g}", name)
        for prediction in done
        for rank, (name, share) in enumerate(prediction.guesses, 1)
    ]
    write_csv(path, [("image", "rank", "probability", "class"), *rows])


def write_grad_cam(path: Path, done: Sequence[Prediction]) -> None:
    """Write a .npz: `files` (n,), `classes` (n,), each image's first guess, and `maps` (n, height, width).

    `np.load(path)` opens it without pickle.
    """
    files, classes = np.array([each.name for each in done]), np.array([each.guesses[0][0] for each in done])
    with atomic(path) as part, part.open("wb") as file:
        np.savez(file, files=files, classes=classes, maps=np.stack([np.asarray(each.heat) for each in done]))


def draw(path: Path, prediction: Prediction, by: str) -> None:
    """Draw the image with a frame around what the network sees, that as the network gets it, and guesses as bars.

    At most 30 guesses. Before the bars, where there is one, Grad-CAM's map of the first guess.

    Args:
        path: of the picture.
        prediction: to draw.
        by: the network, in words.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    image, guesses = prediction.image, prediction.guesses[:_BARS]
    panels = 3 if prediction.heat is None else 4
    figure = Figure(figsize=(4.2 * panels, max(4, 0.32 * len(guesses) + 1.5)), layout="constrained")
    left, pixels, *middle, right = figure.subplots(1, panels)
    left.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255)
    left.set_axis_off()
    left.set_title(shorten(prediction.name, 40), parse_math=False, fontsize=10)
    side = prediction.seen * min(image.size)
    corner = ((image.width - side - 1) / 2, (image.height - side - 1) / 2)
    left.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=2.5, clip_on=False))
    left.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="black", linewidth=1, clip_on=False))
    height, width, _ = prediction.pixels.shape
    pixels.imshow(prediction.pixels.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    pixels.set_axis_off()
    pixels.set_title(f"what the network sees: {width} x {height} pixels", fontsize=10)
    for panel in middle:
        _draw_heat(panel, image, prediction)
    _draw_guesses(right, guesses, by)
    save_figure(figure, path, 120)


def _draw_guesses(panel: Any, guesses: Sequence[tuple[str, float]], by: str) -> None:
    """A bar for each guess, equally thick however few there are."""
    names, shares = [shorten(name, 30) for name, _ in guesses], [share for _, share in guesses]
    bars = panel.barh(range(len(guesses)), shares, color="#3b6fb6")
    panel.bar_label(bars, [f"{share:.4f}" for share in shares], padding=4)
    panel.set_yticks(range(len(guesses)), names, parse_math=False)
    panel.set_ylim(len(guesses) - 0.5, -0.5)  # the most probable on top
    if len(guesses) < _FILL:
        panel.set_box_aspect(len(guesses) / _FILL)
    panel.set(xlim=(0, 1.25), xlabel="probability", xticks=np.linspace(0, 1, 6))
    panel.set_title(f"by {shorten(by, 46)}", parse_math=False, fontsize=9, color="#555555")
    panel.spines[["top", "right"]].set_visible(False)


def _draw_heat(panel: Any, image: Image.Image, prediction: Prediction) -> None:
    """The square that the network sees, in grey, and Grad-CAM's map over it."""
    assert prediction.heat is not None
    side = prediction.seen * min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    square = image.convert("L").crop((round(left), round(top), round(left + side), round(top + side)))
    extent = (0, 1, 1, 0)
    panel.imshow(np.asarray(square), cmap="gray", vmin=0, vmax=255, extent=extent)
    heat = panel.imshow(
        prediction.heat, cmap="inferno", vmin=0, alpha=0.6, extent=extent, interpolation="bilinear", aspect="equal"
    )
    panel.figure.colorbar(heat, ax=panel, shrink=0.7, label="Grad-CAM")
    panel.set_axis_off()
    name = shorten(prediction.guesses[0][0], 24)
    panel.set_title(f"what speaks for {name}", parse_math=False, fontsize=10)
