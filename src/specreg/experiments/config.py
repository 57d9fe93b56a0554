"""A run's full configuration: frozen dataclasses, JSON in and out, unknown keys refused."""

import dataclasses
import functools
import math
import os
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.conf import OmitArgPrefixes

from specreg.experiments.methods import MethodName, MethodOptions, described
from specreg.files import exists
from specreg.monitor.detector import Thresholds
from specreg.names import (
    BUILT_IN_DATA,
    LARGEST_INTEGER,
    FeatureName,
    ReferenceSplit,
    Split,
    checked_keep,
    flat,
    integer,
)
from specreg.training.config import TrainingConfig

Features = Literal["auto", FeatureName]
_LARGEST = 1e300  # of a number; NaN and inf are beyond it, too
LAST_SEED = 2**32 - 1  # that numpy takes
FEWEST_SAMPLES = 10  # of either kind in an evaluation: 5 neighbours and 10 splits need as many
REFERENCE_SEED = 3_000_017  # every run is evaluated on the same real samples
_MOST_BETWEEN, _LEAST_BETWEEN = 250, 50  # iterations between two readings of coverage


@dataclass(frozen=True)
class DataConfig:
    """What the networks are trained on."""

    data: str = "digits"
    """digits; a folder or zip of images with classes as folders; an npz file; CIFAR-10, CIFAR-100, STL-10 or MNIST as
    published, in a folder or a .tar.gz; a folder of Hugging Face's save_to_disk; or Gaussians in the plane: ring, grid
    (PacGAN's protocol), ring-self-conditioned, grid-self-conditioned."""
    image_size: int | None = None
    """Crop to the central square and resize to this side."""
    conditional: bool = False
    """Use the classes: class-conditional batch normalization and projection."""
    data_split: Split = "train"
    """The part to train on; unlabeled is STL-10's, at the paper's --image-size 48."""
    stacked: bool = False
    """Stack three grey images of ten classes as red, green and blue: 1000 modes (Stacked MNIST)."""
    stacked_size: int | None = None
    """Stack so many images once and for all (128000 is published) instead of new ones for every batch."""
    cache: str | None = None
    """Folder for decoded images of folders, zips, STL-10 and Hugging Face sets, which are mapped from there instead of
    being held in memory."""


@dataclass(frozen=True)
class ModelConfig:
    """The two networks."""

    d_channels: int = 8
    """Base width of the discriminator (the paper's "ch")."""
    g_channels: int = 32
    """Base width of the generator."""
    latent: int = 128
    """Dimension of the latent vector z."""
    network: Literal["auto", "resnet", "dcgan", "unrolled", "mlp"] = "auto"
    """resnet: like SN-GAN's, sides 8, 16, 32, 48, 64 and 128; dcgan: sides 28 and 32, not conditional; unrolled: the
    small DCGAN of Metz et al. 2017, side 28; mlp: for points, layers 16 times as wide as the channels; auto: what fits
    the data, resnet before dcgan."""


@dataclass(frozen=True)
class RecordConfig:
    """What is written down, and how often, in generator steps."""

    log_every: int = 50
    """Losses."""
    spectra_every: int = 100
    """Singular values of every layer of the discriminator, and the verdict; at the end, too."""
    evaluate_every: int = 500
    """Metrics; at the end, too, and with 0 there alone."""
    checkpoint_every: int = 500
    """Checkpoints."""
    samples: int = 5000
    """Generated images in an evaluation, at least 10."""
    reference: int = 10000
    """Real images in an evaluation, at least 10; all there are, if they are fewer."""
    reference_split: ReferenceSplit = "train"
    """Part of the data that generated images are compared with: what was trained on, or the held-out part."""
    features: Features = "auto"
    """Features that images are compared in; auto: what the data suggest, digits (--data digits), mnist (28x28, stacked,
    if it recognizes the images) or pixels."""
    inception_weights: str | None = None
    """File of torch-fidelity's Inception weights; by default where torch-fidelity keeps them. Never downloaded."""
    tensorboard: bool = True
    """Losses, metrics, spectra and verdicts for TensorBoard, too, in the run's folder tensorboard."""

    @property
    def coverage_every(self) -> int:
        """The iterations between readings of coverage: at each evaluation, and in equal parts between them if need be.

        Each is made at the next snapshot of the spectra, which need not be an evaluation's step. Parts have 50 to 250
        iterations and divide 250 if they can; where none fit, as of a prime number, readings are 250 apart.
        """
        if self.evaluate_every <= _MOST_BETWEEN:
            return self.evaluate_every or _MOST_BETWEEN
        if (common := math.gcd(self.evaluate_every, _MOST_BETWEEN)) >= _LEAST_BETWEEN:
            return common
        parts = range(_LEAST_BETWEEN, _MOST_BETWEEN + 1)
        return max((part for part in parts if self.evaluate_every % part == 0), default=_MOST_BETWEEN)


