"""What a run writes down while it trains: losses, spectra and verdicts, metrics, events, checkpoints."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specreg.data.arrays import decode, encode
from specreg.experiments.config import RecordConfig, Settings
from specreg.experiments.outputs import OutputProbe
from specreg.experiments.sampling import applied, real_samples, sample_images
from specreg.experiments.sources import SampleEvaluator, Source
from specreg.experiments.sources.images import draw_finite
from specreg.files import give_name, same_content
from specreg.guard import Guard
from specreg.layers.evaluation import evaluating
from specreg.losses import call
from specreg.monitor.attainment import attainment, gradient_norms
from specreg.monitor.coverage import Reading
from specreg.monitor.samples import diversity
from specreg.monitor.verdict import Verdict
from specreg.monitor.writers import TensorBoardWriter, rounded
from specreg.processes import Processes
from specreg.records import PACE, RunDirectory
from specreg.training.state import TrainingState, save_checkpoint
from specreg.training.steps import NonFiniteError, diverging, draw_latent, first_bad

Progress = Callable[[int, dict[str, Any]], None]

logger = logging.getLogger(__name__)

_PROBE_SEED, _PROBE_SIZE = 5_000_011, 64
_MEASURED = 10  # steps
_MISSING_SIDE = 5  # images in a row, and rows, of a picture of what is missing


class Probe:
    """What a discriminator feels of one batch of real samples and one of latent vectors, the same at each time."""

    def __init__(self, source: Source, settings: Settings) -> None:
        random = torch.Generator().manual_seed(_PROBE_SEED)
        drawn = draw_finite(source.dataset, _PROBE_SIZE, _PROBE_SEED)  # images drawn twice would hide near-duplicates
        if drawn is None or len(drawn[0]) < _PROBE_SIZE:
            drawn = source.dataset.draw(_PROBE_SIZE, random)
        self._samples, labels = drawn
        self._real = encode(self._samples, random)
        self._labels = labels if settings.data.conditional else None

    def measure(self, state: TrainingState) -> dict[str, Any]:
        """Return each layer's attainment, the discriminator's gradient norms and the samples' diversity."""
        random = torch.Generator().manual_seed(_PROBE_SEED)
        generator, discriminator = state.sampler, state.discriminator
        z, _ = draw_latent(generator, _PROBE_SIZE, random)
        labels = None if self._labels is None else self._labels.to(z.device)
        real = self._real.to(z.device)
        fake = applied(generator, z, labels)
        attained = attainment(discriminator, real, *(() if labels is None else (labels,)))
        with evaluating(discriminator):  # in training mode a forward pass would move the power iteration
            norms = gradient_norms(lambda x: call(discriminator, x, labels), real, fake, generator=random)
        measured: dict[str, Any] = {
            "attainment": {name: round(layer.attained, 5) for name, layer in attained.items()},
            "gradient_norms": {name: rounded(value) for name, value in norms.items()},
        }
        if bool((self._samples != self._samples[:1]).any()):  # a single image has no diversity to compare with
            measured["diversity"] = asdict(diversity(decode(fake).float().cpu(), self._samples.float()))
        return measured


def draw_missing(source: Source, run: RunDirectory, records: RecordConfig, reading: Reading | None) -> None:
    """Write a picture of real images that nothing generated is like; where there are none, remove an older one."""
    path = run.image("missing")
    examples = real_samples(source, records)[[] if reading is None else reading.examples]
    if examples.ndim != 4 or not len(examples):  # of points the picture of samples shows as much
        path.unlink(missing_ok=True)
        return
    side = min(_MISSING_SIDE, math.ceil(math.sqrt(len(examples))))
    source.save_picture(lambda count: examples[:count], path, side=side)


def reading_of(state: TrainingState) -> Reading | None:
    """Return the reading of coverage made at this step; None without one, or where the guard went back at it."""
    if state.monitor.sampled != state.step:
        return None
    guard = state.compensator
    gone_back = isinstance(guard, Guard) and guard.restored is not None and guard.switched_on == state.step
    return None if gone_back else state.monitor.reading


def check_records(run: RunDirectory) -> None:
    """Raise ValueError naming the file if what a run goes on from, beside its checkpoint, is damaged."""
    _seconds(run)
    _distances(run)


def _seconds(run: RunDirectory) -> float:
    seconds = (run.read("timing") or {"seconds": 0.0}).get("seconds")
    if not isinstance(seconds, int | float):
        raise ValueError(f"{run.path / 'timing.json'} is damaged: 'seconds' is {seconds!r:.60}; remove it")
    return float(seconds)


def _distances(run: RunDirectory) -> dict[int, float]:
    """Return the Fréchet distances of the evaluations, by step."""
    evaluations = run.series("evaluations", {"fd": lambda value: isinstance(value, int | float)})
    return {record["step"]: record["fd"] for record in evaluations}


