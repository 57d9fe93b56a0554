"""The command line: commands and exit codes. What they take is in ``specreg.options``, what they do below.

Exit codes: 0 done, 1 a run of a comparison or sweep failed, or the disk or standard output is full, 2 bad input, too
little memory, or the job's main process failed, 3 training diverged, 4 another process of the job has ended or differs,
5 a watched training has reached a state of --fail-on, 130 interrupted or --minutes are over, 141 nobody reads the
output any more (``| head``).
"""

import contextlib
import dataclasses
import errno
import functools
import importlib
import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specreg import __version__
from specreg.experiments.interrupts import whole_imports
from specreg.files import Stream, prepare_directory
from specreg.names import check_choice, integer, printable, suggestion

if TYPE_CHECKING:
    from specreg.experiments.sweep import Plan
    from specreg.options import Compare, Sweep

_LAB = (
    "filelock", "jinja2", "matplotlib", "PIL", "rich", "safetensors", "sklearn", "tensorboard", "torchmetrics", "tyro",
)  # fmt: skip
# What to do about what the operating system says.
_REMEDIES = {
    errno.EACCES: "check its permissions",
    errno.EISDIR: "name a file in this folder",
    errno.ELOOP: "its links lead in a circle; name the file itself",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of this path is a file; check the name",
    errno.EPERM: "check its permissions",
    errno.EROFS: "choose another folder",
}
_FOR_IMAGES = ("image_size", "tile", "features", "pool", "warmup")  # options of watch
_RESUMED = ("compare", "sweep", "train")  # what goes on when it is given again
_INTERRUPTED = "specreg: stopped; the same command again goes on\n"
# A full disk, a used-up quota, a limit on the size of files.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_HELP = """\
usage: specreg COMMAND [OPTIONS]

Spectral regularization of GANs: keep the singular values of a discriminator
from collapsing, and see whether they do.

commands:
  compare    train SN (sn), static and dynamic SR side by side, and end with a
             table and pictures: specreg compare --out mine --data images.zip
  sweep      run a preset's settings x methods x seeds, resumable, on this
             machine or a Ray cluster; start here:
             specreg sweep --preset demo --out demo
  train      train one GAN; the same command again goes on where it stopped
  evaluate   evaluate a trained run anew
  sample     draw images from a trained run into a PNG
  inspect    show the spectra of any model's checkpoints:
             specreg inspect model.safetensors
  watch      watch anybody's training by the images or checkpoints it saves:
             specreg watch samples --real images.zip --fail-on lost
  report     write one HTML page about runs: verdicts, spectra, scores,
             samples, settings

specreg COMMAND --help lists a command's options. The library needs no command:

  import specreg
  specreg.spectral_norm(discriminator)
  compensator = specreg.static_compensation(discriminator)
  compensator.step()      # after each optimizer step of the discriminator
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _settle_streams()
    output: Any = Stream(sys.stdout, _writing)
    try:
        with contextlib.redirect_stdout(output):
            try:
                return _run(list(sys.argv[1:] if arguments is None else arguments))
            finally:  # of help, too, which ends in SystemExit
                output.flush()
    except (_OutputError, BrokenPipeError) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__cause__, BrokenPipeError):
            _silence(sys.stdout, sys.stderr)
            return 141
        _silence(sys.stdout)
        return _fail(f"standard output cannot be written ({error}): make room, or send it elsewhere", 1)


class _OutputError(Exception):
    """Standard output cannot be written: no OSError, for which rich ends the process, and others name a disk."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _OutputError(error.strerror) from error


def _silence(*streams: Any) -> None:
    """Let nothing more come of streams that cannot be written: Python writes what is left at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(null, stream.fileno())


