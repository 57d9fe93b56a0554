"""The methods that a discriminator can be trained with: one record each, from which everything else follows.

A record says how a method is called and drawn, what it puts on the discriminator, and which options it has. The
configuration, the command line and its help, the training and, through a run's ``method.json``, the report know a
method from here alone: to add one, add its record.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import specreg
from specreg.names import Scale, State
from specreg.training.config import TrainingConfig

# The command line reads the options before torch is there, which takes seconds: what needs torch is imported where it
# is used, the library's verbs as specreg.VERB.
if TYPE_CHECKING:
    from torch import nn

    from specreg.training.state import TrainingState

_EVIDENCE: dict[str, tuple[State, ...]] = {
    "spectra": ("collapsing", "collapsed"),
    "coverage": ("losing", "never learnt", "lost"),
}
_EVIDENCE["any"] = (*_EVIDENCE["spectra"], *_EVIDENCE["coverage"])


# A method's options are a frozen dataclass whose fields have documentation, and the library's own defaults. Integers
# are at least 1 unless ``config`` says otherwise, which has the ranges of other numbers, too.


@dataclass(frozen=True)
class CompensationOptions:
    """Options of every compensation."""

    every: int = 5
    """Compensate after every so many discriminator steps."""
    scale: Scale = "auto"
    """The stored weight's s1. unit: make it 1; keep: leave it; hold: as at the first compensation; auto: unit where the
    layer is normalized, hold elsewhere."""


@dataclass(frozen=True)
class StaticOptions(CompensationOptions):
    """Options of static compensation."""

    keep: int | float = 0.5
    """A fraction of all singular values r, 1.0 being all; or how many, an integer from 2 on."""


@dataclass(frozen=True)
class DynamicOptions(CompensationOptions):
    """Options of dynamic compensation."""

    start: int = 0
    """Discriminator steps before the record begins."""


@dataclass(frozen=True)
class GuardOptions(StaticOptions):
    """Options of the guard, and of the static compensation that it switches on."""

    every: int = 10
    """Compensate after every so many discriminator steps, once it is on."""
    evidence: Literal["any", "spectra", "coverage"] = "any"
    """What switches it on: a fall of the spectra, modes lost or never learnt, or whichever comes first."""
    roll_back: bool = False
    """Go back to the healthy networks from before the collapse, too."""


@dataclass(frozen=True)
class PenaltyOptions:
    """Options of a penalty."""

    weight: float = 1e-4
    """Weight of the penalty in the discriminator's loss. 1e-4 is Brock et al.'s (2019) for orthogonal, was tried for
    d-optimal, in whose form none is published, and was not tuned for spectral-penalty."""


@dataclass(frozen=True)
class NewtonOptions:
    """Options of orthogonalization by Newton's iteration."""

    iterations: int = 3
    """Newton iterations (3 in its authors' residual networks); 0 is its normalization alone."""


@dataclass(frozen=True)
class Method:
    """A way to control a discriminator's spectra."""

    name: str  # on the command line and in configurations
    title: str  # in tables and figures
    colour: str  # of its lines in figures, #rrggbb; distinct from the others for colour-blind readers, too
    about: str  # what it is, for --help
    options: type | None = None  # the type of its options
    # Puts something on the discriminator, given the options, before the optimizer is made for what it leaves to train.
    normalize: "Callable[[nn.Module, Any], object]" = lambda discriminator, options: specreg.spectral_norm(
        discriminator
    )
    # Gives a training state its compensator, guard or penalty, given the options.
    attach: "Callable[[TrainingState, Any], None]" = lambda state, options: None
    # Says what is allowed but hardly meant, given the options and the training's.
    warnings: Callable[[Any, TrainingConfig], list[str]] = lambda options, training: []

    @property
    def key(self) -> str:
        """Its name as an identifier: the field of :data:`MethodOptions` that holds its options."""
        return self.name.replace("-", "_")

    def chosen(self, methods: "MethodOptions") -> Any:
        """Return its own options among those of all methods."""
        return getattr(methods, self.key, None)


def _compensate(verb: str, state: "TrainingState", options: CompensationOptions) -> None:
    state.compensator = getattr(specreg, verb)(state.discriminator, **vars(options))


def _penalize(verb: str, state: "TrainingState", options: PenaltyOptions) -> None:
    state.penalty = lambda: options.weight * getattr(specreg, verb)(state.discriminator)


