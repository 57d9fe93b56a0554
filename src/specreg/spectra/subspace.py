r"""Static compensation from where it was left: follow the head's subspace, by matrix products.

Between two compensations a weight moves by a percent or so, and the last one left its first i singular values equal.
So the span of their vectors is known up to a small rotation, and on it the Gram matrix G is nearly a multiple of the
identity: the rotation follows from a linear equation, the function of the head from a power series.

With Q (r, i) an orthonormal basis of the last head, :math:`M = Q^H G Q` and the residual :math:`R = G Q - Q M`, the new
head is spanned by Q + Z with :math:`Z M - G Z = R` to first order. The operator on the left has its spectrum in
:math:`[s_i^2 - s_{i+1}^2, s_1^2]`, so a few sweeps of Chebyshev's semi-iteration solve it.

Nothing is taken on trust. The residual of the new basis and the remainders of the series make an estimated error, and
the distance to the tail is bounded by power sums, :math:`s_{i+1}^{16} \le \operatorname{tr} G^8 - \operatorname{tr}
H^8` with :math:`H = V^H G V` on the new basis V, so that no singular value can grow unseen outside the head. Whoever
calls compares the estimate with what is allowed and falls back on an eigendecomposition.

All tensors have one leading dimension, for matrices of equal size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SWEEPS = 3
SERIES = (1.0, -1 / 2, 3 / 8, -5 / 16, 35 / 128, -63 / 256)  # of 1/sqrt(1 + x)
SERIES_REMAINDER = 231 / 1024  # of x^6


class Head(NamedTuple):
    r"""What is remembered of a compensated matrix.

    Attributes:
        basis: Q, (b, r, i): orthonormal, the singular vectors of the smaller side that belong to the head, mixed.
        tail: about the largest eigenvalue of G beyond the head, relative to the largest, (b,). Only the speed hangs
            on it.
    """

    basis: Tensor
    tail: Tensor


class Followed(NamedTuple):
    r"""The head after its matrix has moved.

    Attributes:
        head: the new one.
        s1: the largest singular value, (b,).
        change: :math:`V (s_1 H^{-1/2} - I) V^H`, what raises the head to s1, (b, r, r).
        error: estimated error of the lifted matrix (Frobenius, relative), (b,); infinite or NaN where the head is lost.
    """

    head: Head
    s1: Tensor
    change: Tensor
    error: Tensor


def remember(eigenvalues: Tensor, vectors: Tensor, count: int) -> Head:
    """Return the head of a matrix that is about to be compensated, from the eigenbasis of its Gram matrix.

    Args:
        eigenvalues, vectors: (\\*, r), descending, and (\\*, r, r).
        count: i, below r.
    """
    return Head(vectors[..., :count].contiguous(), eigenvalues[..., count] / eigenvalues[..., 0])


def follow(gram: Tensor, head: Head) -> Followed:
    """Find the head of Gram matrices (b, r, r) near to where it was."""
    basis, crooked = _turned(gram, head)
    image = gram @ basis
    inner = basis.mH @ image  # H
    residual = torch.linalg.matrix_norm(torch.baddbmm(image, basis, inner, alpha=-1))
    squares = torch.linalg.eigvalsh(inner)
    smallest, largest = squares[:, 0], squares[:, -1]

    middle = (smallest + largest) / 2
    raising = _inverse_root(inner / middle[:, None, None]).mul_((largest / middle).sqrt()[:, None, None])
    raising.diagonal(dim1=-2, dim2=-1).sub_(1)
    change = (basis @ raising) @ basis.mH

    beyond = (_power_sum(gram, largest) - _power_sum(inner, largest)).clamp(min=0) ** (1 / 8)
    gap = smallest / largest - beyond
    turned = ((largest / smallest).sqrt() - 1) * residual / (largest * gap * basis.shape[-1] ** 0.5)
    spread = (largest - smallest) / (largest + smallest)
    error = torch.where((gap > 0) & (spread < 0.5), turned + crooked + SERIES_REMAINDER * spread**6, torch.inf)
    # The bound over-estimates the tail's largest by up to the eighth root of their number.
    tail = beyond / (gram.shape[-1] - basis.shape[-1]) ** (1 / 16)
    return Followed(Head(basis, tail), largest.sqrt(), change, error)


def _power_sum(matrix: Tensor, unit: Tensor) -> Tensor:
    """Return the trace of the eighth power of Hermitian matrices, relative to that of a unit."""
    square = (matrix @ matrix).div_(unit.square()[:, None, None])
    power: Tensor = torch.linalg.matrix_norm(square @ square) ** 2
    return power


def _turned(gram: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return an orthonormal basis of the subspace that the head has turned into, and what it lacks of being one, (b,).

    The latter is half the error of its Gram matrix, which goes into the root of H, and so into the lifted head.
    """
    basis = head.basis
    image = gram @ basis
    inner = basis.mH @ image
    residual = torch.baddbmm(image, basis, inner, alpha=-1)
    level = inner.diagonal(dim1=-2, dim2=-1).real.mean(-1)[:, None, None]
    # The spectrum of Z -> Z M - G Z, from the gap to the whole.
    low = level * (1 - head.tail.clamp(0.05, 0.9))[:, None, None]
    centre, radius = (level + low) / 2, (level - low) / 2
    ratio = radius / centre
    step = residual / centre
    turn, factor = step, ratio
    for _ in range(SWEEPS - 1):
        rest = torch.baddbmm(residual, turn, inner, alpha=-1).baddbmm_(gram, turn)
        following = 1 / (2 / ratio - factor)
        step = step * (following * factor) + rest * (2 * following / radius)
        turn, factor = turn + step, following
    moved = basis + turn
    excess = moved.mH @ moved
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    # (I + F)^(-1/2) to second order: F is the square of a small angle.
    correction = torch.baddbmm(excess, excess, excess, beta=-0.5, alpha=0.375)
    crooked = 5 / 16 * torch.linalg.matrix_norm(excess) ** 3
    return torch.baddbmm(moved, moved, correction), crooked


def _inverse_root(matrix: Tensor) -> Tensor:
    """Return the inverse square root of matrices near the identity, by its power series to the fifth order."""
    x = matrix
    x.diagonal(dim1=-2, dim2=-1).sub_(1)
    square = x @ x
    c0, c1, c2, c3, c4, c5 = SERIES
    result = _linear(x, c4, c5)
    result = torch.baddbmm(_linear(x, c2, c3), square, result)
    return torch.baddbmm(_linear(x, c0, c1), square, result)


def _linear(x: Tensor, constant: float, factor: float) -> Tensor:
    result = x * factor
    result.diagonal(dim1=-2, dim2=-1).add_(constant)
    return result
