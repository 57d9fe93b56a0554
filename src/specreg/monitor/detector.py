r"""Tell spectral collapse from healthy drift: a pure function of a stream of spectra, no module and no tensor in it.

Healthy trainings drift too (Liu et al. 2019, figures 1 to 4), so no level of :math:`s_k/s_1` means collapse. What does
is a layer's *bulk*, the mean of :math:`s_k/s_1` over the upper half of its spectrum, falling fast or far against its
own past. Every layer is judged with hysteresis, and the worst one gives the verdict. A fall that most layers share
needs to be less deep than that of one layer: the published collapses are seen in every layer.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from specreg.names import bulk_range

State = Literal["healthy", "collapsing", "collapsed", "recovered"]
# From the mildest to the gravest: what the whole is said to be when its layers differ.
SEVERITY: tuple[State, ...] = ("healthy", "recovered", "collapsing", "collapsed")
# A fall begins where the bulk was last at this part of its old level.
_NEAR = 0.9


@dataclass(frozen=True)
class Evidence:
    """The numbers behind the verdict on one layer.

    Attributes:
        state: of this layer.
        since: the last iteration at which the bulk was at its old level, or, recovered, that of the recovery; None for
            a healthy layer.
        before: the bulk that it had then (healthy: the highest within the window).
        now: the bulk, the median of the last snapshots (``Thresholds.smoothing``, three by default).
        confidence: that the fall is none of the layer's own noise, z²/(1 + z²) with z the fall over the noise of one
            snapshot (Cantelli's inequality, which asks nothing of the distribution); 0 for a healthy layer.
    """

    state: State
    since: int | None
    before: float
    now: float
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """What the detector says at one iteration.

    Attributes:
        iteration: of the newest snapshot.
        state: the gravest state of any layer: "collapsed", "collapsing", "recovered" or "healthy".
        since: the earliest iteration at which a layer of that state left its old level; None if healthy.
        layers: the names of the layers in that state; empty if healthy.
        confidence: the highest among these layers, in [0, 1].
        changed: the state differs from that of the verdict before.
        message: all of this in one line.
        evidence: the numbers, layer by layer.
        samples: what the generated samples say, where they were asked (a :class:`specreg.monitor.samples.Diversity`).
    """

    iteration: int
    state: State
    since: int | None
    layers: tuple[str, ...]
    confidence: float
    changed: bool
    message: str
    evidence: Mapping[str, Evidence] = field(repr=False)
    samples: Any = None

    @property
    def alarming(self) -> bool:
        """Whether the state is "collapsing" or "collapsed"."""
        return self.state in ("collapsing", "collapsed")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; of the layers only those that are not healthy."""
        values = {key: value for key, value in vars(self).items() if key not in ("evidence", "samples")}
        if self.samples is not None:
            values["samples"] = asdict(self.samples)
        unwell = {name: asdict(one) for name, one in self.evidence.items() if one.state != "healthy"}
        return values | {"layers": list(self.layers), "evidence": unwell}


@dataclass(frozen=True)
class Thresholds:
    """The detector's constants; docs/monitor.md tells how they were chosen and what they do.

    Attributes:
        warmup: iterations that are not judged, from when the spectra first move: networks leave their initialization
            fast and in every training.
        window: iterations within which a fall counts as fast.
        fast: part of the highest bulk within the window that has to be lost for "collapsing".
        together: the same, where at least half of the layers (of three or more) have lost that much.
        far: part of the highest bulk since the warm-up that has to be lost for "collapsing", however slowly, and lost
            for a whole window: a dip at the end of a long drift is none.
        collapsed: part of the bulk before the fall that has to be lost for "collapsed".
        regained: part of what was lost that has to come back for "recovered".
        patience: consecutive snapshots that have to agree.
        smoothing: snapshots whose median is judged. 1 suits a few snapshots far apart, of which each one counts.
    """

    warmup: int = 500
    window: int = 1000
    fast: float = 0.35
    together: float = 0.175
    far: float = 0.5
    collapsed: float = 0.5
    regained: float = 0.4
    patience: int = 1
    smoothing: int = 3

    def __post_init__(self) -> None:
        for name in ("warmup", "window", "patience", "smoothing"):
            value, least = getattr(self, name), 0 if name == "warmup" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")
        for name in ("fast", "together", "far", "collapsed", "regained"):
            if not isinstance(value := getattr(self, name), int | float) or not 0 < value < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {value!r:.60}")
        if self.collapsed < self.fast:
            raise ValueError(f"collapsed must be at least fast ({self.fast}), got {self.collapsed}")


class Detector:
    """Judge a stream of spectra.

    Args:
        thresholds: its constants.

    Example:
        >>> detector = Detector(Thresholds(warmup=0))
        >>> for iteration in range(0, 5000, 100):
        ...     level = 0.9 if iteration < 4000 else 0.3
        ...     verdict = detector.update(iteration, {"conv": [1.0] + [level] * 7})
        >>> verdict.state, verdict.since, verdict.layers
        ('collapsed', 3900, ('conv',))
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._layers: dict[str, _LayerTrack] = {}
        self._begin: int | None = None
        self._last: int | None = None
        self._state: State = "healthy"

    def update(self, iteration: int, singular_values: Mapping[str, Any]) -> Verdict:
        """Take one snapshot and judge.

        Args:
            iteration: of the training, growing from call to call.
            singular_values: layer name -> singular values, descending, a sequence of numbers or a tensor, shape (r,)
                or (groups, r). Layers with r = 1 have no bulk and are left out; so are layers of zeros.

        Raises:
            ValueError: the iteration does not grow, there is no layer, one has no values, or a value is not finite;
                nothing is changed.
        """
        if self._last is not None and iteration <= self._last:
            raise ValueError(f"iterations must grow: got {iteration} after {self._last}")
        if not singular_values:
            raise ValueError("no layers: singular_values is empty")
        bulks = {name: bulk for name, s in singular_values.items() if (bulk := _bulk(name, s)) is not None}
        self._last = iteration
        if self._begin is None or (not self._judges(iteration) and self._stands_still(bulks)):
            self._begin, self._layers = iteration, {}
        for name, bulk in bulks.items():
            self._layers.setdefault(name, _LayerTrack.empty(self.thresholds)).observe(bulk)
        if self._judges(iteration):
            falls = [self._layers[name].fall(iteration, self.thresholds) for name in bulks]
            shared = len(falls) > 2 and statistics.median(falls) >= self.thresholds.together
            for name in bulks:
                self._layers[name].judge(iteration, self.thresholds, shared=shared)
        verdict = self._verdict(iteration, self._state)
        self._state = verdict.state
        return verdict

    @property
    def begin(self) -> int | None:
        """The iteration that the warm-up counts from; None before the first snapshot."""
        return self._begin

    def verdict(self) -> Verdict | None:
        """Return the newest verdict again, unchanged; None before the first."""
        return None if self._last is None else self._verdict(self._last, self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers, strings, lists and dicts; it belongs into the checkpoint."""
        return {
            "begin": self._begin,
            "last": self._last,
            "state": self._state,
            "layers": {name: track.state_dict() for name, track in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: it is no detector's state; nothing is changed.
        """
        if set(state) != {"begin", "last", "state", "layers"}:
            raise ValueError(f"not a detector's state: it has the keys {sorted(map(str, state))}")
        self._layers = {name: _LayerTrack.from_state(track, self.thresholds) for name, track in state["layers"].items()}
        self._begin, self._last, self._state = state["begin"], state["last"], state["state"]

    def _stands_still(self, bulks: Mapping[str, float]) -> bool:
        """Tell whether nothing has moved since the first snapshot: a discriminator whose training begins later."""
        tracks = self._layers.items()
        return all(not any(track.steps) and track.recent[-1] == bulks.get(name) for name, track in tracks)

    def _judges(self, iteration: int) -> bool:
        return self._begin is not None and iteration - self._begin >= self.thresholds.warmup

    def _too_early(self, evidence: Mapping[str, Evidence]) -> str:
        return f"healthy so far: the first {self.thresholds.warmup} iterations are not judged ({len(evidence)} watched)"

    def _verdict(self, iteration: int, before: State) -> Verdict:
        evidence = {name: track.evidence() for name, track in self._layers.items()}
        state: State = max((one.state for one in evidence.values()), key=SEVERITY.index, default="healthy")
        affected = {name: one for name, one in evidence.items() if one.state == state} if state != "healthy" else {}
        ordered = sorted(affected, key=lambda name: affected[name].now / max(affected[name].before, 1e-12))
        since = min((one.since for one in affected.values() if one.since is not None), default=None)
        return Verdict(
            iteration=iteration,
            state=state,
            since=since,
            layers=tuple(ordered),
            confidence=max((one.confidence for one in affected.values()), default=0.0),
            changed=state != before,
            message=_message(state, since, ordered, evidence) if self._judges(iteration) else self._too_early(evidence),
            evidence=evidence,
        )


@dataclass
class _LayerTrack:
    """One layer's past and state; ``levels`` holds iteration, median of the last bulks, and the bulk itself."""

    recent: deque[float]
    levels: deque[tuple[int, float, float]] = field(default_factory=deque)
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    state: State = "healthy"
    since: int | None = None
    before: float = 0.0  # the level before the fall
    low: float = 0.0  # the lowest level since
    best: float = 0.0  # the highest level since the warm-up or the recovery
    best_at: int | None = None  # the last iteration near it, or else the first one that was judged
    agreeing: int = 0  # consecutive snapshots that ask for another state
    flagged: int = 0  # when "collapsing" was said

    def observe(self, bulk: float) -> None:
        if self.recent:
            self.steps.append(abs(bulk - self.recent[-1]))
        self.recent.append(bulk)

    def fall(self, iteration: int, limits: Thresholds) -> float:
        """Take the level into the window and return which part of the window's highest is lost."""
        level = statistics.median(self.recent)
        self.levels.append((iteration, level, self.recent[-1]))
        while self.levels[0][0] < iteration - limits.window:
            self.levels.popleft()
        peak = self._peak()
        return 1 - level / peak if peak else 0.0

    def judge(self, iteration: int, limits: Thresholds, *, shared: bool) -> None:
        _, level, bulk = self.levels[-1]
        if self.state in ("healthy", "recovered"):
            self._watch(iteration, level, bulk, limits, limits.together if shared else limits.fast)
        else:
            self._follow(iteration, level, limits)

    def _peak(self) -> float:
        return max(level for _, level, _ in self.levels)

    def _watch(self, iteration: int, level: float, bulk: float, limits: Thresholds, enough: float) -> None:
        self.best = max(self.best, level)
        if self.best_at is None or bulk >= _NEAR * self.best:
            self.best_at = iteration
        peak = self._peak()
        # Less than, because a layer of rank one, whose bulk has always been 0, has not lost anything.
        fast, far = level < (1 - enough) * peak, peak < (1 - limits.far) * self.best
        self.agreeing = self.agreeing + 1 if fast or far else 0
        if self.agreeing >= limits.patience:
            self.before = peak if fast else self.best
            # A fast fall begins where the level was last near the window's peak.
            near = [when for when, _, value in self.levels if value >= _NEAR * self.before]
            self.since = near[-1] if near else self.best_at
            self.state, self.low, self.flagged, self.agreeing = "collapsing", level, iteration, 0
            self._follow(iteration, level, limits)

    def _follow(self, iteration: int, level: float, limits: Thresholds) -> None:
        self.low = min(self.low, level)
        if self.state == "collapsing":
            if level <= (1 - limits.collapsed) * self.before:
                self.state, self.agreeing = "collapsed", 0
                return
            risen = level >= (1 - limits.together / 2) * self.before
            # A fall that has stopped halfway for two windows was a drift to another level.
            settled = iteration - self.flagged > 2 * limits.window and level > (1 - limits.far) * self.best
            self.agreeing = self.agreeing + 1 if risen else 0
            if settled or self.agreeing >= limits.patience:
                self._restart("healthy", None)
        else:
            regained = level >= self.low + limits.regained * (self.before - self.low)
            self.agreeing = self.agreeing + 1 if regained else 0
            if self.agreeing >= limits.patience:
                self.best, self.best_at = level, iteration
                self._restart("recovered", iteration)

    def _restart(self, state: State, since: int | None) -> None:
        self.state, self.since, self.agreeing = state, since, 0
        newest = self.levels[-1]
        self.levels.clear()
        self.levels.append(newest)

    def evidence(self) -> Evidence:
        now = statistics.median(self.recent)
        if self.state == "healthy":
            return Evidence("healthy", None, max((level for _, level, _ in self.levels), default=now), now, 0.0)
        noise = statistics.fmean(self.steps) if self.steps else 0.0
        fall = abs(self.before - (self.low if self.state == "recovered" else now))
        confidence = fall**2 / (fall**2 + noise**2) if fall else 0.0
        return Evidence(self.state, self.since, self.before, now, confidence)

    def state_dict(self) -> dict[str, Any]:
        plain = {"recent": list(self.recent), "levels": [list(one) for one in self.levels], "steps": list(self.steps)}
        return dict(vars(self)) | plain

    @classmethod
    def empty(cls, limits: Thresholds) -> "_LayerTrack":
        return cls(deque(maxlen=limits.smoothing))

    @classmethod
    def from_state(cls, state: Mapping[str, Any], limits: Thresholds) -> "_LayerTrack":
        track = cls(**state)
        track.recent = deque(state["recent"], maxlen=limits.smoothing)
        track.levels = deque((int(when), float(level), float(bulk)) for when, level, bulk in state["levels"])
        track.steps = deque(state["steps"], maxlen=50)
        return track


def _bulk(name: str, s: Any) -> float | None:
    values = s.tolist() if hasattr(s, "tolist") else s
    if not len(values) or (isinstance(values[0], Sequence) and not len(values[0])):
        raise ValueError(f"layer {name!r} has no singular values")
    groups: Sequence[Sequence[float]] = values if isinstance(values[0], Sequence) else [values]
    if not all(math.isfinite(value) for group in groups for value in group):
        raise ValueError(f"layer {name!r}: its singular values hold NaN or inf")
    rank = len(groups[0])
    alive = [group for group in groups if group[0] > 0]
    if rank < 2 or not alive:
        return None
    begin, end = bulk_range(rank)
    return statistics.fmean(value / group[0] for group in alive for value in group[begin:end])


def _message(state: State, since: int | None, names: Sequence[str], evidence: Mapping[str, Evidence]) -> str:
    if state == "healthy":
        return f"healthy: no layer's spectrum is falling ({len(evidence)} watched)"
    worst = evidence[names[0]]
    others = f" and {len(names) - 1} more of {len(evidence)} layers" if len(names) > 1 else f" (1 of {len(evidence)})"
    if state == "recovered":
        return f"recovered at iteration {since}: the bulk of s_k/s_1 is back at {worst.now:.2f} in {names[0]}{others}"
    return (
        f"{state} since iteration {since}: the bulk of s_k/s_1 fell from {worst.before:.2f} to {worst.now:.2f} "
        f"in {names[0]}{others}; confidence {worst.confidence:.2f}"
    )
