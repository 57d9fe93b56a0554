r"""Tell a discriminator that teaches from one that is dead: a pure function of a stream of its signal on samples.

A generator learns from :math:`\nabla_x D(x)` at its own samples. Where that vanishes, or D says the same of everything,
nothing is taught, whatever the spectra are.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specreg.layers.selection import unwrap
from specreg.monitor.attainment import evaluating, gradient_norms
from specreg.monitor.verdict import Answer
from specreg.names import STATES, State, check_choice, integer


@dataclass(frozen=True)
class Signal:
    r"""What a discriminator says of a batch of real and a batch of generated samples.

    Attributes:
        gradient: the mean of :math:`\|\nabla_x D(x)\|` at generated samples.
        separation: how far apart the mean scores of real and generated samples are, in standard deviations of scores.
        spread: the standard deviation of the scores of all samples, relative to their largest magnitude.
    """

    gradient: float
    separation: float
    spread: float


def signal(discriminator: Callable[[Tensor], Any], real: Tensor, generated: Tensor) -> Signal:
    """Return a discriminator's signal; nothing of a training changes (see :func:`specreg.gradient_norms`).

    Raises:
        ValueError, TypeError: as :func:`specreg.gradient_norms`.
    """
    norms = gradient_norms(discriminator, real, generated)
    context: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if isinstance(discriminator, nn.Module):  # a wrapper's forward pass would wait for other processes
        context, discriminator = evaluating(discriminator), unwrap(discriminator)
    with context, torch.no_grad():
        scores = [_flat(discriminator(samples)) for samples in (real, generated)]
    both = torch.cat(scores)
    deviation = float(both.std())
    within = float((scores[0].var() / 2 + scores[1].var() / 2).sqrt())
    apart = float((scores[0].mean() - scores[1].mean()).abs())
    return Signal(norms["generated"], apart / max(within, 1e-12), deviation / max(float(both.abs().max()), 1e-12))


def _flat(scores: Any) -> Tensor:
    outputs = [scores] if isinstance(scores, Tensor) else list(scores)
    return torch.stack([output.detach().double().reshape(len(output), -1).mean(1).cpu() for output in outputs]).sum(0)


class SignalJudge:
    """Judge a stream of signals: "teaching" or "dead".

    It is dead where the gradient has fallen below ``faint`` of its largest, or its scores differ by less than
    ``constant`` of their size, in ``patience`` readings running.

    Args:
        faint, constant: see above.
        patience: readings that have to agree.
    """

    def __init__(self, *, faint: float = 1e-3, constant: float = 1e-5, patience: int = 2) -> None:
        self.faint, self.constant = faint, constant
        self.patience = integer("patience", patience, at_least=1)
        self._largest = 0.0
        self._silent: list[int] = []  # the iterations of the readings that agree so far
        self._state: State = "not judged"

    def update(self, iteration: int, reading: Signal) -> Answer:
        """Take one reading and judge."""
        self._largest = max(self._largest, reading.gradient if math.isfinite(reading.gradient) else 0.0)
        silent = not reading.gradient > self.faint * self._largest or not reading.spread > self.constant
        self._silent = [*self._silent, iteration] if silent else []
        self._state = "dead" if len(self._silent) >= self.patience else "teaching"
        if self._state == "dead":
            text = f"the discriminator is dead since iteration {self._silent[0]}: gradient {reading.gradient:.2g}"
            return Answer("dead", self._silent[0], text)
        return Answer("teaching", None, f"the discriminator teaches: gradient {reading.gradient:.2g}")

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as plain values, for the checkpoint."""
        return {"largest": self._largest, "silent": list(self._silent), "state": self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        if set(state) != {"largest", "silent", "state"}:
            raise ValueError(f"not a signal judge's state: it has the keys {sorted(map(str, state))}")
        try:
            check_choice("state", state["state"], STATES)
            largest, silent = float(state["largest"]), [integer("iteration", at) for at in state["silent"]]
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a signal judge's state ({error})") from error
        self._largest, self._silent, self._state = largest, silent, state["state"]
