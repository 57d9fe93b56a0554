"""Dictionaries of lists, strings and uint8 arrays out of pickled files, which are read and never run."""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_RECONSTRUCT = frozenset({"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"})
_ARRAY, _TYPE = "numpy ndarray", "numpy dtype"
_UINT8 = frozenset({"u1", "uint8"})

# Opcodes whose argument is the value itself.
_VALUES = frozenset({
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINUNICODE",
    "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
})  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Array:
    value: np.ndarray | None = None


@dataclass(frozen=True)
class _UInt8:
    pass


def read_pickled(content: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of plain values and numpy uint8 arrays, as CIFAR's python batches are.

    The file's opcodes are interpreted here, a short list of them; the only callables they may name are the two
    that make a numpy array, so that nothing in the file is ever executed or imported.

    Args:
        content: the file, in protocol 2 to 4. Strings of Python 2 are taken as latin-1.

    Raises:
        ValueError: it is damaged, is no dictionary, or asks for anything else; names what.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
        result = machine.stack.pop()
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"damaged ({type(error).__name__})") from error
    if not isinstance(result, dict):
        raise ValueError(f"holds a {type(result).__name__}, not a dictionary")
    return {text(key): value.value if isinstance(value, _Array) else value for key, value in result.items()}


class _Machine:
    """The stack, its marks and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            self.stack = self.below.pop()
            self._collect(name, stack)
        elif name in ("APPEND", "SETITEM"):
            count = 1 if name == "APPEND" else 2
            values = stack[-count:]
            del stack[-count:]
            self._collect(name + "S", values)
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"):
            self._construct(name, argument)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"asks for {name}, which no plain data needs: not read")

    def _collect(self, name: str, values: list[Any]) -> None:
        if name == "TUPLE":
            self.stack.append(tuple(values))
        elif name == "APPENDS":
            # A list of lists that are the same list twice, and so on, is small here and endless to whoever shows it.
            if any(isinstance(value, list | tuple | dict) for value in values):
                raise ValueError("has lists within a list, which no batch has: not read")
            _expect(self.stack[-1], list).extend(values)
        else:
            pairs = zip(values[::2], values[1::2], strict=True)
            _expect(self.stack[-1], dict).update({text(key): value for key, value in pairs})

    def _construct(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "STACK_GLOBAL":
            argument = " ".join(map(text, stack[-2:]))
            del stack[-2:]
        if name in ("GLOBAL", "STACK_GLOBAL"):
            if argument not in _RECONSTRUCT | {_ARRAY, _TYPE}:
                raise ValueError(f"names {argument.replace(' ', '.', 1)!r}, which is not an array: not read")
            stack.append(_Global(argument))
            return
        given, target = stack.pop(), stack.pop()
        if name == "REDUCE":
            stack.append(_made(target, given))
            return
        if isinstance(target, _Array):
            target.value = _filled(given)
        elif not isinstance(target, _UInt8):  # a dtype's state says its byte order only
            raise ValueError("sets the state of what is not an array: not read")
        stack.append(target)


def _made(callable_: Any, arguments: Any) -> _Array | _UInt8:
    name = callable_.name if isinstance(callable_, _Global) else None
    if name in _RECONSTRUCT and arguments[0] == _Global(_ARRAY):
        return _Array()
    if name == _TYPE and text(arguments[0]) in _UINT8:
        return _UInt8()
    if name == _TYPE:
        raise ValueError(f"holds an array of type {arguments[0]!r}, not of uint8")
    raise ValueError("calls what is not an array's constructor: not read")


def _filled(state: Any) -> np.ndarray:
    _, shape, kind, fortran, content = state
    if kind != _UInt8() or fortran:
        raise ValueError("holds an array that is not uint8 in C order")
    content = content.encode("latin-1") if isinstance(content, str) else content
    array = np.frombuffer(content, dtype=np.uint8)
    if not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError("holds an array without a proper shape")
    return array.reshape(shape)  # a ValueError if they do not fit


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"extends a {type(value).__name__} as if it were a {kind.__name__}: damaged")
    return value


def text(name: Any) -> str:
    """Return a string, or one of Python 2 as latin-1; a ValueError for anything else."""
    if isinstance(name, bytes):
        return name.decode("latin-1")
    if not isinstance(name, str):
        raise ValueError(f"has a {type(name).__name__} for a name")
    return name
