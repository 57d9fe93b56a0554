"""CIFAR-10 and CIFAR-100 as published: the binary version and the python batches (Krizhevsky 2009)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specreg.data.arrays import ImageArrays
from specreg.data.files import Files
from specreg.data.pickled import read_pickled
from specreg.data.pixels import image_arrays, numbered
from specreg.data.published import checked_labels, checked_names, lines, require, whole_records
from specreg.names import Split, printable

_SIDE, _CHANNELS = 32, 3
_PIXELS = _CHANNELS * _SIDE * _SIDE


@dataclass(frozen=True)
class Binary:
    """Records of label bytes, the last of which is the class, and 3072 pixels; names of classes are lines of text."""

    title: str  # the data set, and its version after a comma
    parts: Mapping[Split, tuple[str, ...]]
    names: str  # the file that has the classes' names
    classes: int
    label_bytes: int = 0  # how many precede an image (CIFAR-100: the coarse class, then the fine one)

    @property
    def home(self) -> str:
        return f"the {self.title.split(', ')[1]} from cs.toronto.edu/~kriz/cifar.html"

    def splits(self, names: frozenset[str]) -> tuple[Split, ...]:
        # A single training batch is enough to know the format by: loading names those that are missing.
        return tuple(split for split, batches in self.parts.items() if names.intersection(batches))

    def load(self, files: Files, split: Split, image_size: int | None, cache: Path | None) -> ImageArrays:
        batches = self.parts[split]
        require(files, batches, self.home)
        contents = files.read([*batches, *files.names.intersection({self.names})])
        images, labels = [], []
        for name in batches:
            pixels, indices = self._batch(files.path, name, contents.pop(name))
            images.append(pixels.reshape(-1, _CHANNELS, _SIDE, _SIDE))
            labels.append(checked_labels(files.path, name, indices, self.classes))
        classes = numbered(self.classes)
        if self.names in contents:
            names = self._class_names(files.path, contents[self.names])
            classes = checked_names(files.path, self.names, names, self.classes)
        return image_arrays(files.path, np.concatenate(images), np.concatenate(labels), classes, image_size)

    def _batch(self, path: Path, name: str, content: bytes) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        """Return pixels (N, 3072), red, green, blue, row by row, and labels (N,)."""
        record = self.label_bytes + _PIXELS
        whole_records(path, name, len(content), record, title=self.title, home=self.home)
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1]

    def _class_names(self, path: Path, content: bytes) -> list[str]:
        """Return the names of the classes, by number."""
        return lines(content)


@dataclass(frozen=True)
class Python(Binary):
    """The same as pickled dictionaries: an array ``data`` (N, 3072), a list of labels; see `specreg.data.pickled`."""

    labels: str = ""  # the labels' key
    label_names: str = ""  # the key of the classes' names

    def _batch(self, path: Path, name: str, content: bytes) -> tuple[np.ndarray, Sequence[int] | np.ndarray]:
        data, labels = self._read(path, name, content, {"data": np.ndarray, self.labels: list})
        if data.shape != (len(labels), _PIXELS) or not labels:
            raise ValueError(
                f"{path}: {name} has data of shape {data.shape} for {len(labels)} labels instead of "
                f"(N, {_PIXELS}): damaged; fetch {self.home}"
            )
        return data, labels

    def _class_names(self, path: Path, content: bytes) -> list[str]:
        names: list[str] = self._read(path, self.names, content, {self.label_names: list})[0]
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: {self.names} has names of classes that are no strings: damaged")
        return names

    def _read(self, path: Path, name: str, content: bytes, kinds: dict[str, type]) -> list[Any]:
        """Return the values of some keys, which have to be of these kinds."""
        try:
            values = read_pickled(content, tuple(kinds))
        except ValueError as error:
            raise ValueError(f"{path}: {name} is no part of {self.title} ({error}); fetch {self.home}") from error
        for key, kind in kinds.items():
            if not isinstance(values.get(key), kind):
                held = ", ".join(map(printable, sorted(values)[:8])) or "nothing"
                raise ValueError(
                    f"{path}: {name} has no {'list' if kind is list else 'array'} {key!r}, it has {held}: of another "
                    f"data set than {self.title}"
                )
        return [values[key] for key in kinds]


_BATCHES = tuple(f"data_batch_{index}" for index in range(1, 6))

FORMATS = (
    Binary(
        "CIFAR-10, binary version",
        {"train": tuple(f"{name}.bin" for name in _BATCHES), "test": ("test_batch.bin",)}, "batches.meta.txt",
        classes=10, label_bytes=1,
    ),
    Python(
        "CIFAR-10, python version", {"train": _BATCHES, "test": ("test_batch",)}, "batches.meta",
        classes=10, labels="labels", label_names="label_names",
    ),
    Binary(
        "CIFAR-100, binary version", {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt",
        classes=100, label_bytes=2,
    ),
    Python(
        "CIFAR-100, python version", {"train": ("train",), "test": ("test",)}, "meta",
        classes=100, labels="fine_labels", label_names="fine_label_names",
    ),
)  # fmt: skip
