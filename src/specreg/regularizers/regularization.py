r"""Spectral regularization as a differentiable parametrization, :math:`W_{SR} = (W + \Delta W) / s_1`."""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from specreg.layers.find import Layers, find
from specreg.layers.requirements import parametrize_layers
from specreg.layers.selection import Selection
from specreg.layers.weights import SpectrumPreserving
from specreg.names import check_choice, checked_keep, shown
from specreg.spectra.autocast import full_precision
from specreg.spectra.decompositions import svd
from specreg.spectra.reference import SVD, head_size, thin_svd
from specreg.spectra.regularization import exact_gradient, paper_gradient, regularized

Gradient = Literal["paper", "exact"]


def spectral_regularization(
    module: nn.Module,
    *,
    keep: float | int | Literal["first"] = 0.5,
    gradient: Gradient = "paper",
    only: Selection = None,
    skip: Selection = None,
) -> Layers:
    r"""Parametrize every matching layer's weight as :math:`W_{SR} = (W + \Delta W) / s_1`, static scheme.

    The singular values that the network uses are 1 (k <= i) and :math:`s_k / s_1` (k > i); nothing has to be called
    in the training loop. Each group of a grouped convolution is a matrix of its own and divided by its own :math:`s_1`.

    The weight can be differentiated once, which gradient penalties on the inputs need; a derivative of the
    gradient by the weight (meta-learning) raises, and so do the transforms of ``torch.func``.

    Args:
        module: the discriminator, or any module. Changed in place.
        keep: a fraction of r in (0, 1], i = ⌈keep·r⌉, 1.0 being all; i itself as an integer from 2 on; or "first",
            i = 1: spectral normalization with an exact :math:`s_1`.
        gradient: "paper" holds the singular vectors constant (the paper's four terms); "exact" is the
            true derivative of the map.
        only, skip: which layers, see :mod:`specreg.layers.find`; by default all kinds but embeddings.

    Returns:
        The layers: a mapping from name to layer that prints as a table.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: a bad option, no layer matched, a layer already normalized or that cannot be written, a weight with
            NaN or inf, or the module is wrapped in DistributedDataParallel.

    Example:
        >>> import specreg
        >>> layer = nn.Linear(4, 4, bias=False)
        >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
        >>> _ = specreg.spectral_regularization(layer, keep=0.5)
        >>> specreg.spectra(layer, weight="used")[""].round(decimals=4)
        tensor([1.0000, 1.0000, 0.5000, 0.2500], dtype=torch.float64)

    Reference:
        Liu et al. 2019, section 3.2 (map) and 3.3 (gradient).
    """
    keep = 1 if keep == "first" else checked_keep(keep)
    check_choice("gradient", gradient, get_args(Gradient))
    layers = find(module, only=only, skip=skip, title="spectral_regularization")
    parametrize_layers(
        module, layers, lambda name: SpectralRegularization(keep, gradient, name),
        is_taken=lambda use: use.is_normalized or bool(use.normalizers), does="divides by s1",
    )  # fmt: skip
    return layers


class SpectralRegularization(SpectrumPreserving):
    """The parametrization behind :func:`spectral_regularization`.

    The decomposition is made once for each value of the weight, which is once an optimizer step. What it was made for
    is told by the weight's content: version counters do not see writes through ``.data``.
    """

    def __init__(self, keep: float | int, gradient: Gradient, name: str = "") -> None:
        super().__init__()
        self.keep = keep
        self.gradient = gradient
        self.name = name
        self._cached: _Value | None = None

    def mapped(self, matrix: Tensor) -> Tensor:
        # Compiled, one would leave the weight without a gradient, and say nothing; others fail in torch's own words.
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "spectral_regularization does not support transforms of torch.func: take torch.autograd.grad"
            )
        count = head_size(self.keep, min(matrix.shape[-2:]))
        try:
            value, factors = self._look_up(matrix.detach(), count)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ValueError(
                f"layer {shown(self.name)!r}: the weight holds NaN or inf, or its decomposition failed; "
                f"stop and go back to a checkpoint"
            ) from error
        return _Regularize.apply(  # type: ignore[no-untyped-call]
            matrix, value, *factors, count, self.gradient == "exact"
        )

    def _look_up(self, matrix: Tensor, count: int) -> tuple[Tensor, SVD]:
        if torch.compiler.is_compiling() or matrix.is_meta:  # neither can branch on values
            factors = thin_svd(matrix)
            return _regularized(matrix, factors, count), factors
        with torch.inference_mode(False):  # autograd cannot save tensors that were made in it
            content, key = _fingerprint(matrix), (count, matrix.dtype, matrix.device)
            cached = self._cached
            if cached is None or cached.key != key or not torch.equal(cached.content, content):
                factors = svd(matrix)
                self._cached = cached = _Value(key, content, factors, _regularized(matrix, factors, count))
            return cached.regularized, cached.factors

    def extra_repr(self) -> str:
        return f"keep={self.keep}, gradient={self.gradient!r}"


class _Value(NamedTuple):
    """What was computed for one value of a weight."""

    key: tuple[int, torch.dtype, torch.device]
    content: Tensor
    factors: SVD
    regularized: Tensor


def _regularized(matrix: Tensor, factors: SVD, count: int) -> Tensor:
    with full_precision(matrix):
        return regularized(matrix.to(factors.U.dtype), factors, count).to(matrix.dtype)


class _Regularize(torch.autograd.Function):
    """The regularized weight, computed before, with the gradient of having been computed from the matrix."""

    @staticmethod
    def forward(
        ctx: Any, matrix: Tensor, value: Tensor, U: Tensor, S: Tensor, Vh: Tensor, count: int, exact: bool
    ) -> Tensor:
        ctx.save_for_backward(matrix, U, S, Vh)
        ctx.count, ctx.exact = count, exact
        return value.clone()

    @staticmethod
    @once_differentiable  # the factors are saved as constants: a second derivative would be silently wrong
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        matrix, *saved = ctx.saved_tensors
        factors = SVD(*saved)
        weight, above = matrix.to(factors.U.dtype), upstream.to(factors.U.dtype)
        if ctx.exact:
            eps = torch.finfo(matrix.dtype).eps
            # Rounding its entries moves a weight's singular values by about a fifth of eps·s1. There is room for what
            # was rounded before that, but in half precision r·eps would be most of the spectrum.
            is_half = matrix.dtype in (torch.float16, torch.bfloat16)
            rounding = eps / 2 if is_half else eps * factors.S.shape[-1]
            gradient = exact_gradient(above, weight, factors, ctx.count, eps=rounding)
        else:
            gradient = paper_gradient(above, weight, factors, ctx.count)
        return gradient.to(matrix.dtype), None, None, None, None, None, None


def _fingerprint(matrix: Tensor) -> Tensor:
    """Return W z for a fixed irregular z without zeros: it changes with the entries, up to rounding."""
    single = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    # Between 1 and 3, and no small integers relate them: with square roots, changes of two or three entries cancel.
    numbers = torch.arange(1, matrix.shape[-1] + 1, device=matrix.device, dtype=single.dtype.to_real())
    z = numbers.square().sin().add(2).to(single.dtype)
    with full_precision(matrix):
        return single @ z
