"""The run directory: which files it holds and how they are written. Standard library only.

A run directory holds

- ``config.json``: the full configuration, written once;
- ``environment.json``: versions and machine, written at each start;
- ``metrics.jsonl``: losses, one line every few steps;
- ``evaluations.jsonl``: metrics during training;
- ``spectra.jsonl``: every layer's singular values;
- ``verdicts.jsonl``: what the collapse detector says of each of these snapshots;
- ``sensitivity.jsonl``: with the metrics, how nearly each layer attains its bound, the discriminator's gradient norms
  and the samples' diversity;
- ``scores.jsonl``: with the metrics, how the discriminator scores training, held-out and generated images;
- ``events.jsonl``: what was done about a verdict;
- ``tensorboard/``: the numbers of all these series once more, and pictures of the spectra;
- ``checkpoint.pt``: everything needed to go on; ``checkpoint-before.pt``: the one before it, for the case that it is
  damaged;
- ``checkpoint-best.pt``, ``checkpoint-healthy.pt``: the one with the least Fréchet distance, and the last one that no
  verdict of a collapse spoke against;
- ``result.json``: the final evaluation, written last: a run that has it is complete;
- ``samples.png``, ``data.png``: generated and real images;
- ``log.txt``, ``failed.json``: what a process of a comparison or sweep wrote, and why it ended if it failed;
- ``run.lock``: names the process that writes the run, see :meth:`RunDirectory.lock`;
- ``timing.json``: seconds spent. Apart from this file and the environment, a resumed run's records are those of an
  uninterrupted one.
"""

import contextlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from specreg.inputs import check_file, exists

SERIES = ("metrics", "evaluations", "spectra", "verdicts", "sensitivity", "scores", "events")
_LOCK_SECONDS, _ASKING_SECONDS = 0.5, 0.1
_PARTIAL = ".partial"  # ends the name of a file that is being written, and has no name of its own yet
# Nothing written here comes near: what is larger or nested deeper would fill the memory or the interpreter's stack.
_LARGEST, _DEEPEST = 1 << 26, 50  # bytes of a JSON file or of a line; objects and lists within each other
_LAST_STEP = 1 << 53  # whole numbers are exact up to there, in whatever reads them


