"""A sweep on a Ray cluster of two nodes, of which one dies in the middle: no run is lost or made twice."""

import contextlib
import gc
import json
import os
import threading
import time
from pathlib import Path

import psutil
import pytest

from specreg.experiments.cluster import execute_on_ray
from specreg.experiments.jobs import Job, execute_all
from specreg.experiments.sweep import Plan, lay_out
from sweeps import tiny

ray = pytest.importorskip("ray", reason="ray is not installed (extra cluster)")
pytestmark = [
    pytest.mark.soak,
    # Ray leaves its processes' log files open.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
STEPS = 120
SEEDS = (0, 1, 2)


def plan(steps: int = STEPS) -> Plan:
    return Plan("test", tiny(steps), SEEDS)


def processes(node) -> list[psutil.Process]:
    """Return the processes of a node: its raylet, Ray's workers and their runs."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


def run_on(node, jobs: list[Job]) -> Job | None:
    """Return the job whose run is under way on a node, with a checkpoint."""
    commands: list[str] = []
    for process in processes(node):
        with contextlib.suppress(psutil.Error):  # it has just ended
            commands += process.cmdline()
    found = (job for job in jobs if job.run.checkpoint.exists() and not job.run.complete)
    return next((job for job in found if str(job.run.path) in commands), None)


def results(jobs: list[Job]) -> dict[str, bytes]:
    return {job.name: (job.run.path / "result.json").read_bytes() for job in jobs}


def test_a_lost_node_loses_no_run(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    doomed = cluster.add_node(num_cpus=1)
    jobs = lay_out(tmp_path / "cluster", plan())
    done_before: dict[str, int] = {}
    killed: list[Job] = []

    def kill_in_the_middle() -> None:
        """Lose the node as a machine dies, everything on it at once, while a run there has a checkpoint."""
        while not killed:
            time.sleep(0.02)
            if any(job.run.complete for job in jobs) and (victim := run_on(doomed, jobs)) is not None:
                for process in processes(doomed):
                    process.kill()
                done_before.update({job.name: stamp(job) for job in jobs if job.run.complete})
                killed.append(victim)

    killer = threading.Thread(target=kill_in_the_middle, daemon=True)
    killer.start()
    try:
        execute_on_ray(jobs, cluster.address)
    finally:
        cluster.shutdown()
        gc.collect()  # the warnings about Ray's files are to come here, where they are ignored
    assert [job.state for job in jobs] == ["done"] * 6
    assert [job for job in jobs if job.lost] == killed
    assert killed[0].name not in done_before
    assert {job.name: stamp(job) for job in jobs if job.name in done_before} == done_before
    alone = lay_out(tmp_path / "alone", plan())
    execute_all(alone, os.cpu_count() or 1)  # one thread each, as on the cluster
    assert results(jobs) == results(alone)
    for job, other in zip(jobs, alone, strict=True):
        assert job.run.series("spectra") == other.run.series("spectra")
        assert [record["step"] for record in job.run.series("metrics")] == list(range(10, STEPS + 1, 10))
    assert json.loads((tmp_path / "cluster" / "sweep.json").read_text()) == json.loads(
        (tmp_path / "alone" / "sweep.json").read_text()
    )


def stamp(job: Job) -> int:
    return (job.run.path / "result.json").stat().st_mtime_ns


def test_a_stop_leaves_resumable_runs(tmp_path: Path):
    jobs = lay_out(tmp_path, plan(steps=100_000))
    execute_on_ray(jobs, cpus=1, minutes=0.4)
    assert {job.state for job in jobs} <= {"stopped", "waiting"}
    assert all(job.run.holder() is None for job in jobs)
    assert not any((job.run.path / "failed.json").exists() for job in jobs)
    gc.collect()
