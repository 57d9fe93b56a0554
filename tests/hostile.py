"""Pickles made to do harm, instruction by instruction, and files of torch.save with such a pickle in them."""

import pickle
import struct
from collections.abc import Iterator
from typing import Any

import torch

from spoilt import zipped

MANY = 100_000
MAGIC = 0x1950A86A20F9469CFC6C
RAN: list[str] = []  # what a pickle has called


def canary(*_: Any, **__: Any) -> Any:
    RAN.append("canary")
    return canary


class Canary:
    """Whatever an unpickler does with it is noticed."""

    nested = staticmethod(canary)

    def __new__(cls, *_: Any, **__: Any) -> Any:
        RAN.append("new")
        return super().__new__(cls)

    def __init_subclass__(cls) -> None:
        RAN.append("subclass")

    __init__ = __setstate__ = __setitem__ = __call__ = append = extend = add = canary

    def __hash__(self) -> int:
        RAN.append("hash")
        return 1

    def __eq__(self, other: object) -> bool:
        return bool(RAN.append("eq"))


class Plain:
    """Has no state of its own making, but an attribute that notices being set."""

    @property
    def attribute(self) -> None: ...

    @attribute.setter
    def attribute(self, value: Any) -> None:
        RAN.append("attribute")


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def held(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(content)) + content


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


FUNCTION, CLASS, PLAIN = named("hostile", "canary"), named("hostile", "Canary"), named("hostile", "Plain")
INSTANCE = CLASS + b")\x81"
SLOTS = b"(N}" + text("attribute") + b"K\x01st"
EXTENSIONS = {200: "canary", 60_000: "canary.__call__", 100_000: "Canary"}


def calls() -> dict[str, bytes]:
    """Pickles, without their end, that run something where they are trusted."""
    return {
        "REDUCE": FUNCTION + b")R",
        "REDUCE of a shell": named("os", "system") + b"(" + text("touch ran") + b"tR",
        "REDUCE of exec": named("builtins", "exec") + b"(" + text("import hostile; hostile.canary()") + b"tR",
        "REDUCE of an instance": INSTANCE + b")R",
        "NEWOBJ": INSTANCE,
        "NEWOBJ_EX": CLASS + b")}\x92",
        "INST": b"(ihostile\nCanary\n",
        "OBJ": b"(" + CLASS + b"o",
        "BUILD with __setstate__": INSTANCE + b"}b",
        "BUILD with an attribute": PLAIN + b")\x81" + SLOTS + b"b",
        "BUILD of a class": CLASS + b"}b",
        "STACK_GLOBAL with dots": text("hostile") + text("Canary.nested") + b"\x93)R",
        "EXT1": b"\x82" + struct.pack("<B", 200) + b")R",
        "EXT2": b"\x83" + struct.pack("<H", 60_000) + b")R",
        "EXT4": b"\x84" + struct.pack("<I", 100_000) + b")R",
        "SETITEM of an instance": INSTANCE + b"K\x01K\x02s",
        "APPEND to an instance": INSTANCE + b"K\x01a",
        "ADDITEMS to an instance": INSTANCE + b"(K\x01\x90",
        "the hash of a key": b"}" + INSTANCE + b"Ns",
        "the hash of an element": b"\x8f(" + INSTANCE + b"\x90",
        "copyreg._reconstructor": named("copyreg", "_reconstructor") + b"(" + CLASS + CLASS + b"NtR",
        "operator.methodcaller": named("operator", "methodcaller") + b"(" + text("append") + b"tR(" + INSTANCE + b"tR",
        "operator.attrgetter": (
            named("operator", "attrgetter") + b"(" + text("nested") + b"tR(" + CLASS + b"tR)R"
        ),
        "functools.partial": named("functools", "partial") + b"(" + FUNCTION + b"tR)R",
        "functools.reduce": named("functools", "reduce") + b"(" + FUNCTION + b"(K\x01K\x02ltR",
        "an import": (
            named("builtins", "getattr") + b"(" + named("importlib", "import_module") + b"(" + text("hostile") + b"tR"
            + text("canary") + b"tR)R"
        ),
        "a new type": named("builtins", "type") + b"(" + text("T") + b"(" + CLASS + b"t}tR",
        "a storage that is a pickle": (
            named("torch.storage", "_load_from_bytes") + b"(" + held(FUNCTION + b")R.") + b"tR"
        ),
        "a tensor of a call": named("torch._utils", "_rebuild_parameter") + b"(" + FUNCTION + b")R\x89NtR",
    }  # fmt: skip


