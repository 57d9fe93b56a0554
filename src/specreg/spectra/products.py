r"""Static compensation by matrix products alone, where a spectrum has a gap after its head: for GPUs.

With the projector P on the first i eigenvectors of :math:`G = W W^H` and :math:`\lambda = s_1^2`,

.. math:: \hat W = (P G P / \lambda + I - P)^{-1/2}\, W

raises the first i singular values to :math:`s_1` and leaves the others. Three iterations make this of products: the
trace of G times its powers is :math:`\lambda`, the sign of G less a number in the gap is 2 P - I, and the inverse root
is one of a matrix whose eigenvalues lie between a half and 1. A GPU makes a product of 128 x 128 in less time than a
CPU takes to ask for it, and an eigendecomposition of that size in 2 ms; asked for once, as a graph, all products of all
layers take less than one eigendecomposition.

Whether there is a gap is not assumed: the result says of each matrix whether the iterations have converged, to a
projector of rank i. A head that was raised a few updates ago and what it leaves are far apart (docs/performance.md).

Reference:
    Higham 2008, *Functions of Matrices*, chapters 5 (sign) and 6 (roots): Newton-Schulz iterations.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Squarings of G: what is taken for its largest eigenvalue misses less than 1e-6 of it, whatever lies beside.
_SQUARINGS = 24
# A head is told from the rest by s_k/s_1 above and below one of these. In trainings on images heads stayed above 0.93
# between two compensations, and the rest below 0.77; layers of few singular values have them nearer.
# Three places are three times the batch, not three times the launches.
GAPS = (0.85, 0.75, 0.95)
# Powers of a matrix of trace 1 that stay far from the least float64, to rank 512.
_SQUARINGS_AT_ONCE = 6
# Products to a sign, from eigenvalues a twentieth away from the gap; to an inverse root, from eigenvalues of a half.
_SIGN_STEPS, _ROOT_STEPS = 14, 7
_CONVERGED = 1e-9


class Raised(NamedTuple):
    """What raises heads, for a batch of b Gram matrices of r x r."""

    operators: Tensor  # what W is multiplied by on its smaller side, (b, r, r)
    s1: Tensor  # its largest singular value, (b,)
    first: Tensor  # an eigenvector of that, (b, r)
    converged: Tensor  # whether all of this holds, (b,), bool


def raised(products: Tensor, counts: Tensor) -> Raised:
    """Return what raises the first i = ``counts`` (b,) singular values behind Gram matrices (b, r, r) to the largest.

    Rows and columns of zeros may fill up smaller ones. Nothing waits for the device.
    """
    identity = torch.eye(products.shape[-1], dtype=products.dtype, device=products.device).expand_as(products)
    # Traces as norms: they bound the largest eigenvalue from above, and keep every power finite.
    size = _trace(products)
    scaled = products / size[:, None, None]
    power = scaled
    for step in range(1, _SQUARINGS + 1):
        power = power @ power
        if step % _SQUARINGS_AT_ONCE == 0:
            power = power / _trace(power)[:, None, None]
    largest = (scaled * power.mT).sum((-2, -1))
    scaled = scaled / largest[:, None, None]
    signs = torch.cat([scaled / gap**2 - identity for gap in GAPS])  # a batch for each gap, one after another
    for _ in range(_SIGN_STEPS):
        signs = torch.baddbmm(signs, signs, signs @ signs, beta=1.5, alpha=-0.5)
    by_gap = signs.reshape(len(GAPS), *products.shape)
    projectors = (by_gap + identity) / 2
    are_signs = (by_gap @ by_gap - identity).abs().amax((-2, -1)) < _CONVERGED
    serves = are_signs & ((_trace(projectors) - counts).abs() < _CONVERGED)
    chosen = serves.byte().argmax(0)[None, :, None, None]
    projector = projectors.gather(0, chosen.expand_as(projectors[:1]))[0]
    head = projector @ scaled @ projector + identity - projector
    root, inverse = head, identity
    for _ in range(_ROOT_STEPS):
        correction = torch.baddbmm(identity, inverse, root, beta=1.5, alpha=-0.5)
        root, inverse = root @ correction, correction @ inverse
    is_root = (inverse @ head @ inverse - identity).abs().amax((-2, -1)) < _CONVERGED  # false for NaN
    # The largest diagonal entry is no less than the mean, so that its column is not zero.
    column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)
    first = power.gather(-1, column[:, None, None].expand(*power.shape[:-1], 1))[..., 0]
    return Raised(
        operators=inverse,
        s1=(largest * size).sqrt(),
        first=first / torch.linalg.vector_norm(first, dim=-1, keepdim=True),
        converged=serves.any(0) & is_root,
    )


def stacked(products: Sequence[Tensor]) -> Tensor:
    """Return batches of Gram matrices of several sizes, each (b, r, r), as one batch, filled up with zeros."""
    size = max(product.shape[-1] for product in products)
    return torch.cat([torch.nn.functional.pad(product, [0, size - product.shape[-1]] * 2) for product in products])


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
