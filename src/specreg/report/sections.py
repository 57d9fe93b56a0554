"""The page's sections: each takes the runs and returns HTML, empty where there is nothing to show."""

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from specreg.names import STATES
from specreg.report import figures, tables, verdicts
from specreg.report.markup import Markup, fold, join, table, tag
from specreg.report.panels import captioned, drawn, grid, legend, photograph
from specreg.report.runs import Run, differing, grouped

_PANELS = 3  # layers shown before the others are folded: one row on a desktop
_SCORES = {key: heading for key, heading, _ in tables.COLUMNS}
_LOSSES = {
    "d_loss": "loss of the discriminator",
    "g_loss": "loss of the generator",
    "ratio": "diversity ratio",
    "duplicates": "duplicates",
    "overfitting": "P(training image scores above held-out)",
    "separation": "P(held-out image scores above generated)",
}
_COLOURS = {"healthy": "#8cc5a0", "recovered": "#86abd9", "collapsing": "#f0b45c", "collapsed": "#d9625a"}


def verdict(runs: Sequence[Run]) -> Markup:
    """One sentence for each run, and what changed when."""
    counts = Counter(map(verdicts.state_of, runs))
    words = [state for state in (*reversed(STATES), verdicts.UNJUDGED, verdicts.UNWATCHED) if counts[state]]
    tally = f"Of {len(runs)} runs: {', '.join(f'{counts[word]} {word}' for word in words)}."
    meaning = (
        "A layer's spectrum is judged by its bulk, the mean of sₖ/s₁ over k = 2 to ⌈r/2⌉, against its own past: "
        "collapsing is a fast or far fall, collapsed one that lost half or more, recovered one that came back. "
        "The bar shows the states over the training."
    )
    return join(
        [tag("p", tally, class_="tally")] if len(runs) > 1 else [],
        map(_verdict, runs),
        [tag("p", meaning, class_="soft")] if any(run.verdicts for run in runs) else [],
    )


def spectra(runs: Sequence[Run]) -> Markup:
    """s_k/s_1 at several moments: the layers that changed most for each group's first run, the others folded."""
    runs = [run for run in runs if run.spectra]
    if not runs:
        return Markup()
    chosen = figures.most_changed(runs[0], _PANELS)
    parts: list[Markup] = []
    for alike in grouped(runs).values():
        for run in alike:
            moments = {f"iteration {step}": style for step, style in figures.moments(run).items()}
            shown = [name for name in run.layers if name in chosen] if run is alike[0] else []
            folded = [name for name in run.layers if name not in shown]
            if shown:
                parts += [tag("h3", run.label), legend(moments), grid(_moments(run, name) for name in shown)]
            if folded:
                title = "The other" if shown else f"{run.label}: all"
                panels = grid(_moments(run, name) for name in folded)
                parts.append(fold(f"{title} {_count(folded)}", legend(moments), panels))
    caption = (
        "Each curve is one layer's sₖ/s₁ against k at one moment, light early and dark late. "
        "A curve that keeps its shape is healthy; in a spectral collapse it falls towards 0 for all k but the first. "
        f"In front stand the layers that changed most in the first run ({runs[0].label})."
    )
    return captioned(caption, *parts)


def layers(runs: Sequence[Run]) -> Markup:
    """Each run's bulk, attainment and gradient norms over the training."""
    alike: dict[tuple[str, ...], list[Run]] = {}  # one legend serves all runs that have the same layers
    for run in runs:
        if run.spectra:
            alike.setdefault(tuple(run.measured_layers), []).append(run)
    if not alike:
        return Markup()
    parts = []
    for names, some in alike.items():
        panels = [panel for run in some for panel in _over_training(run)]
        parts += [legend(figures.layer_styles(names)), grid(panels)]
    caption = (
        "One line for each layer, dark at the input. The bulk is the mean of sₖ/s₁ over k = 2 to ⌈r/2⌉. Where a "
        "detector watched, the background is plain yellow while it said collapsing and hatched red while it said "
        "collapsed; vertical dotted lines are events."
    )
    if any(run.sensitivity for run in runs):
        caption += (
            " Attainment is the part of its largest possible gain s₁ that a layer has on the inputs that reach it. "
            "Gradient norms are those of the discriminator's output by its input, at real, generated and interpolated "
            "images."
        )
    return captioned(caption, *parts)


