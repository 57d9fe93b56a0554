"""Samples drawn from a generator, and the real ones that the coverage of the data is judged by."""

import torch
from torch import Tensor, nn

from specreg.data.arrays import Dataset, decode
from specreg.monitor.attainment import evaluating
from specreg.training.loop import draw_latent

SAMPLE_SEED = 4_000_037
_COVERAGE_STREAM, _NUM_REAL = 6_000_011, 4000


def coverage_samples(source: Dataset) -> Tensor:
    """Return the real samples (N, *) of every run on this data, each once: a small data set is drawn repeatedly."""
    drawn, _ = source.draw(_NUM_REAL, torch.Generator().manual_seed(_COVERAGE_STREAM))
    distinct: Tensor = torch.unique(drawn, dim=0)
    return distinct


def sample_images(generator: nn.Module, count: int, *, seed: int = SAMPLE_SEED, batch: int = 500) -> Tensor:
    """Draw uint8 images (count, C, H, W) or points (count, 2) from a generator in eval mode; its mode is restored."""
    return sample_labelled(generator, count, seed=seed, batch=batch)[0]


def sample_labelled(
    generator: nn.Module, count: int, *, seed: int = SAMPLE_SEED, batch: int = 500
) -> tuple[Tensor, Tensor | None]:
    """Draw the images of :func:`sample_images` and the classes (count,) asked for, None if it is not conditional."""
    random = torch.Generator().manual_seed(seed)
    images, classes = [], []
    with evaluating(generator), torch.no_grad():
        for begin in range(0, count, batch):
            z, labels = draw_latent(generator, min(batch, count - begin), random)
            images.append(decode(generator(z) if labels is None else generator(z, labels)).cpu())
            if labels is not None:
                classes.append(labels.cpu())
    return torch.cat(images), torch.cat(classes) if classes else None
