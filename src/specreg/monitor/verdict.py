"""What the detector says: records of states and numbers, and their words."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from specreg.names import ALARMS, QUESTIONS, SPECTRAL, STATES, State, shown


@dataclass(frozen=True)
class Evidence:
    """The numbers behind the verdict on one layer.

    Attributes:
        state: of this layer.
        since: the last iteration at which the bulk was at its old level, or, recovered, that of the recovery; None for
            a steady layer.
        before: the bulk that it had then (steady: the highest within the windows).
        now: the bulk, the median of the last snapshots (``Thresholds.smoothing``, three by default).
        confidence: z²/(1 + z²) with z the fall over the mean change between snapshots: 0.5 for a fall as large as that,
            near 1 for one far beyond it; a score, and no probability, because many snapshots are seen; 0 if steady.
        judged: the layer's warm-up is over; until then it is "steady".
    """

    state: State
    since: int | None
    before: float
    now: float
    confidence: float
    judged: bool = True


@dataclass(frozen=True)
class Answer:
    """The answer to one question about a training.

    Attributes:
        state: one of ``specreg.names.STATES``; "not measured" where there is no evidence, "teaching" of a discriminator
            whose signal reaches the generator.
        since: the iteration at which what it says began; None where it has always been so.
        message: both in one line.
    """

    state: State
    since: int | None
    message: str


UNASKED = Answer("not measured", None, "not measured")


@dataclass(frozen=True)
class Verdict:
    """The state of a training at one iteration.

    Attributes:
        iteration: of the newest snapshot.
        state: the gravest of the three answers. Spectra that fall while the coverage of the data is healthy are a
            "warning". "healthy" is said where coverage was measured, "steady" where the spectra alone speak.
        since: the iteration at which that began; None if it has always been so.
        layers: the names of the layers in the spectra's gravest state; empty if these are steady.
        confidence: the highest among these layers, in [0, 1].
        changed: the state differs from that of the verdict before, or an answer has become an alarm. Of spectra alone
            the end of the warm-up is no such change.
        message: all of this in one line.
        evidence: the numbers, layer by layer.
        spectra: do they fall? "not judged", "steady", "recovered", "collapsing" or "collapsed".
        coverage: does the generator produce all of the data? "not measured", "not judged", "healthy", "recovered",
            "losing", "lost" or "never learnt".
        signal: does the discriminator still teach? "not measured", "not judged", "teaching" or "dead".
        groups: name -> the verdict on this group of layers alone; "" where everything is one group.
        entered: what of ``states`` the verdict before did not have.

    Example:
        >>> import specreg
        >>> verdict = specreg.Detector().update(1, {"conv": [1.0, 0.9, 0.8, 0.7]})
        >>> verdict.state, verdict.judged, verdict.alarming
        ('not judged', False, False)
        >>> verdict.evidence["conv"].now, verdict.coverage.state  # the bulk, s_2/s_1 of four values; no samples
        (0.9, 'not measured')
    """

    iteration: int
    state: State
    since: int | None
    layers: tuple[str, ...]
    confidence: float
    changed: bool
    message: str
    evidence: Mapping[str, Evidence] = field(repr=False)
    spectra: Answer
    coverage: Answer = UNASKED
    signal: Answer = UNASKED
    groups: Mapping[str, "Verdict"] = field(default_factory=dict, repr=False)
    entered: frozenset[State] = field(default=frozenset(), repr=False)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The answers that say something, the gravest first, the spectra's in the light of the coverage's.

        Their fall alone, no mode being lost, is a warning; that they are steady does not hide that coverage is not
        judged.
        """
        spectra, coverage = self.spectra, self.coverage
        if spectra.state in ("collapsing", "collapsed") and coverage.state in ("healthy", "recovered"):
            spectra = replace(spectra, state="warning")
        elif spectra.state == "steady" and coverage.state == "not judged":
            spectra = replace(spectra, state="not judged", since=coverage.since)
        told = (each for each in (spectra, coverage, self.signal) if each.state not in ("not measured", "teaching"))
        return tuple(sorted(told, key=lambda answer: STATES.index(answer.state), reverse=True))

    @property
    def states(self) -> frozenset[State]:
        """The state, and every answer's that is an alarm: a graver one does not hide it from who waits for it."""
        answers = self.answers
        return frozenset((answers[0].state, *(answer.state for answer in answers if answer.state in ALARMS)))

    @property
    def alarming(self) -> bool:
        """Whether the state is one of ``specreg.names.ALARMS``: neither mild nor a warning."""
        return self.state in ALARMS

    @property
    def judged(self) -> bool:
        """Whether anything could be said: a warm-up is over, coverage was judged, or the discriminator is dead."""
        return self.state != "not judged"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; of the layers only those that are not steady, of groups only several."""
        apart = ("evidence", "groups", "entered", *QUESTIONS)
        values = {key: value for key, value in vars(self).items() if key not in apart}
        values |= {name: asdict(getattr(self, name)) for name in QUESTIONS}
        if len(self.groups) > 1:
            kept = ("state", "since", "confidence", "changed", "message")
            values["groups"] = {name: {key: getattr(each, key) for key in kept} for name, each in self.groups.items()}
        unwell = {name: asdict(evidence) for name, evidence in self.evidence.items() if evidence.state != "steady"}
        return values | {"layers": list(self.layers), "evidence": unwell}

    def unchanged(self) -> "Verdict":
        """Return the same verdict, told again: ``changed`` is False."""
        groups = {name: each.unchanged() for name, each in self.groups.items()}
        return replace(self, changed=False, entered=frozenset(), groups=groups)


def combined(verdict: Verdict, coverage: Answer, signal: Answer, before: Collection[State]) -> Verdict:
    """Return a verdict on the spectra with the two other answers, after one whose answers said ``before``."""
    whole = replace(verdict, coverage=coverage, signal=signal)
    answers, entered = whole.answers, whole.states.difference(before)
    state, text = answers[0].state, "; ".join(answer.message for answer in answers)
    return replace(
        whole,
        state=state,
        since=answers[0].since,
        changed=state != max(before, key=STATES.index) or not entered.isdisjoint(ALARMS),
        message=f"warning, {text}" if state == "warning" else text,
        entered=entered,
    )


def gravest(evidence: Mapping[str, Evidence]) -> tuple[State, int | None, tuple[str, ...]]:
    """Return the gravest state of some layers, since when, and the layers that are in it, the most fallen first."""
    state: State = max((layer.state for layer in evidence.values()), key=STATES.index, default="steady")
    affected = {name: layer for name, layer in evidence.items() if layer.state == state != "steady"}
    ordered = sorted(affected, key=lambda name: affected[name].now / affected[name].before)
    since = min((layer.since for layer in affected.values() if layer.since is not None), default=None)
    return state, since, tuple(ordered)


def message(
    state: State, since: int | None, names: Sequence[str], evidence: Mapping[str, Evidence], where: str = ""
) -> str:
    """Return a state's message; ``where`` names the group of the layers."""
    if state == "steady":
        return f"steady: no layer's spectrum falls fast or far ({_watched(evidence)})"
    worst, first = evidence[names[0]], shown(names[0])
    rest = f" and {len(names) - 1} more of {len(evidence)} layers" if len(names) > 1 else f" (1 of {len(evidence)})"
    if state == "recovered":
        return f"recovered{where} at iteration {since}: the bulk of s_k/s_1 is back at {worst.now:.2f} in {first}{rest}"
    return (
        f"{state}{where} since iteration {since}: the bulk of s_k/s_1 fell from {worst.before:.2f} to {worst.now:.2f} "
        f"in {first}{rest}; confidence {worst.confidence:.2f}"
    )


