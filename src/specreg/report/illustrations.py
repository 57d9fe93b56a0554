"""What is shown of runs: each function takes the cells and returns panels with their captions, or None.

One setting is shown run by run and layer by layer; of several settings, as in the figures of Liu et al. 2019, the
discriminator's last convolution and the scores, side by side. The page and a folder's pictures are both made of these.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from matplotlib.axes import Axes
from PIL import Image

from specreg.names import counted
from specreg.report import figures
from specreg.report.figures import Style
from specreg.report.runs import OUTPUTS, Cell, Run, grouped, runs_of
from specreg.report.tables import COLUMNS, finite_values
from specreg.report.verdicts import MOST_RUNS, state_of

_GRID = (2.1, 2.2)  # inches of a grid of samples: small, so that its title is legible on a page
_LAYERS = 3  # shown before the others are folded: one row on a desktop
_SCORES = {key: heading for key, heading, _ in COLUMNS}
_OF_SEVERAL = ("modes", "missing", "kl", "fd", "inception_score")  # scores that are shown of several settings
_OTHERS = {
    "d_loss": "loss of the discriminator",
    "g_loss": "loss of the generator",
    "ratio": "diversity ratio",
    "duplicates": "duplicates",
    "overfitting": "P(training image scores above held-out)",
    "separation": "P(held-out image scores above generated)",
    # Where the plain ones are of the generator's running average.
    **{f"last_{key}": f"{heading}, last weights" for key, heading in _SCORES.items()},
}
_UNSHOWN = ("far", "floor")  # of a reading of coverage


class Panel(NamedTuple):
    """A small picture, drawn onto axes, or a grid of images; without words from records, which are its title."""

    title: str
    alt: str  # what it shows, for those who do not see it
    content: Callable[[Axes], None] | Image.Image
    legend: Mapping[str, Style] = {}
    size: tuple[float, float] | None = None  # in inches, where it is not a panel's usual one


class Part(NamedTuple):
    """Panels side by side below their heading and legend, folded under a summary if there is one."""

    panels: list[Panel]
    legend: Mapping[str, Style] = {}
    heading: str = ""
    summary: str = ""
    kind: str = "panels"


class Illustration(NamedTuple):
    """One figure: its name, its heading, how to read it, and its parts."""

    name: str
    heading: str
    caption: str
    parts: list[Part]


NAMES = ("missing", "spectra", "layers", "methods", "scores", "settings-compared", "outputs", "samples")


def illustrations(cells: Sequence[Cell]) -> list[Illustration]:
    """Return everything that the records allow to show."""
    makers = (missing, spectra, layers, methods, scores, by_setting, outputs, samples)
    return [illustration for make in makers if (illustration := make(cells)) is not None]


def shown_runs(cells: Sequence[Cell]) -> list[Run]:
    """Return the runs that are shown singly: all of one setting, or the first of each method where there are many."""
    runs = runs_of(cells)
    if len(cells) == 1 and len(runs) <= MOST_RUNS:
        return runs
    return [alike[0] for cell in cells for alike in grouped(cell.runs).values()]


def spectra(cells: Sequence[Cell]) -> Illustration | None:
    """s_k/s_1 at several moments: the layers that changed most for each group's first run, the others folded."""
    runs = [run for run in shown_runs(cells) if run.layers]
    if not runs:
        return None
    parts = []
    if len(cells) > 1:
        for cell in cells:
            firsts = {run: figures.moments(run) for run in shown_runs([cell]) if run in runs}
            first = next(iter(firsts.values()), {})
            legend = first if all(moments == first for moments in firsts.values()) else {}
            panels = [
                _moments(run, figures.last_convolution(run), run.group)._replace(legend={} if legend else moments)
                for run, moments in firsts.items()
            ]  # a run that ended early, or still goes on, has a legend of its own
            parts += [Part(panels, legend, cell.label)] if panels else []
        shown = "the discriminator's last convolution (or else last layer), first seed of each method"
    else:
        chosen = figures.most_changed(runs[0], _LAYERS)
        for alike in grouped(runs).values():
            for run in alike:
                front = [name for name in run.layers if name in chosen] if run is alike[0] else []
                folded = [name for name in run.layers if name not in front]
                moments = figures.moments(run)
                parts += [Part([_moments(run, name) for name in front], moments, run.label)] if front else []
                if folded:
                    summary = f"{'The other' if front else f'{run.label}: all'} {counted(len(folded), 'layer')}"
                    parts.append(Part([_moments(run, name) for name in folded], moments, summary=summary))
        shown = f"in front the layers that changed most in the first run ({runs[0].label})"
    caption = (
        "Each curve is one layer's sₖ/s₁ against k at one moment, light early and dark late, as in figures 1 to 4 of "
        "the paper. A curve that keeps its shape is healthy; in a spectral collapse it falls towards 0 for all k but "
        f"the first. Shown: {shown}."
    )
    return Illustration("spectra", "Spectra during training", caption, parts)


