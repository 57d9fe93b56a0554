r"""How much of the real data a generator does not produce: a lower bound, from samples alone.

For any partition of the space into bins, with p_b and q_b the shares of real and generated samples in bin b,
:math:`\sum_b \max(0, p_b - q_b)` is a lower bound on the share of the real distribution's mass that is not produced, the
total variation between the two distributions. Estimated from finite samples it is too large by what chance does; that is
measured on held-out real samples and taken off.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    missing: float
    error: float


class Coverage:
    def __init__(self, real: Tensor, *, features: Callable[[Tensor], Tensor] | None = None, seed: int = 0) -> None:
        self.features, self.seed = features, seed
        random = torch.Generator().manual_seed(seed)
        x = self._embedded(real)
        x = x[torch.randperm(len(x), generator=random)]
        fit, held = x[: len(x) // 2], x[len(x) // 2 :]
        count = max(2, min(100, len(fit) // 10))
        centres = fit[torch.randperm(len(fit), generator=random)[:count]].clone()
        for _ in range(20):
            bins = torch.cdist(fit, centres).argmin(1)
            sums = torch.zeros_like(centres).index_add_(0, bins, fit)
            counts = torch.bincount(bins, minlength=count)[:, None]
            centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
        self.centres, self.num_held = centres, len(held)
        self.expected = self._shares(held)

    def measure(self, generated: Tensor) -> Reading:
        x = self._embedded(generated)
        gap = (self.expected - self._shares(x)).clamp_min(0).sum()
        random = torch.Generator().manual_seed(self.seed)
        chance = []
        for _ in range(100):
            pair = [
                torch.bincount(torch.multinomial(self.expected, n, True, generator=random), minlength=len(self.centres))
                / n
                for n in (len(x), self.num_held)
            ]
            chance.append((pair[0] - pair[1]).clamp_min(0).sum())
        floor = torch.stack(chance)
        return Reading(float((gap - floor.mean()).clamp_min(0)), float(2 * floor.std()))

    def _embedded(self, samples: Tensor) -> Tensor:
        return (samples if self.features is None else self.features(samples)).detach().flatten(1).float().cpu()

    def _shares(self, x: Tensor) -> Tensor:
        return torch.bincount(torch.cdist(x, self.centres).argmin(1), minlength=len(self.centres)) / len(x)

    def state_dict(self) -> dict[str, Any]:
        return {"centres": self.centres, "expected": self.expected, "held": self.num_held, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.centres, self.expected, self.num_held, self.seed = (
            state[k] for k in ("centres", "expected", "held", "seed")
        )
