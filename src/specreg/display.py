"""What the terminal shows: progress while runs are made, tables when they are done."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from specreg.experiments.compare import Job
from specreg.report import TITLES, table

# key in the records, heading, decimals
_METRICS = (("modes", "modes", 0), ("kl", "KL", 2), ("fd", "FD", 2))
_LIVE = (*_METRICS, ("d_loss", "loss D", 2), ("g_loss", "loss G", 2))


@contextlib.contextmanager
def training(label: str, steps: int) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """Show one run's progress bar; yields what is to be told each step and its metrics."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    latest: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=steps, metrics="")

        def tell(step: int, metrics: Mapping[str, Any]) -> None:
            latest.update(metrics)
            shown = (f"{heading} {latest[key]:.{digits}f}" for key, heading, digits in _LIVE if key in latest)
            bars.update(task, completed=step, metrics="  ".join(shown))

        yield tell


@contextlib.contextmanager
def comparison(jobs: Sequence[Job]) -> Iterator[Callable[[], None]]:
    """Show every run's progress in one table; yields what is to be called now and then."""
    console = Console(stderr=True)
    with Live(console=console, auto_refresh=False) as live:
        yield lambda: live.update(_jobs(jobs), refresh=True)
    console.print()


def results(rows: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
    """Print the result table, its protocol and where the files are."""
    console = Console()
    if rows:
        headings, cells = table(rows)
        spread = ", mean ± standard deviation" if int(cells[0][1]) > 1 else ""
        shown = Table(title=f"{cells[0][1]} seed{'s' if spread else ''}{spread}", title_justify="left")
        shown.add_column("")
        for line in cells:
            shown.add_column(line[0], justify="right")
        for heading, values in list(zip(headings, zip(*cells, strict=True), strict=True))[2:]:
            shown.add_row(heading, *values)
        console.print(shown)
        console.print(
            f"{rows[0]['num_fake']} generated against {rows[0]['num_real']} real images, "
            f"features: {rows[0]['features']}",
            highlight=False,
        )
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


def metrics(values: Mapping[str, Any]) -> None:
    """Print one run's metrics."""
    shown = Table(show_header=False, box=None)
    for key, value in values.items():
        if not isinstance(value, dict) and value is not None:
            shown.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(file=sys.stdout).print(shown)


def _jobs(jobs: Sequence[Job]) -> Table:
    shown = Table(box=None, padding=(0, 1))
    shown.add_column("run", no_wrap=True)
    shown.add_column("", width=16)
    for heading in ("step", *(heading for _, heading, _ in _METRICS), ""):
        shown.add_column(heading, justify="right", no_wrap=True)
    for job in jobs:
        steps = job.config.settings.training.steps
        latest: dict[str, Any] = {"step": 0}
        for record in (*job.run.series("metrics")[-1:], *job.run.series("evaluations")[-1:]):
            latest |= record | {"step": max(latest["step"], record["step"])}
        done = steps if job.state == "done" else latest["step"]
        shown.add_row(
            f"{TITLES[job.config.method]}, seed {job.config.seed}",
            ProgressBar(total=steps, completed=done),
            f"{done}/{steps}",
            *(f"{latest[key]:.{digits}f}" if key in latest else "" for key, _, digits in _METRICS),
            "[red]failed[/]" if job.state == "failed" else "" if job.state == "running" else job.state,
        )
    return shown
