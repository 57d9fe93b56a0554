"""CIFAR's python batches: pickled dictionaries of lists, strings and uint8 arrays, of which nothing is called."""

import io
import math
from typing import Any

import numpy as np

from specreg.pickles import DICT, Budget, Bytes, Object, Window, encoded, numpy_array, read_pickle


def read_pickled(content: bytes) -> dict[str, Any]:
    """Read a pickled dictionary as CIFAR's python batches are.

    Args:
        content: the file, as Python 2 wrote it, or in protocol 3 to 5.

    Returns:
        By name uint8 arrays and lists, in which bytes have become strings. Other values are descriptions.

    Raises:
        ValueError: it is damaged, is no dictionary, or holds an array of another kind; says which.
    """
    root, _ = read_pickle(Window(io.BytesIO(content), 0, len(content), Budget(len(content))))
    if not isinstance(root, Object) or root.maker != DICT:
        raise ValueError("it holds no dictionary")
    named = [(_text(key, content), value) for key, value in root.items()]
    return {name: _value(value, content) for name, value in named if isinstance(name, str)}


def _value(value: Any, content: bytes) -> Any:
    if isinstance(value, list):
        return [_text(item, content) for item in value]
    if (array := numpy_array(value)) is None:
        return value
    pixels = array.content
    if isinstance(pixels, Bytes):
        pixels = memoryview(content)[pixels.begin : pixels.begin + pixels.size]
    elif isinstance(pixels, str):
        pixels = pixels.encode("latin-1")
    if array.kind not in ("u1", "uint8") or array.fortran or not isinstance(pixels, memoryview | bytes):
        kind = array.kind if isinstance(array.kind, str) else "unknown"
        raise ValueError(f"it holds an array of type {kind:.60}, not of uint8 in C order")
    sides = array.shape if isinstance(array.shape, tuple) else ()
    if not all(type(side) is int and side > 0 for side in sides) or math.prod(sides) != len(pixels):
        raise ValueError("it holds an array whose shape is not that of its bytes")
    return np.frombuffer(pixels, dtype=np.uint8).reshape(sides)


def _text(value: Any, content: bytes) -> Any:
    """Return bytes as a string, in latin-1, and anything else as it is."""
    value = encoded(value)
    return content[value.begin : value.begin + value.size].decode("latin-1") if isinstance(value, Bytes) else value
