r"""Static, dynamic and anchored compensation: edit the stored weights after the discriminator's optimizer step.

All lift singular values, :math:`W \leftarrow W + \sum_k (\hat s_k - s_k)\, u_k v_k^H`, and differ in the target
:math:`\hat s_k`. On top of :func:`specreg.spectral_norm` the static and the dynamic one are spectral regularization as
published; the anchored one is specreg's own.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.distributed import ProcessGroup

from specreg.layers import Selection, find
from specreg.regularizers.compensators import (
    AnchoredCompensation,
    DynamicCompensation,
    Scale,
    StaticCompensation,
)


def static_compensation(
    module: nn.Module,
    *,
    keep: float | int | Literal["auto"] = 0.5,
    every: int = 5,
    start: int = 0,
    strength: float = 1.0,
    scale: Scale = "keep",
    only: Selection = None,
    skip: Selection = None,
    process_group: ProcessGroup | None = None,
) -> "StaticCompensation":
    r"""Raise the first i singular values of every matching layer to the largest, :math:`\hat s_k = s_1` for k <= i.

    Call ``step()`` on what this returns after each step of the discriminator's optimizer.

    Args:
        module: the discriminator, usually after :func:`specreg.spectral_norm`.
        keep: a float in (0, 1] is a fraction of r, i = max(1, floor(keep·r)); an integer is i itself
            (a layer with fewer singular values raises all of them). The paper finds 0.5 good and 1.0 to
            overfit; i = 1 changes nothing. "auto" measures each layer at the first acting call and takes its stable
            rank then, i = round(\|W\|_F^2 / s_1^2): as many directions as carry its energy at s_1. For a random
            weight of equal widths that is 0.56 r in a 3x3 convolution and 0.25 r in a 1x1 convolution.
        every: act on the first call of ``step()`` that is not delayed and on every ``every``-th after it.
        start: the number of calls before the first acting one.
        strength: in [0, 1], moves :math:`s_k` by this part of the way to its target; 1 is the paper.
        scale: "keep" leaves :math:`s_1` of the stored weight, "unit" makes it 1 as the authors' static code does.
        only: take just these layers: a name, a glob on names, a layer class, a predicate
            ``(name, module) -> bool``, or several of them. Default: convolutions (transposed ones too) and linear
            layers. The authors compensate convolutions only.
        skip: leave these out; the same forms.
        process_group: divide the layers over these processes, which all have to hold the same weights and to call
            ``step()`` alike, and pass the results on: the same bits everywhere. By default every process computes all
            layers itself, which is as correct, and faster where they are small.

    Returns:
        A compensator.

    Raises:
        ValueError: a bad option, no layer matched, or a layer under a parametrization that specreg does not know.

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
    return StaticCompensation(
        layers, every=every, start=start, strength=strength, scale=scale, keep=keep, process_group=process_group
    )


