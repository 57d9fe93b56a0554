r"""The map :math:`W_{SR} = (W + \Delta W) / s_1` of static compensation, and its two gradients.

:math:`\Delta W = \sum_{k \le i} (s_1 - s_k)\, u_k v_k^H`, so :math:`W_{SR}` has the singular values 1 (k <= i) and
:math:`s_k / s_1` (k > i). A zero matrix maps to itself.
"""

import torch
from torch import Tensor

from specreg.spectra.reference import SVD, compensated, static_target


def regularized(matrix: Tensor, svd: SVD, count: int) -> Tensor:
    r"""Return :math:`W_{SR}` of shape (\*, m, n) in the dtype of ``svd``.

    Args:
        matrix: W, shape (\*, m, n), in the dtype of ``svd``.
        svd: its thin decomposition.
        count: i, the length of the head; 1 is spectral normalization.
    """
    return compensated(matrix, static_target(svd.S, count), svd).matrix / _scale(svd)[..., None]


def paper_gradient(upstream: Tensor, matrix: Tensor, svd: SVD, count: int) -> Tensor:
    r"""Pull a gradient (\*, m, n) back through :func:`regularized` with the singular vectors held constant.

    With Y the upstream gradient and :math:`\langle A, B\rangle = \operatorname{Re} \operatorname{tr} A^H B`, the
    four terms of the paper contracted with Y are

    .. math:: \frac{1}{s_1}\Big\{ Y - \langle W_{SN}, Y\rangle u_1 v_1^H
              - \frac{1}{s_1}\langle \Delta W, Y\rangle u_1 v_1^H
              + \sum_{k=2}^{i} \langle u_k v_k^H, Y\rangle\, (u_1 v_1^H - u_k v_k^H) \Big\}.

    Args:
        upstream: Y, shape (\*, m, n), in the dtype of ``svd``.
        matrix, svd, count: as given to :func:`regularized`.

    Reference:
        Liu et al. 2019, section 3.3, the gradient of the spectrally regularized weight.
    """
    s1 = _scale(svd)[..., 0]
    U, Vh = svd.U[..., :count], svd.Vh[..., :count, :]
    first = U[..., :, :1] * Vh[..., :1, :]
    along = torch.einsum("...mk,...mn,...kn->...k", U.conj(), upstream, Vh.conj()).real
    along[..., 0] = 0  # the sum starts at k = 2
    whole = (regularized(matrix, svd, count).conj() * upstream).sum((-2, -1)).real
    towards_first = (along.sum(-1) - whole)[..., None, None] * first
    gradient = (upstream + towards_first - (U * along[..., None, :]) @ Vh) / s1[..., None, None]
    return torch.where(_is_zero(svd)[..., None], upstream, gradient)


def exact_gradient(upstream: Tensor, matrix: Tensor, svd: SVD, count: int, *, eps: float) -> Tensor:
    r"""Pull a gradient (\*, m, n) back through :func:`regularized`, rotation of the singular vectors included.

    For a spectral function :math:`F(W) = U \operatorname{diag}(f) V^H` the derivative in the singular basis,
    :math:`M = U^H\, dW\, V`, is (Daleckii and Krein 1965, here for singular values)

    .. math:: dF_{jk} = \frac{f_j - f_k}{s_j - s_k}\, \frac{M_{jk} + \bar M_{kj}}{2}
                      + \frac{f_j + f_k}{s_j + s_k}\, \frac{M_{jk} - \bar M_{kj}}{2}, \qquad
              dF_\perp = \frac{f_k}{s_k} M_\perp,

    with :math:`\sum_l (\partial f_k / \partial s_l) \operatorname{Re} M_{ll}` on the diagonal. Inside the head all
    f are equal, so the first quotient is 0 there and repeated singular values do no harm; in the tail both are
    :math:`1 / s_1`. The map itself is not smooth in three places, where a finite value is chosen: at
    :math:`s_i = s_{i+1} < s_1` (it jumps; the tail's :math:`1/s_1` is used), for a singular value 0 inside the head
    (the direction is arbitrary; 0 is used), and at a repeated :math:`s_1` with a tail (the maximum has a
    kink; the mean of its derivatives is used).

    Args:
        upstream, matrix, svd, count: as in :func:`paper_gradient`.
        eps: singular values closer than eps·s1 count as repeated, and those below as 0: distances that are rounding.
    """
    U, S, Vh = svd
    V = Vh.mH
    s1 = _scale(svd)
    tiny = eps * s1
    largest = s1 - S <= tiny
    in_tail = torch.arange(S.shape[-1], device=S.device) >= count
    # Where the head ends among the copies of s1 (spectral normalization of a repeated s1), none of them is raised.
    in_tail = in_tail | (largest & (largest & in_tail).any(-1, keepdim=True))
    f = torch.where(in_tail, S / s1, torch.ones_like(S))

    # The tail is W / s1, linear but for its scale: both quotients are 1/s1, vanishing denominators included.
    linear = 1 / s1[..., None]
    either, both = in_tail[..., :, None] | in_tail[..., None, :], in_tail[..., :, None] & in_tail[..., None, :]
    difference, total = S[..., :, None] - S[..., None, :], S[..., :, None] + S[..., None, :]
    symmetric = _quotient(f[..., :, None] - f[..., None, :], difference, tiny[..., None], either * linear)
    antisymmetric = _quotient(f[..., :, None] + f[..., None, :], total, tiny[..., None], both * linear)
    outside = _quotient(f, S, tiny, in_tail / s1)

    Y = U.mH @ upstream @ V
    dual = symmetric * (Y + Y.mH) / 2 + antisymmetric * (Y - Y.mH) / 2
    # What is left on the diagonal is the tail's dependence on s1, spread over the singular values that share it.
    scale = -(torch.diagonal(Y, dim1=-2, dim2=-1).real * in_tail * S / s1**2).sum(-1, keepdim=True)
    dual = dual + torch.diag_embed(scale * largest / largest.sum(-1, keepdim=True))

    gradient = U @ dual @ Vh
    rows = upstream @ V - U @ Y  # outside the span of U, and of V: one of the two is zero, by the matrix's shape
    columns = U.mH @ upstream - Y @ Vh
    gradient = gradient + (rows * outside[..., None, :]) @ Vh + (U * outside[..., None, :]) @ columns
    return torch.where(_is_zero(svd)[..., None], upstream, gradient)


def _is_zero(svd: SVD) -> Tensor:
    return svd.S[..., :1] == 0


def _scale(svd: SVD) -> Tensor:
    s1 = svd.S[..., :1]
    return torch.where(_is_zero(svd), torch.ones_like(s1), s1)


def _quotient(numerator: Tensor, denominator: Tensor, tiny: Tensor, limit: Tensor) -> Tensor:
    vanishes = denominator.abs() <= tiny
    return torch.where(vanishes, limit, numerator / torch.where(vanishes, 1.0, denominator))
