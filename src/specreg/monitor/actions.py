"""Reactions to a verdict: small callables for ``Monitor(actions=[...])``, called in that order."""

import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from specreg.files import replacing
from specreg.monitor.verdict import Verdict
from specreg.names import STATES, State, check_choice, check_type, integer, reading_state
from specreg.processes import is_main

logger = logging.getLogger("specreg")


class Stateful(Protocol):
    """A module, an optimizer, a scheduler: whatever has a state."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


def log(verdict: Verdict) -> None:
    """Log a change of state through the logger "specreg", alarms as warnings."""
    if verdict.changed:
        level = logging.WARNING if verdict.alarming else logging.INFO
        logger.log(level, "iteration %d: %s", verdict.iteration, verdict.message)


class When:
    """Call back when the verdict's state, or an alarm among its answers, becomes one of those named.

    Args:
        states: one of ``specreg.names.STATES``, or several of them.
        call: gets the verdict.

    Raises:
        ValueError: there is no such state, or none is named.
    """

    def __init__(self, *states: State, call: Callable[[Verdict], object]) -> None:
        if not states:
            raise ValueError("When without a state never calls: name one")
        self.states = checked_states(states)
        self._call = call

    def __call__(self, verdict: Verdict) -> None:
        if not verdict.entered.isdisjoint(self.states):
            self._call(verdict)


class Stop:
    """Ask the training to stop: ``if stop.requested: break``.

    Args:
        states: the verdict's or alarms of its answers, in which to stop, "collapsed" and "lost" by default.
    """

    def __init__(self, *states: State) -> None:
        self.states = checked_states(states or ("collapsed", "lost"))
        self.requested = False

    def __call__(self, verdict: Verdict) -> None:
        self.requested = self.requested or not verdict.states.isdisjoint(self.states)


class Pin:
    """Keep copies of the last healthy states, to go back to.

    A collapse is seen some time after it began, so several copies are kept, and :meth:`restore` takes the newest from
    before it began.

    Args:
        objects: name -> module, optimizer or whatever has ``state_dict`` and ``load_state_dict``.
        every: iterations between copies.
        copies: their number, in the CPU's memory.
        folder: also write each there, as healthy-ITERATION.pt with all objects' states by name, and remove the files
            of dropped copies. Of several processes, which all have to pin, process 0 alone does.

    Example:
        >>> from torch import nn
        >>> pin = Pin({"discriminator": nn.Linear(2, 2)}, every=500)
        >>> pin.iterations
        []
    """

    def __init__(
        self, objects: Mapping[str, Stateful], *, every: int = 500, copies: int = 4, folder: str | Path | None = None
    ) -> None:
        self.every, self.copies = integer("every", every, at_least=1), integer("copies", copies, at_least=1)
        check_type("objects", objects, Mapping, 'name what is pinned, as {"discriminator": discriminator}')
        if not objects:
            raise ValueError("nothing to pin: objects is empty")
        self._objects = dict(objects)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and is_main() and not self.folder.is_dir():
            raise ValueError(f"folder {self.folder} does not exist: create it first")
        self._kept: dict[int, dict[str, Any]] = {}

    @property
    def iterations(self) -> list[int]:
        """The copies' iterations, growing."""
        return list(self._kept)

    def __call__(self, verdict: Verdict) -> None:
        """Copy everything if the verdict is no alarm and the last copy is old enough."""
        last = max(self._kept, default=None)
        if verdict.alarming or (last is not None and verdict.iteration - last < self.every):
            return
        state = {name: _copied(item.state_dict()) for name, item in self._objects.items()}
        self._kept[verdict.iteration] = state
        if self.folder is not None and is_main():
            with replacing(self._file(verdict.iteration)) as file:
                torch.save(state, file)
        while len(self._kept) > self.copies:
            self._drop(min(self._kept))

    def restore(self, before: int | None = None) -> int:
        """Put the newest copy back that is not later than ``before``, or else the oldest; return its iteration.

        Raises:
            ValueError: there is no copy.
        """
        before = None if before is None else integer("before", before)
        if not self._kept:
            raise ValueError("nothing was pinned yet: no healthy snapshot was seen")
        suitable = [iteration for iteration in self._kept if before is None or iteration <= before]
        chosen = max(suitable, default=min(self._kept))
        if not suitable:
            logger.warning("no copy is from before iteration %s: the oldest one, of %d, is put back", before, chosen)
        for name, item in self._objects.items():
            item.load_state_dict(copy.deepcopy(self._kept[chosen][name]))
        for iteration in [iteration for iteration in self._kept if iteration > chosen]:
            self._drop(iteration)  # of a past that has been taken back
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Return the copies, so that a resumed training can still go back."""
        return {"kept": dict(self._kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        with reading_state("a pin's", state, ["kept"]):
            kept = {integer("iteration", at): _copied(dict(copies)) for at, copies in state["kept"].items()}
        if any(set(copies) != set(self._objects) for copies in kept.values()):
            raise ValueError(f"not a state of a pin of {', '.join(self._objects)}")
        self._kept = kept

    def _drop(self, iteration: int) -> None:
        del self._kept[iteration]
        if self.folder is not None and is_main():
            self._file(iteration).unlink(missing_ok=True)

    def _file(self, iteration: int) -> Path:
        assert self.folder is not None
        return self.folder / f"healthy-{iteration}.pt"


class RollBack:
    """Go back to the last healthy copy when the state, or an alarm among the answers, becomes one of those named.

    Args:
        pin: holds the copies; it belongs into the actions too, before this.
        states: "collapsing", "collapsed", "losing" and "lost" by default: a steep fall is seen when it is over.
        times: at most so often. Rolling back alone repeats the past with other random numbers: change something, too
            (see :class:`specreg.Guard`).

    Attributes:
        restored: (iteration of the verdict, iteration of the copy) of each time.
    """

    def __init__(self, pin: Pin, *states: State, times: int = 1) -> None:
        check_type("pin", pin, Pin)
        self.pin = pin
        self.states = checked_states(states or ("collapsing", "collapsed", "losing", "lost"))
        self.times = integer("times", times, at_least=0)
        self.restored: list[tuple[int, int]] = []
        self._inside = False

    def __call__(self, verdict: Verdict) -> None:
        entered = not verdict.entered.isdisjoint(self.states) and not self._inside
        self._inside = not verdict.states.isdisjoint(self.states)
        if not entered or len(self.restored) >= self.times:
            return
        if not self.pin.iterations:
            logger.warning("iteration %d: not rolled back, nothing healthy was pinned yet", verdict.iteration)
            return
        began = [
            max(0, answer.since - (answer.state == "dead"))  # it was dead by then; of what falls all was well
            for answer in verdict.answers
            if answer.state in self.states and answer.since is not None
        ]
        to = self.pin.restore(before=min(began, default=None))
        self.restored.append((verdict.iteration, to))
        logger.warning("iteration %d: rolled back to the healthy state of iteration %d", verdict.iteration, to)

    def state_dict(self) -> dict[str, Any]:
        """Return what was restored so far, for the checkpoint; the pin's state belongs there, too."""
        return {"restored": list(self.restored), "inside": self._inside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        with reading_state("a roll-back's", state, ("restored", "inside")):
            restored = [(integer("at", at), integer("to", to)) for at, to in state["restored"]]
        self.restored, self._inside = restored, bool(state["inside"])


def checked_states(states: tuple[State, ...], choices: tuple[State, ...] = STATES) -> tuple[State, ...]:
    """Return the states; ValueError names the first that is no choice, TypeError is of a string in their place."""
    if isinstance(states, str):
        raise TypeError(f"states must be a tuple of states, got a str: write ({states!r},)")
    for state in states:
        check_choice("a state", state, choices)
    return states


def _copied(state: Any) -> Any:
    """Copy a state's tensors and containers to the CPU's memory, so that the training cannot change it."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, OrderedDict):  # a module's, whose version is an attribute of it
        copied = copy.copy(state)
        copied.update({key: _copied(value) for key, value in state.items()})
        return copied
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)) and not hasattr(state, "_fields"):  # a namedtuple is made in another way
        return type(state)(_copied(value) for value in state)
    return copy.deepcopy(state)
