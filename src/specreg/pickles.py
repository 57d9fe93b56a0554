"""Read a stranger's pickle without calling anything: what it would have made stays a description of that.

The machine is the standard library's, in Python: the one in C calls whatever ``find_class`` returns, hashes what the
file made a key of, and makes room for as many values as the largest number that the file keeps one under. Here every
instruction that calls, imports, sets attributes or hashes is replaced by one that takes notes. Values are None, truth
values, numbers, texts, lists and tuples of these, and the classes of this module; not one of them can be called.
"""

import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

# Bytes of memory that values may take besides twice the file's size. A tensor's description takes 2 to 4 thousand.
_FLOOR = 64 << 20
_SHORT = 16  # bytes that each instruction may read besides what its cost says


class LimitError(ValueError):
    """A file that may be whole holds more than is read of a file of its size."""


class Budget:
    """What the values of one file may take: memory, estimated from above, and the time of reading its tensors."""

    def __init__(self, file_size: int) -> None:
        self._left = _FLOOR + 2 * file_size
        # Tied weights and views of one storage are written once, and a tensor's description takes about 50 bytes.
        self._values = (4 << 20) + 16 * file_size
        self._tensors = 64 + file_size // 32

    def take(self, size: int) -> None:
        """Raise LimitError if this many bytes are no longer there."""
        self._left -= size
        if self._left < 0:
            raise LimitError("what it describes would take too much memory")

    def take_tensor(self, num_values: int) -> None:
        """Raise LimitError if there are so many tensors, or so many values in them, that they must be the same ones."""
        self._values -= num_values
        self._tensors -= 1
        if self._values < 0 or self._tensors < 0:
            raise LimitError("it describes far more tensors than it has room for")


class Window:
    """A part of a file for the machine to read from: nothing outside of it, and no more than the budget has."""

    def __init__(self, file: BinaryIO, begin: int, end: int, budget: Budget) -> None:
        file.seek(begin)
        self._file, self.position, self.end, self.budget = file, begin, end, budget

    def read(self, size: int) -> bytes:
        self.skip(size, seek=False)
        if size > _SHORT:
            self.budget.take(4 * size)  # a text may take four bytes of memory for one of the file
        content = self._file.read(size)
        if len(content) != size:
            raise EOFError("it ends too early")
        return content

    def readline(self) -> bytes:
        line = self._file.readline(self.end - self.position)
        self.budget.take(4 * len(line))
        self.position += len(line)
        if not line.endswith(b"\n"):
            raise EOFError("it ends too early")
        return line

    def skip(self, size: int, *, seek: bool = True) -> int:
        """Go on by so many bytes and return where they began."""
        begin = self.position
        if not 0 <= size <= self.end - begin:
            raise EOFError("it ends too early")
        self.position += size
        if seek:
            self._file.seek(self.position)
        return begin


@dataclass(frozen=True, slots=True)
class Global:
    """A name of something in a module, which was not imported."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class Bytes:
    """Where bytes of the pickle are in the file."""

    begin: int
    size: int


@dataclass(slots=True, eq=False, repr=False)
class Object:
    """What was not made: the call that would have made it, and what it would have been given afterwards."""

    # What would have been called, mostly a Global; DICT and PERSISTENT for a plain dictionary and for what is stored
    # outside of the pickle.
    maker: Any
    arguments: Any = ()  # a tuple, or whatever is in its place
    state: Any = None  # of the instance
    pairs: list[Any] | None = None  # its items, keys and values in turn: no key is hashed
    values: list[Any] | None = None  # its elements

    @property
    def argument(self) -> Any:
        """The first argument; None without one."""
        return self.arguments[0] if isinstance(self.arguments, tuple) and self.arguments else None

    def items(self) -> Iterator[tuple[Any, Any]]:
        pairs = iter(self.pairs or ())
        return zip(pairs, pairs, strict=True)

    def get(self, key: str) -> Any:
        """Return the last value of a key that is a text; None without one."""
        values = [value for name, value in self.items() if isinstance(name, str) and name == key]
        return values[-1] if values else None


DICT = Global("builtins", "dict")
PERSISTENT = Global("pickle", "persistent_load")
# What makes numpy's arrays.
_ARRAYS = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
}


@dataclass(frozen=True, slots=True)
class Array:
    """What a pickle says of one of numpy's arrays; nothing of it has been checked."""

    shape: Any  # a tuple, or whatever is in its place
    kind: Any  # its type's code, such as "f4"
    order: Any  # of its bytes, such as "<"
    fortran: bool  # whether its first index runs fastest
    axes: Any  # the order in which the array has the axes of shape; None: as they are
    content: Any  # its bytes: where they are in the file, or a text with one character for each