@dataclass(frozen=True)
class Settings:
    """What runs that are compared with each other have in common."""

    # A part whose options have no name in front has a box of its own in the help.

    data: OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    model: OmitArgPrefixes[ModelConfig] = field(default_factory=ModelConfig)
    training: OmitArgPrefixes[TrainingConfig] = field(default_factory=TrainingConfig)
    methods: Annotated[MethodOptions, tyro.conf.arg(name="")] = field(default_factory=MethodOptions)
    records: OmitArgPrefixes[RecordConfig] = field(default_factory=RecordConfig)
    detector: Thresholds = field(default_factory=Thresholds)
    """The collapse detector's constants."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 computes the networks in mixed precision; weights and spectra stay float32."""
    compile: bool = False
    """Compile both networks (torch.compile); pays off in long runs."""
    stop_on_collapse: bool = False
    """End the training when modes are lost, or spectra have collapsed and coverage is not healthy; the run is evaluated
    as it is then."""

    @property
    def ends_on_schedule(self) -> bool:
        """Whether what is read at the end of a training would be read there, too, if it went on."""
        records = self.records
        schedules = (records.evaluate_every, records.spectra_every, records.coverage_every)
        return records.evaluate_every > 0 and all(self.training.steps % schedule == 0 for schedule in schedules)

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.compile:
            from specreg.losses import LOSSES

            if LOSSES[self.training.loss].differentiates_twice:
                raise ValueError(
                    f"compile cannot differentiate twice, as the penalty of loss {self.training.loss} needs"
                )


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    method: Annotated[MethodName, tyro.conf.arg(help=described())] = "static"
    seed: int = 0
    """Initialization, data and latent vectors; runs of several methods with one seed start alike."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)

    def __post_init__(self) -> None:
        _check_fields(self)


T = TypeVar("T", RunConfig, Settings)


def from_dict(kind: type[T], values: Any, prefix: str = "") -> T:
    """Rebuild a configuration from the values of ``dataclasses.asdict``; ValueError names what is wrong.

    ``prefix`` stands before the names of keys, where it is a part of another one.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'a configuration'} must be an object with keys, got {values!r:.60}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(map(str, values)) - set(hints)):
        raise ValueError(
            f"unknown key {prefix + unknown[0]!r}; the keys are {', '.join(prefix + key for key in hints)}"
        )
    return kind(
        **{
            key: from_dict(hints[key], value, f"{prefix}{key}.") if dataclasses.is_dataclass(hints[key]) else value
            for key, value in values.items()
        }
    )


def differences(before: T, after: T) -> list[str]:
    """Return "key old -> new" for every key in which two configurations differ, with its owner where others have it."""
    old, new = flat(dataclasses.asdict(before)), flat(dataclasses.asdict(after))
    ends = Counter(key.rpartition(".")[2] for key in old)
    parts = {key: key.split(".") for key in old if old[key] != new[key] and not _is_moved(key, old[key], new[key])}
    names = {key: ".".join(part[-1 if ends[part[-1]] == 1 else -2 :]) for key, part in parts.items()}
    return [f"{name} {old[key]!r} -> {new[key]!r}" for key, name in names.items()]


def _is_moved(key: str, old: str, new: str) -> bool:
    """Tell whether two paths may be of the same data: one place, or the old one is there no more."""
    if not key.endswith("data.data") or not old or not new or {old, new}.intersection(BUILT_IN_DATA):
        return False
    # Where a relative path led to when it was given is not known.
    return os.path.realpath(old) == os.path.realpath(new) or (os.path.isabs(old) and not exists(Path(old)))


def refusal(before: T, after: T) -> str:
    """Return in what two configurations differ; "" if only in more steps, to which the first one's training can go on.

    Where the steps alone differ, but not so, it says why these would not do.
    """
    changed, old, new = differences(before, after), _training(before), _training(after)
    if len(changed) != 1 or old.steps == new.steps:
        return "; ".join(changed)
    if new.steps < old.steps:
        return f"{changed[0]}: steps can only grow"
    return f"{changed[0]}: the learning rates decay to 0 over the old ones" if old.lr_decay != "none" else ""


def _training(config: RunConfig | Settings) -> TrainingConfig:
    return (config.settings if isinstance(config, RunConfig) else config).training


_types = functools.cache(typing.get_type_hints)

# Every integer is at least 1 but these; 0 is none or never.
_AT_LEAST = {
    **dict.fromkeys(("seed", "evaluate_every", "warmup", "start", "iterations"), 0),
    **dict.fromkeys(("samples", "reference"), FEWEST_SAMPLES),
}
# What is beyond these is a slip, and would fill the memory before anything could say so.
_AT_MOST = {
    "seed": LAST_SEED, "image_size": 4096, "stacked_size": 10**7, "d_channels": 4096, "g_channels": 4096,
    "latent": 10**5, "batch_size": 2**16, "generator_batch": 64, "accumulate": 2**16, "samples": 10**7,
    "reference": 10**7, "iterations": 1000,
}  # fmt: skip
# What other numbers have to do, in words, and what tells that they do.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("d_lr", "g_lr"), ("be positive", lambda value: value > 0)),
    **dict.fromkeys(("beta1", "beta2", "ema_decay"), ("lie in [0, 1)", lambda value: 0 <= value < 1)),
    **dict.fromkeys(("gamma", "weight"), ("be at least 0", lambda value: value >= 0)),
}


def _check_fields(part: Any) -> None:
    """Raise ValueError naming the first field whose value its type does not have, or that is out of bounds."""
    for name, hint in _types(part.__class__).items():
        value = getattr(part, name)
        if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
            _check_fields(value)
        elif not _fits(value, hint):
            raise ValueError(f"{name} must be {_described(hint)}, got {value!r:.60}")
        elif hint in (int, int | None) and value is not None:
            integer(name, value, at_least=_AT_LEAST.get(name, 1), at_most=_AT_MOST.get(name, LARGEST_INTEGER))
        elif name == "keep":
            checked_keep(value)
        elif name in _RANGES:
            words, fits = _RANGES[name]
            if not fits(value):
                raise ValueError(f"{name} must {words}, got {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _described(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_described, typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string", type(None): "null"}
    return words.get(hint, f"a {getattr(hint, '__name__', hint)}")
