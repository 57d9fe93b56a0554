r"""How singular values and vectors are computed: the one place that decides, by dtype, device and conditioning.

The singular values of a matrix W are the square roots of the eigenvalues of the Gram matrix of its smaller side,
:math:`G = W W^H` or :math:`W^H W`, of r x r. A product and an eigendecomposition of r x r cost a tenth of a thin
singular value decomposition and less. The price is accuracy: rounding G moves its eigenvalues by about
:math:`\epsilon s_1^2`, and with them the small singular values. Hence a ladder. Weights in single precision or less
are tried with G in single precision where the caller finds that accurate enough, then with G in double precision, and
last with the thin decomposition in double precision, which is also the reference and the only path for weights in
double precision. docs/performance.md has the measurements behind every rung.
"""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A Gram matrix and its eigendecomposition err at most like a random symmetric matrix whose entries have the standard
# deviation GRAM_ROUNDING·eps·s1²/sqrt(r): measured over spectra, shapes and maps (docs/performance.md, accuracy).
GRAM_ROUNDING = 4.0
# Singular values from a Gram matrix are taken if they are accurate to this part of s1.
VALUES_TOLERANCE = 1e-5
# Singular vectors of the longer side are taken from a Gram matrix up to this condition number.
MAX_CONDITION = 1e4
# On a CPU the thin decomposition of matrices up to this rank (that of a 3x3 convolution of RGB) costs no more than the
# many small steps around a Gram matrix.
SMALL_RANK = 27
# How often LAPACK did not converge for a finite matrix, by path; the next path was taken each time.
NOT_CONVERGED: Counter[str] = Counter()

logger = logging.getLogger("specreg")


class SVD(NamedTuple):
    r"""Thin decomposition :math:`W = U \operatorname{diag}(S) V^H`, singular values descending.

    Shapes for a matrix (\*, m, n) with r = min(m, n): ``U`` (\*, m, r), ``S`` (\*, r), ``Vh`` (\*, r, n).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return double precision, real or complex as the tensor is; single on Apple's MPS, which has no other."""
    double = tensor.device.type != "mps"
    if tensor.is_complex():
        return torch.complex128 if double else torch.complex64
    return torch.float64 if double else torch.float32


def gram_dtypes(matrix: Tensor, *, values_only: bool = False) -> tuple[torch.dtype, ...]:
    """Return the dtypes in which a Gram matrix may be tried, the fastest first.

    None for weights in double precision, whose digits it would lose, for small matrices on a CPU, and on MPS, which has
    no eigendecomposition. On a GPU double precision only: single precision may silently mean TF32 there.

    Args:
        values_only: all singular values are wanted. Then none in single precision for a nearly square matrix, whose
            smallest one is usually too small for it.
    """
    if matrix.dtype in (torch.float64, torch.complex128) or matrix.device.type == "mps":
        return ()
    short, long = sorted(matrix.shape[-2:])
    on_cpu = matrix.device.type == "cpu"
    if on_cpu and short <= SMALL_RANK:
        return ()
    single = torch.complex64 if matrix.is_complex() else torch.float32
    double = working_dtype(matrix)
    single_serves = on_cpu and _single_is_single() and not (values_only and long < 1.5 * short)
    return (single, double) if single_serves else (double,)


def gram(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Return :math:`W W^H` for a wide matrix and :math:`W^H W` for a tall one, shape (\*, r, r).

    Args:
        matrix: shape (\*, m, n); converted to ``dtype`` in blocks, so that there is never a second copy of it.
    """
    rows, columns = matrix.shape[-2:]
    wide = matrix if rows <= columns else matrix.mH
    if matrix.dtype == dtype:
        return wide @ wide.mH
    blocks = (block.to(dtype) for block in torch.split(wide, block_size(matrix), -1))
    first = next(blocks)
    product: Tensor = first @ first.mH
    for block in blocks:
        product += block @ block.mH
    return product


def block_size(matrix: Tensor) -> int:
    """Return how much of the long side is converted to another dtype at a time: a square, and not too small a one."""
    return max(256, min(matrix.shape[-2:]))


def eigenbasis(product: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the eigenvalues :math:`s_k^2` of a Gram matrix, descending, and its eigenvectors as columns.

    These are the left singular vectors of a wide matrix and the right ones of a tall one. Shapes (\*, r), (\*, r, r).
    """
    eigenvalues, vectors = torch.linalg.eigh(product)
    return eigenvalues.flip(-1), vectors.flip(-1)


def rounding(eigenvalues: Tensor) -> Tensor:
    r"""Return the standard deviation of the error in an entry of a Gram matrix, shape (\*, 1)."""
    return relative_rounding(eigenvalues) * eigenvalues[..., :1]


def relative_rounding(eigenvalues: Tensor) -> float:
    """Return :func:`rounding` relative to the largest eigenvalue."""
    return GRAM_ROUNDING * torch.finfo(eigenvalues.dtype).eps / math.sqrt(eigenvalues.shape[-1])


def singular_values(matrix: Tensor) -> Tensor:
    r"""Return the singular values of one matrix or of a stack; see :func:`singular_values_of`."""
    return singular_values_of([matrix])[0]


def singular_values_of(matrices: Sequence[Tensor]) -> list[Tensor]:
    r"""Return the singular values of several matrices, descending, (\*, min(m, n)) each, in the real working dtype.

    Those of weights below double precision are accurate to ``VALUES_TOLERANCE`` times s1 or better. Gram matrices of
    equal size go through one call of the eigensolver.

    Args:
        matrices: shapes (\*, m, n), any floating or complex dtype.

    Raises:
        torch.linalg.LinAlgError: a matrix holds NaN or inf, or LAPACK did not converge, by any path.
    """
    found: dict[int, Tensor] = {}
    for rung in range(2):
        groups: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}
        for index, matrix in enumerate(matrices):
            if index not in found and rung < len(dtypes := gram_dtypes(matrix, values_only=True)):
                with full_precision(matrix):
                    product = gram(matrix, dtypes[rung])
                groups.setdefault((product.shape, product.dtype, product.device), []).append((index, product))
        for members in groups.values():
            # A view of a product that is alone: a large one counts.
            products = [product for _, product in members]
            stack = products[0][None] if len(products) == 1 else torch.stack(products)
            found |= _from_gram([index for index, _ in members], stack)
    return [
        found[index] if index in found else _values_by_decomposition(matrix) for index, matrix in enumerate(matrices)
    ]


