"""Images as an array in an npz file."""

import math
import zipfile
from pathlib import Path

import numpy as np

from specreg.data.arrays import ImageArrays
from specreg.data.pixels import MOST_CLASSES, NoMemoryError, check_memory, image_arrays, numbered, planes

_DEFLATED = 1032  # the largest factor by which zip compresses anything


def load_npz(path: Path, image_size: int | None) -> ImageArrays:
    """Read ``images`` (N, H, W) or (N, H, W, 1 or 3), uint8, and ``labels`` (N,), integers from 0, if there are any.

    Without ``images``, ``arr_0`` is read: what ``numpy.savez`` calls an array without a name, as samplers save theirs.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            title = next((title for title in ("images", "arr_0") if title in names), None)
            if title is None:
                raise ValueError(f"no array 'images', it has {', '.join(names) or 'none'}")
            limit = _DEFLATED * path.stat().st_size
            images = _array(archive, title, limit)
            labels = _array(archive, "labels", limit) if "labels" in names else np.zeros(len(images), dtype=np.int64)
    except (NoMemoryError, MemoryError):
        raise
    except Exception as error:  # a damaged or encrypted file makes its readers fail anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a readable npz file ({reason}): make it again") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise ValueError(
            f"{path}: {title!r} has to be uint8 of shape (N, H, W) or (N, H, W, 1 or 3), "
            f"got {images.dtype} {images.shape}"
        )
    if len(images) == 0:
        raise ValueError(f"{path} holds no images")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"{path}: 'labels' has to be one integer >= 0 an image, got {labels.dtype} {labels.shape}")
    if (last := int(labels.max())) >= MOST_CLASSES:
        raise ValueError(
            f"{path}: 'labels' go up to {last}, at most {MOST_CLASSES} classes are read: number them from 0"
        )
    return image_arrays(path, planes(images), labels.astype(np.int64), numbered(last + 1), image_size)


def _array(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """Read an array, unless its header claims other bytes than its entry or ``limit``: numpy allocates them first."""
    entry = archive.getinfo(f"{name}.npy")
    size = min(entry.file_size, limit)
    with archive.open(entry) as file:
        is_first = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
        claimed = file.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and claimed != size:
        raise ValueError(f"{name!r} claims {claimed} bytes, and can have {size}")
    check_memory(claimed, f"{archive.filename}: {name!r}")
    with archive.open(entry) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
