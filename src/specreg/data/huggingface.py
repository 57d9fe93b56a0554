"""Hugging Face data sets saved by ``save_to_disk``, where the package ``datasets`` is installed."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from specreg.data.cache import file_stamp
from specreg.data.images import ImageFiles
from specreg.data.pixels import numbered
from specreg.data.published import Split

_SINGLE, _SEVERAL = "dataset_info.json", "dataset_dict.json"
_PARTS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "validation", "valid", "val"),
    "unlabeled": ("unlabeled",),
}


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / _SEVERAL).is_file() or ((path / _SINGLE).is_file() and (path / "state.json").is_file())


def saved_splits(path: Path) -> tuple[Split, ...]:
    """Return the parts of a saved data set; one that has no parts is for training."""
    if not (path / _SEVERAL).is_file():
        return ("train",)
    return tuple(split for split in _PARTS if _part(path, split) is not None)


def load_saved(path: Path, split: Split) -> ImageFiles:
    """Return the images of a part, not decoded: the first column of images and, if any, of class labels.

    Raises:
        ValueError: ``datasets`` is not installed, or the folder is damaged or has no column of images.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{path} is a Hugging Face data set, which needs another package: pip install datasets"
        ) from error
    folder = path
    if (path / _SEVERAL).is_file():
        part = _part(path, split)
        assert part is not None
        folder = path / part
    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder makes its readers fail anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} is not a readable Hugging Face data set ({reason}): save it again") from error
    pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if not pictures:
        raise ValueError(f"{folder} has no column of images, it has {', '.join(table.features)}")
    encoded = table.cast_column(pictures[0], datasets.Image(decode=False)).select_columns([pictures[0]])
    labels, classes = _labels(table, datasets.ClassLabel)
    names = [f"image {index}" for index in range(len(table))]
    stamp = [file_stamp(file)[1:] for file in sorted(folder.glob("*.arrow"))]
    opened = lambda index: _opened(encoded[index][pictures[0]])  # noqa: E731
    return ImageFiles(folder, names, labels, classes, opened, [pictures[0], *stamp])


def _part(path: Path, split: Split) -> str | None:
    try:
        parts = json.loads((path / _SEVERAL).read_text(encoding="utf-8"))["splits"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / _SEVERAL} does not list the data set's parts: save it again") from error
    return next((name for name in _PARTS[split] if name in parts), None)


def _labels(table: Any, kind: type) -> tuple[Sequence[int], tuple[str, ...]]:
    for name, feature in table.features.items():
        if isinstance(feature, kind):
            labels = list(table[name])
            classes = tuple(feature.names)  # type: ignore[attr-defined]
            # An unlabeled part has -1 everywhere.
            return (labels, classes) if min(labels, default=0) >= 0 else ([0] * len(labels), numbered(1))
    return [0] * len(table), numbered(1)


def _opened(value: dict[str, Any]) -> IO[bytes]:
    if value["bytes"] is None:
        return open(value["path"], "rb")
    return io.BytesIO(value["bytes"])