def message_of_groups(whole: Verdict, groups: Mapping[str, Verdict]) -> str:
    """Return the message on the whole: of several groups the worst in full, and the others by name."""
    if len(groups) < 2 or not whole.judged:
        return whole.message
    if whole.state == "steady":
        return f"steady: no layer's spectrum falls fast or far ({_watched(whole.evidence)}, {len(groups)} groups)"
    worst = next((group for group, each in groups.items() if whole.layers[0] in each.evidence), None)
    if worst is None:  # a layer that is no longer in the stream
        return whole.message
    titles = {group: group or "the other layers" for group in groups}
    others: dict[State, list[str]] = {state: [] for state in reversed(SPECTRAL[2:])}
    for group, each in groups.items():
        if group != worst and each.state not in ("steady", "not judged"):
            others[each.state].append(titles[group])
    also = "".join(f"; also {state}: {', '.join(names)}" for state, names in others.items() if names)
    verdict = groups[worst]
    return message(verdict.state, verdict.since, verdict.layers, verdict.evidence, f" in {titles[worst]}") + also


def _watched(evidence: Mapping[str, Evidence]) -> str:
    num_early = sum(not layer.judged for layer in evidence.values())
    # One singular value alone makes no ratio.
    return f"{len(evidence)} of rank > 1 watched" + (f", {num_early} of them not judged yet" if num_early else "")
