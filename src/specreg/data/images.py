"""A user's images: files in a folder or a zip file, with classes as folders, or an array in an npz file."""

import contextlib
import io
import lzma
import math
import posixpath
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from specreg.data.arrays import ImageArrays
from specreg.data.cache import Pixels, file_stamp, hold
from specreg.data.pixels import check_memory, check_size, numbered, planes, source_of, square
from specreg.files import check_file, exists

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
_GREY_MODES = frozenset({"1", "L", "LA"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_MOST = 1 << 28  # bytes of an image in a zip file, whose few bytes may unpack to any number
_CHUNK = 256
_MOST_CLASSES = 100_000  # of an npz file: every class up to the largest label gets a name
_DEFLATED = 1032  # the largest factor by which zip compresses anything
_DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


class _ColouredError(Exception):
    """Not all images are grey."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files that have not been decoded.

    Attributes:
        path: of their folder or archive, for messages.
        names: of the files, in order.
        labels: their classes.
        classes: the classes' names.
        open: opens a file by its position.
        stamp: changes when the files do, for the cache.
    """

    path: Path
    names: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...]
    open: Callable[[int], IO[bytes]]
    stamp: Any

    def load(self, image_size: int | None, cache: Path | None) -> ImageArrays:
        """Decode all images; grey ones (1 channel) if all are grey, RGB otherwise.

        Raises:
            ValueError: there are none, one is damaged, or they are no squares of one size and ``image_size`` is None.
        """
        if not self.names:
            raise ValueError(f"{self.path} holds no images (looked for {', '.join(sorted(SUFFIXES))})")
        stamp = {"path": str(self.path.resolve()), "files": self.stamp, "image_size": image_size}
        name = self.path.stem if self.path.is_file() else self.path.resolve().name

        def pixels(mode: str) -> torch.Tensor:
            return hold(lambda: self._decode(mode, image_size), cache=cache, name=name, stamp=stamp)

        try:
            images = pixels("L")
        except _ColouredError:
            images = pixels("RGB")
        return ImageArrays(self.path.name, images, torch.tensor(self.labels), self.classes)

    def _decode(self, mode: str, image_size: int | None) -> Pixels:
        first = self._image(0)
        if image_size is None and first.width != first.height:
            raise self._no_squares(first, 0, first)
        side = first.width if image_size is None else image_size
        return (len(self.names), len(mode), side, side), self._chunks(mode, first, image_size)

    def _chunks(self, mode: str, first: Image.Image, image_size: int | None) -> Iterator[np.ndarray]:
        for start in range(0, len(self.names), _CHUNK):
            chunk = []
            for index in range(start, min(start + _CHUNK, len(self.names))):
                image = self._image(index)
                if mode == "L" and image.mode not in _GREY_MODES:
                    raise _ColouredError
                if image_size is not None:
                    image = square(image, image_size)
                elif image.size != first.size:
                    raise self._no_squares(first, index, image)
                chunk.append(np.asarray(image.convert(mode)))
            yield planes(np.stack(chunk))

    def _image(self, index: int) -> Image.Image:
        try:
            with self.open(index) as file:
                content = file.read(_MOST + 1)
        except OSError as error:
            raise self._unreadable(index, error) from error
        try:
            image = decoded(content)
        except Exception as error:  # a damaged image makes its decoder fail anywhere
            raise self._unreadable(index, error) from error
        with contextlib.suppress(Exception):  # damaged EXIF fails anywhere, and has no orientation
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "F"):
            raise ValueError(
                f"{self.path}: {self.names[index]} has pixels of 32 bits (mode {image.mode}), whose white is not "
                f"known: convert it to 8 or 16 bits"
            )
        if image.mode in _SIXTEEN_BITS:  # Pillow's own conversion clips at 255: white nearly everywhere
            return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
        return image

    def _unreadable(self, index: int, error: Exception) -> ValueError:
        return ValueError(
            f"{self.path}: {self.names[index]} is not a readable image ({type(error).__name__}): remove or replace it"
        )

    def _no_squares(self, first: Image.Image, index: int, image: Image.Image) -> ValueError:
        return ValueError(
            f"{self.path}: images have to be squares of one size, but {self.names[0]} is {first.width}x{first.height} "
            f"and {self.names[index]} {image.width}x{image.height}; give an image size to crop and resize them"
        )


def decoded(content: bytes) -> Image.Image:
    """Decode an image of at most 89 million pixels, Pillow's limit against bombs, and 256 MiB of file.

    Raises:
        Exception: of any kind that Pillow has for damaged files, or Image.DecompressionBombWarning.
    """
    if len(content) > _MOST:
        raise ValueError(f"more than {_MOST} bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", category=UserWarning)  # about odd files
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
    return image


