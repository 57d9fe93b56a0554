"""The true norm of a convolution as a linear map, where the matrix of its weight gives only a bound."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specreg.spectra.reference import working_dtype


def convolution_norm(
    weight: Tensor,
    grid: Sequence[int],
    *,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    r"""Return the largest singular value of a convolution with periodic boundary on a grid.

    The map is block diagonal in frequency. With K(w) the (out, in) transfer matrix at frequency w, its norm is
    :math:`\max_w \|K(w)\|_2`; a stride folds the frequencies that it cannot tell apart,
    :math:`\max_w \|s^{-d} \sum_a K(w + a) K(w + a)^H\|_2^{1/2}`. A transposed convolution is the adjoint of the
    convolution with the same weight tensor and has its norm.

    A convolution of n pixels with zero padding is a part of the periodic one on a grid of at least
    :math:`n + \mathrm{dilation} (k - 1)`, so that there the value is an upper bound (a close one from some ten pixels).

    Args:
        weight: (out, in / groups, \*kernel), or for a transposed convolution (in, out / groups, \*kernel).
        grid: the input's pixels by dimension (a transposed convolution's output's), multiples of the stride.
        stride, dilation: by dimension, 1 by default.
        groups: number of blocks.

    Returns:
        A scalar, real, in double precision where the device has it.

    Reference:
        Sedghi, Gupta and Long 2019, *The singular values of convolutional layers*, theorem 6, for stride 1.
    """
    kernel = weight.shape[2:]
    stride = stride or [1] * len(kernel)
    dilation = dilation or [1] * len(kernel)
    if any(pixels % step for pixels, step in zip(grid, stride, strict=True)):
        raise ValueError(f"grid {tuple(grid)} is not a multiple of the stride {tuple(stride)}")
    dims = len(kernel)
    # (*kernel, groups, out, in); a kernel larger than the grid wraps around it.
    blocks = (
        weight.detach()
        .to(working_dtype(weight))
        .reshape(groups, -1, *weight.shape[1:])
        .permute(*range(3, 3 + dims), 0, 1, 2)
    )
    positions = [
        torch.arange(size, device=weight.device) * step % pixels
        for size, step, pixels in zip(kernel, dilation, grid, strict=True)
    ]
    spread = blocks.new_zeros(*grid, *blocks.shape[-3:])
    spread.index_put_(tuple(torch.meshgrid(*positions, indexing="ij")), blocks, accumulate=True)
    transfer = torch.fft.fftn(spread, dim=tuple(range(dims)))
    # Frequencies that the stride cannot tell apart stand side by side: (frequencies, groups, out, aliases · in).
    folded = [part for pixels, step in zip(grid, stride, strict=True) for part in (step, pixels // step)]
    transfer = transfer.reshape(*folded, *blocks.shape[-3:])
    aliases, frequencies = range(0, 2 * dims, 2), range(1, 2 * dims, 2)
    transfer = transfer.permute(*frequencies, 2 * dims, 2 * dims + 1, *aliases, 2 * dims + 2)
    matrices = transfer.reshape(-1, blocks.shape[-2], math.prod(stride) * blocks.shape[-1])
    return torch.linalg.matrix_norm(matrices, ord=2).max() / math.sqrt(math.prod(stride))