def numpy_array(value: Any) -> Array | None:
    """Return the array that an object stands for, None if it stands for something else."""
    maker = value.maker if isinstance(value, Object) else None
    if not isinstance(maker, Global) or (maker.module, maker.name) not in _ARRAYS:
        return None
    is_buffer = maker.name == "_frombuffer"  # since protocol 5
    parts = value.arguments if is_buffer else value.state
    if not isinstance(parts, tuple) or len(parts) not in ((4, 5) if is_buffer else (5,)):
        parts = (None,) * 5
    content, dtype, shape, layout, *axes = parts if is_buffer else (parts[4], parts[2], parts[1], parts[3])
    kind = order = None
    if isinstance(dtype, Object):
        kind = dtype.argument
        order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else None
    turned = axes[0] if axes and layout == "K" else None
    return Array(shape, kind, order, layout in (True, "F"), turned, text_of_bytes(content))


def text_of_bytes(value: Any) -> Any:
    """Return the text that stands for bytes until protocol 2, one character for each; anything else as it is."""
    return value.argument if isinstance(value, Object) and value.maker == Global("_codecs", "encode") else value


def read_pickle(window: Window) -> tuple[Any, list[Object]]:
    """Read one pickle, on to the next one's first byte: its value, and what it says of what is stored outside of it."""
    machine = _Machine(window)
    try:
        return machine.load(), machine.outside
    except LimitError:
        raise
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(str(error)) from error  # a UnicodeError, too, becomes a plain one
    except Exception as error:  # a damaged pickle makes its reader fail anywhere
        raise ValueError(f"{type(error).__name__} in its pickle") from error


class _Machine(pickle._Unpickler):
    """The standard library's machine without the instructions that do something."""

    def __init__(self, window: Window) -> None:
        # Texts of Python 2 have no encoding; latin-1 reads all of them.
        super().__init__(window, fix_imports=False, encoding="latin-1")
        self.window = window
        self.stack: list[Any] = []
        self.outside: list[Object] = []

    def find_class(self, module: str, name: str) -> Any:
        return Global(module, name)

    def persistent_load(self, pid: Any) -> Any:
        self.outside.append(Object(PERSISTENT, pid))
        return self.outside[-1]

    def top(self, kind: type[Any]) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError("it adds to what cannot be added to")
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def get_extension(self, code: int) -> None:
        self.push(Global("copyreg", f"extension {code}"))

    def _instantiate(self, maker: Any, arguments: list[Any]) -> None:
        self.push(Object(maker, tuple(arguments)))


def _bytes(form: str) -> Callable[[Any], None]:
    def load(machine: Any) -> None:
        (size,) = struct.unpack(form, machine.read(struct.calcsize(form)))
        machine.push(Bytes(machine.window.skip(size), size))

    return load


def _put(machine: Any) -> None:
    number = int(machine.readline())
    if not 0 <= number < 1 << 32:  # others can be chosen such that all have the same hash
        raise ValueError("it keeps a value under a number that is none")
    machine.memo[number] = machine.stack[-1]


def _call(machine: Any) -> None:
    arguments = machine.stack.pop()
    machine.stack[-1] = Object(machine.stack[-1], arguments)


