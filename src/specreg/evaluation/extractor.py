"""The interface of feature extractors."""

import typing
from dataclasses import dataclass

from torch import Tensor

from specreg.names import FeatureName

FEATURES: tuple[FeatureName, ...] = typing.get_args(FeatureName)


@dataclass(frozen=True)
class Description:
    """An extractor's output for N images.

    Attributes:
        features: (N, d).
        probabilities: of the extractor's classes, (N, K); None for pixels.
        modes: (N,), int64, 100·red + 10·green + blue; None unless the images are stacked digits.
    """

    features: Tensor
    probabilities: Tensor | None = None
    modes: Tensor | None = None


class Extractor:
    """A network, or pixels, as the source of features.

    Attributes:
        key: an element of ``FEATURES``, for the protocol's name.
        title: the features in words, for the record.
        resizing: of images before the network, in words, for the record.
        library: the network's library and version, None if it is this package.
    """

    key: FeatureName
    title: str
    resizing: str = "none"
    library: str | None = None

    def describe(self, images: Tensor) -> Description:
        """Describe images (N, C, H, W), uint8; ValueError names the shape that they should have."""
        raise NotImplementedError
