"""Runs over many machines through Ray (extra ``cluster``): what :func:`execute_all` does, on a cluster.

Every machine needs specreg[lab], and the sweep's folder under one path: it is where results, checkpoints and locks are.
A task of Ray is one process ``specreg train --out RUN``, as on a single machine.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGINT
from typing import Any

from specreg.experiments.jobs import POLL_SECONDS, Job, begin, end, stopping
from specreg.records import RunDirectory

_LOSSES = 3  # of the machine under a run before it counts as failed: a run that kills machines is passed over, too
_NOTICE = 20.0  # seconds in which Ray notices that a machine is gone; until then it sends tasks there


def execute_on_ray(
    jobs: Sequence[Job],
    address: str | None = None,
    *,
    cpus: float = 1,
    gpus: float = 0,
    watch: Callable[[], None] = lambda: None,
    minutes: float | None = None,
) -> None:
    """Run all jobs that wait on a Ray cluster, as many at a time as it has room for.

    A run that is stopped there, or whose machine is lost, goes on elsewhere from its checkpoint, up to twice. While a
    process of the lost task still lives (a machine may only be cut off), it holds the run's lock, and the new task
    waits for it. A failed run is recorded and the others go on; Ctrl-C, SIGTERM and the end of the time stop as in
    :func:`execute_all`.

    Args:
        address: of the cluster; None joins the one of RAY_ADDRESS or of this machine, or starts one for this sweep.
        cpus: cores for each run; its computation has as many threads, at least one.
        gpus: GPUs for each run; 0.5 lets two runs share one.
        watch, minutes: as in :func:`execute_all`.
    """
    import ray

    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise ValueError(f"there is no Ray cluster at {address or 'RAY_ADDRESS'} ({error})") from error
    try:
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run_to_its_end)
        with stopping(minutes) as stop:
            _Submissions(task, max(1, int(cpus)), jobs).execute(stop, watch)
    finally:
        if ours:
            ray.shutdown()


class _Submissions:
    """The tasks under way."""

    def __init__(self, task: Any, threads: int, jobs: Sequence[Job]) -> None:
        self._task, self._threads = task, threads
        self._under_way: dict[Any, Job] = {}
        self._later: list[tuple[float, Job]] = []  # when to submit a lost run again
        for job in jobs:
            if job.state == "waiting":
                self._submit(job)

    def execute(self, stop: Callable[[], bool], watch: Callable[[], None]) -> None:
        import ray

        stopped = False
        while self._under_way or self._later:
            if stop() and not stopped:
                stopped = True
                for reference in self._under_way:
                    ray.cancel(reference)
                for _, job in self._later:
                    job.state = "stopped"
                self._later.clear()
            for entry in [entry for entry in self._later if entry[0] <= time.monotonic()]:
                self._later.remove(entry)
                self._submit(entry[1])
            if not self._under_way:
                time.sleep(POLL_SECONDS)
                continue
            ready, _ = ray.wait(list(self._under_way), timeout=POLL_SECONDS)
            for reference in ready:
                self._collect(reference, self._under_way.pop(reference), stopped)
            for job in self._under_way.values():
                job.state = "waiting" if job.run.holder() is None else "running"
            watch()
        watch()

    def _submit(self, job: Job) -> None:
        reference = self._task.remote(str(job.run.path.resolve()), self._threads, str(Path.cwd()))
        self._under_way[reference] = job

    def _collect(self, reference: Any, job: Job, stopped: bool) -> None:
        import ray

        try:
            job.state, job.error = ray.get(reference)
            if job.state in ("stopped", "waiting") and not stopped:  # by a machine that is being shut down, say
                self._lose(job, job.state)
        except ray.exceptions.TaskCancelledError:
            job.state = "stopped" if job.run.checkpoint.exists() else "waiting"
        except ray.exceptions.RayTaskError as error:  # the folder is not there, or cannot be written
            self._fail(job, str(error).strip().splitlines()[-1])
        except ray.exceptions.RayError as error:  # the worker, its node or its memory
            if stopped:
                job.state = "stopped"
            else:
                self._lose(job, type(error).__name__)

    def _lose(self, job: Job, why: str) -> None:
        job.lost += 1
        if job.lost < _LOSSES:
            job.state = "waiting"
            self._later.append((time.monotonic() + _NOTICE, job))
        else:
            self._fail(job, f"was stopped or lost its machine {_LOSSES} times ({why})")

    def _fail(self, job: Job, error: str) -> None:
        job.state, job.error = "failed", error
        job.run.write("failed", {"error": error})


def _run_to_its_end(path: str, threads: int, folder: str) -> tuple[str, str]:
    """Make a run, as a task of Ray; returns its state and error."""
    run = RunDirectory(path)
    while not run.complete:
        if run.holder() is not None:  # the process of a task that counts as lost
            time.sleep(POLL_SECONDS)
            continue
        process = begin(run, threads, Path(folder))
        try:
            while (code := process.poll()) is None:
                time.sleep(POLL_SECONDS)
        except BaseException:  # a cancelled task gets a KeyboardInterrupt
            process.send_signal(SIGINT)
            process.wait()
            raise
        if not code or run.holder() is None:
            return end(run, code)
    return "done", ""
