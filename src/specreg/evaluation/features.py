"""Feature extractors behind one small interface: uint8 images in; features, class probabilities and modes out."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.evaluation.classifier import Classifier, load_classifier
from specreg.evaluation.extractor import Description, Extractor, FeatureName

_PIXELS = 8  # side that pixels are averaged to
_DECIMALS = torch.tensor([100, 10, 1])


class Pixels:
    """Images of any size, averaged to 8x8: the features where no classifier fits."""

    key: FeatureName = "pixels"
    title = "pixels"
    resizing = f"averaged to {_PIXELS}x{_PIXELS}"
    library = None

    def describe(self, images: Tensor) -> Description:
        return Description(F.adaptive_avg_pool2d(images.float() / 255, _PIXELS).flatten(1))


class StackedClassifier:
    """A classifier of grey digits, applied to every channel.

    Features are the channels' features side by side. Of stacked images (stacked digits, Stacked MNIST) the modes are
    known, and a mode's probability is the product of its digits' probabilities. Other images of three channels have
    features alone.

    Args:
        key: "digits" for 8x8, "mnist" for 28x28.
        stacked: whether three channels are three digits.
        device: where it computes.
    """

    resizing = "none"
    library = None

    def __init__(self, key: Literal["digits", "mnist"], *, stacked: bool = True, device: str = "cpu") -> None:
        self.key: FeatureName = key
        self._stacked = stacked
        self.title = {"digits": "digit-classifier", "mnist": "MNIST-classifier"}[key]
        self._device = device
        self._classifier: Classifier = load_classifier(key).to(device)
        self._side = self._classifier.shape[1]

    @torch.no_grad()
    def describe(self, images: Tensor) -> Description:
        self._check(images)
        hidden, logits = [], []
        for chunk in torch.split(images, 1000):
            hidden.append(self._classifier.features(chunk.to(self._device).flatten(0, 1)[:, None].float() / 255))
            logits.append(self._classifier.classify(hidden[-1]))
        features = torch.cat(hidden).cpu().view(len(images), -1)
        each = torch.cat(logits).cpu().view(len(images), -1, 10)  # N, channels, digits
        if each.shape[1] == 1:
            return Description(features, each[:, 0].softmax(-1))
        if not self._stacked:
            return Description(features)
        red, green, blue = each.softmax(-1).unbind(1)
        joint = torch.einsum("nr,ng,nb->nrgb", red, green, blue).flatten(1)
        return Description(features, joint, each.argmax(-1) @ _DECIMALS)

    def _check(self, images: Tensor) -> None:
        _, channels, height, width = images.shape
        if channels not in (1, 3) or (height, width) != (self._side, self._side):
            raise ValueError(
                f"{self.title} features are for {self._side}x{self._side} images of 1 or 3 channels, "
                f"got {width}x{height} with {channels}: choose others with --features"
            )


class CifarFeatures:
    """The last hidden layer of the CIFAR-10 classifier, on 32x32 colour images.

    Args:
        device: where it computes.
    """

    key: FeatureName = "cifar"
    title = "CIFAR-10-classifier"
    resizing = "none"
    library = None

    def __init__(self, *, device: str = "cpu") -> None:
        self._device = device
        self._classifier: Classifier = load_classifier("cifar").to(device)

    @torch.no_grad()
    def describe(self, images: Tensor) -> Description:
        if images.shape[1:] != (3, 32, 32):
            raise ValueError(
                f"{self.title} features are for 32x32 images of 3 channels, got {images.shape[3]}x{images.shape[2]} "
                f"with {images.shape[1]}: choose others with --features"
            )
        hidden, probabilities = [], []
        for chunk in torch.split(images, 500):
            features = self._classifier.features(chunk.to(self._device).float() / 255)
            hidden.append(features.cpu())
            probabilities.append(self._classifier.classify(features).softmax(-1).cpu())
        return Description(torch.cat(hidden), torch.cat(probabilities))


def open_extractor(name: FeatureName, *, stacked: bool = True, inception_weights: Path | None = None) -> Extractor:
    """Return an extractor by name.

    The digits' classifier computes on the CPU, so that records are the same everywhere; the others on a GPU if there
    is one.

    Args:
        name: one of ``FEATURES``.
        stacked: for "digits" and "mnist", see :class:`StackedClassifier`.
        inception_weights: for "inception", see :class:`specreg.evaluation.inception.Inception`.

    Raises:
        FileNotFoundError, ValueError: its weights or its package are missing; says the remedy.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "pixels":
        return Pixels()
    if name == "digits":
        return StackedClassifier("digits", stacked=stacked)
    if name == "mnist":
        return StackedClassifier("mnist", stacked=stacked, device=device)
    if name == "cifar":
        return CifarFeatures(device=device)
    from specreg.evaluation.inception import Inception  # needs a package that is not always installed

    return Inception(inception_weights, device=device)
