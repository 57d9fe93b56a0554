r"""The fast path: compensation from the Gram matrix of the smaller side, without an SVD.

With the eigenvectors Q of :math:`G = W W^H` (for a wide W; of :math:`W^H W` for a tall one) and
:math:`f_k = \hat s_k / s_k`

.. math:: \hat W = \sum_k \hat s_k\, u_k v_k^H = (f_1 I + Q \operatorname{diag}(f - f_1)\, Q^H)\, W,

so that one product makes G, one applies the change, and what lies between them is of r x r. From rank 128 on that is
less than a seventh of a thin decomposition's cost. The price is accuracy: rounding G moves its eigenvalues by about
:math:`\epsilon s_1^2`, and with them the small singular values. Hence a rule. G is tried in single precision, then in
double; each result is taken if its expected error is at most ``TOLERANCE``. The thin decomposition in double precision
is last, and the only way for weights in double precision. docs/performance.md has the measurements.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from specreg.spectra.autocast import full_precision
from specreg.spectra.gram import eigenbasis, gram, or_next_path, precisions, relative_rounding
from specreg.spectra.reference import Compensated, compensated, thin_svd, working_dtype

# The relative error (Frobenius) of a compensated weight in single precision or less: what is promised, and what a
# result may be expected to have and is still taken.
PROMISED = 1e-5
TOLERANCE = 2e-6

Array = np.ndarray[Any, np.dtype[Any]]
# New singular values for (*, r) descending ones in the real working dtype, or None to leave the matrix as it is. It is
# called once for each precision that is tried.
Target = Callable[[Tensor], Tensor | None]


def compensate(matrix: Tensor, target: Target, *, all_values: bool = True) -> tuple[Tensor, Compensated | None]:
    r"""Return s and :math:`\hat W = U \operatorname{diag}(\hat s) V^H`, None where the target is None.

    Args:
        matrix: W, finite, shape (\*, m, n), any floating or complex dtype.
        target: maps s to :math:`\hat s`.
        all_values: all singular values have to be accurate, also those that are not changed.

    Raises:
        torch.linalg.LinAlgError: LAPACK did not converge, by any path.
    """
    for dtype in precisions(matrix):
        with or_next_path("eigendecomposition of a Gram matrix", matrix), full_precision(matrix):
            squares, vectors = eigenbasis(gram(matrix, dtype))
            s = squares.clamp(min=0).to(working_dtype(matrix).to_real()).sqrt_()
            wanted = target(s)
            # The rest of what is not of the matrix's size is done in numpy, after one transfer: it is many small steps,
            # each of which would cost torch more than its arithmetic.
            gain = _gain(s.cpu().numpy(), (s if wanted is None else wanted).cpu().numpy())
            if (expected_error(squares.cpu().numpy(), gain, all_values=all_values) <= TOLERANCE).all():
                return s, None if wanted is None else _with_gain(matrix, vectors, gain)
    with full_precision(matrix):
        svd = thin_svd(matrix)
        wanted = target(svd.S)
        return svd.S, None if wanted is None else compensated(matrix, wanted, svd)


def _gain(s: Array, wanted: Array) -> Array:
    r"""Return :math:`f_k = \hat s_k / s_k`; exactly :math:`f_1` where only the scale of s changes, as of zeros."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = wanted / s
        first = gain[..., :1]
        is_scale = np.abs(gain - first) <= 4 * np.finfo(gain.dtype).eps * first
    return np.where(is_scale | ((s == 0) & (wanted == 0)), first, gain)


def expected_error(eigenvalues: Array, gain: Array, *, all_values: bool = True) -> Array:
    r"""Estimate the error of a compensated matrix that the rounding of its Gram matrix makes.

    To first order an error E of the Gram matrix turns the operator f(G), :math:`f(s_k^2) = \hat s_k / s_k`, by the
    divided differences of f,

    .. math:: (\delta \hat W)_{jk} = \frac{f_j - f_k}{s_j^2 - s_k^2} E_{jk} s_k, \qquad
              (\delta \hat W)_{kk} = \hat s_k \frac{\delta s_k}{s_k} = \hat s_k \frac{E_{kk}}{2 s_k^2},

    and the entries of E are as large as rounding makes them. Where two eigenvalues are closer than that their vectors
    are arbitrary, and :math:`|f_j - f_k|` bounds the quotient times E.

    Args:
        eigenvalues: of the Gram matrix, (\*, r), descending, in the dtype in which they were computed.
        gain: f, (\*, r).
        all_values: count the errors of singular values too of which only the scale changes.

    Returns:
        Shape (\*,): the larger of two errors, that of the turned vectors (Frobenius, relative) and that of the worst
        singular value, relative to the largest. Not finite where the Gram matrix cannot serve: a zero matrix, or a
        singular value 0 that is to be raised.

    Reference:
        Daleckii and Krein 1965 (divided differences).
    """
    f, squares = gain.astype(eigenvalues.dtype), np.maximum(eigenvalues, 0)
    s = np.sqrt(squares)
    noise = relative_rounding(float(np.finfo(eigenvalues.dtype).eps), s.shape[-1]) * squares[..., :1]
    with np.errstate(all="ignore"):
        distance = squares[..., :, None] - squares[..., None, :]
        np.maximum(np.abs(distance, out=distance), noise[..., None], out=distance)
        turned = f[..., :, None] - f[..., None, :]
        turned /= distance
        turned *= s[..., None, :]
        relative_square = np.einsum("...jk,...jk->...", turned, turned) / np.einsum("...k,...k->...", f * s, f * s)
        turned_error = np.sqrt(relative_square) * noise[..., 0]
        value_error = noise / (2 * s)
        # Of a singular value 0 it is the square that is off by the noise.
        unchanged = np.minimum(value_error, np.sqrt(noise)) if all_values else np.zeros_like(s)
        value_errors = np.where(f == f[..., :1], f * unchanged, f * value_error).max(-1) / (f * s)[..., 0]
        return np.maximum(turned_error, value_errors)


def _with_gain(matrix: Tensor, vectors: Tensor, gain: Array) -> Compensated:
    r"""Return the matrix under :math:`f_1 I + Q \operatorname{diag}(f - f_1) Q^H`, with its first singular vectors."""
    change = gain - gain[..., :1]
    changed = np.flatnonzero(change.reshape(-1, change.shape[-1]).any(0))
    count = int(changed[-1]) + 1 if len(changed) else 0  # the eigenvectors that take part
    head = vectors[..., :count]
    operator = (head * torch.from_numpy(change[..., None, :count]).to(head)) @ head.mH
    operator.diagonal(dim1=-2, dim2=-1).add_(torch.from_numpy(gain[..., :1]).to(head))
    return applied(matrix, operator, vectors[..., 0])


def applied(matrix: Tensor, operator: Tensor, first: Tensor) -> Compensated:
    r"""Return a matrix (\*, m, n) under an operator (\*, r, r) on its smaller side, with its first singular vectors.

    ``first`` is that of the smaller side, (\*, r).
    """
    wide = matrix.shape[-2] <= matrix.shape[-1]
    working = matrix.to(operator.dtype)
    result = (operator @ working if wide else working @ operator).to(matrix.dtype)
    first, tiny = first.to(result), torch.finfo(result.dtype).tiny
    if wide:
        v1 = (first[..., None, :].conj() @ result)[..., 0, :].conj()
        return Compensated(result, first, normalize(v1, dim=-1, eps=tiny))
    return Compensated(result, normalize((result @ first[..., None])[..., 0], dim=-1, eps=tiny), first)
