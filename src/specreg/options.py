"""What each command of the line takes, and how that is parsed: nothing here needs torch."""

import contextlib
import io
import itertools
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from specreg.experiments.config import Features, RunConfig, Settings
from specreg.experiments.methods import METHODS, PAPER_METHODS
from specreg.names import LEAST_GENERATED, FeatureName, ReferenceSplit

T = TypeVar("T")
_BOX = re.compile("[─│╭╮╰╯]+")

_JOBS = "Runs at the same time, which share the cores; by default one a core, no more than runs, and 1 with a GPU."
_Jobs = Annotated[int | None, tyro.conf.arg(help=_JOBS)]
_CHECKPOINT = (
    "last: the newest; best: that of the least Fréchet distance; healthy: the last without an alarm; "
    "end-STEP: the old end of a run that went back behind it to go on."
)
_Checkpoint = Annotated[str, tyro.conf.arg(help=_CHECKPOINT)]


@dataclass
class Compare:
    """Train methods side by side and compare them; complete runs are not made again, and stay in the results.

    Begin with --data, --methods, --seeds, --steps, --dry-run and --out; the rest has defaults that fit the data.

    Each run is a folder runs/METHOD-seedN in the output folder, beside results.json, table.md and pictures.
    """

    out: Path = Path("runs/compare")
    """Output folder."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(help=f"Any of {', '.join(METHODS)}.")] = PAPER_METHODS
    seeds: tuple[str, ...] = ("0",)
    """Each method is run with each seed."""
    dry_run: bool = False
    """Say what the runs cost: the data are opened, nothing is trained and nothing written but a --cache."""
    jobs: _Jobs = None
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


@dataclass
class Sweep:
    """Run a preset's settings with several methods and seeds; runs that are complete are not made again.

    Begin with --preset, --cells, --dry-run, --data and --out.

    Each run is a folder CELL/METHOD-seedN in the output folder, made by specreg train, beside results.json,
    table.md and pictures. Any setting of a run given here replaces the preset's in every cell.
    """

    preset: str = ""
    """demo, paper (26 settings), paper-cpu, imagenet, cifar10-conditional, sttp, digits, digits-grid, keep,
    mixtures or stacked-mnist."""
    cells: tuple[str, ...] = ()
    """Names or globs of the preset's cells, such as A16-128 or 'C*'; all by default."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(help=f"The preset's, or any of {', '.join(METHODS)}.")] = ()
    seeds: tuple[str, ...] = ()
    """Each method is run with each seed; the preset's by default."""
    out: Path | None = None
    """Output folder; runs/PRESET by default."""
    dry_run: bool = False
    """List cells, methods and what they cost; nothing is written."""
    jobs: _Jobs = None
    minutes: float | None = None
    """Stop after so many minutes; the same command again goes on."""
    retry: bool = False
    """Try runs again that have failed."""
    ray: str | None = None
    """Run on a Ray cluster: its address; --ray alone joins RAY_ADDRESS's or this machine's, or else starts one."""
    cpus: float = 1.0
    """Ray: cores for each run."""
    gpus: float = 0.0
    """Ray: GPUs for each run; 0.5 lets two runs share one."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)


@dataclass
class Train:
    """Train one GAN, under static spectral regularization unless --method says otherwise.

    Begin with --data, --method, --steps, --seed and --out; the rest has defaults that fit the data.

    The same command again goes on from the last checkpoint. A complete run stays as it is; given more --steps it goes
    on, if its learning rates do not decay.

    With several processes: torchrun --nproc-per-node N -m specreg train ...
    """

    out: Path = Path("runs/train")
    """Run directory."""
    quiet: bool = False
    """Show no progress."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass
class Evaluate:
    """Evaluate a run's checkpoint; nothing is written."""

    run: tyro.conf.Positional[Path] = Path("runs/train")
    """Run directory."""
    samples: int | None = None
    """Generated images; the run's own number by default."""
    reference: int | None = None
    """Real images; the run's own number by default."""
    reference_split: ReferenceSplit | None = None
    """Part of the data that the real images are from; the run's own by default."""
    features: Features | None = None
    """Features that images are compared in; the run's own by default."""
    inception_weights: str | None = None
    """File of torch-fidelity's Inception weights; the run's own by default."""
    checkpoint: _Checkpoint = "last"
    json: bool = False
    """Print JSON."""


@dataclass
class Sample:
    """Draw samples from a run's checkpoint into a square PNG: a grid of images, or a scatter of points."""

    run: tyro.conf.Positional[Path] = Path("runs/train")
    """Run directory."""
    out: Path = Path("samples.png")
    """The picture to write; an existing file is not overwritten."""
    side: int = 8
    """Images in a row, and rows; of points there are always 2,500."""
    seed: int = 0
    """Latent vectors."""
    checkpoint: _Checkpoint = "last"


