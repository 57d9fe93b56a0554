r"""Statistics of a spectrum: one number each for how its singular values stand against the largest.

All take singular values of shape (\*, r), descending, and return shape (\*,). A zero matrix has 0 everywhere; a matrix
with r = 1 has nothing below :math:`s_1`, and every ratio statistic of it is 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specreg.names import bulk_range
from specreg.spectra.reference import ratios


@dataclass(frozen=True)
class Statistics:
    r"""The statistics of one spectrum (or of a stack), each of shape (\*,).

    Attributes:
        largest: :math:`s_1`.
        bulk, effective_rank, stable_rank: as the functions below; the bulk is what the collapse detector watches.
        mean, median: of :math:`s_k / s_1` over k >= 2.
        area: under the curve k -> :math:`s_k / s_1` by trapezoids, the range of k scaled to [0, 1].
        tail: :math:`s_r / s_1`.
    """

    largest: Tensor
    bulk: Tensor
    mean: Tensor
    median: Tensor
    area: Tensor
    effective_rank: Tensor
    stable_rank: Tensor
    tail: Tensor


def statistics(s: Tensor) -> Statistics:
    r"""Return every statistic of singular values (\*, r)."""
    distribution = ratios(s)
    below = distribution[..., 1:] if s.shape[-1] > 1 else distribution
    return Statistics(
        largest=s[..., 0],
        bulk=bulk(s),
        mean=below.mean(-1),
        median=below.quantile(0.5, dim=-1),
        area=torch.trapezoid(distribution, dim=-1) / (s.shape[-1] - 1) if s.shape[-1] > 1 else distribution[..., 0],
        effective_rank=effective_rank(s),
        stable_rank=stable_rank(s),
        tail=distribution[..., -1],
    )


def bulk(s: Tensor) -> Tensor:
    r"""Return the mean of :math:`s_k / s_1` over the upper half of the spectrum without :math:`s_1` itself."""
    begin, end = bulk_range(s.shape[-1])
    return ratios(s)[..., begin:end].mean(-1)


def effective_rank(s: Tensor) -> Tensor:
    r"""Return :math:`\exp(-\sum_k p_k \ln p_k)`, :math:`p_k = s_k / \sum_j s_j`, in [1, r].

    Reference:
        Roy and Vetterli 2007, *The effective rank: a measure of effective dimensionality*, definition 1.
    """
    total = s.sum(-1, keepdim=True)
    p = s / torch.where(total > 0, total, torch.ones_like(total))
    return torch.where(total[..., 0] > 0, torch.special.entr(p).sum(-1).exp(), torch.zeros_like(total[..., 0]))


def stable_rank(s: Tensor) -> Tensor:
    r"""Return :math:`\sum_k s_k^2 / s_1^2 = \|W\|_F^2 / \|W\|_2^2`, in [1, r].

    Reference:
        Rudelson and Vershynin 2007, *Sampling from large matrices*, remark 1.3.
    """
    return ratios(s).square().sum(-1)


def random_bulk(rows: int, columns: int) -> float:
    r"""Return the :func:`bulk` that a matrix of independent entries of one variance has, by its limiting spectrum.

    What a layer's bulk was at initialization, when nothing else is known of its past. The squared singular values of a
    random r x n matrix (r <= n) divided by n follow the Marchenko-Pastur law on
    :math:`(1 \pm \sqrt{r/n})^2`; the k-th ratio is its quantile at :math:`(r - k + 1/2) / r` over the upper edge.
    Accurate to about 0.05 from r = 16 on.

    Reference:
        Marchenko and Pastur 1967; Glorot and Bengio 2010 for the initialization.
    """
    rank, longer = sorted((rows, columns))
    if rank < 2:
        return 1.0
    aspect = rank / longer
    low, high = (1 - math.sqrt(aspect)) ** 2, (1 + math.sqrt(aspect)) ** 2
    # x = mid + half·cos(a) removes the density's square-root edges, and its pole at 0 for square matrices.
    angle = torch.linspace(0, math.pi, 4001, dtype=torch.float64)
    x = (low + high) / 2 + (high - low) / 2 * angle.cos()
    density = angle.sin().square() / x.clamp_min(1e-12)
    above = torch.cumulative_trapezoid(density, angle)
    position = (torch.arange(*bulk_range(rank), dtype=torch.float64) + 0.5) / rank
    quantiles = x[1:][torch.searchsorted(above / above[-1], position)]
    return float((quantiles / high).sqrt().mean())
