"""The monitor: snapshots of a module's spectra at a cadence, judged by the detector, and handed to actions."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from specreg.layers import Selection, find, warn_of_differences
from specreg.monitor.detector import Detector, Verdict
from specreg.monitor.history import History
from specreg.monitor.samples import Diversity, diversity
from specreg.monitor.snapshot import spectra_of
from specreg.names import integer

logger = logging.getLogger("specreg")

Action = Callable[[Verdict], object]
# Returns generated and real images of equal shape, (N, *).
Samples = Callable[[], tuple[Tensor, Tensor]]


class Monitor:
    """Watch the spectra of a discriminator, and say when they collapse.

    Reading changes no buffer, gradient or random number: a training with a monitor is bit for bit that without.

    Args:
        module: any module: plain, under spectral or weight normalization, compensated, compiled or wrapped.
        every: iterations between snapshots.
        detector: judges them; by default ``Detector()``.
        actions: called with each new verdict, in order; more may be appended to ``monitor.actions`` (see
            ``specreg.monitor.actions`` and :class:`specreg.Guard`).
        samples: returns generated and real images; called when a snapshot gives an alarm, so that the verdict says
            whether the samples agree (see :func:`specreg.diversity`).
        only, skip: the layers to take, see :func:`specreg.layers.find`, chosen when the monitor is made; all kinds by
            default.

    Attributes:
        layers: the names of the watched layers.
        left_out: the names of weight matrices that no layer is known for, and of frozen layers beside trained ones; a
            warning names them.
        history: the snapshots, compact.
        latest: the newest snapshot, layer name -> singular values in double precision.
        verdict: the newest verdict, None before the first snapshot.
        actions: a list.

    Raises:
        ValueError: a bad option, or no layer matched.

    Example:
        >>> discriminator = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> monitor = Monitor(discriminator, every=100)
        >>> for iteration in range(1, 301):
        ...     verdict = monitor.step(iteration)  # after the optimizer's step
        >>> verdict.state, monitor.history.iterations
        ('healthy', [1, 100, 200, 300])
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        every: int = 100,
        detector: Detector | None = None,
        actions: Iterable[Action] = (),
        samples: Samples | None = None,
        only: Selection = None,
        skip: Selection = None,
    ) -> None:
        self.module = module
        self.every = integer("every", every, at_least=1)
        self.detector = detector or Detector()
        self.actions = list(actions)
        self.history = History()
        self.latest: dict[str, Tensor] = {}
        self.verdict: Verdict | None = None
        self._samples = samples
        # Chosen once, so that gradients that are switched off for a step, or a new layer, change nothing of the series.
        self._found = find(module, embeddings=True, only=only, skip=skip, title="monitor")
        self._read()  # a wrong choice fails here, not hours later
        self.layers, self.left_out = tuple(self._found), self._found.left_out
        if (lines := self.left_out.lines()) and only is None:
            logger.warning("monitor: %s", "; ".join(lines))
        warn_of_differences(self._found)

    def step(self, iteration: int) -> Verdict:
        """Take a snapshot if one is due, at the first call and at each multiple of ``every``, and judge it.

        Args:
            iteration: of the training; growing, in steps of any size.

        Returns:
            The newest verdict; its ``changed`` is False unless this call took the snapshot.

        Raises:
            ValueError: a weight holds NaN or inf; names the layer.
        """
        last = self.history.iterations[-1] if self.history.iterations else None
        due = last is None or iteration // self.every > last // self.every
        if not due and self.verdict is not None:
            return dataclasses.replace(self.verdict, changed=False)
        return self.snapshot(iteration)

    def snapshot(self, iteration: int) -> Verdict:
        """Take a snapshot now, whether due or not, judge it and call the actions."""
        self.latest = self._read()
        self.history.add(iteration, self.latest)  # before the verdict, as it refuses other layers than before
        verdict = self.detector.update(iteration, self.latest)
        if self._samples is not None and verdict.alarming:
            verdict = _with_samples(verdict, diversity(*self._samples()))
        self.verdict = verdict
        for action in self.actions:
            action(verdict)
        return verdict

    def _read(self) -> dict[str, Tensor]:
        return spectra_of(self._found)

    def state_dict(self) -> dict[str, Any]:
        """Return the detector's and the history's state, for the checkpoint; actions have their own."""
        return {"detector": self.detector.state_dict(), "history": self.history.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError if it is something else."""
        if set(state) != {"detector", "history"}:
            raise ValueError(f"not a monitor's state: it has the keys {sorted(map(str, state))}")
        layers = tuple(state["history"].get("layers", ()))  # none before the first snapshot
        if layers and layers != self.layers:
            raise ValueError(f"the state is of the layers {', '.join(layers)}; these are {', '.join(self.layers)}")
        self.detector.load_state_dict(state["detector"])
        self.history.load_state_dict(state["history"])
        self.verdict = self.detector.verdict()


def _with_samples(verdict: Verdict, samples: Diversity) -> Verdict:
    """Return a verdict whose message says whether the samples show the collapse, too."""
    word = "agree" if samples.poor else "do not show it (yet)"
    return dataclasses.replace(verdict, message=f"{verdict.message}; the samples {word}: {samples}", samples=samples)
