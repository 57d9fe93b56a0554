"""Diversity of generated samples, measured without labels and without a network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specreg.names import check_type


@dataclass(frozen=True)
class Diversity:
    """How diverse a batch of generated samples is beside a batch of real samples.

    Attributes:
        ratio: mean pairwise distance of the generated samples over that of the real samples.
        duplicates: share of generated samples whose nearest neighbour in the batch is closer than the nearest
            neighbours of all but 1% of the real samples, less the share of real ones that are repeated. A perfect
            generator has about 0.01 with a thousand samples, 0.02 with a hundred, 0.03 with the 64 of the lab.
    """

    ratio: float
    duplicates: float


def diversity(generated: Tensor, real: Tensor) -> Diversity:
    r"""Compare the pairwise Euclidean distances within a generated and a real batch.

    Args:
        generated, real: samples (N, \*) of one scale, a complex number is two; the larger batch is cut to the size of
            the smaller.

    Returns:
        The ratio of distances and the share of near-duplicates.

    Raises:
        ValueError: shapes differ, fewer than 3 samples, values that are not finite, or equal real samples.

    Example:
        >>> real = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> diversity(real / 2, real).ratio
        0.5
        >>> diversity(real[:10].repeat(20, 1), real).duplicates  # ten samples again and again
        1.0
    """
    check_type("generated samples", generated, Tensor)
    check_type("real samples", real, Tensor)
    if not generated.ndim or not real.ndim or generated.shape[1:] != real.shape[1:]:
        raise ValueError(f"generated samples have shape {tuple(generated.shape[1:])}, real {tuple(real.shape[1:])}")
    count = min(len(generated), len(real))
    if count < 3:
        raise ValueError(f"diversity needs at least 3 samples of each kind, got {len(generated)} and {len(real)}")
    (mean_fake, near_fake), (mean_real, near_real) = _distances(generated[:count]), _distances(real[:count])
    if not bool(torch.isfinite(mean_fake + mean_real)):
        raise ValueError("the samples hold NaN or inf")
    if not mean_real > 0:
        raise ValueError("the real samples are all alike")
    apart = near_real[near_real > 0]  # what the data hold twice says nothing of how close others are
    closer = near_fake < apart.quantile(0.01) if len(apart) else near_fake <= 0
    duplicates = float(closer.double().mean() - (near_real == 0).double().mean())
    return Diversity(ratio=float(mean_fake / mean_real), duplicates=max(0.0, duplicates))


def _distances(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean distance of all pairs, and each sample's distance to its nearest neighbour."""
    parts = torch.view_as_real(samples) if samples.is_complex() else samples
    flat = parts.detach().reshape(len(samples), -1).cpu().double()
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    count = len(flat)
    mean = distances.sum() / (count * (count - 1))
    return mean, distances.fill_diagonal_(float("inf")).min(1).values
