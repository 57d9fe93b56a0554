"""Files of torch.save, new and old, and plain pickles of modules, read without running anything in them."""

import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.storage import _storage_type_to_dtype_map

from specreg.autopsy.tensors import Stored, Tensors, is_tensor
from specreg.files import file_stamp
from specreg.pickles import PERSISTENT, Budget, Bytes, Global, Object, Window, read_pickle

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files of torch.save before its version 1.6
_LONGEST = 1000  # characters of a tensor's name
_TOO_LONG = f"below names of more than {_LONGEST} characters"
_PERSISTENCE = "_reconstruct_persistent_obj"  # of StyleGAN2-ADA and its successors, whose classes travel as source
_MODULE = ("_parameters", "_buffers", "_modules")  # of a module's state
_ORDERED = Global("collections", "OrderedDict")
_STORAGES: dict[str, torch.dtype] = _storage_type_to_dtype_map() | {"UntypedStorage": torch.uint8}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_OTHER_ORDER = "a machine of the other bytes' order wrote it"
Contents = tuple[dict[str, Stored], Counter[str]]


def read_zip(path: Path, stamp: list[int], file: BinaryIO, entries: Mapping[str, Bytes]) -> Contents:
    """Return the tensors in a zip file of torch.save by dotted name, and reasons why others are left out, counted."""
    pickled = next((name for name in entries if name.endswith("/data.pkl")), "data.pkl")
    if pickled not in entries:
        raise ValueError("it has no data.pkl")
    prefix = pickled.removesuffix("data.pkl")
    if (order := entries.get(f"{prefix}byteorder")) is not None:
        file.seek(order.begin)
        if file.read(min(order.size, 3)) == b"big":
            raise ValueError(_OTHER_ORDER)
    budget = Budget(stamp[0])
    begin, size = entries[pickled].begin, entries[pickled].size
    root, _ = read_pickle(Window(file, begin, begin + size, budget))
    storages = {name.removeprefix(f"{prefix}data/"): region for name, region in entries.items()}
    return _walk(root, Tensors(path, stamp, _Storages(file, storages, budget).locate), budget)


def read_stream(path: Path, file: BinaryIO) -> Contents:
    """Return the same of an old file of torch.save, or of a plain pickle of modules or tensors."""
    stamp = file_stamp(path)
    budget = Budget(stamp[0])
    root, storages = _read_old(Window(file, 0, stamp[0], budget))
    return _walk(root, Tensors(path, stamp, _Storages(file, storages, budget).locate), budget)


def _read_old(window: Window) -> tuple[Any, dict[str, Bytes]]:
    """Return the value and the storages in an old file, pickles with storages behind them, or in a plain pickle."""
    root, _ = read_pickle(window)
    if type(root) is not int or root != _MAGIC:
        return root, {}
    if read_pickle(window)[0] != _PROTOCOL:
        raise ValueError("it is of an unknown version")
    system, _ = read_pickle(window)
    if isinstance(system, Object) and system.get("little_endian") is False:
        raise ValueError(_OTHER_ORDER)
    root, outside = read_pickle(window)
    dtypes = dict(parts[:2] for described in outside if (parts := _storage(described)) is not None)
    keys, _ = read_pickle(window)
    storages = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in dtypes:
            raise ValueError("it has a storage that nothing in it uses")
        (count,) = struct.unpack("<q", window.read(8))
        size = count * dtypes[key].itemsize
        storages[key] = Bytes(window.skip(size), size)
    return root, storages


class _Storages:
    def __init__(self, file: BinaryIO, regions: Mapping[str, Bytes], budget: Budget) -> None:
        self._file, self._regions, self._budget = file, regions, budget
        self._within: dict[int, tuple[torch.dtype, Bytes]] = {}  # by the identity of what describes them

    def locate(self, described: Any) -> tuple[torch.dtype, Bytes] | None:
        """Return the type and the place of a storage's values by its description, None if that is another thing's."""
        if (parts := _storage(described)) is not None:
            key, dtype, (offset, count) = parts
            if (region := self._regions.get(key)) is None:
                raise ValueError(f"it lacks the storage {key!r:.60}")
            if (offset + count) * dtype.itemsize > region.size:
                raise ValueError(f"its storage {key!r:.60} is too short")
            return dtype, Bytes(region.begin + offset * dtype.itemsize, count * dtype.itemsize)
        # A plain pickle holds each storage as the bytes of an old file of torch.save.
        if not isinstance(described, Object) or described.maker != Global("torch.storage", "_load_from_bytes"):
            return None
        if id(described) not in self._within:
            if not isinstance(content := described.argument, Bytes):
                raise ValueError("it has a storage without bytes")
            window = Window(self._file, content.begin, content.begin + content.size, self._budget)
            root, regions = _read_old(window)
            if _storage(root) is None:
                raise ValueError("it has a storage that is none")
            located = _Storages(self._file, regions, self._budget).locate(root)
            assert located is not None
            self._within[id(described)] = located
        return self._within[id(described)]


