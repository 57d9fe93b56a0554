"""Which evaluator a configuration and its data ask for."""

from pathlib import Path

import torch
from torch import Tensor

from specreg.data.arrays import ImageArrays, ImageSource
from specreg.data.digits import StackedDigits
from specreg.data.mixtures import DataSource, GaussianMixture
from specreg.data.stacked import StackedImages
from specreg.evaluation.extractor import Extractor
from specreg.evaluation.features import Pixels, StackedClassifier, open_extractor
from specreg.evaluation.mixtures import MixtureEvaluator
from specreg.evaluation.protocol import Evaluator
from specreg.experiments.config import FEWEST_IMAGES, Settings

REFERENCE_SEED = 3_000_017
_MNIST_SIDE = 28
# A classifier counts modes of stacked images only if it is right about most of so many: other grey sets of ten classes
# look just like MNIST from outside.
_RECOGNIZED, _ASKED = 0.9, 500


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
    _check_options(settings, source)
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
    _check_options(settings, source)
    if not isinstance(source, GaussianMixture):
        image, _ = source.draw(1, torch.Generator().manual_seed(REFERENCE_SEED))
        _extractor(settings, source).describe(image)


def _check_options(settings: Settings, source: DataSource) -> None:
    records = settings.records
    if isinstance(source, GaussianMixture) and records.features != "auto":
        raise ValueError(f"{settings.data.data} has points and no images: drop --features")
    if records.inception_weights is not None and records.features != "inception":
        raise ValueError("--inception-weights are for --features inception: give that, too, or drop them")


def _reference(settings: Settings, source: DataSource, held_out: ImageSource | None) -> DataSource:
    if settings.records.reference_split == "train":
        return source
    if held_out is None:
        raise ValueError(
            f"no part of {settings.data.data} is known that is not trained on: drop --reference-split test"
        )
    return held_out


def _extractor(settings: Settings, source: ImageSource) -> Extractor:
    records = settings.records
    if records.features == "auto":
        return _suggested_extractor(source)
    weights = None if records.inception_weights is None else Path(records.inception_weights)
    stacked = isinstance(source, StackedImages)
    extractor = open_extractor(records.features, stacked=stacked, inception_weights=weights)
    if isinstance(extractor, StackedClassifier) and isinstance(source, StackedImages):
        share = _recognized(extractor, source)
        if share < _RECOGNIZED:
            raise ValueError(
                f"the {extractor.title} tells the modes of {share:.0%} of {settings.data.data}'s stacked images, "
                f"not of {_RECOGNIZED:.0%}: choose others with --features"
            )
    return extractor


def _suggested_extractor(source: ImageSource) -> Extractor:
    if isinstance(source, StackedDigits):
        return open_extractor("digits")
    if isinstance(source, StackedImages) and source.resolution == _MNIST_SIDE:
        extractor = open_extractor("mnist")
        if _recognized(extractor, source) >= _RECOGNIZED:
            return extractor
    return Pixels()


def _recognized(extractor: Extractor, source: StackedImages) -> float:
    images, labels = source.draw(_ASKED, torch.Generator().manual_seed(REFERENCE_SEED))
    modes = extractor.describe(images).modes
    assert modes is not None
    return (modes == labels).double().mean().item()


def _draw(source: DataSource, count: int) -> tuple[Tensor, Tensor]:
    """Return real images and labels: different ones where the images are finite, all of them if they are no more.

    A handful of images is drawn with replacement like an endless source: no statistic could do with so few.
    """
    random = torch.Generator().manual_seed(REFERENCE_SEED)
    if isinstance(source, ImageArrays) and len(source.images) >= FEWEST_IMAGES:
        chosen = torch.randperm(len(source.images), generator=random)[:count]
        return source.images[chosen], source.labels[chosen]
    if isinstance(source, StackedImages) and source.stacks is not None and len(source.stacks) >= FEWEST_IMAGES:
        return source.take(source.stacks[torch.randperm(len(source.stacks), generator=random)[:count]])
    return source.draw(count, random)
