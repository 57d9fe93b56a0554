"""MNIST and other data sets in its format: IDX files, plain or compressed by gzip (LeCun et al. 1998)."""

import math
import struct
from pathlib import Path

import numpy as np

from specreg.data.arrays import ImageArrays
from specreg.data.files import Files
from specreg.data.pixels import image_arrays, numbered
from specreg.data.published import checked_labels
from specreg.names import Split

_PREFIXES: dict[Split, str] = {"train": "train", "test": "t10k"}
_CLASSES = 10
_UINT8 = 8


class Idx:
    """Files of big-endian sizes and bytes: images (N, H, W) and labels (N,)."""

    title = "MNIST"
    home = "the four idx files of MNIST from yann.lecun.com/exdb/mnist, or by torchvision.datasets.MNIST"

    def splits(self, names: frozenset[str]) -> tuple[Split, ...]:
        return tuple(split for split in _PREFIXES if _name(names, split, "images", 3) is not None)

    def load(self, files: Files, split: Split, image_size: int | None, cache: Path | None) -> ImageArrays:
        images_name = _name(files.names, split, "images", 3)
        labels_name = _name(files.names, split, "labels", 1)
        if images_name is None or labels_name is None:
            raise ValueError(f"{files.path} lacks the labels of its {split} images: fetch {self.home}")
        contents = files.read([images_name, labels_name])
        images = self._read(files.path, images_name, contents[images_name], dimensions=3)
        label_bytes = self._read(files.path, labels_name, contents[labels_name], dimensions=1)
        if len(images) != len(label_bytes):
            raise ValueError(
                f"{files.path}: {len(images)} images in {images_name}, but {len(label_bytes)} labels in {labels_name}: "
                f"of different data sets"
            )
        if images.size == 0:
            raise ValueError(f"{files.path}: {images_name} holds no images")
        labels = checked_labels(files.path, labels_name, label_bytes, _CLASSES)
        return image_arrays(files.path, images[:, None], labels, numbered(_CLASSES), image_size)

    def _read(self, path: Path, name: str, content: bytes, *, dimensions: int) -> np.ndarray:
        header = 4 + 4 * dimensions
        if len(content) < header or content[:4] != bytes([0, 0, _UINT8, dimensions]):
            raise ValueError(
                f"{path}: {name} does not begin as an idx file of {dimensions}-dimensional bytes: fetch {self.home}"
            )
        shape = struct.unpack(f">{dimensions}I", content[4:header])
        if len(content) - header != math.prod(shape):
            raise ValueError(
                f"{path}: {name} has {len(content) - header} bytes after its header instead of "
                f"{' x '.join(map(str, shape))}: truncated or damaged; fetch {self.home}"
            )
        return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _name(names: frozenset[str], split: Split, kind: str, dimensions: int) -> str | None:
    """Return the name of a part's file, in the authors' spelling or another, plain files before compressed ones."""
    candidates = (
        f"{_PREFIXES[split]}-{kind}{dot}idx{dimensions}-ubyte{ending}" for ending in ("", ".gz") for dot in "-."
    )
    return next((name for name in candidates if name in names), None)
