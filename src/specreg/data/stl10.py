"""STL-10 as published: binary files of 96x96 images, column by column (Coates et al. 2011)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from specreg.data.arrays import ImageArrays
from specreg.data.cache import Pixels, hold
from specreg.data.files import Files
from specreg.data.pixels import numbered, resized
from specreg.data.published import checked_labels, checked_names, lines, require, whole_records
from specreg.files import file_stamp
from specreg.names import Split

_SIDE, _CHANNELS, _CLASSES = 96, 3, 10
_RECORD = _CHANNELS * _SIDE * _SIDE
_MOST = 100_000  # images of a part: zeros compress a thousandfold, and an archive may claim many more
_CHUNK = 500  # images that are read and resized at once: the 100,000 unlabeled images are 2.8 GB
_PIXELS: dict[Split, str] = {"train": "train_X.bin", "test": "test_X.bin", "unlabeled": "unlabeled_X.bin"}
_LABELS: dict[Split, str] = {"train": "train_y.bin", "test": "test_y.bin"}
_NAMES = "class_names.txt"


class Stl10:
    """Images (3, 96, 96) with columns before rows, and labels from 1."""

    title = "STL-10"
    home = "stl10_binary.tar.gz from cs.stanford.edu/~acoates/stl10"

    def splits(self, names: frozenset[str]) -> tuple[Split, ...]:
        return tuple(split for split, name in _PIXELS.items() if name in names)

    def load(self, files: Files, split: Split, image_size: int | None, cache: Path | None) -> ImageArrays:
        name = _PIXELS[split]
        size = files.size(name)
        num_images = whole_records(files.path, name, size, _RECORD, title=self.title, home=self.home)
        if num_images > _MOST:
            raise ValueError(
                f"{files.path}: {name} has {num_images} images, more than {_MOST}: of another data set than "
                f"{self.title}; fetch {self.home}"
            )
        labels, classes = np.zeros(num_images, dtype=np.int64), numbered(1)
        if split in _LABELS:
            labels, classes = self._labels(files, _LABELS[split], num_images)

        def decode() -> Pixels:
            side = _SIDE if image_size is None else image_size
            return (num_images, _CHANNELS, side, side), _chunks(files, name, side)

        path = files.path if files.path.is_file() else files.path / name
        stamp = {"path": str(path.resolve()), "file": file_stamp(path), "part": split, "image_size": image_size}
        images = hold(decode, cache=cache, name=f"stl10-{split}", stamp=stamp)
        return ImageArrays(files.path.name, images, torch.from_numpy(labels), classes)

    def _labels(self, files: Files, name: str, num_images: int) -> tuple[np.ndarray, tuple[str, ...]]:
        require(files, [name], self.home)
        contents = files.read([name, *files.names.intersection({_NAMES})])
        from_one = np.frombuffer(contents[name], dtype=np.uint8)
        if len(from_one) != num_images:
            raise ValueError(
                f"{files.path}: {name} has {len(from_one)} labels for {num_images} images: fetch {self.home}"
            )
        labels = checked_labels(files.path, f"{name} (less 1)", from_one.astype(np.int64) - 1, _CLASSES)
        if _NAMES in contents:
            return labels, checked_names(files.path, _NAMES, lines(contents[_NAMES]), _CLASSES)
        return labels, numbered(_CLASSES)


def _chunks(files: Files, name: str, side: int) -> Iterator[np.ndarray]:
    with files.open(name) as file:
        while content := file.read(_CHUNK * _RECORD):
            columns_first = np.frombuffer(content, dtype=np.uint8).reshape(-1, _CHANNELS, _SIDE, _SIDE)
            yield resized(columns_first.transpose(0, 1, 3, 2), side)
