"""The command line: parsing, display and exit codes. What a command does is in ``specreg.experiments``.

Exit codes: 0 done, 1 a run of a comparison failed, 2 bad input, 3 training diverged, 130 interrupted.
"""

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from specreg import __version__

_LAB = ("tyro", "rich", "accelerate", "torchmetrics", "safetensors", "sklearn", "matplotlib", "PIL")
_BOX = re.compile("[─│╭╮╰╯]+")
T = TypeVar("T")

_HELP = """\
usage: specreg COMMAND [OPTIONS]

Spectral regularization of GANs: keep the singular values of a discriminator from collapsing, and see it.

commands:
  compare    train spectral normalization (sn), static and dynamic regularization side by side,
             and end with a table and pictures; start here: specreg compare --out demo
  train      train one GAN; the same command again goes on where it stopped
  evaluate   evaluate a trained run anew
  sample     draw images from a trained run into a PNG

specreg COMMAND --help lists a command's options. The library itself needs none of this:
  import specreg
  specreg.spectral_norm(discriminator)
  compensator = specreg.static_compensation(discriminator)
  compensator.step()      # after each optimizer step of the discriminator
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_HELP)
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"specreg {__version__}\n")
        return 0
    command, rest = arguments[0], arguments[1:]
    try:
        _require_lab()
        if command not in _COMMANDS:
            raise ValueError(f"unknown command {command!r}: the commands are {', '.join(_COMMANDS)}")
        return _COMMANDS[command](rest)
    except (ValueError, OSError) as error:
        return _fail(str(error), 2)
    except ArithmeticError as error:
        return _fail(f"training diverged: {error}; the last checkpoint is kept", 3)


def _compare(arguments: list[str]) -> int:
    from specreg.experiments import compare
    from specreg.experiments.config import METHODS, Settings, check_choice
    from specreg.report import write_report

    @dataclass
    class Compare:
        """Train methods side by side and compare them; complete runs are not made again.

        Writes results.json, table.md, spectra.png, curves.png and samples.png into the output folder.
        """

        out: Path
        """Output folder."""
        methods: tuple[str, ...] = METHODS
        """Any of sn, static, dynamic."""
        seeds: tuple[str, ...] = ("0",)
        """Seeds; each method is run with each."""
        jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
        """Runs at the same time."""
        settings: Annotated[Settings, _flat()] = field(default_factory=Settings)

    out = _output(arguments)
    saved = compare.saved_settings(out) if out is not None else None
    given = _parse(Compare, "compare", arguments, {"settings": saved} if saved else {})
    methods: list[Any] = _split(given.methods)
    for method in methods:
        check_choice("methods", method, METHODS)
    seeds = [_seed(value) for value in _split(given.seeds)]
    if given.jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {given.jobs}")
    jobs = compare.plan(given.out, methods, seeds, given.settings)
    with _comparison_display(jobs) as watch:
        compare.execute_all(jobs, min(given.jobs, len(jobs)), watch)
    paths = write_report(given.out, [job.run for job in jobs])
    _print_table(paths)
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        sys.stderr.write(f"specreg: {job.run.name} failed: {job.error}\n")
    if any(job.state in ("waiting", "stopped") for job in jobs):
        sys.stderr.write("specreg: interrupted; the same command again goes on\n")
        return 130
    return 1 if failed else 0


def _train(arguments: list[str]) -> int:
    from specreg.experiments.compare import interruptible
    from specreg.experiments.config import RunConfig
    from specreg.experiments.run import execute, saved_config
    from specreg.records import RunDirectory

    @dataclass
    class Train:
        """Train one GAN. The same command again goes on from the last checkpoint; a complete run stays as it is."""

        out: Path
        """Run directory."""
        quiet: bool = False
        """Show no progress."""
        config: Annotated[RunConfig, _flat()] = field(default_factory=RunConfig)

    out = _output(arguments)
    saved = saved_config(RunDirectory(out)) if out is not None else None
    given = _parse(Train, "train", arguments, {"config": saved} if saved else {})
    run = RunDirectory(given.out)
    _configure_logging(given.quiet)
    with interruptible() as interrupted, _training_display(given.config, given.quiet) as progress:
        finished = execute(given.config, run, stop=interrupted, progress=progress)
    if not finished:
        sys.stderr.write("specreg: interrupted; the same command again goes on\n")
        return 130
    if not given.quiet:
        _print_metrics(run.read("result") or {})
    return 0


def _evaluate(arguments: list[str]) -> int:
    from specreg.experiments.run import evaluate_run
    from specreg.records import RunDirectory

    @dataclass
    class Evaluate:
        """Evaluate a run's newest checkpoint; nothing is written."""

        run: Annotated[Path, _positional()]
        """Run directory."""
        samples: int | None = None
        """Generated images; the run's own number by default."""
        json: bool = False
        """Print JSON."""

    given = _parse(Evaluate, "evaluate", arguments)
    if given.samples is not None and given.samples <= 5:
        raise ValueError(f"samples must be more than 5, the neighbours that some metrics use, got {given.samples}")
    metrics = dataclasses.asdict(evaluate_run(RunDirectory(given.run), samples=given.samples))
    if given.json:
        sys.stdout.write(json.dumps(metrics, indent=2) + "\n")
    else:
        _print_metrics(metrics)
    return 0