def layers(cells: Sequence[Cell]) -> Illustration | None:
    """Each run's bulk, attainment and gradient norms over the training, of one setting."""
    alike: dict[tuple[str, ...], list[Run]] = {}  # one legend serves all runs that have the same layers
    for run in shown_runs(cells) if len(cells) == 1 else ():
        if run.layers:
            alike.setdefault(tuple(run.measured_layers), []).append(run)
    if not alike:
        return None
    parts = [
        Part([panel for run in runs for panel in _over_training(run)], figures.layer_styles(names))
        for names, runs in alike.items()
    ]
    caption = (
        "One line for each layer, dark at the input. The bulk is the mean of sₖ/s₁ over k = 2 to ⌈r/2⌉. Where a "
        "detector watched, the background is plain yellow while it said collapsing and hatched red while it said "
        "collapsed; vertical dotted lines are events."
    )
    if any(any(run.sensitivity.values()) for runs in alike.values() for run in runs):
        caption += (
            " Attainment is the part of its largest possible gain s₁ that a layer has on the inputs that reach it. "
            "Gradient norms are those of the discriminator's output by its input, at real, generated and interpolated "
            "images."
        )
    return Illustration("layers", "Layers during training", caption, parts)


def methods(cells: Sequence[Cell]) -> Illustration | None:
    """The final spectra of every group, overlaid layer by layer, or setting by setting."""
    begun = {cell.label: [run for run in cell.runs if run.layers] for cell in cells}
    runs = [run for group in begun.values() for run in group]
    if len(grouped(runs)) < 2:
        return None
    ends = sorted({run.spectra[-1]["step"] for run in runs})
    when = f"iteration {ends[0]}" if len(ends) == 1 else f"each run's last record, iterations {ends[0]} to {ends[-1]}"
    caption = (
        f"Final spectra of the methods ({when}), as in figure 5 of the paper. Where a method has several seeds, its "
        "thick line is their mean and the thin ones are the seeds. The higher a curve, the more directions the layer "
        "is sensitive in; after static compensation it is a step, the first i at 1."
    )
    look = figures.styles(runs)
    if len(cells) > 1:
        panels = [
            _final(group, figures.last_convolution(group[0]), look, label) for label, group in begun.items() if group
        ]
        return Illustration("methods", "Methods compared", caption, [Part(panels, look)])
    chosen = figures.most_changed(runs[0], _LAYERS)
    folded = [name for name in dict.fromkeys(name for run in runs for name in run.layers) if name not in chosen]
    parts = [Part([_final(runs, name, look) for name in chosen], look)]
    if folded:
        summary = f"The other {counted(len(folded), 'layer')}"
        parts.append(Part([_final(runs, name, look) for name in folded], summary=summary))
    return Illustration("methods", "Methods compared", caption, parts)