def _settle_streams() -> None:
    """Make it possible to write to the standard streams, whatever they are."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever began this; the next file must not take its place
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")  # a Windows pipe and old locales know no lines of boxes


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"specreg {__version__}\n")
        return 0
    try:
        if missing := [name for name in _LAB if find_spec(name) is None]:
            raise ValueError(
                f"the command line needs {', '.join(missing)}: pip install '.[lab]' in the folder of specreg's source"
            )
        if arguments[0] not in _COMMANDS:
            near = suggestion(arguments[0], _COMMANDS)
            raise ValueError(f"unknown command {arguments[0]!r}{near}: the commands are {', '.join(_COMMANDS)}")
        with whole_imports():
            importlib.import_module("specreg.options")
        return _COMMANDS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:  # before or after the training, which asks for it where it can be resumed
        sys.stderr.write(_INTERRUPTED if arguments[0] in _RESUMED else "specreg: interrupted\n")
        return 130
    except BrokenPipeError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        goes_on = arguments[0] in _RESUMED
        return _fail(_explained(error, goes_on=goes_on), 1 if getattr(error, "errno", None) in _NO_ROOM else 2)
    except RuntimeError as error:
        return _of_training(error)


def _of_training(error: RuntimeError) -> int:
    """Return the exit code of what can happen to a training or to one of its processes; any other error goes on."""
    from specreg.processes import DisagreementError, LostProcessError, MainFailedError

    if isinstance(error, MainFailedError):
        time.sleep(1)  # torchrun ends all processes when the first one has: the main one has to say why
        return 2
    if isinstance(error, LostProcessError):
        return _fail(f"{error}; the same command again goes on from the last checkpoint", 4)
    if isinstance(error, DisagreementError):
        return _fail(str(error), 4)
    # Torch's own error on a GPU, named without importing torch, and what its CPU allocator says.
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return _fail(_explained(MemoryError()), 2)
    raise error


def _compare(arguments: list[str]) -> int:
    from specreg.experiments.methods import PAPER_METHODS
    from specreg.options import Compare, before_recipe, parse

    given = parse(Compare(), before_recipe(arguments), methods=PAPER_METHODS)
    methods, seeds = _grid(given)
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} must not be empty")
    with _imports("compare"):
        from specreg import display
        from specreg.experiments.jobs import execute_all
        from specreg.experiments.presets import Cell
        from specreg.experiments.sources import recipe
        from specreg.experiments.sweep import COMPARISON, Plan, saved_settings

    saved = saved_settings(given.out)
    defaults = recipe(given.settings.data) if saved is None else saved
    given = parse(Compare(settings=defaults), arguments, methods=PAPER_METHODS)
    plan = Plan("", [Cell(COMPARISON, given.settings, methods)], seeds)
    if given.dry_run:
        display.sweep_plan(plan, "", given.out)
        return 0
    return _carry_out(given.out, plan, functools.partial(execute_all, parallel=given.jobs), arguments, retry=True)


def _sweep(arguments: list[str]) -> int:
    from specreg.options import Sweep, parse

    arguments = _with_address(arguments)
    given = parse(Sweep(), arguments)
    methods, seeds = _grid(given)
    for name, value in (("minutes", given.minutes), ("cpus", given.cpus)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not 0 <= given.gpus < float("inf"):
        raise ValueError(f"gpus must not be negative, got {given.gpus!r}")
    if given.ray is None and (given.cpus, given.gpus) != (Sweep.cpus, Sweep.gpus):
        raise ValueError("--cpus and --gpus are for --ray: give that, too, or drop them")
    if given.ray is not None and given.jobs is not None:
        raise ValueError("--jobs is for this machine alone: with --ray give --cpus or --gpus of each run, or drop it")
    with _imports("sweep"):
        from specreg import display
        from specreg.experiments import cluster, presets, sweep
        from specreg.experiments.jobs import execute_all

    check_choice("preset", given.preset, tuple(presets.PRESETS))
    chosen = presets.PRESETS[given.preset]
    cells = []
    for cell in presets.choose(chosen.cells, _split(given.cells)):
        settings = parse(Sweep(settings=cell.settings), arguments).settings
        cells.append(dataclasses.replace(cell.changed_to(settings), methods=methods or cell.methods))
    plan = sweep.Plan(given.preset, cells, seeds or chosen.seeds)
    out = given.out or Path("runs") / given.preset
    if given.dry_run:
        display.sweep_plan(plan, chosen.about, out)
        return 0
    execute: Callable[..., None] = functools.partial(execute_all, parallel=given.jobs, minutes=given.minutes)
    if given.ray is not None:
        if find_spec("ray") is None:
            raise ValueError("--ray needs the package ray: pip install '.[cluster]' in the folder of specreg's source")
        address = None if given.ray == "auto" else given.ray
        execute = functools.partial(
            cluster.execute_on_ray, address=address, cpus=given.cpus, gpus=given.gpus, minutes=given.minutes
        )
    return _carry_out(out, plan, execute, arguments, retry=given.retry)


def _carry_out(out: Path, plan: "Plan", execute: Callable[..., None], arguments: Sequence[str], *, retry: bool) -> int:
    """Make a plan's runs, leave results, tables and pictures in the folder, and say which runs failed or wait."""
    with whole_imports():
        from specreg import display
        from specreg.experiments.run import warn_about
        from specreg.experiments.sweep import lay_out
        from specreg.report.page import check_folder, write_folder
        from specreg.report.runs import open_cells

    cells = check_folder(out)  # what the report will need is wrong now already
    _show_log(quiet=False)
    jobs = lay_out(out, plan, retry=retry)
    read = {run.directory.path for cell in cells for run in cell.runs}
    unchanged = all(job.run.path in read and job.state != "waiting" for job in jobs)
    _warn_of_idle(arguments, list(dict.fromkeys(job.config.method for job in jobs)))
    for job in {(job.config.method, job.config.settings): job for job in jobs}.values():
        warn_about(job.config)
    with display.progress(jobs) as watch:
        execute(jobs, watch=watch)
    cells = cells if unchanged else open_cells([out])
    display.results(cells, write_folder(out, cells))
    for job in jobs:
        if job.state == "failed":
            sys.stderr.write(f"specreg: {printable(f'{job.name} failed: {job.error}')}\n")
    if any(job.state in ("waiting", "stopped") for job in jobs):
        sys.stderr.write(_INTERRUPTED)
        return 130
    return int(any(job.state == "failed" for job in jobs))


