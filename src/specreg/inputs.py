"""Input checks: files before they are read, and options. Standard library only."""

import numbers
import os
import stat
import zipfile
from pathlib import Path
from typing import Any


def checked_integer(name: str, value: Any, *, at_least: int = 1) -> int:
    """Return an option's value as an integer; ValueError names the option if it is none, or too small."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
        raise ValueError(f"{name} must be an integer >= {at_least}, got {value!r}")
    return int(value)


def exists(path: Path) -> bool:
    """Return whether anything is at a path; ValueError if that cannot be found out, as of a name that is too long."""
    try:
        return path.exists()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its name and permissions") from error


def check_file(path: Path) -> None:
    """Make sure that a path names a regular file: reading a pipe waits for ever, and a device has no end.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is a folder, a pipe or a device, or cannot be looked at; says the remedy.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}: check the name") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its name and permissions") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a folder: name a file in it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a pipe or a device, not a file: write what it gives into a file and name that")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} cannot be read: check its permissions")


def check_stored(path: Path) -> None:
    """Make sure that a zip archive unpacks to no more than it holds: torch.save compresses nothing.

    Raises:
        ValueError: an entry is compressed, or entries share their bytes, as those of a zip bomb do.
        zipfile.BadZipFile: it is no zip archive, or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {entry.filename!r:.80} is compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries claim more bytes than the file has")
