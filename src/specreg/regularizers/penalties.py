r"""Penalties on the spectra, to be added to the discriminator's loss, from Gram matrices without an SVD.

All read the weight that the network uses. Under spectral normalization that is :math:`W / s_1`, so that the first two
act on the ratios :math:`s_k / s_1` and not on the scale of the stored weight, which the network does not feel; the
third is for weights without it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from specreg.layers.find import Layers, find
from specreg.layers.selection import Selection
from specreg.names import integer
from specreg.spectra.autocast import full_precision
from specreg.spectra.gram import gram
from specreg.spectra.reference import working_dtype

# Singular values enter the D-optimal penalty as sqrt(s² + EPS²): far below what a trained layer has, so that it does
# not count there, and large enough to keep the slope, at most 1/(2·EPS), finite for an optimizer.
EPS = 1e-3


def orthogonality_penalty(module: nn.Module, *, only: Selection = None, skip: Selection = None) -> Tensor:
    r"""Return :math:`\sum \|W W^H - I\|_F^2 = \sum_k (s_k^2 - 1)^2` over every matching layer, to be minimized.

    W is the weight that the network uses (after spectral normalization, regularization or weight normalization), read
    without moving power iteration, and the product is that of its smaller side: 0 if all singular values are 1. Each
    group of a grouped convolution is a matrix of its own.

    Add it, times a weight of 1e-4 (Brock et al. 2019), to the discriminator's loss after the forward pass. Brock et al.
    penalize the stored weight of the generator, and leave the diagonal out; spectral normalization would leave a
    penalty on the stored weight to act on a scale that the network does not feel.

    Args:
        module: the discriminator, or any module.
        only, skip: which layers, see :mod:`specreg.layers.find`; by default all kinds but embeddings.

    Returns:
        A scalar, differentiable by the weights.

    Raises:
        ValueError: no layer matched.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0]]))
        >>> orthogonality_penalty(layer).item()  # (1 - 1)² + (4 - 1)²
        9.0

    Reference:
        Brock et al. 2017, *Neural Photo Editing with Introspective Adversarial Networks*, section 3.3, in the squared
        norm of Brock et al. 2019, *Large Scale GAN Training for High Fidelity Natural Image Synthesis*, section 3.1.
    """
    return _total(find(module, only=only, skip=skip, title="orthogonality_penalty"), _distance_from_identity)


def d_optimal_penalty(module: nn.Module, *, only: Selection = None, skip: Selection = None) -> Tensor:
    r"""Return :math:`-\sum_k \log s_k = -\tfrac{1}{2} \log\det(W W^H)` over every matching layer, to be minimized.

    W and its product are as in :func:`orthogonality_penalty`, the product made in double precision. Bounded below where
    :math:`s_1` is: under spectral normalization, where it is 0 if all singular values are equal (of a grouped
    convolution it may then be larger: torch normalizes its stacked groups by one common norm); a plain weight is pushed
    to grow without end. The bound is as good as power iteration's s1: steps so large that the largest singular value
    falls faster than power iteration notices diverge.

    A singular value counts as :math:`\sqrt{s_k^2 + \epsilon^2}` with :math:`\epsilon = 10^{-3}`, whatever its size: the
    penalty of a singular value 0 is finite, :math:`-\log\epsilon = 6.9`, and its gradient at most
    :math:`1 / (2\epsilon)`; beside an s_1 of 1e5 and more double precision loses :math:`\epsilon^2`, and it may be inf.

    Jiang et al. add it to the loss for a weight that is kept as U E V, whose E it sees; here it sees the weight itself.

    Args:
        module: the discriminator, usually after :func:`specreg.spectral_norm`.
        only, skip: which layers, see :mod:`specreg.layers.find`; by default all kinds but embeddings.

    Returns:
        A scalar, differentiable by the weights.

    Raises:
        ValueError: no layer matched.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0, 0], [0, 0.5, 0]]))
        >>> round(d_optimal_penalty(layer).item(), 4)  # log 2
        0.6931

    Reference:
        Jiang et al. 2019, *On Computation and Generalization of Generative Adversarial Networks under Spectrum
        Control*, section 3 (D-optimal regularizer).
    """
    return _total(find(module, only=only, skip=skip, title="d_optimal_penalty"), _negative_log_volume)


def spectral_penalty(module: nn.Module, *, exponent: int = 2, only: Selection = None, skip: Selection = None) -> Tensor:
    r"""Return :math:`\sum (s_1^k - 1)^2 + \|b\|^{2k}` over every matching layer's weight, and its attribute ``bias``.

    It keeps each layer's largest singular value near 1, as spectral normalization does at once, and leaves the others
    alone. W is as in :func:`orthogonality_penalty`. For layers without spectral normalization, under which :math:`s_1`
    is 1 anyway.

    Differs from the paper: :math:`s_1` is exact, from the Gram matrix of the smaller side, where the paper makes one
    step of power iteration at each update; and normalization layers, whose parameters the paper treats apart, are left
    out. Where :math:`s_1` is repeated it has no gradient; one of its subgradients is taken. The formula, k = 2 and the
    one step were checked against another project's account of the paper's section 4, not against its authors' code.

    Args:
        module: the discriminator, or any module.
        exponent: k, at least 1.
        only, skip: which layers, see :mod:`specreg.layers.find`; by default all kinds but embeddings.

    Returns:
        A scalar, differentiable once by the weights and biases.

    Raises:
        ValueError: a bad exponent, or no layer matched.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 0]]))
        >>> _ = layer.bias.data.copy_(torch.tensor([0.0, 1]))
        >>> spectral_penalty(layer).item()  # (4 - 1)² + 1
        10.0

    Reference:
        Lewandowski et al. 2025, *Learning Continually by Spectral Regularization*, section 4.
    """
    exponent = integer("exponent", exponent, at_least=1)
    layers = find(module, only=only, skip=skip, title="spectral_penalty")

    def excess(matrix: Tensor) -> Tensor:
        product = _gram(matrix)
        try:
            square = torch.linalg.eigvalsh(product)[..., -1]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            if bool(torch.isfinite(product).all()):
                raise
            return product.abs().sum()  # as the other penalties: a loss that is not finite, which a scaler may skip
        power = square.clamp_min(torch.finfo(square.dtype).tiny) ** (exponent / 2)  # a root's slope at 0 is infinite
        return (power - 1).square().sum()

    total = _total(layers, excess)
    children = [use.module for layer in layers.values() for use in layer.uses]
    biases = {id(bias): bias for child in children if isinstance(bias := getattr(child, "bias", None), Tensor)}
    for bias in biases.values():
        size = bias.abs()
        square = size.to(torch.promote_types(size.dtype, torch.float32)).square().sum()
        total = total + (square**exponent).to(total.device)
    return total


def _total(layers: Layers, penalty: Callable[[Tensor], Tensor]) -> Tensor:
    terms = []
    for layer in layers.values():
        matrix = layer.used_matrix()
        with full_precision(matrix):
            terms.append(penalty(matrix))
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def _distance_from_identity(matrix: Tensor) -> Tensor:
    product = _gram(matrix)
    identity = torch.eye(product.shape[-1], dtype=product.dtype, device=product.device)
    return (product - identity).abs().square().sum()


def _gram(matrix: Tensor) -> Tensor:
    # In half precision the Gram matrix of a nearly orthogonal weight would be all rounding.
    return gram(matrix, torch.promote_types(matrix.dtype, torch.float32))


def _negative_log_volume(matrix: Tensor) -> Tensor:
    double = working_dtype(matrix)
    product = gram(matrix, double)
    shift = EPS**2 * torch.eye(product.shape[-1], dtype=double, device=product.device)
    volume: Tensor = torch.linalg.slogdet(product + shift).logabsdet.sum() / -2
    return volume.to(torch.float32 if matrix.dtype != double else volume.dtype)
