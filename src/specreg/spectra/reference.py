r"""The method itself, to be read beside section 3 of Liu et al. 2019: what a spectrum is raised to, and how.

A weight is a matrix :math:`W = U \operatorname{diag}(s) V^H`, :math:`s_1 \ge \dots \ge s_r`. Spectral regularization
gives it new singular values and keeps its singular vectors,

.. math:: \hat W = W + \Delta W, \qquad \Delta W = \sum_k (\hat s_k - s_k)\, u_k v_k^H,

and spectral normalization then divides by :math:`s_1`. A scheme is a target :math:`\hat s`:

=========  =============================================  =====================================
static     :math:`s_1` for k <= i, :math:`s_k` beyond     i, from :func:`head_size`
dynamic    :math:`\gamma_k s_1`                           :math:`\gamma_k`: highest ratio so far
=========  =============================================  =====================================

Singular values have the shape (\*, r) and descend. ``specreg.spectra.fast`` computes the same without a
singular value decomposition; this one is what it falls back on, and what it is tested against.
"""

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger("specreg.spectra")


class SVD(NamedTuple):
    r"""Thin decomposition :math:`W = U \operatorname{diag}(S) V^H`, singular values descending.

    Shapes for a matrix (\*, m, n) with r = min(m, n): ``U`` (\*, m, r), ``S`` (\*, r), ``Vh`` (\*, r, n).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


class Compensated(NamedTuple):
    """A matrix with new singular values, and its first singular vectors."""

    matrix: Tensor  # (*, m, n)
    u1: Tensor  # (*, m)
    v1: Tensor  # (*, n)


def ratios(s: Tensor) -> Tensor:
    r"""Return the spectral distribution :math:`s_k / s_1`; all zeros for a zero matrix."""
    s1 = s[..., :1]
    return s / torch.where(s1 > 0, s1, torch.ones_like(s1))


def head_size(keep: float | int, rank: int) -> int:
    r"""Return i, how many of r singular values the static scheme raises.

    Args:
        keep: a fraction of r, :math:`i = \lceil \mathrm{keep} \cdot r \rceil`, or an integer, i = min(keep, r).
        rank: r.

    Reference:
        Liu et al. 2019, section 4: i = 0.5 r. Their code rounds down; docs/math.md says why this does not.
    """
    # The product's rounding must not raise one more: 0.28 of 25 is 7, not 8.
    return min(keep, rank) if isinstance(keep, int) else max(1, math.ceil(keep * rank - 1e-9))


def static_target(s: Tensor, count: int) -> Tensor:
    r"""Return :math:`\hat s_k = s_1` for k <= i = ``count``, :math:`s_k` beyond; i = 1 changes nothing.

    Reference:
        Liu et al. 2019, section 3.2, static compensation.
    """
    return torch.cat([s[..., :1].expand_as(s[..., :count]), s[..., count:]], dim=-1)


def dynamic_target(s: Tensor, record: Tensor) -> Tensor:
    r"""Return :math:`\hat s_k = \gamma_k s_1` for a record :math:`\gamma` that s has updated.

    Reference:
        Liu et al. 2020 (Image and Vision Computing), dynamic compensation; γ is never below the present ratios.
    """
    return record * s[..., :1]


def updated_record(s: Tensor, record: Tensor | None) -> Tensor:
    r"""Return :math:`\gamma_k \leftarrow \max(\gamma_k, s_k / s_1)`; the ratios themselves at first."""
    return ratios(s) if record is None else torch.maximum(record, ratios(s))


def scaled(s: Tensor, largest: Tensor) -> Tensor:
    r"""Return singular values scaled so that the first is ``largest``, of shape (\*,); zeros stay zeros."""
    first = s[..., :1]
    return s * torch.where(first > 0, largest[..., None] / first, 1.0)


def compensated(matrix: Tensor, target: Tensor, svd: SVD) -> Compensated:
    r"""Return :math:`\hat W = W + \sum_k (\hat s_k - s_k)\, u_k v_k^H`.

    Args:
        matrix: W, shape (\*, m, n).
        target: :math:`\hat s`, (\*, r).
        svd: of W.
    """
    U, S, Vh = svd
    result = matrix.to(U.dtype) + (U * (target - S)[..., None, :]) @ Vh
    return Compensated(result, U[..., 0], Vh[..., 0, :].conj())


def thin_svd(matrix: Tensor) -> SVD:
    """Decompose by LAPACK in the working dtype; where that does not converge, the adjoint, whose steps are others.

    Args:
        matrix: shape (\\*, m, n), any floating or complex dtype.

    Raises:
        torch.linalg.LinAlgError: the matrix holds NaN or inf, or neither converged.
    """
    working = matrix.to(working_dtype(matrix))
    try:
        return SVD(*torch.linalg.svd(working, full_matrices=False))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if bool(torch.isfinite(working).all()):
            logger.warning("thin decomposition did not converge, trying that of the adjoint")
        U, S, Vh = torch.linalg.svd(working.mH, full_matrices=False)
        return SVD(Vh.mH, S, U.mH)


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return double precision, real or complex as the tensor is; single on Apple's MPS, which has no other."""
    double = tensor.device.type != "mps"
    if tensor.is_complex():
        return torch.complex128 if double else torch.complex64
    return torch.float64 if double else torch.float32
