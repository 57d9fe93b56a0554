"""Images from a folder, a zip file (classes as folders in both) or an npz array, as uint8 arrays."""

import functools
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from specreg.data.arrays import ImageArrays

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "F"})

# A file's name, its class and a function that reads its bytes.
_Entry = tuple[str, str, Callable[[], bytes]]


def load_images(path: str | Path, *, image_size: int | None = None) -> ImageArrays:
    """Read a folder or zip of images, or an npz file, into memory.

    Args:
        path: a folder or zip file with images in one folder for each class, or an npz file with ``images``
            (N, H, W) or (N, H, W, C), uint8, and optionally ``labels`` (N,), integers from 0.
        image_size: crop every image to its central square and resize it to this side. Without it all images
            have to be squares of one size already.

    Returns:
        The images; grey ones (1 channel) if all are grey, RGB otherwise.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it cannot be read as one of the three, is damaged, or holds images of several sizes.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}: give 'digits', a folder or zip of images, or an npz file")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if path.is_dir():
        return _from_entries(path, _in_folder(path), image_size)
    if path.suffix.lower() == ".npz":
        return _from_npz(path, image_size)
    if path.suffix.lower() == ".zip":
        try:
            with zipfile.ZipFile(path) as archive:
                return _from_entries(path, _in_zip(archive), image_size)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"{path} is not a readable zip file ({error}): fetch or make it again") from error
    raise ValueError(f"{path} is neither a folder, a .zip nor a .npz file")


def _in_folder(root: Path) -> Iterator[_Entry]:
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            yield str(file.relative_to(root)), file.parent.relative_to(root).name, file.read_bytes


def _in_zip(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for name in sorted(archive.namelist()):
        parts = Path(name).parts
        if Path(name).suffix.lower() in SUFFIXES and "__MACOSX" not in parts:
            yield name, parts[-2] if len(parts) > 1 else "", functools.partial(archive.read, name)


def _from_entries(path: Path, entries: Iterator[_Entry], image_size: int | None) -> ImageArrays:
    images, classes = [], []
    for name, class_name, read in entries:
        images.append((name, _decode(f"{path}: {name}", read(), image_size)))
        classes.append(class_name)
    if not images:
        raise ValueError(f"{path} holds no images (looked for {', '.join(sorted(SUFFIXES))})")
    first_name, first = images[0]
    for name, image in images:
        if image.size != first.size or image.width != image.height:
            raise ValueError(
                f"{path}: images have to be squares of one size, but {first_name} is {first.width}x{first.height} "
                f"and {name} {image.width}x{image.height}; give an image size to crop and resize them"
            )
    mode = "L" if all(image.mode in _GREY_MODES for _, image in images) else "RGB"
    stacked = np.stack([np.asarray(image.convert(mode)) for _, image in images])
    names = tuple(sorted(set(classes)))
    labels = torch.tensor([names.index(name) for name in classes])
    return _arrays(path, stacked, labels, names)


def _decode(name: str, content: bytes, image_size: int | None) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable image ({type(error).__name__}): remove or replace it") from error
    return image if image_size is None else _square(image, image_size)


def _square(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    cropped = image.crop((left, top, left + short, top + short))
    return cropped if short == side else cropped.resize((side, side), Image.Resampling.LANCZOS)


def _from_npz(path: Path, image_size: int | None) -> ImageArrays:
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
    images = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
    if image_size is not None:
        images = np.stack([np.asarray(_square(Image.fromarray(image), image_size)) for image in images])
    if images.shape[1] != images.shape[2]:
        raise ValueError(
            f"{path}: images have to be squares, got {images.shape[2]}x{images.shape[1]}; "
            f"give an image size to crop and resize them"
        )
    names = tuple(str(index) for index in range(int(labels.max()) + 1))
    return _arrays(path, images, torch.from_numpy(labels.astype(np.int64)), names)


def _arrays(path: Path, images: np.ndarray, labels: torch.Tensor, classes: tuple[str, ...]) -> ImageArrays:
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    tensor = tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
    return ImageArrays(path.name, tensor, labels, classes)
