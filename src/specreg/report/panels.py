"""Illustrations as pictures: each panel inside the page, or all of them on one sheet for a folder."""

import base64
import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from PIL import Image

from specreg.files import replacing
from specreg.names import printable
from specreg.report.figures import Style, words
from specreg.report.illustrations import Illustration, Panel

_INCHES, _DPI = (3.4, 2.4), 140  # wider than the page shows it, so that it is sharp on a phone; some 10 kB
_LARGEST = 200_000  # bytes of a grid as PNG; photographs beyond that become JPEGs
_GRID = 800  # pixels of a grid's side; a run writes every pixel 4 x 4 times
_COLUMNS = 5  # of a sheet
_NUMBERS = 8  # points of those beside a panel, for which its margin has room


class Picture(NamedTuple):
    """A picture as the page itself holds it; its size reserves its place before it is decoded."""

    source: str
    width: int
    height: int


def picture(panel: Panel) -> Picture:
    """Return a panel's picture: a plot in a palette of 64 colours, or a grid of images."""
    if isinstance(panel.content, Image.Image):
        return _photograph(panel.content)
    figure, axis = plt.subplots(figsize=panel.size or _INCHES, layout="constrained" if panel.size else None)
    if panel.size is None:  # alike in all, so that panels line up
        figure.subplots_adjust(left=0.22, right=0.94, bottom=0.19, top=0.96)
    panel.content(axis)
    axis.tick_params(which="both", labelsize=_NUMBERS)
    file = io.BytesIO()
    figure.savefig(file, dpi=_DPI, format="png")
    plt.close(figure)
    with Image.open(file, formats=["PNG"]) as opened:
        return _encoded(opened.convert("RGB").quantize(64, dither=Image.Dither.NONE))


def write_sheet(path: Path, illustration: Illustration) -> None:
    """Draw the panels that are not folded onto one sheet; every part begins a row."""
    parts = [part for part in illustration.parts if not part.summary]
    num_columns = max(min(len(part.panels), 1 if part.kind == "wide" else _COLUMNS) for part in parts)
    rows = [
        (part, part.panels[begin : begin + num_columns])
        for part in parts
        for begin in range(0, len(part.panels), num_columns)
    ]
    width, height = panel_size if (panel_size := rows[0][1][0].size) else (2.9, 2.5)
    size = (max(4.5, width * num_columns), height * len(rows) + 1)
    figure, axes = plt.subplots(len(rows), num_columns, figsize=size, squeeze=False)
    # Set in inches: to lay out by what is drawn takes longer than drawing. Grids of images have no axes and no legend.
    plotted = not all(isinstance(panel.content, Image.Image) for part in parts for panel in part.panels)
    figure.subplots_adjust(
        left=(0.77 if plotted else 0.15) / size[0], right=1 - 0.15 / size[0], top=1 - 0.6 / size[1],
        bottom=(0.15 if not plotted else 1.1 if width < 4 else 1.5) / size[1],
        wspace=0.36 if plotted else 0.05, hspace=0.6 if plotted else 0.2,
    )  # fmt: skip
    legends = [part.legend for part in parts if part.legend]
    alike = all(legend == legends[0] for legend in legends)  # else runs are of several lengths, or still go on
    for (part, panels), line in zip(rows, axes.tolist(), strict=True):
        for axis in line[len(panels) :]:
            axis.axis("off")
        for axis, panel in zip(line, panels, strict=False):
            if isinstance(panel.content, Image.Image):
                axis.imshow(panel.content, interpolation="nearest", cmap="gray")
                axis.axis("off")
            else:
                panel.content(axis)
                axis.tick_params(which="both", labelsize=_NUMBERS)
            is_first = panel is part.panels[0]
            if legend := panel.legend or ({} if alike or not is_first else part.legend):
                axis.legend(*_entries(legend), fontsize=6, frameon=False)
            lead = [part.heading] if part.heading and is_first else []
            letters = int(13 * size[0] * axis.get_position().width)  # some thirteen to an inch
            title = textwrap.wrap(printable(panel.title), letters)
            axis.set_title("\n".join([*map(printable, lead), *title]), fontsize=9, parse_math=False)
    if legends and alike:
        columns = min(len(legends[0]), 2 * num_columns)
        figure.legend(*_entries(legends[0]), loc="lower center", ncols=columns, frameon=False, fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)


def _entries(legend: Mapping[str, Style]) -> tuple[list[Line2D], list[str]]:
    lines = [Line2D([], [], color=style.colour, ls=style.pattern, lw=2) for style in legend.values()]
    return lines, list(map(words, legend))


def _photograph(grid: Image.Image) -> Picture:
    grid = grid.reduce(-(-max(grid.size) // _GRID))
    exact = _encoded(grid)
    return exact if len(exact.source) <= _LARGEST * 4 // 3 else _encoded(grid, "jpeg")


def _encoded(image: Image.Image, kind: str = "png") -> Picture:
    file = io.BytesIO()
    image.save(file, kind, optimize=True, quality=85)
    return Picture(f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}", *image.size)
