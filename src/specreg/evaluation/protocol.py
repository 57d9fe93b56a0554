"""Evaluate a sampler under a declared protocol: which images, how many, which features, and every metric of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from specreg.evaluation.extractor import Description, Extractor, FeatureName
from specreg.evaluation.metrics import (
    SPLITS,
    classifier_score,
    frechet_distance,
    intra_class_distance,
    kernel_distance,
    neighbourhoods,
)
from specreg.evaluation.modes import modes_covered, reverse_kl, reverse_kl_floor
from specreg.names import Split

NUM_STACKED_MODES = 1000
# Of each kind at most, with 5 neighbours, as Naeem et al. 2020 have it. Published precision and recall (Kynkäänniemi et
# al. 2019) are of 50,000 images with 3 neighbours: they do not compare with these.
NEIGHBOURHOOD_IMAGES = 10_000

# A number of images in, that many uint8 images (N, C, H, W) out.
Sampler = Callable[[int], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one generator, with the protocol they were taken under.

    Attributes:
        protocol: its name, e.g. ``fd_digits_5k_train10k``: Fréchet distance in the digits' features of 5,000 generated
            images to 10,000 of the training part. ``fid_...`` with Inception's features, and only then.
        split: which part of the data the real images are from.
        num_real, num_fake: how many images of each.
        features: whose features, in words.
        resizing: what happens to images before the network sees them.
        library: what computed distances and Inception's features, with versions.
        modes: of 1000, stacked digits and Stacked MNIST only.
        kl: reverse KL in nats, where modes are counted.
        kl_floor: the KL that a perfect sampler of as many images has on average.
        fd: Fréchet distance in the features; FID if they are Inception's.
        intra_fd: its mean within classes, where the classes of real and generated images are known.
        kid: kernel distance in the features; mean of 100 subsets of 1,000.
        inception_score, inception_score_std: over 10 splits, with Inception's features only.
        classifier_score, classifier_score_std: the same of another classifier's probabilities.
        precision, recall, density, coverage: with 5 neighbours, in the features, of at most 10,000 images each.
    """

    protocol: str
    split: Split
    num_real: int
    num_fake: int
    features: str
    resizing: str
    library: str
    modes: int | None
    kl: float | None
    kl_floor: float | None
    fd: float
    intra_fd: float | None
    kid: float
    inception_score: float | None
    inception_score_std: float | None
    classifier_score: float | None
    classifier_score_std: float | None
    precision: float
    recall: float
    density: float
    coverage: float


class Evaluator:
    """Compare samplers with one set of real images, whose features are computed once.

    Args:
        real: uint8 images (N, C, H, W), the reference.
        num_samples: how many images are drawn from a sampler.
        extractor: the features, from :func:`specreg.evaluation.features.open_extractor`.
        split: which part of the data ``real`` is from.
        labels: the classes of ``real`` (N,), for distances within classes.

    Raises:
        ValueError: the features are not for such images.
    """

    def __init__(
        self,
        real: Tensor,
        *,
        num_samples: int,
        extractor: Extractor,
        split: Split = "train",
        labels: Tensor | None = None,
    ) -> None:
        self.num_samples = num_samples
        self._extractor, self._split, self._labels = extractor, split, labels
        self._real = extractor.describe(real).features

    def evaluate(self, sampler: Sampler, *, labels: Tensor | None = None) -> Evaluation:
        """Return every metric of ``num_samples`` images drawn from ``sampler``.

        Args:
            sampler: the generator.
            labels: the classes (num_samples,) that the sampler's images were asked to be of, in order.
        """
        fake = self._extractor.describe(sampler(self.num_samples))
        count = min(self.num_samples, NEIGHBOURHOOD_IMAGES)
        return Evaluation(
            **self._declared(len(fake.features)),
            **self._covered(fake),
            kl_floor=None if fake.modes is None else reverse_kl_floor(NUM_STACKED_MODES, len(fake.modes)),
            fd=frechet_distance(self._real, fake.features),
            intra_fd=self._within_classes(fake.features, labels),
            kid=kernel_distance(self._real, fake.features),
            **self._scored(fake),
            **asdict(neighbourhoods(self._real[:count], fake.features[:count])),
        )

    def glance(self, sampler: Sampler) -> dict[str, float | int]:
        """Return only the cheap metrics, for the display during training: modes and kl (where known), and fd."""
        fake = self._extractor.describe(sampler(self.num_samples))
        known = {key: value for key, value in self._covered(fake).items() if value is not None}
        return known | {"fd": frechet_distance(self._real, fake.features)}

    def _declared(self, num_fake: int) -> dict[str, Any]:
        extractor = self._extractor
        libraries = (f"torchmetrics {version('torchmetrics')}", extractor.library)
        return {
            "protocol": protocol_name(extractor.key, num_fake, self._split, len(self._real)),
            "split": self._split,
            "num_real": len(self._real),
            "num_fake": num_fake,
            "features": extractor.title,
            "resizing": extractor.resizing,
            "library": ", ".join(library for library in libraries if library),
        }

    def _covered(self, fake: Description) -> dict[str, Any]:
        if fake.modes is None:
            return {"modes": None, "kl": None}
        known = {"modes": modes_covered(fake.modes, NUM_STACKED_MODES)}
        return known | {"kl": reverse_kl(fake.modes, NUM_STACKED_MODES)}

    def _scored(self, fake: Description) -> dict[str, Any]:
        keys = ("inception_score", "classifier_score")
        scores: dict[str, Any] = dict.fromkeys([*keys, *(f"{key}_std" for key in keys)])
        if fake.probabilities is not None:
            key = keys[0] if self._extractor.key == "inception" else keys[1]
            scores[key], scores[f"{key}_std"] = classifier_score(
                fake.probabilities, splits=min(SPLITS, len(fake.probabilities))
            )
        return scores

    def _within_classes(self, fake: Tensor, labels: Tensor | None) -> float | None:
        if labels is None or self._labels is None:
            return None
        classes = int(torch.cat([self._labels, labels]).max()) + 1
        counts = [torch.bincount(some, minlength=classes) for some in (self._labels, labels)]
        if min(int(count.min()) for count in counts) < 2:
            return None  # too few images for that many classes
        return intra_class_distance(self._real, self._labels, fake, labels)


def protocol_name(features: FeatureName, num_fake: int, split: Split, num_real: int) -> str:
    """Return the name of a protocol, e.g. ``fid_50k_train50k`` or ``fd_cifar_5k_test10k``."""
    distance = "fid" if features == "inception" else f"fd_{features}"
    return f"{distance}_{_thousands(num_fake)}_{split}{_thousands(num_real)}"


def _thousands(count: int) -> str:
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
