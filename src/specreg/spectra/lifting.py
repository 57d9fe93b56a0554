r"""New singular values for a matrix, its singular vectors kept, at the price of two products.

With the eigenvectors Q of the smaller side's Gram matrix (see ``specreg.spectra.decompose``) and
:math:`g_k = \hat s_k / s_k - 1`,

.. math:: \hat W = W + \sum_k (\hat s_k - s_k)\, u_k v_k^H = W + (Q \operatorname{diag}(g)\, Q^H)\, W

for a wide W, and :math:`W + W (Q \operatorname{diag}(g)\, Q^H)` for a tall one: one product for the Gram matrix, one
to apply, and r x r work between them. The singular vectors of the longer side are never formed.
"""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from specreg.spectra.decompose import (
    block_size,
    eigenbasis,
    full_precision,
    gram,
    gram_dtypes,
    or_next_path,
    rounding,
    thin_svd_of_either_side,
    working_dtype,
)
from specreg.spectra.maps import raise_head
from specreg.spectra.subspace import Head, follow, remember

# The relative error (Frobenius) of a lifted weight in single precision or less: what is promised, and what a path may
# be expected to make and is still taken.
PROMISED = 1e-5
TOLERANCE = 2e-6
# Heads of these ranks are followed: of smaller ones the thin decomposition is as cheap, of larger ones the whole
# eigendecomposition (benchmarks/paths.py), and the bound on the tail is looser.
FOLLOWED_RANKS = range(28, 257)


class Lifted(NamedTuple):
    r"""A matrix with new singular values.

    Attributes:
        matrix: shape (\*, m, n), or None where it is left as it was.
        before: the singular values that it had, (\*, r), in the real working dtype; None if only the head was followed.
        u1, v1: first singular vectors of the new matrix, (\*, m) and (\*, n).
    """

    matrix: Tensor | None
    before: Tensor | None
    u1: Tensor
    v1: Tensor


@dataclass(frozen=True)
class Raising:
    """The static scheme as a target, and the heads that it has raised before, by the matrices' keys."""

    count: int
    strength: float = 1.0
    heads: MutableMapping[str, Head] = field(default_factory=dict)

    def __call__(self, key: str, s: Tensor) -> Tensor:
        return raise_head(s, self.count, self.strength)


# Maps the singular values (*, r) of a key's matrix, descending, in the real working dtype, to new ones, or to None to
# leave the matrix as it is. It may be called several times, with values of growing accuracy.
Target = Callable[[str, Tensor], Tensor | None]
Read = Callable[[], Tensor]


def lift(
    matrix: Tensor, target: Callable[[Tensor], Tensor | None], *, unit: bool = False, all_values: bool = True
) -> Lifted:
    """Replace the singular values of one matrix; see :func:`lift_all`."""
    return next(lift_all({"": lambda: matrix}, lambda _, s: target(s), unit=unit, all_values=all_values))[1]


def lift_all(
    matrices: dict[str, Read], target: Target | Raising, *, unit: bool = False, all_values: bool = True
) -> Iterator[tuple[str, Lifted]]:
    r"""Replace the singular values of matrices, :math:`\hat W = U \operatorname{diag}(\hat s) V^H`, one by one.

    Args:
        matrices: key -> a function that returns W, finite, shape (\*, m, n), any floating or complex dtype. All of
            equal rank, dtype, device and leading dimensions. It may be called several times.
        target: the new singular values; with a :class:`Raising` the heads that it remembers are followed.
        unit: divide the result by :math:`\hat s_1`. A zero matrix stays zero.
        all_values: all singular values have to be accurate, also those that are not changed.

    Yields:
        Key and result; no more than one new matrix exists at a time.

    Raises:
        torch.linalg.LinAlgError: LAPACK did not converge, by any path.
    """
    some = next(iter(matrices.values()))()
    rungs = gram_dtypes(some)
    followed: dict[str, _Operator] = {}
    if isinstance(target, Raising) and rungs:
        known = {key: read for key, read in matrices.items() if _is_known(key, some, target)}
        followed = _followed(known, target, rungs[0], unit) if known else {}
    for key, operator in followed.items():
        yield key, _lifted(operator, matrices[key]())
    # One after the other: LAPACK gains nothing from a stack, and its temporaries would be as large.
    for key, read in matrices.items():
        if key not in followed:
            matrix = read()
            found = (_decomposed(key, matrix, target, dtype, unit, all_values) for dtype in rungs)
            best = next(filter(None, found), None)
            yield key, _by_decomposition(key, matrix, target, unit) if best is None else _lifted(best, matrix)


