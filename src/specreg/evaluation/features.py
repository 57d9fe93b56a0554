"""Feature extractors behind one interface: uint8 images in; features, class probabilities and modes out."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.evaluation.classifier import Classifier, load_classifier
from specreg.evaluation.extractor import Description, Extractor
from specreg.evaluation.inception import Inception
from specreg.names import FeatureName

_PIXELS = 8  # side that pixels are averaged to
_DECIMALS = torch.tensor([100, 10, 1])


class Pixels(Extractor):
    """Images of any size, averaged to 8x8: the features where no classifier fits."""

    key = "pixels"
    title = "pixels"
    resizing = f"averaged to {_PIXELS}x{_PIXELS}"

    def describe(self, images: Tensor) -> Description:
        return Description(F.adaptive_avg_pool2d(images.float() / 255, _PIXELS).flatten(1))


class StackedClassifier(Extractor):
    """A classifier of grey digits, applied to every channel; the channels' features stand side by side.

    Stacked images (stacked digits, Stacked MNIST) have modes, too; a mode's probability is the product of its digits'
    probabilities. Other images of three channels have features alone.

    Args:
        key: "digits" for 8x8, "mnist" for 28x28.
        stacked: whether three channels are three digits.
        device: where it computes.
    """

    def __init__(self, key: Literal["digits", "mnist"], *, stacked: bool = True, device: str = "cpu") -> None:
        self.key = key
        self.title = {"digits": "digit-classifier", "mnist": "MNIST-classifier"}[key]
        self._stacked = stacked
        self._classifier: Classifier = load_classifier(key).to(device)

    def describe(self, images: Tensor) -> Description:
        _check_shape(images, self._classifier, (1, 3), self.title)
        num_images, channels = images.shape[:2]
        features, logits = _outputs(self._classifier, images.flatten(0, 1)[:, None], 1000 * channels)
        features = features.cpu().view(num_images, -1)
        digits = logits.cpu().view(num_images, channels, 10)
        if channels == 1:
            return Description(features, digits[:, 0].softmax(-1))
        if not self._stacked:
            return Description(features)
        red, green, blue = digits.softmax(-1).unbind(1)
        joint = torch.einsum("nr,ng,nb->nrgb", red, green, blue).flatten(1)
        return Description(features, joint, digits.argmax(-1) @ _DECIMALS)


class CifarFeatures(Extractor):
    """The last hidden layer of the CIFAR-10 classifier, on 32x32 colour images.

    Args:
        device: where it computes.
    """

    key = "cifar"
    title = "CIFAR-10-classifier"

    def __init__(self, *, device: str = "cpu") -> None:
        self._classifier: Classifier = load_classifier("cifar").to(device)

    def describe(self, images: Tensor) -> Description:
        _check_shape(images, self._classifier, (3,), self.title)
        features, logits = _outputs(self._classifier, images, 500)
        return Description(features.cpu(), logits.softmax(-1).cpu())


def open_extractor(name: FeatureName, *, stacked: bool = True, inception_weights: Path | None = None) -> Extractor:
    """Return an extractor by name.

    The digits' classifier computes on the CPU, so that records are the same everywhere, the other networks on a GPU if
    there is one.

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
    return Inception(inception_weights, device=device)


def _check_shape(images: Tensor, classifier: Classifier, channels: tuple[int, ...], title: str) -> None:
    side, (_, num_channels, height, width) = classifier.shape[1], images.shape
    if num_channels not in channels or (height, width) != (side, side):
        raise ValueError(
            f"{title} features are for {side}x{side} images of {' or '.join(map(str, channels))} channels, "
            f"got {width}x{height} with {num_channels}: choose others with --features"
        )


@torch.no_grad()
def _outputs(classifier: Classifier, images: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return features and logits of uint8 images, ``chunk`` at a time, where the classifier computes."""
    device = next(classifier.parameters()).device
    features = [classifier.features(part.to(device).float() / 255) for part in torch.split(images, chunk)]
    logits = [classifier.classify(part) for part in features]
    return torch.cat(features), torch.cat(logits)
