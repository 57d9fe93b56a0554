r"""Orthogonalization by Newton's iteration (ONI) as a differentiable parametrization."""

import torch
from torch import Tensor, nn

from specreg.layers.find import Layers, find
from specreg.layers.requirements import parametrize_layers
from specreg.layers.selection import Selection
from specreg.layers.weights import SpectrumChanging
from specreg.names import integer
from specreg.spectra.autocast import full_precision
from specreg.spectra.gram import gram


def orthogonalize(module: nn.Module, *, iterations: int = 3, only: Selection = None, skip: Selection = None) -> Layers:
    r"""Parametrize every matching layer's weight so that all singular values are pulled towards 1, without an SVD.

    The stored weight Z is bounded, :math:`V = Z / \sqrt{\|Z Z^H\|_F}`, so that no singular value exceeds 1. Then
    Newton's iteration is made T times,

    .. math:: W_0 = V, \qquad W_{t+1} = \tfrac{3}{2} W_t - \tfrac{1}{2} W_t W_t^H W_t.

    The singular vectors stay; each singular value goes by itself, by
    :math:`s \leftarrow \tfrac{3}{2} s - \tfrac{1}{2} s^3` at each iteration: upwards, never beyond 1 and without change
    of order. The paper iterates :math:`B_t` with :math:`W_t = B_t V`, which is the same but for rounding: errors of
    :math:`B_t` grow with every iteration, errors of :math:`W_t` are corrected by the next. T controls how nearly W is
    orthogonal; T = 0 is the normalization alone. A zero weight maps to itself. Each group of a grouped convolution is a
    matrix of its own, and bounded by its own norm.

    What the network uses is what :func:`specreg.spectra` and the monitor read. Compensation, which edits stored
    weights, refuses these layers; :func:`specreg.remove` makes them plain again. Left out of the paper's method: the
    centering of the rows, the learned scale and the factor for ReLU networks, of which none bounds the spectrum by 1.

    Args:
        module: the discriminator, or any module. Changed in place.
        iterations: T, at least 0. The paper's code has 3 for its residual discriminators and 2 for DCGAN's.
        only, skip: which layers, see :mod:`specreg.layers.find`; by default all kinds but embeddings.

    Returns:
        The layers: a mapping from name to layer that prints as a table.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: a bad option, no layer matched, a layer already normalized or that cannot be written, a weight with
            NaN or inf, or the module is wrapped in DistributedDataParallel.

    Example:
        >>> import specreg
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[4.0, 0, 0], [0, 3, 0]]))
        >>> _ = specreg.orthogonalize(layer, iterations=0)
        >>> specreg.spectra(layer)[""].round(decimals=4)  # (4, 3) / sqrt(|diag(16, 9)|)
        tensor([0.9336, 0.7002], dtype=torch.float64)

    Reference:
        Huang et al. 2020, *Controllable Orthogonalization in Training DNNs*, section 3 (bounding and iteration).
    """
    iterations = integer("iterations", iterations, at_least=0)
    layers = find(module, only=only, skip=skip, title="orthogonalize")
    parametrize_layers(
        module, layers, lambda _: Orthogonalization(iterations),
        is_taken=lambda use: bool(use.parametrizations) or use.legacy_hook is not None, does="bounds the weight",
    )  # fmt: skip
    return layers


class Orthogonalization(SpectrumChanging):
    """The parametrization behind :func:`orthogonalize`."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations

    def mapped(self, matrix: Tensor) -> Tensor:
        with full_precision(matrix):
            return _newton(matrix.to(torch.promote_types(matrix.dtype, torch.float32)), self.iterations)

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}"


def _newton(matrix: Tensor, iterations: int) -> Tensor:
    # The result does not depend on the matrix's scale, which is taken off first so that no square over- or underflows.
    largest = matrix.detach().abs().amax((-2, -1), keepdim=True)
    matrix = matrix / torch.where(largest > 0, largest, torch.ones_like(largest))
    bound = torch.linalg.matrix_norm(gram(matrix, matrix.dtype), keepdim=True)  # at least the square of s1
    stretched: Tensor = matrix / torch.where(bound > 0, bound, torch.ones_like(bound)).sqrt()
    wide = matrix.shape[-2] <= matrix.shape[-1]
    for _ in range(iterations):
        product = gram(stretched, matrix.dtype)
        stretched = 1.5 * stretched - 0.5 * (product @ stretched if wide else stretched @ product)
    return stretched
