"""Files made to do harm: refused within bounded memory, and what they hold stays text in a terminal."""

import contextlib
import copyreg
import gzip
import json
import os
import pickle
import signal
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hostile
import spoilt
from runs import ESCAPES, hostile_sweep, hostile_weights, make_run
from specreg import pickles
from specreg.autopsy.spectra import inspect
from specreg.cli import main
from spoilt import LIES, HangError, file, npy, peak_memory, png, saved, zipped
from trainings import Fork

MOST = 400 << 20  # bytes that a process may need beyond what its imports take; a bomb here asks for 1 to 4,000 GB


def sparse_pax() -> bytes:
    """A tar archive by gzip with a sparse file of the newest kind, whose map, in the file, has a billion entries."""
    info = tarfile.TarInfo("data_batch_1.bin")
    info.size = 10**7
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a",
        "GNU.sparse.realsize": "1",
    }
    return gzip.compress(info.tobuf(tarfile.PAX_FORMAT) + b"1000000000\n" + b"1\n" * 5_000_000)


def negative() -> bytes:
    """A member of less than no bytes: who goes on by its size comes back to it for ever."""
    info = tarfile.TarInfo("data_batch_1.bin")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def many_members() -> bytes:
    return gzip.compress(tarfile.TarInfo("a").tobuf() * 15_000, 1)


def claiming(size: int, content: int) -> bytes:
    """A zip whose entry claims a size, and unpacks to another."""
    whole = bytearray(zipped({"a.png": bytes(content)}, zipfile.ZIP_DEFLATED))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = whole.index(signature) + offset
        whole[place : place + 4] = size.to_bytes(4, "little")
    return bytes(whole)


def nested_zip() -> bytes:
    return zipped({"a.zip": zipped({"b.png": bytes(10**7)}, zipfile.ZIP_DEFLATED)})


def too_many_pixels() -> bytes:
    """20,000 squares of 4,000 pixels, if the first one is believed: a terabyte."""
    return zipped({"0.png": png(4000)} | {f"{i}.png": b"" for i in range(1, 20_000)})


def npz_bomb() -> bytes:
    header = npy({"descr": "|u1", "fortran_order": False, "shape": (100, 1000, 1000)})
    return zipped({"images.npy": header + bytes(10**7)}, zipfile.ZIP_DEFLATED)


def idx_bomb() -> bytes:
    return gzip.compress(
        b"\x00\x00\x08\x03" + (10**6).to_bytes(4, "big") + (1000).to_bytes(4, "big") * 2 + bytes(10**8)
    )


def legacy_claims() -> bytes:
    return saved({"a.weight": torch.empty(1).expand(2**20, 2**20)})