def _from_gram(indices: list[int], products: Tensor) -> dict[int, Tensor]:
    """Return those of the matrices' singular values that their Gram matrices give accurately enough."""
    eigenvalues = None
    with or_next_path("eigenvalues of a Gram matrix", products):
        eigenvalues = torch.linalg.eigvalsh(products)
    if eigenvalues is None:
        return {}
    # An error of d in s² is one of d/(2s) in s; of a singular value 0 it is at most the root of d.
    if eigenvalues.dtype == torch.float64:
        accurate = torch.isfinite(eigenvalues[..., 0])
    else:
        least = (relative_rounding(eigenvalues) / (2 * VALUES_TOLERANCE)) ** 2
        accurate = eigenvalues[..., 0] >= least * eigenvalues[..., -1]
    values = eigenvalues.flip(-1).double().clamp_(min=0).sqrt_()
    taken = accurate.reshape(len(indices), -1).all(1).tolist()
    return {index: s for index, s, take in zip(indices, values, taken, strict=True) if take}


def _values_by_decomposition(matrix: Tensor) -> Tensor:
    with or_next_path("singular values", matrix):
        values: Tensor = torch.linalg.svdvals(matrix.to(working_dtype(matrix)))
        return values
    return thin_svd_of_either_side(matrix).S


def svd(matrix: Tensor) -> SVD:
    r"""Decompose through a Gram matrix in double precision where that is accurate, by :func:`thin_svd` elsewhere.

    The singular vectors of the longer side, :math:`v_k = W^H u_k / s_k`, lose :math:`\epsilon\,(s_1 / s_k)^2`: with
    condition numbers up to ``MAX_CONDITION``, for weights below double precision, nothing that matters.

    Args:
        matrix: finite, shape (\*, m, n), any floating or complex dtype.

    Returns:
        The thin decomposition; factors in the working dtype.

    Raises:
        torch.linalg.LinAlgError: LAPACK did not converge, by any path.
    """
    double = working_dtype(matrix)
    if double in gram_dtypes(matrix):
        with or_next_path("eigendecomposition of a Gram matrix", matrix), full_precision(matrix):
            eigenvalues, vectors = eigenbasis(gram(matrix, double))
            if bool((eigenvalues[..., -1] > eigenvalues[..., 0] / MAX_CONDITION**2).all()):
                S = eigenvalues.sqrt()
                if matrix.shape[-2] <= matrix.shape[-1]:
                    return SVD(vectors, S, vectors.mH @ matrix.to(double) / S[..., :, None])
                return SVD(matrix.to(double) @ vectors / S[..., None, :], S, vectors.mH)
    return thin_svd_of_either_side(matrix)


def thin_svd_of_either_side(matrix: Tensor) -> SVD:
    """Decompose by :func:`thin_svd`, and if that does not converge by that of the adjoint, whose steps are others."""
    with or_next_path("thin singular value decomposition", matrix):
        return thin_svd(matrix)
    U, S, Vh = thin_svd(matrix.mH)
    return SVD(Vh.mH, S, U.mH)


@contextlib.contextmanager
def or_next_path(path: str, matrix: Tensor) -> Iterator[None]:
    """Go on after the block if LAPACK does not converge in it, say so and count it (``NOT_CONVERGED``).

    That it refuses a matrix with NaN or inf is neither said nor counted: no path serves there.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if bool(torch.isfinite(matrix).all()):
            NOT_CONVERGED[path] += 1
            logger.warning("%s did not converge, trying the next way (%d so far)", path, NOT_CONVERGED.total())
            logger.debug("%s", error)


def thin_svd(matrix: Tensor) -> SVD:
    """Decompose by LAPACK in the working dtype: the reference. Arguments, return and errors as :func:`svd`."""
    U, S, Vh = torch.linalg.svd(matrix.to(working_dtype(matrix)), full_matrices=False)
    return SVD(U, S, Vh)


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a context in which products are made in their factors' dtype, whatever autocast asks for outside."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def _single_is_single() -> bool:
    """Tell whether products of float32 are made in float32: a user may have allowed less."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by the newer interface, for one backend at least
        return False
