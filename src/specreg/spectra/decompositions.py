"""Singular values and decompositions of whole matrices, through Gram matrices where that is accurate."""

import torch
from torch import Tensor

from specreg.spectra.autocast import full_precision
from specreg.spectra.gram import eigenbasis, gram, or_next_path, precisions, relative_rounding
from specreg.spectra.reference import SVD, thin_svd, working_dtype

# Singular values are taken if they are accurate to this part of s1.
VALUES_TOLERANCE = 1e-5
# Singular vectors of the longer side are taken from a Gram matrix up to this condition number.
MAX_CONDITION = 1e4


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
