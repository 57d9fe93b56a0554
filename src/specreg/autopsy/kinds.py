"""Which matrices a stored weight is, and which of them say something about a collapse: by names and shapes.

A file does not say what class a layer is of. What cannot be told for certain is read the usual way, outputs by
all else, and what is no layer's matrix of weights gets no verdict.
"""

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_LARGEST_KERNEL = 8  # the side of a convolution's kernel, or of a filter against aliasing
_FILTER = re.compile(r"(.*_)?(blur|filt(er)?s?|kernels?|resampl(e|er|ing)|smooth\w*|fir)\d*", re.IGNORECASE)
_MODULATION = re.compile(r"(\w*_)?(modulation|affine|style)", re.IGNORECASE)
# Embeddings of conditional batch normalization, of classes and of positions, whose rows are chosen and not multiplied.
_EMBEDDING = re.compile(
    r"(\w*_)?(emb(ed(der|ding)?s?)?|wte|wpe|l_y|gammas?|betas?|gains?|weights|bias(es)?|scales?|shifts?|shared|codebooks?)\d*",
    re.IGNORECASE,
)


def modulated_layers(names: Iterable[str]) -> set[str]:
    """Return the layers beside whose weight there is the affine map of a style, by the names of all tensors."""
    layers = set()
    for name in names:
        parts = name.split(".")
        for end in range(max(0, len(parts) - 3), len(parts) - 1):
            if _MODULATION.fullmatch(parts[end]):
                layers.add(".".join(parts[:end]))
    return layers


def is_modulated(shape: tuple[int, ...], *, has_style: bool) -> bool:
    """Tell whether a weight (1, out, in, height, width) is a modulated convolution's, not one of three dimensions."""
    looks_so = len(shape) == 5 and shape[0] == 1
    return looks_so and (has_style or (shape[2] > _LARGEST_KERNEL and shape[3] == shape[4]))


def num_kernels(shape: tuple[int, ...]) -> int:
    """Return how many matrices a bank of kernels (n, out, in, height, width) is, 1 of any other weight."""
    is_bank = len(shape) == 5 and shape[2] > _LARGEST_KERNEL and max(shape[3:]) <= _LARGEST_KERNEL
    return shape[0] if is_bank else 1


def is_fixed_filter(layer: str, parameter: str, shape: tuple[int, ...], read: Callable[[], Tensor]) -> bool:
    """Tell whether this is no layer, but a filter against aliasing: by its name, or by its values.

    Those of a filter are the same in every channel, and the same from left to right.
    """
    if len(shape) == 2:
        return _FILTER.fullmatch(parameter) is not None and max(shape) <= _LARGEST_KERNEL
    if shape[1] != 1 or max(shape[2:]) > _LARGEST_KERNEL:
        return False
    module = layer.removesuffix(f".{parameter}").rpartition(".")[2]
    if _FILTER.fullmatch(parameter) or _FILTER.fullmatch(module):
        return True
    values = read().float() if shape[0] > 1 else torch.zeros(shape)
    return bool((values == values[:1]).all() and (values == values.flip(-1)).all() and values.any())


def is_judged(layer: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a collapse would show in this matrix: not in stacked filters of a single channel or an embedding.

    A depthwise convolution's rows act on one channel each, so that no product with their matrix is ever made. A first
    layer's on one channel cannot be told from it.
    """
    if len(shape) > 2 and shape[1] == 1:
        return False
    return len(shape) != 2 or _EMBEDDING.fullmatch(layer.rpartition(".")[2]) is None