@dataclass
class Inspect:
    """Show the singular values of every weight matrix in checkpoints of any model; its code is not needed.

    Reads safetensors, files of torch.save, their indices, pickled modules and numpy's arrays; nothing in them is
    executed. Several checkpoints of one model are judged against their own past, in the order that the steps in
    their names tell. The time grows with the cube of a matrix's smaller side: leave out the largest with --skip if
    they take too long.
    """

    checkpoints: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Files, or folders that hold one checkpoint each."""
    only: tuple[str, ...] = ()
    """Layers to take: names or globs; a name stands for everything below it."""
    skip: tuple[str, ...] = ()
    """Layers to leave out."""
    transposed: tuple[str, ...] = ()
    """Layers that are transposed convolutions, which a checkpoint does not say."""
    plot: Path | None = None
    """Draw the spectra into this .png or .svg file; an existing file is not overwritten."""
    json: bool = False
    """Print JSON, with all singular values."""


@dataclass
class Watch:
    """Watch a training that is not ours by what it saves: a line for each reading, as it appears.

    With --real the generated images: grids such as StyleGAN's fakes*.png and torchvision's, folders of images, npz
    files. How much of the data do they miss? Without it the checkpoints: do their spectra collapse? A line begins
    with the number in the file's name, or with that name. Nothing is written into the folder.
    """

    folder: tyro.conf.Positional[Path | None] = None
    """Where the training saves its samples or checkpoints."""
    real: str | None = None
    """Real images: digits, or a path as train --data takes it."""
    only: tuple[str, ...] = ()
    """Layers of checkpoints to take, as inspect takes them: names or globs; a name stands for everything below it."""
    files: tuple[str, ...] = ()
    """Globs of the names to read: where other pictures lie beside the samples, or files have no ending."""
    image_size: int | None = None
    """Compare images at this side: their central squares are resized to it."""
    tile: str | None = None
    """Size of a generated image, 64 or HEIGHTxWIDTH; by default that of the real ones."""
    features: FeatureName | None = None
    """Compare images by these features; by default by their values, at 32x32 at most."""
    pool: int = LEAST_GENERATED
    """Samples of a reading, at least: what has fewer is read with what comes next."""
    warmup: int = 1
    """Iterations, as the names count them, in which a reading is judged only if its samples are near the data."""
    every: float = 10.0
    """Seconds from one look to the next."""
    once: bool = False
    """Read what is there, and end."""
    fail_on: tuple[str, ...] = ()
    """States that end it with exit code 5: losing, lost, never learnt; of checkpoints collapsing, collapsed."""
    json: Path | None = None
    """Append each reading to this .jsonl file, too, unless it is there already."""


@dataclass
class Report:
    """Write one self-contained HTML page about runs: verdicts, results, spectra, scores, samples and settings.

    Of several settings of a preset it has the paper's table and figures.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories, folders of comparisons or sweeps, or one setting's folder of a sweep."""
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("report.html")
    """The page to write."""
    overwrite: bool = False
    """Replace a page that exists."""


class _Screen(io.StringIO):
    """What tyro prints to: it may frame that, and not colour it, as it asks neither NO_COLOR nor the background."""

    encoding = "utf-8"


def parse(defaults: T, arguments: Sequence[str], *, methods: Collection[str] = ()) -> T:
    """Parse with tyro what a command takes; what is wrong becomes one line (ValueError), help goes through.

    Help leaves the options of methods out that are not named in the arguments or, where none is, not in ``methods``.
    """
    command = type(defaults).__name__.lower()
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if not argument or re.fullmatch(r"--[\w.-]+=", argument):
            named = argument.rstrip("=") or (before if before.startswith("--") else "an argument")
            raise ValueError(f"{named} is given nothing: is a variable of the shell not set?")
    lists = {name for name, value in vars(defaults).items() if isinstance(value, tuple)}
    given = Counter(argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    for option, count in given.items():
        if count > 1 and option[2:].replace("-", "_") in lists:
            raise ValueError(f"{option} is given {count} times, and only the last would count: give it once, with all")
    shown, complaint = _Screen(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaint):
            return tyro.cli(type(defaults), default=defaults, prog=f"specreg {command}", args=arguments)
    except SystemExit as end:
        if not end.code:
            sys.stdout.write(_fitting(shown.getvalue(), command, arguments, methods))
            raise
        lines = [_BOX.sub("", line).strip() for line in complaint.getvalue().splitlines()]
        # tyro frames its message: a title, the message, hints below a rule.
        message = " ".join(itertools.takewhile(bool, lines[1:]))
        options = [match[0] for line in lines if (match := re.match(r"--[\w.-]+", line))]
        near = f" (did you mean {options[0]}?)" if options and message.startswith("Unrecognized") else ""
        raise ValueError(f"{message}{near}; see specreg {command} --help") from None


def before_recipe(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the wish for help where the data are named: its defaults are their recipe's."""
    return [argument for argument in arguments if not (_names_data(arguments) and argument in ("-h", "--help"))]


def _names_data(arguments: Sequence[str]) -> bool:
    return any(argument.partition("=")[0] in ("--data", "--out") for argument in arguments)


def _fitting(text: str, command: str, arguments: Sequence[str], methods: Collection[str]) -> str:
    """Return help without the boxes of methods that are not chosen, and with lines on how to see them and defaults."""
    chosen = {part for argument in arguments for part in re.split("[=,]", argument)} & set(METHODS) or set(methods)
    boxes = re.split("(?m)^(?=╭)", text)
    names = [(match[1] if (match := re.match("╭─ (\\S+) options", box)) else "", box) for box in boxes]
    hidden = [name for name, _ in names if name in METHODS and name not in chosen]
    text = "".join(box for name, box in names if name not in hidden)
    option = "--method" if command == "train" else "--methods"
    if methods and not _names_data(arguments):
        text += "Defaults are those of digits: --data DATA --help shows those of yours.\n"
    return text + (f"More options with {option} NAME --help, of {', '.join(hidden)}.\n" if hidden else "")
