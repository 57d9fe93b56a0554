"""Stacked digits: real data with 1000 known modes that ships with scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor

NUM_MODES = 1000
NUM_HELD_OUT = 297


def load_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scikit-learn's 1,797 handwritten digits, split once and for all.

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


class StackedDigits:
    """Three digits drawn at random and stacked as red, green and blue: 1000 modes, endless images.

    The label is the mode, 100·red + 10·green + blue. The construction is Stacked MNIST's (Metz et al. 2017,
    section 3.3.1; Srivastava et al. 2017) on smaller digits.
    """

    resolution = 8
    channels = 3
    num_classes = NUM_MODES

    def __init__(self, *, held_out: bool = False) -> None:
        train_images, train_labels, test_images, test_labels = load_split()
        self.images = test_images if held_out else train_images
        self.labels = test_labels if held_out else train_labels

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.images), (count, 3), generator=generator)
        return self.images[index], self.labels[index] @ torch.tensor([100, 10, 1])