class Follower:
    """What every process of a training does beside it: watch and judge the spectra, and agree with the others.

    The main process also records, see :class:`Recorder`; the others write nothing.
    """

    def __init__(self, settings: Settings, state: TrainingState, processes: Processes) -> None:
        self._settings, self._every = settings, settings.records
        self._state, self._processes = state, processes
        self._monitor = state.monitor

    def begin(self) -> None:
        """Watch what is not trained yet; all processes at one time, as each step."""
        if self._state.step == 0:
            self._watch(0)

    def __call__(self, state: TrainingState, losses: dict[str, Tensor]) -> None:
        self._watch(state.step)
        # Before an evaluation, too, which may end in a checkpoint.
        if self._evaluates(state.step) or state.step % self._every.checkpoint_every == 0:
            self._agree()

    def _watch(self, step: int) -> None:
        # The last snapshot is that of the end, with samples.
        look = self._monitor.snapshot if step >= self._settings.training.steps else self._monitor.step
        with diverging(f"step {self._state.step}: "):
            look(step)

    def _evaluates(self, step: int) -> bool:
        ends = step >= self._settings.training.steps or self.stopped
        return ends or (self._every.evaluate_every > 0 and step % self._every.evaluate_every == 0)

    def _agree(self) -> None:
        """Make sure, before a checkpoint, that the state is finite and one, and not as many as processes."""
        if bad := first_bad(self._state.tensors()):
            raise NonFiniteError(f"step {self._state.step}: NaN or inf in {bad}; no checkpoint was made of it")
        if self._processes.count > 1:
            self._processes.agree(self._state.step, self._state.digests())

    @property
    def stopped(self) -> bool:
        """Whether there is a state that the configuration says to stop at; after a resume, too."""
        verdict = self._monitor.verdict
        stops = verdict is not None and not verdict.states.isdisjoint(("collapsed", "lost"))
        return self._settings.stop_on_collapse and stops

    def checkpoint(self) -> None:
        """Agree on the state; the main process saves it, if it is not saved yet."""
        self._agree()

    def close(self) -> None:
        """Close the files."""


def _is_dead(record: Mapping[str, Any]) -> bool:
    """Whether the discriminator's scores depended on none of the probe's samples."""
    norms = record.get("gradient_norms")
    return isinstance(norms, Mapping) and len(norms) > 0 and not any(norms.values())


