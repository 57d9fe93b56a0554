r"""Tell lost modes from noise: a pure function of a stream of readings of what a generator does not produce.

What is judged is *lost*, a lower bound on the missing share of the real distribution's mass in which a sample far from
the data counts for what it is nearest to (:class:`specreg.Coverage`). Early readings are high in every training; a loss
is a rise against the least that the same training has shown, and what was missing from the beginning was never learnt.
"""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specreg.monitor.coverage import Reading
from specreg.monitor.verdict import Answer
from specreg.names import COVERED, State, check_choice, check_constants, check_type, integer, reading_state


@dataclass(frozen=True)
class ModeThresholds:
    """The constants of :class:`ModeJudge`; docs/results/link.md says how they were chosen.

    Attributes:
        warmup: iterations from the first reading in which one is judged only if its samples are near the data: noise
            around the data covers much of it.
        far: share of far samples up to which they are called near there.
        smoothing: readings whose median is judged; a loss is said of no fewer.
        losing, lost: part of the largest mass produced so far whose loss means "losing" and "lost".
        regained: part of what was lost that has to come back for "recovered".
        learnt: mass that has to be produced at some time, or else the training "never learnt" the data.
        patience: iterations without progress before that is said, and one reading more than the median takes.
        progress: what counts as progress in the largest mass produced.
    """

    warmup: int = 500
    far: float = 0.5
    smoothing: int = 3
    losing: float = 0.25
    lost: float = 0.4
    regained: float = 0.6
    learnt: float = 0.65
    patience: int = 1000
    progress: float = 0.05

    def __post_init__(self) -> None:
        check_constants(self)
        if self.lost < self.losing:
            raise ValueError(f"lost must be at least losing ({self.losing}), got {self.lost}")


class ModeJudge:
    """Judge a stream of readings of the missing mass.

    Example:
        >>> import torch
        >>> from specreg import Coverage
        >>> generator = torch.Generator().manual_seed(0)
        >>> real = torch.randn(1000, 2, generator=generator) + 9 * (torch.arange(1000)[:, None] < 500)
        >>> judge, coverage = ModeJudge(), Coverage(real)
        >>> for iteration in range(0, 5000, 500):
        ...     answer = judge.update(iteration, coverage.measure(real[: 1000 if iteration < 2500 else 500]))
        >>> answer.state
        'lost'
    """

    def __init__(self, thresholds: ModeThresholds | None = None) -> None:
        check_type("thresholds", thresholds := thresholds or ModeThresholds(), ModeThresholds)
        self.thresholds = thresholds
        self._begin: int | None = None
        self._recent: deque[tuple[int, float]] = deque(maxlen=self.thresholds.smoothing)
        self._best, self._best_at = 0.0, 0  # the largest mass produced, and when it was last near
        self._low = 1.0  # the least since it was lost
        self._reached, self._reached_at = 0.0, 0  # the mass at the last progress, and when
        self._waiting = 0  # readings since
        self._state: State = "not judged"
        self._since: int | None = None

    def update(self, iteration: int, reading: Reading) -> Answer:
        """Take one reading of :meth:`specreg.Coverage.measure` and judge."""
        missing, error = reading.lost, (reading.interval[1] - reading.interval[0]) / 2
        limits = self.thresholds
        self._begin = iteration if self._begin is None else self._begin
        judged_at = self._begin + limits.warmup
        if iteration < judged_at and reading.far > limits.far:
            return self._answer(reading)
        self._recent.append((iteration, 1 - missing))
        produced = statistics.median(mass for _, mass in self._recent)
        self._waiting += 1
        if produced > self._reached + limits.progress:  # small steps add up
            self._reached, self._reached_at, self._waiting = produced, iteration, 0
        fall = self._best - produced
        # A loss has to be more than chance between two readings, of which one is the best of many.
        part = fall / self._best if fall > max(error, reading.floor) else 0.0
        learnt = max(self._best, self._reached, produced) >= limits.learnt  # the best begins anew at a recovery
        stalled = iteration - max(self._reached_at, judged_at) >= limits.patience and self._waiting > limits.smoothing
        if self._state in ("losing", "lost"):
            self._low = min(self._low, produced)
            if produced >= self._low + limits.regained * (self._best - self._low) and fall <= limits.lost * self._best:
                self._state, self._since, self._best = "recovered", iteration, produced
                if stalled and not learnt:  # what came back was never enough
                    self._state, self._since = "never learnt", None
            elif part >= limits.lost:
                self._state = "lost"
        elif part >= limits.losing and self._best >= limits.losing and len(self._recent) == limits.smoothing:
            self._state = "lost" if part >= limits.lost else "losing"
            self._since, self._low = self._best_at, produced
        elif learnt:
            if self._state in ("not judged", "never learnt"):
                self._state, self._since = "healthy", None
        elif stalled:
            self._state, self._since = "never learnt", None
        if 1 - missing >= self._best - error:  # the median is late: modes may be lost already where it still stands
            self._best_at = iteration
        self._best = max(self._best, produced)
        return self._answer(reading)

    def _answer(self, reading: Reading) -> Answer:
        now = f"at least {reading.lost:.0%} of the data missing"
        if reading.missing > reading.lost + reading.floor:
            now += f" ({reading.missing:.0%} with poor samples)"
        # A single bad reading is no alarm, and nothing to be called healthy.
        good = 1 - reading.lost >= (1 - self.thresholds.losing) * self._best
        words = {
            "not judged": f"coverage not judged yet: {now}",
            "healthy": f"coverage healthy{'' if good else ' until now'}: {now}",
            "recovered": f"coverage recovered at iteration {self._since}: {now}",
            "losing": f"losing modes since iteration {self._since}: {now}, {1 - self._best:.0%} at best",
            "lost": f"lost modes since iteration {self._since}: {now}, {1 - self._best:.0%} at best",
            "never learnt": f"data never learnt: {now}, {1 - self._best:.0%} at best",
        }
        return Answer(self._state, self._since, words[self._state])

    def state_dict(self) -> dict[str, Any]:
        values = {name.removeprefix("_"): value for name, value in vars(self).items() if name != "thresholds"}
        return values | {"recent": [list(reading) for reading in self._recent]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        with reading_state("a mode judge's", state, self.state_dict()):
            check_choice("state", state["state"], COVERED)
            recent = [(integer("iteration", iteration), float(mass)) for iteration, mass in state["recent"]]
            values: dict[str, Any] = {"state": state["state"], "recent": deque(recent, maxlen=self._recent.maxlen)}
            values |= {key: None if state[key] is None else integer(key, state[key]) for key in ("begin", "since")}
            values |= {key: integer(key, state[key]) for key in ("best_at", "reached_at", "waiting")}
            values |= {key: float(state[key]) for key in ("best", "low", "reached")}
        for key, value in values.items():
            setattr(self, f"_{key}", value)
