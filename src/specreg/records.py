"""The run directory: which files it holds and how they are written. Standard library, and filelock for the lock.

docs/records.md has every file and field. A run that has ``result.json``, which is written last, is complete.
"""

import contextlib
import errno
import glob
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from specreg.files import (
    PARTIAL,
    RUN_LOCK,
    check_file,
    exists,
    read_json,
    read_json_lines,
    write_json,
    write_text,
)
from specreg.names import LARGEST_INTEGER

SERIES = ("metrics", "evaluations", "spectra", "verdicts", "sensitivity", "outputs", "events")
_LOCK_SECONDS, _ASKING_SECONDS = 0.5, 0.1

PACE = "seconds_per_step"  # in timing.json: what the first steps of a process took, without the very first


def no_run(path: Path, what: str) -> str:
    """Return that a path does not exist, or else ``what`` it is not, and the runs of its name, or inside, if any."""
    name = glob.escape(path.name)
    patterns = (f"*/{name}/config.json", f"{name}/runs/*/config.json") if name else ()
    near = [config.parent for pattern in patterns for config in sorted(path.parent.glob(pattern))]
    question = f"; did you mean {' or '.join(map(str, near[:3]))}?" if near else ""
    return f"{path} {what if path.exists() else 'does not exist'}{question}"


class RunDirectory:
    """Read and write one run's files; nothing is created before the first write."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def checkpoints(self) -> list[Path]:
        """What a run can go on from, the newest first."""
        return [path for path in (self.checkpoint, self.kept_checkpoint("before")) if path.exists()]

    @property
    def written(self) -> list[Path]:
        """What a run writes beside its configuration and checkpoints, of what is there."""
        names = (*(f"{name}.jsonl" for name in SERIES), "result.json", "samples.png", "data.png", "missing.png")
        return [path for name in names if exists(path := self.path / name)]

    def kept_checkpoint(self, why: str) -> Path:
        """Return where the one "before", the "best" or the last "healthy" checkpoint is kept, or another one."""
        return self.path / f"checkpoint-{why}.pt"

    @property
    def complete(self) -> bool:
        return (self.path / "result.json").exists()

    @contextlib.contextmanager
    def lock(self, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
        """Hold the directory, which has to exist, for this process: two that wrote one run would tear its records.

        The operating system lets go when the process ends, however it ends; the file stays. ValueError names another
        process that holds it for longer than ``seconds``, and its machine.
        """
        with self._held(seconds) as holder:
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
        return self.path / RUN_LOCK

    @contextlib.contextmanager
    def _held(self, seconds: float) -> Iterator[str | None]:
        """Hold the lock if it can be had within a time (others may ask for its holder, too), or yield who holds it."""
        import filelock  # only the lock needs it

        if self._lock_file.exists():
            check_file(self._lock_file)
        # A lock that is only a file's existence, as where a file system has none, would outlive a killed process.
        lock, holder = filelock.FileLock(self._lock_file, fallback_to_soft=False), None
        try:
            lock.acquire(timeout=seconds, poll_interval=0.02)
        except filelock.Timeout:
            holder = "another process"
            with contextlib.suppress(OSError):
                holder = self._lock_file.read_text(encoding="utf-8", errors="replace").strip() or holder
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(
                f"{self._lock_file} cannot be locked ({error.strerror or error}): check its permissions, or choose a "
                f"folder on a file system with locks"
            ) from error
        try:
            yield holder
        finally:
            lock.release()

    def image(self, name: str) -> Path:
        return self.path / f"{name}.png"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's object, None where there is no such file; ValueError if it is damaged, or no object."""
        path = self.path / f"{name}.json"
        if not exists(path):
            return None
        value = read_json(path)
        if not isinstance(value, dict):
            raise ValueError(f"{path} is damaged (not an object): remove it or restore it")
        return value

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        write_json(self.path / f"{name}.json", dict(value))

    def append(self, series: str, record: Mapping[str, Any]) -> None:
        """Append a line to a series; records carry the ``step`` they belong to."""
        with open(self.path / f"{series}.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def series(
        self, name: str, fields: Mapping[str, Callable[[Any], bool]] | None = None, *, optional: bool = False
    ) -> list[dict[str, Any]]:
        """Return a series' records; a last line torn by a crash is left out.

        ``fields`` has, by key, what tells whether a value can be its; no record may lack one that is not ``optional``.
        """
        path = self.path / f"{name}.jsonl"
        records = list(_lines(path))
        for record in records:
            for key, valid in (fields or {}).items():
                if not (valid(record[key]) if key in record else optional):
                    value, step = record.get(key), record["step"]
                    raise ValueError(f"{path} is damaged: {key!r} at step {step} is {value!r:.60}; restore it")
        return records

    def rewind(self, step: int) -> None:
        """Drop what was recorded after ``step``, which the checkpoint that a run goes on from does not know.

        What a killed process had half written is removed, too, and why one failed; so the lock has to be held.
        """
        remaining = {}  # all are read before the first is written
        for name in SERIES:
            path = self.path / f"{name}.jsonl"
            if path.exists():
                remaining[path] = [json.dumps(record) + "\n" for record in _lines(path) if record["step"] <= step]
        for partial in self.path.glob(f".*{PARTIAL}"):  # what a killed process had half written
            partial.unlink(missing_ok=True)
        (self.path / "failed.json").unlink(missing_ok=True)
        for path, lines in remaining.items():
            write_text(path, "".join(lines))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for place, record in read_json_lines(path):
        step = record.get("step") if isinstance(record, dict) else None
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= LARGEST_INTEGER:
            raise ValueError(f"{place} is damaged (not an object with a step): remove it or restore it")
        yield record
