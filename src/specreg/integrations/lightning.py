"""A callback for Lightning: a monitor, and optionally a guard, of a discriminator inside a LightningModule."""

import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.hooks import RemovableHandle

from specreg.guard import Guard
from specreg.layers.selection import Selection
from specreg.monitor.actions import checked_states, log
from specreg.monitor.coverage import Coverage
from specreg.monitor.detector import Detector
from specreg.monitor.monitor import Action, Monitor, Samples
from specreg.monitor.writers import numbers_of
from specreg.names import State, check_type

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer


def _lightning() -> Any:
    # Lightning comes as two packages with classes of their own: the training uses that which it imported.
    names = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda name: name not in sys.modules)
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in ("lightning", "lightning.pytorch", "pytorch_lightning"):
                raise
    raise ImportError("specreg.integrations.lightning needs Lightning: pip install pytorch-lightning, or lightning")


if not TYPE_CHECKING:
    Callback = _lightning().Callback

logger = logging.getLogger("specreg")


class SpectralMonitorCallback(Callback):
    """Watch a discriminator's spectra during ``Trainer.fit``, log them, and act on a collapse.

    An iteration is a training batch, counted by the callback and kept in its checkpoint: under manual optimization
    ``trainer.global_step`` counts the steps of all optimizers, two a batch in a common GAN. Each snapshot's
    :func:`~specreg.monitor.writers.scalars` go to all loggers of the trainer, with the iteration as their step. With
    several callbacks, one for each discriminator, their names begin with its path. Where k batches make one step of the
    optimizer, ``every``, ``samples_every`` and the detector's warm-up and windows are to be k times as large.

    The guard compensates right after each step of the discriminator's optimizer. A compensator needs no callback, but
    in ``configure_optimizers``: ``optimizer.register_step_post_hook(lambda *_: compensator.step())``.

    Each of several processes has its own monitor, guard and actions; they agree, as the weights are equal, and what
    process 0 reads of its ``samples`` is told to all. Weights that are sharded between processes cannot be watched.

    Args:
        discriminator: its path in the LightningModule, as for ``get_submodule``.
        every, detector, samples, samples_every, coverage, scores, groups, only, skip: see :class:`specreg.Monitor`.
        actions: called with each new verdict; by default changes of state are logged.
        guard: switch compensation on when a collapse begins: True, or options of :class:`specreg.Guard`.
        stop_on: states, the verdict's or alarms of its answers, that end the training, "collapsed" for instance; none
            by default.

    Attributes:
        iteration: number of training batches so far.
        monitor, guard: None before the training starts.

    Raises:
        ValueError: there is no such state.

    Example:
        ``Trainer(callbacks=[SpectralMonitorCallback("discriminator", guard=True)])``
    """

    def __init__(
        self,
        discriminator: str = "discriminator",
        *,
        every: int = 100,
        detector: Detector | None = None,
        actions: Iterable[Action] = (log,),
        guard: bool | Mapping[str, Any] = False,
        stop_on: tuple[State, ...] = (),
        samples: Samples | None = None,
        samples_every: int = 250,
        coverage: Coverage | None = None,
        scores: Callable[[torch.Tensor], Any] | None = None,
        groups: Mapping[str, str | Iterable[str]] | None = None,
        only: Selection = None,
        skip: Selection = None,
    ) -> None:
        self.iteration = 0
        self.monitor: Monitor | None = None
        self.guard: Guard | None = None
        self.stop_on = checked_states(stop_on)
        self._path = discriminator
        self._monitor_options: dict[str, Any] = {
            "every": every, "detector": detector, "samples": samples, "samples_every": samples_every,
            "coverage": coverage, "scores": scores, "groups": groups, "only": only, "skip": skip,
        }  # fmt: skip
        check_type("actions", actions, Iterable, "a list of functions, if of one alone")
        self._actions = list(actions)
        self._guard_options = dict(guard) if isinstance(guard, Mapping) else {} if guard else None
        self._handle: RemovableHandle | None = None
        self._loaded: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Build the monitor and the guard, restore their states, and hook the discriminator's optimizer.

        Raises:
            ValueError: there is no such discriminator, a bad option, or for a guard not exactly one optimizer that
                holds weights of its layers.
        """
        self._let_go()
        try:
            module = pl_module.get_submodule(self._path)
        except AttributeError as error:
            raise ValueError(f"the LightningModule has no discriminator {self._path!r}: {error}") from error
        if self.monitor is None:
            self.monitor = Monitor(module, actions=self._actions, **self._monitor_options)
            if self._guard_options is not None:
                self.guard = Guard(self.monitor, **self._guard_options)
        elif self.monitor.module is not module:
            raise ValueError("the callback has watched another module: make a new one for each training")
        if self._loaded is not None:
            self._restore(self.monitor, self._loaded)
            self._loaded = None
        if (guard := self.guard) is not None and guard.layers:  # it has none once it was removed
            weights = (tensor for layer in guard.layers.values() for use in layer.uses for tensor in use.sources)
            optimizer = _optimizer_of(weights, self._path, trainer.optimizers)
            self._handle = optimizer.register_step_post_hook(lambda *_: guard.step())  # type: ignore[arg-type]

    def on_train_batch_end(
        self, trainer: "Trainer", pl_module: "LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch, take a due snapshot, log it, and stop the training in a state of ``stop_on``."""
        assert self.monitor is not None
        self.iteration += 1
        verdict = self.monitor.step(self.iteration)
        if verdict.iteration == self.iteration:
            numbers = numbers_of(self.monitor, verdict)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            if sum(isinstance(callback, SpectralMonitorCallback) for callback in callbacks) > 1:
                numbers = {f"{self._path}/{name}": number for name, number in numbers.items()}
            for trainer_logger in trainer.loggers:
                trainer_logger.log_metrics(numbers, step=self.iteration)
        if not verdict.states.isdisjoint(self.stop_on) and not trainer.should_stop:
            logger.warning("iteration %d: the training stops: %s", self.iteration, verdict.message)
            trainer.should_stop = True

    def on_train_end(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Let go of the discriminator's optimizer."""
        self._let_go()

    @property
    def state_key(self) -> str:
        """Of the callback's state in a checkpoint: one for each discriminator."""
        return self._generate_state_key(discriminator=self._path)

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the states of monitor, guard and actions; Lightning puts it into its checkpoints."""
        if self._loaded is not None:  # not restored yet
            return dict(self._loaded)
        return {
            "iteration": self.iteration,
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
            "guard": None if self.guard is None else self.guard.state_dict(),
            "actions": {name: action.state_dict() for name, action in self._stateful().items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what :meth:`state_dict` returned; it is restored when the training starts."""
        self._loaded = state_dict

    def _restore(self, monitor: Monitor, state: Mapping[str, Any]) -> None:
        self.iteration = state["iteration"]
        if state["monitor"] is not None:
            monitor.load_state_dict(state["monitor"])
        # A guard or an action that the interrupted training did not have begins anew.
        if self.guard is not None and state["guard"] is not None:
            self.guard.load_state_dict(state["guard"])
        for name, action in self._stateful().items():
            if name in state.get("actions", {}):
                action.load_state_dict(state["actions"][name])

    def _stateful(self) -> dict[str, Any]:
        """Return the actions that have a state, the guard's pin among them, by kind and number."""
        pin = None if self.guard is None else self.guard.pin
        named: dict[str, Any] = {}
        for action in [*(action for action in self._actions if action is not pin), pin]:
            if hasattr(action, "state_dict"):
                kind = type(action).__name__
                named[f"{kind} {sum(name.startswith(f'{kind} ') for name in named)}"] = action
        return named

    def _let_go(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def _optimizer_of(
    weights: Iterable[torch.Tensor], path: str, optimizers: Iterable[torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    ids = {id(weight) for weight in weights}
    matching = [
        optimizer
        for optimizer in optimizers
        if any(id(parameter) in ids for group in optimizer.param_groups for parameter in group["params"])
    ]
    if len(matching) != 1:
        raise ValueError(f"the guard needs one optimizer with its layers of {path!r}, the trainer has {len(matching)}")
    return matching[0]