def methods(runs: Sequence[Run]) -> Markup:
    """The final spectra of every group, overlaid layer by layer."""
    runs = [run for run in runs if run.spectra]
    if len(grouped(runs)) < 2:
        return Markup()
    chosen = figures.most_changed(runs[0], _PANELS)
    folded = [name for name in dict.fromkeys(name for run in runs for name in run.layers) if name not in chosen]
    ends = sorted({run.spectra[-1]["step"] for run in runs})
    when = f"iteration {ends[0]}" if len(ends) == 1 else f"each run's last record, iterations {ends[0]} to {ends[-1]}"
    caption = (
        f"Final spectra of the methods, layer by layer ({when}). Where a method has several seeds, its thick line is "
        "their mean and the thin ones are the seeds. The higher a curve, the more directions the layer is sensitive in."
    )
    parts = [legend(figures.styles(runs)), grid(_final(runs, name) for name in chosen)]
    if folded:
        parts.append(fold(f"The other {_count(folded)}", grid(_final(runs, name) for name in folded)))
    return captioned(caption, *parts)


def scores(runs: Sequence[Run]) -> Markup:
    """Metrics, the most collapsed layer and losses during training, by group."""
    keys = dict.fromkeys(key for run in runs for key in run.curves)
    known = [key for key in _SCORES if key in keys]
    others = [key for key in keys if key not in _SCORES]
    panels = [_curves(runs, _SCORES[key], key) for key in known]
    least = {run.label: figures.least_second_ratio(run) for run in runs}
    if any(least.values()):
        title = "s₂/s₁ of the most collapsed layer"
        panels.append(drawn(title, f"{title}; {_ends(least)}", lambda axis: figures.plot_least(axis, runs)))
    panels += [_curves(runs, _LOSSES.get(key, key), key) for key in others]
    if not panels:
        return Markup()
    repeated = any(len(alike) > 1 for alike in grouped(runs).values())
    seeds = " Thin lines are seeds, the thick one is their mean where all of them have a value." if repeated else ""
    caption = (
        f"What was measured, for each method.{seeds} An arrow says which way is better. Scores that break "
        "where the spectra above fall are what the paper calls mode collapse with spectral collapse."
    )
    return captioned(caption, legend(figures.styles(runs)), grid(panels))


def outputs(runs: Sequence[Run]) -> Markup:
    """The discriminator's scores of training, held-out and generated images at the end of each run."""
    known = [run for run in runs if run.outputs]
    if not known:
        return Markup()
    caption = (
        "Cumulative distributions of the discriminator's scores at the last evaluation. Training and held-out images "
        "apart mean that it overfits; generated images far to the left, that it tells them from real ones."
    )
    panels = []
    for run in known:
        last = run.outputs[-1]
        alt = f"Scores in {run.label}: overfitting {last.get('overfitting')}, separation {last.get('separation')}"
        panels.append(drawn(run.label, alt, functools.partial(figures.plot_outputs, run=run)))
    return captioned(caption, legend(figures.output_styles()), grid(panels))


def samples(runs: Sequence[Run]) -> Markup:
    """Real images, then every run's generated ones."""
    shown: dict[str, Markup] = {}
    for run in runs:
        data = str(run.settings.get("data.data", "data"))
        path = run.directory.image("data")
        if data not in shown and path.exists():
            shown[data] = photograph(f"Real images ({data})", f"A grid of real images of {data}", path)
    real = list(shown.values())
    made = [
        photograph(run.label, f"A grid of images generated by {run.label}", run.directory.image("samples"))
        for run in runs
        if run.directory.image("samples").exists()
    ]
    if not made:
        return Markup()
    caption = (
        "Samples after the last iteration, drawn without selection from latent vectors that are the same for every "
        "run. Mode collapse shows as images that repeat, or as kinds of images that are missing."
    )
    return captioned(caption, grid([*real, *made], "panels samples"))


