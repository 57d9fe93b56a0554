r"""Spectral regularization as a differentiable parametrization, :math:`W_{SR} = (W + \Delta W) / s_1`."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from specreg.layers import (
    Layers,
    Selection,
    SpectrumPreserving,
    find,
    memory_format,
    normalizers,
    require_finite,
    require_parametrizable,
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
    in the training loop. ``keep=1``, the integer, is spectral normalization with an exact :math:`s_1`. Each group of a
    grouped convolution is a matrix of its own and divided by its own :math:`s_1`.

    The weight can be differentiated once, which gradient penalties on the inputs need; a derivative of the
    gradient by the weight (meta-learning) raises.

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
    require_parametrizable(layers)
    require_writable(layers)
    require_finite(layers)
    for name, layer in layers.items():
        if any(normalizers(child) or _regularized(child) for child in layer.modules):
            raise ValueError(
                f"layer {shown(name)!r} is normalized already, and this parametrization divides by s1 itself: "
                f"call specreg.remove on it first, or leave it out with skip={name!r}"
            )
    for name, layer in layers.items():
        for child in layer.modules:
            parametrization = SpectralRegularization(keep, gradient, layer.output_dim, layer.groups, name)
            parametrize.register_parametrization(child, "weight", parametrization)
    return layers


def _regularized(module: nn.Module) -> bool:
    lists: Any = module.parametrizations if parametrize.is_parametrized(module, "weight") else {"weight": ()}
    return any(isinstance(one, SpectralRegularization) for one in lists["weight"])


class SpectralRegularization(SpectrumPreserving):
    """The parametrization behind :func:`spectral_regularization`; it has no state of its own."""

    def __init__(
        self, keep: float | int, gradient: Gradient, output_dim: int = 0, groups: int = 1, name: str = ""
    ) -> None:
        super().__init__()
        self.keep = keep
        self.gradient = gradient
        self.output_dim = output_dim
        self.groups = groups
        self.name = name

    def forward(self, weight: Tensor) -> Tensor:
        matrix = to_matrix(weight, output_dim=self.output_dim, groups=self.groups)
        count = head_count(self.keep, min(matrix.shape[-2:]))
        try:
            result: Tensor = _Regularize.apply(matrix, count, self.gradient == "exact")  # type: ignore[no-untyped-call]
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(
                f"layer {shown(self.name)!r}: the weight holds NaN or inf, or its decomposition failed; "
                f"stop and go back to a checkpoint"
            ) from error
        regularized_weight = from_matrix(result, weight.shape, output_dim=self.output_dim, groups=self.groups)
        return regularized_weight.contiguous(memory_format=memory_format(weight))

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
    @once_differentiable  # the factors are saved as constants: a second derivative would be silently wrong
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        matrix, *saved = ctx.saved_tensors
        factors = SVD(*saved)
        weight, above = matrix.to(factors.U.dtype), upstream.to(factors.U.dtype)
        if ctx.exact:
            gradient = exact_gradient(above, weight, factors, ctx.count, eps=torch.finfo(matrix.dtype).eps)
        else:
            gradient = paper_gradient(above, weight, factors, ctx.count)
        return gradient.to(matrix.dtype), None, None