def storage(count: int = 9, key: str = "0", kind: str = "FloatStorage", view: tuple[int, int] | None = None) -> bytes:
    described = text("storage") + named("torch", kind) + text(key) + text("cpu") + number(count)
    if view is not None:
        described += b"(" + text("v") + number(view[0]) + number(view[1]) + b"t"
    return b"(" + described + b"tQ"


def rebuilt(size: bytes, stride: bytes, offset: int = 0, of: bytes | None = None) -> bytes:
    parts = (storage() if of is None else of) + number(offset) + size + stride + b"\x89)"
    return named("torch._utils", "_rebuild_tensor_v2") + b"(" + parts + b"tR"


TENSOR = rebuilt(numbers(3, 3), numbers(3, 1))
VALUES = torch.eye(3).numpy().tobytes()


def beside(payload: bytes, tensor: bytes = TENSOR) -> bytes:
    """A pickle of a dictionary that has a weight, and the payload after it."""
    return b"\x80\x02}(" + text("a.weight") + tensor + text("evil") + payload + b"u."


def archive(payload: bytes, **others: bytes) -> bytes:
    """A file of torch.save with a weight and this beside it."""
    entries = {"m/data.pkl": beside(payload), "m/data/0": VALUES, "m/version": b"3\n"}
    return zipped(entries | {f"m/{name}": content for name, content in others.items()})


def old_archive(payload: bytes) -> bytes:
    return old(beside(payload))


def old(pickled: bytes, keys: Any = ("0",), stored: bytes = struct.pack("<q", 9) + VALUES) -> bytes:
    """A file of torch.save before its version 1.6, with one storage of nine numbers."""
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True}))
    return head + pickled + pickle.dumps(list(keys), 2) + stored


def plain(payload: bytes) -> bytes:
    """A pickle that is no file of torch.save, as of StyleGAN2-ADA: the weight's storage is such a file within it."""
    of = named("torch.storage", "_load_from_bytes") + b"(" + held(old(b"\x80\x02" + storage() + b".")) + b"tR"
    return beside(payload, rebuilt(numbers(3, 3), numbers(3, 1), of=of))


def kept(index: int, *, get: bool = False) -> bytes:
    return (b"j" if get else b"r") + struct.pack("<I", index)


def doubled(begin: bytes, end: bytes, maker: bytes = b"", times: int = 70) -> bytes:
    """Something twice in something, twice in something, and so on, by references: 2^70 in all."""
    steps = (kept(i) + b"0(" + maker + 2 * kept(i, get=True) + end for i in range(times))
    return begin + b"".join(steps)


def nested(times: int) -> bytes:
    """A dictionary in a dictionary, and so on, a tensor in each."""
    steps = (kept(i) + b"0}(" + text("a") + kept(i, get=True) + text("b") + TENSOR + b"u" for i in range(times))
    return b"N" + b"".join(steps)


