"""Singular value decompositions, computed accurately enough for a map with a gap in its middle."""

from typing import NamedTuple

import torch
from torch import Tensor


class SVD(NamedTuple):
    r"""Thin decomposition :math:`W = U \operatorname{diag}(S) V^H`, singular values descending.

    Shapes for a matrix (\*, m, n) with r = min(m, n): ``U`` (\*, m, r), ``S`` (\*, r), ``Vh`` (\*, r, n).
    """

    U: Tensor
    S: Tensor
    Vh: Tensor


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor's spectrum is computed: double precision where there is any.

    Raising the first i singular values rotates the result by about eps·s1/(s_i - s_{i+1}), so that
    float32 loses three digits and more where the spectrum is dense (see docs/precision.md). Apple's
    MPS has no float64; float32 and complex64 are used there.
    """
    double = tensor.device.type != "mps"
    if tensor.is_complex():
        return torch.complex128 if double else torch.complex64
    return torch.float64 if double else torch.float32


def svd(matrix: Tensor) -> SVD:
    r"""Decompose in :func:`working_dtype`.

    Args:
        matrix: finite, shape (\*, m, n), any floating or complex dtype.

    Returns:
        The thin decomposition; factors in the working dtype.

    Raises:
        torch.linalg.LinAlgError: LAPACK did not converge.
    """
    U, S, Vh = torch.linalg.svd(matrix.to(working_dtype(matrix)), full_matrices=False)
    return SVD(U, S, Vh)


def singular_values(matrix: Tensor) -> Tensor:
    r"""Return the singular values, descending, shape (\*, min(m, n)), in the real working dtype."""
    values: Tensor = torch.linalg.svdvals(matrix.to(working_dtype(matrix)))
    return values