def load_images(
    path: str | Path,
    *,
    image_size: int | None = None,
    cache: Path | None = None,
    classes: Sequence[str] | None = None,
) -> ImageArrays:
    """Read a folder, zip or npz file of images.

    Args:
        path: a folder or zip file with images in one folder for each class, at any depth, or an npz file with
            ``images`` (N, H, W) or (N, H, W, C), uint8, and optionally ``labels`` (N,), integers from 0.
        image_size: crop every image to its central square and resize it to this side. Without it all images
            have to be squares of one size already.
        cache: a folder for decoded image files, see :func:`specreg.data.cache.hold`; None holds them in memory.
        classes: their names in the labels' order, for a folder or zip; None takes the folders' names, sorted.

    Returns:
        The images; grey ones (1 channel) if all are grey, RGB otherwise.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it cannot be read as one of the three, is damaged, holds images of several sizes, or has a
            class that is not in ``classes``.
    """
    path = Path(path)
    if not exists(path):
        raise FileNotFoundError(f"no data at {path}: give 'digits', a folder or zip of images, or an npz file")
    check_size(image_size)
    if not path.is_dir():
        check_file(path)
        if path.suffix.lower() == ".npz":
            return _load_npz(path, image_size)
        if path.suffix.lower() != ".zip":
            raise ValueError(f"{path} is neither a folder, a .zip nor a .npz file")
    with _opened(path) as (names, open_image):
        labels, class_names = _labels(path, names, classes)
        stamp: Any = None
        if cache is not None:
            files = [path / name for name in names]
            stamp = [names, [file_stamp(file)[1:] for file in files]] if path.is_dir() else file_stamp(path)
        images = ImageFiles(path, names, labels, class_names, lambda index: open_image(names[index]), stamp)
        return images.load(image_size, cache)


def classes_in(path: Path) -> tuple[str, ...]:
    """Return the classes of a folder or zip of images, without reading an image."""
    with _opened(path) as (names, _):
        return tuple(sorted(set(map(_parent, names))))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """Yield the names of the images in a folder or zip file, and a function that opens them."""
    if path.is_dir():
        yield _names_in_folder(path), lambda name: (path / name).open("rb")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield _names_in_zip(archive), archive.open
    except _DAMAGED_ZIP as error:
        raise ValueError(f"{path} is not a readable zip file ({error}): fetch or make it again") from error


def _names_in_folder(root: Path) -> list[str]:
    try:
        files = [file for file in sorted(root.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
    except OSError as error:
        raise ValueError(f"{root} cannot be read ({error.strerror}): check its permissions") from error
    return [file.relative_to(root).as_posix() for file in files]


def _names_in_zip(archive: zipfile.ZipFile) -> list[str]:
    names = [
        name
        for name in sorted(archive.namelist())
        if posixpath.splitext(name)[1].lower() in SUFFIXES and "__MACOSX" not in name.split("/")
    ]
    if sum(entry.compress_size for entry in archive.infolist()) > Path(str(archive.filename)).stat().st_size:
        raise ValueError(f"{archive.filename} has entries that claim more bytes than it has: make the zip again")
    for name in names:
        entry = archive.getinfo(name)
        if entry.file_size > _MOST:
            raise ValueError(
                f"{archive.filename}: {name} has {entry.file_size} bytes, more than {_MOST}, no image's: remove it"
            )
        # Nothing is unpacked into files, but such a name is meant to leave the archive's folder.
        if name.startswith(("/", "\\")) or ":" in name[:2] or ".." in name.replace("\\", "/").split("/"):
            raise ValueError(f"{archive.filename}: {name} leads out of the archive's folder: make the zip again")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"{archive.filename}: {name} is a symbolic link: put the image itself into the zip")
    return names


def _parent(name: str) -> str:
    return posixpath.basename(posixpath.dirname(posixpath.normpath(name)))


def _labels(path: Path, names: Sequence[str], classes: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
    folders = [_parent(name) for name in names]
    present = sorted(set(folders))
    # Images outside any folder have no classes.
    class_names = present if classes is None or present == [""] else list(classes)
    positions = {name: position for position, name in enumerate(class_names)}
    if unknown := [name for name in present if name not in positions]:
        raise ValueError(f"{path} has images of the class {unknown[0]!r}, which the training images lack")
    return [positions[name] for name in folders], tuple(class_names)


def _load_npz(path: Path, image_size: int | None) -> ImageArrays:
    """Read ``images`` (N, H, W) or (N, H, W, 1 or 3), uint8, and ``labels`` (N,), integers from 0, if there are any."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "images" not in names:
                raise ValueError(f"no array 'images', it has {', '.join(names) or 'none'}")
            limit = _DEFLATED * path.stat().st_size
            images = _array(archive, "images", limit)
            labels = _array(archive, "labels", limit) if "labels" in names else np.zeros(len(images), dtype=np.int64)
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
    if (last := int(labels.max())) >= _MOST_CLASSES:
        raise ValueError(
            f"{path}: 'labels' go up to {last}, at most {_MOST_CLASSES} classes are read: number them from 0"
        )
    return source_of(path, planes(images), labels.astype(np.int64), numbered(last + 1), image_size)


def _array(archive: zipfile.ZipFile, name: str, limit: int) -> np.ndarray:
    """Read an array, unless its header claims more bytes than its entry or ``limit``: numpy allocates them first."""
    entry = archive.getinfo(f"{name}.npy")
    size = min(entry.file_size, limit)
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"{name!r} is of npy's version {version}")
        claimed = file.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and claimed != size:
        raise ValueError(f"{name!r} claims {claimed} bytes, but there are at most {size}")
    check_memory(claimed, repr(name))
    with archive.open(entry) as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
