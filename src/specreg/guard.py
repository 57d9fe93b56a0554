"""The guard: spectral normalization's price while all is well, static SR from the moment a collapse begins."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from specreg.layers.find import Layers, find
from specreg.layers.selection import Selection
from specreg.monitor.actions import Pin, checked_states
from specreg.monitor.monitor import Monitor
from specreg.monitor.verdict import Answer, Verdict, gravest
from specreg.names import COVERED, SPECTRAL, Scale, State, check_type, integer, reading_state, shown
from specreg.regularizers.compensators import Compensator, static_scheme

logger = logging.getLogger("specreg")

_MANY_STEPS = 1000  # without a verdict before that is said


class Guard:
    r"""Train without compensation, and switch static compensation on when the monitor says that a collapse begins.

    The guard puts itself into the monitor's actions; ``step()`` belongs after each step of the discriminator's
    optimizer, like a compensator's. It looks at its own layers alone: what else the monitor watches, a generator say,
    may collapse beside it. A dead discriminator does not switch it on: compensation raises small singular values, and
    brings no unit back that lets nothing through. From the beginning the layers are its own: another guard or
    compensator of theirs is refused until :meth:`remove`.

    Args:
        monitor: watches the discriminator.
        states: that switch it on, of the spectra of its layers or of the coverage of the data; by default "collapsing",
            "collapsed", "losing", "never learnt" and "lost". Spectra that fall while coverage is healthy, a "warning",
            do it, too.
        pin: go back to its newest copy from before the fall when switching on. It needs no place in the actions: the
            guard hands it the verdicts on its own layers, on coverage and on the signal.
        every: discriminator steps between compensations. A fall takes hundreds of steps: every tenth was as good as
            the published fifth (docs/results/guard.md).
        only, skip: the layers to compensate, among those monitored; see :mod:`specreg.layers.find`.
        keep, scale: see :func:`specreg.static_compensation`.

    Attributes:
        compensator: None until it is switched on.
        switched_on: the iteration of the verdict that did it, or None.
        restored: the iteration that was gone back to, or None.

    Raises:
        TypeError, ValueError: a bad option, no layer matched, a layer cannot be written or is not watched, or a
            compensator or another guard holds it.

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
        states: tuple[State, ...] = ("collapsing", "collapsed", "losing", "never learnt", "lost"),
        pin: Pin | None = None,
        every: int = 10,
        keep: float | int = 0.5,
        scale: Scale = "auto",
        only: Selection = None,
        skip: Selection = None,
    ) -> None:
        check_type("monitor", monitor, Monitor, "a guard looks through one, Guard(specreg.Monitor(discriminator))")
        if pin is not None:
            check_type("pin", pin, Pin)
        self.states = checked_states(states, tuple(dict.fromkeys((*SPECTRAL, *COVERED))))  # of spectra and coverage
        self.pin = pin
        self.switched_on: int | None = None
        self.restored: int | None = None
        self._warned = False  # that it cannot act, or that step() is not called
        self._num_unheard = 0  # calls of step() to which no verdict came
        self._monitor = monitor
        layers = find(monitor.module, only=only, skip=skip, title="guard")
        watched = monitor.watched_names()
        if unwatched := [name for name in layers if name not in watched]:
            raise ValueError(f"the monitor does not watch the layer {shown(unwatched[0])!r}: leave it out with skip")
        self._watched = {watched[name] for name in layers}
        # It holds the layers from now on.
        self._compensator = Compensator(layers, static_scheme(keep), every=every, scale=scale)
        self._idle = self._compensator.state_dict()
        monitor.actions.append(self)

    @property
    def compensator(self) -> Compensator | None:
        """What compensates, None until it is switched on."""
        return None if self.switched_on is None else self._compensator

    @property
    def layers(self) -> Layers:
        """What it compensates once it is on, a mapping from name to layer that prints as a table."""
        return self._compensator.layers

    @property
    def acted(self) -> int:
        """How many calls of ``step()`` compensated."""
        return self._compensator.acted

    def __call__(self, verdict: Verdict) -> None:
        """Take a verdict: switch compensation on if it asks for it. The monitor calls this."""
        waits_for_coverage = self.states and set(self.states).isdisjoint(SPECTRAL)
        if waits_for_coverage and verdict.coverage.state == "not measured" and not self._warned:
            self._warned = True
            logger.warning("guard: it cannot act: coverage, which it waits for, is not measured by this monitor")
        own = {name: evidence for name, evidence in verdict.evidence.items() if name in self._watched}
        state, since, _ = gravest(own)
        # Spectra that fall are reason enough, coverage healthy or not: compensation is cheap, and was measured so.
        answers = (Answer(state, since, verdict.message), verdict.coverage)
        asking = [answer for answer in answers if answer.state in self.states]
        if self.pin is not None:  # nothing is healthy that an answer alarms of, be it one that the guard does not ask
            worst = asking[0] if asking else replace(verdict, spectra=answers[0]).answers[0]
            self.pin(replace(verdict, state=worst.state))
        is_forgotten = self.switched_on is not None and self.switched_on < verdict.iteration and not self.acted
        if is_forgotten and not self._warned:
            self._warned = True
            logger.warning("guard: it is on, but its step() is not called: call it after the discriminator's optimizer")
        if self.compensator is not None or not asking:
            return
        began = min((answer.since for answer in asking if answer.since is not None), default=None)
        if self.pin is not None and self.pin.iterations and began is not None:  # what was never learnt is in no copy
            self.restored = self.pin.restore(before=began)
        self.switched_on = verdict.iteration
        back = "" if self.restored is None else f", gone back to iteration {self.restored}"
        logger.warning("iteration %d: static compensation switched on%s", verdict.iteration, back)

    def step(self) -> bool:
        """Compensate, if it is switched on and due; returns whether this call acted.

        Raises:
            ValueError: as a compensator's ``step``.
        """
        is_waiting = self.switched_on is None and self.layers  # it has none once it was removed
        if is_waiting and (self._monitor.verdict is None or self not in self._monitor.actions):
            self._num_unheard += 1
            if self._num_unheard == _MANY_STEPS:
                logger.warning(
                    "guard: %d steps without a verdict, it cannot act: call the monitor's step(iteration), and leave "
                    "the guard among the monitor's actions", _MANY_STEPS,
                )  # fmt: skip
        return self.compensator is not None and self.compensator.step()

    def remove(self) -> None:
        """Let go of the layers and of the monitor; the weights stay as they are."""
        self._compensator.remove()
        self._monitor.actions = [action for action in self._monitor.actions if action is not self]

    def state_dict(self) -> dict[str, Any]:
        """Return whether and since when it is on, and the compensator's state; it belongs into the checkpoint.

        The pin's copies are not in it: ``pin.state_dict()`` returns them.
        """
        return {
            "switched_on": self.switched_on,
            "restored": self.restored,
            "compensator": None if self.compensator is None else self.compensator.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it does not fit."""
        with reading_state("a guard's", state, ("switched_on", "restored", "compensator")):
            on, back = (None if state[key] is None else integer(key, state[key]) for key in ("switched_on", "restored"))
        if (on is None) != (state["compensator"] is None):
            raise ValueError("not a guard's state: it is switched on without a compensator, or has an idle one")
        self._compensator.load_state_dict(self._idle if on is None else state["compensator"])
        self.switched_on, self.restored = on, back
