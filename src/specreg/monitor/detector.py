r"""Tell spectral collapse from healthy drift: a pure function of a stream of spectra.

Healthy trainings drift too (Liu et al. 2019, figures 1 to 4), so no level of :math:`s_k/s_1` means collapse. A collapse
is a fast or far fall of a layer's *bulk*, the mean of :math:`s_k/s_1` over the upper half of its spectrum, against its
own past. Every layer is judged with hysteresis, and the worst gives the verdict. A fall that most layers share may be
less deep than that of a single layer: the published collapses are seen in every layer.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from specreg.names import ALARMS, STATES, State, bulk_range, integer

# A fall begins where the bulk was last at this part of its old level.
_NEAR = 0.9
_NUM_STEPS = 50  # changes between neighbouring snapshots, from which a layer's noise is estimated


@dataclass(frozen=True)
class Evidence:
    """The numbers behind the verdict on one layer.

    Attributes:
        state: of this layer.
        since: the last iteration at which the bulk was at its old level, or, recovered, that of the recovery; None for
            a healthy layer.
        before: the bulk that it had then (healthy: the highest within the window).
        now: the bulk, the median of the last snapshots (``Thresholds.smoothing``, three by default).
        confidence: that the fall is more than the layer's own noise, z²/(1 + z²) with z the fall over the noise of one
            snapshot (Cantelli's inequality, which holds for every distribution); 0 for a healthy layer.
    """

    state: State
    since: int | None
    before: float
    now: float
    confidence: float


@dataclass(frozen=True)
class Verdict:
    """The state of a training at one iteration.

    Attributes:
        iteration: of the newest snapshot.
        state: the gravest state of any layer: "collapsed", "collapsing", "recovered" or "healthy".
        since: the earliest iteration at which a layer of that state left its old level; None if healthy.
        layers: the names of the layers in that state; empty if healthy.
        confidence: the highest among these layers, in [0, 1].
        changed: the state differs from that of the verdict before.
        message: all of this in one line.
        evidence: the numbers, layer by layer.
        samples: the generated samples' :class:`specreg.monitor.samples.Diversity`, where it was measured.
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
        return self.state in ALARMS

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; of the layers only those that are not healthy."""
        values = {key: value for key, value in vars(self).items() if key not in ("evidence", "samples")}
        if self.samples is not None:
            values["samples"] = asdict(self.samples)
        unwell = {name: asdict(evidence) for name, evidence in self.evidence.items() if evidence.state != "healthy"}
        return values | {"layers": list(self.layers), "evidence": unwell}


@dataclass(frozen=True)
class Thresholds:
    """The detector's constants; docs/monitor.md says how they were chosen.

    Attributes:
        warmup: iterations that are not judged, from when the spectra first move: every network leaves its
            initialization fast.
        window: iterations within which a fall counts as fast.
        fast: part of the highest bulk within the window whose loss means "collapsing".
        together: the same, where at least half of the layers (of three or more) have lost that much.
        far: part of the highest bulk since the warm-up whose loss, however slow, means "collapsing" if it lasts a
            whole window, which a dip at the end of a long drift does not.
        collapsed: part of the bulk before the fall whose loss means "collapsed".
        regained: part of the loss that has to come back for "recovered".
        patience: consecutive snapshots that have to agree.
        smoothing: snapshots whose median is judged. 1 suits a few snapshots far apart.
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
            integer(name, getattr(self, name), at_least=0 if name == "warmup" else 1)
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
            ValueError: the iteration does not grow, there is no layer, or a layer has no values or values that are not
                finite; nothing is changed.
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
            self._layers.setdefault(name, _LayerTrack(deque(maxlen=self.thresholds.smoothing))).observe(bulk)
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
        """Return the whole state as plain values, for the checkpoint."""
        return {
            "begin": self._begin,
            "last": self._last,
            "state": self._state,
            "layers": {name: track.state_dict() for name, track in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        if set(state) != {"begin", "last", "state", "layers"}:
            raise ValueError(f"not a detector's state: it has the keys {sorted(map(str, state))}")
        self._layers = {name: _LayerTrack.from_state(track, self.thresholds) for name, track in state["layers"].items()}
        self._begin, self._last, self._state = state["begin"], state["last"], state["state"]

    def _stands_still(self, bulks: Mapping[str, float]) -> bool:
        """Tell whether no bulk has moved since the first snapshot: the discriminator's training begins later."""
        tracks = self._layers.items()
        return all(not any(track.steps) and track.recent[-1] == bulks.get(name) for name, track in tracks)

    def _judges(self, iteration: int) -> bool:
        return self._begin is not None and iteration - self._begin >= self.thresholds.warmup

    def _verdict(self, iteration: int, before: State) -> Verdict:
        evidence = {name: track.evidence() for name, track in self._layers.items()}
        state: State = max((layer.state for layer in evidence.values()), key=STATES.index, default="healthy")
        affected = {name: layer for name, layer in evidence.items() if layer.state == state != "healthy"}
        ordered = tuple(sorted(affected, key=lambda name: affected[name].now / max(affected[name].before, 1e-12)))
        since = min((layer.since for layer in affected.values() if layer.since is not None), default=None)
        confidence = max((layer.confidence for layer in affected.values()), default=0.0)
        if self._judges(iteration):
            message = _message(state, since, ordered, evidence)
        else:
            early = f"the first {self.thresholds.warmup} iterations are not judged"
            message = f"healthy so far: {early} ({len(evidence)} watched)"
        return Verdict(iteration, state, since, ordered, confidence, state != before, message, evidence)


@dataclass
class _LayerTrack:
    """One layer's past and state."""

    recent: deque[float]  # the bulks whose median is the level
    levels: deque[tuple[int, float, float]] = field(default_factory=deque)  # iteration, level, bulk in the window
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_STEPS))  # of the bulk, absolute
    state: State = "healthy"
    since: int | None = None
    before: float = 0.0  # the level before the fall
    low: float = 0.0  # the lowest level since
    best: float = 0.0  # the highest level since the warm-up or the recovery
    best_at: int | None = None  # the last iteration near it, or else the first that was judged
    agreeing: int = 0  # consecutive snapshots that speak for another state
    flagged: int = 0  # the iteration at which the state became "collapsing"

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
        # "<", not "<=": a layer of rank one, whose bulk has always been 0, has lost nothing.
        fast, far = level < (1 - enough) * peak, peak < (1 - limits.far) * self.best
        self.agreeing = self.agreeing + 1 if fast or far else 0
        if self.agreeing >= limits.patience:
            self.before = peak if fast else self.best
            # A fast fall begins where the level was last near the window's peak.
            near = [at for at, _, value in self.levels if value >= _NEAR * self.before]
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
        levels = [list(level) for level in self.levels]
        return vars(self) | {"recent": list(self.recent), "levels": levels, "steps": list(self.steps)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], limits: Thresholds) -> "_LayerTrack":
        track = cls(**state)
        track.recent = deque(state["recent"], maxlen=limits.smoothing)
        track.levels = deque((int(at), float(level), float(bulk)) for at, level, bulk in state["levels"])
        track.steps = deque(state["steps"], maxlen=_NUM_STEPS)
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
    rest = f" and {len(names) - 1} more of {len(evidence)} layers" if len(names) > 1 else f" (1 of {len(evidence)})"
    if state == "recovered":
        return f"recovered at iteration {since}: the bulk of s_k/s_1 is back at {worst.now:.2f} in {names[0]}{rest}"
    return (
        f"{state} since iteration {since}: the bulk of s_k/s_1 fell from {worst.before:.2f} to {worst.now:.2f} "
        f"in {names[0]}{rest}; confidence {worst.confidence:.2f}"
    )
