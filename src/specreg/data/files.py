"""Named bytes: the files of a folder, or of a tar archive that is read without being unpacked."""

import contextlib
import gzip
import io
import itertools
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from specreg.files import check_file, reading

# Raised by tarfile, gzip and zlib for an archive that is damaged or ends early.
_DAMAGED = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)
_GZIP = b"\x1f\x8b"
_ENDINGS = (".tar", ".tar.gz", ".tgz")
_OTHER_ENDINGS = (".tar.xz", ".txz", ".tar.bz2", ".tbz", ".tbz2", ".tar.zst", ".tar.lzma")
# Bytes that are read at once, unpacked: a small file may unpack to any size. CIFAR-100 has 185 MB, EMNIST 550 MB.
_MOST = 1 << 30
_CHUNK = 1 << 20
# Headers about the next member are read at once, whatever size they claim; a path needs 4 KiB.
_MOST_HEADER = 1 << 20
_MOST_MEMBERS = 10_000  # each takes a kilobyte of memory, and an archive of a few bytes may hold any number
# What systems put among a user's files, besides names that begin with a dot.
_SYSTEM_NAMES = frozenset((
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found",
    "@eadir", "@recycle", "#recycle", "#snapshot",
))  # fmt: skip
_HEADERS = frozenset(
    (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
)


class _Member(tarfile.TarInfo):
    """A member that is refused before its header can claim more memory than a header needs."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _HEADERS and self.size > _MOST_HEADER):
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _SparseError(self.name)
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_gnusparse_10(self, *_: Any) -> None:  # its map of any length is read from the member
        raise _SparseError(self.name)


class _SparseError(Exception):
    """A sparse file, which may claim any size."""


class Files:
    """The regular files of one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self.names = frozenset(file.name for file in path.iterdir() if file.is_file())

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        check_file(self.path / name)
        with open(self.path / name, "rb") as file:
            yield file

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return files' contents, at most 1 GiB; those compressed by gzip are unpacked, whatever their names."""
        contents: dict[str, bytes] = {}
        remaining = _MOST
        for name in names:
            if self.size(name) > remaining:
                raise self._too_large(name)
            with self.open(name) as file:
                content = file.read()
            try:
                contents[name] = _unpacked(content, remaining) if content[:2] == _GZIP else content
            except _DAMAGED as error:
                raise ValueError(f"{self.path}: {name} is truncated or damaged ({error}): fetch it again") from error
            remaining -= len(contents[name])
            if remaining < 0:
                raise self._too_large(name)
        return contents

    def _too_large(self, name: str) -> ValueError:
        return ValueError(
            f"{self.path}: up to {name} there are more than {_MOST} bytes to read at once, which no data set known "
            f"here has: damaged or of another data set; fetch it again"
        )


class Archive(Files):
    """The regular files of a tar archive, by their names without folders, plain or compressed by gzip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.name.lower().endswith(_OTHER_ENDINGS):
            raise ValueError(f"{path} is not read without being unpacked, as .tar and .tar.gz are: give its folder")
        with self._opened() as archive:
            members = list(itertools.islice(archive, _MOST_MEMBERS + 1))
            if sparse := [member.name for member in members if member.isfile() and member.issparse()]:
                raise _SparseError(sparse[0])
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"{path} has more than {_MOST_MEMBERS} files: unpack it and give the folder")
        files = [member for member in members if member.isfile() and is_visible(member.name)]
        self._members = {PurePosixPath(member.name).name: member for member in files}
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
            with _tar(self.path) as archive:
                yield archive
        except _SparseError as error:
            raise ValueError(
                f"{self.path} has {error} as a sparse file, which is not read: unpack it, give the folder"
            ) from error
        except _DAMAGED as error:
            raise ValueError(f"{self.path} is a truncated or damaged archive ({error}): fetch it again") from error


def is_visible(path: str) -> bool:
    """Tell whether nothing on a path is hidden, as .DS_Store is, or a system's own, as __MACOSX is."""
    return not any(
        (name.startswith(".") and name not in (".", "..")) or name.lower() in _SYSTEM_NAMES for name in path.split("/")
    )


def is_archive(path: Path) -> bool:
    """Tell whether a file is a tar archive, plain or compressed by gzip, or is named like one."""
    try:
        with _tar(path):
            return True
    except _SparseError:
        return True
    except _DAMAGED:
        return path.name.lower().endswith((*_ENDINGS, *_OTHER_ENDINGS))


def _tar(path: Path) -> tarfile.TarFile:
    with open(path, "rb") as file:
        compressed = file.read(2) == _GZIP
    return tarfile.open(path, "r:gz" if compressed else "r:", tarinfo=_Member)


def _unpacked(content: bytes, limit: int) -> bytes:
    """Unpack what gzip compressed, up to ``limit`` bytes and the rest of a chunk."""
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        chunks = iter(lambda: file.read(_CHUNK), b"")
        return b"".join(itertools.islice(chunks, limit // _CHUNK + 1))