def results(runs: Sequence[Run]) -> Markup:
    """The final evaluation: mean ± standard deviation by group, and every run."""
    complete = [run for run in runs if run.result]
    if not complete:
        return tag("p", "No run is complete yet; the scores so far are above.")
    rows = [run.result for run in complete]
    headings, cells = tables.table(rows, [run.group for run in complete])
    each_headings, each = tables.table(rows, [run.label for run in complete])
    protocols = dict.fromkeys(map(tables.protocol, rows))
    note = f"{len(complete)} of {len(runs)} runs are complete. " if len(complete) < len(runs) else ""
    note += "Mean ± standard deviation over seeds; " if len(complete) > len(cells) else ""
    note += f"{'; '.join(protocols)}. An arrow says which way is better."
    parts = [table(headings, cells, label="Results by method"), tag("p", note, class_="soft")]
    if len(complete) > len(cells):
        single = [[row[0], *row[2:]] for row in each]
        parts.append(fold("Every run", table(["run", *each_headings[2:]], single, label="Results by run")))
    return join(parts)


def settings(runs: Sequence[Run]) -> Markup:
    """What differs between the runs, what they share, and where they were made."""
    made = [run for run in runs if run.environment]
    return join(
        _facts("settings", runs, [{"method": run.method, "seed": run.seed} | run.settings for run in runs]),
        _facts("environment", made, [run.environment for run in made]) if made else [],
    )


def _verdict(run: Run) -> Markup:
    state = verdicts.state_of(run)
    parts = [
        tag("h3", run.label),
        tag("p", tag("span", state.capitalize() + ".", class_="state"), " ", verdicts.sentence(run), class_="said"),
    ]
    if run.verdicts:
        parts += [_strip(run), _history(run)]
    return tag("article", join(parts), class_=f"verdict {_class_of(state)}")


def _strip(run: Run) -> Markup:
    """Return the states over the training as a bar, to scale."""
    stretches = verdicts.segments(run)
    first, last = stretches[0][0], max(stretches[-1][1], stretches[0][0] + 1)
    bars = (
        tag("rect", x=begin - first, y=0, width=max(end - begin, 0), height=1, fill=_COLOURS[state])
        for begin, end, state in stretches
    )
    said = "; ".join(f"{state} from {begin} to {end}" for begin, end, state in stretches)
    box = f"0 0 {last - first} 1"
    return join(
        tag("svg", *bars, class_="strip", viewBox=box, preserveAspectRatio="none", role="img", aria_label=said),
        tag("div", tag("span", f"iteration {first}"), tag("span", f"iteration {last}"), class_="ends"),
    )


def _history(run: Run) -> Markup:
    """Return what changed when, in one line, and folded what was said of it."""
    entries = verdicts.history(run)
    if len(entries) < 2:
        return Markup()
    words = [tag("span", word, class_=f"word {_class_of(word)}") for _, word, _ in entries]
    steps = [str(step) for step, _, _ in entries]
    changes = (tag("li", step, " ", word) for step, word in zip(steps, words, strict=True))
    said = (
        tag("li", tag("span", step, class_="at"), word, tag("span", message, class_="why"))
        for step, word, (_, _, message) in zip(steps, words, entries, strict=True)
    )
    folded = fold("What was said", tag("ul", *said, class_="history"))
    return join(tag("ol", *changes, class_="changes"), folded)


def _class_of(word: str) -> str:
    return word if word in STATES else "unwatched"


