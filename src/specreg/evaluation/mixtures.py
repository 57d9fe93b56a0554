r"""Evaluate generated points against a mixture of Gaussians whose centres are known.

A point belongs to the nearest centre and is of high quality if it is near enough. The publications differ in the region
and in the points that the KL counts, so every number goes with the name of its protocol.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specreg.evaluation.metrics import frechet_distance, reverse_kl, reverse_kl_floor

_REACH = 3.0  # standard deviations
# By publication the order of the norm that is at most 3 standard deviations in the region of high quality, and whether
# the reverse KL counts the modes of all points: PacGAN (Lin et al. 2018, section 4.1) and self-conditioned GAN (Liu et
# al. 2020), from the authors' code.
RULES: dict[str, tuple[float, bool]] = {"pacgan": (2, False), "self-conditioned": (math.inf, True)}


@dataclass(frozen=True)
class MixtureEvaluation:
    """The metrics of generated points, with their protocol: docs/results/mixtures.md."""

    protocol: str
    features: str  # always "coordinates": distances are those of the points themselves
    num_real: int
    num_fake: int
    modes: int
    high_quality: float
    kl: float | None  # None where no point counts
    kl_floor: float | None  # of as many points as count; None likewise
    fd: float  # in the squared unit of the plane


class MixtureEvaluator:
    """Compare generated points with a mixture of equally likely Gaussians.

    Args:
        real: points of the mixture (N, 2), for the Fréchet distance.
        name, publication, centres, deviation: the mixture's; the second is a key of ``RULES``.
    """

    def __init__(self, real: Tensor, *, name: str, publication: str, centres: Tensor, deviation: float) -> None:
        self._real, self._name, self._publication = real, name, publication
        self._centres, self._deviation = centres.double(), deviation

    def evaluate(self, points: Tensor, *, labels: Tensor | None = None) -> MixtureEvaluation:
        """Return every metric of generated points (M, 2); ``labels`` are not looked at."""
        if not bool(torch.isfinite(points).all()):
            raise ValueError("the generated points hold NaN or inf")
        (order, counts_all), count = RULES[self._publication], len(self._centres)
        modes, good = assign(points, self._centres, self._deviation, order=order)
        counted = modes if counts_all else modes[good]
        return MixtureEvaluation(
            protocol=f"{self._publication}_{self._name}_{len(points)}",
            features="coordinates",
            num_real=len(self._real),
            num_fake=len(points),
            modes=len(torch.unique(modes[good])),
            high_quality=good.double().mean().item(),
            kl=reverse_kl(counted, count) if len(counted) else None,
            kl_floor=reverse_kl_floor(count, len(counted)) if len(counted) else None,
            fd=frechet_distance(self._real, points),
        )

    def glance(self, points: Tensor) -> dict[str, float | int]:
        """Return the metrics for the display during training: modes, high_quality, kl where there is one, and fd."""
        evaluation = vars(self.evaluate(points))
        return {key: evaluation[key] for key in ("modes", "high_quality", "kl", "fd") if evaluation[key] is not None}


def assign(points: Tensor, centres: Tensor, deviation: float, *, order: float) -> tuple[Tensor, Tensor]:
    """Return each point's nearest centre (N,), int64, and whether it lies within 3 deviations of it (N,), bool.

    Points are (N, 2), centres (K, 2); the distance is the norm of this order, of infinity the larger coordinate.
    """
    points, centres = points.double(), centres.double()
    modes = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    distance = torch.linalg.vector_norm(points - centres[modes], order, dim=1)
    return modes, distance < _REACH * deviation
