"""Small trainings of the command line in processes of their own, and what makes two runs the same.

A process here is forked from one that has imported the lab and done nothing else, because the import takes seconds.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from specreg.cli import main
from specreg.experiments import jobs
from specreg.experiments.config import ModelConfig, RecordConfig, Settings
from specreg.records import RunDirectory

FORKS = multiprocessing.get_context("forkserver")
# What a training imports, torch for the first optimizer among it, and what this module does.
_PRELOADED = [
    "specreg.cli", "specreg.options", "specreg.display", "specreg.experiments.run", "specreg.experiments.jobs",
    "torch._dynamo", "torch.utils.tensorboard", "pytest",
]  # fmt: skip
FORKS.set_forkserver_preload(_PRELOADED)

# Narrow networks, and as few real samples as coverage is judged by.
SMALL = Settings(model=ModelConfig(d_channels=4, g_channels=4, latent=8), records=RecordConfig(reference=500))
OPTIONS = [
    "--steps", "24", "--d-channels", "4", "--g-channels", "4", "--latent", "8", "--batch-size", "4", "--d-steps", "2",
    "--log-every", "1", "--spectra-every", "2", "--evaluate-every", "6", "--checkpoint-every", "4",
    "--samples", "64", "--reference", "128", "--ema-decay", "0.9", "--lr-decay", "linear",
]  # fmt: skip
DYNAMIC = ["--method", "dynamic", "--dynamic.start", "4"]
# A detector that takes anything for a collapse: a guard goes back and is switched on within a few steps.
NERVOUS = {"warmup": 6, "window": 4, "fast": 0.001, "far": 0.001, "collapsed": 0.001, "patience": 1}
NERVOUS_OPTIONS = [word for name, value in NERVOUS.items() for word in (f"--detector.{name}", str(value))]
SERIES = ("metrics.jsonl", "evaluations.jsonl", "spectra.jsonl", "verdicts.jsonl", "sensitivity.jsonl")


class Fork:
    """A function in a process of its own, with what is used of ``subprocess.Popen``; what it prints goes to a file."""

    def __init__(self, output: Path, function: Callable[..., object], *arguments: object) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        self.output = output
        self.process = FORKS.Process(target=_run, args=(output, function, arguments), daemon=True)
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self) -> tuple[int, str]:
        """Wait for the end; return the exit code and what was printed."""
        return self.wait(), self.output.read_text(encoding="utf-8")


def _run(output: Path, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    with open(output, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))


def stop_forks() -> None:
    """End the process that the others are forked from, so that their time counts as that of this one's children.

    It waits for them: what a failed test left running is killed.
    """
    for process in multiprocessing.active_children():
        process.kill()
    multiprocessing.forkserver._forkserver._stop()


def specreg(output: Path, *arguments: object) -> tuple[int, str]:
    """Run the command line in a process; return its exit code and what it printed."""
    return Fork(output, main, [str(argument) for argument in arguments]).finish()


def start(out: Path, *options: str, before: Callable[[], object] | None = None) -> Fork:
    """Start ``specreg train`` in a process, after a call of ``before``."""
    return Fork(out.parent / f"{out.name}-{time.monotonic_ns()}.txt", _train, out, options, before)


def train(out: Path, *options: str, before: Callable[[], object] | None = None) -> tuple[int, str]:
    """Run ``specreg train`` in a process; return its exit code and what it printed."""
    return start(out, *options, before=before).finish()


def _train(out: Path, options: tuple[str, ...], before: Callable[[], object] | None) -> int:
    if before is not None:
        before()
    return main(["train", "--quiet", "--out", str(out), *options])


@contextlib.contextmanager
def forked_jobs() -> Iterator[None]:
    """Let the runs of a comparison or sweep be forks, which are spared the import of the lab."""

    def begin(run: RunDirectory, threads: int, folder: Path | None = None) -> Fork:
        (run.path / "failed.json").unlink(missing_ok=True)
        return Fork(run.path / "log.txt", main, ["train", "--quiet", "--out", str(run.path)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "begin", begin)
        patch.setattr(jobs, "POLL_SECONDS", 0.02)
        yield


def run_script(output: Path, script: Path, *options: str) -> str:
    """Run a script in a process, as by its name, until it ends well; return what it printed."""
    code, printed = Fork(output, _script, script, options).finish()
    assert code == 0, printed
    return printed


def _script(script: Path, options: tuple[str, ...]) -> None:
    sys.path.insert(0, str(script.parent))
    sys.argv = [script.name, *options]
    runpy.run_path(str(script), run_name="__main__")


def wait_for(process: Fork | subprocess.Popen[str], out: Path, steps: int = 1) -> None:
    """Wait until a run has recorded so many steps."""
    metrics = out / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, "the run ended before it could be disturbed"
        time.sleep(0.002)


def kill(process: Fork) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "specreg", "train", "--quiet", "--out", str(out), *options]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def assert_same_run(one: Path, other: Path) -> None:
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (one, other)]
    assert_same_value(*states)
    names = [{path.name for path in run.glob("*.jsonl")} for run in (one, other)]
    assert names[0] == names[1]
    assert names[0] >= set(SERIES)
    for name in (*names[0], "result.json"):
        assert (one / name).read_text() == (other / name).read_text(), name
    if (one / "tensorboard").exists():
        assert board(one) == board(other)


def board(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows, and make sure that it is what the records hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    losses, spectra = (RunDirectory(run).series(name) for name in ("metrics", "spectra"))
    assert shown["metrics/d_loss"] == [(record["step"], pytest.approx(record["d_loss"])) for record in losses]
    assert [step for step, _ in shown["spectral_state"]] == [record["step"] for record in spectra]
    assert {"evaluations/kl", "gradient_norms/real", "diversity/ratio"} <= set(shown)
    assert any(tag.startswith("attainment/") for tag in shown)
    return shown


def assert_same_value(one, other, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_value(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_value(*pair, f"{where}[{index}]")
    else:
        assert one == other, where
