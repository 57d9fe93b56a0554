"""Drawing: curves of runs onto given axes, and how their lines look.

Texts from records are drawn with ``parse_math=False``: a layer's name may hold a dollar sign.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.ticker import MaxNLocator

from specreg.names import printable
from specreg.report.runs import OUTPUTS, Cell, Run, grouped, ratios
from specreg.report.tables import finite_values, of_one_protocol
from specreg.report.verdicts import segments, tone

plt.style.use("default")  # a user's matplotlibrc, or a stranger's in this folder, may ask for LaTeX, or for PDF

_SPARE = ("#5f6b76", "#b5519c", "#8c6d31", "#17a2b0", "#2f2f2f", "#a3b82a")
# Lines differ by more than their colour: matplotlib's pattern and SVG's for the same line.
_PATTERNS = (("solid", ""), ((0, (5, 2)), "10 4"), ((0, (1, 1.2)), "2 2.4"), ((0, (6, 2, 1, 2)), "12 4 2 4"))
_SHADES = {"amber": "#f8e3b4", "red": "#efc4c0"}  # by tone
_MOMENTS = 5  # curves of one layer's spectrum


class Style(NamedTuple):
    """How a line looks: its colour, matplotlib's pattern and SVG's."""

    colour: str
    pattern: Any = "solid"
    dashes: str = ""


def plot_outputs(axis: Axes, run: Run) -> None:
    """Plot the cumulative distributions of a run's last recorded scores."""
    last = run.outputs[-1]
    for name, style in named_styles(OUTPUTS).items():
        quantiles = last[name]
        levels = [index / (len(quantiles) - 1) for index in range(len(quantiles))]
        axis.plot(quantiles, levels, color=style.colour, ls=style.pattern, lw=1.8)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.set_xlabel("score D(x)")
    axis.set_ylabel("share of images below")
    axis.grid(alpha=0.25)


def plot_moments(axis: Axes, run: Run, name: str) -> None:
    """Plot a layer's s_k/s_1 against k at several moments (Liu et al. 2019, figures 1 to 4)."""
    curves = dict(run.ratios(name))
    for step, style in _steps(run).items():
        if step in curves:
            places = range(1, len(curves[step]) + 1)
            axis.plot(places, curves[step], marker="o", ms=3, color=style.colour)
    _finish_distribution(axis)


def plot_final(axis: Axes, runs: Sequence[Run], name: str, look: Mapping[str, Style]) -> None:
    """Plot a layer's last s_k/s_1 of each group (Liu et al. 2019, figure 5), seeds thin and their mean thick."""
    for group, alike in grouped(runs).items():
        curves = [run.ratios(name)[-1][1] for run in alike if run.ratios(name)]
        _plot_mean(axis, [dict(enumerate(curve, start=1)) for curve in curves], look[group])
    _finish_distribution(axis)


def plot_bulks(axis: Axes, run: Run) -> None:
    """Plot every layer's bulk over training, shaded where their spectra were said to collapse, lines at events."""
    for begin, end, state in segments(run, "spectra"):
        if (shade := _SHADES.get(tone(state))) is not None:
            hatch = "//" if tone(state) == "red" else ""
            axis.axvspan(begin, end, facecolor=shade, edgecolor="#ffffff", hatch=hatch, lw=0)
    for event in run.events:
        axis.axvline(event["step"], color="#444444", lw=1, ls=":")
    plot_layers(axis, run, {name: run.bulks(name) for name in run.layers})


