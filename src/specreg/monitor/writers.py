r"""Actions that write every snapshot as a line of JSON, for TensorBoard, or for any tracker of numbers.

They follow whatever acts on the verdict: ``monitor.actions.append(...)``.
"""

import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from specreg.files import replacing
from specreg.monitor.coverage import Reading
from specreg.monitor.monitor import Monitor
from specreg.monitor.verdict import Verdict
from specreg.names import COVERED, SIGNALLED, SPECTRAL, check_choice, integer
from specreg.spectra.reference import ratios
from specreg.spectra.statistics import statistics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger("specreg")

# Takes numbers by name, and their iteration.
Log = Callable[[Mapping[str, float], int], object]

_TRACKERS = {"wandb": "log", "mlflow": "log_metrics", "trackio": "log"}
_IMAGE_SIDE = 256
# Dark violet, blue, green and yellow, equally spaced in [0, 1]; lightness grows with the value.
_COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def scalars(
    singular_values: Mapping[str, Tensor], verdict: Verdict, reading: Reading | None = None
) -> dict[str, float]:
    r"""Return a snapshot and its verdict as numbers by name, for any tracker.

    For each layer NAME "spectral_s1/NAME", and for layers with more than one singular value "spectral_bulk/NAME",
    "spectral_effective_rank/NAME" (divided by r), "spectral_stable_rank/NAME" and "spectral_tail/NAME", the mean over
    the groups of a grouped convolution. "spectral_state" is the place of the spectra's state in
    ``specreg.names.SPECTRAL``: 0 not judged, 1 steady, 2 recovered, 3 collapsing, 4 collapsed; of several groups of
    layers "spectral_group_state/GROUP" is each one's. Where samples are read "coverage_state" is 0 not judged, 1
    healthy, 2 recovered, 3 losing, 4 never learnt, 5 lost, "signal_state" 0 teaching, 1 dead (none while it is not
    judged); a reading is "coverage_missing", "coverage_lost", "coverage_far" and "coverage_floor".

    Args:
        singular_values: layer name -> singular values, (r,) or (groups, r): ``monitor.latest``.
        verdict: on the snapshot.
        reading: made at the snapshot, if one was.
    """
    numbers = {"spectral_state": float(SPECTRAL.index(verdict.spectra.state))}
    for question, states in (("coverage", COVERED), ("signal", SIGNALLED)):
        if (state := getattr(verdict, question).state) in states:
            numbers[f"{question}_state"] = float(states.index(state))
    numbers |= {f"coverage_{name}": value for name, value in (reading.numbers if reading else {}).items()}
    if len(verdict.groups) > 1:
        numbers |= {
            f"spectral_group_state/{group or 'others'}": float(SPECTRAL.index(each.state))
            for group, each in verdict.groups.items()
        }
    for name, s in singular_values.items():
        values, rank = statistics(s), s.shape[-1]
        quantities = {"s1": values.largest}
        if rank > 1:
            quantities |= {
                "bulk": values.bulk,
                "effective_rank": values.effective_rank / rank,
                "stable_rank": values.stable_rank,
                "tail": values.tail,
            }
        # A module that is a layer itself has the name "", which no tracker takes; some take no parentheses either.
        numbers |= {f"spectral_{key}/{name or 'module'}": float(value.mean()) for key, value in quantities.items()}
    return numbers


def numbers_of(monitor: Monitor, verdict: Verdict) -> dict[str, float]:
    """Return the :func:`scalars` of a monitor's newest snapshot, on which a verdict is."""
    return scalars(monitor.latest, verdict, monitor.reading if monitor.sampled == verdict.iteration else None)


class ScalarWriter:
    """Hand every snapshot's :func:`scalars` to a tracker: the adapter for wandb, mlflow, trackio and others.

    Args:
        monitor: takes the snapshots.
        log: called with the numbers by name and the iteration, as :func:`tracker` returns it.

    Example:
        >>> from torch import nn
        >>> monitor = Monitor(nn.Linear(4, 4))
        >>> monitor.actions.append(ScalarWriter(monitor, lambda numbers, step: print(step, sorted(numbers)[-1])))
        >>> _ = monitor.step(7)
        7 spectral_tail/module
    """

    def __init__(self, monitor: Monitor, log: Log) -> None:
        self._monitor = monitor
        self._log = log

    def __call__(self, verdict: Verdict) -> None:
        self._log(numbers_of(self._monitor, verdict), verdict.iteration)