def _add_numbers(board: Any, series: str, record: Mapping[str, Any]) -> None:
    """Add a record's numbers: SERIES/KEY, and KEY/NAME where a key holds several by name; lists are left out."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            _add_numbers(board, key, {"step": record["step"], **value})
        elif key != "step" and value is not None and not isinstance(value, list):
            board.add_scalar(f"{series}/{key}", value, record["step"])


class Recorder(Follower):
    """The main process's callback: it writes records and checkpoints."""

    def __init__(
        self,
        settings: Settings,
        run: RunDirectory,
        state: TrainingState,
        evaluator: SampleEvaluator,
        source: Source,
        outputs: OutputProbe | None,
        progress: Progress,
        processes: Processes,
    ) -> None:
        super().__init__(settings, state, processes)
        self._run, self._evaluator, self._progress = run, evaluator, progress
        self._source, self._outputs = source, outputs
        self._probe = Probe(source, settings)
        self._before = self._seconds = _seconds(run) if run.checkpoints else 0.0
        self._began = time.monotonic()
        self._steps, self._first = 0, self._began  # of this process
        self._step = state.step  # that is being made
        self._measured: dict[str, float] = {}
        self._saved = state.step if run.checkpoints else -1
        self._best = self._kept()
        self._dead = any(_is_dead(record) for record in run.series("sensitivity")[-1:])
        self._monitor.actions.append(self._watched)
        # Makes an event of what the library warns of: a decomposition that did not converge.
        self._fallbacks = logging.Handler(logging.WARNING)
        self._fallbacks.emit = lambda record: self._event("fallback", record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("specreg.spectra").addHandler(self._fallbacks)
        self._board = None
        if self._every.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # a quarter of a second, and a run may do without

            # What the folder has from the first step to come on is hidden: it is written again.
            self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=self._saved + 1)
            self._monitor.actions.append(TensorBoardWriter(self._monitor, self._board))

    def begin(self) -> None:
        super().begin()
        self._step += 1

    def __call__(self, state: TrainingState, losses: dict[str, Tensor]) -> None:
        self._progress(state.step, self._pace())
        if state.step % self._every.log_every == 0:
            record = {"step": state.step} | {name: value.item() for name, value in losses.items()}
            self._record("metrics", record)
            self._progress(state.step, record)
        super().__call__(state, losses)
        if self._evaluates(state.step):
            record = {"step": state.step} | self._glance(state.sampler)
            if state.ema is not None:  # small batches leave the last weights noisy: both are of interest
                record |= {f"last_{name}": value for name, value in self._glance(state.generator).items()}
            if (reading := reading_of(state)) is not None:
                record |= reading.numbers
            self._record("evaluations", record)
            self._sense(state)
            if self._outputs is not None:
                self._record("outputs", {"step": state.step} | self._outputs.measure(state))
            self._progress(state.step, record)
            if record["fd"] < self._best:
                self._best = record["fd"]
                self._save()
                self._keep("best", self._run.checkpoint)
        if state.step % self._every.checkpoint_every == 0:
            self._save()
        self._step = state.step + 1

    def _pace(self) -> dict[str, float]:
        """Return how long a step takes, once that is measured; the first is no measure, as it prepares much."""
        self._steps += 1
        if self._steps == 1:
            self._first = time.monotonic()
        if self._steps != 1 + _MEASURED:
            return {}
        self._measured = {PACE: (time.monotonic() - self._first) / _MEASURED}
        self._run.write("timing", {"seconds": self._seconds, **self._measured})
        return self._measured

    def _glance(self, generator: nn.Module) -> dict[str, Any]:
        with diverging(f"step {self._state.step}: "):
            return self._evaluator.glance(sample_images(generator, self._every.samples))

    def _sense(self, state: TrainingState) -> None:
        with diverging(f"step {state.step}: "):
            record = {"step": state.step} | self._probe.measure(state)
        self._record("sensitivity", record)
        before, self._dead = self._dead, _is_dead(record)
        if self._dead and not before:
            # Its spectra stand still, so that the detector has nothing to say.
            message = "its gradient is 0 on real, generated and interpolated samples: neither network learns from them"
            self._event("dead discriminator", message)
            logger.warning("step %d: the discriminator is dead: %s", state.step, message)

    def _kept(self) -> float:
        """Give the run's checkpoint the names that a kill may have cut off, and return the best one's distance."""
        distances = _distances(self._run)
        best = min(
            (step for step in distances if math.isfinite(distances[step])), key=distances.__getitem__, default=None
        )
        for newest in self._run.checkpoints[:1]:  # what the state was restored from
            if best == self._state.step:
                self._keep("best", newest)
            self._keep_healthy(newest)
        return distances[best] if best is not None and self._run.kept_checkpoint("best").exists() else math.inf

    def _keep(self, name: str, checkpoint: Path) -> None:
        """Name a checkpoint, and what had the name before an end off the schedule, behind which a run may go back."""
        kept = self._run.kept_checkpoint(name)
        is_end = self._state.step >= self._settings.training.steps and not self._settings.ends_on_schedule
        if is_end and kept.exists() and not same_content(kept, checkpoint):
            give_name(kept, self._run.kept_checkpoint(f"{name}-before"))
        give_name(checkpoint, kept)

    def _keep_healthy(self, checkpoint: Path) -> None:
        verdict = self._monitor.verdict
        if verdict is None or not verdict.alarming:
            self._keep("healthy", checkpoint)

    def checkpoint(self) -> None:
        super().checkpoint()
        self._save()

    def _save(self) -> None:
        if self._saved == self._state.step:
            return
        if self._board is not None:
            self._board.flush()  # what the checkpoint stands for is not written again
        if self._run.checkpoint.exists():
            give_name(self._run.checkpoint, self._run.kept_checkpoint("before"))
        save_checkpoint(self._state.state_dict(), self._run.checkpoint)
        self._keep_healthy(self._run.checkpoint)
        self._saved = self._state.step
        self._seconds = round(self._before + time.monotonic() - self._began, 3)
        self._run.write("timing", {"seconds": self._seconds, **self._measured})

    def close(self) -> None:
        logging.getLogger("specreg.spectra").removeHandler(self._fallbacks)
        if self._board is not None:
            self._board.close()

    def _record(self, series: str, record: dict[str, Any]) -> None:
        self._run.append(series, record)
        if self._board is not None:
            _add_numbers(self._board, series, record)

    def _watched(self, verdict: Verdict) -> None:
        """Write a snapshot down; the monitor calls this after the guard."""
        latest = self._monitor.latest
        layers = {name: rounded(s.flatten().tolist()) for name, s in latest.items() if s.shape[-1] > 1}
        step = self._state.step
        self._run.append("spectra", {"step": step, "layers": layers})
        self._run.append("verdicts", {"step": step} | verdict.to_dict())
        self._progress(step, {"verdict": verdict.state})
        if not verdict.entered.isdisjoint(("losing", "lost")):
            draw_missing(self._source, self._run, self._settings.records, self._monitor.reading)
        guard = self._state.compensator
        if isinstance(guard, Guard) and guard.switched_on == step:
            if guard.restored is not None:
                self._event("rolled back", f"the networks are those of step {guard.restored}")
            self._event("guard on", "static compensation switched on")
        if self.stopped:
            self._event("stopped", verdict.message)

    def _event(self, event: str, message: str) -> None:
        self._run.append("events", {"step": self._step, "event": event, "message": message})
