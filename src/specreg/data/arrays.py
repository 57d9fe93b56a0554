"""The data sets that a stream draws from: uint8 images in memory, with what is known of their modes."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ImageSource(Protocol):
    """What a stream needs of a data set."""

    @property
    def resolution(self) -> int:
        """Side of the images."""
        ...

    @property
    def channels(self) -> int:
        """1 or 3."""
        ...

    @property
    def num_classes(self) -> int:
        """How many classes the labels tell apart."""
        ...

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw images (count, C, H, W), uint8, and labels (count,), int64, with replacement."""
        ...


@dataclass(frozen=True)
class ImageArrays:
    """Images with labels.

    Attributes:
        name: what the user called it.
        images: (N, C, H, W), uint8, square.
        labels: (N,), int64; zeros where there are no classes.
        classes: their names.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    @property
    def resolution(self) -> int:
        return self.images.shape[-1]

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.images), (count,), generator=generator)
        return self.images[index], self.labels[index]


def dequantize(images: Tensor, generator: torch.Generator) -> Tensor:
    r"""Map uint8 pixels to floats, :math:`x / 128 - 1 + U[0, 1/128)`, in [-1, 1).

    Args:
        images: (N, C, H, W), uint8.
        generator: source of the noise, which hides the grid of 256 levels from the discriminator.

    Reference:
        The authors' code of Miyato et al. 2018 and Liu et al. 2019.
    """
    noise = torch.rand(images.shape, generator=generator)
    return images.float().add_(noise).div_(128).sub_(1)


def quantize(images: Tensor) -> Tensor:
    """Map generated images in [-1, 1] to uint8, the inverse of :func:`dequantize` without its noise."""
    return ((images.float() + 1) * 128).clamp(0, 255).to(torch.uint8)