def tracker(name: str) -> Log:
    """Return a function that logs numbers to a tracker's current run, for :class:`ScalarWriter`.

    The training starts the run: ``wandb.init``, ``trackio.init`` or ``mlflow.start_run``. wandb takes steps in growing
    order only: with it, log everything else of the training with ``step=``, too.

    Args:
        name: "wandb", "mlflow" or "trackio".

    Raises:
        ValueError: there is no such tracker, or its package is missing; says the remedy.

    Example:
        ``monitor.actions.append(ScalarWriter(monitor, tracker("wandb")))``
    """
    check_choice("a tracker", name, tuple(_TRACKERS))
    package, verb = _imported(name, name), _TRACKERS[name]
    # Looked up at each call: wandb.init replaces wandb.log.
    return lambda numbers, step: getattr(package, verb)(dict(numbers), step=step)


class JsonlWriter:
    """Append every snapshot to a file, one JSON object a line: iteration, singular values by layer, verdict.

    Singular values have 6 significant digits; the verdict is ``Verdict.to_dict()``, "changed" if any of its iteration
    was; where samples were read "reading" has the numbers of what is missing. A training that is resumed, or goes back,
    whose monitor has loaded its state, goes on in its file: the first snapshot drops the lines of its iteration and
    later ones, so that there is no line twice. For the same reason samples that are read after a snapshot
    (:meth:`specreg.Monitor.snapshot`) replace its line. A file that holds none of the monitor's past is another
    training's and is refused.

    Args:
        monitor: takes the snapshots.
        path: of the file.

    Raises:
        ValueError: the file's folder does not exist; at the first snapshot: the file is another training's.

    Example:
        ``monitor.actions.append(JsonlWriter(monitor, "spectra.jsonl"))``
    """

    def __init__(self, monitor: Monitor, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ValueError(f"folder {self.path.parent} does not exist: create it first")
        self._monitor = monitor
        self._newest: tuple[int, int] | None = None  # the last line's iteration, and where in the file it begins
        self._changed = False  # whether its verdict was another than that before

    def __call__(self, verdict: Verdict) -> None:
        is_back = self._newest is None or verdict.iteration < self._newest[0]  # resumed, or an older state was loaded
        if is_back and self.path.exists() and self.path.stat().st_size:
            self._resume(verdict.iteration)
        is_again = self._newest is not None and self._newest[0] == verdict.iteration
        self._changed = verdict.changed or (is_again and self._changed)
        values = {name: rounded(s.tolist()) for name, s in self._monitor.latest.items()}
        record = verdict.to_dict() | {"changed": self._changed}
        line = {"iteration": verdict.iteration, "singular_values": values, "verdict": record}
        if (reading := self._monitor.reading) is not None and self._monitor.sampled == verdict.iteration:
            line["reading"] = reading.numbers
        with open(self.path, "ab") as file:
            end = file.seek(0, os.SEEK_END)
            if self._newest is not None and is_again:
                end = file.truncate(min(end, self._newest[1]))  # shorter if it was moved away since
            self._newest = verdict.iteration, end
            file.write(f"{json.dumps(line)}\n".encode())

    def _resume(self, iteration: int) -> None:
        """Drop the lines from an iteration on, and a last one that a crash has torn, if the others are of this past."""
        history = self._monitor.history
        past = {name: history.singular_values(name).numpy() for name in history.layers}
        rows = {at: row for row, at in enumerate(history.iterations) if at < iteration}
        shared = []
        with open(self.path, "rb") as old, replacing(self.path) as new:
            for line in old:
                if (record := _parsed(line)) is not None and record["iteration"] < iteration:
                    new.write(line.rstrip(b"\r\n") + b"\n")  # a crash may have torn off the last one's
                    if (row := rows.get(record["iteration"])) is not None:
                        shared.append(_is_equal(record["singular_values"], past, row))
            is_foreign = not shared and self._newest is None  # else it has written here itself
            if is_foreign or not all(shared):
                raise ValueError(
                    f"{self.path} holds lines of another training: name another file, or remove it; a training that "
                    "goes on loads its monitor's state first"
                )


class TensorBoardWriter:
    """Write every snapshot's :func:`scalars` for TensorBoard, the verdict's message when its state changes, and images.

    An image is the :func:`heat_map` of a layer's past. Everything is flushed at each snapshot.

    Args:
        monitor: takes the snapshots.
        target: a ``SummaryWriter`` of the training, which is left open, or a folder. In a folder the first snapshot
            after a resume, or after the monitor has loaded an older state, hides entries of its iteration and later
            ones, so that nothing is there twice; a new training that finds entries of another is warned.
        images_every: an image every so many times the monitor's ``every`` iterations; 0 for no images.

    Raises:
        ValueError: a bad option, or the package tensorboard is missing.

    Example:
        ``monitor.actions.append(TensorBoardWriter(monitor, "runs/first"))``
    """

    def __init__(self, monitor: Monitor, target: "SummaryWriter | str | Path", *, images_every: int = 10) -> None:
        self.images_every = integer("images_every", images_every, at_least=0)
        self._monitor = monitor
        self._written: dict[int, dict[str, float]] = {}  # the last iteration -> what was written of it
        self._writer: SummaryWriter | None = None
        self._folder: str | None = None
        if isinstance(target, (str, Path)):
            _imported("torch.utils.tensorboard", "tensorboard")  # a missing package fails here, not at a snapshot
            self._folder = str(target)
        else:
            self._writer = target

    def __call__(self, verdict: Verdict) -> None:
        iteration, numbers = verdict.iteration, numbers_of(self._monitor, verdict)
        before = self._written.get(iteration, {})  # where samples are read after the snapshot
        is_other = any("/" in name and before[name] != numbers.get(name) for name in before)  # the layers' own
        if is_other or iteration < max(self._written, default=iteration):  # an older state was loaded: later entries go
            self.close()
            before = {}
        if self._writer is None:
            tensorboard = _imported("torch.utils.tensorboard", "tensorboard")
            is_new = len(self._monitor.history) == 1 and not self._written
            if is_new and any(Path(str(self._folder)).glob("events.out.tfevents.*")):
                logger.warning(
                    "%s holds entries already: those from iteration %d on are hidden; a folder belongs to one training",
                    self._folder, iteration,
                )  # fmt: skip
            self._writer = tensorboard.SummaryWriter(self._folder, purge_step=iteration)
        writer = self._writer
        assert writer is not None
        for name, value in numbers.items():
            if before.get(name) != value:
                writer.add_scalar(name, value, iteration)
        every, past = self._monitor.every, self._monitor.history.iterations
        last = max(self._written, default=past[-2] if len(past) > 1 else iteration - every)
        self._written = {iteration: numbers}
        if verdict.changed:
            writer.add_text("spectral_state", verdict.message, iteration)
        # By the iterations: a resumed training has its images where it would have had them, whatever its steps are.
        period = every * self.images_every
        is_due = period and (iteration + every) // period > (last + every) // period
        if (is_due or self.images_every == 1) and not before:
            for name in self._monitor.history.layers:
                s = self._monitor.history.singular_values(name)
                if s.shape[-1] > 1:
                    writer.add_image(f"spectrum/{name or 'module'}", heat_map(s), iteration, dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        """Close the files in the folder; a ``SummaryWriter`` that was given stays open."""
        if self._folder is not None and self._writer is not None:
            self._writer.close()
            self._writer = None


def heat_map(singular_values: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    r"""Return an image of spectra over time, (height, width, 3), uint8: x is time, y is k, the colour s_k/s_1.

    Colours go from dark (0) to yellow (1). Small spectra are enlarged; of more than 256 values or snapshots, 256 evenly
    spaced ones are drawn.

    Args:
        singular_values: shape (time, r) or (time, groups, r), descending; groups are averaged.
    """
    values = ratios(singular_values.double().cpu())
    table = (values.mean(1) if values.ndim == 3 else values).T.numpy()
    for axis in (0, 1):
        size = table.shape[axis]
        if size > _IMAGE_SIDE:
            table = table.take(np.linspace(0, size - 1, _IMAGE_SIDE).round().astype(int), axis)
        else:
            table = table.repeat(_IMAGE_SIDE // size, axis)
    position = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(table, position, channel) for channel in zip(*_COLOURS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"this writer needs the package {package}: pip install {package}") from error


def rounded(values: Any) -> Any:
    """Return a number, or lists of numbers, with so many digits as a record has: only 0 becomes 0."""
    return [rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.6g}")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return what a line of :class:`JsonlWriter` holds, or None of anything else."""
    try:
        record = json.loads(line)
        integer("iteration", record["iteration"])
        return record if isinstance(record["singular_values"], dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def _is_equal(written: Mapping[str, Any], past: Mapping[str, np.ndarray[Any, Any]], row: int) -> bool:
    """Tell whether a line's singular values, of six digits, are those of a row of the past, of single precision."""
    try:
        return set(written) == set(past) and all(
            np.shape(written[name]) == values[row].shape and np.allclose(written[name], values[row], 1e-5, 1e-37)
            for name, values in past.items()
        )
    except (TypeError, ValueError):  # no numbers
        return False
