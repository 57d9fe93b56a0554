"""Runs as tables: for each method of each cell the mean ± standard deviation over its seeds, and what is missing."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specreg.names import counted, printable
from specreg.report import verdicts
from specreg.report.runs import Cell, Run, differing, grouped, published, runs_of

# key, heading, decimals, and which way is better
COLUMNS = (
    ("modes", "modes ↑", 0),
    ("high_quality", "high quality ↑", 3),
    ("missing", "missing ↓", 3),
    ("lost", "lost ↓", 3),
    ("kl", "KL (nats) ↓", 2),
    ("fd", "FD ↓", 2),
    ("intra_fd", "intra-class FD ↓", 2),
    ("inception_score", "IS ↑", 2),
    ("kid", "KID ↓", 4),
    ("precision", "precision ↑", 3),
    ("recall", "recall ↑", 3),
    ("density", "density ↑", 2),
    ("coverage", "coverage ↑", 3),
    ("seconds", "seconds", 0),
)
_BRIEF = ("modes", "lost", "kl", "fd")  # that say most, where many rows have to fit a terminal
_PUBLISHED = ("FID", "IS")
_MOST_TRANSPOSED = 4  # rows


class Table(NamedTuple):
    """A table of texts."""

    headings: list[str]
    rows: list[list[str]]
    num_texts: int = 1  # leading columns that are words; the others are numbers

    def narrow(self) -> "Table":
        """Return a few rows as columns, and a table of many as it is."""
        if not 0 < len(self.rows) <= _MOST_TRANSPOSED or self.num_texts > 1:
            return self
        headings, *rows = map(list, zip(self.headings, *self.rows, strict=True))
        return Table(["", *headings[1:]], rows)

    def brief(self) -> "Table":
        """Return what fits a terminal: a few rows as columns, of many the measures that say most."""
        if (narrow := self.narrow()) is not self:
            return narrow
        told = {heading for key, heading, _ in COLUMNS if key in _BRIEF} | {"seeds", "verdict"}
        kept = [i for i, heading in enumerate(self.headings) if i < self.num_texts or heading in told]
        return Table([self.headings[i] for i in kept], [[row[i] for i in kept] for row in self.rows], self.num_texts)


def table(cells: Sequence[Cell], *, by_run: bool = False) -> Table:
    """Return a row for each method of each cell, published scores beside; or one for each run that is complete.

    Where runs have different protocols, whose numbers do not compare, the method is followed by the protocol's name.
    """
    complete = [run for run in runs_of(cells) if run.result]
    measures = [column for column in COLUMNS if any(run.result.get(column[0]) is not None for run in complete)]
    watched = any(run.verdicts for run in runs_of(cells))
    scores = [] if by_run else [score for score in _PUBLISHED if any(score in cell.published for cell in cells)]
    with_collapse = not by_run and any("collapse" in cell.published for cell in cells)
    several_protocols = not of_one_protocol(complete)
    several = len(cells) > 1 and not by_run  # a run's label names its cell
    titles = {run.method: run.look.title for run in runs_of(cells)}
    rows = []
    for cell in cells:
        singly = [(run.label, run.method, [run]) for run in cell.runs if run.result]
        for label, method, runs in singly if by_run else _lines(cell, titles, by_protocol=several_protocols):
            finished = [run for run in runs if run.result]
            row = {"setting": cell.label} if several else {}
            row |= {"run": label} if by_run else {"method": label, "seeds": str(len(finished))}
            for key, heading, decimals in measures:
                row[heading] = mean_and_spread([run.result.get(key) for run in finished], decimals)
            if watched:
                row |= {"collapsed": _collapses(runs), "verdict": verdicts.counts(runs) or "-"}
            for score in scores:
                mean_and_deviation = cell.published.get(score, {}).get(method, ())
                row[f"published {score}"] = " ± ".join(f"{value:.2f}" for value in mean_and_deviation) or "-"
            if with_collapse:
                row["published collapse"] = str(cell.published.get("collapse", "-") if method == "sn" else "-")
            rows.append(row)
    return Table(list(rows[0]) if rows else [], [list(row.values()) for row in rows], 1 + several)


def _lines(cell: Cell, titles: Mapping[str, str], *, by_protocol: bool) -> list[tuple[str, str, list[Run]]]:
    """Return label, method and runs of each line of a cell; methods planned or published but not begun have no runs."""
    lines = []
    for group, alike in grouped(cell.runs).items():
        parts: dict[str, list[Run]] = {}
        # What has no result yet has no protocol, and goes with the others if these have one.
        protocols = {run.result.get("protocol") for run in alike if run.result}
        only = protocols.pop() if len(protocols) == 1 else None
        for run in alike:
            protocol = run.result.get("protocol") if run.result else only
            parts.setdefault(f"{group}, {protocol}" if by_protocol and protocol else group, []).append(run)
        lines += [(label, runs[0].method, runs) for label, runs in parts.items()]
    begun = {run.method for run in cell.runs}
    paths = {run.directory.path for run in cell.runs}
    methods = [run.path.name.rsplit("-seed", 1)[0] for run in cell.planned if run.path not in paths]
    methods += [method for score in _PUBLISHED for method in cell.published.get(score, ())]
    return lines + [
        (titles.get(method, method), method, []) for method in dict.fromkeys(methods) if method not in begun
    ]


def missing(cells: Sequence[Cell]) -> list[list[str]]:
    """Return the planned runs that are not complete, and how far each one is."""
    rows = []
    for cell in cells:
        begun = {run.directory.path: run for run in cell.runs}
        for directory in cell.planned:
            run = begun.get(directory.path)
            if run is not None and run.result:
                continue
            failure = directory.read("failed") or {}
            if "error" in failure:
                state = f"failed: {failure['error']}"
            elif run is None or not run.last_step:
                state = "not begun"
            else:
                state = f"at iteration {run.last_step} of {run.settings['training.steps']}"
            rows.append([f"{cell.label}/{directory.path.name}", state])
    return rows


def notes(cells: Sequence[Cell]) -> list[str]:
    """Return in sentences: how much is done, the protocols, what was changed, what was gained, the sources."""
    complete = [run for run in runs_of(cells) if run.result]
    sentences = [f"{len(complete)} of {sum(len(cell.planned) for cell in cells)} runs are complete."]
    if complete:
        data = {run.label: Path(str(run.settings.get("data.data"))).name for run in complete}
        protocols = dict.fromkeys(f"{data[run.label]}: {protocol(run.result)}" for run in complete)
        sentences[0] += " Mean ± standard deviation over seeds, last checkpoint of every run."
        sentences.append(f"{'; '.join(protocols)}. An arrow says which way is better.")
    if copies := [str(run.directory.path) for cell in cells for run in cell.copies]:
        sentences.append(f"Left out, the same trainings once more: {', '.join(copies)}.")
    if floors := [run.result["floor"] for run in complete if run.result.get("floor") is not None]:
        reach = " to ".join(dict.fromkeys(f"{floor:.3f}" for floor in (min(floors), max(floors))))
        sentences.append("Missing: a lower bound on the share of the data's mass that is not generated, at the end "
                         f"of every run; a perfect generator stays below {reach}. Lost: a bound of its own, "
                         "in which samples far from the data count for what is next to them.")  # fmt: skip
    if early := [f"{run.label} at {run.result['steps']} of {total}" for run in complete
                 if run.result.get("steps", math.inf) < (total := run.settings["training.steps"])]:  # fmt: skip
        sentences.append(f"Ended before the last iteration, and judged as they were then: {', '.join(early)}.")
    if any(run.verdicts for run in complete):
        sentences.append("Collapsed: runs whose spectra the detector called so, and the earliest iteration. Verdict: "
                         "the newest, the gravest of the answers about spectra, coverage and signal. Both are of every "
                         "run that has begun.")  # fmt: skip
    changed: dict[str, list[str]] = {}
    for cell in cells:
        if cell.changes:
            changed.setdefault("; ".join(cell.changes), []).append(cell.label)
    sentences += [f"Not the preset's settings in {', '.join(names)}: {text}." for text, names in changed.items()]
    if len(cells) > 1:
        rivals = {run.method: run.look.title for run in complete if run.method != "sn"}
        sentences += [text for method, title in rivals.items() if (text := _gain(cells, method, title))]
    for preset in dict.fromkeys(cell.preset for cell in cells if cell.published):
        sentences.append(f"Published: {published(preset)['source']}. Published FID and IS are comparable with nothing "
                         "here that was not taken in Inception's features under the same protocol.")  # fmt: skip
    return sentences


def protocol(row: Mapping[str, Any]) -> str:
    """Return a result's protocol in one line; results of before protocols had names have less to say."""
    name = f"{row['protocol']}: " if "protocol" in row else ""
    part = f" of the {row['split']} part" if "split" in row else ""
    details = [f"features: {row.get('features')}"]
    details += [f"{key}: {row[key]}" for key in ("resizing", "library") if key in row]
    real, fake = row.get("num_real"), row.get("num_fake")
    what = "points" if row.get("features") == "coordinates" else "images"
    # Of points it depends on how many of a run's own are of high quality.
    if row.get("kl_floor") is not None and row.get("features") != "coordinates":
        details.append(f"KL of a perfect sampler: {row['kl_floor']:.3g}")
    return f"{name}{fake} generated against {real} real {what}{part}, {', '.join(details)}"


