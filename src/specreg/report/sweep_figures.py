"""The paper's figures from a sweep's runs; files are named after the figures of Liu et al. 2019 that they redraw."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from specreg.names import printable
from specreg.report import figures
from specreg.report.runs import Run
from specreg.report.sweeps import Cell, methods
from specreg.report.tables import COLUMNS

_WIDTH, _HEIGHT = 2.7, 2.2  # inches of one panel
_CURVES = ("modes", "kl", "fd", "inception_score")

# What a file shows, for the page.
CAPTIONS = {
    "figures1-4-spectra": (
        "As figures 1 to 4 of the paper: sₖ/s₁ of the discriminator's last convolution at several iterations, light "
        "early and dark late, of each setting's first seed. A curve that falls for all k but the first is a spectral "
        "collapse."
    ),
    "figures1-4-scores": (
        "As figures 1 to 4 of the paper: scores during training, and the bulk of the same layer (the mean of sₖ/s₁ "
        "over k = 2 to ⌈r/2⌉). Thin lines are seeds. Scores and bulk that break together are what the paper reports."
    ),
    "figure5-final": (
        "As figure 5 of the paper: the last convolution's sₖ/s₁ at the last record. After static compensation it is a "
        "step: the first i at 1."
    ),
    "outputs": (
        "As the longer text of the paper, where it chooses i: cumulative distributions of the discriminator's scores "
        "of training, held-out and generated images at the last evaluation, of each setting's and method's first seed. "
        "Training and held-out images apart mean that the discriminator overfits."
    ),
    "scores-by-setting": "The final scores by setting: means over seeds, bars are one standard deviation.",
}


def write_figures(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Draw every figure that the records allow into a folder; returns the files."""
    paths = []
    for name, group, figure in _drawn(cells):
        paths.append(folder / f"{name}{f'-{group}' if group else ''}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def watched_layer(run: Run) -> str:
    """Return the layer that the paper shows: the discriminator's last convolution."""
    convolutions = [name for name in run.layers if "conv" in name]
    return (convolutions or run.layers)[-1]


def _drawn(cells: Sequence[Cell]) -> Iterator[tuple[str, str, Figure]]:
    for group in dict.fromkeys(cell.group for cell in cells):
        begun = [one for one in cells if one.group == group and any(run.spectra for run in one.runs.values())]
        if begun:
            yield "figures1-4-spectra", group, _spectra(begun)
            yield "figures1-4-scores", group, _scores(begun)
            yield "figure5-final", group, _final(begun)
            if any(run.outputs for cell in begun for run in cell.runs.values()):
                yield "outputs", group, _outputs(begun)
    complete = [cell for cell in cells if any(run.result for run in cell.runs.values())]
    if complete:
        yield "scores-by-setting", "", _by_setting(complete)


def _panels(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of panels; those of one column share their x axis."""
    size = (max(4.5, _WIDTH * columns + 0.5), _HEIGHT * rows + 0.9)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex="col", layout="constrained")
    return figure, axes.tolist()


def _spectra(cells: Sequence[Cell]) -> Figure:
    shown = methods(cells)
    figure, axes = _panels(len(shown), len(cells))
    legends = set()
    for row, (method, look) in enumerate(shown.items()):
        for column, cell in enumerate(cells):
            axis = axes[row][column]
            run = next((run for run in cell.runs.values() if run.method == method and run.spectra), None)
            if run is None:
                _nothing(axis)
            else:
                figures.plot_moments(axis, run, watched_layer(run))
                legends.add(tuple(axis.get_legend_handles_labels()[1]))
            axis.set_ylabel(f"{figures.words(look.title)}\nsₖ / s₁" if column == 0 else "")
            axis.set_xlabel("k" if row == len(shown) - 1 else "")
            if row == 0:
                axis.set_title(printable(cell.label), fontsize=10, parse_math=False)
    if len(legends) == 1:
        with_curves = next(axis for line in axes for axis in line if axis.lines)
        figure.legend(*with_curves.get_legend_handles_labels(), title="iteration", loc="outside right upper",
                      frameon=False, fontsize=8)  # fmt: skip
    else:  # runs of several lengths, or some that still go on
        for axis in (axis for line in axes for axis in line if axis.lines):
            axis.legend(title="iteration", fontsize=6, title_fontsize=6, frameon=False)
    return figure


def _scores(cells: Sequence[Cell]) -> Figure:
    known = {key for cell in cells for run in cell.runs.values() for key in run.curves}
    curves: list[tuple[str, Callable[[Run], object]]] = [
        (heading, figures.recorded(key)) for key, heading, _ in COLUMNS if key in known and key in _CURVES
    ]
    curves.append(("bulk of sₖ / s₁", lambda run: run.bulks(watched_layer(run)) if run.layers else {}))
    figure, axes = _panels(len(curves), len(cells))
    for column, cell in enumerate(cells):
        for row, (heading, curve) in enumerate(curves):
            axis = axes[row][column]
            figures.plot_curves(axis, list(cell.runs.values()), curve)  # type: ignore[arg-type]
            axis.set_ylabel(heading if column == 0 else "")
            axis.set_xlabel("iteration" if row == len(curves) - 1 else "")
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if row == len(curves) - 1:
                axis.set_ylim(0, 1.05)
        axes[0][column].set_title(printable(cell.label), fontsize=10, parse_math=False)
    _legend(figure, cells)
    return figure


def _final(cells: Sequence[Cell]) -> Figure:
    figure, (line,) = _panels(1, len(cells))
    for axis, cell in zip(line, cells, strict=True):
        begun = [run for run in cell.runs.values() if run.spectra]
        figures.plot_final(axis, begun, watched_layer(begun[0]))
        axis.set_ylabel("sₖ / s₁" if axis is line[0] else "")
        axis.set_title(printable(cell.label), fontsize=10, parse_math=False)
    _legend(figure, cells)
    return figure


def _outputs(cells: Sequence[Cell]) -> Figure:
    firsts = {
        f"{cell.label}\n{look.title}": run
        for cell in cells for method, look in methods([cell]).items()
        if (run := next((run for run in cell.runs.values() if run.method == method and run.outputs), None))
    }  # fmt: skip
    columns = min(6, len(firsts))
    figure, axes = plt.subplots(
        -(-len(firsts) // columns), columns, squeeze=False, sharey=True, layout="constrained",
        figsize=(max(4.5, _WIDTH * columns + 0.5), (_HEIGHT + 0.5) * -(-len(firsts) // columns) + 0.5),
    )  # fmt: skip
    for axis in axes.flat[len(firsts) :]:
        axis.axis("off")
    for index, (axis, (label, run)) in enumerate(zip(axes.flat, firsts.items(), strict=False)):
        figures.plot_outputs(axis, run)
        axis.set_title("\n".join(map(printable, label.split("\n"))), fontsize=9, parse_math=False)
        axis.set_ylabel("share of images below" if index % columns == 0 else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _by_setting(cells: Sequence[Cell]) -> Figure:
    shown = methods(cells)
    measures = [
        (key, heading) for key, heading, _ in COLUMNS
        if key in _CURVES and any(cell.values(method, key) for cell in cells for method in shown)
    ]  # fmt: skip
    size = (max(4.5, 0.55 * len(cells) * max(1, len(shown) / 2) + 1.5), 2.4 * len(measures) + 0.9)
    figure, axes = plt.subplots(len(measures), 1, figsize=size, squeeze=False, layout="constrained", sharex=True)
    for (key, heading), axis in zip(measures, axes[:, 0], strict=True):
        for index, (method, look) in enumerate(shown.items()):
            offset = 0.7 * ((index + 0.5) / len(shown) - 0.5)
            points = [
                (place + offset, values) for place, cell in enumerate(cells) if (values := cell.values(method, key))
            ]
            axis.errorbar(
                [place for place, _ in points],
                [statistics.fmean(values) for _, values in points],
                [statistics.stdev(values) if len(values) > 1 else math.nan for _, values in points],
                fmt="os^Dv"[index % 5], ms=5, capsize=3, color=look.colour or None,
                label=figures.words(look.title),
            )  # fmt: skip
        axis.set_ylabel(heading)
        axis.grid(alpha=0.25)
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.set_xticks(
            range(len(cells)), [printable(cell.label) for cell in cells], rotation=40, ha="right", parse_math=False
        )
        axis.set_xlim(-0.6, len(cells) - 0.4)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(shown), frameon=False)
    return figure


def _legend(figure: Figure, cells: Sequence[Cell]) -> None:
    """Name the methods once, in the styles that the panels give them."""
    styles = {group: style for cell in cells for group, style in figures.styles(cell.runs.values()).items()}
    lines = [Line2D([], [], color=style.colour, ls=style.pattern, lw=2.2) for style in styles.values()]
    figure.legend(lines, list(map(figures.words, styles)), loc="outside lower center", ncols=len(styles), frameon=False)


def _nothing(axis: Axes) -> None:
    axis.text(0.5, 0.5, "no record yet", ha="center", va="center", transform=axis.transAxes, color="#59636e")
    axis.set_yticks([])
