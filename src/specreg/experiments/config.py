"""A run's full configuration: frozen dataclasses, JSON in and out, unknown keys refused."""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import tyro

from specreg.evaluation.extractor import FeatureName
from specreg.losses import LOSSES
from specreg.monitor.detector import Thresholds
from specreg.names import LARGEST_INTEGER, Split, integer
from specreg.regularizers.compensators import Scale
from specreg.spectra.reference import checked_keep
from specreg.training.loop import TrainingConfig

Method = Literal["sn", "static", "dynamic", "anchored", "guard", "orthogonal", "d-optimal", "oni", "none"]
Features = Literal["auto", FeatureName]
METHODS: tuple[Method, ...] = typing.get_args(Method)
_LARGEST = 1e300  # of a number; NaN and inf are beyond it, too
LAST_SEED = 2**32 - 1  # that numpy takes
FEWEST_SAMPLES = 10  # of either kind in an evaluation: 5 neighbours and 10 splits need as many
# What specreg compare runs unless told otherwise: the paper's methods.
PAPER_METHODS: tuple[Method, ...] = ("sn", "static", "dynamic")


@dataclass(frozen=True)
class RegularizationConfig:
    """How the discriminator's spectra are controlled; every method but oni and none has spectral normalization."""

    keep: int | float | Literal["auto"] = 0.5
    """static, also as the guard's scheme: i as a fraction of r, i itself as an integer, or auto: the stable rank at the
    first compensation, under the guard of the healthy spectrum."""
    start: int = 2000
    """dynamic, anchored: discriminator steps before the record begins."""
    window: int = 1000
    """anchored: discriminator steps that the record is averaged over."""
    guard: Literal["static", "anchored", "dynamic"] = "static"
    """guard: the scheme that is switched on when a collapse begins."""
    guard_every: int = 10
    """guard: compensate after every so many discriminator steps, once it is on."""
    roll_back: bool = False
    """guard: go back to the healthy networks from before the collapse, too."""
    every: int = 5
    """Compensate after every so many discriminator steps."""
    strength: float = 1.0
    """How far singular values move to their target; 1 is the paper."""
    scale: Scale = "auto"
    """The stored weight's s1. unit: make it 1; keep: leave it; hold: as at the first compensation; auto: unit where the
    layer is normalized, keep elsewhere."""
    penalty_weight: float | None = None
    """orthogonal, d-optimal: weight of the penalty in the discriminator's loss; None: 1e-4 (Brock et al. 2019 for
    orthogonal; tried for d-optimal, in whose form none is published)."""
    newton_iterations: int = 3
    """oni: Newton iterations (3 in its authors' residual networks); 0 is its normalization alone."""


@dataclass(frozen=True)
class DataConfig:
    """What the networks are trained on."""

    data: str = "digits"
    """digits; a folder or zip of images with classes as folders; an npz file; CIFAR-10, CIFAR-100, STL-10 or MNIST as
    published, in a folder or a .tar.gz; or Gaussians in the plane: ring, grid (PacGAN's protocol),
    ring-self-conditioned, grid-self-conditioned."""
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
    """Folder for decoded images, which are mapped from there instead of being held in memory."""


@dataclass(frozen=True)
class ModelConfig:
    """The two networks."""

    d_channels: int = 8
    """Base width of the discriminator (the paper's "ch")."""
    g_channels: int = 32
    """Base width of the generator."""
    latent: int = 128
    """Dimension of the latent vector z."""
    network: Literal["auto", "resnet", "dcgan", "mlp"] = "auto"
    """resnet: SN-GAN's, sides 8 to 128; dcgan: sides 28 and 32; mlp: for points, layers 16 times as wide as the
    channels; auto: what fits the data, resnet before dcgan."""


@dataclass(frozen=True)
class RecordConfig:
    """What is written down, and how often, in generator steps."""

    log_every: int = 50
    """Losses."""
    spectra_every: int = 100
    """Singular values of every layer of the discriminator, and the collapse detector's verdict."""
    evaluate_every: int = 500
    """Metrics during training; 0 is only at the end."""
    checkpoint_every: int = 500
    """Checkpoints."""
    samples: int = 5000
    """Generated images in an evaluation, at least 10."""
    reference: int = 10000
    """Real images in an evaluation, at least 10; all there are, if they are fewer."""
    reference_split: Literal["train", "test"] = "train"
    """Part of the data that generated images are compared with: what was trained on, or the held-out part."""
    features: Features = "auto"
    """Features that images are compared in; auto: what the data suggest, digits (8x8, stacked), mnist (28x28, stacked,
    if it recognizes the images) or pixels."""
    inception_weights: str | None = None
    """File of torch-fidelity's Inception weights; by default where torch-fidelity keeps them. Never downloaded."""
    tensorboard: bool = True
    """Losses, metrics, spectra and verdicts for TensorBoard, too, in the run's folder tensorboard."""


