"""Runs as processes: each job is ``specreg train --out RUN``, as many at a time as there are cores, or one on a GPU."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from specreg.experiments.config import RunConfig
from specreg.experiments.interrupts import STOPS, interruptible
from specreg.names import printable
from specreg.records import RunDirectory

POLL_SECONDS = 0.5


@dataclass
class Job:
    """One run of a comparison or sweep and the process that makes it."""

    config: RunConfig
    run: RunDirectory
    state: str = "waiting"  # or "running", "done", "failed" or "stopped"
    error: str = ""  # why it failed: the last line that its process wrote, or the signal that killed it
    lost: int = 0  # how often the machine under it was lost (on a cluster)
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The run's name in its folder: CELL/METHOD-seedN."""
        return f"{self.run.path.parent.name}/{self.run.path.name}"


def execute_all(
    jobs: Sequence[Job], parallel: int | None, watch: Callable[[], None] = lambda: None, *, minutes: float | None = None
) -> None:
    """Run all jobs that wait, ``parallel`` at a time, each with :func:`threads_of_each`.

    A failed run is recorded and the others go on. A run that another process writes is waited for. Ctrl-C (or SIGTERM)
    asks every process to save a checkpoint and end, and leaves the rest waiting; so does an error here.

    Args:
        parallel: None is one where there is a GPU, as many as there are cores elsewhere, or jobs if these are fewer.
        watch: called about twice a second.
        minutes: do as Ctrl-C does after so many minutes; None is never.
    """
    parallel = parallel or (1 if torch.cuda.is_available() else max(1, min(_cores(), len(jobs))))
    threads = threads_of_each(parallel)
    with stopping(minutes) as stop, _ended_with(jobs):
        while True:
            for job in jobs:
                if job.process is not None and (code := job.process.poll()) is not None:
                    job.process = None
                    job.state, job.error = end(job.run, code)
            running = [job for job in jobs if job.state == "running"]
            waiting = [job for job in jobs if job.state == "waiting"]
            stopped = stop()
            if stopped:
                for job in running:
                    _signal(job)
            else:
                for job in waiting:
                    if job.run.complete:  # another process has made it
                        job.state = "done"
                    elif len(running) < parallel and job.run.holder() is None:
                        job.process, job.state = begin(job.run, threads), "running"
                        running.append(job)
            watch()
            if not running and (stopped or not any(job.state == "waiting" for job in jobs)):
                return
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _ended_with(jobs: Sequence[Job]) -> Iterator[None]:
    """Ask the jobs' processes to stop, and wait for them, if the block fails: nobody would watch them any more."""
    try:
        yield
    except BaseException:
        for job in jobs:
            _signal(job)
        for job in jobs:
            if job.process is not None:
                job.process.wait()
        raise


def threads_of_each(parallel: int) -> int:
    """Return each job's part of the cores; no more than this process may have (OMP_NUM_THREADS)."""
    return max(1, min(torch.get_num_threads(), _cores() // parallel))


def _cores() -> int:
    """Return how many cores this process may use; a cluster gives a job some of a machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def stopping(minutes: float | None) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether to stop: after Ctrl-C or SIGTERM, or when the time is up."""
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    with interruptible() as interrupted:
        yield lambda: interrupted() or time.monotonic() >= end


def begin(run: RunDirectory, threads: int, folder: Path | None = None) -> "subprocess.Popen[bytes]":
    """Start a run's process, in a folder that paths of data are relative to; its output goes to ``log.txt``."""
    (run.path / "failed.json").unlink(missing_ok=True)
    with open(run.path / "log.txt", "ab") as log:
        return subprocess.Popen(
            # -P: no module is taken from the folder that this was started in, which may be a stranger's.
            [sys.executable, "-P", "-m", "specreg", "train", "--quiet", "--out", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone, which passes it on
        )


def end(run: RunDirectory, code: int) -> tuple[str, str]:
    """Return the state and the error of a run whose process ended with ``code``; a failure is recorded.

    A process that ended because another one writes the run has not failed.
    """
    if run.complete:
        return "done", ""
    if run.holder() is not None:
        return "waiting", ""
    if code in (130, *(-number for number in STOPS)):  # one of these may come before the training asks for it
        return "stopped", ""
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}  # of real-time signals it has two
        error = f"killed by {names.get(-code, f'signal {-code}')}"
    else:
        lines = (run.path / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = printable(lines[-1]) if lines else f"exit code {code}"
    run.write("failed", {"error": error})
    return "failed", error


def _signal(job: Job) -> None:
    if job.process is not None:
        job.process.send_signal(signal.SIGINT)
