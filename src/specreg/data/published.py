"""What the data sets' published formats have in common: splits, labels, sizes, and where to get them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from specreg.data.files import Files

# What parts for testing are called, the first that is there.
TEST_NAMES = ("test", "testing", "validation", "valid", "val", "eval", "evaluation", "dev", "test1", "holdout")


def require(files: Files, names: Iterable[str], home: str) -> None:
    """Raise ValueError naming the first file that is missing, and where it is to be had."""
    for name in names:
        if name not in files.names:
            raise ValueError(f"{files.path} lacks {name}: fetch {home}")


def whole_records(path: Path, name: str, size: int, record: int, *, title: str, home: str) -> int:
    """Return how many records of ``record`` bytes a file of ``size`` bytes has; ValueError for none or part of one."""
    if size == 0 or size % record:
        raise ValueError(
            f"{path}: {name} has {size} bytes, no multiple of the {record} of an image: truncated or of another "
            f"data set than {title}; fetch {home}"
        )
    return size // record


def checked_labels(path: Path, name: str, labels: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    """Return labels as int64; ValueError names one that is no integer from 0 to ``classes`` - 1, and its image."""
    if not all(isinstance(label, int | np.integer) for label in labels):
        raise ValueError(f"{path}: {name} has labels that are no integers: damaged")
    invalid = [(index, int(label)) for index, label in enumerate(labels) if not 0 <= label < classes]
    if invalid:
        raise ValueError(
            f"{path}: {name} gives image {invalid[0][0]} the label {invalid[0][1]}, but there are {classes} classes, "
            f"0 to {classes - 1}: damaged or of another data set"
        )
    return np.asarray(labels, dtype=np.int64)


def lines(content: bytes) -> list[str]:
    """Return the lines of a text that are not empty."""
    return [line.strip() for line in content.decode("utf-8", "replace").splitlines() if line.strip()]


def checked_names(path: Path, name: str, names: Sequence[str], classes: int) -> tuple[str, ...]:
    """Return the names of classes in a file, once there are as many as classes."""
    if len(names) != classes:
        raise ValueError(f"{path}: {name} names {len(names)} classes instead of {classes}: damaged")
    return tuple(names)
