r"""New singular values for a matrix, its singular vectors kept, at the price of two products.

With the eigenvectors Q of the smaller side's Gram matrix (see ``specreg.spectra.decompose``) and
:math:`g_k = \hat s_k / s_k - 1`,

.. math:: \hat W = W + \sum_k (\hat s_k - s_k)\, u_k v_k^H = W + (Q \operatorname{diag}(g)\, Q^H)\, W

for a wide W, and :math:`W + W (Q \operatorname{diag}(g)\, Q^H)` for a tall one: one product for the Gram matrix, one
to apply, and r x r work between them. The singular vectors of the longer side are never formed.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from specreg.spectra.decompose import (
    block_size,
    eigenbasis,
    full_precision,
    gram_dtypes,
    rounding,
    thin_svd,
    working_dtype,
)

Target = Callable[[Tensor], Tensor | None]

# The relative error (Frobenius) of a lifted weight in single precision or less: what is promised, and what a path may
# be expected to make and is still taken.
PROMISED = 1e-5
TOLERANCE = 2e-6


class Lifted(NamedTuple):
    r"""A matrix with new singular values.

    Attributes:
        matrix: shape (\*, m, n), or None where it is left as it was.
        before: the singular values that it had, (\*, r), in the real working dtype.
        u1, v1: its first singular vectors, (\*, m) and (\*, n).
    """

    matrix: Tensor | None
    before: Tensor
    u1: Tensor
    v1: Tensor


def lift(matrix: Tensor, target: Target, *, unit: bool = False, all_values: bool = True) -> Lifted:
    r"""Replace the singular values of a matrix, :math:`\hat W = U \operatorname{diag}(\hat s) V^H`.

    Args:
        matrix: W, finite, shape (\*, m, n), any floating or complex dtype.
        target: maps singular values (\*, r), descending, in the real working dtype, to :math:`\hat s`, or to None to
            leave the matrix as it is. It may be called several times, with values of growing accuracy.
        unit: divide the result by :math:`\hat s_1`. A zero matrix stays zero.
        all_values: all singular values have to be accurate, also those that are not changed.

    Raises:
        torch.linalg.LinAlgError: LAPACK did not converge, by any path.
    """
    for dtype in gram_dtypes(matrix):
        with contextlib.suppress(torch.linalg.LinAlgError), full_precision(matrix):  # type: ignore[attr-defined]
            eigenvalues, vectors = eigenbasis(matrix, dtype)
            s = eigenvalues.to(working_dtype(matrix).to_real()).clamp(min=0).sqrt()
            wanted = target(s)
            gain = torch.ones_like(s) if wanted is None else torch.where(wanted == s, 1.0, wanted / s)
            if bool((expected_error(eigenvalues, gain, all_values=all_values) <= TOLERANCE).all()):
                operator = None if wanted is None else _operator(vectors, gain, wanted[..., :1] if unit else None)
                return Lifted(None if operator is None else _applied(operator, matrix), s, *_first(matrix, vectors))
    return _by_decomposition(matrix, target, unit)


def expected_error(eigenvalues: Tensor, gain: Tensor, *, all_values: bool = True) -> Tensor:
    r"""Estimate the error of a lifted matrix that the rounding of its Gram matrix makes.

    To first order an error E of the Gram matrix turns the operator :math:`f(G)`, :math:`f(s_k^2) = \hat s_k / s_k`,
    by the divided differences of f,

    .. math:: (\delta \hat W)_{jk} = \frac{f_j - f_k}{s_j^2 - s_k^2} E_{jk} s_k, \qquad
              (\delta \hat W)_{kk} = \hat s_k \frac{\delta s_k}{s_k} = \hat s_k \frac{E_{kk}}{2 s_k^2},

    and the entries of E are as large as rounding makes them (:func:`specreg.spectra.decompose.rounding`). Where two
    eigenvalues are closer than that their vectors are arbitrary, and :math:`|f_j - f_k|` bounds the quotient times E.

    Args:
        eigenvalues: of the Gram matrix, (\*, r), descending, in the dtype in which they were computed.
        gain: f, (\*, r).
        all_values: count the errors of singular values that are not changed too.

    Returns:
        Shape (\*,): the larger of two errors, that of the turned vectors (Frobenius, relative) and that of the worst
        singular value, relative to s1. Not finite where the Gram matrix cannot serve: a zero matrix, or a singular
        value 0 that is to be raised.

    Reference:
        Daleckii and Krein 1965 (divided differences).
    """
    noise = rounding(eigenvalues)
    f, squares = gain.to(eigenvalues.dtype), eigenvalues.clamp(min=0)
    s = squares.sqrt()
    count = _num_raised(f)
    rows, columns = squares[..., :count, None], squares[..., None, :]
    distance = (rows - columns).abs_().clamp_(min=noise[..., None])
    # Each pair once, with the weight of both its orders.
    turned = (rows + columns).sqrt_().div_(distance).mul_(f[..., :count, None] - f[..., None, :])
    turned_error = torch.linalg.matrix_norm(turned) * noise[..., 0]
    value_error = noise / (2 * s)
    # Of a singular value 0 it is the square that is off by the noise.
    kept_error = value_error.clamp(max=noise.sqrt()) if all_values else torch.zeros_like(noise)
    value_errors = torch.where(f == 1, kept_error, f * value_error)
    return torch.maximum(turned_error / torch.linalg.vector_norm(f * s, dim=-1), value_errors.amax(-1) / s[..., 0])


def _num_raised(gain: Tensor) -> int:
    """Return the number of leading singular values that hold all those that are changed."""
    raised = (gain != 1).reshape(-1, gain.shape[-1]).any(0).nonzero()
    return int(raised[-1]) + 1 if len(raised) else 0


def _operator(vectors: Tensor, gain: Tensor, divisor: Tensor | None) -> Tensor:
    r"""Return :math:`I + Q \operatorname{diag}(f - 1) Q^H`, divided by the divisor if there is one."""
    count = _num_raised(gain)
    head, change = vectors[..., :count], (gain[..., None, :count] - 1).to(vectors.dtype)
    operator = (head * change) @ head.mH
    operator.diagonal(dim1=-2, dim2=-1).add_(1)
    return operator if divisor is None else operator.div_(divisor[..., None])


def _applied(operator: Tensor, matrix: Tensor) -> Tensor:
    """Apply an operator to the smaller side of a matrix, in the operator's dtype and without a whole copy in it."""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    if matrix.dtype == operator.dtype:
        return operator @ matrix if wide else matrix @ operator
    result = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    long_side = -1 if wide else -2
    size = block_size(matrix)
    for source, goal in zip(torch.split(matrix, size, long_side), torch.split(result, size, long_side), strict=True):
        block = source.to(operator.dtype)
        goal.copy_(operator @ block if wide else block @ operator)
    return result


def _first(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return u1 and v1: one of them is an eigenvector, the other is the matrix times it."""
    known = vectors[..., :1].to(matrix.dtype)
    wide = matrix.shape[-2] <= matrix.shape[-1]
    other = torch.nn.functional.normalize((matrix.mH if wide else matrix) @ known, dim=-2)
    u1, v1 = (known, other) if wide else (other, known)
    return u1[..., 0], v1[..., 0]


def _by_decomposition(matrix: Tensor, target: Target, unit: bool) -> Lifted:
    U, S, Vh = thin_svd(matrix)
    first = U[..., 0], Vh[..., 0, :].conj()
    if (wanted := target(S)) is None:
        return Lifted(None, S, *first)
    lifted = matrix.to(U.dtype) + (U * (wanted - S)[..., None, :]) @ Vh
    if unit:
        s1 = wanted[..., :1, None]
        lifted = lifted / torch.where(s1 > 0, s1, torch.ones_like(s1))
    return Lifted(lifted, S, *first)
