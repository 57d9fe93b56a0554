"""What the terminal shows: progress while runs are made, tables when they are done."""

import contextlib
import itertools
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from specreg.autopsy.spectra import COLLAPSED, REDUCED, Autopsy, LayerSpectrum
from specreg.files import Stream
from specreg.names import ALARMS, counted, listed, printable
from specreg.names import shown as layer_name
from specreg.records import PACE
from specreg.report.tables import notes, table

if TYPE_CHECKING:  # a comparison brings the whole lab, which an autopsy does not need
    from specreg.experiments.config import RunConfig
    from specreg.experiments.jobs import Job
    from specreg.experiments.sweep import Plan
    from specreg.report.runs import Cell

# key in the records, heading, decimals
_METRICS = (("modes", "modes", 0), ("kl", "KL", 2), ("fd", "FD", 2), ("lost", "lost", 2))
_PAUSE = 10.0  # seconds between lines of a log
_MOST_SHOWN = 12  # runs of a sweep: the table has to fit a terminal
_BLOCKS = " ▁▂▃▄▅▆▇█"
# Legible on a dark and on a light background.
_STYLES: dict[str, str] = dict.fromkeys((*ALARMS, "not finite", "zero"), "red")
_STYLES |= {"warning": "magenta", "reduced": "magenta"}
_LIVE = (*_METRICS, ("d_loss", "loss D", 2), ("g_loss", "loss G", 2))


class _Bar(Progress):
    """A progress bar with its metrics on a line of their own, where they are not cut."""

    def get_renderables(self) -> Iterator[Any]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(str(task.fields["metrics"])) for task in self.tasks)


