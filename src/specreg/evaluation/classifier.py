"""The classifiers behind the metrics: labels for counting modes, features for distances.

Their accuracies below are on images that they were not trained on; ``scripts/`` has their trainings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_HERE = Path(__file__).parent
DIGIT_HELD_OUT_CORRECT = 295  # of the 297 held-out digits, 99.3%
MNIST_TEST_CORRECT = 9969  # of MNIST's 10,000 test images, 99.7%
CIFAR_TEST_CORRECT = 9002  # of CIFAR-10's 10,000 test images, 90.0%, as JPEG of quality 50, as it was trained on


class Classifier(nn.Module):
    """A body that ends in features (N, d) and a linear head of ten logits."""

    def __init__(self, shape: tuple[int, int], body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.shape = shape  # (channels, side) of the images
        self.body = body
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, d), mean square 1 on the training images, of images (N, C, H, W) in [0, 1]."""
        return self.body(images)

    def classify(self, features: Tensor) -> Tensor:
        """Return logits (N, 10) of features (N, d)."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, C, H, W) in [0, 1]."""
        return self.classify(self.features(images))


def digit_classifier() -> Classifier:
    """Return a network for one 8x8 digit in shades of grey: two convolution stages, features, ten logits."""
    body = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(48, 48, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48 * 16, 32),
        nn.ReLU(),
    )
    return Classifier((1, 8), body, nn.Linear(32, 10))


def mnist_classifier() -> Classifier:
    """Return a network for one 28x28 digit in shades of grey: three convolution stages, features, ten logits."""
    body = nn.Sequential(
        *_stage(1, 24, nn.ReLU),
        nn.MaxPool2d(2),
        *_stage(24, 48, nn.ReLU),
        *_stage(48, 48, nn.ReLU),
        nn.MaxPool2d(2),
        *_stage(48, 64, nn.ReLU),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 9, 64),
        nn.ReLU(),
    )
    return Classifier((1, 28), body, nn.Linear(64, 10))


class CifarClassifier(Classifier):
    """Classify one 32x32 colour image: whitened 2x2 patches, six convolutions, 256 features, ten logits.

    1.97 million parameters.

    Reference:
        Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", section 3 (the network).
    """

    _TEMPERATURE = 9.0
    mean: Tensor
    std: Tensor
    unit: Tensor

    def __init__(self) -> None:
        body = nn.Sequential(
            nn.Conv2d(3, 24, 2),
            nn.GELU(),
            *_double_stage(24, 64),
            *_double_stage(64, 256),
            *_double_stage(256, 256),
            nn.MaxPool2d(3),
            nn.Flatten(),
        )
        super().__init__((3, 32), body, nn.Linear(256, 10, bias=False))
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2470, 0.2435, 0.2616]).view(1, 3, 1, 1))
        self.register_buffer("unit", torch.ones(()))  # GELU, unlike ReLU, does not commute with a change of scale

    def features(self, images: Tensor) -> Tensor:
        return self.body((images - self.mean) / self.std) * self.unit

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features) / self._TEMPERATURE


def load_classifier(name: "ClassifierName") -> Classifier:
    """Return a trained classifier, in eval mode and without gradients."""
    kind, weights = CLASSIFIERS[name]
    if not weights.exists():
        raise FileNotFoundError(
            f"the weights of the {name} classifier ({weights.name}) are missing: install the package again; "
            f"scripts/train_{weights.stem}.py of the source repository makes them"
        )
    classifier = kind()
    try:
        classifier.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{weights} does not hold the {name} classifier ({type(error).__name__}): install the package again"
        ) from error
    return classifier.eval().requires_grad_(False)


def _stage(inputs: int, outputs: int, activation: type[nn.Module]) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), activation()


def _double_stage(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    convolution, *rest = _stage(inputs, outputs, nn.GELU)
    return convolution, nn.MaxPool2d(2), *rest, *_stage(outputs, outputs, nn.GELU)


ClassifierName = Literal["digits", "mnist", "cifar"]
CLASSIFIERS: dict[ClassifierName, tuple[Callable[[], Classifier], Path]] = {
    "digits": (digit_classifier, _HERE / "digit_classifier.safetensors"),
    "mnist": (mnist_classifier, _HERE / "mnist_classifier.safetensors"),
    "cifar": (CifarClassifier, _HERE / "cifar_classifier.safetensors"),
}