def _moments(run: Run, name: str) -> Markup:
    known = dict(run.ratios(name))
    ends = ", ".join(f"s₂/s₁ {known[step][1]:.2f} at iteration {step}" for step in (min(known), max(known))
                     if len(known[step]) > 1)  # fmt: skip
    alt = f"Singular values over the first of {name} in {run.label}: {ends}"
    return drawn(name, alt, lambda axis: figures.plot_moments(axis, run, name))


def _final(runs: Sequence[Run], name: str) -> Markup:
    known = {run.label: run.bulks(name) for run in runs}
    ends = ", ".join(f"{label} {curve[max(curve)]:.2f}" for label, curve in known.items() if curve)
    alt = f"Final singular values over the first of {name} by method; bulk: {ends}"
    return drawn(name, alt, lambda axis: figures.plot_final(axis, runs, name))


def _over_training(run: Run) -> list[Markup]:
    bulks = {name: run.bulks(name) for name in run.layers}
    attainment, norms = _turned(run, "attainment"), _turned(run, "gradient_norms")
    alt = f"Bulk by layer of {run.label}; {_ends(bulks)}"
    panels = [drawn(f"{run.label}: bulk of sₖ/s₁", alt, lambda axis: figures.plot_bulks(axis, run))]
    if attainment:
        alt = f"Attainment by layer of {run.label}; {_ends(attainment)}"
        panels.append(drawn(f"{run.label}: attainment", alt, lambda axis: figures.plot_layers(axis, run, attainment)))
    if norms:
        alt = f"Gradient norms of {run.label}; {_ends(norms)}"
        names = legend(figures.named_styles(norms))
        panels.append(drawn(f"{run.label}: gradient norms", alt, lambda axis: figures.plot_named(axis, norms), names))
    return panels


def _curves(runs: Sequence[Run], heading: str, key: str) -> Markup:
    alt = f"{heading} during training; {_ends({run.label: run.curves.get(key, {}) for run in runs})}"
    return drawn(heading, alt, lambda axis: figures.plot_curves(axis, runs, figures.recorded(key)))


def _ends(curves: Mapping[str, Mapping[int, float]]) -> str:
    """Return each curve's last value in words, for those who do not see the picture."""
    return "at the end: " + ", ".join(f"{name} {curve[max(curve)]:.3g}" for name, curve in curves.items() if curve)


def _turned(run: Run, field: str) -> dict[str, dict[int, float]]:
    """Return a field of the sensitivity records as name -> step -> value."""
    curves: dict[str, dict[int, float]] = {}
    for record in run.sensitivity:
        for name, value in record[field].items():
            curves.setdefault(name, {})[record["step"]] = value
    return curves


def _facts(title: str, runs: Sequence[Run], values: Sequence[Mapping[str, Any]]) -> Markup:
    """Return a table of the values that differ, those unlike the first run's marked, and a fold with the others."""
    first, different = values[0], differing(values)
    shared = [[key, _value(value)] for key, value in first.items() if key not in different]
    if len(runs) == 1:
        return fold(title.capitalize(), table(["key", "value"], shared, label=title, texts=2))
    parts = []
    if not set(different) <= {"method", "seed"}:
        rows = [[run.label, *(_marked(one, key, first) for key in different)]
                for run, one in zip(runs, values, strict=True)]  # fmt: skip
        heading = tag("h3", f"{title.capitalize()}: what differs")
        parts = [heading, table(["run", *different], rows, label=f"{title}, differences", texts=len(different) + 1)]
    elif different:
        parts = [tag("p", f"The runs differ in {' and '.join(different)} alone.")]
    return join(parts, fold(f"{title.capitalize()} of all runs", table(["key", "value"], shared, label=title, texts=2)))


def _marked(values: Mapping[str, Any], key: str, first: Mapping[str, Any]) -> str:
    said = _value(values[key]) if key in values else "-"
    return said if values.get(key) == first.get(key) else tag("mark", said)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} layer{'s' if len(names) > 1 else ''}"