def deep(count: int = 20_000) -> Iterator[tuple[str, bytes]]:
    yield "lists", b"]" * count + b"a" * (count - 1)
    yield "tuples", b"N" + b"\x85" * count
    yield "dictionaries", b"}" + (b"N}" * count) + b"s" * count
    yield "calls", b"N" + b"\x85" + (b"q\x000" + FUNCTION + b"h\x00R\x85") * (count // 8)
    yield "states", (FUNCTION + b")R") * (count // 8) + b"b" * (count // 8 - 1)
    yield "marks", b"(" * count + b"t" * count


def within(times: int) -> bytes:
    """Storages whose bytes are a pickle of a storage whose bytes are..."""
    content = b"N."
    for _ in range(times):
        content = named("torch.storage", "_load_from_bytes") + b"(" + held(content) + b"tR."
    return rebuilt(numbers(3, 3), numbers(3, 1), of=content[:-1])


def bombs() -> dict[str, bytes]:
    """Pickles, without their end, that would take far more time or memory than they have bytes."""
    big = struct.pack("<Q", 1 << 62)
    return {
        "LONG_BINPUT of a huge number": b"Nr\xff\xff\xff\xff",
        "PUT of a huge number": b"Np99999999999999999999999999\n",
        "PUT of a number below zero": b"Np-1\n",
        "lists doubled": doubled(b"]", b"l"),
        "tuples doubled": doubled(b")", b"t"),
        "tuples doubled, as a key": b"}" + doubled(b")", b"t") + b"Ns",
        "tuples doubled, in a set": b"\x8f(" + doubled(b")", b"t") + b"\x90",
        "tuples doubled, in a frozen set": b"(" + doubled(b")", b"t") + b"\x91",
        "calls doubled": doubled(b"N", b"o", FUNCTION),
        "a module of itself": FUNCTION + b")R}" + b"q\x00" + text("_modules") + b"h\x00sb",
        "a list of itself": b"]q\x00h\x00a",
        "a dictionary of itself": b"}q\x00" + text("a") + b"h\x00s",
        "a stored module of itself": b"]q\x00(" + text("module") + b"h\x00NNtQa",
        "a parameter of itself": named("torch._utils", "_rebuild_parameter") + b"]q\x00h\x00aR",
        "parameters of parameters": 50 * (named("torch._utils", "_rebuild_parameter") + b"(") + TENSOR + 50 * b"tR",
        "a tensor of itself twice": (
            named("torch._tensor", "_rebuild_from_type_v2") + b"]q\x00h\x00h\x00N\x87R" + b"q\x010h\x00(h\x01h\x01e"
        ),
        "keys of one hash": b"}(" + b"".join(number((2**61 - 1) * i) + b"N" for i in range(1, 8000)) + b"u",
        "keys that are lists": b"}(]NNNu",
        "BINUNICODE8 of 2^62": b"\x8d" + big + b"a",
        "BINBYTES8 of 2^62": b"\x8e" + big + b"a",
        "BYTEARRAY8 of 2^62": b"\x96" + big + b"a",
        "BYTEARRAY8 of 2^34": b"\x96" + struct.pack("<Q", 1 << 34) + b"a",
        "FRAME of 2^62": b"\x95" + big + b"N",
        "LONG4 of 2^31": b"\x8b\xff\xff\xff\x7f\x01",
        "LONG4 of less than nothing": b"\x8b\xff\xff\xff\xff\x01",
        "LONG of 100,000 digits": b"L" + b"9" * 10**5 + b"L\n",
        "BINSTRING of 2^31": b"T\xff\xff\xff\x7fa",
        "a text of four bytes a letter": text("\U0001f600" + "a" * 10**6),
        "many lists": b"]" * MANY,
        "many dictionaries": b"}" * MANY,
        "many sets": b"\x8f" * MANY,
        "many marks": b"(" * MANY,
        "many copies": b"N" + b"2" * MANY,
        "many kept values": b"N" + b"\x94" * MANY,
        "a tensor many times": TENSOR + b"q\x000](" + b"h\x00" * MANY + b"e",
        "long names": (
            b"](" + TENSOR + b"q\x000" + b"".join(b"}" + text("a" * 900) + b"h\x00s" for _ in range(2000)) + b"e"
        ),
        "names of a thousand parts": nested(1200),
        "names of the reader": named("specreg.pickles", "Object") + b"(NNtRq\x000" + b"".join(
            named("specreg.pickles", name) + b")R}" + text("maker") + b"h\x00sb0"
            for name in ("Global", "Budget.take", "_Machine.dispatch", "pickle.loads", "Object.__class__")
        ) + b"N",
        "buffers out of band": b"\x97\x98",
        "an unknown instruction": b"\xff",
        "an empty stack": b"0000",
        "a key without a value": b"}(NNNu",
        "a dictionary without a value": b"(NNNd",
        "items of a number": b"K\x01K\x01K\x01s",
        "elements of a name": FUNCTION + b"K\x01a",
        "a storage in a storage": within(8),
    } | {f"deep {name}": content for name, content in deep()}  # fmt: skip


def tangles(num: int = 30_000) -> dict[str, bytes]:
    """Pickles, without their end, of many things that share one large thing: each visit of all would be 10^9 steps."""
    large, persistence = b"N" * 2 * num, named("torch_utils.persistence", "_reconstruct_persistent_obj")
    return {
        "one state": FUNCTION + b"q\x000}(" + large + b"uq\x010](" + b"h\x00)Rh\x01b" * num + b"e",
        "one pair of states": FUNCTION + b"q\x000(" + large + b"tq\x010](" + b"h\x00)Rh\x01b" * num + b"e",
        "one state of classes": persistence + b"q\x000}(" + large + b"u\x85q\x010](" + b"h\x00h\x01R" * num + b"e",
        "one call's arguments": FUNCTION + b"q\x000(" + large + b"tq\x010](" + b"h\x00h\x01R" * num + b"e",
        "one list of pairs": (
            named("collections", "OrderedDict") + b"q\x000](" + large + b"e\x85q\x010](" + b"h\x00h\x01R" * num + b"e"
        ),
        "one tensor's arguments": (
            named("torch._utils", "_rebuild_wrapper_subclass") + b"q\x000(" + large + b"tq\x010]("
            + b"h\x00h\x01R" * (num // 4) + b"e"
        ),
    }  # fmt: skip


def odd_tensors() -> dict[str, bytes]:
    """Descriptions of tensors that nothing can be."""
    nine = numbers(3, 1)
    return {
        "a negative size": rebuilt(numbers(-3, -3), nine),
        "a negative stride": rebuilt(numbers(3, 3), numbers(-3, -1), 8),
        "a negative offset": rebuilt(numbers(3, 3), nine, -1),
        "an offset beyond the end": rebuilt(numbers(3, 3), nine, 1 << 40),
        "a stride beyond the end": rebuilt(numbers(3, 3), numbers(1 << 40, 1)),
        "a stride that overflows": rebuilt(numbers(3, 3), numbers(1 << 61, 1 << 61), 1 << 61),
        "a size of 2^80": rebuilt(numbers(1 << 40, 1 << 40), numbers(1 << 40, 1)),
        "a view of 2^80": rebuilt(numbers(1 << 40, 1 << 40), numbers(0, 0)),
        "a size of a million digits": rebuilt(numbers(1 << 3_000_000, 3), nine),
        "a thousand dimensions": rebuilt(numbers(*[1] * 1000), numbers(*[1] * 1000)),
        "a size of truth": rebuilt(b"(\x88\x88t", nine),
        "a size of numbers with a point": rebuilt(b"(G\x40\x08\0\0\0\0\0\0" + b"K\x03t", nine),
        "a size and fewer strides": rebuilt(numbers(3, 3), numbers(3)),
        "no size": rebuilt(b"N", b"N"),
        "a storage elsewhere": rebuilt(numbers(3, 3), nine, of=storage(key="../../../../etc/passwd")),
        "a storage of another name": rebuilt(numbers(3, 3), nine, of=storage(key="data.pkl\0")),
        "a storage that claims more": rebuilt(numbers(3, 3), nine, of=storage(1 << 40)),
        "a storage of less than nothing": rebuilt(numbers(3, 3), nine, of=storage(-9)),
        "a storage of a type that is none": rebuilt(numbers(3, 3), nine, of=storage(kind="Tensor.__class__")),
        "a storage that is a number": rebuilt(numbers(3, 3), nine, of=b"K\x01Q"),
        "a storage that is a text": rebuilt(numbers(3, 3), nine, of=b"P../../etc/passwd\n"),
        "a storage that is a list": rebuilt(numbers(3, 3), nine, of=b"]Q"),
        "a storage of no bytes": rebuilt(
            numbers(3, 3), nine, of=named("torch.storage", "_load_from_bytes") + b"(NtR"
        ),
        "no arguments": named("torch._utils", "_rebuild_tensor_v2") + b")R",
        "arguments that are a text": named("torch._utils", "_rebuild_tensor_v2") + text("storage") + b"R",
    }  # fmt: skip
