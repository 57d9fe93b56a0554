"""One run: from a configuration to objects, through training, to its result."""

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor, nn

import specreg
from specreg.data.arrays import ImageSource, quantize
from specreg.data.digits import StackedDigits
from specreg.data.images import load_images
from specreg.data.stream import BatchStream
from specreg.evaluation.protocol import Evaluation, Evaluator
from specreg.experiments.config import RunConfig, Settings, differences, from_dict, to_dict
from specreg.layers import CONVOLUTIONS, DEFAULT_KINDS
from specreg.models import Discriminator, Generator, stages_for
from specreg.monitor.snapshot import spectra
from specreg.records import RunDirectory, prepare_directory
from specreg.regularizers.compensation import Compensator, dynamic_compensation, static_compensation
from specreg.regularizers.normalization import spectral_norm
from specreg.training.loop import draw_latent, train
from specreg.training.state import TrainingState, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

# Streams of randomness are kept apart: the same seed must not make data and latent vectors alike, and every run
# is evaluated on the same real images and latent vectors.
_DATA_STREAM, _LATENT_STREAM, _REFERENCE_SEED, _SAMPLE_SEED = 1_000_003, 2_000_003, 3_000_017, 4_000_037
_GRID = 8  # images a side in samples.png
_SPECTRUM_DIGITS = 6

Progress = Callable[[int, dict[str, Any]], None]


def open_source(settings: Settings) -> ImageSource:
    """Return the images that a configuration names.

    Raises:
        FileNotFoundError, ValueError: they cannot be read or do not fit the networks; says the remedy.
    """
    data = settings.data
    if data.data == "digits":
        if data.image_size not in (None, StackedDigits.resolution):
            raise ValueError(f"digits are {StackedDigits.resolution}x{StackedDigits.resolution}: drop --image-size")
        source: ImageSource = StackedDigits()
    else:
        source = load_images(data.data, image_size=data.image_size)
    try:
        stages_for(source.resolution)
    except ValueError as error:
        raise ValueError(f"{data.data}: {error}; choose one with --image-size") from error
    if data.conditional and source.num_classes < 2:
        raise ValueError(f"{data.data} has no classes to be conditional on: drop --conditional")
    return source


def prepare_run(config: RunConfig, run: RunDirectory) -> None:
    """Make a run directory, or make sure that the one there has the same configuration.

    Raises:
        ValueError: another configuration is there, or the directory cannot be written; nothing is changed.
    """
    if (saved := saved_config(run)) is not None and (changed := differences(saved, config)):
        raise ValueError(
            f"{run.path} holds a run with another configuration ({'; '.join(changed)}): "
            f"repeat the old one to go on with it, or choose another folder"
        )
    prepare_directory(run.path)
    if saved is None:
        run.write("config", to_dict(config))


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
    source: ImageSource,
    *,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda step, metrics: None,
) -> bool:
    """Train and evaluate one run, from its checkpoint if it has one.

    Args:
        config: the whole configuration.
        run: where everything is written, after :func:`prepare_run`.
        source: the training images, from :func:`open_source`.
        stop: asked after every step; True leaves a resumable run.
        progress: told every step, and what was recorded at it.

    Returns:
        Whether the run is complete.

    Raises:
        ValueError: the checkpoint is damaged; nothing was written.
        NonFiniteError: the training diverged; the last checkpoint is kept.
    """
    if run.complete:
        return True
    accelerator = make_accelerator(config.settings)
    # Before the state: making its networks draws from the global generator, which the state's restores.
    evaluator = make_evaluator(config.settings, source)
    state = build_state(config, source, accelerator)
    if run.checkpoint.exists():
        state.load_state_dict(load_checkpoint(run.checkpoint))
        run.rewind(state.step)
        logger.info("%s: going on from step %d", run.name, state.step)
    else:
        run.rewind(-1)
    run.write("environment", _environment(accelerator))
    recorder = _Recorder(config, run, state, evaluator, progress)
    finished = train(
        state,
        config.settings.training,
        accelerator=accelerator,
        num_classes=source.num_classes if config.settings.data.conditional else 0,
        callbacks=[recorder],
        stop=stop,
    )
    recorder.checkpoint()
    if finished:
        _finish(config, run, state, evaluator, source)
    return finished