def _sample(arguments: list[str]) -> int:
    from specreg.experiments.run import load_sampler, sample_images, save_grid
    from specreg.records import RunDirectory

    @dataclass
    class Sample:
        """Draw images from a run's newest checkpoint into a square PNG."""

        run: Annotated[Path, _positional()]
        """Run directory."""
        out: Path = Path("samples.png")
        """The picture to write; an existing file is not overwritten."""
        side: int = 8
        """Images in a row, and rows."""
        seed: int = 0
        """Latent vectors."""

    given = _parse(Sample, "sample", arguments)
    if given.side < 1:
        raise ValueError(f"side must be at least 1, got {given.side}")
    if given.out.exists():
        raise ValueError(f"{given.out} exists: choose another name with --out")
    if given.out.suffix.lower() != ".png" or not given.out.absolute().parent.is_dir():
        raise ValueError(f"{given.out} has to be a .png file in a folder that exists")
    _, _, generator = load_sampler(RunDirectory(given.run))
    save_grid(sample_images(generator, given.side**2, seed=given.seed), given.out, side=given.side)
    sys.stdout.write(f"{given.out}\n")
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "compare": _compare,
    "train": _train,
    "evaluate": _evaluate,
    "sample": _sample,
}


def _require_lab() -> None:
    from importlib.util import find_spec

    missing = [name for name in _LAB if find_spec(name) is None]
    if missing:
        raise ValueError(f"the command line needs {', '.join(missing)}: pip install 'specreg[lab]'")


def _flat() -> Any:
    import tyro

    return tyro.conf.arg(name="")


def _positional() -> Any:
    import tyro

    return tyro.conf.Positional


def _parse(kind: type[T], command: str, arguments: list[str], defaults: dict[str, Any] | None = None) -> T:
    """Parse with tyro; what is wrong becomes one line (ValueError), help goes through."""
    import tyro

    if defaults:
        kind = dataclasses.make_dataclass(  # the saved configuration takes the place of the defaults
            kind.__name__,
            [
                (f.name, f.type, field(default=defaults[f.name])) if f.name in defaults else (f.name, f.type, f)
                for f in dataclasses.fields(kind)  # type: ignore[arg-type]
            ],
            namespace={"__doc__": kind.__doc__},
        )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, prog=f"specreg {command}", args=arguments)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        lines = [_BOX.sub("", line).strip() for line in complaint.getvalue().splitlines()]
        text = " ".join(line for line in lines[1:] if line and not line.startswith("For full helptext"))
        raise ValueError(f"{text}; see specreg {command} --help") from None


def _output(arguments: Sequence[str]) -> Path | None:
    """Return what --out names, before the arguments are parsed: it may hold the configuration to go on with."""
    for position, argument in enumerate(arguments):
        if argument == "--out" and position + 1 < len(arguments):
            return Path(arguments[position + 1])
        if argument.startswith("--out="):
            return Path(argument.removeprefix("--out="))
    return None


def _split(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _seed(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"seeds must be integers, got {value!r}") from None


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"specreg: error: {' '.join(message.split())}\n")
    return code


def _configure_logging(quiet: bool) -> None:
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, format="%(message)s", stream=sys.stderr)


@contextlib.contextmanager
def _training_display(config: Any, quiet: bool) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if quiet:
        yield lambda step, metrics: None
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )  # fmt: skip
    shown: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(f"{config.method} seed {config.seed}", total=config.settings.training.steps, metrics="")

        def progress(step: int, metrics: dict[str, Any]) -> None:
            shown.update({key: value for key, value in metrics.items() if key != "step"})
            bars.update(task, completed=step, metrics="  ".join(f"{k} {v:.4g}" for k, v in shown.items()))

        yield progress


@contextlib.contextmanager
def _comparison_display(jobs: Sequence[Any]) -> Any:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda: live.update(_jobs_table(jobs), refresh=True)


def _jobs_table(jobs: Sequence[Any]) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    for heading in ("run", "", "step", "modes", "KL", "FD", "loss D", "loss G", ""):
        table.add_column(heading, justify="right" if heading not in ("run", "") else "left")
    for job in jobs:
        steps = job.config.settings.training.steps
        metrics, evaluations = job.run.series("metrics")[-1:], job.run.series("evaluations")[-1:]
        latest = {key: value for record in [*metrics, *evaluations] for key, value in record.items()}
        step = steps if job.state == "done" else max([0, *(record["step"] for record in [*metrics, *evaluations])])
        numbers = [
            f"{latest[key]:.{digits}f}" if key in latest else "-"
            for key, digits in (("modes", 0), ("kl", 2), ("fd", 2), ("d_loss", 2), ("g_loss", 2))
        ]
        state = {"failed": "[red]failed[/]", "running": ""}.get(job.state, job.state)
        table.add_row(
            job.run.name, ProgressBar(total=steps, completed=step, width=24), f"{step}/{steps}", *numbers, state
        )
    return table


def _print_table(paths: Sequence[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    from specreg.records import read_json
    from specreg.report import table as summarize

    rows = read_json(paths[0])
    console = Console()
    if rows:
        headings, cells = summarize(rows)
        shown = Table(title="mean ± standard deviation over the seeds" if int(cells[0][1]) > 1 else None)
        for heading in headings:
            shown.add_column(heading, justify="left" if heading == "method" else "right")
        for line in cells:
            shown.add_row(*line)
        console.print(shown)
        console.print(
            f"{rows[0]['num_fake']} generated against {rows[0]['num_real']} real images, "
            f"features: {rows[0]['features']}",
            highlight=False,
        )
    for path in paths:
        console.print(str(path), highlight=False)


def _print_metrics(metrics: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for key, value in metrics.items():
        if not isinstance(value, dict) and value is not None:
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
