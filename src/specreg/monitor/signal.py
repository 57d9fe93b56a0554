r"""Tell a discriminator that teaches from one that is dead: a pure function of a stream of its signal on samples.

A generator learns from :math:`\nabla_x D(x)` at its own samples. Where that vanishes, or D says the same of everything,
nothing is taught, whatever the spectra are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specreg.layers.evaluation import evaluating
from specreg.monitor.attainment import check_pair, norms_of_gradients
from specreg.monitor.verdict import Answer
from specreg.names import integer, listed, reading_state

_FAINT, _CONSTANT, _PATIENCE = 1e-3, 1e-5, 2
_BATCH = 2**20  # numbers of samples at once
NUM_AT_ONCE = 16  # samples, at most


@dataclass(frozen=True)
class Signal:
    """What a discriminator says of a batch of real and a batch of generated samples."""

    gradient: float  # the mean norm of D's gradient at generated samples
    # How far the scores of all samples lie apart, relative to their largest magnitude, of each output in a list.
    spreads: tuple[float, ...]


def signal(discriminator: Callable[[Tensor], Any], real: Tensor, generated: Tensor) -> Signal:
    """Return a discriminator's signal, a batch at a time; nothing of a training changes."""
    check_pair(real, generated)
    # A power of two: layers that compare a batch's samples in groups, of four mostly, need whole groups. Never many:
    # of short samples, waveforms or latents, a network may make maps that are a thousand times as large.
    size = max(4, min(NUM_AT_ONCE, 1 << (_BATCH // generated[0].numel()).bit_length() >> 1))
    # In inference mode, in which samples may have been made, nothing has a gradient.
    with torch.inference_mode(False), torch.no_grad(), evaluating(discriminator) as network:
        norms = torch.cat([norms_of_gradients(network, part) for part in torch.split(generated, size)])
        parts = (*torch.split(real, size), *torch.split(generated, size))
        outputs = zip(*(_extremes(network(part.clone())) for part in parts), strict=True)
    return Signal(norms.mean().item(), tuple(_spread(torch.stack(output, dim=1)) for output in outputs))


def _extremes(scores: Any) -> list[Tensor]:
    """Return the lowest and highest of each number that samples have in an output, (2, numbers), one by one.

    Together they would be the same of all samples where an output is probabilities, or features that are normalized.
    """
    outputs = [scores] if isinstance(scores, Tensor) else list(scores)
    rows = (output.detach().cpu().double().reshape(output.shape[:1].numel(), -1) for output in outputs)
    return [torch.stack([row.amin(0), row.amax(0)]) for row in rows]


def _spread(extremes: Tensor) -> float:
    lowest, highest = extremes[0].amin(0), extremes[1].amax(0)
    return float((highest - lowest).amax() / torch.maximum(highest, -lowest).amax().clamp(min=1e-12))


class SignalJudge:
    """Judge a stream of signals: "teaching" or "dead".

    It is dead where the gradient has fallen below a thousandth of the largest that the first reading, or two in a row,
    had, or its scores, or one output of a list, differ by less than 1e-5 of their size, in two readings running. One
    that never had a gradient is judged from when its weights move: a last layer may begin at zero, and training later.
    """

    def __init__(self) -> None:
        self._largest, self._last = 0.0, math.inf  # of the gradients, and the one at the reading before
        self._silent: list[int] = []  # the iterations of the readings that agree so far

    def update(self, iteration: int, reading: Signal, *, has_begun: bool = True) -> Answer:
        gradient = reading.gradient if math.isfinite(reading.gradient) else 0.0
        # What one reading alone had is no measure of the others, unless it is the first.
        self._largest, self._last = max(self._largest, min(gradient, self._last)), gradient
        if self._largest == gradient == 0 and not has_begun:
            return Answer("not judged", None, "the discriminator is not judged: its gradient is 0, its weights stand")
        faint = not reading.gradient > _FAINT * self._largest
        constant = [place for place, spread in enumerate(reading.spreads, start=1) if not spread > _CONSTANT]
        self._silent = [*self._silent, iteration] if faint or constant else []
        if len(self._silent) >= _PATIENCE:
            what, since = "the discriminator is dead", f"since iteration {self._silent[0]}"
            if not faint and len(constant) < len(reading.spreads):
                places = listed([str(place) for place in constant])
                verb = "is" if len(constant) == 1 else "are"
                what = f"of the discriminator's {len(reading.spreads)} outputs {places} {verb} dead"
            text = f"{what} {since}: gradient {reading.gradient:.2g}"
            return Answer("dead", self._silent[0], text)
        return Answer("teaching", None, f"the discriminator teaches: gradient {reading.gradient:.2g}")

    def state_dict(self) -> dict[str, Any]:
        return {"largest": self._largest, "last": self._last, "silent": list(self._silent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; ValueError, and no change, if it is something else."""
        with reading_state("a signal judge's", state, self.state_dict()):
            largest, last = float(state["largest"]), float(state["last"])
            silent = [integer("iteration", at) for at in state["silent"]]
        self._largest, self._last, self._silent = largest, last, silent
