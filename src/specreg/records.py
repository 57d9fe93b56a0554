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
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

SERIES = ("metrics", "evaluations", "spectra", "verdicts", "sensitivity", "scores", "events")
_LOCK_ATTEMPTS = 10
_PARTIAL = ".partial"  # ends the name of a file that is being written, and has no name of its own yet


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

        The operating system lets go when the process ends, however it ends; so nothing is left behind but the file,
        which is not removed because another process may have opened it. (Windows has no such lock: nothing is held.)

        Raises:
            ValueError: another process holds it; names that process and its machine.
        """
        if sys.platform == "win32":
            yield
            return
        import fcntl

        with open(self.path / "run.lock", "a", encoding="utf-8") as file:
            for attempt in range(_LOCK_ATTEMPTS):  # who only asks for the holder locks it for a moment, too
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == _LOCK_ATTEMPTS - 1:
                        holder = self.holder() or "another process"
                        raise ValueError(f"{self.path} is being written by {holder}: wait for it, or stop it") from None
                    time.sleep(0.05)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            yield

    def holder(self) -> str | None:
        """Return "process PID on HOST" of the process that holds the directory (:meth:`lock`), None if none does."""
        path = self.path / "run.lock"
        if sys.platform == "win32" or not path.exists():
            return None
        import fcntl

        with open(path, encoding="utf-8", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
        return None

    def image(self, name: str) -> Path:
        return self.path / f"{name}.png"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's object, or None where there is no such file.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.path / f"{name}.json"
        return read_json(path) if path.exists() else None

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

        The checkpoint that a killed process had half written is removed, too; so the lock has to be held.
        """
        for partial in self.path.glob(f".checkpoint*{_PARTIAL}"):
            partial.unlink()
        for name in SERIES:
            path = self.path / f"{name}.jsonl"
            if path.exists():
                kept = [json.dumps(record) + "\n" for record in _lines(path) if record["step"] <= step]
                _write_atomically(path, "".join(kept))


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names it where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}): remove it or restore it") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: readers see the old one or the whole new one."""
    _write_atomically(path, json.dumps(value, indent=2) + "\n")


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
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == len(lines) and not line.endswith(b"\n"):
                return
            raise ValueError(f"{path}, line {number} is damaged ({error}): remove it or restore it") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}, line {number} is damaged: not an object with a step")
        yield record


def _write_atomically(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode("utf-8"))
