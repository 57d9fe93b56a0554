"""Tables and pictures from records: the result table, results.json, spectra.png, curves.png, samples.png.

Reads run directories only (see ``specreg.records``) and never imports torch.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specreg.records import RunDirectory, write_json

TITLES = {"sn": "SN", "static": "static SR", "dynamic": "dynamic SR"}
COLOURS = {"sn": "#c44e52", "static": "#2a6fbb", "dynamic": "#3a923a"}
# key, heading, decimals, and which way is better
COLUMNS = (
    ("modes", "modes ↑", 0),
    ("kl", "KL (nats) ↓", 2),
    ("fd", "FD ↓", 2),
    ("kid", "KID ↓", 3),
    ("precision", "precision ↑", 3),
    ("recall", "recall ↑", 3),
    ("density", "density ↑", 2),
    ("coverage", "coverage ↑", 3),
    ("seconds", "seconds", 0),
)
_MOMENTS = 5  # curves in each panel of spectra.png
_PANELS = 4  # layers shown in spectra.png


def results(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """Return one object for each complete run, as ``results.json`` holds them."""
    found = []
    for run in runs:
        result, timing = run.read("result"), run.read("timing")
        if result is not None:
            config = result.pop("config")
            found.append(result | {"seconds": (timing or {}).get("seconds"), "config": config})
    return found


def table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and cells: for each method the mean ± standard deviation over its seeds."""
    columns = [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]
    cells = []
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        cells.append(
            [TITLES.get(method, method), str(len(of_method))]
            + [_mean_and_spread([row[key] for row in of_method], decimals) for key, _, decimals in columns]
        )
    return ["method", "seeds", *(heading for _, heading, _ in columns)], cells


def markdown(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_report(out: Path, runs: Sequence[RunDirectory]) -> tuple[list[dict[str, Any]], list[Path]]:
    """Write results.json, table.md and the three pictures into ``out``; returns the results and the paths."""
    rows = results(runs)
    complete = [run for run in runs if run.complete]
    write_json(out / "results.json", rows)
    paths = [out / "results.json"]
    if not rows:
        return rows, paths
    paths.append(out / "table.md")
    paths[-1].write_text(markdown(*table(rows)), encoding="utf-8")
    for name, draw in (("spectra", draw_spectra), ("curves", draw_curves), ("samples", draw_samples)):
        paths.append(out / f"{name}.png")
        figure = draw(complete)
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return rows, paths


def draw_spectra(runs: Sequence[RunDirectory]) -> Figure:
    """Draw s_k/s_1 against k at several moments: a row for each method (first seed), a column for each layer.

    The layers are those whose spectrum changed most under the first method.
    """
    firsts = _first_of_each_method(runs)
    names = _most_changed(firsts[next(iter(firsts))].series("spectra"))
    figure, axes = plt.subplots(
        len(firsts), len(names), figsize=(3.1 * len(names) + 0.6, 2.5 * len(firsts) + 0.7), squeeze=False,
        sharey=True, layout="constrained",
    )  # fmt: skip
    for row, (method, run) in enumerate(firsts.items()):
        records = run.series("spectra")
        positions = dict.fromkeys(round(i * (len(records) - 1) / (_MOMENTS - 1)) for i in range(_MOMENTS))
        moments = [records[position] for position in positions]
        for column, name in enumerate(names):
            axis = axes[row][column]
            for index, record in enumerate(moments):
                ratios = _ratios(record["layers"][name])
                shade = plt.get_cmap("viridis_r")(0.08 + 0.9 * index / max(1, len(moments) - 1))
                axis.plot(range(1, len(ratios) + 1), ratios, marker="o", ms=3, color=shade, label=f"{record['step']}")
            axis.set_ylim(0, 1.05)
            axis.grid(alpha=0.25)
            axis.xaxis.get_major_locator().set_params(integer=True)
            if row == 0:
                axis.set_title(name, fontsize=10)
            if row == len(firsts) - 1:
                axis.set_xlabel("k")
        axes[row][0].set_ylabel(f"{TITLES.get(method, method)}\n$s_k / s_1$")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, title="step", loc="outside right center", frameon=False)
    figure.suptitle("Spectral distributions of the discriminator's layers during training", fontsize=11)
    return figure


