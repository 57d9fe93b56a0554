"""Arrays of pixels on their way to a data set: order of axes, cropping and resizing."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from specreg.data.arrays import ImageArrays

# Lines of torchvision's grids, thin ones, StyleGAN's grids without; JPEG of colours mixes lines with what is beside: on
# the mean by less than 8 of 255 at quality 50, where lines that are none differ by 50.
_LINES = ((2, np.max), (1, np.max), (0, np.max), (2, np.mean), (1, np.mean))
_TOLERANCE = 16
MOST_CLASSES = 100_000  # where labels are numbers: every class up to the largest gets a name


class NoMemoryError(ValueError):
    """This machine has too little memory for images."""


def check_memory(size: int, title: str) -> None:
    """Raise NoMemoryError if the machine has less than ``size`` bytes, which may show only when memory is filled."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise NoMemoryError(
            f"{title} would take {size / 2**30:.0f} GiB of memory, this machine has {memory / 2**30:.0f}: "
            "give fewer images, or a folder of them with a smaller --image-size or with --cache"
        )


def room(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty array of this shape, uint8; NoMemoryError if there is too little memory."""
    check_memory(math.prod(shape), f"images of shape {shape}")
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        raise NoMemoryError(
            f"no memory is left for images of shape {shape}: give fewer, or a folder of them with --cache"
        ) from error


def planes(images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W) or (N, H, W, C) as (N, C, H, W)."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def square(image: Image.Image, side: int) -> Image.Image:
    """Crop an image to its central square and resize that, by Lanczos' filter."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    cropped = image.crop((left, top, left + short, top + short))
    return cropped if short == side else cropped.resize((side, side), Image.Resampling.LANCZOS)


def picture_of(pixels: np.ndarray) -> Image.Image:
    """Return an image (C, H, W), uint8, as Pillow's."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Crop and resize images (N, C, H, W), uint8, unless they have the size already."""
    if images.shape[2:] == (side, side):
        return images
    output = room((*images.shape[:2], side, side))
    for index, image in enumerate(images):
        output[index] = planes(np.asarray(square(picture_of(image), side))[None])[0]
    return output


def cut_grid(picture: np.ndarray, tile: tuple[int, int]) -> np.ndarray | None:
    """Cut a grid (H, W, C), uint8, into images of a height and a width: (N, height, width, C), row by row.

    Grids are those of docs/monitor.md; None if it is none of them. Where all images have the lines' colour, none is an
    empty place.
    """
    height, width = tile
    for padding, measure in _LINES:
        down, along = height + padding, width + padding
        rows, columns = (picture.shape[0] - padding) // down, (picture.shape[1] - padding) // along
        if min(rows, columns) < 1 or (rows * down + padding, columns * along + padding) != picture.shape[:2]:
            continue
        line_rows = np.arange(picture.shape[0]) % down < padding
        line_columns = np.arange(picture.shape[1]) % along < padding
        lines = picture[line_rows[:, None] | line_columns].astype(int)
        colour = np.median(lines, axis=0) if padding else 0
        if padding and measure(np.abs(lines - colour)) > _TOLERANCE:
            continue
        inner = picture[padding:, padding:].reshape(rows, down, columns, along, -1)[:, :height, :, :width]
        tiles = inner.transpose(0, 2, 1, 3, 4).reshape(rows * columns, height, width, -1)
        if padding:
            filled = [i for i, image in enumerate(tiles) if measure(np.abs(image - colour)) > _TOLERANCE]
            last = max(filled, default=len(tiles) - 1)
            tiles = tiles[: max(last, (rows - 1) * columns) + 1]  # a dark generator's rows are no empty ones
        return tiles
    return None


def numbered(num_classes: int) -> tuple[str, ...]:
    """Return "0", "1", ..., the names of classes without names."""
    return tuple(map(str, range(num_classes)))


def image_arrays(
    path: Path, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], image_size: int | None
) -> ImageArrays:
    """Return images (N, C, H, W) with labels as a data set: squares, or cropped and resized to ``image_size``."""
    height, width = images.shape[2:]
    if image_size is not None:
        images = resized(images, image_size)
    elif height != width:
        raise ValueError(
            f"{path}: images have to be squares, got {width}x{height}; give an image size (--image-size) to crop and "
            f"resize them"
        )
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return ImageArrays(path.name, pixels, torch.from_numpy(labels), classes)
