"""The guard: spectral normalization's price while all is well, compensation from the moment a collapse begins."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from torch import Tensor, nn

from specreg.layers.find import find
from specreg.layers.selection import Selection, shown
from specreg.monitor.actions import Pin, checked_states
from specreg.monitor.monitor import Monitor
from specreg.monitor.verdict import Answer, Verdict, gravest
from specreg.names import SchemeName, State, check_type, integer
from specreg.regularizers.compensation import anchored_compensation, dynamic_compensation, static_compensation
from specreg.regularizers.compensators import Compensator

logger = logging.getLogger("specreg")

_VERBS = {"static": static_compensation, "anchored": anchored_compensation, "dynamic": dynamic_compensation}


class Guard:
    r"""Train without compensation, and switch it on when the monitor says that a collapse begins.

    The guard puts itself into the monitor's actions; ``step()`` belongs after each step of the discriminator's
    optimizer, like a compensator's. It looks at its own layers alone: what else the monitor watches, a generator say,
    may collapse beside it. From the beginning the layers are its own: another guard or compensator of theirs is
    refused until :meth:`remove`.

    Args:
        monitor: watches the discriminator.
        scheme: "static" raises the first i singular values, whatever the past was; "anchored" keeps every ratio at
            least at the healthy one, "dynamic" starts its running maximum there. Healthy is the mean spectrum over the
            monitor's snapshots of the ``healthy`` iterations before the fall began.
        states: that switch it on, of the spectra of its layers or of the coverage of the data; by default "collapsing",
            "collapsed", "losing", "never learnt" and "lost". Spectra that fall while coverage is healthy, a "warning",
            do it, too.
        healthy: iterations of healthy past that the record is taken from.
        pin: go back to its newest copy from before the fall when switching on. The guard hands it the verdicts on its
            own layers: it needs no place in the actions.
        every: discriminator steps between compensations. A fall takes hundreds of steps: every tenth was as good as
            the published fifth (docs/results/guard.md).
        only, skip: the layers to compensate, among those monitored; see :mod:`specreg.layers.find`.
        options: of the scheme's verb, such as ``keep`` and ``strength``: see :func:`specreg.static_compensation`,
            :func:`specreg.anchored_compensation`, :func:`specreg.dynamic_compensation`.

    Attributes:
        compensator: None until it is switched on.
        switched_on: the iteration of the verdict that did it, or None.
        restored: the iteration that was gone back to, or None.

    Raises:
        TypeError, ValueError: a bad option, no layer matched, or a compensator or another guard holds a layer.

    Example:
        >>> import specreg
        >>> from torch import nn
        >>> discriminator = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> monitor = specreg.Monitor(discriminator, every=100)
        >>> guard = specreg.Guard(monitor)
        >>> for iteration in range(1, 301):
        ...     acted = guard.step()  # after the optimizer's step
        ...     verdict = monitor.step(iteration)
        >>> guard.compensator is None
        True
    """

    def __init__(
        self,
        monitor: Monitor,
        *,
        scheme: SchemeName = "static",
        states: tuple[State, ...] = ("collapsing", "collapsed", "losing", "never learnt", "lost"),
        healthy: int = 1000,
        pin: Pin | None = None,
        every: int = 10,
        only: Selection = None,
        skip: Selection = None,
        **options: Any,
    ) -> None:
        if scheme not in (schemes := get_args(SchemeName)):
            raise ValueError(f"there is no scheme {scheme!r}: the schemes are {', '.join(schemes)}")
        check_type("monitor", monitor, Monitor, "a guard looks through one, Guard(specreg.Monitor(discriminator))")
        if pin is not None:
            check_type("pin", pin, Pin)
        self.healthy = integer("healthy", healthy, at_least=1)
        self.states = checked_states(states)
        self.scheme: SchemeName = scheme
        self.pin = pin
        self.switched_on: int | None = None
        self.restored: int | None = None
        self._monitor = monitor
        if own := {"start", "window", "record"} & set(options):
            raise TypeError(
                f"a guard begins when it is switched on, from the healthy past: drop {', '.join(sorted(own))}"
            )
        self._options = {"every": every, **options}
        # The layers are chosen now, and by name: a mistake is said here, not when the collapse begins.
        self._layers = layers = find(monitor.module, only=only, skip=skip, title="guard")
        if unwatched := [name for name in layers if name not in monitor.layers]:
            raise ValueError(f"the monitor does not watch the layer {shown(unwatched[0])!r}: leave it out with skip")
        self._names = {name for layer in layers.values() for name in (layer.name, *layer.shared_with)}
        self._holder: Compensator | None = None
        self._attach(None)  # does nothing until it is switched on, but hold the layers
        monitor.actions.append(self)

    @property
    def compensator(self) -> Compensator | None:
        """What compensates, None until it is switched on."""
        return None if self.switched_on is None else self._holder

    def __call__(self, verdict: Verdict) -> None:
        """Take a verdict: switch compensation on if it asks for it. The monitor calls this."""
        own = {name: evidence for name, evidence in verdict.evidence.items() if name in self._layers}
        state, since, layers = gravest(own)
        # Spectra that fall are reason enough, coverage healthy or not: compensation is cheap, and was measured so.
        answers = (Answer(state, since, verdict.message), verdict.coverage)
        asking = [answer for answer in answers if answer.state in self.states]
        if self.pin is not None:
            state, since = (asking[0].state, asking[0].since) if asking else (state, since)
            self.pin(replace(verdict, state=state, since=since, layers=layers))
        if self.compensator is not None or not asking:
            return
        began = next((answer.since for answer in asking if answer.since is not None), None)
        since = verdict.iteration if began is None else began
        record = self._record(since)
        if self.pin is not None and self.pin.iterations and began is not None:  # what was never learnt is in no copy
            self.restored = self.pin.restore(before=since)
        self._attach(record)
        self.switched_on = verdict.iteration
        back = "" if self.restored is None else f", gone back to iteration {self.restored}"
        logger.warning("iteration %d: %s compensation switched on%s", verdict.iteration, self.scheme, back)

    def step(self) -> bool:
        """Compensate, if it is switched on and due; returns whether this call acted.

        Raises:
            ValueError: as a compensator's ``step``.
        """
        return self.compensator is not None and self.compensator.step()

    def remove(self) -> None:
        """Let go of the layers and of the monitor; the weights stay as they are."""
        if self._holder is not None:
            self._holder.remove()
        self._monitor.actions = [action for action in self._monitor.actions if action is not self]

    def state_dict(self) -> dict[str, Any]:
        """Return whether and since when it is on, and the compensator's state; it belongs into the checkpoint.

        The pin's copies are not in it: ``pin.state_dict()`` returns them.
        """
        return {
            "scheme": self.scheme,
            "switched_on": self.switched_on,
            "restored": self.restored,
            "compensator": None if self.compensator is None else self.compensator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it does not fit."""
        if set(state) != {"scheme", "switched_on", "restored", "compensator"}:
            raise ValueError(f"not a guard's state: it has the keys {sorted(map(str, state))}")
        if state["scheme"] != self.scheme:
            raise ValueError(f"the state is of the scheme {state['scheme']!r}, this guard has {self.scheme!r}")
        on, back = (None if state[key] is None else integer(key, state[key]) for key in ("switched_on", "restored"))
        if (on is None) != (state["compensator"] is None):
            raise ValueError("not a guard's state: it is switched on without a compensator, or has an idle one")
        compensator = state["compensator"]
        self._attach(None if compensator is None else compensator["record"] or None, compensator)
        self.switched_on, self.restored = on, back

    def _record(self, since: int) -> dict[str, Tensor]:
        """Return each layer's healthy spectrum from before a fall."""
        past = {name: self._healthy_past(since, name) for name in self._layers}
        means = {window: self._monitor.history.mean_spectra(*window) for window in set(past.values())}
        return {name: means[window][name] for name, window in past.items()}

    def _healthy_past(self, since: int, layer: str) -> tuple[int, int]:
        """Return the iterations that a layer's record is taken from; they hold a snapshot."""
        iterations, begin = self._monitor.history.iterations, self._monitor.detector.begin(layer)
        # The second half of the warm-up counts: a fall may begin where it ends, and one snapshot is noisy.
        warm = (iterations[0] if begin is None else begin) + self._monitor.detector.thresholds.warmup // 2
        # A long history is thinned, and may have nothing left within so many iterations of an old beginning.
        nearest = max((iteration for iteration in iterations if iteration <= since), default=iterations[0])
        return min(nearest, max(warm, since - self.healthy)), max(nearest, since)

    def _attach(self, record: Mapping[str, Tensor] | None, state: Mapping[str, Any] | None = None) -> Compensator:
        """Hold the layers with a new compensator; on an error the present one keeps them."""

        def is_guarded(name: str, _: nn.Module) -> bool:
            # As a string a name would stand for everything below it too.
            return name in self._names

        verb: Any = _VERBS[self.scheme]
        present = self._holder
        compensator: Compensator | None = None
        if present is not None:
            held = present.layers
            present.remove()
        try:
            past = {} if self.scheme == "static" else {"record": record}
            compensator = made = verb(self._monitor.module, only=is_guarded, **past, **self._options)
            if state is not None:
                made.load_state_dict(state)
        except Exception:
            if compensator is not None:
                compensator.remove()
            if present is not None:
                present.layers = held
            raise
        self._holder = compensator
        return compensator