def _train(arguments: list[str]) -> int:
    from specreg.experiments.config import RunConfig
    from specreg.options import Train, before_recipe, parse

    given = parse(Train(), before_recipe(arguments), methods=(Train().config.method,))
    with _imports("train"):
        from specreg import display
        from specreg.experiments import run as runs
        from specreg.experiments.interrupts import interruptible
        from specreg.experiments.sources import open_checked, recipe
        from specreg.processes import join
        from specreg.records import RunDirectory
        from specreg.training.steps import NonFiniteError

    processes = join()
    with contextlib.ExitStack() as held:
        with processes.main_first():  # nobody reads the directory before it is prepared
            saved = runs.saved_config(RunDirectory(given.out))
            default = RunConfig(settings=recipe(given.config.settings.data)) if saved is None else saved
            given = parse(Train(config=default), arguments, methods=(given.config.method,))
            run, config = RunDirectory(given.out), given.config
            _show_log(given.quiet, main=processes.main)
            runs.check_shares(config.settings, processes)
            source = open_checked(config.settings)
            if processes.main:
                runs.check_data(run, runs.num_images(source))
                runs.prepare_run(config, run)
                runs.warn_about(config)
                _warn_of_idle(arguments, [config.method])
            interrupted = held.enter_context(interruptible())
            if processes.main:
                held.enter_context(run.lock())
                runs.checked_config(run, config)  # another process may have been faster
        progress: Any = lambda step, metrics: None  # noqa: E731
        if processes.main and not given.quiet:
            named = any(argument.partition("=")[0] == "--method" for argument in arguments)
            progress = held.enter_context(display.training(config, is_default=saved is None and not named))
        try:
            finished = runs.execute(config, run, source, stop=interrupted, progress=progress, processes=processes)
        except NonFiniteError as error:
            kept = "the last checkpoint is kept" if run.checkpoints else "no checkpoint had been written"
            return _fail(f"training diverged: {error}; {kept}", 3)
    processes.leave()
    if processes.main and not finished:
        sys.stderr.write(_INTERRUPTED)
    elif processes.main and not given.quiet:
        display.metrics(run.read("result") or {})
        display.whereabouts(run.path)
    return 0 if finished else 130


def _evaluate(arguments: list[str]) -> int:
    from specreg.options import Evaluate, parse

    given = parse(Evaluate(), arguments)
    _check_checkpoint(given.checkpoint)
    with _imports("evaluate"):
        from specreg import display
        from specreg.experiments.run import evaluate_run
        from specreg.records import RunDirectory

    names = ("samples", "reference", "reference_split", "features", "inception_weights")
    changed = {name: value for name in names if (value := getattr(given, name)) is not None}
    values = evaluate_run(RunDirectory(given.run), which=given.checkpoint, **changed)
    if given.json:
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
    else:
        display.metrics(values)
    return 0


def _sample(arguments: list[str]) -> int:
    from specreg.experiments.config import LAST_SEED
    from specreg.options import Sample, parse

    given = parse(Sample(), arguments)
    _check_checkpoint(given.checkpoint)
    integer("side", given.side, at_least=1, at_most=100)
    integer("seed", given.seed, at_least=0, at_most=LAST_SEED)
    _check_output(given.out, (".png",))
    with _imports("sample"):
        from specreg.experiments.run import load_sampler
        from specreg.experiments.sampling import sample_images
        from specreg.records import RunDirectory

    _, source, generator = load_sampler(RunDirectory(given.run), which=given.checkpoint)
    source.save_picture(lambda count: sample_images(generator, count, seed=given.seed), given.out, side=given.side)
    sys.stdout.write(f"{printable(str(given.out))}\n")
    return 0