def scores(cells: Sequence[Cell]) -> Illustration | None:
    """Metrics, the most collapsed layer, losses and what else is recorded during training, by group."""
    keys = dict.fromkeys(key for run in runs_of(cells) for key in run.curves)
    several = len(cells) > 1
    main = [key for key in (_OF_SEVERAL if several else _SCORES) if key in keys]
    measures = [(_SCORES[key], figures.recorded(key)) for key in main]
    if any(run.layers for run in runs_of(cells)):
        measures.append(("s₂/s₁ of the most collapsed layer", figures.least_second_ratio))
        measures += [("bulk of the last convolution (or layer)", figures.last_bulk)] * several
    others = [key for key in keys if key not in (*_SCORES, *_UNSHOWN) and not several]
    measures += [(_OTHERS.get(key, key), figures.recorded(key)) for key in others]
    look = figures.styles(runs_of(cells))
    parts = [
        Part([_curves(cell.runs, *measure, look) for measure in shown], look, cell.label if several else "")
        for cell in cells
        if (shown := [measure for measure in measures if any(map(measure[1], cell.runs))])
    ]
    repeated = any(len(alike) > 1 for cell in cells for alike in grouped(cell.runs).values())
    seeds = " Thin lines are seeds, the thick one is their mean where all of them have a value." if repeated else ""
    caption = (
        f"What was measured, for each method.{seeds} An arrow says which way is better. Scores that break "
        "where the spectra fall are what the paper calls mode collapse with spectral collapse."
    )
    return Illustration("scores", "Scores during training", caption, parts) if parts else None


def by_setting(cells: Sequence[Cell]) -> Illustration | None:
    """The final scores of several settings beside each other."""
    cells = [cell for cell in cells if any(run.result for run in cell.runs)]
    keys = [key for key in _OF_SEVERAL if finite_values(runs_of(cells), key)]
    if len(cells) < 2 or not keys:
        return None
    look = figures.styles(runs_of(cells))
    panels = [
        Panel(_SCORES[key], f"{_SCORES[key]} by setting, the numbers of the table of results",
              functools.partial(figures.plot_by_setting, cells=cells, key=key, look=look),
              size=(2 + 0.8 * len(cells), 3))
        for key in keys
    ]  # fmt: skip
    caption = "The final scores by setting: means over seeds, bars are one standard deviation."
    return Illustration("settings-compared", "Settings compared", caption, [Part(panels, kind="wide")])


def outputs(cells: Sequence[Cell]) -> Illustration | None:
    """The discriminator's scores of training, held-out and generated images at the end of each run."""
    panels = []
    for run in (run for run in shown_runs(cells) if run.outputs):
        last = run.outputs[-1]
        alt = f"Scores in {run.label}: overfitting {last.get('overfitting')}, separation {last.get('separation')}"
        panels.append(Panel(run.label, alt, functools.partial(figures.plot_outputs, run=run)))
    caption = (
        "Cumulative distributions of the discriminator's scores at the last evaluation. Training and held-out images "
        "apart mean that it overfits; generated images far to the left, that it tells them from real ones."
    )
    parts = [Part(panels, figures.named_styles(f"{name.replace('_', '-')} images" for name in OUTPUTS))]
    return Illustration("outputs", "What the discriminator says", caption, parts) if panels else None


def missing(cells: Sequence[Cell]) -> Illustration | None:
    """Real images that nothing generated is like."""
    panels = [
        Panel(run.label, f"Real images that nothing generated by {run.label} is like", shown)
        for run in shown_runs(cells)
        if (shown := run.picture("missing")) is not None
    ]
    caption = (
        "Real images that the generator makes nothing like: those nearest to the centres of bins of the data that it "
        "fills to less than a fifth, those that miss most first. Where its samples are poor it may only spoil them. "
        "Drawn at the end of a run, and before that when its coverage turned to losing or lost."
    )
    parts = [Part(panels, kind="panels samples")]
    return Illustration("missing", "What is missing", caption, parts) if panels else None


