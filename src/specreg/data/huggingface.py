"""Hugging Face data sets saved by ``save_to_disk``, where the package ``datasets`` is installed."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from specreg.data.decoding import ImageFiles
from specreg.data.pixels import numbered
from specreg.data.published import TEST_NAMES
from specreg.files import file_stamp, read_json
from specreg.names import Split

_SINGLE, _SEVERAL = "dataset_info.json", "dataset_dict.json"
_PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": TEST_NAMES, "unlabeled": ("unlabeled",)}


def saved_parts(path: Path) -> dict[Split, Path] | None:
    """Return the folders of a saved data set's parts, one without parts is for training; None of another folder."""
    if not (path / _SEVERAL).is_file():
        is_saved = (path / _SINGLE).is_file() and (path / "state.json").is_file()
        return {"train": path} if is_saved else None
    try:
        saved = read_json(path / _SEVERAL)["splits"]
        names = {split: next((name for name in _PARTS[split] if name in saved), None) for split in _PARTS}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / _SEVERAL} does not list the data set's parts: save it again") from error
    return {split: path / name for split, name in names.items() if name is not None}


def load_saved(folder: Path) -> ImageFiles:
    """Return the undecoded images of a part: the first column of images and, if any, of class labels."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"{folder} is a Hugging Face data set, which needs another package: pip install datasets"
        ) from error
    try:
        table = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder makes its readers fail anywhere
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder} is not a readable Hugging Face data set ({reason}): save it again") from error
    column = next((name for name, kind in table.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise ValueError(f"{folder} has no column of images, it has {', '.join(table.features)}")
    encoded = table.cast_column(column, datasets.Image(decode=False)).select_columns([column])
    labels, classes = _labels(folder, table, datasets.ClassLabel)
    names = [f"image {index}" for index in range(len(table))]
    outside = _outside_files(folder, encoded.data.column(column))

    def open_image(index: int) -> IO[bytes]:
        value = encoded[index][column]
        return open(value["path"], "rb") if value["bytes"] is None else io.BytesIO(value["bytes"])

    def stamp() -> Any:
        files = [*sorted(folder.glob("*.arrow")), *outside]
        return [column, [[str(file), *file_stamp(file)] for file in files]]

    return ImageFiles(folder, names, labels, classes, open_image, stamp)


def _labels(folder: Path, table: Any, kind: type) -> tuple[Sequence[int], tuple[str, ...]]:
    name = next((name for name, feature in table.features.items() if isinstance(feature, kind)), None)
    labels = [] if name is None else list(table[name])
    if all(label in (None, -1) for label in labels):  # no labels, or an unlabeled part
        return [0] * len(table), numbered(1)
    classes = tuple(table.features[name].names)
    for index, label in enumerate(labels):
        if label is None or not 0 <= label < len(classes):
            raise ValueError(
                f"{folder}: image {index} has the label {label}, but there are {len(classes)} classes, 0 to "
                f"{len(classes) - 1}: label it, or leave it out"
            )
    return labels, classes


def _outside_files(folder: Path, column: Any) -> list[Path]:
    """Return the files whose paths a column (of Arrow's structures of bytes and path) has instead of their bytes."""
    parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
    rows = zip(parts["bytes"].is_valid().to_pylist(), parts["path"].to_pylist(), strict=True)
    files = []
    for index, (has_bytes, path) in enumerate(rows):
        if has_bytes:
            continue
        if path is None:
            raise ValueError(f"{folder}: image {index} is missing: leave out its row")
        if not Path(path).is_file():
            raise ValueError(f"{folder}: image {index} is not in the data set but at {path}, where there is no file")
        files.append(Path(path))
    return files