def build_state(config: RunConfig, source: ImageSource, accelerator: Accelerator) -> TrainingState:
    """Turn a configuration into networks, optimizers, a compensator and streams, all from its seed."""
    settings = config.settings
    num_classes = source.num_classes if settings.data.conditional else 0
    set_seed(config.seed)  # Python's, numpy's and torch's global generators
    shape: dict[str, Any] = {"image_channels": source.channels, "num_classes": num_classes}
    generator: nn.Module = Generator(
        source.resolution, settings.model.g_channels, latent=settings.model.latent, **shape
    )
    discriminator: nn.Module = Discriminator(source.resolution, settings.model.d_channels, **shape)
    generator.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    discriminator.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    spectral_norm(discriminator)
    compensator = build_compensator(config, discriminator)
    ema = None
    if settings.training.ema_decay:
        ema = Generator(source.resolution, settings.model.g_channels, latent=settings.model.latent, **shape)
        ema.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema.load_state_dict(generator.state_dict())
        ema.eval().requires_grad_(False)
    if settings.compile:  # in place, so that names and state_dicts stay as they are
        generator.compile()
        discriminator.compile()
    betas = (settings.training.beta1, settings.training.beta2)
    # fused: one kernel for all parameters, which matters most for small networks on a CPU.
    g_optimizer = torch.optim.Adam(generator.parameters(), settings.training.g_lr, betas=betas, fused=True)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), settings.training.d_lr, betas=betas, fused=True)
    generator, discriminator, g_optimizer, d_optimizer = accelerator.prepare(
        generator, discriminator, g_optimizer, d_optimizer
    )
    return TrainingState(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=g_optimizer,
        discriminator_optimizer=d_optimizer,
        stream=BatchStream(source, settings.training.batch_size, config.seed + _DATA_STREAM),
        random=torch.Generator().manual_seed(config.seed + _LATENT_STREAM),
        compensator=compensator,
        ema=ema,
    )


def build_compensator(config: RunConfig, discriminator: nn.Module) -> Compensator | None:
    """Attach the method's compensation to a discriminator under spectral normalization."""
    chosen = config.settings.regularization
    authors = {"static": "unit", "dynamic": "keep"}
    scale = authors.get(config.method) if chosen.scale == "authors" else chosen.scale
    only = list(CONVOLUTIONS if chosen.compensate == "convolutions" else DEFAULT_KINDS)
    common: dict[str, Any] = {
        "every": chosen.every, "strength": chosen.strength, "scale": scale, "only": only,
    }  # fmt: skip
    if config.method == "static":
        return static_compensation(discriminator, keep=chosen.keep, **common)
    if config.method == "dynamic":
        return dynamic_compensation(discriminator, start=chosen.start, **common)
    return None


def warn_about(config: RunConfig) -> None:
    """Log what is allowed but hardly meant."""
    training, start = config.settings.training, config.settings.regularization.start
    if config.method == "dynamic" and start >= training.steps * training.d_steps:
        logger.warning(
            "dynamic: the record would begin after %d discriminator steps, the run has %d: it equals sn; lower --start",
            start,
            training.steps * training.d_steps,
        )


def make_evaluator(settings: Settings, source: ImageSource) -> Evaluator:
    """Return the evaluator against real images of the training data, the same for every run."""
    real, _ = source.draw(settings.records.reference, torch.Generator().manual_seed(_REFERENCE_SEED))
    return Evaluator(real, num_samples=settings.records.samples, digits=isinstance(source, StackedDigits))


def sample_images(generator: nn.Module, count: int, *, seed: int = _SAMPLE_SEED, batch: int = 500) -> Tensor:
    """Draw uint8 images (count, C, H, W) from a generator in eval mode; its mode is restored."""
    random = torch.Generator().manual_seed(seed)
    training = generator.training
    generator.eval()
    try:
        with torch.no_grad():
            chunks = []
            for begin in range(0, count, batch):
                z, labels = draw_latent(generator, min(batch, count - begin), random)
                chunks.append(quantize(generator(z) if labels is None else generator(z, labels)).cpu())
    finally:
        generator.train(training)
    return torch.cat(chunks)


def load_sampler(run: RunDirectory) -> tuple[RunConfig, ImageSource, nn.Module]:
    """Return a run's configuration, data and generator (its running average, if it has one) at its checkpoint.

    Raises:
        ValueError: there is no run, or no checkpoint yet.
    """
    config = saved_config(run)
    if config is None:
        raise ValueError(f"{run.path} holds no run (no config.json)")
    if not run.checkpoint.exists():
        raise ValueError(f"{run.path} has no checkpoint yet: train it first")
    source = open_source(config.settings)
    state = build_state(config, source, make_accelerator(config.settings))
    state.load_state_dict(load_checkpoint(run.checkpoint))
    return config, source, state.sampler