def samples(cells: Sequence[Cell]) -> Illustration | None:
    """Real images, then every run's generated ones."""
    real: dict[str, Panel] = {}
    generated: dict[str, list[Panel]] = {}
    for run in shown_runs(cells):
        data = str(run.settings.get("data.data", "data"))
        if data not in real and (shown := run.picture("data")) is not None:
            name = PurePath(data).name
            real[data] = Panel(f"Real, {name}", f"Real samples of {name}", shown, size=_GRID)
        if (shown := run.picture("samples")) is not None:
            title = f"{run.label}: {state_of(run)}" if run.verdicts else run.label
            panel = Panel(title, f"Samples generated by {run.label}", shown, size=_GRID)
            generated.setdefault(run.group, []).append(panel)
    caption = (
        "Samples after the last iteration, drawn without selection from latent vectors that are the same for every "
        "run, with the run's last verdict. Mode collapse shows as images that repeat, or as kinds that are missing."
    )
    rows = [list(real.values()), *generated.values()]
    if all(len(alike) == 1 for alike in generated.values()):  # a row for each method only where it has several seeds
        rows = [list(itertools.chain(*rows))]
    parts = [Part(row, kind="panels samples") for row in rows if row]
    return Illustration("samples", "Samples", caption, parts) if generated else None


def _moments(run: Run, name: str, title: str = "") -> Panel:
    curves = dict(run.ratios(name))
    ends = ", ".join(f"s₂/s₁ {curves[step][1]:.2f} at iteration {step}" for step in (min(curves), max(curves))
                     if len(curves[step]) > 1)  # fmt: skip
    alt = f"Singular values over the first of {name} in {run.label}: {ends}"
    return Panel(title or name, alt, functools.partial(figures.plot_moments, run=run, name=name))


def _final(runs: Sequence[Run], name: str, look: Mapping[str, Style], title: str = "") -> Panel:
    bulks = _ends({run.label: run.bulks(name) for run in runs})
    alt = f"Final singular values over the first of {name} by method; bulk {bulks}"
    return Panel(title or name, alt, functools.partial(figures.plot_final, runs=runs, name=name, look=look))


def _over_training(run: Run) -> list[Panel]:
    bulks = {name: run.bulks(name) for name in run.layers}
    attainment, norms = run.sensitivity["attainment"], run.sensitivity["gradient_norms"]
    alt = f"Bulk by layer of {run.label}; {_ends(bulks)}"
    panels = [Panel(f"{run.label}: bulk of sₖ/s₁", alt, functools.partial(figures.plot_bulks, run=run))]
    if attainment:
        alt = f"Attainment by layer of {run.label}; {_ends(attainment)}"
        plot = functools.partial(figures.plot_layers, run=run, curves=attainment)
        panels.append(Panel(f"{run.label}: attainment", alt, plot))
    if norms:
        alt, styles = f"Gradient norms of {run.label}; {_ends(norms)}", figures.named_styles(norms)
        plot = functools.partial(figures.plot_named, curves=norms)
        panels.append(Panel(f"{run.label}: gradient norms", alt, plot, styles))
    return panels


def _curves(
    runs: Sequence[Run], heading: str, curve_of: Callable[[Run], Mapping[int, float]], look: Mapping[str, Style]
) -> Panel:
    alt = f"{heading} during training; {_ends({run.label: curve_of(run) for run in runs})}"
    ratio = curve_of in (figures.least_second_ratio, figures.last_bulk)
    plot = functools.partial(figures.plot_curves, runs=runs, curve_of=curve_of, look=look, up_to_one=ratio)
    return Panel(heading, alt, plot)


def _ends(curves: Mapping[str, Mapping[int, float]]) -> str:
    """Return each curve's last value in words, and its step if another goes on, for those who do not see it."""
    ends = {name: max(curve) for name, curve in curves.items() if curve}
    last = max(ends.values(), default=0)
    early = {name: f" (iteration {end})" if end < last else "" for name, end in ends.items()}
    values = {name: float(f"{curves[name][end]:.3g}") for name, end in ends.items()}
    # Three digits, but a thousand as one: 1e+03 is nothing to be read aloud.
    return "at the end: " + ", ".join(f"{name} {value:g}{early[name]}" for name, value in values.items())
