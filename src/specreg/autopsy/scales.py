"""Weights of eight bits and the scales beside them, which make them what the network uses."""

import math
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from specreg.autopsy.tensors import Stored

_BLOCK = 128  # the side of a block with one scale, where the sides' quotient does not say it
_MOST_PARAMETERS = 32  # of a layer
# Scales of what goes through the layer say nothing about the weight.
_OTHERS = re.compile(r"(^|_)(in(put)?|out(put)?|act(ivation)?s?|[kqv]|cache)(_|$)", re.IGNORECASE)


def scale_of(name: str, tensors: Mapping[str, Stored], beside: Mapping[str, Sequence[str]]) -> tuple[str, bool]:
    """Return the name of the scale of an eight-bit weight, "" without one, and whether it can be multiplied with it.

    ``beside`` has the last parts of the tensors' names, by module.
    """
    module, _, parameter = name.rpartition(".")
    multiplied = (f"{parameter}_scale", f"{parameter}_scale_inv", f"scale_{parameter}", f"{parameter}_scales")
    around: Sequence[str] = beside.get(module, ())
    if len(around) > _MOST_PARAMETERS:  # all the weights of a network in one module
        around = multiplied
    scales = [last for last in around if last in multiplied or (last.startswith(f"{parameter}_") and "scale" in last)]
    scales = scales or [last for last in around if "scal" in last.lower() and not _OTHERS.search(last)]
    scales += [f"{parameter}.{last}" for last in beside.get(name, ())[:1]]
    prefix = f"{module}." if module else ""
    scales = [last for last in scales if prefix + last in tensors]  # not so where names begin with a dot, or have none
    if not scales:
        return "", True
    scale = prefix + scales[0]
    fits = not tensors[scale].obstacle and _blocks(tensors[scale].shape, tensors[name].shape) is not None
    return scale, fits and len(scales) == 1 and scales[0] in multiplied


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply a weight with its scale: one number, one a row, or one a block."""
    blocks = _blocks(tuple(scale.shape), tuple(weight.shape))
    assert blocks is not None
    if scale.numel() == 1:
        return weight * scale.reshape(())
    scale = scale.reshape([*scale.shape] + [1] * (weight.ndim - scale.ndim))
    for dim, block in enumerate(blocks):
        scale = scale.repeat_interleave(block, dim).narrow(dim, 0, weight.shape[dim])
    return weight * scale


def _blocks(scale: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the sides of the blocks that have a scale each; None where the scale does not fit."""
    if math.prod(scale) == 1:
        return weight
    if len(scale) > len(weight):
        return None
    blocks = []
    for side, count in zip(weight, scale + (1,) * (len(weight) - len(scale)), strict=True):
        block = side if count == 1 else _BLOCK if math.ceil(side / _BLOCK) == count else side // count if count else 0
        if not block or math.ceil(side / block) != count:
            return None
        blocks.append(block)
    return tuple(blocks)
