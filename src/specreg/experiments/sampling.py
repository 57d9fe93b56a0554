"""Images drawn from a generator, and the picture of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from specreg.data.arrays import quantize
from specreg.training.loop import draw_latent

SAMPLE_SEED = 4_000_037
GRID = 8  # images a side


def sample_images(generator: nn.Module, count: int, *, seed: int = SAMPLE_SEED, batch: int = 500) -> Tensor:
    """Draw uint8 images (count, C, H, W) from a generator in eval mode; its mode is restored."""
    random = torch.Generator().manual_seed(seed)
    chunks = []
    with sampling(generator):
        for begin in range(0, count, batch):
            z, labels = draw_latent(generator, min(batch, count - begin), random)
            chunks.append(quantize(generator(z) if labels is None else generator(z, labels)).cpu())
    return torch.cat(chunks)


@contextlib.contextmanager
def sampling(generator: nn.Module) -> Iterator[None]:
    """Put a generator into eval mode, without gradients, and back into its own mode afterwards."""
    training = generator.training
    generator.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        generator.train(training)


def save_grid(images: Tensor, path: Path, *, side: int = GRID, scale: int = 4) -> None:
    """Write side x side images (N, C, H, W), uint8, as one PNG with lines between, each pixel ``scale`` times as large.

    Missing images are left black.
    """
    images = images[: side * side]
    missing = images.new_zeros((side * side - len(images), *images.shape[1:]))
    framed = nn.functional.pad(torch.cat([images, missing]), (1, 0, 1, 0))
    rows = framed.reshape(side, side, *framed.shape[1:]).permute(2, 0, 3, 1, 4)  # (C, side, H, side, W)
    picture = nn.functional.pad(rows.flatten(3).flatten(1, 2), (0, 1, 0, 1))
    picture = picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    array = picture.permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)