def _storage(described: Any) -> tuple[str, torch.dtype, tuple[int, int]] | None:
    """Return a storage's key, type, and place (first value, number) within what has that key; None of another thing."""
    parts = described.arguments if isinstance(described, Object) and described.maker == PERSISTENT else None
    if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage":
        return None
    _, kind, key, _, count, *view = parts
    dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and kind.module in _STORAGE_MODULES else None
    offset = 0
    if view and isinstance(view[0], tuple) and len(view[0]) == 3:
        _, offset, count = view[0]
    if (
        dtype is None
        or not isinstance(key, str)
        or not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, count))
    ):
        return None
    return key, dtype, (offset, count)


def _walk(root: Any, tensors: Tensors, budget: Budget) -> Contents:
    """Return the tensors in nested containers, modules and other objects, each of which is visited once."""
    arrays: dict[str, Stored] = {}
    left_out: Counter[str] = Counter()
    pending: list[tuple[str, Any]] = [("", root)]
    visited = {id(root)}
    while pending:
        name, value = pending.pop()
        if (stored := tensors.of(value)) is not None:
            if name in arrays:
                raise ValueError(f"it holds two tensors named {name!r:.80}")
            budget.take(500)
            budget.take_tensor(0 if stored.obstacle else math.prod(stored.shape))
            arrays[name] = stored
            continue
        inner = []
        for key, child in _children(value, visited):
            if not is_tensor(child) and not (isinstance(child, Object | list | tuple) and _first(child, visited)):
                continue
            text = f"{name}.{key}" if name else key
            if len(text) > _LONGEST:
                left_out[_TOO_LONG] += 1
                continue
            budget.take(250 + len(text))
            inner.append((text, child))
        pending += reversed(inner)
    return arrays, left_out


def _first(value: Any, visited: set[int]) -> bool:
    """Tell whether something is visited for the first time: what many things share would be gone through for each."""
    if id(value) in visited:
        return False
    visited.add(id(value))
    return True


def _children(value: Any, visited: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield what is in a container, a module, or what would have become an object, with its name there.

    Nothing here calls itself: what a pickle describes may hold itself.
    """
    if not isinstance(value, Object):
        yield from ((str(index), child) for index, child in enumerate(value if isinstance(value, list | tuple) else ()))
        return
    if value.maker == PERSISTENT:  # a storage, or a class with its source
        return
    arguments, state = value.arguments, value.state
    if not isinstance(arguments, tuple) or not arguments or not _first(arguments, visited):
        arguments = ()
    elif isinstance(value.maker, Global) and value.maker.name == _PERSISTENCE:
        described = arguments[0]
        state = described.get("state") if isinstance(described, Object) and _first(described, visited) else None
        arguments = ()
    elif value.maker == _ORDERED:
        arguments = ()
    yield from _items(value, visited)
    for children in (value.values or (), arguments):
        yield from ((str(index), child) for index, child in enumerate(children))
    # The attributes, and those in slots.
    for part in (state if _first(state, visited) else ()) if isinstance(state, tuple) else (state,):
        if isinstance(part, Object) and _first(part, visited):
            kept = [held for name in _MODULE if isinstance(held := part.get(name), Object) and _first(held, visited)]
            for held in kept or (part,):
                yield from _items(held, visited)


def _items(value: Object, visited: set[int]) -> Iterator[tuple[str, Any]]:
    """Yield a mapping's items; Python 2 calls an OrderedDict with a list of pairs."""
    items = value.items()
    pairs = value.argument if value.maker == _ORDERED else None
    if isinstance(pairs, list) and _first(pairs, visited):
        items = chain(items, (tuple(pair) for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2))
    for index, (key, child) in enumerate(items):
        # What is long or no plain value is not written out.
        plain = isinstance(key, str | float | bool) or (type(key) is int and abs(key) < 1 << 62)
        yield (str(key) if plain else f"[{index}]"), child
