"""Named bytes: the files of a folder, or of a tar archive that is read without being unpacked."""

import contextlib
import gzip
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

# What tarfile, gzip and zlib raise when an archive is damaged or ends early.
_DAMAGED = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)
_GZIP = b"\x1f\x8b"


class Files:
    """The regular files of one folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = frozenset(file.name for file in path.iterdir() if file.is_file())

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""
        return (self.path / name).stat().st_size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading."""
        with open(self.path / name, "rb") as file:
            yield file

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return files' contents; those that are compressed by gzip are unpacked, whatever their names.

        Raises:
            ValueError: one is not there, or is damaged.
        """
        contents = {}
        for name in self._in_order(names):
            with self.open(name) as file:
                content = file.read()
            try:
                contents[name] = gzip.decompress(content) if content[:2] == _GZIP else content
            except _DAMAGED as error:
                raise ValueError(f"{self.path}: {name} is truncated or damaged ({error}): fetch it again") from error
        return contents

    def _in_order(self, names: Iterable[str]) -> list[str]:
        return list(names)


class Archive(Files):
    """The regular files of a tar archive, by their names without folders, compressed or not.

    Args:
        path: the archive.

    Raises:
        ValueError: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as archive:
            found = [member for member in archive if member.isfile()]
        self._members = {PurePosixPath(member.name).name: member for member in found}
        self.names = frozenset(self._members)

    def size(self, name: str) -> int:
        return self._members[name].size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        with self._opened() as archive:
            file = archive.extractfile(self._members[name])
            assert file is not None
            yield file

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        try:
            with tarfile.open(self.path) as archive:
                yield archive
        except _DAMAGED as error:
            raise ValueError(f"{self.path} is a truncated or damaged archive ({error}): fetch it again") from error

    def _in_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: self._members[name].offset_data)


def is_archive(path: Path) -> bool:
    """Whether a file is a tar archive, also one that is compressed by gzip and breaks off."""
    try:
        if tarfile.is_tarfile(path):
            return True
    except _DAMAGED:
        pass
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz"))
