"""Files as nobody should give them: damaged, of other kinds, and made to harm whoever reads them."""

import contextlib
import gzip
import io
import json
import os
import resource
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

DEEP = b"[" * 5000 + b"]" * 5000
SHALLOW = b'{"a": ' * 200 + b"1" + b"}" * 200  # what the C scanner reads, and Python's recursion hardly


class HangError(BaseException):
    """Not an Exception: nothing may catch it."""


class Touch:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def peak_memory(*, anew: bool = False) -> int:
    """Return the most bytes that this process has held, or, where the system can forget that, what it holds now."""
    if anew:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def png(width: int = 8, height: int | None = None) -> bytes:
    return encoded(Image.new("RGB", (width, height or width)))


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def bomb_png(side: int = 100_000) -> bytes:
    """A PNG whose header claims a square of this side, with a row of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(side + 1)))
        + chunk(b"IEND", b"")
    )


def zipped(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED, mode: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = how, mode << 16
            archive.writestr(info, content)
    return file.getvalue()


def damaged_lzma() -> bytes:
    content = bytearray(zipped({"a.png": np.random.default_rng(0).bytes(500)}, zipfile.ZIP_LZMA))
    start = content.index(b"a.png") + 5 + 9  # behind the local header and LZMA's own
    content[start : start + 200] = b"\xff" * 200
    return bytes(content)


def shared_entries() -> bytes:
    """A zip whose hundred entries are the same bytes, as those of a zip bomb of Fifield's are."""
    content = zipped({"a.png": png(64)})
    directory = content.index(b"PK\x01\x02")
    (end,) = struct.unpack_from("<I", content, content.index(b"PK\x05\x06") + 12)
    entry, last = content[directory : directory + end], bytearray(content[content.index(b"PK\x05\x06") :])
    struct.pack_into("<HHI", last, 8, 100, 100, 100 * len(entry))
    return content[:directory] + entry * 100 + bytes(last)


def npy(header: dict[str, Any], content: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def huge_npz(name: str = "images") -> bytes:
    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**4, 10**4)}
    return zipped({f"{name}.npy": npy(header, b"\0" * 64)})


def pax_bomb(size: int = 10**10) -> bytes:
    """A tar archive, by gzip, whose first header says that the next header has ten gigabytes."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(10**7))


def safetensors(header: Any, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def tensor(shape: list[Any], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "a header of 2^60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "an offset beyond the file": safetensors({"a.weight": tensor([4, 4], 0, 64)}, bytes(8)),
    "overlapping tensors": safetensors(
        {"a.weight": tensor([2, 2], 0, 16), "b.weight": tensor([2, 2], 8, 24)}, bytes(24)
    ),
    "a shape that overflows": safetensors({"a.weight": tensor([2**33, 2**33], 0, 16)}, bytes(16)),
    "a shape of less": safetensors({"a.weight": tensor([4, 4], 0, 16)}, bytes(16)),
    "an unknown type": safetensors({"a.weight": tensor([2, 2], 0, 16, "PICKLE")}, bytes(16)),
    "a negative shape": safetensors({"a.weight": tensor([-2, -2], 0, 16)}, bytes(16)),
    "an offset that ends before it begins": safetensors({"a.weight": tensor([2, 2], 16, 0)}, bytes(16)),
    "a header that is a list": safetensors(b"[]" + b" " * 6),
    "a deep header": safetensors(b'{"a":' + DEEP + b"}"),
}  # fmt: skip


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def compressed(content: bytes) -> bytes:
    """A file of torch.save with its entries compressed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def of_meta() -> bytes:
    return saved({"a.weight": torch.empty(10**6, 10**6, device="meta")})


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


Builder = Callable[[Path], str]


def file(name: str, content: bytes | Callable[[], bytes]) -> Builder:
    """Return what writes a file into a folder and returns its path."""

    def build(folder: Path) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content() if callable(content) else content)
        return str(path)

    return build


def folder_of(name: str, **files: bytes) -> Builder:
    def build(folder: Path) -> str:
        (folder / name).mkdir()
        for one, content in files.items():
            (folder / name / one.replace("__", ".")).write_bytes(content)
        return str(folder / name)

    return build


def pipe(name: str) -> Builder:
    """Nobody writes into it: who reads it waits for ever."""

    def build(folder: Path) -> str:
        os.mkfifo(folder / name)
        return str(folder / name)

    return build


def circle(name: str) -> Builder:
    def build(folder: Path) -> str:
        (folder / name).symlink_to(folder / "other")
        (folder / "other").symlink_to(folder / name)
        return str(folder / name)

    return build


def below_a_file(name: str) -> Builder:
    return lambda folder: f"{file('plain', b'text')(folder)}/{name}"


def too_long(ending: str) -> Builder:
    return lambda folder: str(folder / ("x" * 300 + ending))


def unprintable(ending: str) -> Builder:
    """A name that is no UTF-8, where nothing is."""
    return lambda folder: os.fsdecode(os.fsencode(folder) + b"/\xff\xfe" + ending.encode())


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is in a folder: kinds, contents and times of change; of a lock, which names its holder, the kind."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        content: Any = path.readlink() if stat.S_ISLNK(status.st_mode) else None
        if stat.S_ISREG(status.st_mode) and path.name != "run.lock":
            content = path.read_bytes(), status.st_mtime_ns
        found[str(path.relative_to(root))] = (kind, content)
    return found


def written(folder: Path, content: bytes, name: str = "m.bin") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings on what it is going to give up."""
    with warnings.catch_warnings(action="ignore"):
        yield