class _Pulse:
    """Tells when another line is due where nothing moves, in a pipe or a log: every ten seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PAUSE

    def due(self) -> bool:
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + _PAUSE
        return True


def duration(seconds: float) -> str:
    """Return a time to come as one says it.

    Example:
        >>> [duration(seconds) for seconds in (3, 47, 100, 9700, 10700, 300000)]
        ['10 s', '50 s', '2 min', '2 h 40 min', '3 h', '3 d 11 h']
    """
    minutes, tens, hours = round(seconds / 60), round(seconds / 600), round(seconds / 3600)
    if seconds < 55:
        return f"{max(10, 10 * round(seconds / 10))} s"
    if minutes < 60:
        return f"{minutes} min"
    if tens < 48 * 6:
        return f"{tens // 6} h" + (f" {10 * (tens % 6)} min" if tens % 6 else "")
    return f"{hours // 24} d {hours % 24} h"


@contextlib.contextmanager
def training(config: "RunConfig", *, is_default: bool) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Show how far one run is from its first step on; yields what is to be told each step and its metrics.

    On a terminal that is a bar; elsewhere a line every ten seconds. Until the first step something may be wrong, which
    is said without a bar, or the line that says what is trained and whether nobody chose the method.
    """
    from specreg.experiments.methods import METHODS

    method, settings = METHODS[config.method], config.settings
    label, steps = f"{config.method}, seed {config.seed}", settings.training.steps
    chosen = "; by default, another one with --method" if is_default else ""
    headings = [f"{method.title} on {settings.data.data}, {steps} steps ({method.about}{chosen})"]
    latest: dict[str, Any] = {}
    console, pulse = _console(), _Pulse()
    bars = _Bar("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "left", console=console)
    task = bars.add_task(label, total=steps, metrics="")

    def tell(step: int, metrics: Mapping[str, Any]) -> None:
        if headings:
            console.print(_plain(headings.pop()), soft_wrap=True)
        latest.update(metrics)
        shown = [f"{heading} {latest[key]:.{digits}f}" for key, heading, digits in _LIVE if key in latest]
        text = "  ".join([*shown, str(latest.get("verdict", ""))]).strip()
        left = (steps - step) * latest.get(PACE, 0.0)
        if PACE in metrics and left:
            what = f"about {duration(left)} of training to come ({steps - step} steps, evaluations not counted)"
            console.print(_plain(f"{label}: {what}"), soft_wrap=True)
        if console.is_interactive:
            bars.start()
            bars.update(task, completed=step, metrics=text)
        elif pulse.due():
            about = f", about {duration(left)} left" if left else ""
            console.print(_plain(f"{label}: step {step} of {steps}{about}  {text}".rstrip()), soft_wrap=True)

    try:
        yield tell
    finally:
        if bars.live.is_started:
            bars.stop()


def _console() -> Console:
    """Return standard error for what is shown on the way: where nobody reads it any more the training goes on."""
    # That of now: rich puts a stream of its own in its place.
    heard = Stream(sys.stderr, lambda: contextlib.suppress(OSError))
    return Console(file=cast("IO[str]", heard), highlight=False)


@contextlib.contextmanager
def progress(jobs: "Sequence[Job]") -> Iterator[Callable[[], None]]:
    """Show how far the runs are, on a terminal as a table; yields what is to be called now and then."""
    console, pulse = _console(), _Pulse()
    with Live(console=console, auto_refresh=False) if console.is_interactive else contextlib.nullcontext() as live:

        def watch() -> None:
            if live is not None:
                live.update(_progress(jobs), refresh=True)
            elif pulse.due():
                running = [job for job in jobs if job.state == "running"][:_MOST_SHOWN]
                steps = [f"{job.name} {_latest(job)['step']}/{job.config.settings.training.steps}" for job in running]
                console.print(_plain("; ".join([_summary(jobs), *steps])), soft_wrap=True)

        yield watch
    console.print("" if console.is_interactive else _summary(jobs), soft_wrap=True)


def _seconds_left(jobs: "Sequence[Job]") -> float | None:
    """Return how long the runs' steps will take, by those that have been measured."""
    paces: dict[str, float] = {}
    for job in jobs:
        with contextlib.suppress(ValueError):  # of a damaged file, which the run will tell of
            if isinstance(pace := (job.run.read("timing") or {}).get(PACE), float):
                paces[job.name] = pace
    running = [job for job in jobs if job.state == "running"]
    if not running or not paces:
        return None
    mean = sum(paces.values()) / len(paces)
    left = {job.name: job.config.settings.training.steps - _latest(job)["step"] for job in jobs
            if job.state in ("running", "waiting")}  # fmt: skip
    return float(sum(steps * paces.get(name, mean) for name, steps in left.items())) / len(running)


def sweep_plan(plan: "Plan", about: str, out: Path) -> None:
    """Print a sweep's cells with their methods and cost, what the preset is, and how the cost is counted."""
    from specreg.experiments import sweep

    # Before anything is printed: a cell, or the whole plan in this folder, may be refused.
    costs, done = [sweep.cost(cell) for cell in plan.cells], sweep.num_done(out, plan)
    num_runs, total = 0, 0
    console = Console(highlight=False)
    if plan.preset:
        console.print(f"[bold]{plan.preset}[/]\n")
        # Paragraphs and list items become one line each, for the terminal to wrap.
        console.print(Text(re.sub(r"(?<!\n)\n(?!\n|- )\s*", " ", about) + "\n"))
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("cell", no_wrap=True)
    shown.add_column("methods")
    for heading in ("D\nparam.", "G\nparam.", "images\na run", "mult.-adds\na run", "runs\ndone"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for cell, cost, num_done in zip(plan.cells, costs, done, strict=True):
        runs = plan.configs(cell)
        num_runs += len(runs)
        total += len(runs) * cost.multiply_adds
        shown.add_row(
            Text(cell.name),
            " ".join(dict.fromkeys(config.method for config in runs.values())),
            *map(_large, (cost.d_parameters, cost.g_parameters, cost.real_images, cost.multiply_adds)),
            f"{num_done}/{len(runs)}",
        )
    console.print(shown)
    console.print(
        f"\n{counted(len(plan.cells), 'cell')}, {counted(num_runs, 'run')}, {_large(total)} multiply-adds in all.\n"
        "images: real ones that the discriminator sees. Multiply-adds: counted on the networks' convolutions and "
        "matrix products, a backward pass as two forward ones; without normalization, compensation, gradient penalties "
        "and evaluations. Divided by the multiply-adds a second that a machine sustains in training, they give its "
        "time: one core of an EPYC (Zen 3) made 2 G (digits) to 14 G (32 channels, 32x32) a second, an H200 37 T (128 "
        "channels, batch 64)."
    )
    for changed in dict.fromkeys(cell.changes for cell in plan.cells if cell.changes):
        names = [cell.name for cell in plan.cells if cell.changes == changed]
        console.print(_plain(f"Changed from the preset in {', '.join(names)}: {'; '.join(changed)}."))


def results(cells: "Sequence[Cell]", paths: Sequence[Path]) -> None:
    """Print the table of results, what there is to say of it, and where the files are."""
    console = Console(highlight=False)
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    brief = table(cells).brief()
    for index, heading in enumerate(brief.headings):
        shown.add_column(_plain(heading), justify="left" if index < brief.num_texts else "right")
    for row in brief.rows:
        shown.add_row(*map(_plain, row))
    console.print(shown)
    for text in notes(cells):
        console.print(_plain(text))
    folder, names = paths[0].parent, [path.name for path in reversed(paths)]
    console.print(_plain(f"in {folder}: {', '.join(names)}"), soft_wrap=True)
    console.print(_plain(f"one page about all: specreg report {_as_argument(folder)}"), soft_wrap=True)


def metrics(values: Mapping[str, Any]) -> None:
    """Print one run's metrics, the three answers behind its verdict too."""
    shown = Table(show_header=False, box=None)
    answers = values.get("answers")
    states = {f"verdict, {name}": state for name, state in answers.items()} if isinstance(answers, dict) else {}
    for key, value in {**values, **states}.items():
        if not isinstance(value, dict) and value is not None:
            shown.add_row(_plain(key), _plain(f"{value:.4g}" if isinstance(value, float) else str(value)))
    Console(file=sys.stdout).print(shown)


def whereabouts(run: Path) -> None:
    """Say where a finished run's files are, what comes next, and whether its comparison's or sweep's are older."""
    from specreg.experiments.sweep import COMPARISON

    console = Console(file=sys.stdout, highlight=False)
    console.print(_plain(f"checkpoints, records and samples.png: {run}"), soft_wrap=True)
    console.print(_plain(f"one page about it: specreg report {_as_argument(run)}"), soft_wrap=True)
    folder = run.absolute().parent.parent
    summary, result = folder / "results.json", run / "result.json"
    if (folder / "sweep.json").exists() and summary.exists() and summary.stat().st_mtime < result.stat().st_mtime:
        command = "compare" if run.absolute().parent.name == COMPARISON else "sweep"
        text = f"results.json and table.md in {folder} are older than this run: give the command that made them again"
        console.print(_plain(f"{text} (specreg {command} --out {_as_argument(folder)} ...)"), soft_wrap=True)


@contextlib.contextmanager
def reading() -> Iterator[Callable[[int, int, str], None]]:
    """Show which of how many matrices is decomposed; yields what is to be told before each one."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("")
        yield lambda done, total, name: bars.update(task, completed=done, total=total, description=printable(name))


def autopsy(found: Autopsy, plot: Path | None = None) -> None:
    """Print the table of an autopsy, what its verdicts mean, and what was left out.

    Everything goes through Text: names come from a file, and brackets in them are no markup.
    """
    console = Console()
    series = len(found.paths) > 1
    for group, names in found.groups.items():
        if len(found.groups) > 1:
            console.print(_plain(f"{group or '(other layers)'}:"), style="bold")
        console.print((_series_table if series else _spectra_table)(found, names, console.width))
        console.print(_plain(_group_note(found, group, names)), end="\n\n" if len(found.groups) > 1 else "\n")
    for line in (*((_series_note(found, console.width),) if series else _SPECTRA_NOTES), *found.notes):
        console.print(_plain(line))
    if plot is not None:
        console.print(_plain(str(plot)), soft_wrap=True)


def _spectra_table(found: Autopsy, names: Sequence[str], width: int) -> Table:
    columns = ("s_k/s_1, k = 1 to r\n", "s_1\ntail", "bulk\nmean", "eff. rank\nstable", "verdict\nof random")
    shown, room = _table_of_layers(("left", "right", "right", "right", "left"), columns, width - 61)
    for spectrum in (found.layers[0][name] for name in names):
        cells = ["", "-", "-", "-"]
        if (numbers := spectrum.statistics) is not None:
            cells = [
                _curve(spectrum.ratios, width=24, height=2),
                f"{numbers['largest']:.4g}\n{numbers['tail']:.2g}",
                f"{numbers['bulk']:.2f}\n{numbers['mean']:.2f}",
                f"{_digits(numbers['effective_rank'])}/{spectrum.rank}\n{_digits(numbers['stable_rank'])}",
            ]
        part = "" if spectrum.part is None else f"\n{spectrum.part:.0%}"
        shown.add_row(_head(spectrum, room), *map(Text, cells), _verdict(spectrum.verdict, part))
    return shown


def _series_table(found: Autopsy, names: Sequence[str], width: int) -> Table:
    labels = [str(iteration) for iteration in found.iterations]
    cell, picked = max(4, *map(len, labels)), _picked(labels, width)
    heads = (f"s_k/s_1 at {labels[0]}\nand below {labels[-1]}", *(labels[index] for index in picked), "verdict\nsince")
    justify = ("left", *("right" for _ in picked), "left")
    shown, room = _table_of_layers(justify, heads, width - 29 - len(picked) * (cell + 1))
    for name in names:
        ends = (found.layers[0], found.layers[-1])
        curves = "\n".join(_curve(layers[name].ratios, width=16, height=1) for layers in ends)
        bulks = [found.layers[index][name].statistics for index in picked]
        evidence = found.evidence(name)
        since = None if evidence is None else evidence.since
        shown.add_row(
            _head(found.layers[-1][name], room),
            curves,
            *("-" if numbers is None else f"{numbers['bulk']:.2f}" for numbers in bulks),
            _verdict(found.series_verdict(name), "" if since is None else f"\n{since}"),
        )
    return shown


def _picked(labels: Sequence[str], width: int) -> list[int]:
    """Return which checkpoints of a series fit a terminal: the first, the last, and as many between, evenly."""
    last, fitting = len(labels) - 1, max(2, (width - 51) // (max(4, *map(len, labels)) + 1))
    return sorted({round(i * last / (fitting - 1)) for i in range(fitting)} if last >= fitting else range(last + 1))


_SPECTRA_NOTES = (
    "Columns: s_1 is the largest singular value, tail s_r/s_1, bulk the mean of s_k/s_1 over the upper half but s_1 "
    "itself, mean that of all k > 1; the effective rank, of r, and the stable one; the bulk in percent of that of a "
    "random matrix of this shape.",
    f"collapsed: below {COLLAPSED:.0%} of random, reduced: below {REDUCED:.0%}, full: neither. That is a hint and no "
    "proof: a collapse is a fall, which one checkpoint cannot show; give several. It tells nothing of modes. -: no "
    "verdict, as on a single row or column, on stacked filters of one channel each, and on embeddings.",
)


def _series_note(found: Autopsy, width: int) -> str:
    picked = _picked([str(iteration) for iteration in found.iterations], width)
    some = "" if len(picked) == len(found.paths) else f" {len(picked)} of them are shown: a wider terminal has more."
    bulk, shown = f"Bulk of s_k/s_1 in {len(found.paths)} checkpoints", listed(list(map(str, found.paths)))
    if found.order:
        first, last = found.iterations[0], found.iterations[-1]
        return (
            f"{bulk}, in the order of {found.order}: {shown}.{some} What lies between {first} and {last} is judged, "
            "without a warm-up: steady says nothing of before and after, nor of modes."
        )
    return (
        f"{bulk}, numbered as given, {shown}: their names do not tell in which order they were written, so there is no "
        f"verdict. Name them by their steps, for instance step-1000.pt.{some}"
    )


def _group_note(found: Autopsy, group: str, names: Sequence[str]) -> str:
    """Say what the verdict on a network is, and on how many layers there is none."""
    series = len(found.paths) > 1
    counts = Counter(found.series_verdict(name) if series else found.layers[0][name].verdict for name in names)
    rest = f"{unjudged} without a verdict" if (unjudged := counts.pop("-", 0)) else ""
    if (verdict := found.verdicts.get(group)) is not None:
        return "; ".join(filter(None, (verdict.message, rest)))
    return ", ".join(filter(None, (*(f"{count} {verdict}" for verdict, count in counts.most_common()), rest)))


def _table_of_layers(justify: Sequence[Any], headings: Sequence[str], room: int) -> tuple[Table, int]:
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    room = max(12, room)
    shown.add_column("layer\nshape = matrix", no_wrap=True, max_width=room)
    for side, heading in zip(justify, headings, strict=True):
        shown.add_column(heading, justify=side, no_wrap=True)
    return shown, room


def _head(spectrum: LayerSpectrum, room: int) -> Text:
    shape = "×".join(map(str, spectrum.shape))
    if len(spectrum.shape) > 2:
        shape += " = {}×{}".format(*spectrum.matrix)
    return Text("\n".join((*_folded(printable(layer_name(spectrum.name)), room), *_folded(shape, room))))


def _folded(text: str, room: int) -> list[str]:
    """Break a text into at most three lines, between its parts where that is possible."""
    lines: list[str] = []
    while len(text) > room and len(lines) < 2:
        end = max(text.rfind(mark, 1, room + 1) for mark in ". ")
        end = end if end > 0 else room
        lines.append(text[:end])
        text = text[end:].lstrip()
    if len(text) > room:  # the middle is cut out: layers' names differ at their ends
        end = (room - 1) * 2 // 3
        text = f"{text[: room - 1 - end]}…{text[-end:]}"
    return [*lines, text]


def _verdict(verdict: str, below: str) -> Text:
    return Text.assemble((verdict, _STYLES.get(verdict, "")), below)


def _digits(value: float) -> str:
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _curve(ratios: Sequence[float], *, width: int, height: int) -> str:
    """Draw a spectrum from k = 1 to r: one character for each k, or for the mean of several."""
    width = min(width, len(ratios))
    bounds = [len(ratios) * column // width for column in range(width + 1)] if width else []
    means = [sum(ratios[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    # A value above 0 shows as one step at least, so that a collapsed tail differs from a missing one.
    steps = [max(1, round(mean * 8 * height)) if mean > 0 else 0 for mean in means]
    rows = ["".join(_BLOCKS[min(8, max(0, step - 8 * row))] for step in steps) for row in reversed(range(height))]
    return "\n".join(rows)


def _progress(jobs: "Sequence[Job]") -> Group:
    # All runs, or those that run where there are many.
    chosen = jobs if len(jobs) <= _MOST_SHOWN else [job for job in jobs if job.state == "running"][:_MOST_SHOWN]
    numbers = {job.name: _latest(job) for job in chosen}
    # Not every kind of data has modes.
    metrics = [column for column in _METRICS if any(column[0] in latest for latest in numbers.values())]
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("run", overflow="fold")  # alone gives way on a narrow terminal
    for heading in ("step", *(heading for _, heading, _ in metrics), "verdict", ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    for job in chosen:
        latest, verdict = numbers[job.name], [str(record.get("state")) for record in _last(job, "verdicts")]
        shown.add_row(
            _plain(job.name),
            f"{latest['step']}/{job.config.settings.training.steps}",
            *(f"{latest[key]:.{digits}f}" if key in latest else "" for key, _, digits in metrics),
            Text.assemble(*((printable(state), _STYLES.get(state, "")) for state in verdict)),
            job.state if job.state != "running" else "" if latest["step"] or verdict else "starting",
        )
    failed = [Text(printable(f"{job.name}: {job.error}"), "red", overflow="ellipsis", no_wrap=True)
              for job in jobs if job.state == "failed"]  # fmt: skip
    return Group(_summary(jobs), *([shown] if chosen else []), *failed[-_MOST_SHOWN:])


def _summary(jobs: "Sequence[Job]") -> str:
    counts = Counter(job.state for job in jobs)
    states = ("done", "running", "failed", "stopped", "waiting")
    parts = [f"{counts[state]} {state}" for state in states if counts[state]]
    left = _seconds_left(jobs)
    about = "" if left is None else f"; about {duration(left)} of training to come, evaluations not counted"
    return f"{counted(len(jobs), 'run')}: {', '.join(parts)}{about}"


def _last(job: "Job", series: str) -> list[dict[str, Any]]:
    """Return the last record; none of a series that is damaged, which the report will tell of."""
    try:
        return job.run.series(series)[-1:]
    except ValueError:
        return []


def _latest(job: "Job") -> dict[str, Any]:
    latest: dict[str, Any] = {"step": 0}
    for record in (*_last(job, "metrics"), *_last(job, "evaluations")):
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        latest |= numbers | {"step": max(latest["step"], record["step"])}
    return latest


def _as_argument(path: Path) -> str:
    """Return a path as a shell takes it, which no dash makes an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def _plain(text: str) -> Text:
    """Return what may come from a file as text alone: no markup, and nothing that steers a terminal."""
    return Text(printable(text))


def _large(number: int) -> str:
    """Return a number with three digits and a prefix of its thousands: 1.05 M."""
    rounded = float(f"{number:.3g}")  # before the prefix is chosen: 999,999 is a million
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if rounded >= 10**power:
            return f"{rounded / 10**power:.3g} {prefix}"
    return str(number)
