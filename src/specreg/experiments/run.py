"""One run: from a configuration to objects, through training, to its result."""

import contextlib
import copy
import logging
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import specreg
from specreg.data.arrays import scaled
from specreg.experiments.config import REFERENCE_SEED, RunConfig, Settings, from_dict, refusal
from specreg.experiments.methods import METHODS, record
from specreg.experiments.outputs import OutputProbe
from specreg.experiments.recorder import Follower, Progress, Recorder, check_records, draw_missing, reading_of
from specreg.experiments.sampling import generated_samples, real_samples, sample_images, sample_labelled
from specreg.experiments.sources import SampleEvaluator, Source, open_source
from specreg.experiments.sources.images import Images
from specreg.files import exists, give_name, prepare_directory, same_content
from specreg.losses import LOSSES, call
from specreg.models.normalization import share_batches
from specreg.monitor.coverage import LEAST_REAL, Coverage
from specreg.monitor.detector import Detector
from specreg.monitor.monitor import NUM_PROBED, Monitor
from specreg.names import QUESTIONS
from specreg.processes import ALONE, Processes, local_device
from specreg.records import RunDirectory, no_run
from specreg.training.config import TrainingConfig
from specreg.training.loop import train
from specreg.training.precision import compute_in_bf16
from specreg.training.state import TrainingState, load_newest

logger = logging.getLogger(__name__)

# Streams of randomness are kept apart: the same seed must not make data and latent vectors alike, and every run
# is evaluated on the same real images and latent vectors.
_DATA_STREAM, _LATENT_STREAM = 1_000_003, 2_000_003


def check_shares(settings: Settings, processes: Processes) -> None:
    """Make sure that every process gets an equal share of a batch; raises ValueError saying what to change."""
    size, count = settings.training.batch_size, processes.count
    if size % count:
        raise ValueError(
            f"batch_size {size} cannot be divided among {count} processes: it is the size of all shares together; "
            f"give --batch-size {count * max(1, round(size / count))}, or start another number of processes"
        )


def check_data(run: RunDirectory, images: int | None) -> None:
    """Refuse other data than a run has been trained on, as far as :func:`num_images` tells; nothing is changed."""
    before = (run.read("environment") or {}).get("images")
    if run.checkpoints and before is not None and before != images:
        raise ValueError(
            f"{run.path} was trained on {before} images, and its data have {images} now: restore those that it was "
            f"trained on, or train anew in another folder"
        )


def num_images(source: Source) -> int | None:
    """Return the number of images, of stacked ones that of the grey ones; None of points, which are drawn anew."""
    return len(source.dataset.images) if isinstance(source, Images) else None


def check_apart(out: Path, data: str) -> None:
    """Refuse the folder of the images itself for what is made of them: its pictures would join them."""
    if data and os.path.isdir(data) and os.path.realpath(data) == os.path.realpath(out):
        raise ValueError(f"{out} holds the images that are trained on: give another folder, or one within it (--out)")


def prepare_run(config: RunConfig, run: RunDirectory) -> None:
    """Make a run directory, or make sure that the one there has the same configuration, or fewer steps to go on from.

    Where that is not so, or cannot be written, it is a ValueError, and nothing is changed.
    """
    saved = checked_config(run, config)
    prepare_directory(run.path)
    if saved != config:
        with run.lock():
            saved = checked_config(run, config)  # another process may have been faster
            if saved is None:
                run.write("method", record(config.method))
            elif saved.settings.training != config.settings.training:
                _take_back_end(run, saved.settings)
            run.write("config", asdict(config))


def checked_config(run: RunDirectory, config: RunConfig) -> RunConfig | None:
    """Return the configuration of the run in a directory, None where there is none.

    ValueError if that is another one, or the run cannot go on to more steps; nothing is changed.
    """
    check_apart(run.path, config.settings.data.data)
    saved = saved_config(run)
    if saved is None and exists(run.path / "sweep.json"):
        raise ValueError(f"{run.path} holds a comparison or a sweep: choose another folder")
    if saved is None and not run.checkpoints and run.written:
        raise ValueError(f"{run.written[0]} is there, and no run's config.json: choose another folder, or move it away")
    if saved is None or saved == config:
        return saved
    if why := refusal(saved, config):
        raise ValueError(
            f"{run.path} holds a run with another configuration ({why}): "
            f"repeat the old one to go on with it, or choose another folder"
        )
    if saved.settings.training != config.settings.training:
        if run.complete and not run.checkpoints:
            raise ValueError(
                f"{run.path} has no checkpoint to go on from: restore one, or train anew in another folder"
            )
        _step_before_end(run, saved.settings)
    return saved


