"""What an evaluation needs to know of images, and the interface of whatever tells it."""

import typing
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

FeatureName = Literal["digits", "mnist", "cifar", "pixels", "inception"]
FEATURES: tuple[FeatureName, ...] = typing.get_args(FeatureName)


@dataclass(frozen=True)
class Description:
    """What an extractor says of N images.

    Attributes:
        features: (N, d).
        probabilities: of the extractor's classes, (N, K); None for pixels.
        modes: (N,), int64, 100·red + 10·green + blue; None unless the images are stacked digits.
    """

    features: Tensor
    probabilities: Tensor | None = None
    modes: Tensor | None = None


class Extractor(Protocol):
    """What an evaluation needs of a network, or of pixels.

    Attributes:
        key: one of ``FEATURES``, for the protocol's name.
        title: the features in words, for the record.
        resizing: what happens to images before the network sees them, for the record.
        library: whose network it is, with its version, where it is not this package's.
    """

    @property
    def key(self) -> FeatureName: ...
    @property
    def title(self) -> str: ...
    @property
    def resizing(self) -> str: ...
    @property
    def library(self) -> str | None: ...

    def describe(self, images: Tensor) -> Description:
        """Return what is known of images (N, C, H, W), uint8.

        Raises:
            ValueError: they have a shape that the extractor is not for; says which it is for.
        """
        ...