def _inspect(arguments: list[str]) -> int:
    from specreg.options import Inspect, parse

    given = parse(Inspect(), arguments)
    if not given.checkpoints:
        raise ValueError("no checkpoint given: specreg inspect CHECKPOINT [CHECKPOINT ...]")
    with _imports("inspect"):
        from specreg import display
        from specreg.autopsy.figure import save
        from specreg.autopsy.spectra import inspect

    if given.plot is not None:
        _check_output(given.plot, (".png", ".svg"), option="--plot")
    with display.reading() as progress:
        autopsy = inspect(
            given.checkpoints, only=given.only, skip=given.skip, transposed=given.transposed, progress=progress
        )
    if given.plot is not None:
        save(autopsy, given.plot)
    if given.json:
        sys.stdout.write(json.dumps(autopsy.to_dict(), indent=2, allow_nan=False) + "\n")
    else:
        display.autopsy(autopsy, given.plot)
    return 0


def _watch(arguments: list[str]) -> int:
    from specreg.experiments.config import DataConfig
    from specreg.names import COVERED, LEAST_GENERATED, SPECTRAL
    from specreg.options import Watch, parse

    given = parse(Watch(), arguments)
    if given.folder is None:
        raise ValueError("no folder given: specreg watch FOLDER --real DATA")
    fail_on = _split(given.fail_on)
    for state in fail_on:
        check_choice("fail-on", state, SPECTRAL if given.real is None else COVERED)
    if not 0 < given.every <= 86_400:
        raise ValueError(f"every must be a number of seconds in (0, 86400], got {given.every!r}")
    integer("pool", given.pool, at_least=LEAST_GENERATED)
    integer("warmup", given.warmup, at_least=0)
    if given.json is not None:
        _check_output(given.json, (".jsonl",), overwrite=True)
    with _imports("watch"):
        from specreg.evaluation.features import open_extractor
        from specreg.experiments.watch import Checkpoints, Folder, Notice, Samples, watch

    folder: Folder
    if given.real is None:
        if any(getattr(given, name) != getattr(Watch, name) for name in _FOR_IMAGES):
            names = ", ".join(f"--{name.replace('_', '-')}" for name in _FOR_IMAGES)
            raise ValueError(f"{names} are for images: give real ones with --real")
        folder = Checkpoints(given.folder, files=given.files, layers=given.only)
    elif given.only:
        raise ValueError("--only is for checkpoints: leave it out, or leave out --real")
    else:
        extractor = None if given.features is None else open_extractor(given.features)
        folder = Samples(
            given.folder,
            DataConfig(data=given.real, image_size=given.image_size),
            tile=None if given.tile is None else _size(given.tile),
            features=None if extractor is None else lambda images: extractor.describe(images).features,
            pool=given.pool,
            warmup=given.warmup,
            files=given.files,
        )

    printed: set[str] = set()
    if given.json is not None and given.json.exists():
        text = given.json.read_text(encoding="utf-8", errors="replace")
        printed = set(text.splitlines())
        with given.json.open("a", encoding="utf-8") as file:  # which fails now where it may not be written
            file.write("\n" * bool(text and not text.endswith("\n")))  # torn by a crash: what follows has its own line

    def tell(notice: Notice) -> None:
        sys.stdout.write(f"{printable(str(notice))}\n")
        sys.stdout.flush()
        line = json.dumps(notice.details, allow_nan=False)
        if given.json is not None and line not in printed:
            with given.json.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    _show_log(quiet=False)
    return 5 if watch(folder, every=given.every, once=given.once, fail_on=fail_on, tell=tell) else 0


def _report(arguments: list[str]) -> int:
    from specreg.options import Report, parse

    given = parse(Report(), arguments)
    if not given.runs:
        raise ValueError("name at least one run directory or comparison folder: specreg report RUN")
    _check_output(given.out, (".html", ".htm"), overwrite=given.overwrite)
    with _imports("report"):
        from specreg.report.page import write_page
        from specreg.report.runs import open_cells
        from specreg.report.verdicts import lines as verdict_lines

    cells = open_cells(given.runs)
    write_page(given.out, cells)
    sys.stdout.write("".join(f"{line}\n" for line in (printable(str(given.out)), *verdict_lines(cells))))
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "compare": _compare,
    "sweep": _sweep,
    "train": _train,
    "evaluate": _evaluate,
    "sample": _sample,
    "inspect": _inspect,
    "watch": _watch,
    "report": _report,
}