class RunDirectory:
    """Read and write one run's files; nothing is created before the first write."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def checkpoint_before(self) -> Path:
        return self.path / "checkpoint-before.pt"

    @property
    def checkpoints(self) -> list[Path]:
        """What a run can go on from, the newest first."""
        return [path for path in (self.checkpoint, self.checkpoint_before) if path.exists()]

    def kept_checkpoint(self, why: str) -> Path:
        """Return where the "best" or the last "healthy" checkpoint is kept."""
        return self.path / f"checkpoint-{why}.pt"

    @property
    def complete(self) -> bool:
        return (self.path / "result.json").exists()

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory, which has to exist, for this process: two that wrote one run would tear its records.

        The operating system lets go when the process ends, however it ends; the file stays.

        Raises:
            ValueError: another process holds it; names that process and its machine.
        """
        with self._held(_LOCK_SECONDS) as holder:
            if holder is not None:
                raise ValueError(f"{self.path} is being written by {holder}: wait for it, or stop it")
            with contextlib.suppress(OSError):  # where a locked file cannot be written to, as on Windows
                self._lock_file.write_text(f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8")
            yield

    def holder(self) -> str | None:
        """Return "process PID on HOST" of the process that holds the directory (:meth:`lock`), None if none does."""
        if not self._lock_file.exists():
            return None
        with self._held(_ASKING_SECONDS) as holder:
            return holder

    @property
    def _lock_file(self) -> Path:
        return self.path / "run.lock"

    @contextlib.contextmanager
    def _held(self, seconds: float) -> Iterator[str | None]:
        """Hold the lock if it can be had within a time (others may ask for its holder, too), or yield who holds it."""
        import filelock  # of the lab: monitors write their records without it

        if self._lock_file.exists():
            check_file(self._lock_file)
        lock, holder = filelock.FileLock(self._lock_file), None
        try:
            lock.acquire(timeout=seconds, poll_interval=0.02)
        except filelock.Timeout:
            holder = "another process"
            with contextlib.suppress(OSError):
                holder = self._lock_file.read_text(encoding="utf-8", errors="replace").strip() or holder
        try:
            yield holder
        finally:
            lock.release()

    def image(self, name: str) -> Path:
        return self.path / f"{name}.png"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's object, or None where there is no such file.

        Raises:
            ValueError: the file is damaged, or holds something else.
        """
        path = self.path / f"{name}.json"
        if not exists(path):
            return None
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError(f"{path} is damaged (not an object): remove it or restore it")
        return value

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file atomically."""
        write_json(self.path / f"{name}.json", dict(value))

    def append(self, series: str, record: Mapping[str, Any]) -> None:
        """Append a line to a series; records carry the ``step`` they belong to."""
        with open(self.path / f"{series}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def series(self, name: str) -> list[dict[str, Any]]:
        """Return a series' records; a last line torn by a crash is left out.

        Raises:
            ValueError: another line is damaged.
        """
        return list(_lines(self.path / f"{name}.jsonl"))

    def rewind(self, step: int) -> None:
        """Drop what was recorded after ``step``, which the checkpoint that a run goes on from does not know.

        What a killed process had half written is removed, too; so the lock has to be held.

        Raises:
            ValueError: a series is damaged; nothing is changed.
        """
        kept = {}  # all are read before the first is written
        for name in SERIES:
            path = self.path / f"{name}.jsonl"
            if path.exists():
                kept[path] = [json.dumps(record) + "\n" for record in _lines(path) if record["step"] <= step]
        for partial in self.path.glob(f".*{_PARTIAL}"):
            partial.unlink(missing_ok=True)
        for path, lines in kept.items():
            _write_atomically(path, "".join(lines))


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names it where it is damaged, or is no file."""
    check_file(path)
    with _opened(path) as file:
        content = file.read(_LARGEST + 1)
    try:
        return _parsed(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): remove it or restore it") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: readers see the old one or the whole new one."""
    _write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically; half of a surrogate pair, as a name may hold it and no encoding writes it, becomes "?"."""
    _write_atomically(path, text)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write; when the block ends it takes the place of ``path``, which is the old or the whole new one.

    If the block fails, or the machine does, the old file stays.
    """
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp makes private files; a shared results folder has to be readable
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def printable(text: str) -> str:
    """Replace what could steer a terminal: control characters, and those that turn the direction of writing."""
    return "".join(character if character.isprintable() else "�" for character in text)


def give_name(existing: Path, name: Path) -> None:
    """Make ``name`` a second name of a file (a copy, where there are no links), in the place of what had it before."""
    partial = name.with_name(f".{name.name}{_PARTIAL}")
    partial.unlink(missing_ok=True)
    try:
        os.link(existing, partial)
    except OSError:
        shutil.copyfile(existing, partial)
    os.replace(partial, name)
    partial.unlink(missing_ok=True)  # renaming a file to another of its own names does nothing


def prepare_directory(path: Path) -> None:
    """Create a directory and make sure that it can be written to.

    Raises:
        ValueError: it is a file, or cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {path} ({error.strerror or error}): choose another output folder") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    check_file(path)
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(_LARGEST + 1), b""), start=1):
            try:
                record = _parsed(line)
            except ValueError as error:
                if not line.endswith(b"\n") and len(line) <= _LARGEST:
                    return
                raise ValueError(f"{path}, line {number} is damaged ({error}): remove it or restore it") from error
            step = record.get("step") if isinstance(record, dict) else None
            if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= _LAST_STEP:
                raise ValueError(
                    f"{path}, line {number} is damaged (not an object with a step): remove it or restore it"
                )
            yield record


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check its permissions") from error


def _parsed(content: bytes) -> Any:
    """Return JSON's value; ValueError, in one line, where it is none, or too large or too deep to be a record."""
    if len(content) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if content.count(b"[") + content.count(b"{") > _DEEPEST:
        level = [value]
        for _ in range(_DEEPEST):
            level = [inner for one in level for inner in _held(one) if isinstance(inner, dict | list)]
        if level:
            raise ValueError("nested too deeply")
    return value


def _held(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _write_atomically(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode("utf-8", errors="replace"))