def dynamic_compensation(
    module: nn.Module,
    *,
    every: int = 5,
    start: int = 0,
    record: Mapping[str, Tensor] | None = None,
    strength: float = 1.0,
    scale: Scale = "keep",
    only: Selection = None,
    skip: Selection = None,
    process_group: ProcessGroup | None = None,
) -> "DynamicCompensation":
    r"""Keep every ratio :math:`s_k / s_1` at the highest it ever had, :math:`\hat s_k = \gamma_k s_1`.

    Call ``step()`` on what this returns after each step of the discriminator's optimizer. The first acting
    call only records :math:`\gamma`.

    Args:
        module: the discriminator, usually after :func:`specreg.spectral_norm`.
        every: act on the first call of ``step()`` that is not delayed and on every ``every``-th after it.
        start: the number of calls before the record begins. A random initialization has a nearly flat
            spectrum; recorded from there, the running maximum pins every later spectrum to it.
        record: a healthy spectrum to begin with, layer name -> singular values or their ratios, (r,) or (groups, r),
            for every layer. Then the first acting call compensates already.
        strength: in [0, 1], moves :math:`s_k` by this part of the way to its target; 1 is the paper.
        scale: "keep" leaves :math:`s_1` of the stored weight as the authors' dynamic code does, "unit" makes it 1.
        only: take just these layers: a name, a glob on names, a layer class, a predicate
            ``(name, module) -> bool``, or several of them. Default: convolutions (transposed ones too) and linear
            layers. The authors compensate convolutions only.
        skip: leave these out; the same forms.
        process_group: divide the layers over these processes, which all have to hold the same weights and to call
            ``step()`` alike, and pass the results on: the same bits everywhere. By default every process computes all
            layers itself, which is as correct, and faster where they are small.

    Returns:
        A compensator. Its ``state_dict()`` holds :math:`\gamma` and belongs into the checkpoint.

    Raises:
        ValueError: a bad option, no layer matched, a layer under a parametrization that specreg does not know, or a
            record of other layers.

    Reference:
        Liu et al. 2019, section 3.2; Obukhov et al. 2021 (``scale="unit"`` without spectral normalization).
    """
    layers = find(module, only=only, skip=skip, title="dynamic_compensation")
    return DynamicCompensation(
        layers, every=every, strength=strength, scale=scale, start=start, record=record, process_group=process_group
    )


def anchored_compensation(
    module: nn.Module,
    *,
    every: int = 5,
    start: int = 1000,
    window: int = 1000,
    record: Mapping[str, Tensor] | None = None,
    strength: float = 1.0,
    scale: Scale = "record",
    only: Selection = None,
    skip: Selection = None,
    process_group: ProcessGroup | None = None,
) -> "AnchoredCompensation":
    r"""Keep every ratio :math:`s_k / s_1` at least at its mean over a healthy window, which is then frozen.

    Where the dynamic scheme's record is a running maximum, which a single noisy snapshot pins for good and which the
    compensation's own effect ratchets up, this one is an average and does not change once it is taken:
    :math:`\hat s_k / \hat s_1 = \max(\gamma_k, s_k / s_1)`, :math:`\gamma_k` the mean of :math:`s_k / s_1` over the
    acting calls of the window. No published scheme.

    Call ``step()`` on what this returns after each step of the discriminator's optimizer.

    Args:
        module: the discriminator, usually after :func:`specreg.spectral_norm`.
        every: act on the first call of ``step()`` that is not delayed and on every ``every``-th after it.
        start: the number of calls before the window; the window must not begin at the random initialization, whose
            spectrum is nearly flat.
        window: its length in calls; nothing is compensated in it.
        record: a healthy spectrum, layer name -> singular values, (r,) or (groups, r), for every layer (see
            :meth:`specreg.History.mean_spectra`). Then there is no window, and the first acting call compensates.
        strength: in [0, 1], moves :math:`s_k` by this part of the way to its target.
        scale: "record" also puts :math:`s_1` of the stored weight back to its mean over the window. The network under
            spectral normalization does not see it, but the optimizer does: lifting adds to the weight's norm at every
            call, and with "keep", which leaves :math:`s_1`, it can grow until the optimizer's steps are nothing beside
            it. "unit" makes it 1.
        only: take just these layers: a name, a glob on names, a layer class, a predicate
            ``(name, module) -> bool``, or several of them. Default: convolutions (transposed ones too) and linear
            layers.
        skip: leave these out; the same forms.
        process_group: divide the layers over these processes, which all have to hold the same weights and to call
            ``step()`` alike, and pass the results on: the same bits everywhere. By default every process computes all
            layers itself, which is as correct, and faster where they are small.

    Returns:
        A compensator. Its ``state_dict()`` holds :math:`\gamma` and belongs into the checkpoint.

    Raises:
        ValueError: a bad option, no layer matched, a layer under a parametrization that specreg does not know, or a
            record of other layers.
    """
    layers = find(module, only=only, skip=skip, title="anchored_compensation")
    return AnchoredCompensation(
        layers,
        every=every,
        strength=strength,
        scale=scale,
        start=start,
        window=window,
        record=record,
        process_group=process_group,
    )