@dataclass(frozen=True)
class Settings:
    """What runs that are compared with each other have in common."""

    regularization: Annotated[RegularizationConfig, tyro.conf.arg(name="")] = field(
        default_factory=RegularizationConfig
    )
    data: Annotated[DataConfig, tyro.conf.arg(name="")] = field(default_factory=DataConfig)
    model: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    records: Annotated[RecordConfig, tyro.conf.arg(name="")] = field(default_factory=RecordConfig)
    detector: Thresholds = field(default_factory=Thresholds)
    """The collapse detector's constants."""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 computes the networks in mixed precision; weights and spectra stay float32."""
    compile: bool = False
    """Compile both networks (torch.compile); pays off in long runs."""
    stop_on_collapse: bool = False
    """End the training when the discriminator's spectra have collapsed; the run is evaluated as it is then."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class RunConfig:
    """One training run."""

    method: Method = "static"
    """sn: spectral normalization alone; static, dynamic, anchored: with that compensation; guard: sn until the spectra
    begin to collapse; orthogonal, d-optimal: sn with that penalty; oni: orthogonalization by Newton's iteration instead
    of sn; none: plain weights, for losses with gradient penalties."""
    seed: int = 0
    """Initialization, data and latent vectors; runs of several methods with one seed start alike."""
    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)

    def __post_init__(self) -> None:
        _check_types(self)
        integer("seed", self.seed, at_least=0, at_most=LAST_SEED)


T = TypeVar("T", RunConfig, Settings)


def to_dict(config: RunConfig | Settings) -> dict[str, Any]:
    """Return the configuration as nested plain values, for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Rebuild a configuration from :func:`to_dict`.

    Raises:
        ValueError: an unknown key, or a value out of range or of another type; names it.
    """
    return typing.cast(T, _build(kind, values, ""))


def differences(before: T, after: T) -> list[str]:
    """Return "key old -> new" for every key in which two configurations differ."""
    old, new = _flat(to_dict(before)), _flat(to_dict(after))
    return [f"{key} {old[key]!r} -> {new[key]!r}" for key in old if old[key] != new[key]]


def _build(kind: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'a configuration'} must be an object with keys, got {values!r:.60}")
    hints = _types(kind)
    if unknown := sorted(set(map(str, values)) - set(hints)):
        raise ValueError(
            f"unknown key {prefix + unknown[0]!r}; the keys are {', '.join(prefix + key for key in hints)}"
        )
    return kind(
        **{
            key: _build(hints[key], value, f"{prefix}{key}.") if dataclasses.is_dataclass(hints[key]) else value
            for key, value in values.items()
        }
    )


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return flat


# What is beyond these is a slip, and would fill the memory before anything could say so.
_FROM_ONE_TO: dict[str, dict[str, int]] = {
    "regularization": {"every": LARGEST_INTEGER, "window": LARGEST_INTEGER, "guard_every": LARGEST_INTEGER},
    "data": {"image_size": 4096, "stacked_size": 10**7},
    "model": {"d_channels": 4096, "g_channels": 4096, "latent": 10**5},
    "training": {
        "steps": LARGEST_INTEGER, "batch_size": 2**16, "generator_batch": 64, "accumulate": 2**16,
        "d_steps": LARGEST_INTEGER,
    },
    "records": dict.fromkeys(("log_every", "spectra_every", "checkpoint_every"), LARGEST_INTEGER),
}  # fmt: skip
_MOST_SAMPLES = 10**7
_MOST_ITERATIONS = 1000  # of Newton's method, which has converged long before


def _check(settings: Settings) -> None:
    _check_types(settings)
    for part, limits in _FROM_ONE_TO.items():
        for name, limit in limits.items():
            if (value := getattr(getattr(settings, part), name)) is not None:  # None is for those that may be left out
                integer(name, value, at_least=1, at_most=limit)
    _check_records(settings.records)
    integer("start", settings.regularization.start, at_least=0)
    integer("newton_iterations", settings.regularization.newton_iterations, at_least=0, at_most=_MOST_ITERATIONS)
    loss = LOSSES[settings.training.loss]
    if settings.compile and (loss.gradient_penalty or loss.r1 or loss.r2):
        raise ValueError(f"compile cannot differentiate twice, as the penalty of loss {settings.training.loss} needs")
    if settings.regularization.keep != "auto":
        checked_keep(settings.regularization.keep)
    for name in ("d_lr", "g_lr"):
        if not 0 < getattr(settings.training, name) < float("inf"):
            raise ValueError(f"{name} must be positive, got {getattr(settings.training, name)!r}")
    for name, weight in (
        ("gamma", settings.training.gamma), ("penalty_weight", settings.regularization.penalty_weight),
    ):  # fmt: skip
        if weight is not None and not 0 <= weight < float("inf"):
            raise ValueError(f"{name} must be at least 0 and finite, got {weight!r}")
    for name in ("beta1", "beta2", "ema_decay"):
        if not 0 <= getattr(settings.training, name) < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {getattr(settings.training, name)!r}")
    if not 0 <= settings.regularization.strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {settings.regularization.strength!r}")


def _check_types(part: Any) -> None:
    """Raise ValueError naming the first field whose value is not of the type that the field is declared with."""
    for name, hint in _types(part.__class__).items():
        value = getattr(part, name)
        if dataclasses.is_dataclass(hint) and isinstance(value, typing.cast(type, hint)):
            _check_types(value)
        elif not _fits(value, hint):
            raise ValueError(f"{name} must be {_described(hint)}, got {value!r:.60}")


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


def _check_records(records: RecordConfig) -> None:
    for name in ("samples", "reference"):
        integer(name, getattr(records, name), at_least=FEWEST_SAMPLES, at_most=_MOST_SAMPLES)
    integer("evaluate_every", records.evaluate_every, at_least=0)
