"""Samples drawn from a generator, and the real ones that the coverage of the data is judged by."""

import torch
from torch import Tensor, nn

from specreg.data.arrays import decode, scaled
from specreg.experiments.config import RecordConfig
from specreg.experiments.sources import Source
from specreg.experiments.sources.images import draw_finite
from specreg.layers.evaluation import evaluating
from specreg.losses import call
from specreg.training.steps import draw_latent

SAMPLE_SEED = 4_000_037
_COVERAGE_STREAM = 6_000_011
_BATCH = 500  # samples that pass through a network at once


def real_samples(source: Source, records: RecordConfig) -> Tensor:
    """Return the real samples (N, *) that coverage is judged by, the same for every run on this data.

    As many as in an evaluation, but 500 to 4,000; of a finite set no image is drawn twice, but what it holds twice is
    there twice: it has twice the mass.
    """
    count = min(max(records.reference, 500), 4000)
    if (finite := draw_finite(source.dataset, count, _COVERAGE_STREAM)) is not None:
        return finite[0]
    drawn, _ = source.dataset.draw(count, torch.Generator().manual_seed(_COVERAGE_STREAM))
    # An endless source hardly repeats itself: this is the order in which recorded runs were judged.
    return torch.unique(drawn, dim=0)


def generated_samples(generator: nn.Module, records: RecordConfig) -> Tensor:
    """Draw the samples (N, *) in [-1, 1] whose coverage is read: as many as in an evaluation, but 100 to 1,000."""
    return scaled(sample_images(generator, min(max(records.samples, 100), 1000)))


def sample_images(generator: nn.Module, count: int, *, seed: int = SAMPLE_SEED) -> Tensor:
    """Draw uint8 images (count, C, H, W) or points (count, 2) from a generator in eval mode; its mode is restored."""
    return sample_labelled(generator, count, seed=seed)[0]


def sample_labelled(generator: nn.Module, count: int, *, seed: int = SAMPLE_SEED) -> tuple[Tensor, Tensor | None]:
    """Draw the images of :func:`sample_images` and the classes (count,) asked for, None if it is not conditional."""
    random = torch.Generator().manual_seed(seed)
    images, classes = [], []
    with evaluating(generator), torch.no_grad():  # once: what a generator draws itself goes on
        for begin in range(0, count, _BATCH):
            z, labels = draw_latent(generator, min(_BATCH, count - begin), random)
            images.append(decode(call(generator, z, labels)).cpu())
            if labels is not None:
                classes.append(labels.cpu())
    return torch.cat(images), torch.cat(classes) if classes else None


def applied(network: nn.Module, inputs: Tensor, labels: Tensor | None) -> Tensor:
    """Return what a network makes of inputs in eval mode, a part of them at a time."""
    parts = torch.split(inputs, _BATCH)
    classes = [None] * len(parts) if labels is None else torch.split(labels, _BATCH)
    with evaluating(network), torch.no_grad():
        return torch.cat([call(network, *batch) for batch in zip(parts, classes, strict=True)])
