"""Evaluate generated images under a declared protocol: how many, which real ones, which features; their metrics."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from specreg.evaluation import metrics
from specreg.evaluation.features import Description, Extractor
from specreg.names import NUM_STACKED_MODES, FeatureName, Split

# Of real and of generated images at most, with 5 neighbours, as in Naeem et al. 2020. Published precision and recall
# (Kynkäänniemi et al. 2019) are of 50,000 images with 3 neighbours and do not compare.
NEIGHBOURHOOD_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The metrics of a generator, with their protocol: docs/evaluation.md."""

    protocol: str
    split: Split  # of the real images
    num_real: int
    num_fake: int
    features: str
    resizing: str
    library: str  # of distances, and of Inception's features, with versions
    modes: int | None = None
    kl: float | None = None
    kl_floor: float | None = None
    fd: float
    intra_fd: float | None = None
    kid: float
    inception_score: float | None = None
    inception_score_std: float | None = None
    classifier_score: float | None = None
    classifier_score_std: float | None = None
    precision: float
    recall: float
    density: float
    coverage: float


class Evaluator:
    """Compare generated images with a set of real ones, whose features are computed once.

    Args:
        real: uint8 images (N, C, H, W).
        extractor: the features, from :func:`specreg.evaluation.features.open_extractor`.
        split: the part of the data that ``real`` is from.
        labels: the classes of ``real`` (N,), for distances within classes.
    """

    def __init__(
        self, real: Tensor, *, extractor: Extractor, split: Split = "train", labels: Tensor | None = None
    ) -> None:
        self._extractor, self._split, self._labels = extractor, split, labels
        self._real = extractor.describe(real).features

    def evaluate(self, images: Tensor, *, labels: Tensor | None = None) -> Evaluation:
        """Return every metric of generated images, uint8 (M, C, H, W), with the classes (M,) that were asked for."""
        extractor, real = self._extractor, self._real
        fake = extractor.describe(images)
        num_fake = len(fake.features)
        measured: dict[str, Any] = _mode_metrics(fake)
        if fake.modes is not None:
            measured["kl_floor"] = metrics.reverse_kl_floor(NUM_STACKED_MODES, num_fake)
        if fake.probabilities is not None:
            score = "inception_score" if extractor.key == "inception" else "classifier_score"
            mean, std = metrics.classifier_score(fake.probabilities)
            measured |= {score: mean, f"{score}_std": std}
        if labels is not None and self._labels is not None:
            measured["intra_fd"] = metrics.intra_class_distance(real, self._labels, fake.features, labels)
        most = min(num_fake, NEIGHBOURHOOD_IMAGES)
        measured |= metrics.neighbourhoods(real[:most], fake.features[:most])
        return Evaluation(
            protocol=protocol_name(extractor.key, num_fake, self._split, len(real)),
            split=self._split,
            num_real=len(real),
            num_fake=num_fake,
            features=extractor.title,
            resizing=extractor.resizing,
            library=", ".join(filter(None, (f"torchmetrics {version('torchmetrics')}", extractor.library))),
            fd=metrics.frechet_distance(real, fake.features),
            kid=metrics.kernel_distance(real, fake.features),
            **measured,
        )

    def glance(self, images: Tensor) -> dict[str, float | int]:
        """Return the cheap metrics, for the display during training: modes and kl (where known), and fd."""
        fake = self._extractor.describe(images)
        return _mode_metrics(fake) | {"fd": metrics.frechet_distance(self._real, fake.features)}


def _mode_metrics(fake: Description) -> dict[str, float | int]:
    if fake.modes is None:
        return {}
    return {"modes": len(torch.unique(fake.modes)), "kl": metrics.reverse_kl(fake.modes, NUM_STACKED_MODES)}


def protocol_name(features: FeatureName, num_fake: int, split: Split, num_real: int) -> str:
    """Return the name of a protocol, e.g. ``fid_50k_train50k`` or ``fd_cifar_5k_test10k``."""
    distance = "fid" if features == "inception" else f"fd_{features}"
    return f"{distance}_{_thousands(num_fake)}_{split}{_thousands(num_real)}"


def _thousands(count: int) -> str:
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)