BOMBS: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "a tar header of 10 GB": ("train", spoilt.pax_bomb, "a.tar.gz", "a header claims 10000000000 bytes"),
    "a sparse file's map": ("train", sparse_pax, "a.tar.gz", "sparse file, which is not read"),
    "a file of -512 bytes": ("train", negative, "a.tar", "a header claims -"),
    "a tar of 15,000 files": ("train", many_members, "a.tar.gz", "has more than 10000 files"),
    "a zip of zeros": ("train", lambda: claiming(300_000_000, 1000), "a.zip", "has 300000000 bytes"),
    "a zip that claims less": ("train", lambda: claiming(100, 10**7), "a.zip", "a.png is not a readable image (BadZipFile)"),
    "a zip in a zip": ("train", nested_zip, "a.zip", "holds no images"),
    "a zip whose entries share bytes": ("train", spoilt.shared_entries, "a.zip", "claim more bytes than it has"),
    "a zip that leaves its folder": ("train", lambda: zipped({"../a.png": png()}), "a.zip", "leads out of the archive"),
    "a zip with an absolute path": ("train", lambda: zipped({"/etc/a.png": png()}), "a.zip", "leads out of the archive"),
    "a zip with a Windows path": ("train", lambda: zipped({"C:\\a.png": png()}), "a.zip", "leads out of the archive"),
    "a zip with a link": ("train", lambda: zipped({"a.png": b"/etc/passwd"}, mode=0o120777), "a.zip", "is a symbolic link"),
    "a zip with damaged LZMA": ("train", spoilt.damaged_lzma, "a.zip", "is not a readable"),
    "a picture of 10^10 pixels": ("train", lambda: zipped({"a.png": spoilt.bomb_png()}), "a.zip", "is not a readable image"),
    "a picture of 10^8 pixels": ("train", lambda: zipped({"a.png": spoilt.bomb_png(10_000)}), "a.zip", "is not a readable image"),
    "pictures of a terabyte": ("train", too_many_pixels, "a.zip", "GiB of memory, this machine has"),
    "an npz of 10^14 bytes": ("train", spoilt.huge_npz, "a.npz", "claims 100000000000"),
    "an npz that claims more": ("train", npz_bomb, "a.npz", "claims 100000128 bytes"),
    "a text as npz": ("train", lambda: zipped({"images.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}), "a.npz", "not a readable npz"),
    "an MNIST of 10^12 pixels": ("train", idx_bomb, "train-images-idx3-ubyte.gz", "is a part of a data set: give its folder"),
    "a deep configuration": ("report", lambda: spoilt.DEEP * 100, "config.json", "config.json is damaged ("),
    "a configuration of 65 MB": ("report", lambda: b'["' + b"a" * 68_000_000 + b'"]', "config.json", "more than 67108864 bytes"),
    "a tensor of 4 TB": ("inspect", legacy_claims, "a.pt", "holds no weight matrix"),
    "a tensor without storage": ("inspect", spoilt.of_meta, "a.pt", "holds no weight matrix"),
} | {f"safetensors: {name}": ("inspect", lambda content=content: content, "a.safetensors", "is damaged") for name, content in LIES.items()}  # fmt: skip


def run_each(commands: list[list[str]]) -> None:
    """Run commands; print of each its exit code and by how much it raised the peak of this process' memory.

    As on a machine of 16 GiB, whatever this one has.
    """
    os.sysconf = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1 << 22}.__getitem__
    for arguments in commands:
        before = peak_memory(anew=True)
        code = main(arguments)
        print(json.dumps([code, peak_memory() - before]), flush=True)  # noqa: T201


@pytest.mark.slow
def test_bombs_are_refused_within_bounded_memory(tmp_path):
    """All in one process, in their order, whose peak is read after each."""
    commands = []
    for index, (kind, make, name, _) in enumerate(BOMBS.values()):
        folder = tmp_path / str(index)
        path = Path(file(f"{index}/{name}", make)(tmp_path))
        out = str(tmp_path / "out")
        commands.append(
            ["train", "--data", str(path), "--out", out] if kind == "train"
            else ["report", str(folder), "--out", str(tmp_path / "page.html")] if kind == "report"
            else ["inspect", str(path)]
        )  # fmt: skip
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    small = file("small.pt", lambda: saved({"a.weight": torch.eye(3)}))(tmp_path)
    output = tmp_path / "printed"
    code, printed = Fork(output, run_each, [["inspect", small], *commands]).finish()
    assert code == 0, printed
    answers = [json.loads(line) for line in printed.splitlines() if line.startswith(("[2,", "[0,"))][1:]
    errors = [line for line in printed.splitlines() if line.startswith("specreg: error: ")]
    assert len(answers) == len(errors) == len(BOMBS)
    for (name, (_, _, _, said)), (code, grown), error in zip(BOMBS.items(), answers, errors, strict=True):
        assert (name, code) == (name, 2)
        assert said in error
        assert grown < MOST, name
    os.unlink(small)
    output.unlink()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def plain(text: str) -> bool:
    return all(character == "\n" or character.isprintable() for character in text)


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("command", ["report", "report of a sweep", "inspect", "inspect of several", "inspect as JSON"])
def test_what_a_file_says_cannot_steer_the_terminal(command, tmp_path, capsys):
    page = ["--out", str(tmp_path / "page.html")]
    arguments = {
        "report": lambda: ["report", str(make_run(tmp_path / "a", ESCAPES, name=ESCAPES, keep=ESCAPES)), *page],
        "report of a sweep": lambda: ["report", str(hostile_sweep(tmp_path / "sweep")), *page],
        "inspect": lambda: ["inspect", hostile_weights(tmp_path / "a.safetensors")],
        "inspect of several": lambda: ["inspect", *2 * [hostile_weights(tmp_path / "\x1b[2J.safetensors")]],
        "inspect as JSON": lambda: ["inspect", "--json", hostile_weights(tmp_path / "a.safetensors")],
    }[command]()
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out
    assert plain(printed.out)
    assert plain(printed.err)


def test_brackets_in_what_a_file_says_are_no_markup(tmp_path, capsys, monkeypatch):
    from specreg import display
    from specreg.report.runs import open_cells

    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal, which gets what rich makes of markup
    assert main(["inspect", hostile_weights(tmp_path / "a.safetensors")]) == 0
    display.results(open_cells([hostile_sweep(tmp_path / "sweep")]), [tmp_path / ESCAPES.replace("/", "")])
    display.metrics({"features": ESCAPES, "protocol": ESCAPES})
    assert "\x1b]8" not in capsys.readouterr().out


def test_a_comparison_and_a_training_print_what_they_find_as_text(tmp_path, capsys):
    from specreg import display
    from specreg.records import RunDirectory
    from specreg.report.page import write_folder
    from specreg.report.runs import open_cells

    run = RunDirectory(make_run(tmp_path / "runs" / "sn-seed0", "sn", name=ESCAPES))
    run.write("result", (run.read("result") or {}) | {"features": ESCAPES, "protocol": ESCAPES, "method": ESCAPES})
    write_folder(tmp_path, open_cells([tmp_path]))
    display.results(open_cells([tmp_path]), [tmp_path / "\x1b[2J"])
    display.metrics(run.read("result") or {})
    display.results(open_cells([hostile_sweep(tmp_path / "sweep")]), [tmp_path / "\x1b[2J"])
    assert main(["train", "--out", str(tmp_path / "x"), "--data", str(tmp_path / ESCAPES.replace("/", ""))]) == 2
    printed = capsys.readouterr()
    assert plain(printed.out)
    assert plain(printed.err)
    assert "\u202e" not in printed.out + printed.err


CALLS, BOMBS_IN_PICKLES = hostile.calls(), hostile.bombs() | hostile.odd_tensors()


@pytest.fixture(autouse=True, scope="module")
def _extensions():
    for code, name in hostile.EXTENSIONS.items():
        copyreg.add_extension("hostile", name, code)
    yield
    for code, name in hostile.EXTENSIONS.items():
        copyreg.remove_extension("hostile", name, code)


@pytest.fixture
def inspected(tmp_path, monkeypatch):
    """Return what inspects a file's content: the layers, or what the refusal says.

    It calls nothing, ends, and, where that is traced, takes no more memory than twice the file besides the floor.
    """
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pkl"

    def hang(*_: object) -> None:
        raise HangError

    def attempt(content: bytes, *, traced: bool = True) -> list[str] | str:
        path.write_bytes(content)
        before = signal.signal(signal.SIGVTALRM, hang)
        signal.setitimer(signal.ITIMER_VIRTUAL, 30)  # seconds of this process' own work
        if traced:
            tracemalloc.start()
        hostile.RAN.clear()
        answer: list[str] | str
        try:
            answer = list(inspect([path]).layers[0])
        except ValueError as error:
            answer = str(error)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert hostile.RAN == []
        assert [entry.name for entry in tmp_path.iterdir()] == ["m.pkl"]
        assert peak < 2 * len(content) + pickles._FLOOR + (4 << 20)
        if isinstance(answer, str):
            assert answer.startswith(str(path))
            assert len(answer.splitlines()) == 1
        return answer

    return attempt


@pytest.mark.parametrize("form", [hostile.archive, hostile.old_archive, hostile.plain])
@pytest.mark.parametrize("name", CALLS)
def test_what_a_pickle_calls_is_not_called_and_changes_nothing_about_the_weight_beside_it(form, name, inspected):
    assert inspected(form(CALLS[name])) == ["a"]


@pytest.mark.parametrize("name", CALLS)
def test_the_same_pickles_run_something_where_they_are_trusted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile.RAN.clear()
    with contextlib.suppress(Exception):
        pickle.loads(b"\x80\x04" + CALLS[name] + b".")
    assert hostile.RAN or list(tmp_path.iterdir()) == [tmp_path / "ran"]


LIMIT = "holds more than is read of a file of its size ("
REASONS = ("is damaged or incomplete (", LIMIT)


@pytest.mark.parametrize("name", BOMBS_IN_PICKLES)
def test_a_pickle_takes_no_more_than_it_has(name, inspected, monkeypatch):
    monkeypatch.setattr("specreg.pickles._FLOOR", 4 << 20)
    answer = inspected(hostile.archive(BOMBS_IN_PICKLES[name]))
    assert answer == ["a"] or any(f"m.pkl {reason}" in answer for reason in REASONS)


@pytest.mark.parametrize("name", hostile.tangles(1))
def test_what_many_things_share_is_visited_once(name, inspected):
    answer = inspected(hostile.archive(hostile.tangles()[name]), traced=False)
    assert answer == ["a"] or any(f"m.pkl {reason}" in answer for reason in REASONS)


def rewritten(content: bytes, signature: bytes, offset: int, form: str, value: int) -> bytes:
    """A zip with a number in the first header of this signature replaced."""
    whole = bytearray(content)
    struct.pack_into(form, whole, whole.index(signature) + offset, value)
    return bytes(whole)


def twice(content: bytes) -> bytes:
    """A zip whose list names its last entry again."""
    begin, end = content.rindex(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    count, size = struct.unpack_from("<HI", content, end + 10)
    last = bytearray(content[end:])
    struct.pack_into("<HHI", last, 8, count + 1, count + 1, size + end - begin)
    return content[:end] + content[begin:end] + bytes(last)


def overlapping() -> bytes:
    """A file of 400 tensors that are 200 x 200 values each, of one storage, from one value further each."""
    storage = hostile.storage(50_000, key="1") + b"q\x010"
    views = (hostile.rebuilt(hostile.numbers(200, 200), hostile.numbers(200, 1), i, of=b"h\x01") for i in range(400))
    return hostile.archive(storage + b"](" + b"".join(views) + b"e", **{"data/1": bytes(200_000)})


SAVED = hostile.archive(b"N")
CONTAINERS = {
    "a tensor many times": (hostile.archive(hostile.TENSOR + b"q\x000](" + b"h\x00" * 9000 + b"e"), f"{LIMIT}it describes far more tensors than it has room for"),
    "many views of one storage": (overlapping(), f"{LIMIT}it describes far more tensors than it has room for"),
    "two entries of one name": (twice(SAVED), "two of its entries have the same name"),
    "entries that share bytes": (spoilt.shared_entries(), "same name"),
    "a compressed entry": (spoilt.compressed(SAVED), "is compressed, which torch.save never does"),
    "an encrypted entry": (rewritten(SAVED, b"PK\x01\x02", 8, "<H", 1), "it is encrypted"),
    "an entry elsewhere": (rewritten(SAVED, b"PK\x01\x02", 42, "<I", 3), "is not where it should be"),
    "an entry that claims more": (rewritten(SAVED, b"PK\x01\x02", 24, "<I", 1 << 31), "is longer than the file"),
    "an entry that claims all": (rewritten(hostile.archive(b"N", more=bytes(500)), b"PK\x01\x02", 24, "<I", 900), "claim more bytes than the file has"),
    "a long list of entries": (lambda: zipped({f"m/{i}": b"" for i in range(30_000)}), f"{LIMIT}its list of entries is too long"),
    "no pickle": (zipped({"m/data/0": b""}), "it has no data.pkl"),
    "another bytes' order": (hostile.archive(b"N", byteorder=b"big"), "other bytes' order"),
    "an old file of another order": (pickle.dumps(hostile.MAGIC, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": False}, 2), "other bytes' order"),
    "an old file of another version": (pickle.dumps(hostile.MAGIC, 2) + pickle.dumps(1002, 2), "of an unknown version"),
    "a storage of -1 numbers": (hostile.old(hostile.beside(b"N"), stored=struct.pack("<q", -1)), "it ends too early"),
    "a storage of 2^60 numbers": (hostile.old(hostile.beside(b"N"), stored=struct.pack("<q", 1 << 60)), "it ends too early"),
    "a storage of fewer numbers": (hostile.old(hostile.beside(b"N"), stored=struct.pack("<q", 1) + bytes(4)), "storage '0' is too short"),
    "a storage that nothing uses": (hostile.old(hostile.beside(b"N"), keys=["1"]), "a storage that nothing in it uses"),
    "storages of one name": (hostile.old(hostile.beside(b"N"), keys=["0"] * 10**3), "it ends too early"),
    "a view of another storage": (
        hostile.old(b"\x80\x02" + hostile.rebuilt(hostile.numbers(3, 3), hostile.numbers(3, 1), of=hostile.storage(view=(1 << 40, 9))) + b"."), "is too short"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_that_is_not_what_it_says_is_refused(name, inspected):
    content, said = CONTAINERS[name]
    assert said in inspected(content() if callable(content) else content)