@contextlib.contextmanager
def _imports(command: str) -> Iterator[None]:
    """Import in a block what a command takes seconds to import, now that its options are right; Ctrl-C waits for that.

    Only then is it known whether this is one of several processes, which nothing but a training can be.
    """
    with whole_imports():
        yield
        from specreg.processes import launched

    if command != "train" and (count := launched()) > 1:
        raise ValueError(
            f"{command} is for one process, this is one of {count}: start it without torchrun or accelerate launch "
            f"(train is the command for several)"
        )


def _warn_of_idle(arguments: Sequence[str], methods: Collection[str]) -> None:
    """Log which options are of methods that are not run."""
    from specreg.experiments.methods import METHODS

    options = dict.fromkeys(argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    for option in options:
        method = option.removeprefix("--").partition(".")[0].replace("_", "-")
        if method in METHODS and method not in methods:
            logging.getLogger(__name__).warning(
                "%s changes nothing here: it is an option of %s, and trained is %s", option, method, ", ".join(methods)
            )


def _with_address(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which --ray has a value: auto where none is given."""
    given = list(arguments)
    for position, argument in enumerate(given):
        if argument == "--ray" and (position + 1 == len(given) or given[position + 1].startswith("-")):
            given.insert(position + 1, "auto")
    return given


class _Printable(logging.Formatter):
    """Messages that cannot steer the terminal: they hold names of files and layers."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).splitlines()))


def _show_log(quiet: bool, *, main: bool = True) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("specreg: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # What the main process says need not be said by the others, too.
    level = (logging.WARNING if quiet else logging.INFO) if main else logging.ERROR
    logging.getLogger("specreg").setLevel(level)


def _split(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _size(given: str) -> tuple[int, int]:
    """Return height and width of SIDE or HEIGHTxWIDTH."""
    match = re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", given)
    if match is None or not all(int(side) for side in match.groups() if side):
        raise ValueError(f"tile must be a side or HEIGHTxWIDTH, such as 64 or 64x48, got {given!r:.60}")
    return int(match[1]), int(match[2] or match[1])


def _grid(given: "Compare | Sweep") -> tuple[list[str], list[int]]:
    """Return methods and seeds, once they and the number of jobs are right."""
    from specreg.experiments.methods import METHODS

    methods, seeds = _split(given.methods), _split(given.seeds)
    for method in methods:
        check_choice("methods", method, tuple(METHODS))
    if given.jobs is not None:
        integer("jobs", given.jobs, at_least=1)
    try:
        return methods, [int(seed) for seed in seeds]
    except ValueError:
        raise ValueError(f"seeds must be integers, got {' '.join(seeds)!r:.60}") from None


def _check_checkpoint(which: str) -> None:
    if re.fullmatch("last|best|healthy|end-[0-9]+", which) is None:
        raise ValueError(f"--checkpoint must be one of last, best, healthy, end-STEP, got {which!r:.60}")


def _check_output(
    path: Path, endings: tuple[str, ...], *, option: str = "--out", overwrite: bool | None = None
) -> None:
    """Make sure, before anything is computed, that a file can be written; None: nobody can ask for ``overwrite``."""
    if path.suffix.lower() not in endings or not path.absolute().parent.is_dir():
        raise ValueError(f"{path} has to be a {' or '.join(endings)} file in a folder that exists")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file that could be replaced: choose another name")
    if path.exists() and not overwrite:
        replaced = "" if overwrite is None else ", or replace it with --overwrite"
        raise ValueError(f"{path} exists: choose another name with {option}{replaced}")
    prepare_directory(path.absolute().parent)


def _explained(error: Exception, *, goes_on: bool = False) -> str:
    """Return an operating system's error with the file and what to do; our own say so themselves."""
    if isinstance(error, MemoryError):
        return "there is not enough memory: make images, batches or networks smaller"
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    name = "" if error.filename is None else f"{error.filename}: "
    remedy = _REMEDIES.get(error.errno, "check the disk")
    if error.errno in _NO_ROOM:
        remedy = "make room; the same command then goes on from the last checkpoint" if goes_on else "make room"
    return f"{name}{error.strerror or error}: {remedy}"


def _fail(message: str, code: int) -> int:
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    process = "" if rank == "0" else f"process {printable(rank)}: "
    # Names come from strangers' files.
    sys.stderr.write(f"{process}specreg: error: {printable(' '.join(message.split()))}\n")
    return code