class _Operator(NamedTuple):
    """What lifts a matrix, on its smaller side: None where it is left; and the head's first singular vector there."""

    operator: Tensor | None
    first: Tensor
    before: Tensor | None


def _followed(matrices: dict[str, Read], target: Raising, dtype: torch.dtype, unit: bool) -> dict[str, _Operator]:
    """Return operators for those matrices whose head was found where it was remembered."""
    heads = [target.heads.pop(key) for key in matrices]
    with or_next_path("following a head", heads[0].basis), full_precision(heads[0].basis):
        grams = torch.stack([gram(read(), dtype) for read in matrices.values()])
        basis, tail = (torch.stack(parts) for parts in zip(*heads, strict=True))
        found = follow(grams, Head(basis.to(grams), tail))
        operators = found.change
        operators.diagonal(dim1=-2, dim2=-1).add_(1)
        if unit:
            operators.div_(found.s1[:, None, None])
        result = {}
        parts = (matrices, operators.unbind(), found.head.basis.unbind(), found.head.tail.unbind(), found.error)
        for key, operator, basis, tail, error in zip(*parts, strict=True):
            if error <= TOLERANCE:
                target.heads[key] = Head(basis, tail)
                result[key] = _Operator(operator, basis[:, 0], None)
        return result
    return {}


def _decomposed(
    key: str, matrix: Tensor, target: Target | Raising, dtype: torch.dtype, unit: bool, all_values: bool
) -> _Operator | None:
    """Return the operator for a matrix if an eigendecomposition in a dtype is accurate enough for it."""
    with or_next_path("eigendecomposition of a Gram matrix", matrix), full_precision(matrix):
        eigenvalues, vectors = eigenbasis(gram(matrix, dtype))
        s = eigenvalues.to(working_dtype(matrix).to_real()).clamp(min=0).sqrt()
        wanted = target(key, s)
        gain = torch.ones_like(s) if wanted is None else torch.where(wanted == s, 1.0, wanted / s)
        if bool((expected_error(eigenvalues, gain, all_values=all_values) <= TOLERANCE).all()):
            operator = None if wanted is None else _operator(vectors, gain, wanted[..., :1] if unit else None)
            if isinstance(target, Raising) and s.ndim == 1 and _can_be_followed(len(s), target):
                target.heads[key] = remember(eigenvalues, vectors, target.count)
            return _Operator(operator, vectors[..., 0], s)
    return None


def _is_known(key: str, matrix: Tensor, target: Raising) -> bool:
    head = target.heads.get(key)
    return head is not None and head.basis.shape == (min(matrix.shape[-2:]), target.count) and target.strength == 1


def _can_be_followed(rank: int, target: Raising) -> bool:
    # Raised in part only, the head is not of equal singular values, and its first singular vector has to be known.
    return rank in FOLLOWED_RANKS and 1 < target.count < rank and target.strength == 1


def _lifted(found: _Operator, matrix: Tensor) -> Lifted:
    with full_precision(matrix):
        lifted = None if found.operator is None else _applied(found.operator, matrix)
        return Lifted(lifted, found.before, *_first(matrix if lifted is None else lifted, found.first))


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


def _first(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return u1 and v1: one of them is given, the other is the matrix times it."""
    known = vector.to(matrix.dtype)
    if matrix.shape[-2] <= matrix.shape[-1]:
        other = (known[..., None, :].conj() @ matrix)[..., 0, :].conj()
        return known, torch.nn.functional.normalize(other, dim=-1)
    return torch.nn.functional.normalize((matrix @ known[..., None])[..., 0], dim=-1), known


def _by_decomposition(key: str, matrix: Tensor, target: Target | Raising, unit: bool) -> Lifted:
    U, S, Vh = thin_svd_of_either_side(matrix)
    first = U[..., 0], Vh[..., 0, :].conj()
    if (wanted := target(key, S)) is None:
        return Lifted(None, S, *first)
    lifted = matrix.to(U.dtype) + (U * (wanted - S)[..., None, :]) @ Vh
    if unit:
        s1 = wanted[..., :1, None]
        lifted = lifted / torch.where(s1 > 0, s1, torch.ones_like(s1))
    return Lifted(lifted, S, *first)