def _step_before_end(run: RunDirectory, settings: Settings) -> int | None:
    """Return the step of the checkpoint before the end, where the end was measured off the schedule; else None."""
    steps = settings.training.steps
    measured = any(last["step"] >= steps for last in run.series("verdicts")[-1:])
    if settings.ends_on_schedule or not measured or not run.checkpoint.exists():
        return None
    newest, path = load_newest(run.checkpoints)
    if path != run.checkpoint or newest["step"] < steps:  # killed before it was saved
        return None
    before = run.kept_checkpoint("before")
    return int(load_newest([before])[0]["step"]) if before.exists() else 0


def _take_back_end(run: RunDirectory, settings: Settings) -> None:
    """Let a run go on as if it had not ended: also from the checkpoint before the last, if only the end was measured.

    What is read at the end alone, off the schedule, is part of the monitor's past, and so of its verdicts. The network
    of the end stays, as ``checkpoint-end-STEP.pt``. Killed between two of these steps, the run can still do both.
    """
    begin, end = _step_before_end(run, settings), run.kept_checkpoint(f"end-{settings.training.steps}")
    if begin is not None:
        give_name(run.checkpoint, end)
    for outcome in (run.path / "result.json", run.image("samples")):
        outcome.unlink(missing_ok=True)
    if begin is None:
        return
    _take_names(run)
    run.checkpoint.unlink()
    logger.info("%s: its end was measured off the schedule: it goes back to step %d, and %s keeps the network of the "
                "end", run.path.name, begin, end.name)  # fmt: skip


def _take_names(run: RunDirectory) -> None:
    """Take the best's and the healthy's names from the newest checkpoint; what had them before an end has them."""
    for name in ("best", "healthy"):
        kept, before = run.kept_checkpoint(name), run.kept_checkpoint(f"{name}-before")
        if same_content(kept, run.checkpoint):
            kept.unlink()
        if before.exists() and not kept.exists():
            before.replace(kept)


def saved_config(run: RunDirectory) -> RunConfig | None:
    """Return the configuration of the run in a directory, or None where there is none."""
    values = run.read("config")
    if values is None:
        return None
    try:
        return from_dict(RunConfig, values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{run.path / 'config.json'} is not a run's configuration ({error})") from error


def execute(
    config: RunConfig,
    run: RunDirectory,
    source: Source,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda step, metrics: None,
    processes: Processes = ALONE,
) -> bool:
    """Train and evaluate one run, from its checkpoint if it has one; return whether it is complete.

    The main process writes everything, after its :func:`prepare_run`. ``stop`` is asked after every step, and True
    leaves a resumable run; ``progress`` is told every step, and what was recorded at it, in the main process.

    Raises:
        ValueError: the checkpoint is damaged; nothing was written.
        NonFiniteError: the training diverged; the last checkpoint is kept.
        LostProcessError, DisagreementError: of several processes one has ended, or they are not equal.
    """
    if processes.any(processes.main and run.complete):
        return True
    # Before the state: making its networks draws from the global generator, which the state's restores.
    with processes.main_first():
        held_out = source.held_out(config.settings) if processes.main else None
        evaluator = source.make_evaluator(config.settings, held_out) if processes.main else None
    state = build_state(config, source, processes)
    with processes.main_first():
        _go_on(run, state, main=processes.main)
        if processes.main:
            run.write("environment", _environment(source, processes))
    processes.agree(state.step, state.digests() if processes.count > 1 else {})
    recorder: Follower
    with processes.main_first():
        if evaluator is None:
            recorder = Follower(config.settings, state, processes)
        else:
            outputs = None if held_out is None else OutputProbe(source.dataset, held_out.dataset, config.settings)
            recorder = Recorder(config.settings, run, state, evaluator, source, outputs, progress, processes)
    with contextlib.closing(recorder):
        recorder.begin()
        if not recorder.stopped:
            train(
                state,
                config.settings.training,
                processes=processes,
                callback=recorder,
                stop=lambda: processes.any(stop()) or recorder.stopped,
            )
        recorder.checkpoint()
    finished = recorder.stopped or state.step >= config.settings.training.steps
    if finished and evaluator is not None:
        _finish(config, run, state, evaluator, source)
    return finished


def _restore(state: TrainingState, checkpoints: Sequence[Path]) -> Path:
    """Bring a state to the newest of some checkpoints that is whole, and return its path."""
    saved, path = load_newest(checkpoints)
    try:
        state.load_state_dict(saved)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"{path} is not of the run that its folder's config.json describes ({type(error).__name__}: {error}): "
            f"restore the one or the other, or train anew in another folder"
        ) from error
    return path


