r"""Spectral regularization as a differentiable parametrization, :math:`W_{SR} = (W + \Delta W) / s_1`."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from specreg.layers import (
    Layers,
    Selection,
    SpectrumPreserving,
    find,
    normalizers,
    require_finite,
    require_writable,
    shown,
)
from specreg.regularizers.compensation import checked_keep, head_count
from specreg.spectra.decompose import SVD, svd
from specreg.spectra.matrices import from_matrix, to_matrix
from specreg.spectra.regularization import exact_gradient, paper_gradient, regularized

Gradient = Literal["paper", "exact"]


def spectral_regularization(
    module: nn.Module,
    *,
    keep: float | int = 0.5,
    gradient: Gradient = "paper",
    only: Selection = None,
    skip: Selection = None,
) -> Layers:
    r"""Parametrize every matching layer's weight as :math:`W_{SR} = (W + \Delta W) / s_1`, static scheme.

    The singular values that the network uses are 1 (k <= i) and :math:`s_k / s_1` (k > i); nothing has to be called
    in the training loop. ``keep=1``, the integer, is spectral normalization with an exact :math:`s_1`.

    Args:
        module: the discriminator, or any module. Changed in place.
        keep: a float in (0, 1] is a fraction of r, i = max(1, floor(keep·r)); an integer is i itself.
        gradient: "paper" holds the singular vectors constant (the paper's four terms); "exact" is the
            true derivative of the map.
        only: take just these layers: a name, a glob on names, a layer class, a predicate
            ``(name, module) -> bool``, or several of them. Default: convolutions (transposed ones too) and linear
            layers.
        skip: leave these out; the same forms.

    Returns:
        The layers: a mapping from name to layer that prints as a table.

    Raises:
        ValueError: a bad option, no layer matched, a layer already normalized, or a weight with NaN or inf.

    Reference:
        Liu et al. 2019, section 3.2 (map) and 3.3 (gradient).
    """
    keep = checked_keep(keep)
    if gradient not in ("paper", "exact"):
        raise ValueError(f'gradient must be "paper" or "exact", got {gradient!r}')
    layers = find(module, only=only, skip=skip, title="spectral_regularization")
    require_writable(layers)
    require_finite(layers)
    for name, layer in layers.items():
        for child in layer.modules:
            regularized_already = parametrize.is_parametrized(child, "weight") and any(
                isinstance(p, SpectralRegularization)
                for p in child.parametrizations["weight"]  # type: ignore[index]
            )
            if normalizers(child) or regularized_already or not isinstance(child.weight, Tensor):
                raise ValueError(
                    f"layer {shown(name)!r} is normalized already, and this parametrization divides by s1 itself: "
                    f"call specreg.remove on it first, or leave it out with skip={name!r}"
                )
    for layer in layers.values():
        for child in layer.modules:
            parametrization = SpectralRegularization(keep, gradient, layer.output_dim, layer.groups)
            parametrize.register_parametrization(child, "weight", parametrization)
    return layers


class SpectralRegularization(SpectrumPreserving):
    """The parametrization behind :func:`spectral_regularization`; it has no state of its own."""

    def __init__(self, keep: float | int, gradient: Gradient, output_dim: int, groups: int) -> None:
        super().__init__()
        self.keep = keep
        self.gradient = gradient
        self.output_dim = output_dim
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        matrix = to_matrix(weight, output_dim=self.output_dim, groups=self.groups)
        count = head_count(self.keep, min(matrix.shape[-2:]))
        result: Tensor = _Regularize.apply(matrix, count, self.gradient == "exact")  # type: ignore[no-untyped-call]
        return from_matrix(result, weight.shape, output_dim=self.output_dim, groups=self.groups)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take an assigned weight as the stored one (it is regularized when read)."""
        return weight

    def extra_repr(self) -> str:
        return f"keep={self.keep}, gradient={self.gradient!r}"


class _Regularize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, count: int, exact: bool) -> Tensor:
        factors = svd(matrix)
        ctx.save_for_backward(matrix, *factors)
        ctx.count, ctx.exact = count, exact
        return regularized(matrix.to(factors.U.dtype), factors, count).to(matrix.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        matrix, *saved = ctx.saved_tensors
        factors = SVD(*saved)
        pull_back = exact_gradient if ctx.exact else paper_gradient
        working = factors.U.dtype
        return pull_back(upstream.to(working), matrix.to(working), factors, ctx.count).to(matrix.dtype), None, None
