"""Draw the spectra of an autopsy."""

from pathlib import Path

from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specreg.autopsy.spectra import Autopsy
from specreg.names import printable

_PANELS = 16
_NAMED = 10  # checkpoints in the legend, which one row of panels has room for


@style.context("default")  # a user's matplotlibrc, or a stranger's in this folder, may ask for LaTeX
def save(autopsy: Autopsy, path: Path) -> None:
    """Draw s_k/s_1 against k for the layers lowest against random, a curve per checkpoint; an existing file stays."""
    newest = autopsy.layers[-1]
    parts = {name: spectrum.part for name, spectrum in newest.items() if spectrum.part is not None}
    if not parts:
        raise ValueError("there is no spectrum to plot: no layer has finite weights and two singular values")
    lowest = sorted(parts, key=lambda name: parts[name])[:_PANELS]
    names = [name for name in newest if name in lowest]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.9, 2.4 * rows + 0.7), layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for position, (axis, name) in enumerate(zip(axes, names, strict=False)):
        _panel(axis, autopsy, name)
        if position % columns == 0:
            axis.set_ylabel("$s_k / s_1$")
    if len(autopsy.paths) > 1:
        title = "iteration" if autopsy.order else "checkpoint"
        handles, labels = axes[0].get_legend_handles_labels()
        every = -(-len(labels) // _NAMED)  # backwards, so that the newest is among them
        figure.legend(
            handles[::-every][::-1], labels[::-every][::-1], title=title, loc="outside right center", frameon=False
        )
    selection = f" ({len(names)} of {len(newest)} layers)" if len(names) < len(newest) else ""
    mark = ";\n" if columns == 1 else "; "
    figure.suptitle(f"Spectral distributions{selection}{mark}dotted: the bulk of a random matrix", fontsize=11)
    with open(path, "xb") as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=130)


def _panel(axis: Axes, autopsy: Autopsy, name: str) -> None:
    last = max(1, len(autopsy.paths) - 1)
    for index, (iteration, layers) in enumerate(zip(autopsy.iterations, autopsy.layers, strict=True)):
        ratios = layers[name].ratios
        shade = colormaps["viridis_r"](0.08 + 0.9 * index / last) if len(autopsy.paths) > 1 else "#2a6fbb"
        axis.plot(range(1, len(ratios) + 1), ratios, color=shade, lw=1.3, label=f"{iteration}")
    axis.axhline(autopsy.layers[-1][name].random_bulk, color="grey", ls=":", lw=1)
    # Names come from a file: a $ in them starts no formula, and a glyph that no font has gives no warning.
    title = name if len(name) <= 34 else f"{name[:10]}...{name[-21:]}"
    axis.set_title(printable(title).encode("ascii", "replace").decode(), fontsize=8, parse_math=False)
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("k", fontsize=8)
    axis.grid(alpha=0.25)
