r"""Static and dynamic compensation: edit the stored weights after the discriminator's optimizer step.

Both raise singular values, :math:`W \leftarrow W + \sum_k (\hat s_k - s_k)\, u_k v_k^H`, and differ in the target
:math:`\hat s_k`. On top of :func:`specreg.spectral_norm` they are spectral regularization as published.

What they have in common:

- ``every``: act on the first call of ``step()`` that is not delayed and on every ``every``-th after it.
- ``start``: the number of calls before the first acting one.
- ``scale``: what becomes of :math:`s_1` of the stored weight, where singular values are raised. "unit" makes it 1, as
  the authors' static code does, "keep" leaves it, as their dynamic code does, "hold" puts it back to what it was at the
  first compensating call. "auto", the default, is "unit" where the layer is normalized, so that the network does not
  see the scale and the optimizer always meets the same one, and "hold" elsewhere: with "keep" the stored weight of a
  network that is not normalized creeps up (docs/math.md).
- ``only``, ``skip``: which layers, see :mod:`specreg.layers.find`; by default all kinds but
  embeddings. A layer of which nothing is raised (i = 1) is left as it is.
"""

from torch import nn

from specreg.layers.find import find
from specreg.layers.selection import Selection
from specreg.names import Scale
from specreg.regularizers.compensators import Compensator, dynamic_scheme, static_scheme


def static_compensation(
    module: nn.Module,
    *,
    keep: float | int = 0.5,
    every: int = 5,
    start: int = 0,
    scale: Scale = "auto",
    only: Selection = None,
    skip: Selection = None,
) -> Compensator:
    r"""Raise the first i singular values of every matching layer to the largest, :math:`\hat s_k = s_1` for k <= i.

    Args:
        module: the discriminator, usually after :func:`specreg.spectral_norm`.
        keep: a fraction of r in (0, 1], :math:`i = \lceil \mathrm{keep} \cdot r \rceil`, 1.0 being all; or i itself as
            an integer from 2 on (a layer with fewer singular values raises all of them). The integer 1 is refused: it
            would be spectral normalization alone. The paper finds 0.5 good and 1.0 to overfit.
        every, start, scale, only, skip: see :mod:`specreg.regularizers.compensation`.

    Returns:
        A compensator: call its ``step()`` after each step of the discriminator's optimizer.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: a bad option, no layer matched, or a layer that cannot be written (under a parametrization that
            specreg does not know or ``orthogonalize``, pruned, two matrices at once) or that another one holds.

    Example:
        >>> import specreg
        >>> discriminator = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> _ = specreg.spectral_norm(discriminator)
        >>> compensator = specreg.static_compensation(discriminator, keep=0.5)
        >>> compensator.step()
        True
        >>> compensator.satisfied()
        True

    Reference:
        Liu et al. 2019, *Spectral Regularization for Combating Mode Collapse in GANs*, section 3.2.
    """
    layers = find(module, only=only, skip=skip, title="static_compensation")
    return Compensator(layers, static_scheme(keep), every=every, start=start, scale=scale)


def dynamic_compensation(
    module: nn.Module,
    *,
    every: int = 5,
    start: int = 0,
    scale: Scale = "auto",
    only: Selection = None,
    skip: Selection = None,
) -> Compensator:
    r"""Keep every ratio :math:`s_k / s_1` at the highest it ever had, :math:`\hat s_k = \gamma_k s_1`.

    Args:
        module: the discriminator, usually after :func:`specreg.spectral_norm`.
        start: the number of calls before the record begins; 0 was best on digits (docs/results/digits.md). More where
            the discriminator does not train yet.
        every, scale, only, skip: see :mod:`specreg.regularizers.compensation`.

    Returns:
        A compensator: call its ``step()`` after each step of the discriminator's optimizer. The first acting call only
        records :math:`\gamma`, which its ``state_dict()`` holds for the checkpoint.

    Raises:
        TypeError: ``module`` is no module.
        ValueError: a bad option, no layer matched, or a layer that cannot be written (under a parametrization that
            specreg does not know or ``orthogonalize``, pruned, two matrices at once) or that another one holds.

    Example:
        >>> import specreg, torch
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> compensator = specreg.dynamic_compensation(layer, every=1, start=0)
        >>> for values in ([1.0, 0.9], [1.0, 0.4]):  # a spectrum that falls
        ...     _ = layer.weight.data.copy_(torch.diag(torch.tensor(values)))
        ...     _ = compensator.step()
        >>> specreg.spectra(layer)[""].round(decimals=4)
        tensor([1.0000, 0.9000], dtype=torch.float64)

    Reference:
        Liu et al. 2020, Image and Vision Computing 104 (the longer text of arXiv:1908.10999); Obukhov et al. 2021
        (``scale="unit"`` without spectral normalization).
    """
    layers = find(module, only=only, skip=skip, title="dynamic_compensation")
    return Compensator(layers, dynamic_scheme(), every=every, start=start, scale=scale)