def _guard(state: "TrainingState", options: GuardOptions) -> None:
    from specreg.monitor.actions import Pin
    from specreg.training.state import LEARNT

    networks = {name: part for name in LEARNT if (part := getattr(state, name)) is not None}
    state.pin = Pin(networks) if options.roll_back else None
    static = {field.name: getattr(options, field.name) for field in dataclasses.fields(StaticOptions)}
    state.compensator = specreg.Guard(state.monitor, states=_EVIDENCE[options.evidence], pin=state.pin, **static)


def _newton(discriminator: "nn.Module", options: NewtonOptions) -> None:
    from torch.nn import Embedding

    specreg.orthogonalize(discriminator, iterations=options.iterations)
    if any(isinstance(child, Embedding) for child in discriminator.modules()):
        specreg.spectral_norm(discriminator, only=Embedding)


def _late_record(options: DynamicOptions, training: TrainingConfig) -> list[str]:
    length, first = training.steps * training.d_steps, options.start + options.every + 1
    if first <= length:
        return []
    return [
        f"dynamic: it would first compensate at discriminator step {first}, the run has {length}: it equals sn; lower "
        "--dynamic.start"
    ]


def _unbounded(options: None, training: TrainingConfig) -> list[str]:
    from specreg.losses import LOSSES

    if LOSSES[training.loss].differentiates_twice:
        return []
    return [
        f"none: nothing bounds the discriminator's slope with --loss {training.loss}; choose one with a gradient "
        f"penalty, as --loss relativistic-r1r2"
    ]


# In the order of tables and figures.
_RECORDS = (
    Method(
        name="sn",
        title="SN",
        colour="#c44e52",
        about="spectral normalization alone",
    ),
    Method(
        name="static",
        title="static SR",
        colour="#2a6fbb",
        about="sn with static compensation, which raises the first i singular values to the largest",
        options=StaticOptions,
        attach=partial(_compensate, "static_compensation"),
    ),
    Method(
        name="dynamic",
        title="dynamic SR",
        colour="#3a923a",
        about="sn with dynamic compensation, which keeps every ratio at the highest it ever had",
        options=DynamicOptions,
        attach=partial(_compensate, "dynamic_compensation"),
        warnings=_late_record,
    ),
    Method(
        name="guard",
        title="SN, guarded",
        colour="#d9822b",
        about="sn until a collapse begins, then with static compensation",
        options=GuardOptions,
        attach=_guard,
    ),
    Method(
        name="orthogonal",
        title="SN + orthogonality",
        colour="#795548",
        about="sn with the orthogonality penalty",
        options=PenaltyOptions,
        attach=partial(_penalize, "orthogonality_penalty"),
    ),
    Method(
        name="d-optimal",
        title="SN + D-optimal",
        colour="#00838f",
        about="sn with the D-optimal penalty",
        options=PenaltyOptions,
        attach=partial(_penalize, "d_optimal_penalty"),
    ),
    Method(
        name="spectral-penalty",
        title="spectral penalty",
        colour="#b8a400",
        about="plain weights with the penalty that keeps every layer's largest singular value near 1",
        options=PenaltyOptions,
        normalize=lambda discriminator, options: None,
        attach=partial(_penalize, "spectral_penalty"),
    ),
    Method(
        name="oni",
        title="ONI",
        colour="#e377c2",
        about="orthogonalization by Newton's iteration instead of sn",
        options=NewtonOptions,
        normalize=_newton,
    ),
    Method(
        name="none",
        title="no normalization",
        colour="#9e9e9e",
        about="plain weights, for losses with gradient penalties",
        normalize=lambda discriminator, options: None,
        warnings=_unbounded,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _RECORDS}
PAPER_METHODS = ("sn", "static", "dynamic")  # Liu et al. 2019; what a comparison and a preset's cells run by default

if TYPE_CHECKING:
    MethodName = str
    MethodOptions = Any
else:  # tyro and the configuration's checks read these when they run
    MethodName = Literal[tuple(METHODS)]
    MethodOptions = dataclasses.make_dataclass(
        "MethodOptions",
        [
            (
                method.key,
                Annotated[method.options, tyro.conf.arg(help=f"--method {method.name}: {method.about}.")],
                field(default_factory=method.options),
            )
            for method in METHODS.values()
            if method.options is not None
        ],
        frozen=True,
        namespace={
            "__doc__": "The options of all methods, each under its method's name; a run uses its method's.",
            "__module__": __name__,
        },
    )


def described() -> str:
    """Return what the methods are, for ``--help``."""
    return "; ".join(f"{method.name}: {method.about}" for method in METHODS.values()) + "."


def record(name: str) -> dict[str, Any]:
    """Return what a run's ``method.json`` says of its method to the report."""
    method = METHODS[name]
    return {"name": name, "title": method.title, "colour": method.colour, "order": list(METHODS).index(name)}
