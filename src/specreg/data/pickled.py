"""CIFAR's python batches: pickled dictionaries of lists, strings and uint8 arrays, of which nothing is called."""

import io
import math
from collections.abc import Collection
from typing import Any

import numpy as np

from specreg.pickles import DICT, Budget, Bytes, Object, Window, numpy_array, read_pickle, text_of_bytes

_LONGEST = 100  # characters of a name
_MOST_SIDES = 4  # of an array


def read_pickled(content: bytes, keys: Collection[str]) -> dict[str, Any]:
    """Return the names in a pickled dictionary, of which docs/data.md has the limits; those of ``keys`` with values.

    These are uint8 arrays, lists in which bytes have become strings, or descriptions of what is neither.
    """
    budget = Budget(0)
    root, _ = read_pickle(Window(io.BytesIO(content), 0, len(content), budget))
    if not isinstance(root, Object) or root.maker != DICT:
        raise ValueError("it holds no dictionary")
    named = {name: value for key, value in root.items() if isinstance(name := _name(key, content), str)}
    return {name: _value(value, content, budget) if name in keys else None for name, value in named.items()}


def _name(key: Any, content: bytes) -> Any:
    """Return a key that is a short string, or short bytes, as a string, and anything else as it is."""
    if isinstance(key := text_of_bytes(key), Bytes) and key.size <= _LONGEST:
        return _decoded(key, content)
    return key if not isinstance(key, str) or len(key) <= _LONGEST else None


def _value(value: Any, content: bytes, budget: Budget) -> Any:
    if isinstance(value, list):
        return [_item(item, content, budget) for item in value]
    if (array := numpy_array(value)) is None:
        return value
    pixels = array.content
    if isinstance(pixels, Bytes):
        pixels = memoryview(content)[pixels.begin : pixels.begin + pixels.size]
    elif isinstance(pixels, str):
        pixels = pixels.encode("latin-1")
    in_order = not array.fortran and array.axes is None
    if array.kind not in ("u1", "uint8") or not in_order or not isinstance(pixels, memoryview | bytes):
        kind = repr(array.kind[:60]) if isinstance(array.kind, str) else "unknown"
        raise ValueError(f"it holds an array of type {kind}, not of uint8 in C order")
    sides = array.shape if isinstance(array.shape, tuple) and len(array.shape) <= _MOST_SIDES else (0,)
    if not all(type(side) is int and 0 < side <= len(pixels) for side in sides) or math.prod(sides) != len(pixels):
        raise ValueError("it holds an array whose shape is not that of its bytes")
    return np.frombuffer(pixels, dtype=np.uint8).reshape(sides)


def _item(item: Any, content: bytes, budget: Budget) -> Any:
    """Return an item of a list, which may be there many times."""
    if isinstance(item, int) and item.bit_length() > 63:
        raise ValueError("it holds an integer of more than 64 bits")
    if isinstance(item := text_of_bytes(item), Bytes):
        budget.take(item.size)
        return _decoded(item, content)
    return item


def _decoded(place: Bytes, content: bytes) -> str:
    return content[place.begin : place.begin + place.size].decode("latin-1")
