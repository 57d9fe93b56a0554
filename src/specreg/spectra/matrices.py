"""The one rule that reads a weight tensor as a matrix, and its inverse."""

import torch
from torch import Tensor


def to_matrix(weight: Tensor, *, output_dim: int = 0, groups: int = 1) -> Tensor:
    r"""Read a weight as a matrix :math:`W` whose rows are outputs; everything else is flattened into columns.

    Args:
        weight: shape (out, in/groups, \*kernel), or, as of a transposed convolution with ``output_dim=1``,
            (in, out/groups, \*kernel).
        output_dim: 0 or 1, the dimension that counts outputs.
        groups: number of blocks. A grouped convolution is block diagonal; each block is a matrix of its own.

    Returns:
        Shape (out, in·kernel) for one group, (groups, out/groups, in/groups·kernel) for more. A view
        wherever strides allow.

    Reference:
        Miyato et al. 2018, section 2.1 (flattening); Liu et al. 2019, section 3.
    """
    blocks = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, a, b, *kernel)
    matrices = (blocks.transpose(1, 2) if output_dim == 1 else blocks).flatten(2)
    return matrices.squeeze(0) if groups == 1 else matrices


def from_matrix(matrix: Tensor, shape: torch.Size, *, output_dim: int = 0, groups: int = 1) -> Tensor:
    """Undo :func:`to_matrix`: ``from_matrix(to_matrix(w, ...), w.shape, ...)`` equals ``w``."""
    if output_dim == 0:
        return matrix.reshape(shape)
    inputs, outputs = shape[0] // groups, shape[1]
    return matrix.reshape(groups, outputs, inputs, *shape[2:]).transpose(1, 2).reshape(shape)
