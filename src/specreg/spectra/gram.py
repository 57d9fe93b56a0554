"""Gram matrices: singular values and decompositions from the product of the smaller side; the rule is fast.py's."""

import contextlib
import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from specreg.spectra.reference import SVD, thin_svd, working_dtype

# A Gram matrix and its eigendecomposition err at most like a random symmetric matrix whose entries have the standard
# deviation GRAM_ROUNDING·eps·s1²/sqrt(r): measured over spectra, shapes and maps (docs/performance.md, accuracy).
GRAM_ROUNDING = 4.0
# Singular values are taken if they are accurate to this part of s1.
VALUES_TOLERANCE = 1e-5
# Singular vectors of the longer side are taken from a Gram matrix up to this condition number.
MAX_CONDITION = 1e4
# On a CPU the thin decomposition of matrices up to this rank costs about as much as the steps around a Gram matrix.
SMALL_RANK = 27

logger = logging.getLogger("specreg.spectra")


def singular_values(matrix: Tensor) -> Tensor:
    r"""Return the singular values, descending, (\*, min(m, n)), in the real working dtype.

    Those of weights below double precision are accurate to ``VALUES_TOLERANCE`` times s1 or better.

    Args:
        matrix: shape (\*, m, n), any floating or complex dtype.

    Raises:
        torch.linalg.LinAlgError: the matrix holds NaN or inf, or LAPACK did not converge, by any path.
    """
    for dtype in precisions(matrix, values_only=True):
        with or_next_path("eigenvalues of a Gram matrix", matrix), full_precision(matrix):
            squares = torch.linalg.eigvalsh(gram(matrix, dtype)).flip(-1)
            # An error of d in s² is one of d/(2s) in s. Below 0 there is only the rounding of a singular value 0.
            rounding = relative_rounding(torch.finfo(dtype).eps, squares.shape[-1])
            least = (rounding / (2 * VALUES_TOLERANCE)) ** 2 if torch.finfo(dtype).bits == 32 else -1.0
            is_held = squares[..., 0] > torch.finfo(dtype).tiny / rounding  # squares of tiny entries are rounded to 0
            if bool((squares[..., -1] >= least * squares[..., 0]).logical_and(is_held).all()):
                return squares.clamp_(min=0).to(working_dtype(matrix).to_real()).sqrt_()
    with or_next_path("singular values", matrix):
        return torch.linalg.svdvals(matrix.to(working_dtype(matrix)))
    return thin_svd(matrix).S


def svd(matrix: Tensor) -> SVD:
    r"""Decompose through a Gram matrix in double precision where that is accurate, by :func:`thin_svd` elsewhere.

    The singular vectors of the longer side, :math:`v_k = W^H u_k / s_k`, lose :math:`\epsilon\,(s_1 / s_k)^2`: with
    condition numbers up to ``MAX_CONDITION``, for weights below double precision, nothing that matters. Arguments,
    factors' dtype and errors are those of :func:`thin_svd`.
    """
    double = working_dtype(matrix)
    if double in precisions(matrix):
        with or_next_path("eigendecomposition of a Gram matrix", matrix), full_precision(matrix):
            eigenvalues, vectors = eigenbasis(gram(matrix, double))
            if bool((eigenvalues[..., -1] > eigenvalues[..., 0] / MAX_CONDITION**2).all()):
                S = eigenvalues.sqrt()
                if matrix.shape[-2] <= matrix.shape[-1]:
                    return SVD(vectors, S, vectors.mH @ matrix.to(double) / S[..., :, None])
                return SVD(matrix.to(double) @ vectors / S[..., None, :], S, vectors.mH)
    return thin_svd(matrix)


def precisions(matrix: Tensor, *, values_only: bool = False) -> tuple[torch.dtype, ...]:
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


def eigenbasis(product: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the eigenvalues :math:`s_k^2` of a Gram matrix, descending, and its eigenvectors as columns.

    These are the left singular vectors of a wide matrix and the right ones of a tall one. Shapes (\*, r), (\*, r, r).
    """
    eigenvalues, vectors = torch.linalg.eigh(product)
    return eigenvalues.flip(-1), vectors.flip(-1)


@contextlib.contextmanager
def or_next_path(path: str, matrix: Tensor) -> Iterator[None]:
    """Go on after the block if LAPACK does not converge in it, and say so, unless NaN or inf is the reason."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        if bool(torch.isfinite(matrix).all()):
            logger.warning("%s did not converge, trying the next way (%s)", path, str(error).partition(chr(10))[0])


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a context in which products are made in their factors' dtype, whatever autocast asks for outside."""
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)


def block_size(matrix: Tensor) -> int:
    """Return how much of the long side is converted to another dtype at a time: a square, and not too small a one.

    On a GPU a larger part, for it waits for each to be launched.
    """
    return max(2**14 if matrix.is_cuda else 256, min(matrix.shape[-2:]))


def _single_is_single() -> bool:
    """Tell whether products of float32 are made in float32: a user may have allowed less."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by the newer interface, for one backend at least
        return False


def relative_rounding(eps: float, rank: int) -> float:
    """Return the standard deviation of the error in an entry of a Gram matrix, relative to its largest eigenvalue."""
    return GRAM_ROUNDING * eps / math.sqrt(rank)
