r"""Maps on singular values: what spectral regularization does to a spectrum.

Every map takes singular values of shape (\*, r), descending, and returns new ones of the same shape. With
``strength`` t the result is :math:`s_k + t (\hat s_k - s_k)`, where :math:`\hat s_k` is the scheme's target;
t = 1 is the method as published.
"""

import torch
from torch import Tensor


def ratios(s: Tensor) -> Tensor:
    r"""Return the spectral distribution :math:`s_k / s_1`; all zeros for a zero matrix."""
    return s / _divisor(s[..., :1])


def raise_head(s: Tensor, count: int, strength: float = 1.0) -> Tensor:
    r"""Static scheme: :math:`\hat s_k = s_1` for k <= i, :math:`s_k` beyond.

    Args:
        s: singular values, shape (\*, r), descending.
        count: i, how many are raised, 1 <= i <= r. i = 1 changes nothing (spectral normalization).
        strength: t in [0, 1].

    Reference:
        Liu et al. 2019, section 3.2, static compensation.
    """
    head = torch.lerp(s[..., :count], s[..., :1].expand_as(s[..., :count]), strength)
    return torch.cat([head, s[..., count:]], dim=-1)


def raise_to_record(s: Tensor, record: Tensor, strength: float = 1.0) -> Tensor:
    r"""Dynamic scheme: :math:`\hat s_k = \gamma_k s_1`, with :math:`\gamma_k` the highest ratio seen.

    Args:
        s: singular values, shape (\*, r), descending.
        record: :math:`\gamma`, same shape, from :func:`update_record`, so that :math:`\gamma_k s_1 \ge s_k`.
        strength: t in [0, 1].

    Reference:
        Liu et al. 2019, section 3.2, dynamic compensation.
    """
    return torch.lerp(s, record * s[..., :1], strength)


def update_record(record: Tensor | None, s: Tensor) -> Tensor:
    r"""Return :math:`\gamma_k \leftarrow \max(\gamma_k, s_k / s_1)`; the ratios themselves at first."""
    now = ratios(s)
    return now if record is None else torch.maximum(record, now)


def _divisor(s1: Tensor) -> Tensor:
    # A zero matrix has no spectral distribution: dividing by 1 keeps its zeros and makes no NaN.
    return torch.where(s1 > 0, s1, torch.ones_like(s1))
