"""Data sets that batches are drawn from, and the conversion of samples to networks' inputs and back."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Dataset(Protocol):
    """What batches are drawn from."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw samples and labels (count,), int64, with replacement.

        Samples are images (count, C, H, W), uint8, or points (count, dimension), float32.
        """


@dataclass(frozen=True)
class ImageArrays:
    """Images with labels."""

    name: str  # the user's name of the data set
    images: Tensor  # (N, C, H, W), uint8, square
    labels: Tensor  # (N,), int64; zeros where there are no classes
    classes: tuple[str, ...]  # their names

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


def encode(samples: Tensor, generator: torch.Generator) -> Tensor:
    r"""Return samples as networks' inputs: uint8 images as :math:`x / 128 - 1 + U[0, 1/128)`, points as they are.

    Args:
        samples: (N, C, H, W), uint8, or (N, dimension).
        generator: source of the noise, which hides the grid of 256 levels from the discriminator.

    Reference:
        The authors' code of Miyato et al. 2018 and Liu et al. 2019.
    """
    if samples.dtype != torch.uint8:
        return samples
    noise = torch.rand(samples.shape, generator=generator)
    return samples.float().add_(noise).div_(128).sub_(1)


def decode(outputs: Tensor) -> Tensor:
    """Return a generator's outputs as samples: images (N, C, H, W) as uint8, points as they are, float32."""
    return ((outputs.float() + 1) * 128).clamp(0, 255).to(torch.uint8) if outputs.ndim == 4 else outputs.float()


def scaled(samples: Tensor) -> Tensor:
    """Return uint8 images in [-1, 1], without noise, points as they are; float32."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples.float()
