"""What has to hold of layers before they are written, parametrized or read, and parametrizing them all or none."""

import logging
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm as LegacyWeightNorm

from specreg.layers.find import Layer, Layers
from specreg.layers.forwards import difference
from specreg.layers.weights import MatrixParametrization, Weight, require_whole_weight
from specreg.names import listed, shown

logger = logging.getLogger("specreg")


def warn_of_doubts(layers: Layers) -> None:
    """Log what speaks against taking these layers as they are.

    That is where a class with a forward of its own uses another weight than the one that is read and written, and where
    pretrained layers were taken that nobody named, because they need a gradient, or none does at this moment.
    """
    uses = [(name, use) for name, layer in layers.items() for use in layer.uses]
    # A discriminator keeps its pretrained features in eval mode, whatever its own mode is.
    resting = dict.fromkeys(shown(name) for name, use in uses if not use.module.training)
    is_mixed = 0 < len(resting) < len(layers) and not layers.are_named
    if is_mixed:
        logger.warning(
            "layers in eval mode beside others in training mode, %s, seem to be pretrained: leave them out with skip=",
            listed(list(resting)),
        )
    for name, layer in layers.items():
        for use in layer.uses:
            if (text := difference(use)) is not None:
                logger.warning("layer %r: %s", shown(name), text)
                break


def require_writable(layers: Layers) -> None:
    """Raise ValueError for the first layer whose weight cannot be written: computed from others, or used in two ways.

    Computed in a way that specreg does not know, that is; or shared by modules whose matrices of it differ, or that
    share it no more.
    """
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        for use in layer.uses:
            if unwritable := use.foreign or use.spectrum_changing:
                cause = ", ".join(type(part).__name__ for part in unwritable)
            elif _is_derived(use):
                cause = "a hook that derives its weight (pruning, say)"
            else:
                require_whole_weight(use.storage[-1], f"layer {shown(name)!r}")
                continue
            raise ValueError(
                f"layer {shown(name)!r} is under {cause}, which specreg cannot write through: "
                f"leave it out with skip={name!r}"
            )
        for use, other in zip(layer.uses[1:], layer.shared_with, strict=True):
            if use.storage[-1].data_ptr() != layer.weight.storage[-1].data_ptr():
                raise ValueError(
                    f"layers {shown(name)!r} and {shown(other)!r} shared a weight when they were found, and share none "
                    "now (load_state_dict(assign=True), say): call remove() and the verb again"
                )
        if (other := owners.setdefault(id(layer.weight.storage[-1]), name)) != name:
            raise ValueError(
                f"layers {shown(other)!r} and {shown(name)!r} share a weight and use it as two different matrices: "
                f"leave one out with skip={name!r}"
            )


def _is_derived(use: Weight) -> bool:
    """Tell whether a hook makes the tensor that would be written, as pruning does, below a normalization, too."""
    stored = use.storage[-1]
    return not isinstance(stored, nn.Parameter) and all(stored is not buffer for buffer in use.module.buffers())


def require_parametrizable(module: nn.Module, layers: Layers) -> None:
    """Raise ValueError for what a new parametrization would break.

    That is a layer under the legacy weight_norm, whose hook overwrites the weight, and data parallelism, which has
    hooked the parameters that there were when it wrapped the module, and would not average the new ones' gradients.
    """
    if any(isinstance(child, nn.parallel.DistributedDataParallel) for child in module.modules()):
        raise ValueError(
            "the module is wrapped in DistributedDataParallel, which would not average the gradients of parametrized "
            "weights: wrap it afterwards"
        )
    for name, layer in layers.items():
        if any(isinstance(use.legacy_hook, LegacyWeightNorm) for use in layer.uses):
            raise ValueError(
                f"layer {shown(name)!r} is under the legacy weight_norm, whose hook would undo a parametrization: "
                f"take it off with specreg.remove(module), or use torch.nn.utils.parametrizations.weight_norm instead"
            )


def parametrize_layers(
    module: nn.Module,
    layers: Layers,
    make: Callable[[str], MatrixParametrization],
    *,
    is_taken: Callable[[Weight], bool],
    does: str,
) -> None:
    """Put a parametrization on every layer; ValueError, and no change, where one cannot have it."""
    require_parametrizable(module, layers)
    require_writable(layers)
    require_finite(layers)
    for name, layer in layers.items():
        if any(map(is_taken, layer.uses)):
            raise ValueError(
                f"layer {shown(name)!r} is normalized already, and this parametrization {does} itself: "
                f"call specreg.remove on it first, or leave it out with skip={name!r}"
            )
    warn_of_doubts(layers)
    for name, layer in layers.items():
        for use in layer.uses:
            use.use_mapped(make(name))


def require_finite(layers: Mapping[str, Layer]) -> None:
    """Raise ValueError naming the first layer whose stored weight holds NaN or inf."""
    # NaN and inf survive a sum, which costs a twentieth of looking at every entry; finite entries may overflow it.
    sums = [layer.weight.stored().sum() for layer in layers.values()]
    if not sums or bool(torch.isfinite(torch.stack([total.to(sums[0].device) for total in sums])).all()):
        return
    for name, layer in layers.items():
        if not bool(torch.isfinite(layer.weight.stored()).all()):
            raise ValueError(f"layer {shown(name)!r}: the weight holds NaN or inf; stop and go back to a checkpoint")