def _go_on(run: RunDirectory, state: TrainingState, *, main: bool) -> None:
    """Load the newest whole checkpoint, if there is one; the main process brings the directory to its step."""
    if not run.checkpoints:
        if main:
            run.rewind(-1)
        return
    path = _restore(state, run.checkpoints)
    if main:
        check_records(run)
        if path != run.checkpoint and run.checkpoint.exists():
            _take_names(run)
            # The next checkpoint would put it in the place of the one that is whole.
            run.checkpoint.replace(run.kept_checkpoint("damaged"))
        run.rewind(state.step)
        logger.info("%s: going on from step %d", run.path.name, state.step)


def build_state(config: RunConfig, source: Source, processes: Processes = ALONE) -> TrainingState:
    """Turn a configuration into networks, optimizers, a compensator and random numbers, all from its seed."""
    settings, device = config.settings, local_device()
    torch.manual_seed(config.seed)
    generator, discriminator = source.make_generator(settings), source.make_discriminator(settings)
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    discriminator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    method = METHODS[config.method]
    options = method.chosen(settings.methods)
    method.normalize(discriminator, options)
    ema = copy.deepcopy(generator).eval().requires_grad_(False) if settings.training.ema_decay else None
    share_batches(generator, processes.count)
    for network in (generator, discriminator):
        if settings.compile:  # in place, so that names and state_dicts stay as they are
            network.compile()
        if settings.precision == "bf16":
            compute_in_bf16(network)
    betas = (settings.training.beta1, settings.training.beta2)
    # fused: one kernel for all parameters, which matters most for small networks on a CPU.
    g_optimizer = torch.optim.Adam(generator.parameters(), settings.training.g_lr, betas=betas, fused=True)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), settings.training.d_lr, betas=betas, fused=True)
    state = TrainingState(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=g_optimizer,
        discriminator_optimizer=d_optimizer,
        dataset=source.dataset,
        draws=torch.Generator().manual_seed(config.seed + _DATA_STREAM),
        random=torch.Generator().manual_seed(config.seed + _LATENT_STREAM),
        ema=ema,
    )
    state.monitor = _make_monitor(state, source, settings, device)
    method.attach(state, options)
    return state


def _make_monitor(state: TrainingState, source: Source, settings: Settings, device: torch.device) -> Monitor:
    """Watch the spectra, and every ``coverage_every`` iterations what is missing of the data."""
    real = scaled(real_samples(source, settings.records)).to(device)
    coverage = _make_coverage(source, settings, real)
    real = real[:NUM_PROBED].clone()  # that the signal is read on; the meter has read them all
    classes = torch.arange(len(real), device=device) % max(int(state.generator.num_classes), 1)  # type: ignore[arg-type]

    def samples() -> tuple[Tensor, Tensor]:
        return generated_samples(state.sampler, settings.records).to(device), real

    def scores(x: Tensor) -> Any:
        return call(state.discriminator, x, classes[: len(x)] if settings.data.conditional else None)

    return Monitor(
        state.discriminator,
        every=settings.records.spectra_every,
        detector=Detector(settings.detector),
        samples=None if coverage is None else samples,
        coverage=coverage,
        samples_every=settings.records.coverage_every,
        scores=None if coverage is None else scores,
    )


def warn_about(config: RunConfig) -> None:
    """Log what is allowed but hardly meant."""
    method, training = METHODS[config.method], config.settings.training
    for warning in method.warnings(method.chosen(config.settings.methods), training):
        logger.warning("%s", warning)
    if training.gamma != TrainingConfig.gamma and not (LOSSES[training.loss].r1 or LOSSES[training.loss].r2):
        logger.warning("gamma changes nothing here: the loss %s has neither R1 nor R2", training.loss)


