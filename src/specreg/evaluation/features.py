"""Feature extractors behind one interface, that of :class:`Pixels`: images in; features, probabilities, modes out.

``describe`` takes images (N, C, H, W), uint8; a classifier's raises ValueError naming the shape that they should have.
"""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specreg.evaluation.classifier import Classifier, ClassifierName, load_classifier
from specreg.names import PLACES, FeatureName

WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_NAME}"
_PIXELS = 8  # side that pixels are averaged to
_PASS = 2**16  # pixels of a channel in one forward pass of a classifier; more of them leave the cache
_TITLES = {"digits": "digit", "mnist": "MNIST", "cifar": "CIFAR-10"}


@dataclass(frozen=True)
class Description:
    """An extractor's output for N images."""

    features: Tensor  # (N, d)
    probabilities: Tensor | None = None  # of the extractor's classes, (N, K); None for pixels
    modes: Tensor | None = None  # (N,), int64, 100·red + 10·green + blue; None unless the images are stacked digits


class Pixels:
    """Images of any size, averaged to 8x8: the features where no classifier fits."""

    key: FeatureName = "pixels"  # for the protocol's name
    title = "pixels"  # the features in words, for the record
    resizing = f"averaged to {_PIXELS}x{_PIXELS}"  # of images before the network, likewise
    library = None  # the network's and its version, None if it is this package

    def describe(self, images: Tensor) -> Description:
        parts = torch.split(images, 500)  # all at once, as floats, they would fill the memory
        return Description(torch.cat([F.adaptive_avg_pool2d(part.float() / 255, _PIXELS).flatten(1) for part in parts]))


class ClassifierFeatures:
    """The last hidden layer of a classifier, on images of its own side.

    A classifier of grey digits is applied to every channel, and the channels' features stand side by side. Stacked
    images (stacked digits, Stacked MNIST) have modes, too; a mode's probability is the product of its digits'
    probabilities. Other images of three channels have features alone.

    Args:
        key: "digits" for 8x8, "mnist" for 28x28, "cifar" for colours of 32x32.
        stacked: whether three channels are three digits.
    """

    resizing = "none"
    library = None

    def __init__(self, key: ClassifierName, *, stacked: bool = True, device: str = "cpu") -> None:
        self.key: FeatureName = key
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
        parts = torch.split(images.reshape(-1, own, side, side), _PASS // side**2)
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
        return Description(features, joint, digits.argmax(-1) @ torch.tensor(PLACES))


class Inception:
    """Features (N, 2048) and class probabilities (N, 1008) of the Inception network of Heusel et al. 2017.

    Images are resized to 299x299 as TensorFlow 1 did it; grey ones are repeated to three channels. The probabilities
    are the softmax of the logits without their bias, as in published Inception Scores.

    Args:
        weights: a file of torch-fidelity's weights; None looks where torch-fidelity keeps them. Nothing is downloaded.

    Reference:
        Heusel et al. 2017; Salimans et al. 2016; Obukhov and Krasnyanskiy 2020 (torch-fidelity).
    """

    key: FeatureName = "inception"
    resizing = "bilinear to 299x299 as in TensorFlow 1"

    def __init__(self, weights: Path | None = None, *, device: str = "cpu", batch: int = 50) -> None:
        if find_spec("torch_fidelity") is None:
            raise ValueError(
                "Inception features need torch-fidelity: pip install '.[inception]' in the folder of specreg's source"
            )
        path = find_weights(weights)
        with open(path, "rb") as file:  # the published file has these digits in its name
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
        self.title = f"Inception-2048 (weights {digest})"
        self.library = f"torch-fidelity {version('torch-fidelity')}"
        self._network = _load(path).to(device)
        self._device, self._batch = device, batch

    @torch.no_grad()
    def describe(self, images: Tensor) -> Description:
        features, probabilities = [], []
        for chunk in torch.split(images, self._batch):
            hidden, logits = self._network(chunk.to(self._device).expand(-1, 3, -1, -1))
            features.append(hidden.cpu())
            probabilities.append(logits.softmax(-1).cpu())
        return Description(torch.cat(features), torch.cat(probabilities))


Extractor = Pixels | ClassifierFeatures | Inception


def open_extractor(name: FeatureName, *, stacked: bool = True, inception_weights: Path | None = None) -> Extractor:
    """Return an extractor by name.

    The digits' classifier computes on the CPU, so that records are the same everywhere, the other networks on a GPU if
    there is one. See :class:`ClassifierFeatures` for ``stacked``, which its features alone ask for, and
    :class:`Inception` for its weights.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "pixels":
        return Pixels()
    if name == "inception":
        return Inception(inception_weights, device=device)
    return ClassifierFeatures(name, stacked=stacked, device="cpu" if name == "digits" else device)


def find_weights(weights: Path | None) -> Path:
    """Return the file of weights given, or else torch-fidelity's; FileNotFoundError if it does not exist."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME if weights is None else weights
    if not path.is_file():
        raise FileNotFoundError(
            f"no Inception weights at {path}: download {WEIGHTS_URL} and name the file with --inception-weights"
        )
    return path


def _load(path: Path) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        # torch-fidelity unpickles its file; a file that passes here holds tensors alone.
        torch.load(path, weights_only=True, map_location="cpu")
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except Exception as error:  # torch raises many kinds for a damaged file
        wrong = f"{path} does not hold torch-fidelity's Inception weights ({type(error).__name__})"
        raise ValueError(f"{wrong}: fetch {WEIGHTS_URL} again") from error
