"""Images in an npz file."""

import math
import zipfile
from pathlib import Path

import numpy as np

from specreg.data.arrays import ImageArrays
from specreg.data.pixels import check_memory, numbered, planes, source_of
from specreg.files import check_file

_MOST_CLASSES = 100_000  # a label of 2^40 is no class, but would name as many
_DEFLATED = 1032  # times smaller than it was is the most that zip makes of anything


def load_npz(path: Path, *, image_size: int | None = None) -> ImageArrays:
    """Read ``images`` (N, H, W) or (N, H, W, 1 or 3), uint8, and ``labels`` (N,), integers from 0, if there.

    Args:
        path: the file.
        image_size: crop every image to its central square and resize it to this side.

    Raises:
        ValueError: the file is damaged, or its arrays are not as above, or no squares without an ``image_size``.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "images" not in names:
                raise ValueError(f"no array 'images', it has {', '.join(names) or 'none'}")
            most = _DEFLATED * path.stat().st_size
            images = _array(archive, "images", most)
            labels = _array(archive, "labels", most) if "labels" in names else np.zeros(len(images), dtype=np.int64)
    except Exception as error:  # a damaged or encrypted file makes its readers fail anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a readable npz file ({reason}): make it again") from error
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
    if (most := int(labels.max())) >= _MOST_CLASSES:
        raise ValueError(
            f"{path}: 'labels' go up to {most}, at most {_MOST_CLASSES} classes are read: number them from 0"
        )
    classes = numbered(most + 1)
    return source_of(path, planes(images), labels.astype(np.int64), classes, image_size)


def _array(archive: zipfile.ZipFile, name: str, most: int) -> np.ndarray:
    """Read an array, if its header claims as many bytes as its entry and no more than ``most``: it is made first."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name!r} is of npy's version {version}")
        one = version == (1, 0)
        header = np.lib.format.read_array_header_1_0(file) if one else np.lib.format.read_array_header_2_0(file)
        shape, _, kind = header
        claimed = file.tell() + math.prod(shape) * kind.itemsize
    if not kind.hasobject and claimed != min(entry.file_size, most):
        raise ValueError(f"{name!r} claims {claimed} bytes, but there are at most {min(entry.file_size, most)}")
    check_memory(claimed, repr(name))
    with archive.open(entry) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