def plot_layers(axis: Axes, run: Run, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Plot one curve between 0 and 1 for each layer, in the layers' styles."""
    for name, style in layer_styles(run.measured_layers).items():
        _plot_curve(axis, curves.get(name, {}), style, width=1.5)
    axis.set_ylim(0, 1.05)
    _finish_training(axis)


def plot_named(axis: Axes, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Plot one curve for each name, in the styles of :func:`named_styles`; logarithmic where they spread far."""
    for name, style in named_styles(curves).items():
        _plot_curve(axis, curves[name], style, width=1.7)
    values = [value for curve in curves.values() for value in curve.values() if math.isfinite(value)]
    if min(values, default=0) > 0 and max(values) > 20 * min(values):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=min([0, *values]))
    _finish_training(axis)


def plot_curves(
    axis: Axes,
    runs: Sequence[Run],
    curve_of: Callable[[Run], Mapping[int, float]],
    look: Mapping[str, Style],
    *,
    up_to_one: bool = False,
) -> None:
    """Plot a number during training, from 0 to 1 if asked: thin lines for seeds, a thick one for each group's mean."""
    for group, alike in grouped(runs).items():
        _plot_mean(axis, [curve for run in alike if (curve := curve_of(run))], look[group])
    if up_to_one:
        axis.set_ylim(0, 1.05)
    _finish_training(axis)


def plot_by_setting(axis: Axes, cells: Sequence[Cell], key: str, look: Mapping[str, Style]) -> None:
    """Plot each group's final score by setting: means over seeds, bars are one standard deviation."""
    alike = [grouped(run for run in cell.runs if run.result) for cell in cells]
    groups = dict.fromkeys(group for cell in alike for group in cell)
    for index, group in enumerate(groups):
        offset = 0.7 * ((index + 0.5) / len(groups) - 0.5)
        points = [
            (place + offset, values)
            for place, runs in enumerate(cell.get(group, []) for cell in alike)
            if of_one_protocol(runs) and (values := finite_values(runs, key))
        ]
        if not points:
            continue
        axis.errorbar(
            [place for place, _ in points],
            [statistics.fmean(values) for _, values in points],
            [statistics.stdev(values) if len(values) > 1 else math.nan for _, values in points],
            fmt="os^Dv"[index % 5], ms=5, capsize=3, color=look[group].colour, label=words(group),
        )  # fmt: skip
    axis.legend(fontsize=7, frameon=False)  # of the marks, which the lines of other figures do not tell
    axis.grid(alpha=0.25)
    axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
    labels = [printable(cell.label) for cell in cells]
    axis.set_xticks(range(len(cells)), labels, rotation=40, ha="right", parse_math=False)
    axis.set_xlim(-0.6, len(cells) - 0.4)


def recorded(key: str) -> Callable[[Run], Mapping[int, float]]:
    """Return what reads a number recorded during training, for :func:`plot_curves`."""
    return lambda run: run.curves.get(key, {})


def moments(run: Run) -> dict[str, Style]:
    """Return the moments at which a run's spectra are drawn, with their lines."""
    return {f"iteration {step}": style for step, style in _steps(run).items()}


def _steps(run: Run) -> dict[int, Style]:
    steps = [record["step"] for record in run.spectra]
    chosen = dict.fromkeys(steps[round(i * (len(steps) - 1) / (_MOMENTS - 1))] for i in range(_MOMENTS) if steps)
    return dict(zip(chosen, map(Style, _shades(len(chosen))), strict=True))


def styles(runs: Iterable[Run]) -> dict[str, Style]:
    """Return each group's line; of several groups of one method only the first has the method's colour."""
    spare, taken = itertools.cycle(_SPARE), set[str]()
    looks: dict[str, Style] = {}
    for index, (group, alike) in enumerate(grouped(runs).items()):
        colour = alike[0].look.colour
        colour = next(spare) if not colour or colour in taken else colour
        taken.add(colour)
        looks[group] = Style(colour, *_PATTERNS[index % len(_PATTERNS)])
    return looks


def layer_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return each layer's line: dark at the input, light at the output."""
    shades = _shades(len(names))[::-1]
    return {name: Style(shades[i], *_PATTERNS[i % len(_PATTERNS)]) for i, name in enumerate(names)}


def named_styles(names: Iterable[str]) -> dict[str, Style]:
    """Return a line of its own for each of a few names without an order."""
    return {name: Style(_SPARE[i % len(_SPARE)], *_PATTERNS[i % len(_PATTERNS)]) for i, name in enumerate(names)}


def most_changed(run: Run, count: int) -> list[str]:
    """Return the layers whose mean ratio moved most from the first record to the last, in the network's order."""

    def change(name: str) -> float:
        curves = [curve[1:] for _, curve in run.ratios(name)]
        return abs(sum(curves[-1]) / len(curves[-1]) - sum(curves[0]) / len(curves[0])) if all(curves) else 0.0

    chosen = sorted(run.layers, key=change, reverse=True)[:count]
    return [name for name in run.layers if name in chosen]


def least_second_ratio(run: Run) -> dict[int, float]:
    """Return s_2/s_1 of the layer that has the least, by step."""
    seconds = {
        record["step"]: [ratios(values)[1] for values in record["layers"].values() if len(values) > 1]
        for record in run.spectra
    }
    return {step: min(values) for step, values in seconds.items() if values}


def last_convolution(run: Run) -> str:
    """Return the layer that the paper shows: the discriminator's last convolution."""
    convolutions = [name for name in run.layers if "conv" in name]
    return (convolutions or run.layers)[-1]


def last_bulk(run: Run) -> dict[int, float]:
    """Return the bulk of the last convolution by step."""
    return run.bulks(last_convolution(run)) if run.layers else {}


def words(text: str) -> str:
    """Return a record's text for a legend, which cannot be told that a dollar sign begins no formula."""
    return printable(text).replace("$", r"\$")


def _plot_mean(axis: Axes, curves: Sequence[Mapping[int, float]], style: Style) -> None:
    if not curves:
        return
    if len(curves) > 1:
        # One artist for all: hundreds of seeds as lines of their own take seconds.
        thin = LineCollection([list(curve.items()) for curve in curves], colors=style.colour, alpha=0.5, linewidths=0.9)
        axis.add_collection(thin)
        if points := [point for curve in curves if len(curve) == 1 for point in curve.items()]:  # which make no line
            axis.plot(*zip(*points, strict=True), ".", color=style.colour, alpha=0.5)
    places = sorted(set.intersection(*(set(curve) for curve in curves)))
    means = {place: sum(curve[place] for curve in curves) / len(curves) for place in places}
    _plot_curve(axis, means, style, width=2.2)


def _plot_curve(axis: Axes, curve: Mapping[int, float], style: Style, *, width: float) -> None:
    """Plot a line, or a point where a short run has no more."""
    lone: dict[str, Any] = {"marker": "o", "clip_on": False} if len(curve) == 1 else {"marker": ""}
    look: dict[str, Any] = {"color": style.colour, "ls": style.pattern, "lw": width}
    axis.plot(list(curve), list(curve.values()), **look, **lone)


def _finish_distribution(axis: Axes) -> None:
    axis.set_ylim(0, 1.05)
    axis.grid(alpha=0.25)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("k")
    axis.set_ylabel("$s_k / s_1$")


def _finish_training(axis: Axes) -> None:
    axis.set_xlabel("iteration (generator steps)")
    axis.grid(alpha=0.25)


def _shades(count: int) -> list[str]:
    """Return colours from light (early) to dark (late)."""
    shades = plt.get_cmap("viridis_r")
    return [to_hex(shades(0.12 + 0.86 * index / max(1, count - 1))) for index in range(count)]
