"""Which evaluator a configuration and its data ask for."""

from pathlib import Path

import torch
from torch import Tensor

from specreg.data.arrays import ImageArrays, ImageSource
from specreg.data.digits import StackedDigits
from specreg.data.mixtures import DataSource, GaussianMixture
from specreg.data.stacked import StackedImages
from specreg.evaluation.features import Extractor, FeatureName, open_extractor
from specreg.evaluation.mixtures import MixtureEvaluator
from specreg.evaluation.protocol import Evaluator
from specreg.experiments.config import Settings

REFERENCE_SEED = 3_000_017
_FEWEST_DIFFERENT = 10  # real images
_MNIST_SIDES = (28, 32)


def make_evaluator(
    settings: Settings, source: DataSource, held_out: ImageSource | None = None
) -> Evaluator | MixtureEvaluator:
    """Return the evaluator against real samples, the same for every run with these settings.

    Args:
        settings: the configuration.
        source: what is trained on.
        held_out: images of the same kind that are not; needed for ``reference_split`` "test".

    Raises:
        FileNotFoundError, ValueError: the features or the held-out part cannot be had; says the remedy.
    """
    records = settings.records
    reference = _reference(settings, source, held_out)
    if isinstance(source, GaussianMixture):
        real, _ = source.draw(records.reference, torch.Generator().manual_seed(REFERENCE_SEED))
        return MixtureEvaluator(
            real,
            name=source.name,
            publication=source.publication,
            centres=source.centres,
            deviation=source.deviation,
            num_samples=records.samples,
        )
    real, labels = _draw(reference, records.reference)
    return Evaluator(
        real,
        num_samples=records.samples,
        extractor=_extractor(settings, source),
        split="test" if records.reference_split == "test" else settings.data.data_split,
        labels=labels if settings.data.conditional else None,
    )


def check_evaluation(settings: Settings, source: DataSource, held_out: ImageSource | None = None) -> None:
    """Raise what :func:`make_evaluator` would raise, without its work on many images."""
    _reference(settings, source, held_out)
    if isinstance(source, GaussianMixture):
        if settings.records.features != "auto":
            raise ValueError(f"{settings.data.data} has points and no images: drop --features")
        return
    image, _ = source.draw(1, torch.Generator().manual_seed(REFERENCE_SEED))
    _extractor(settings, source).describe(image)


def _reference(settings: Settings, source: DataSource, held_out: ImageSource | None) -> DataSource:
    if settings.records.reference_split == "train":
        return source
    if held_out is None:
        raise ValueError(
            f"no part of {settings.data.data} is known that is not trained on: drop --reference-split test"
        )
    return held_out


def _extractor(settings: Settings, source: DataSource) -> Extractor:
    records = settings.records
    name = _suggested_features(source) if records.features == "auto" else records.features
    weights = None if records.inception_weights is None else Path(records.inception_weights)
    return open_extractor(name, inception_weights=weights)


def _suggested_features(source: DataSource) -> FeatureName:
    if isinstance(source, StackedDigits):
        return "digits"
    return "mnist" if isinstance(source, StackedImages) and source.resolution in _MNIST_SIDES else "pixels"


def _draw(source: DataSource, count: int) -> tuple[Tensor, Tensor]:
    """Return real images and labels: different ones where the images are finite, all of them if they are no more.

    A handful of images is drawn with replacement like an endless source: no statistic could do with so few.
    """
    random = torch.Generator().manual_seed(REFERENCE_SEED)
    if not isinstance(source, ImageArrays) or len(source.images) < _FEWEST_DIFFERENT:
        return source.draw(count, random)
    chosen = torch.randperm(len(source.images), generator=random)[:count]
    return source.images[chosen], source.labels[chosen]
