r"""Static compensation from where it was left: follow the head's subspace, by matrix products.

Between two compensations a weight moves by a percent or so, and the last one left its first i singular values equal.
So the span of their vectors is known up to a small rotation, and on it the Gram matrix G is nearly a multiple of the
identity: the rotation follows from a linear equation, the function of the head from a power series.

With Q (r, i) an orthonormal basis of the last head, :math:`M = Q^H G Q` and the residual :math:`R = G Q - Q M`, the new
head is spanned by Q + Z with :math:`Z M - G Z = R` to first order. The operator on the left has its spectrum in
:math:`[s_i^2 - s_{i+1}^2, s_1^2]`, so three sweeps of Chebyshev's semi-iteration solve it.

Nothing is taken on trust. The residual of the new basis and the remainders of the series make an estimated error, and
the distance to the tail is bounded by power sums, :math:`s_{i+1}^{16} \le \operatorname{tr} G^8 - \operatorname{tr}
H^8` with :math:`H = V^H G V` on the new basis V, so that no singular value can grow unseen outside the head. Whoever
calls compares the estimate with what is allowed and falls back on an eigendecomposition.

All tensors have one leading dimension, for matrices of equal size.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SERIES = (1.0, -1 / 2, 3 / 8, -5 / 16, 35 / 128, -63 / 256)  # of 1/sqrt(1 + x)
SERIES_REMAINDER = 231 / 1024  # of x^6


class Head(NamedTuple):
    r"""What is remembered of a compensated matrix.

    Attributes:
        basis: Q, (b, r, i): orthonormal, the singular vectors of the smaller side that belong to the head, mixed.
        tail: about the largest eigenvalue of G beyond the head, relative to the largest, (b,), on the CPU. Only the
            speed hangs on it.
    """

    basis: Tensor
    tail: Tensor


class Followed(NamedTuple):
    r"""The head after its matrix has moved.

    Attributes:
        head: the new one.
        s1: the largest singular value, (b,).
        change: :math:`V (s_1 H^{-1/2} - I) V^H`, what raises the head to s1, (b, r, r).
        error: estimated error of each lifted matrix (Frobenius, relative); infinite or NaN where the head is lost.
    """

    head: Head
    s1: Tensor
    change: Tensor
    error: list[float]


def remember(eigenvalues: Tensor, vectors: Tensor, count: int) -> Head:
    """Return the head of a matrix that is about to be compensated, from the eigenbasis of its Gram matrix.

    Args:
        eigenvalues, vectors: (\\*, r), descending, and (\\*, r, r).
        count: i, below r.
    """
    return Head(vectors[..., :count].contiguous(), (eigenvalues[..., count] / eigenvalues[..., 0]).cpu())


def follow(gram: Tensor, head: Head) -> Followed:
    """Find the head of Gram matrices (b, r, r), which are overwritten, near to where it was.

    There are many small steps, and each costs more than its arithmetic: hence numbers of a matrix are computed in
    Python, after a single transfer, and few operations take another number.
    """
    unit, basis, excess = _turned(gram, head)
    adjoint = basis.mH
    image = torch.bmm(gram, basis)
    inner = torch.bmm(adjoint, image)  # H
    residual = _norm(image.baddbmm_(basis, inner, alpha=-1))
    whole = _root_of_power_sum(gram)
    squares = torch.linalg.eigvalsh(inner)
    smallest, largest = squares[:, 0], squares[:, -1]

    middle = torch.lerp(smallest, largest, 0.5)
    gain = (largest / middle).sqrt_()
    change = _inverse_root_less_one(inner, middle).mul_(gain[:, None, None])
    change.diagonal(dim1=-2, dim2=-1).add_(gain[:, None]).sub_(1)
    change = torch.bmm(torch.bmm(basis, change), adjoint)

    raised = torch.linalg.vector_norm(squares, 8, dim=-1)
    rank, count = basis.shape[-2:]
    numbers = torch.stack([smallest, largest, residual, excess, whole, raised], 1).tolist()
    error, tail = zip(*(_judged(count, *one) for one in numbers), strict=True)
    # The bound over-estimates the tail's largest by up to the eighth root of their number.
    tails = torch.tensor(tail, dtype=head.tail.dtype) / (rank - count) ** (1 / 16)
    return Followed(Head(basis, tails), (largest / unit).sqrt_(), change, list(error))


def _judged(
    count: int, smallest: float, largest: float, residual: float, excess: float, whole: float, raised: float
) -> tuple[float, float]:
    """Return the estimated error, and a bound on the largest eigenvalue beyond the head, relative to the largest.

    Args:
        count: i.
        smallest, largest: eigenvalues of H.
        residual, excess: norms of G V - V H and of what the basis had lacked.
        whole, raised: the root of tr G^8, and the eighth root of tr H^8.
    """
    if not largest > 0:
        return math.inf, 0.0
    beyond = max(whole**2 - raised**8, 0.0) ** (1 / 8) / largest
    gap, spread = smallest / largest - beyond, (largest - smallest) / (largest + smallest)
    if not (gap > 0 and spread < 0.5):
        return math.inf, beyond
    turned = (math.sqrt(largest / smallest) - 1) * residual / (largest * gap * math.sqrt(count))
    # That the basis is not quite orthonormal is half the error of its Gram matrix, which goes into the root of H.
    crooked = 5 / 16 * excess**3
    return turned + crooked + SERIES_REMAINDER * spread**6, beyond


def _norm(matrices: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1))
    return norms


def _root_of_power_sum(matrices: Tensor) -> Tensor:
    squares = torch.bmm(matrices, matrices)
    return _norm(torch.bmm(squares, squares))


def _turned(gram: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the subspace that the head has turned into, and make G to c·G.

    With :math:`c = 2/(\lambda_{max} + \lambda_{min})` for the operator's bounds, three sweeps from :math:`Z_0 = 0`:
    :math:`X_k = Z_k + c\,(R - Z_k M + G Z_k)`, :math:`Z_{k+1} = Z_{k-1} + \omega_{k+1} (X_k - Z_{k-1})`.

    Returns:
        c, (b,); an orthonormal basis; and the norm of what it had lacked of being one before it was made so, (b,).
    """
    basis, adjoint = head.basis, head.basis.mH
    image = torch.bmm(gram, basis)
    inner = torch.bmm(adjoint, image)
    residual = torch.baddbmm(image, basis, inner, alpha=-1)
    level = inner.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    # The operator's spectrum is from the gap, level·(1 - tail), to the whole.
    weights = [_weights(min(max(tail, 0.05), 0.9)) for tail in head.tail.tolist()]
    centre, second, third = torch.tensor(weights, dtype=level.dtype).to(level.device, non_blocking=True).unbind(1)
    unit = centre / level
    c = unit[:, None, None]
    for tensor in (gram, inner, residual):
        tensor.mul_(c)
    inner.diagonal(dim1=-2, dim2=-1).sub_(1)  # takes Z to X
    turn = torch.baddbmm(residual, residual, inner, alpha=-1).baddbmm_(gram, residual).mul_(second[:, None, None])
    last = torch.baddbmm(residual, turn, inner, alpha=-1).baddbmm_(gram, turn)
    moved = torch.lerp(residual, last, third[:, None, None].to(residual.dtype)).add_(basis)
    excess = torch.bmm(moved.mH, moved)
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    # (I + F)^(-1/2) to second order: F is the square of a small angle.
    correction = torch.baddbmm(excess, excess, excess, beta=-0.5, alpha=0.375)
    return unit, torch.baddbmm(moved, moved, correction), _norm(excess)


def _weights(tail: float) -> tuple[float, float, float]:
    """Return the level times c, and the weights of the second and third sweep (Golub and Varga 1961)."""
    centre = 1 - tail / 2
    squared = (tail / 2 / centre) ** 2
    second = 1 / (1 - squared / 2)
    return 1 / centre, second, 1 / (1 - squared * second / 4)


def _inverse_root_less_one(matrix: Tensor, unit: Tensor) -> Tensor:
    """Return (A/u)^(-1/2) - I of matrices A near u·I, by its power series to the fifth order."""
    _, c1, c2, c3, c4, c5 = SERIES
    x = matrix / unit[:, None, None]
    x.diagonal(dim1=-2, dim2=-1).sub_(1)
    square = torch.bmm(x, x)
    result = torch.baddbmm(square, square, x, beta=c4, alpha=c5).add_(x, alpha=c3)
    result.diagonal(dim1=-2, dim2=-1).add_(c2)
    return torch.baddbmm(x, square, result, beta=c1)
