"""Evaluate a sampler: which images, how many, which features, and every metric of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specreg.evaluation.classifier import classify_stacked, load_digit_classifier
from specreg.evaluation.metrics import frechet_distance, kernel_distance, neighbourhoods
from specreg.evaluation.modes import modes_covered, reverse_kl

NUM_DIGIT_MODES = 1000

# A number of images in, that many uint8 images (N, C, H, W) out.
Sampler = Callable[[int], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one generator, with the protocol they were taken under.

    Attributes:
        features: "digit-classifier" (96 dimensions) or "pixels" (8x8 averages).
        num_real, num_fake: how many images of each.
        modes: of 1000, stacked digits only.
        kl: reverse KL in nats, stacked digits only.
        fd: Fréchet distance in the features.
        kid: kernel distance in the features.
        precision, recall, density, coverage: with 5 neighbours, in the features.
    """

    features: str
    num_real: int
    num_fake: int
    modes: int | None
    kl: float | None
    fd: float
    kid: float
    precision: float
    recall: float
    density: float
    coverage: float


class Evaluator:
    """Compare samplers with one set of real images, whose features are computed once.

    Args:
        real: uint8 images (N, C, H, W), the reference.
        num_samples: how many images are drawn from a sampler.
        digits: the images are stacked digits, so modes are counted and features are the classifier's;
            other images are compared in pixels averaged to 8x8.
    """

    def __init__(self, real: Tensor, *, num_samples: int, digits: bool) -> None:
        self.num_samples = num_samples
        self._classifier = load_digit_classifier() if digits else None
        _, self._real = self._describe(real)

    def evaluate(self, sampler: Sampler) -> Evaluation:
        """Return every metric of ``num_samples`` images drawn from ``sampler``."""
        modes, fake = self._describe(sampler(self.num_samples))
        near = neighbourhoods(self._real[: self.num_samples], fake)
        return Evaluation(
            features="pixels" if self._classifier is None else "digit-classifier",
            num_real=len(self._real),
            num_fake=len(fake),
            modes=None if modes is None else modes_covered(modes, NUM_DIGIT_MODES),
            kl=None if modes is None else reverse_kl(modes, NUM_DIGIT_MODES),
            fd=frechet_distance(self._real, fake),
            kid=kernel_distance(self._real, fake),
            precision=near.precision,
            recall=near.recall,
            density=near.density,
            coverage=near.coverage,
        )

    def glance(self, sampler: Sampler) -> dict[str, float | int]:
        """Return only the cheap metrics, for the display during training: modes, kl (digits) and fd."""
        modes, fake = self._describe(sampler(self.num_samples))
        known: dict[str, float | int] = {}
        if modes is not None:
            known = {"modes": modes_covered(modes, NUM_DIGIT_MODES), "kl": reverse_kl(modes, NUM_DIGIT_MODES)}
        return known | {"fd": frechet_distance(self._real, fake)}

    def _describe(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        if self._classifier is not None:
            return classify_stacked(images, self._classifier)
        return None, torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1)
