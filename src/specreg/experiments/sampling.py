"""Samples drawn from a generator, and the picture of them."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from specreg.data.arrays import decode
from specreg.data.mixtures import DataSource, GaussianMixture
from specreg.monitor.attainment import evaluating
from specreg.training.loop import draw_latent

SAMPLE_SEED = 4_000_037
GRID = 8  # images a side
_POINTS = 2500  # of a scatter plot
_CANVAS, _MARGIN = 600, 1.3  # its pixels a side, and how far beyond the outermost centre it reaches


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


def save_picture(draw: Callable[[int], Tensor], source: DataSource, path: Path, *, side: int = GRID) -> None:
    """Write a picture of samples as PNG: a grid of side x side images, or 2,500 points of the plane.

    Args:
        draw: a number in, that many samples out.
        source: the training data, whose centres set a scatter plot's limits.
        path: the file.
        side: images in a row, and rows.
    """
    if isinstance(source, GaussianMixture):
        save_scatter(draw(_POINTS), source.centres, path)
    else:
        save_grid(draw(side * side), path, side=side)


def save_scatter(points: Tensor, centres: Tensor, path: Path) -> None:
    """Write points (N, 2) over grey rings around centres (K, 2) as one PNG.

    The square reaches 1.3 times as far as the outermost centre. Points outside lie on its edge, where they are seen.
    """
    reach = _MARGIN * float(centres.abs().max())

    def place(values: Tensor) -> list[list[float]]:
        scaled = values.double().clamp(-reach, reach) / reach * torch.tensor([1.0, -1.0], dtype=torch.float64)
        pixels: list[list[float]] = ((scaled + 1) / 2 * (_CANVAS - 1)).tolist()
        return pixels

    picture = Image.new("RGB", (_CANVAS, _CANVAS), "white")
    pen = ImageDraw.Draw(picture)
    for x, y in place(centres):
        pen.ellipse((x - 12, y - 12, x + 12, y + 12), outline="#b0b0b0")
    for x, y in place(points):
        pen.rectangle((x - 1, y - 1, x + 1, y + 1), fill="#2a6fbb")
    picture.save(path)


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