def evaluate_run(run: RunDirectory, *, samples: int | None = None) -> Evaluation:
    """Evaluate a run's checkpoint anew, with another number of samples if given."""
    config, source, generator = load_sampler(run)
    evaluator = make_evaluator(config.settings, source)
    if samples is not None:
        evaluator.num_samples = samples
    return evaluator.evaluate(lambda count: sample_images(generator, count))


def save_grid(images: Tensor, path: Path, *, side: int = _GRID, scale: int = 4) -> None:
    """Write side x side images (N, C, H, W), uint8, as one PNG with lines between, each pixel ``scale`` times as large.

    Missing images are left black.
    """
    images = images[: side * side]
    missing = images.new_zeros((side * side - len(images), *images.shape[1:]))
    framed = nn.functional.pad(torch.cat([images, missing]), (1, 0, 1, 0))
    rows = framed.reshape(side, side, *framed.shape[1:]).permute(2, 0, 3, 1, 4)  # (C, side, H, side, W)
    picture = nn.functional.pad(rows.flatten(3).flatten(1, 2), (0, 1, 0, 1))
    picture = picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    array = picture.permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)


class _Recorder:
    """The callback that writes a run's records and checkpoints."""

    def __init__(
        self, config: RunConfig, run: RunDirectory, state: TrainingState, evaluator: Evaluator, progress: Progress
    ) -> None:
        self._every = config.settings.records
        self._run, self._state, self._evaluator, self._progress = run, state, evaluator, progress
        self._before = float((run.read("timing") or {"seconds": 0.0})["seconds"]) if run.checkpoint.exists() else 0.0
        self._began = time.monotonic()
        self._saved = state.step if run.checkpoint.exists() else -1
        if state.step == 0:
            self._spectra()

    def __call__(self, state: TrainingState, losses: dict[str, Tensor]) -> None:
        self._progress(state.step, {})
        if state.step % self._every.log_every == 0:
            record = {"step": state.step} | {name: value.item() for name, value in losses.items()}
            self._run.append("metrics", record)
            self._progress(state.step, record)
        if state.step % self._every.spectra_every == 0:
            self._spectra()
        if self._every.evaluate_every and state.step % self._every.evaluate_every == 0:
            generator = state.sampler
            record = {"step": state.step} | self._evaluator.glance(lambda count: sample_images(generator, count))
            self._run.append("evaluations", record)
            self._progress(state.step, record)
        if state.step % self._every.checkpoint_every == 0:
            self.checkpoint()

    def checkpoint(self) -> None:
        if self._saved == self._state.step:
            return
        save_checkpoint(self._state.state_dict(), self._run.checkpoint)
        self._saved = self._state.step
        self._run.write("timing", {"seconds": round(self._before + time.monotonic() - self._began, 3)})

    def _spectra(self) -> None:
        values = spectra(self._state.discriminator)
        layers = {
            name: [float(f"{value:.{_SPECTRUM_DIGITS}g}") for value in s.flatten().tolist()]
            for name, s in values.items()
            if s.shape[-1] > 1
        }
        self._run.append("spectra", {"step": self._state.step, "layers": layers})


def _finish(
    config: RunConfig, run: RunDirectory, state: TrainingState, evaluator: Evaluator, source: ImageSource
) -> None:
    generator = state.sampler
    evaluation = evaluator.evaluate(lambda count: sample_images(generator, count))
    save_grid(sample_images(generator, _GRID**2), run.image("samples"))
    save_grid(source.draw(_GRID**2, torch.Generator().manual_seed(_REFERENCE_SEED))[0], run.image("data"))
    run.write(
        "result",
        {
            "method": config.method,
            "seed": config.seed,
            "steps": config.settings.training.steps,
            **asdict(evaluation),
            "config": to_dict(config),
        },
    )


def make_accelerator(settings: Settings) -> Accelerator:
    """Return what places networks and data, in a configuration's precision."""
    return Accelerator(mixed_precision="bf16" if settings.precision == "bf16" else "no")


def _environment(accelerator: Accelerator) -> dict[str, Any]:
    return {
        "specreg": specreg.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
    }
