"""Methods side by side: one process for each run, as many at a time as there are cores."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specreg.experiments.config import Method, RunConfig, Settings, differences, from_dict, to_dict
from specreg.experiments.interrupts import interruptible
from specreg.experiments.run import open_source, prepare_run
from specreg.records import RunDirectory, prepare_directory, read_json, write_json

_POLL_SECONDS = 0.5


@dataclass
class Job:
    """One run of a comparison and the process that makes it.

    Attributes:
        state: "waiting", "running", "done", "failed" or "stopped".
        error: the last line that a failed process wrote.
    """

    config: RunConfig
    run: RunDirectory
    state: str = "waiting"
    error: str = ""
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)


def plan(out: Path, methods: Sequence[Method], seeds: Sequence[int], settings: Settings) -> list[Job]:
    """Lay out the run directories of a comparison; complete runs are done already.

    Raises:
        ValueError: the folder holds a comparison with other settings, the data cannot be used, or the folder
            cannot be written; nothing is changed.
    """
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values:
            raise ValueError(f"{name} must not be empty")
    configs = [RunConfig(method, seed, settings) for seed in dict.fromkeys(seeds) for method in dict.fromkeys(methods)]
    saved = saved_settings(out)
    if saved is not None and (changed := differences(saved, settings)):
        raise ValueError(
            f"{out} holds a comparison with other settings ({'; '.join(changed)}): "
            f"repeat the old ones to go on with it, or choose another folder"
        )
    open_source(settings)
    prepare_directory(out)
    if saved is None:
        write_json(out / "comparison.json", to_dict(settings))
    jobs = []
    for config in configs:
        run = RunDirectory(out / "runs" / f"{config.method}-seed{config.seed}")
        prepare_run(config, run)
        jobs.append(Job(config, run, "done" if run.complete else "waiting"))
    return jobs


def saved_settings(out: Path) -> Settings | None:
    """Return the settings of the comparison in a folder, or None where there is none."""
    path = out / "comparison.json"
    if not path.exists():
        return None
    try:
        return from_dict(Settings, read_json(path))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold a comparison's settings ({error})") from error


def execute_all(jobs: Sequence[Job], parallel: int, watch: Callable[[], None] = lambda: None) -> None:
    """Run all jobs that are not done, ``parallel`` at a time.

    A failed run is recorded and the others go on. Ctrl-C (or SIGTERM) asks every process to save a
    checkpoint and end, and leaves the rest waiting.

    Args:
        watch: called about twice a second.
    """
    threads = max(1, (os.cpu_count() or 1) // parallel)
    with interruptible() as interrupted:
        while True:
            for job in jobs:
                _collect(job)
            running = [job for job in jobs if job.state == "running"]
            waiting = [job for job in jobs if job.state == "waiting"]
            if interrupted():
                for job in running:
                    _signal(job)
            else:
                for job in waiting[: parallel - len(running)]:
                    _start(job, threads)
                    running.append(job)
            watch()
            if not running:
                return
            time.sleep(_POLL_SECONDS)


def _start(job: Job, threads: int) -> None:
    with open(job.run.path / "log.txt", "ab") as log:
        job.process = subprocess.Popen(
            [sys.executable, "-m", "specreg", "train", "--quiet", "--out", str(job.run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone, which passes it on once
        )
    job.state = "running"


def _collect(job: Job) -> None:
    if job.process is None or (code := job.process.poll()) is None:
        return
    job.process = None
    job.state = "done" if job.run.complete else "stopped" if code in (130, -signal.SIGINT) else "failed"
    if job.state == "failed":
        lines = (job.run.path / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        job.error = lines[-1] if lines else f"exit code {code}"


def _signal(job: Job) -> None:
    if job.process is not None:
        with contextlib.suppress(ProcessLookupError):
            job.process.send_signal(signal.SIGINT)