def results(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return one object for each complete run, as ``results.json`` holds them."""
    return [
        {"preset": cell.preset, "cell": cell.name} | run.result | {"collapsed": _collapse(run)}
        for cell in cells
        for run in cell.runs
        if run.result
    ]


def markdown(cells: Sequence[Cell]) -> str:
    """Return the table in Markdown, with what there is to say of it and the runs that are missing."""
    results_table = table(cells)
    lines = [results_table.headings, ["---"] * len(results_table.headings), *results_table.rows]
    escaped = [[printable(text).replace("|", "\\|") for text in line] for line in lines]
    parts = ["\n".join("| " + " | ".join(line) + " |" for line in escaped), *map(printable, notes(cells))]
    if rows := missing(cells):
        parts.append("Missing runs:\n\n" + "\n".join(printable(f"- {name}: {state}") for name, state in rows))
    return "\n\n".join(parts) + "\n"


def mean_and_spread(values: Sequence[float | None], decimals: int) -> str:
    """Return the mean ± standard deviation of the values that are there and finite, and of how many they are."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return "-"
    mean, deviation = statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else 0.0
    if 0 < (most := max(abs(mean), deviation)) < 10**-decimals:  # two digits of what would be rounded to nothing
        decimals = min(6, 1 - math.floor(math.log10(most)))
    text = f"{mean:.{decimals}f}"
    if len(finite) > 1:
        text += f" ± {deviation:.{decimals}f}"
    # A run without a value is often the worst one: the KL of a generator that hits no mode.
    return text if len(finite) == len(values) else f"{text} ({len(finite)} of {len(values)})"


def of_one_protocol(runs: Iterable[Run]) -> bool:
    """Tell whether complete runs were evaluated by one protocol; the numbers of several do not compare."""
    return len({run.result.get("protocol") for run in runs if run.result}) < 2


def finite_values(runs: Iterable[Run], key: str) -> list[float]:
    """Return what complete runs have for a measure."""
    values = (run.result.get(key) for run in runs)
    return [value for value in values if value is not None and math.isfinite(value)]


def _are_comparable(*methods: Sequence[Run]) -> bool:
    """Tell whether methods' runs are by one protocol, as long, each of one group, and differ in their options alone."""
    runs = [run for alike in methods for run in alike]
    shared = [{key: value for key, value in run.settings.items() if not key.startswith("methods.")} for run in runs]
    of_one_group = all(len(grouped(alike)) < 2 for alike in methods)
    of_one_length = len({run.result.get("steps") for run in runs}) < 2
    return of_one_group and of_one_length and of_one_protocol(runs) and not (shared and differing(shared))


def _collapse(run: Run) -> int | None:
    """Return the first step at which the detector said collapsed, None where it never did."""
    return next((verdict["step"] for verdict in run.verdicts if verdict["spectra"]["state"] == "collapsed"), None)


def _collapses(runs: Sequence[Run]) -> str:
    judged = [run for run in runs if run.verdicts and run.verdicts[-1]["spectra"]["state"] != "not judged"]
    steps = [_collapse(run) for run in judged]
    collapsed = [step for step in steps if step is not None]
    if not steps:
        return "not judged" if any(run.verdicts for run in runs) else "-"
    return f"{len(collapsed)} of {len(steps)}" + (f", from {min(collapsed)}" if collapsed else "")


def _gain(cells: Sequence[Cell], method: str, title: str) -> str:
    """Return how a method's Fréchet distance differs from SN's, over the cells and seeds that have both alike."""
    pairs = []
    for cell in cells:
        theirs, ours = ([run for run in cell.runs if run.result and run.method == name] for name in ("sn", method))
        both = {run.seed for run in theirs} & {run.seed for run in ours}
        theirs, ours = ([run for run in runs if run.seed in both] for runs in (theirs, ours))
        if _are_comparable(theirs, ours):
            pairs.append((finite_values(theirs, "fd"), finite_values(ours, "fd")))
    changes = [statistics.fmean(ours) / base - 1 for theirs, ours in pairs
               if theirs and ours and (base := statistics.fmean(theirs))]  # fmt: skip
    if not changes:
        return ""
    lower = sum(change < 0 for change in changes)
    return (f"{title} against SN, {counted(len(changes), 'setting')}: Fréchet distance "
            f"{100 * statistics.fmean(changes):+.1f}% in the mean, lower in {lower}.")  # fmt: skip
