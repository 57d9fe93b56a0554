"""Gram matrices, the product of the smaller side: in which precision, their eigendecomposition, how they round."""

import contextlib
import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from specreg.spectra.reference import working_dtype

# A Gram matrix and its eigendecomposition err at most like a random symmetric matrix whose entries have the standard
# deviation GRAM_ROUNDING·eps·s1²/sqrt(r): measured over spectra, shapes and maps (docs/performance.md, accuracy).
GRAM_ROUNDING = 4.0
# On a CPU the thin decomposition of matrices up to this rank costs about as much as the steps around a Gram matrix.
SMALL_RANK = 27

logger = logging.getLogger("specreg.spectra")


def precisions(matrix: Tensor, *, values_only: bool = False) -> tuple[torch.dtype, ...]:
    """Return the dtypes in which a Gram matrix may be tried, the fastest first.

    Empty for weights in double precision, whose digits it would lose, for small matrices on a CPU, and on MPS, which
    has no eigendecomposition. On a GPU double precision only: single precision may silently mean TF32 there.

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
    r"""Return :math:`W W^H` for a wide matrix (\*, m, n) and :math:`W^H W` for a tall one, shape (\*, r, r)."""
    rows, columns = matrix.shape[-2:]
    wide = (matrix if rows <= columns else matrix.mH).to(dtype)
    return wide @ wide.mH


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


def _single_is_single() -> bool:
    """Tell whether products of float32 are made in float32: a user may have allowed less."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by the newer interface, for one backend at least
        return False


def relative_rounding(eps: float, rank: int) -> float:
    """Return the standard deviation of the error in an entry of a Gram matrix, relative to its largest eigenvalue."""
    return GRAM_ROUNDING * eps / math.sqrt(rank)
