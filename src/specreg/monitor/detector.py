r"""Tell spectral collapse from healthy drift: a pure function of a stream of spectra.

Healthy trainings drift too (Liu et al. 2019, figures 1 to 4), so no level of :math:`s_k/s_1` means collapse. A collapse
is a fast or far fall of a layer's *bulk*, the mean of :math:`s_k/s_1` over the upper half of its spectrum, against its
own past, from when its warm-up is over. Every layer is judged with hysteresis, and the worst gives the verdict. A fall
that most layers of a network share may be less deep than that of a single layer: the published collapses are seen in
every layer. Several networks in one stream are *groups* of layers, which know nothing of each other.
"""

import itertools
import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from specreg.monitor.verdict import Answer, Evidence, Verdict, gravest, message, message_of_groups
from specreg.names import SPECTRAL, State, bulk_range, check_constants, check_type, integer, reading_state, shown

T = TypeVar("T")
# A fall begins where the bulk was last at this part of its old level.
_NEAR = 0.9
_NUM_STEPS = 50  # changes between neighbouring snapshots, from which a layer's noise is estimated
# A layer moves when its bulk has changed by more than this part: weight decay alone changes it by rounding.
_STILL = 1e-4


@dataclass(frozen=True)
class Thresholds:
    """The detector's constants; docs/results/detector.md says how they were chosen.

    Attributes:
        warmup: iterations that are not judged, of each layer from when its spectrum first moves: every network leaves
            its initialization fast.
        window: iterations within which a fall counts as fast.
        fast: part of the highest bulk within the window whose loss means "collapsing".
        together: the same, where at least half of a group's layers (of three or more) have lost that much.
        long_window: iterations within which a slower fall counts; if no longer than ``window``, none is looked for.
        sustained: part of the highest bulk within the long window whose loss means "collapsing".
        far: part of the highest bulk since the warm-up whose loss, however slow, means "collapsing" if it lasts a
            whole window, which a dip at the end of a long drift does not.
        collapsed: part of the bulk before the fall whose loss means "collapsed".
        regained: part of the loss that has to come back for "recovered".
        patience: consecutive snapshots that have to agree.
        smoothing: snapshots whose median is judged. 1 suits a few snapshots far apart.

    Raises:
        ValueError: no integer, a part outside (0, 1), or ``collapsed`` below ``fast``.

    Example:
        >>> checkpoints = Thresholds(warmup=0, window=20_000, smoothing=1)  # snapshots every 5,000 iterations
        >>> detector = Detector(checkpoints)
        >>> for iteration, level in zip(range(0, 25_000, 5000), (0.8, 0.8, 0.8, 0.8, 0.3)):
        ...     verdict = detector.update(iteration, {"conv": [1.0] + [level] * 7})
        >>> verdict.state
        'collapsed'
    """

    warmup: int = 500
    window: int = 1000
    fast: float = 0.35
    together: float = 0.2
    long_window: int = 3000
    sustained: float = 0.4
    far: float = 0.5
    collapsed: float = 0.5
    regained: float = 0.4
    patience: int = 1
    smoothing: int = 3

    def __post_init__(self) -> None:
        check_constants(self)
        if self.collapsed < self.fast:
            raise ValueError(f"collapsed must be at least fast ({self.fast}), got {self.collapsed}")


