"""Arrays of pixels on their way to a source: order of axes, cropping and resizing."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from specreg.data.arrays import ImageArrays
from specreg.names import integer

_LARGEST_SIDE = 4096  # of images that networks are trained on
MOST_CLASSES = 100_000  # where labels are numbers: every class up to the largest gets a name


def check_size(image_size: int | None) -> None:
    """Raise ValueError unless it is None or a side that images can be resized to."""
    if image_size is not None:
        integer("image_size", image_size, at_least=1, at_most=_LARGEST_SIDE)


def check_memory(size: int, title: str) -> None:
    """Raise ValueError if the machine has less than ``size`` bytes, which may show only when memory is filled."""
    if not hasattr(os, "sysconf"):
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(
            f"{title} would take {size / 2**30:.0f} GiB of memory, this machine has {memory / 2**30:.0f}: "
            f"give a smaller --image-size, a --cache, or fewer images"
        )


def room(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty array of this shape, uint8; ValueError if there is too little memory."""
    check_memory(math.prod(shape), f"images of shape {shape}")
    try:
        return np.empty(shape, dtype=np.uint8)
    except MemoryError as error:
        raise ValueError(f"no memory is left for images of shape {shape}: give a --cache or fewer images") from error


def planes(images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W) or (N, H, W, C) as (N, C, H, W)."""
    return images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def square(image: Image.Image, side: int) -> Image.Image:
    """Crop an image to its central square and resize that, by Lanczos' filter."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    cropped = image.crop((left, top, left + short, top + short))
    return cropped if short == side else cropped.resize((side, side), Image.Resampling.LANCZOS)


def resized(images: np.ndarray, side: int) -> np.ndarray:
    """Crop and resize images (N, C, H, W), uint8, unless they have the size already."""
    if images.shape[2:] == (side, side):
        return images
    output = room((*images.shape[:2], side, side))
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        output[index] = planes(np.asarray(square(Image.fromarray(pixels), side))[None])[0]
    return output


def numbered(num_classes: int) -> tuple[str, ...]:
    """Return "0", "1", ..., the names of classes without names."""
    return tuple(map(str, range(num_classes)))


def source_of(
    path: Path, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], image_size: int | None
) -> ImageArrays:
    """Return images (N, C, H, W) with labels as a source, resized to ``image_size`` unless that is None.

    Raises:
        ValueError: they are no squares and have no ``image_size``.
    """
    height, width = images.shape[2:]
    if image_size is not None:
        images = resized(images, image_size)
    elif height != width:
        raise ValueError(
            f"{path}: images have to be squares, got {width}x{height}; give an image size to crop and resize them"
        )
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return ImageArrays(path.name, pixels, torch.from_numpy(labels), classes)
