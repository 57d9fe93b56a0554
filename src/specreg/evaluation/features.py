"""Feature extractors behind one interface: uint8 images in; features, class probabilities and modes out."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.evaluation.classifier import Classifier, ClassifierName, load_classifier
from specreg.evaluation.extractor import Description, Extractor
from specreg.evaluation.inception import Inception
from specreg.names import FeatureName

_PIXELS = 8  # side that pixels are averaged to
_DECIMALS = torch.tensor([100, 10, 1])
_TITLES = {"digits": "digit", "mnist": "MNIST", "cifar": "CIFAR-10"}


class Pixels(Extractor):
    """Images of any size, averaged to 8x8: the features where no classifier fits."""

    key = "pixels"
    title = "pixels"
    resizing = f"averaged to {_PIXELS}x{_PIXELS}"

    def describe(self, images: Tensor) -> Description:
        return Description(F.adaptive_avg_pool2d(images.float() / 255, _PIXELS).flatten(1))


class ClassifierFeatures(Extractor):
    """The last hidden layer of a classifier, on images of its own side.

    A classifier of grey digits is applied to every channel, and the channels' features stand side by side. Stacked
    images (stacked digits, Stacked MNIST) have modes, too; a mode's probability is the product of its digits'
    probabilities. Other images of three channels have features alone.

    Args:
        key: "digits" for 8x8, "mnist" for 28x28, "cifar" for colours of 32x32.
        stacked: whether three channels are three digits.
        device: where it computes.
    """

    def __init__(self, key: ClassifierName, *, stacked: bool = True, device: str = "cpu") -> None:
        self.key = key
        self.title = f"{_TITLES[key]}-classifier"
        self._stacked = stacked
        self._classifier: Classifier = load_classifier(key).to(device)
        self._device = device

    @torch.no_grad()
    def describe(self, images: Tensor) -> Description:
        own, side = self._classifier.shape
        num_images, channels, height, width = images.shape
        fitting = (1, 3) if own == 1 else (own,)
        if channels not in fitting or (height, width) != (side, side):
            raise ValueError(
                f"{self.title} features are for {side}x{side} images of {' or '.join(map(str, fitting))} channels, "
                f"got {width}x{height} with {channels}: choose others with --features"
            )
        parts = torch.split(images.reshape(-1, own, side, side), 500 if own > 1 else 1000 * channels)
        hidden = [self._classifier.features(part.to(self._device).float() / 255) for part in parts]
        logits = torch.cat([self._classifier.classify(part) for part in hidden]).cpu()
        features = torch.cat(hidden).cpu().view(num_images, -1)
        if channels == own:
            return Description(features, logits.softmax(-1))
        if not self._stacked:
            return Description(features)
        digits = logits.view(num_images, channels, -1)
        red, green, blue = digits.softmax(-1).unbind(1)
        joint = torch.einsum("nr,ng,nb->nrgb", red, green, blue).flatten(1)
        return Description(features, joint, digits.argmax(-1) @ _DECIMALS)


def open_extractor(name: FeatureName, *, stacked: bool = True, inception_weights: Path | None = None) -> Extractor:
    """Return an extractor by name.

    The digits' classifier computes on the CPU, so that records are the same everywhere, the other networks on a GPU if
    there is one. See :class:`ClassifierFeatures` for ``stacked``, which its features alone ask for, and
    :class:`specreg.evaluation.inception.Inception` for its weights.

    Raises:
        FileNotFoundError, ValueError: its weights or its package are missing; says the remedy.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "pixels":
        return Pixels()
    if name == "inception":
        return Inception(inception_weights, device=device)
    return ClassifierFeatures(name, stacked=stacked, device="cpu" if name == "digits" else device)