class Detector:
    """Judge a stream of spectra.

    Args:
        thresholds: its constants.

    Raises:
        TypeError: they are something else.

    Example:
        >>> detector = Detector(Thresholds(warmup=0))
        >>> for iteration in range(0, 5000, 100):
        ...     level = 0.9 if iteration < 4000 else 0.3
        ...     verdict = detector.update(iteration, {"conv": [1.0] + [level] * 7})
        >>> verdict.state, verdict.since, verdict.layers
        ('collapsed', 3900, ('conv',))
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        check_type("thresholds", thresholds := thresholds or Thresholds(), Thresholds)
        self.thresholds = thresholds
        self._layers: dict[str, _LayerTrack] = {}
        self._groups: dict[str, tuple[str, ...]] = {}
        self._last: int | None = None

    def update(
        self, iteration: int, singular_values: Mapping[str, Any], groups: Mapping[str, Iterable[str]] | None = None
    ) -> Verdict:
        """Take one snapshot and judge.

        Args:
            iteration: of the training, growing from call to call.
            singular_values: layer name -> singular values, descending, a sequence of numbers or a tensor, shape (r,)
                or (groups, r). Layers with r = 1 have no bulk and are left out; so are layers of zeros, which
                begin anew when they are zero no longer.
            groups: name -> the layers of one network, each layer in exactly one group; by default all are one group.

        Raises:
            ValueError: the iteration is no integer or does not grow, there is no layer, a layer has no values or values
                that are not finite or do not descend to 0 or more, or is not in exactly one group; nothing is changed.
        """
        iteration = integer("iteration", iteration)
        if self._last is not None and iteration <= self._last:
            raise ValueError(f"iterations must grow: got {iteration} after {self._last}")
        if not singular_values:
            raise ValueError("no layers: singular_values is empty")
        bulks = {name: bulk for name, s in singular_values.items() if (bulk := _bulk(name, s)) is not None}
        everything = dict.fromkeys((*self._layers, *singular_values))
        self._groups = {"": tuple(everything)} if groups is None else checked_groups(groups, singular_values)
        previous, self._last = self._last, iteration
        before = {name: track.state for name, track in self._layers.items()}
        self._layers = {
            name: track for name, track in self._layers.items() if name in bulks or name not in singular_values
        }
        for name, bulk in bulks.items():
            if name not in self._layers:
                self._layers[name] = _LayerTrack(deque(maxlen=self.thresholds.smoothing), iteration, bulk)
            self._layers[name].observe(iteration, bulk, previous, self.thresholds)
        for layers in self._groups.values():
            self._judge(iteration, [name for name in layers if name in bulks])
        return self._verdict(iteration, before)

    def verdict(self) -> Verdict | None:
        """Return the newest verdict again, unchanged; None before the first."""
        states = {name: track.state for name, track in self._layers.items()}
        return None if self._last is None else self._verdict(self._last, states)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain values, for the checkpoint."""
        return {
            "last": self._last,
            "groups": {name: list(layers) for name, layers in self._groups.items()},
            "layers": {name: track.state_dict() for name, track in self._layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        with reading_state("a detector's", state, ("last", "groups", "layers")):
            last = None if state["last"] is None else integer("last", state["last"])
            tracks = state["layers"].items()
            layers = {name: _LayerTrack.from_state(name, track, self.thresholds) for name, track in tracks}
            groups = {name: tuple(members) for name, members in state["groups"].items()}
        self._last, self._layers, self._groups = last, layers, groups

    def _judge(self, iteration: int, names: Sequence[str]) -> None:
        """Judge the layers of one group that are past their warm-up."""
        limits = self.thresholds
        judged = [self._layers[name] for name in names if self._layers[name].is_judged(iteration, limits)]
        falls = [track.fall(iteration, limits) for track in judged]
        shared = len(names) > 2 and 2 * sum(fall >= limits.together for fall in falls) >= len(names)
        for track in judged:
            track.judge(iteration, limits, shared=shared)

    def _verdict(self, iteration: int, before: Mapping[str, State]) -> Verdict:
        """Judge the whole and each group, after the states that the layers had ``before``."""
        evidence = {name: track.evidence(iteration, self.thresholds) for name, track in self._layers.items()}
        whole = self._of_layers(iteration, evidence, before)
        groups = {
            group: self._of_layers(iteration, _part(evidence, layers), _part(before, layers))
            for group, layers in self._groups.items()
        }
        text = message_of_groups(whole, groups)
        return replace(whole, groups=groups, message=text, spectra=replace(whole.spectra, message=text))

    def _of_layers(self, iteration: int, evidence: Mapping[str, Evidence], before: Mapping[str, State]) -> Verdict:
        state, since, names = gravest(evidence)
        old = max(before.values(), key=SPECTRAL.index, default="steady")  # of layers that are zero now, too
        confidence = max((evidence[name].confidence for name in names), default=0.0)
        judged = any(layer.judged for layer in evidence.values())
        text = message(state, since, names, evidence) if judged else self._unjudged(iteration, evidence)
        answer = Answer(state if judged else "not judged", since, text)
        entered = frozenset(() if state == old else (answer.state,))
        return Verdict(
            iteration, answer.state, since, names, confidence, state != old, text, evidence, answer, entered=entered
        )

    def _unjudged(self, iteration: int, names: Iterable[str]) -> str:
        """Say why none of the layers is judged."""
        tracks = [self._layers[name] for name in names]
        if not tracks:
            return "not judged: no layer has a rank above 1 and values above 0"
        begin, warmup = min(track.begin for track in tracks), self.thresholds.warmup
        first, watched = min(track.first for track in tracks), f"({len(tracks)} of rank > 1 watched)"
        if begin < iteration:
            return f"not judged before iteration {begin + warmup}: the warm-up began at {begin} {watched}"
        if first < iteration:
            still = f"no spectrum's upper half has moved since iteration {first}"
            return f"not judged: {still}: frozen, or compensated at every step {watched}"
        return f"not judged yet: the warm-up, {warmup} iterations, begins when the spectra move {watched}"


@dataclass
class _LayerTrack:
    """One layer's past and state."""

    recent: deque[float]  # the bulks whose median is the level
    first: int  # the iteration of the first snapshot
    origin: float  # its bulk
    moved: bool = False
    begin: int = 0  # the last iteration before it moved, or else the newest
    levels: deque[tuple[int, float, float]] = field(default_factory=deque)  # iteration, level, bulk in the windows
    steps: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_STEPS))  # of the bulk, absolute
    state: State = "steady"
    since: int | None = None
    before: float = 0.0  # the level before the fall
    low: float = 0.0  # the lowest level since
    best: float = 0.0  # the highest level since the warm-up or the recovery
    best_at: int | None = None  # the last iteration near it, or else the first that was judged
    agreeing: int = 0  # consecutive snapshots that speak for another state
    flagged: int = 0  # the iteration at which the state became "collapsing"

    def observe(self, iteration: int, bulk: float, previous: int | None, limits: Thresholds) -> None:
        """Take the bulk, after a snapshot at ``previous``."""
        self.moved = self.moved or abs(bulk - self.origin) > _STILL * self.origin
        if self.moved:
            self.steps.append(abs(bulk - self.recent[-1]))
        else:
            self.begin = iteration
        # With snapshots far apart the first that is judged would else be smoothed with the initialization.
        if previous is not None and max(0, previous - self.begin) < limits.warmup // 2:
            self.recent.clear()
        self.recent.append(bulk)

    def is_judged(self, iteration: int, limits: Thresholds) -> bool:
        return iteration - self.begin >= limits.warmup

    def fall(self, iteration: int, limits: Thresholds) -> float:
        """Take the level into the window and return which part of the window's highest is lost."""
        level = statistics.median(self.recent)
        self.levels.append((iteration, level, self.recent[-1]))
        while self.levels[0][0] < iteration - max(limits.window, limits.long_window):
            self.levels.popleft()
        peak = self._peak(iteration - limits.window)
        return 1 - level / peak if peak else 0.0

    def judge(self, iteration: int, limits: Thresholds, *, shared: bool) -> None:
        _, level, bulk = self.levels[-1]
        if self.state not in ("steady", "recovered"):
            self._follow(iteration, level, limits)
            return
        self.best = max(self.best, level)
        if self.best_at is None or bulk >= _NEAR * self.best:
            self.best_at = iteration
        peak, highest = (self._peak(iteration - window) for window in (limits.window, limits.long_window))
        enough = limits.together if shared else limits.fast
        # "<", not "<=": a layer of rank one, whose bulk has always been 0, has lost nothing.
        fast, is_longer = level < (1 - enough) * peak, limits.long_window > limits.window
        sustained = is_longer and level < (1 - limits.sustained) * highest
        far = peak < (1 - limits.far) * self.best
        self.agreeing = self.agreeing + 1 if fast or sustained or far else 0
        if self.agreeing >= limits.patience:
            self.before = peak if fast else highest if sustained else self.best
            # A fast or sustained fall begins where the level was last near its window's peak.
            near = [at for at, _, value in self.levels if value >= _NEAR * self.before]
            self.since = near[-1] if near else self.best_at
            self.state, self.low, self.flagged, self.agreeing = "collapsing", level, iteration, 0
            self._follow(iteration, level, limits)

    def _peak(self, begin: int) -> float:
        return max(level for at, level, _ in self.levels if at >= begin)

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
                self._restart("steady", None)
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

    def evidence(self, iteration: int, limits: Thresholds) -> Evidence:
        now = statistics.median(self.recent)
        if self.state == "steady":
            highest = max((level for _, level, _ in self.levels), default=now)
            return Evidence("steady", None, highest, now, 0.0, self.is_judged(iteration, limits))
        noise = statistics.fmean(self.steps)
        fall = abs(self.before - (self.low if self.state == "recovered" else now))
        confidence = fall**2 / (fall**2 + noise**2) if fall else 0.0
        return Evidence(self.state, self.since, self.before, now, confidence)

    def state_dict(self) -> dict[str, Any]:
        levels = [list(level) for level in self.levels]
        return vars(self) | {"recent": list(self.recent), "levels": levels, "steps": list(self.steps)}

    @classmethod
    def from_state(cls, name: str, state: Mapping[str, Any], limits: Thresholds) -> "_LayerTrack":
        with reading_state(f"layer {name!r}'s", state, [each.name for each in fields(cls)]):
            needed = ("recent",) if state["state"] == "steady" else ("recent", "steps", "before")
            if state["state"] not in SPECTRAL[1:] or not all(state[key] for key in needed):
                raise ValueError("another word, or no values")
            numbers: dict[str, Any] = {key: float(state[key]) for key in ("origin", "before", "low", "best")}
            counts = {key: integer(key, state[key]) for key in ("first", "begin", "agreeing", "flagged")}
            times = {key: None if state[key] is None else integer(key, state[key]) for key in ("since", "best_at")}
            recent = deque(map(float, state["recent"]), maxlen=limits.smoothing)
            levels = deque((integer("at", at), float(level), float(bulk)) for at, level, bulk in state["levels"])
            steps = deque(map(float, state["steps"]), maxlen=_NUM_STEPS)
        lists: dict[str, Any] = {"recent": recent, "levels": levels, "steps": steps}
        return cls(**(lists | numbers | counts | times), state=state["state"], moved=bool(state["moved"]))


