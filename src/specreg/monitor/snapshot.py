"""Read-only views of a module's spectra."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from specreg.layers.evaluation import frozen_random_numbers
from specreg.layers.find import Layers, find
from specreg.layers.requirements import require_finite
from specreg.layers.selection import Selection
from specreg.names import check_choice
from specreg.spectra.decompositions import singular_values
from specreg.spectra.reference import ratios

Tensors = Literal["stored", "used"]


@frozen_random_numbers()  # a parametrization that specreg does not know may draw some
def spectra(
    module: nn.Module,
    *,
    normalized: bool = False,
    weight: Tensors = "stored",
    only: Selection = None,
    skip: Selection = None,
) -> dict[str, Tensor]:
    r"""Return the singular values of every layer's weight; no buffer of the module changes.

    By default of the stored weight, that before spectral normalization or regularization and after weight normalization
    or orthogonalization (see ``specreg.layers.weights``): it is what compensation edits and the monitor watches.

    Args:
        module: any module, plain, normalized or compensated.
        normalized: return the spectral distribution :math:`s_k / s_1` instead.
        weight: "used" takes the weight that the network uses: :math:`W / s_1` with power iteration's :math:`s_1` under
            spectral normalization, :math:`W_{SR}` under spectral regularization.
        only, skip: the layers to take, see :mod:`specreg.layers.find`; all kinds by default.

    Returns:
        Layer name -> singular values, descending, shape (r,), or (groups, r) where a weight is several matrices; one
        shared by several layers has the first layer's name. Real, float64 where the device has it.

    Raises:
        ValueError: a bad option, no layer matched, or a weight holds NaN or inf.

    Example:
        >>> import specreg
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0, 0], [0, 2, 0]]))
        >>> specreg.spectra(layer)[""].round(decimals=4)
        tensor([3., 2.], dtype=torch.float64)
    """
    check_choice("weight", weight, get_args(Tensors))
    values = spectra_of(find(module, embeddings=True, only=only, skip=skip, title="spectra"), weight)
    return {name: ratios(s) for name, s in values.items()} if normalized else values


@frozen_random_numbers()
def spectra_of(layers: Layers, weight: Tensors = "stored") -> dict[str, Tensor]:
    """Return the singular values of layers that were found; see :func:`spectra`."""
    # Weights are looked at again only where something is wrong: reading one may compute it (orthogonalization).
    with torch.no_grad():
        try:
            values = [
                singular_values(layer.used_matrix() if weight == "used" else layer.matrix())
                for layer in layers.values()
            ]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            require_finite(layers)  # names the layer, where this is LAPACK's reason
            raise
        if not bool(torch.isfinite(torch.stack([s[..., 0].sum().cpu() for s in values])).all()):
            require_finite(layers)
    return dict(zip(layers, values, strict=True))
