"""Stacked images: three grey images of ten classes as red, green and blue, 1000 known modes."""

import torch
from torch import Tensor

from specreg.data.arrays import ImageArrays
from specreg.names import NUM_STACKED_MODES, PLACES

# A stacked training set is one data set: the same for every run, whatever its seed.
_STACKING_SEED = 4_000_037


class StackedImages:
    r"""Three grey images drawn at random and stacked as red, green and blue; of MNIST this is Stacked MNIST.

    The label is the mode, :math:`100 r + 10 g + b`, of the classes r, g and b.

    Args:
        images: (N, H, H), uint8.
        labels: (N,), int64, 0 to 9.
        size: number of stacked images, chosen once, the same for every run (128,000 in the published sets). None
            stacks new images at every draw.

    Reference:
        Metz et al. 2017, section 3.3.1 (stacked for every batch); Srivastava et al. 2017 and Lin et al. 2018
        (128,000 stacked beforehand).
    """

    resolution: int
    channels = 3
    num_classes = NUM_STACKED_MODES

    def __init__(self, images: Tensor, labels: Tensor, *, size: int | None = None) -> None:
        self.images = images
        self.labels = labels
        self.resolution = images.shape[-1]
        self.stacks: Tensor | None = None  # with a size: indices of the grey images stacked, (size, 3), int64
        if size is not None:
            generator = torch.Generator().manual_seed(_STACKING_SEED)
            self.stacks = torch.randint(len(images), (size, 3), generator=generator)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw images (count, 3, H, H), uint8, and modes (count,), int64, with replacement."""
        if self.stacks is None:
            return self.take(torch.randint(len(self.images), (count, 3), generator=generator))
        return self.take(self.stacks[torch.randint(len(self.stacks), (count,), generator=generator)])

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, H), uint8, and modes (N,), int64, stacked of the grey images ``index`` (N, 3)."""
        return self.images[index], self.labels[index] @ torch.tensor(PLACES)


def stack(images: ImageArrays, size: int | None = None) -> StackedImages:
    """Stack the images of a labelled data set; ValueError if they are not grey, or not of ten classes."""
    if images.channels != 1:
        raise ValueError(
            f"{images.name} cannot be stacked: its images are not grey, but have {images.channels} channels"
        )
    if (classes := set(images.labels.tolist())) != set(range(10)):
        raise ValueError(f"{images.name} cannot be stacked: that takes ten classes, 0 to 9, got {len(classes)} classes")
    return StackedImages(images.images[:, 0], images.labels, size=size)
