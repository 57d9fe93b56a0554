"""Image files of the usual formats, read by Pillow, decoded when they are asked for."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from specreg.data.arrays import ImageArrays
from specreg.data.cache import Pixels, hold
from specreg.data.pixels import planes, square
from specreg.names import listed

SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif",
    ".heic", ".heif",
})  # fmt: skip
# Of Pillow's: its reader of EPS runs the file as a program of Ghostscript's.
_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
LARGEST_FILE = 1 << 28  # bytes of an image; in a zip file a few may unpack to any number
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_THIRTY_TWO_BITS = frozenset({"I", "F"})
_CHUNK = 256
_TRIED = 10_000  # images, in the search for others that are broken


class _ColouredError(Exception):
    """Not all images are grey."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files that have not been decoded."""

    path: Path  # of their folder or archive, for messages
    names: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...]
    open: Callable[[int], IO[bytes]]  # opens a file by its position
    stamp: Callable[[], Any]  # returns what changes when the files do, for the cache

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError(f"{self.path} holds no images (looked for {', '.join(sorted(SUFFIXES))})")

    def side(self) -> int:
        """Return the first image's side; ValueError if it is damaged or no square."""
        first = self._image(0)
        if first.width != first.height:
            raise self._wrong_size(0, first)
        return first.width

    def load(self, image_size: int | None, cache: Path | None) -> ImageArrays:
        """Decode all images: squares of one size, unless ``image_size`` is given; grey ones if all are, or else RGB."""
        files = None if cache is None else self.stamp()
        stamp = {"path": str(self.path.resolve()), "files": files, "image_size": image_size}
        name = self.path.stem if self.path.is_file() else self.path.resolve().name

        def pixels(mode: str) -> torch.Tensor:
            return hold(lambda: self._decode(mode, image_size), cache=cache, name=name, stamp=stamp)

        try:
            images = pixels("L")
        except _ColouredError:
            images = pixels("RGB")
        return ImageArrays(self.path.name, images, torch.tensor(self.labels), self.classes)

    def _decode(self, mode: str, image_size: int | None) -> Pixels:
        side = self.side() if image_size is None else image_size
        return (len(self.names), len(mode), side, side), self._chunks(mode, side, resize=image_size is not None)

    def _chunks(self, mode: str, side: int, *, resize: bool) -> Iterator[np.ndarray]:
        for start in range(0, len(self.names), _CHUNK):
            chunk = []
            for index in range(start, min(start + _CHUNK, len(self.names))):
                image = self._image(index)
                if mode == "L" and image.mode != "L":
                    raise _ColouredError
                if resize:
                    image = square(image, side)
                elif image.size != (side, side):
                    raise self._wrong_size(index, image)
                chunk.append(np.asarray(image.convert(mode)))
            yield planes(np.stack(chunk))

    def _image(self, index: int) -> Image.Image:
        """Return an image; where it cannot be read, those behind it are tried, so that many are named at once."""
        try:
            return self._read(index)
        except ValueError as error:
            tried = range(index, min(index + _TRIED, len(self.names)))
            broken = [self.names[index], *(self.names[other] for other in tried[1:] if not self._is_readable(other))]
            if len(broken) == 1:
                raise
            text = f"{len(broken)} of the {len(tried)} images from there on cannot be read: {listed(broken)}"
            raise ValueError(f"{error}; {text}") from error

    def _is_readable(self, index: int) -> bool:
        try:
            self._read(index)
        except ValueError:
            return False
        return True

    def _read(self, index: int) -> Image.Image:
        return read_image(lambda: self.open(index), f"{self.path}: {self.names[index]}", ": remove or replace it")

    def _wrong_size(self, index: int, image: Image.Image) -> ValueError:
        first = self._image(0)
        other = f" and {self.names[index]} {image.width}x{image.height}" if index else ""
        return ValueError(
            f"{self.path}: images have to be squares of one size, but {self.names[0]} is {first.width}x{first.height}"
            f"{other}; give an image size (--image-size) to crop and resize them"
        )


def open_picture(file: IO[bytes] | Path) -> Image.Image:
    """Open an image file, whose pixels Pillow decodes later; what it raises for damaged ones is of any kind."""
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def read_image(opened: Callable[[], IO[bytes]], title: str, remedy: str = "") -> Image.Image:
    """Return an image as :func:`_decoded` does; ValueError names it if it is damaged or its pixels have 32 bits."""
    try:
        with opened() as file:
            image = _decoded(file.read(LARGEST_FILE + 1))
    except MemoryError:
        raise
    except Exception as error:  # a damaged image or archive makes its reader fail anywhere
        raise ValueError(f"{title} is not a readable image ({type(error).__name__}){remedy}") from error
    if image.mode in _THIRTY_TWO_BITS:
        raise ValueError(
            f"{title} has pixels of 32 bits (mode {image.mode}), whose white is not known: convert it to 8 or 16 bits"
        )
    return image


def _decoded(content: bytes) -> Image.Image:
    """Decode an image of at most 89 million pixels, Pillow's limit against bombs, as docs/data.md says (sizes).

    Its mode is L if it is grey, I or F if its pixels have 32 bits, else RGB. What it raises is of any kind.
    """
    if len(content) > LARGEST_FILE:
        raise ValueError(f"more than {LARGEST_FILE} bytes")
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        warnings.filterwarnings("ignore", category=UserWarning)  # about odd files, and transparency in palettes
        image = open_picture(io.BytesIO(content))
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF fails anywhere, and has no orientation
            ImageOps.exif_transpose(image, in_place=True)
        # Pillow's own conversion clips at 255: white nearly everywhere. It gives grey PGM files of 16 bits mode I.
        if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format == "PPM"):
            return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
        if image.mode in _THIRTY_TWO_BITS:
            return image
        # Converted before it is resized: there is nothing between two colours of a palette, or black and white alone.
        return image.convert("L" if image.mode in _GREY_MODES else "RGB")
