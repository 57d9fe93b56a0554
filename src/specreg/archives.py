"""Zip archives from elsewhere: where each of their entries is in the file."""

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specreg.pickles import Bytes, LimitError

_HEADER = 30  # bytes before an entry's name


class _Cautious(io.BufferedReader):
    """A file of which nobody reads so much at once that a list made of it would be larger than the file.

    Python takes about 700 bytes of memory for an entry of an archive, which may have 46 of the file.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        most = (1 << 20) + Path(str(self.name)).stat().st_size // 16
        if size is not None and size > most:
            raise LimitError("its list of entries is too long")
        return super().read(size)


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; ValueError says why it is not read."""
    try:
        with _Cautious(io.FileIO(str(path))) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(archive.namelist()) != len(set(archive.namelist())):
                raise ValueError("two of its entries have the same name")
            if any(entry.flag_bits & 1 for entry in entries):
                raise ValueError("it is encrypted")
            yield archive
    except (zipfile.BadZipFile, NotImplementedError, EOFError, struct.error) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def stored_entries(archive: zipfile.ZipFile, path: Path) -> dict[str, Bytes]:
    """Return where the entries of an archive are in its file."""
    size = path.stat().st_size
    regions = {}
    with open(path, "rb") as file:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its entry {entry.filename!r:.80} is compressed, which torch.save never does")
            file.seek(entry.header_offset)
            header = file.read(_HEADER)
            if len(header) < _HEADER or not header.startswith(b"PK\x03\x04"):
                raise ValueError(f"its entry {entry.filename!r:.80} is not where it should be")
            begin = entry.header_offset + _HEADER + sum(struct.unpack("<HH", header[26:]))
            if begin + entry.file_size > size:
                raise ValueError(f"its entry {entry.filename!r:.80} is longer than the file")
            regions[entry.filename] = Bytes(begin, entry.file_size)
    if sum(region.size for region in regions.values()) > size:  # they share bytes, as those of a zip bomb do
        raise ValueError("its entries claim more bytes than the file has")
    return regions
