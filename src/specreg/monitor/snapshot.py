"""Read-only views of a module's spectra."""

import torch
from torch import Tensor, nn

from specreg.layers import ALL_KINDS, Selection, find, require_finite
from specreg.monitor.attainment import frozen_random_numbers
from specreg.spectra.gram import singular_values
from specreg.spectra.reference import ratios


@frozen_random_numbers()  # a parametrization that specreg does not know may draw some
def spectra(
    module: nn.Module, *, normalized: bool = False, only: Selection = None, skip: Selection = None
) -> dict[str, Tensor]:
    r"""Return the singular values of every layer's stored weight; no buffer of the module changes.

    The stored weight is that before spectral normalization divides it by :math:`s_1`, and g·v/\|v\| under weight
    normalization (see ``specreg.layers``).

    Args:
        module: any module, plain, normalized or compensated.
        normalized: return the spectral distribution :math:`s_k / s_1` instead.
        only, skip: the layers to take, see :func:`specreg.layers.find`; convolutions, linear layers and embeddings by
            default.

    Returns:
        Layer name -> singular values, descending, shape (r,), or (groups, r) for a grouped convolution; a weight
        shared by several layers has the first layer's name. Real, float64 where the device has it.

    Raises:
        ValueError: no layer matched, or a weight holds NaN or inf.

    Example:
        >>> import specreg
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0, 0], [0, 2, 0]]))
        >>> specreg.spectra(layer)[""].round(decimals=4)
        tensor([3., 2.], dtype=torch.float64)
    """
    layers = find(module, kinds=ALL_KINDS, only=only, skip=skip, title="spectra")
    with torch.no_grad():
        try:
            values = [singular_values(layer.matrix()) for layer in layers.values()]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            require_finite(layers)  # names the layer, where this is LAPACK's reason
            raise
        if not bool(torch.isfinite(torch.stack([s[..., 0].sum().cpu() for s in values])).all()):
            require_finite(layers)
    return {name: ratios(s) if normalized else s for name, s in zip(layers, values, strict=True)}
