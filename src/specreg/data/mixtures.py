"""Mixtures of Gaussians in the plane, whose modes are known exactly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    r"""Equally likely isotropic Gaussians, :math:`\frac1K \sum_k N(c_k, \sigma^2 I)`; endless points."""

    name: str  # "ring" or "grid"
    publication: str  # of the protocol for centres, standard deviation and evaluation
    centres: Tensor  # c_k, (K, 2)
    deviation: float  # sigma, in each coordinate

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw points (count, 2), float32, and their modes (count,), int64."""
        modes = torch.randint(len(self.centres), (count,), generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        return self.centres[modes] + self.deviation * noise, modes


def _ring(radius: float) -> Tensor:
    """Return eight centres (8, 2) on a circle, the first at (radius, 0)."""
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return (radius * torch.stack([angles.cos(), angles.sin()], 1)).float()


_TICKS = torch.arange(-4.0, 5.0, 2.0)
_GRID = torch.cartesian_prod(_TICKS, _TICKS)
# By their names for the option --data. PacGAN: Lin et al. 2018, section 4.1, and the authors' code (the unit circle);
# self-conditioned: Liu et al. 2020, *Diverse Image Generation via Self-Conditioned GANs*, the authors' code.
MIXTURES = {
    "ring": GaussianMixture("ring", "pacgan", _ring(1.0), 0.01),
    "grid": GaussianMixture("grid", "pacgan", _GRID, 0.05),
    "ring-self-conditioned": GaussianMixture("ring", "self-conditioned", _ring(2.0), 0.01),
    "grid-self-conditioned": GaussianMixture("grid", "self-conditioned", _GRID, 0.05),
}