def load_sampler(run: RunDirectory, *, which: str = "last") -> tuple[RunConfig, Source, nn.Module]:
    """Return a run's configuration, data and generator (its running average, if it has one) at a checkpoint.

    Args:
        which: "last", "best" (least Fréchet distance during training), "healthy" (the last without an alarm) or
            "end-STEP" (of an end that the run went back behind).
    """
    config = saved_config(run)
    if config is None:
        raise ValueError(no_run(run.path, "holds no run (no config.json)"))
    paths = run.checkpoints if which == "last" else [run.kept_checkpoint(which)]
    if not any(path.exists() for path in (*paths, *run.checkpoints)):
        raise ValueError(f"{run.path} has no checkpoint yet: train it first")
    if not paths[0].exists():
        ends = ", ".join(path.stem.removeprefix("checkpoint-") for path in sorted(run.path.glob("checkpoint-end-*.pt")))
        reasons = {"best": "no evaluation yet", "healthy": "no checkpoint without an alarm"}
        why = reasons.get(which, f"only {ends}" if ends else "it went back behind no end")
        raise ValueError(f"{run.path} has no {which} checkpoint ({why}): take the last one")
    source = open_source(config.settings)
    state = build_state(config, source)
    _restore(state, paths)
    return config, source, state.sampler


def evaluate_run(run: RunDirectory, *, which: str = "last", **changed: Any) -> dict[str, Any]:
    """Evaluate a checkpoint of a run anew: its metrics with their protocol, and what is missing of the data.

    Args:
        which: as in :func:`load_sampler`.
        changed: fields of :class:`specreg.experiments.config.RecordConfig` with values instead of the run's own.
    """
    config, source, generator = load_sampler(run, which=which)
    check_data(run, num_images(source))
    if changed.get("features", "inception") != "inception":
        changed.setdefault("inception_weights", None)  # the run's own
    settings = replace(config.settings, records=replace(config.settings.records, **changed))
    held_out = source.held_out(settings) if settings.records.reference_split == "test" else None
    evaluator = source.make_evaluator(settings, held_out)
    samples, labels = sample_labelled(generator, settings.records.samples)
    evaluation = asdict(evaluator.evaluate(samples, labels=labels))
    coverage = _make_coverage(source, settings, scaled(real_samples(source, settings.records)))
    if coverage is not None:
        evaluation |= coverage.measure(generated_samples(generator, settings.records)).numbers
    return evaluation


def _make_coverage(source: Source, settings: Settings, real: Tensor) -> Coverage | None:
    """Return the meter of what is missing; None where there are too few images for it, or one again and again."""
    is_enough = len(real) >= LEAST_REAL and bool((real != real[:1]).any())
    return Coverage(real, features=source.make_features(settings)) if is_enough else None


def _finish(
    config: RunConfig, run: RunDirectory, state: TrainingState, evaluator: SampleEvaluator, source: Source
) -> None:
    generator = state.sampler
    samples, labels = sample_labelled(generator, config.settings.records.samples)
    evaluation = evaluator.evaluate(samples, labels=labels)
    random = torch.Generator().manual_seed(REFERENCE_SEED)
    source.save_picture(lambda count: sample_images(generator, count), run.image("samples"))
    source.save_picture(lambda count: source.dataset.draw(count, random)[0], run.image("data"))
    assert state.monitor.verdict is not None
    reading, verdict, meter = reading_of(state), state.monitor.verdict, state.monitor.coverage
    if reading is None and meter is not None:  # it ended between two readings
        reading = meter.measure(generated_samples(generator, config.settings.records))
    draw_missing(source, run, config.settings.records, reading)
    run.write(
        "result",
        {
            "method": config.method,
            "seed": config.seed,
            "steps": state.step,
            **asdict(evaluation),
            **({} if reading is None else reading.numbers),
            "compensations": 0 if state.compensator is None else state.compensator.acted,
            "verdict": verdict.state,
            "answers": {name: getattr(verdict, name).state for name in QUESTIONS},
            "config": asdict(config),
        },
    )


def _environment(source: Source, processes: Processes) -> dict[str, Any]:
    return {
        "specreg": specreg.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(local_device()),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "images": num_images(source),
    }