def draw_curves(runs: Sequence[RunDirectory]) -> Figure:
    """Draw the metrics during training: thin lines for seeds, a thick one for each method's mean."""
    keys = [
        (key, heading)
        for key, heading, _ in COLUMNS
        if any(key in record for run in runs for record in run.series("evaluations")[-1:])
    ]
    figure, axes = plt.subplots(
        1, len(keys) + 1, figsize=(4.1 * (len(keys) + 1), 3.6), squeeze=False, layout="constrained"
    )
    for axis, (key, heading) in zip(axes[0], keys, strict=False):
        _plot_methods(axis, runs, "evaluations", lambda record, key=key: record[key])
        axis.set_title(heading)
    _plot_methods(axes[0][-1], runs, "spectra", _least_second_ratio)
    axes[0][-1].set_title("$s_2/s_1$ of the most collapsed layer")
    axes[0][-1].set_ylim(0, 1.05)
    handles, labels = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def draw_samples(runs: Sequence[RunDirectory]) -> Figure:
    """Draw real images beside generated ones of each method's first seed."""
    firsts = _first_of_each_method(runs)
    pictures = [("real", next(iter(firsts.values())).image("data"))]
    pictures += [(TITLES.get(method, method), run.image("samples")) for method, run in firsts.items()]
    figure, axes = plt.subplots(
        1, len(pictures), figsize=(3.2 * len(pictures), 3.5), squeeze=False, layout="constrained"
    )
    for axis, (title, path) in zip(axes[0], pictures, strict=True):
        axis.imshow(plt.imread(path), interpolation="nearest", cmap="gray")
        axis.set_title(title)
        axis.axis("off")
    return figure


def _plot_methods(axis: Axes, runs: Sequence[RunDirectory], series: str, value: Any) -> None:
    for method in dict.fromkeys(_method(run) for run in runs):
        curves = [
            {record["step"]: value(record) for record in run.series(series)} for run in runs if _method(run) == method
        ]
        colour = COLOURS.get(method)
        for curve in curves:
            axis.plot(list(curve), list(curve.values()), color=colour, alpha=0.3, lw=0.9)
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [statistics.fmean(curve[step] for curve in curves) for step in steps]
        axis.plot(steps, means, color=colour, lw=2.2, label=TITLES.get(method, method))
    axis.set_xlabel("generator steps")
    axis.grid(alpha=0.25)


def _first_of_each_method(runs: Sequence[RunDirectory]) -> dict[str, RunDirectory]:
    firsts: dict[str, RunDirectory] = {}
    for run in runs:
        firsts.setdefault(_method(run), run)
    return firsts


def _method(run: RunDirectory) -> str:
    return str((run.read("config") or {})["method"])


def _most_changed(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the layers whose mean ratio moved most from the first record to the last, in the network's order."""
    names = list(records[0]["layers"])

    def change(name: str) -> float:
        before, after = (statistics.fmean(_ratios(record["layers"][name])[1:]) for record in (records[0], records[-1]))
        return abs(after - before)

    chosen = sorted(names, key=change, reverse=True)[:_PANELS]
    return [name for name in names if name in chosen]


def _least_second_ratio(record: dict[str, Any]) -> float:
    return min(_ratios(values)[1] for values in record["layers"].values())


def _ratios(values: Sequence[float]) -> list[float]:
    return [value / values[0] if values[0] else 0.0 for value in values]


def _mean_and_spread(values: Sequence[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "-"
    mean = f"{statistics.fmean(known):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(known):.{decimals}f}" if len(known) > 1 else mean
