"""Figures of the page: small pictures without words from records, which stand beside them as text."""

import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from PIL import Image

from specreg.files import check_file
from specreg.report.figures import Style
from specreg.report.markup import Markup, image, join, tag

_INCHES, _DPI = (3.4, 2.4), 140  # wider than the page shows it, so that it is sharp on a phone; some 10 kB
_LARGEST = 200_000  # bytes of a grid as PNG; photographs beyond that become JPEGs
_GRID = 800  # pixels of a grid's side; a run writes every pixel 4 x 4 times


def drawn(title: str, alt: str, plot: Callable[[Axes], None], *after: str) -> Markup:
    """Return a panel: a title, a plot in a palette of 64 colours, and what follows it."""
    figure, axis = plt.subplots(figsize=_INCHES)
    figure.subplots_adjust(left=0.15, right=0.94, bottom=0.19, top=0.96)  # alike in all, so that panels line up
    plot(axis)
    file = io.BytesIO()
    figure.savefig(file, dpi=_DPI)
    plt.close(figure)
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    return panel(title, image(_png(small), alt, small.size), *after)


def photograph(title: str, alt: str, path: Path) -> Markup:
    """Return a panel with a grid of images from a run.

    Raises:
        ValueError: the file is not a picture.
    """
    grid = opened(path)
    shrink = -(-max(grid.size) // _GRID)
    if shrink > 1:
        grid = grid.resize((grid.width // shrink, grid.height // shrink), Image.Resampling.BOX)
    data, kind = _png(grid), "png"
    if len(data) > _LARGEST:
        file = io.BytesIO()
        grid.save(file, "JPEG", quality=85)
        data, kind = file.getvalue(), "jpeg"
    return panel(title, image(data, alt, grid.size, kind=kind))


def opened(path: Path) -> Image.Image:
    """Return a picture of a run, grey or in colours.

    Raises:
        ValueError: the file is not a picture, or one that would take all memory.
    """
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return picture.convert(picture.mode if picture.mode in ("L", "RGB") else "RGB")
    except Exception as error:  # a damaged image makes its decoder fail anywhere
        raise ValueError(f"{path} is damaged: it is no picture; remove it or restore it") from error


def panel(title: str, *content: str) -> Markup:
    """Return one picture with its title."""
    return tag("div", tag("p", title), *content, class_="panel")


def grid(panels: Iterable[str], kind: str = "panels") -> Markup:
    """Return panels side by side, as many in a row as fit."""
    return tag("div", join(panels), class_=kind)


def captioned(caption: str, *parts: str) -> Markup:
    """Return a figure: what one sees and how to read it, then its parts."""
    return tag("figure", tag("figcaption", caption), join(parts))


def legend(entries: Mapping[str, Style]) -> Markup:
    """Return a list of labels, each with a piece of its line."""
    items = []
    for label, style in entries.items():
        line = tag(
            "line",
            x1=1,
            y1=6,
            x2=27,
            y2=6,
            stroke=style.colour,
            stroke_width=3,
            stroke_dasharray=style.dashes or "none",
        )
        items.append(tag("li", tag("svg", line, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true"), label))
    return tag("ul", *items, class_="legend")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
