"""Files: checks of those from elsewhere before they are read, JSON, and atomic writing. Standard library only."""

import contextlib
import filecmp
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

RUN_LOCK = "run.lock"  # lies in every folder of runs, and of comparisons of them
PARTIAL = ".partial"  # ends the name of a file that is being written, and has no name of its own yet
# Nothing written here comes near: what is larger or nested deeper would fill the memory or the interpreter's stack.
_LARGEST, _DEEPEST = 1 << 26, 50  # bytes of a JSON file or of a line; objects and lists within each other


def check_file(path: Path) -> None:
    """Raise FileNotFoundError or ValueError, saying the remedy, unless a path names a regular file that can be read.

    Reading a pipe waits for ever, and a device has no end.
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


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name a path, and the remedy, where the system refuses to read it: a ValueError in the place of an OSError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{path} cannot be read ({reason}): check its permissions, name and disk") from error


def exists(path: Path) -> bool:
    """Return whether anything is at a path; ValueError if that cannot be found out, as of a name that is too long."""
    with reading(path):
        return path.exists()


def file_stamp(path: Path) -> list[int]:
    """Return what changes when a file does: its size and time of change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names it where it is damaged, or is no file."""
    check_file(path)
    with reading(path), open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    try:
        return _parsed(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it or restore it") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each line's place, as a message names it, and value; a last line torn by a crash is left out.

    ValueError names another line that is damaged.
    """
    if not exists(path):
        return
    check_file(path)
    with reading(path), open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LARGEST + 1), b""), start=1):
            place = f"{path}, line {number}"
            try:
                value = _parsed(line)
            except ValueError as error:
                if not line.endswith(b"\n") and len(line) <= _LARGEST:
                    return
                raise ValueError(f"{place} is damaged ({error}): remove it or restore it") from error
            yield place, value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: readers see the old one or the whole new one."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically; half of a surrogate pair, as a name may hold it and no encoding writes it, becomes "?"."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="replace"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; when the block ends it takes the place of ``path``, which is the old or the whole new one.

    If the block fails, or the machine does, the old file stays.
    """
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # of a file system that keeps no modes, or another's
            os.chmod(partial, 0o644)  # mkstemp makes private files; a shared results folder has to be readable
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def give_name(existing: Path, name: Path) -> None:
    """Make ``name`` a second name of a file (a copy, where there are no links), in the place of what had it before."""
    partial = name.with_name(f".{name.name}{PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        os.link(existing, partial)
    except OSError:
        shutil.copyfile(existing, partial)
    os.replace(partial, name)
    partial.unlink(missing_ok=True)  # renaming a file to another of its own names does nothing


def same_content(path: Path, other: Path) -> bool:
    """Return whether two files are there and hold the same bytes, as a file and a second name or a copy of it do."""
    return path.exists() and other.exists() and filecmp.cmp(path, other, shallow=False)


def prepare_directory(path: Path) -> None:
    """Create a directory; ValueError if that, or writing into it, is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {path} ({error.strerror or error}): choose another output folder") from error


class Stream:
    """A stream of text that is written within a context of its own, which says what becomes of an error."""

    def __init__(self, stream: Any, writing: Callable[[], AbstractContextManager[None]]) -> None:
        self._stream, self._writing = stream, writing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._writing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._writing():
            self._stream.flush()


def _parsed(content: bytes) -> Any:
    """Return JSON's value; ValueError, in one line, where it is none, or too large or too deep to be a record."""
    if len(content) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if content.count(b"[") + content.count(b"{") > _DEEPEST:
        level = [value]
        for _ in range(_DEEPEST):
            contents = (outer.values() if isinstance(outer, dict) else outer for outer in level)
            level = [inner for outer in contents for inner in outer if isinstance(inner, dict | list)]
        if level:
            raise ValueError("nested too deeply")
    return value
