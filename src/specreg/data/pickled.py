"""CIFAR's python batches, unpickled with nothing to call but three functions that make bytes and uint8 arrays."""

import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

# What plain data need. Without the others nothing is made of a class, and memory grows with the file's size.
_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS",
    "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL",
    "REDUCE", "BUILD",
})  # fmt: skip
# CIFAR-100's largest has a quarter of a million operations, each of which may take a hundred bytes of memory.
_MOST_OPERATIONS = 1_000_000
# An array needs six tuples. Tuples of tuples that are repeated, as a dictionary's key, would take for ever to hash.
_MOST_TUPLES = _MOST_REFERENCES = 24


def read_pickled(content: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of plain values and numpy uint8 arrays, as CIFAR's python batches are.

    Args:
        content: the file, in protocol 2 to 4. Strings of Python 2 become bytes.

    Raises:
        ValueError: it is damaged, is no dictionary, or asks for anything else; names what.
    """
    _check_operations(content)
    try:
        values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle makes its reader fail anywhere
        raise ValueError(f"damaged ({type(error).__name__})") from error
    if not isinstance(values, dict):
        raise ValueError(f"holds a {type(values).__name__}, not a dictionary")
    return {text(key): value.values if isinstance(value, _Array) else value for key, value in values.items()}


def text(name: Any) -> str:
    """Return a string, or bytes as latin-1; a ValueError for anything else."""
    if isinstance(name, bytes):
        return name.decode("latin-1")
    if not isinstance(name, str):
        raise ValueError(f"has a {type(name).__name__} for a name")
    return name


def _check_operations(content: bytes) -> None:
    """Make sure, before anything is made, that a pickle takes neither much more memory than its file nor for ever."""
    num_tuples = num_references = 0
    for index, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES:
            raise ValueError(f"asks for {opcode.name}, which no plain data needs: not read")
        num_tuples += "TUPLE" in opcode.name
        num_references += opcode.name.endswith("BINGET")
        if index >= _MOST_OPERATIONS or num_tuples > _MOST_TUPLES or num_references > _MOST_REFERENCES:
            raise ValueError("has more operations than a batch needs: not read")
        # The unpickler makes room for as many values as the largest number under which one is kept.
        if opcode.name == "LONG_BINPUT" and (argument or 0) > _MOST_OPERATIONS:
            raise ValueError(f"keeps a value as number {argument}: not read")


class _Unpickler(pickle.Unpickler):
    """Finds, under the names of numpy's constructors and of an encoder, functions of this file, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise ValueError(f"names '{module}.{name}', which is not an array: not read") from None


class _Global:
    """What a pickle may name: to be called, and not to be changed."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("sets the state of what is not an array: not read")


class _UInt8:
    """The only type of an array; its state says its byte order, and it has none."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """An array whose values come as its state."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        if kind is not _UINT8 or fortran or not isinstance(content, bytes):
            raise ValueError("holds an array that is not uint8 in C order")
        if not all(isinstance(side, int) and side >= 0 for side in shape):
            raise ValueError("holds an array without a proper shape")
        self.values = np.frombuffer(content, dtype=np.uint8).reshape(shape)  # a ValueError if they do not fit


def _reconstruct(kind: Any, *_: Any) -> _Array:
    """Make an array without values; also what a call of ``ndarray`` itself comes to, which is refused."""
    if kind is not _NDARRAY:
        raise ValueError("calls what is not an array's constructor: not read")
    return _Array()


def _dtype(code: Any, *_: Any) -> _UInt8:
    if text(code) not in ("u1", "uint8"):
        raise ValueError(f"holds an array of type {text(code)!r:.60}, not of uint8")
    return _UINT8


def _encode(characters: Any, encoding: Any) -> bytes:
    """Return bytes as Python 3 writes them in protocol 2."""
    if not isinstance(characters, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("encodes what is not an array's bytes: not read")
    return characters.encode("latin-1")


_UINT8, _NDARRAY = _UInt8(), _Global(_reconstruct)
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _Global(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _Global(_reconstruct),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Global(_dtype),
    ("_codecs", "encode"): _Global(_encode),
}