def _new_with_names(machine: Any) -> None:
    names, arguments = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = Object(machine.stack[-1], (arguments, names))


def _build(machine: Any) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], Object):  # a name, or what else a state is given to, keeps none
        machine.stack[-1].state = state


def _add(machine: Any, values: list[Any]) -> None:
    target = machine.top(Object | list)
    if isinstance(target, Object):
        target.values = target.values or []
        target = target.values
    target.extend(values)


def _set(machine: Any, pairs: list[Any]) -> None:
    target = machine.top(Object)
    if len(pairs) % 2:
        raise ValueError("it has a key without a value")
    target.pairs = target.pairs or []
    target.pairs.extend(pairs)


def _dictionary(machine: Any) -> None:
    pairs = machine.pop_mark()
    machine.push(Object(DICT))
    _set(machine, pairs)


def _charging(cost: int, load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return an instruction that takes what it needs from the budget first."""

    def charged(machine: Any) -> None:
        machine.window.budget.take(cost)
        load(machine)

    return charged


# All instructions but those of buffers beside a file. Bytes of memory for a value, its place in a stack and in what it
# is put into later; about what was measured. What is not replaced below is the standard library's: it makes plain
# values, moves what is on the stack, or ends in the methods of _Machine.
_COSTS = {
    code: cost
    for cost, codes in {
        24: (pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.NONE,
             pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT1, pickle.EMPTY_TUPLE, pickle.GET, pickle.BINGET,
             pickle.LONG_BINGET, pickle.BUILD),
        56: (pickle.INT, pickle.BININT, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT,
             pickle.BINFLOAT),
        96: (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET, pickle.EMPTY_LIST,
             pickle.LIST, pickle.EMPTY_SET, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS,
             pickle.ADDITEMS, pickle.STACK_GLOBAL),
        128: (pickle.MARK, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.STRING,
              pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE,
              pickle.BINUNICODE8, pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8, pickle.BYTEARRAY8,
              pickle.EMPTY_DICT, pickle.REDUCE, pickle.NEWOBJ, pickle.OBJ, pickle.PERSID, pickle.BINPERSID),
        256: (pickle.GLOBAL, pickle.INST, pickle.DICT, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    }.items()
    for code in codes
}  # fmt: skip
_REPLACED: dict[bytes, Callable[[Any], None]] = {
    pickle.FRAME: lambda machine: machine.read(8),  # a hint on how much to read at once, which is not taken
    pickle.BINSTRING: _bytes("<i"),  # of Python 2, longer than 255
    pickle.SHORT_BINBYTES: _bytes("<B"),
    pickle.BINBYTES: _bytes("<I"),
    pickle.BINBYTES8: _bytes("<Q"),
    pickle.BYTEARRAY8: _bytes("<Q"),
    pickle.PUT: _put,
    pickle.REDUCE: _call,
    pickle.NEWOBJ: _call,
    pickle.NEWOBJ_EX: _new_with_names,
    pickle.BUILD: _build,
    pickle.APPEND: lambda machine: _add(machine, [machine.stack.pop()]),
    pickle.APPENDS: lambda machine: _add(machine, machine.pop_mark()),
    pickle.ADDITEMS: lambda machine: _add(machine, machine.pop_mark()),
    pickle.EMPTY_SET: lambda machine: machine.push([]),
    pickle.FROZENSET: lambda machine: machine.push(tuple(machine.pop_mark())),
    pickle.EMPTY_DICT: lambda machine: machine.push(Object(DICT)),
    pickle.DICT: _dictionary,
    pickle.SETITEM: lambda machine: _set(machine, [machine.stack.pop(), machine.stack.pop()][::-1]),
    pickle.SETITEMS: lambda machine: _set(machine, machine.pop_mark()),
}
_Machine.dispatch = {
    code[0]: _charging(cost, _REPLACED.get(code) or pickle._Unpickler.dispatch[code[0]])
    for code, cost in _COSTS.items()
}
