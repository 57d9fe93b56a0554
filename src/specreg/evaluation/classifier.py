"""The digit classifier behind the metrics on stacked digits: labels for counting modes, features for distances."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("digit_classifier.safetensors")
NUM_FEATURES = 32
HELD_OUT_CORRECT = 295  # of the 297 held-out digits, 99.3%


class DigitClassifier(nn.Module):
    """Classify one 8x8 digit in shades of grey: two convolution stages, a hidden layer of features, ten logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 48, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(48, 48, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48 * 16, NUM_FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(NUM_FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, 32), mean square 1 on the training digits, of images (N, 1, 8, 8) in [0, 1]."""
        hidden: Tensor = self.body(images)
        return hidden

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, 1, 8, 8) in [0, 1]."""
        logits: Tensor = self.head(self.features(images))
        return logits


def load_digit_classifier() -> DigitClassifier:
    """Return the classifier that ships with the package, in eval mode."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval().requires_grad_(False)


@torch.no_grad()
def classify_stacked(images: Tensor, classifier: DigitClassifier, *, batch: int = 1000) -> tuple[Tensor, Tensor]:
    """Classify stacked digits channel by channel.

    Args:
        images: (N, 3, 8, 8), uint8.
        classifier: from :func:`load_digit_classifier`.
        batch: images at a time.

    Returns:
        Modes (N,), 100·red + 10·green + blue, and features (N, 96), the channels' features side by side.
    """
    modes, features = [], []
    for chunk in torch.split(images, batch):
        hidden = classifier.features(chunk.flatten(0, 1)[:, None].float() / 255)
        digits = classifier.head(hidden).argmax(1).view(-1, 3)
        modes.append(digits @ torch.tensor([100, 10, 1]))
        features.append(hidden.view(len(chunk), -1))
    return torch.cat(modes), torch.cat(features)
