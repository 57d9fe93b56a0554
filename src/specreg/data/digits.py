"""Stacked digits: real data with 1000 known modes that ships with scikit-learn."""

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from specreg.data.stacked import StackedImages

NUM_HELD_OUT = 297


@functools.cache  # parses a compressed text
def load_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's 1,797 handwritten digits, in a fixed split.

    Returns:
        Training images (1500, 8, 8) uint8 and labels (1500,), held-out images (297, 8, 8) and labels.

    Reference:
        Alpaydin and Kaynak 1998, UCI Optical Recognition of Handwritten Digits, test part.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images)  # 0 to 16
    images = (images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1797))
    held_out, train = order[:NUM_HELD_OUT], order[NUM_HELD_OUT:]
    return images[train], labels[train], images[held_out], labels[held_out]


class StackedDigits(StackedImages):
    """Stacked digits: images of 1000 modes, of the digits for training or of those held out."""

    resolution = 8

    def __init__(self, *, held_out: bool = False, size: int | None = None) -> None:
        split = load_split()
        images, labels = split[2:] if held_out else split[:2]
        super().__init__(images, labels, size=size)