def _part(mapping: Mapping[str, T], names: Iterable[str]) -> dict[str, T]:
    return {name: mapping[name] for name in names if name in mapping}


def checked_groups(groups: Mapping[str, Iterable[str]], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups if every layer is in exactly one of them, and nothing else."""
    members = {group: tuple(layers) for group, layers in groups.items()}
    owners: dict[str, list[str]] = {name: [] for name in names}
    for group, layers in members.items():
        for name in layers:
            if name not in owners:
                raise ValueError(f"the groups hold {name!r}, which is no layer")
            owners[name].append(group)
    for name, own in owners.items():
        if len(own) != 1:
            where = f"the groups {', '.join(own)}" if own else "no group"
            raise ValueError(f"layer {shown(name)!r} is in {where}: put every layer into exactly one")
    return members


def _bulk(name: str, s: Any) -> float | None:
    values = s.tolist() if hasattr(s, "tolist") else s
    try:
        grouped = len(values) > 0 and isinstance(values[0], Sequence)
        groups = [[float(value) for value in group] for group in (values if grouped else [values])]
    except (TypeError, ValueError):
        raise ValueError(
            f"layer {name!r}: singular values must be real numbers, (r,) or (groups, r), got {values!r:.60}"
        ) from None
    if not groups[0]:
        raise ValueError(f"layer {name!r} has no singular values")
    if not all(math.isfinite(value) for group in groups for value in group):
        raise ValueError(f"layer {name!r}: its singular values hold NaN or inf")
    rank = len(groups[0])
    rises = any(a < b - 1e-5 * group[0] for group in groups for a, b in itertools.pairwise((*group, 0.0)))
    if rises or any(len(group) != rank for group in groups):
        raise ValueError(f"layer {name!r}: singular values must descend to 0 or more, as many in each group")
    alive = [group for group in groups if group[0] > 0]
    if rank < 2 or not alive:
        return None
    begin, end = bulk_range(rank)
    return statistics.fmean(value / group[0] for group in alive for value in group[begin:end])
