"""CIFAR-10 and CIFAR-100 as published: the binary version and the python batches (Krizhevsky 2009)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specreg.data.arrays import ImageArrays
from specreg.data.files import Files
from specreg.data.pickled import read_pickled, text
from specreg.data.pixels import numbered, source_of
from specreg.data.published import (
    checked_labels,
    checked_names,
    class_names,
    require,
    whole_records,
)
from specreg.names import Split

_SIDE, _CHANNELS = 32, 3
_PIXELS = _CHANNELS * _SIDE * _SIDE


@dataclass(frozen=True)
class Binary:
    """Records of label bytes, the last of which is the class, and 3072 pixels: red, green, blue, row by row.

    Attributes:
        title: the data set.
        train, test: its files.
        names: the file that has the classes' names, one a line.
        classes: how many.
        label_bytes: how many precede an image (CIFAR-100: the coarse class, then the fine one).
    """

    title: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    classes: int
    label_bytes: int
    home: str = "the binary version from cs.toronto.edu/~kriz/cifar.html"

    def splits(self, names: frozenset[str]) -> tuple[Split, ...]:
        return _splits(names, self.train, self.test)

    def load(self, files: Files, split: Split, image_size: int | None, cache: Path | None) -> ImageArrays:
        wanted = self.train if split == "train" else self.test
        require(files, wanted, self)
        contents = files.read([*wanted, *files.names.intersection({self.names})])
        images, labels = [], []
        for name in wanted:
            record = self.label_bytes + _PIXELS
            count = whole_records(files.path, name, len(contents[name]), record, self)
            records = np.frombuffer(contents[name], dtype=np.uint8).reshape(count, record)
            labels.append(checked_labels(files.path, name, records[:, self.label_bytes - 1], self.classes))
            images.append(_planes(records[:, self.label_bytes :]))
        classes = numbered(self.classes)
        if self.names in contents:
            classes = class_names(files.path, self.names, contents[self.names], self.classes)
        return source_of(files.path, np.concatenate(images), np.concatenate(labels), classes, image_size)


@dataclass(frozen=True)
class Python:
    """Pickled dictionaries with an array ``data`` (N, 3072) and a list of labels; see :mod:`specreg.data.pickled`.

    Attributes:
        title: the data set.
        train, test: its files.
        names: the file that has the classes' names.
        classes: how many.
        labels: the labels' key.
        label_names: the key of the classes' names.
    """

    title: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    classes: int
    labels: str
    label_names: str
    home: str = "the python version from cs.toronto.edu/~kriz/cifar.html"

    def splits(self, names: frozenset[str]) -> tuple[Split, ...]:
        return _splits(names, self.train, self.test)

    def load(self, files: Files, split: Split, image_size: int | None, cache: Path | None) -> ImageArrays:
        wanted = self.train if split == "train" else self.test
        require(files, wanted, self)
        contents = files.read([*wanted, *files.names.intersection({self.names})])
        images, labels = [], []
        for name in wanted:
            values = self._read(files.path, name, contents.pop(name))
            data = self._entry(files.path, name, values, "data", np.ndarray)
            given = self._entry(files.path, name, values, self.labels, list)
            if data.shape != (len(given), _PIXELS) or not given:
                raise ValueError(
                    f"{files.path}: {name} has data of shape {data.shape} for {len(given)} labels instead of "
                    f"(N, {_PIXELS}): damaged; fetch {self.home}"
                )
            images.append(_planes(data))
            labels.append(checked_labels(files.path, name, given, self.classes))
        classes = numbered(self.classes)
        if self.names in contents:
            values = self._read(files.path, self.names, contents[self.names])
            known = self._entry(files.path, self.names, values, self.label_names, list)
            if not all(isinstance(value, str | bytes) for value in known):
                raise ValueError(f"{files.path}: {self.names} has names of classes that are no strings: damaged")
            classes = checked_names(files.path, self.names, [text(value) for value in known], self.classes)
        return source_of(files.path, np.concatenate(images), np.concatenate(labels), classes, image_size)

    def _read(self, path: Path, name: str, content: bytes) -> dict[str, Any]:
        try:
            return read_pickled(content)
        except ValueError as error:
            raise ValueError(f"{path}: {name} is no part of {self.title} ({error}); fetch {self.home}") from error

    def _entry(self, path: Path, name: str, values: dict[str, Any], key: str, kind: type) -> Any:
        if not isinstance(values.get(key), kind):
            raise ValueError(
                f"{path}: {name} has no {key!r}, it has {', '.join(sorted(values)) or 'nothing'}: of another data set "
                f"than {self.title}"
            )
        return values[key]


def _splits(names: frozenset[str], train: tuple[str, ...], test: tuple[str, ...]) -> tuple[Split, ...]:
    # A single training batch is enough to know the format by: loading names those that are missing.
    found: list[Split] = ["train"] if names.intersection(train) else []
    return (*found, "test") if names.issuperset(test) else tuple(found)


def _planes(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, _CHANNELS, _SIDE, _SIDE)


_BATCHES = tuple(f"data_batch_{index}" for index in range(1, 6))

FORMATS = (
    Binary(
        "CIFAR-10, binary version",
        train=tuple(f"{name}.bin" for name in _BATCHES),
        test=("test_batch.bin",),
        names="batches.meta.txt",
        classes=10,
        label_bytes=1,
    ),
    Python(
        "CIFAR-10, python version",
        train=_BATCHES,
        test=("test_batch",),
        names="batches.meta",
        classes=10,
        labels="labels",
        label_names="label_names",
    ),
    Binary(
        "CIFAR-100, binary version",
        train=("train.bin",),
        test=("test.bin",),
        names="fine_label_names.txt",
        classes=100,
        label_bytes=2,
    ),
    Python(
        "CIFAR-100, python version",
        train=("train",),
        test=("test",),
        names="meta",
        classes=100,
        labels="fine_labels",
        label_names="fine_label_names",
    ),
)
