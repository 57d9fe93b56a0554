"""Images in an npz file."""

import zipfile
from pathlib import Path

import numpy as np

from specreg.data.arrays import ImageArrays
from specreg.data.pixels import numbered, planes, source_of


def load_npz(path: Path, *, image_size: int | None = None) -> ImageArrays:
    """Read ``images`` (N, H, W) or (N, H, W, 1 or 3), uint8, and ``labels`` (N,), integers from 0, if there.

    Args:
        path: the file.
        image_size: crop every image to its central square and resize it to this side.

    Raises:
        ValueError: the file is damaged, or its arrays are not as above, or no squares without an ``image_size``.
    """
    try:
        # Opened here because numpy leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if "images" not in archive:
                raise ValueError(f"no array 'images', it has {', '.join(archive) or 'none'}")
            images = archive["images"]
            labels = archive["labels"] if "labels" in archive else np.zeros(len(images), dtype=np.int64)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable npz file ({error}): make it again") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(
            f"{path}: 'images' has to be uint8 of shape (N, H, W) or (N, H, W, 1 or 3), "
            f"got {images.dtype} {images.shape}"
        )
    if len(images) == 0:
        raise ValueError(f"{path} holds no images")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"{path}: 'labels' has to be one integer >= 0 an image, got {labels.dtype} {labels.shape}")
    if image_size is None and images.shape[1] != images.shape[2]:
        raise ValueError(
            f"{path}: images have to be squares, got {images.shape[2]}x{images.shape[1]}; "
            f"give an image size to crop and resize them"
        )
    classes = numbered(int(labels.max()) + 1)
    return source_of(path, planes(images), labels.astype(np.int64), classes, image_size)
