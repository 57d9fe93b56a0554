"""Spectral normalization through torch's own parametrization, and the removal of any parametrization."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm as LegacySpectralNorm
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from specreg.layers import (
    ALL_KINDS,
    Layers,
    Selection,
    find,
    normalizers,
    require_finite,
    shown,
    stored_weight,
    unwrap,
)


def spectral_norm(module: nn.Module, *, only: Selection = None, skip: Selection = None) -> Layers:
    r"""Normalize the largest singular value of every matching layer: :math:`W_{SN} = W / s_1`.

    Applies ``torch.nn.utils.parametrizations.spectral_norm``: one step of power iteration a forward pass
    in training mode, singular vectors held constant in the gradient. The matrix is the weight with its output
    dimension as rows; torch stacks the groups of a grouped convolution into one matrix, and so does this
    verb (the compensators treat each group on its own). A layer already under spectral normalization, new
    or legacy, stays as it is.

    Args:
        module: the discriminator, or any module. Changed in place.
        only: take just these layers: a name, a glob on names, a layer class, a predicate
            ``(name, module) -> bool``, or several of them. Default: convolutions (transposed ones too), linear
            layers and embeddings.
        skip: leave these out; the same forms.

    Returns:
        The layers under spectral normalization: a mapping from name to layer that prints as a table.

    Raises:
        ValueError: no layer matched, a name matches nothing, or a weight holds NaN or inf.

    Example:
        >>> discriminator = nn.Sequential(nn.Conv1d(1, 8, 5), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
        >>> _ = discriminator(torch.zeros(1, 1, 16))
        >>> print(spectral_norm(discriminator))
        spectral_norm: 2 layers
        0  Conv1d  8 x 5
        3  Linear  1 x 96

    Reference:
        Miyato et al. 2018, *Spectral Normalization for Generative Adversarial Networks*, equations 8 and 9.
    """
    layers = find(module, kinds=ALL_KINDS, only=only, skip=skip, title="spectral_norm")
    require_finite(layers)
    for name, layer in layers.items():
        for child in layer.modules:
            if normalizers(child):
                continue
            if not isinstance(getattr(child, "weight", None), nn.Parameter) and not parametrize.is_parametrized(child):
                raise ValueError(
                    f"layer {shown(name)!r} is under the legacy weight_norm, whose hook would undo spectral "
                    f"normalization: call torch.nn.utils.remove_weight_norm on it first"
                )
            if bool(torch.any(stored_weight(child) != 0)):
                parametrizations.spectral_norm(child)
            else:
                parametrize.register_parametrization(child, "weight", _SpectralNormFromZero(child, layer.output_dim))
    return layers


def remove(module: nn.Module) -> list[str]:
    """Undo every parametrization: plain weights again, equal to those that the network used in eval mode.

    Takes off spectral normalization and regularization, torch's weight normalization and any other
    parametrization of a submodule's tensor, and torch's legacy ``spectral_norm`` and ``weight_norm`` hooks.

    Args:
        module: changed in place; without parametrizations it stays as it is.

    Returns:
        The qualified names of the tensors that are plain again.
    """
    undone = []
    for name, child in unwrap(module).named_modules():
        prefix = f"{name}." if name else ""
        if parametrize.is_parametrized(child):
            # Reading a weight under spectral normalization in training mode would move its power iteration.
            child.parametrizations.eval()
            for tensor in list(child.parametrizations):
                parametrize.remove_parametrizations(child, tensor, leave_parametrized=True)
                undone.append(prefix + tensor)
        for key, hook in list(child._forward_pre_hooks.items()):
            if isinstance(hook, (LegacySpectralNorm, LegacyWeightNorm)):
                hook.remove(child)
                del child._forward_pre_hooks[key]
                undone.append(prefix + hook.name)
                _forget_state_dict_hooks(child, hook)
    return undone


def _forget_state_dict_hooks(module: nn.Module, hook: LegacySpectralNorm | LegacyWeightNorm) -> None:
    for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, registered in list(hooks.items()):
            owner = getattr(registered, "hook", registered)  # torch wraps hooks that take no module
            if getattr(owner, "fn", None) is hook:
                del hooks[key]


class _SpectralNormFromZero(_SpectralNorm):
    """Torch's spectral normalization for a weight that starts at zero (a zero-initialized last layer, say).

    Torch divides by s1 = 0 there, and its vectors, once zero, stay zero for ever. Here they keep their
    direction while the weight is zero, and a zero weight maps to itself.
    """

    def __init__(self, module: nn.Module, output_dim: int) -> None:
        super().__init__(torch.ones_like(stored_weight(module)), dim=output_dim)
        # A random start: the vectors of a constant matrix would be a special case of their own.
        for vector in (self._u, self._v):
            vector.copy_(torch.nn.functional.normalize(torch.randn_like(vector), dim=0))

    @torch.no_grad()
    def _power_method(self, weight_mat: Tensor, n_power_iterations: int) -> None:
        if hasattr(self, "_v") and bool(torch.any(weight_mat != 0)):
            super()._power_method(weight_mat, n_power_iterations)

    def forward(self, weight: Tensor) -> Tensor:
        return super().forward(weight) if bool(torch.any(weight != 0)) else weight
