"""Pixels in memory, or decoded once into a memory-mapped file."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specreg.data.pixels import room
from specreg.files import check_file, read_json, replacing, write_json

# Part of every key: to be raised whenever the same files would give other pixels.
_VERSION = 3

# The shape (N, C, H, W) of the whole, and its images in order, in chunks (n, C, H, W), uint8.
Pixels = tuple[tuple[int, int, int, int], Iterator[np.ndarray]]


def hold(decode: Callable[[], Pixels], *, cache: Path | None, name: str, stamp: Mapping[str, Any]) -> Tensor:
    """Return decoded images (N, C, H, W), uint8: in memory, or mapped from the folder ``cache`` (docs/data.md).

    They are decoded only if the cache lacks them. The file's name is ``name`` and a key made of ``stamp``, what the
    images depend on.
    """
    if cache is None:
        shape, chunks = decode()
        images, filled = room(shape), 0
        for chunk in chunks:
            images[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
        return torch.from_numpy(images)
    stamp = {**stamp, "version": _VERSION}
    key = hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()
    file = cache / f"{name}-{key[:16]}.npy"
    if (mapped := _mapped(file, key)) is not None:
        return mapped
    shape, chunks = decode()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(file) as opened:  # written, not mapped: a full disk is an error then, and not a bus error
            np.lib.format.write_array_header_1_0(opened, {"descr": "|u1", "fortran_order": False, "shape": shape})
            start = opened.tell()
            for chunk in chunks:
                opened.write(np.ascontiguousarray(chunk).data)
            assert opened.tell() - start == math.prod(shape)
        small = {name: value for name, value in stamp.items() if isinstance(value, str | int | None)}
        write_json(file.with_suffix(".json"), {"key": key, "shape": shape, **small})  # vouches for the other
    except OSError as error:
        raise ValueError(f"cannot write the cache {cache} ({error.strerror}): choose another folder") from error
    if (mapped := _mapped(file, key)) is None:
        raise ValueError(f"{file} cannot be read back: choose another folder for the cache")
    return mapped


def _mapped(file: Path, key: str) -> Tensor | None:
    try:
        check_file(file)
        described = read_json(file.with_suffix(".json"))
        # Copy on write: torch warns of read-only arrays, and nobody writes to these.
        images = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError, RecursionError):  # a damaged header may be nested deeply
        return None
    if not isinstance(described, dict) or described.get("key") != key:
        return None
    whole = described.get("shape") == list(images.shape) and images.dtype == np.uint8
    return torch.from_numpy(images) if whole else None
