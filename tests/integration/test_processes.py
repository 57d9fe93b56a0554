"""Several processes: identical everywhere, equal to one, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import loops
from specreg.cli import main
from specreg.experiments.config import Settings, TrainingConfig
from specreg.experiments.run import check_shares
from specreg.processes import ALONE, Processes, local_device
from specreg.records import RunDirectory
from trainings import OPTIONS, Fork, assert_same_value, environment, kill, train, wait_for


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    loops.run_together(2, loops.everything, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", loops.METHODS)
def test_weights_vectors_and_records_are_identical_after_many_steps(together, method):
    one, other = loops.left(together, method)
    assert_same_value(one, other)
    moved = one["network"]
    assert any(not torch.equal(value, moved[name]) for name, value in _untrained(method).items())
    if method in ("static", "dynamic"):
        assert one["compensator"]["calls"] == loops.STEPS
        assert method == "static" or set(one["compensator"]["record"]) >= {"2"}


@pytest.mark.soak
def test_four_processes_are_identical_after_200_steps(tmp_path):
    loops.run_together(4, partial(loops.own_loops, steps=200), tmp_path)
    for method in loops.METHODS:
        first, *others = loops.left(tmp_path, method)
        assert len(others) == 3
        for other in others:
            assert_same_value(first, other, method)


def _untrained(method: str) -> dict[str, torch.Tensor]:
    network = loops.discriminator()
    loops.attach(method, network)
    return network.state_dict()


def assert_gradients_are_those_of_one_process(folder: Path, kinds: dict[str, object]) -> None:
    result = loops.left(folder, "wrappers")[0]
    for kind in kinds:
        for name, gradient in result["whole"].items():
            torch.testing.assert_close(result[kind][name], gradient, rtol=1e-4, atol=1e-6)
        assert result[f"{kind} layers"] == [["0", "2", "5"]] * 2


@pytest.mark.slow
def test_two_forward_passes_before_one_backward_pass(together):
    assert_gradients_are_those_of_one_process(together, loops.WRAPPED)


@pytest.mark.soak
def test_two_forward_passes_of_a_compiled_network(tmp_path):
    loops.run_together(2, partial(loops.wrappers, kinds=loops.COMPILED), tmp_path)
    assert_gradients_are_those_of_one_process(tmp_path, loops.COMPILED)


@pytest.mark.slow
def test_a_wrapped_module_is_read_but_not_parametrized(together):
    result, other = loops.left(together, "wrappers")
    assert len(result["late"]) == 5
    assert all("wrapped in DistributedDataParallel" in said for said in result["late"])
    assert len(result["sharded"]) == 5
    assert all("sharded between processes" in said for said in result["sharded"])
    assert result["inside"] == ["a.0", "a.2", "a.5", "b.0", "b.2", "b.5"]
    assert result["attained"] == ["0", "2", "5"]
    assert result["norms"]["real"] > 0
    assert "norms" not in other


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_larger_batch(together):
    result = loops.left(together, "wrappers")[0]
    for name, gradient in result["large"].items():
        torch.testing.assert_close(result["accumulated"][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", loops.LAB)
def test_two_processes_of_the_lab_train_as_one(together, name):
    one, other = loops.left(together, f"lab, {name}")
    for state in (one["state"], other["state"]):
        del state["global_random"]
    assert_same_value(one, other)
    losses, gradients, alone = loops.lab_training(loops.LAB[name], ALONE)
    # The first step differs by the rounding of sums in another order; later ones amplify it without bound.
    assert one["losses"][0][0] == pytest.approx(losses[0][0], rel=2e-6)
    largest = max(gradient.abs().max() for gradient in gradients)
    for gradient, expected in zip(one["gradients"], gradients, strict=True):
        assert (gradient - expected).abs().max() <= 1e-4 * largest
    state = alone.state_dict()
    assert torch.equal(one["state"]["random"], state["random"])
    assert torch.equal(one["state"]["draws"], state["draws"])
    for network in ("generator", "discriminator", "ema"):
        assert one["state"][network].keys() == state[network].keys()  # no prefix, the norms' names as ever
    if name == "guard":
        assert None not in (one["state"]["compensator"]["switched_on"], state["compensator"]["switched_on"])


@pytest.mark.slow
def test_processes_that_differ_are_named(together):
    one, other = loops.left(together, "disagreement")
    for message in (one, other):
        assert message.startswith("step 7: process 1 of 2 differs from process 0 in discriminator; nothing was saved.")


@pytest.mark.slow
def test_the_main_process_alone_reads_samples_and_all_say_the_same(together):
    main_process, other = loops.left(together, "sampling")
    assert main_process["calls"] == 4  # at 0, 500, 1000 and 1500
    assert main_process["verdicts"][-1]["coverage"]["state"] == "healthy"
    assert main_process["verdicts"][-1]["signal"]["state"] == "teaching"
    # Scores that call the wrapper, in this process alone, wait for no other.
    assert main_process["called"]["signal"]["state"] == "teaching"
    assert main_process["is whole"]
    assert main_process["missing"] < 0.3  # the other's samples are zeros alone
    assert main_process["errors"] == ["ValueError: no samples", "TornError: no: samples"]
    torn = "MainFailedError: the main process failed: TornError: no: samples"
    assert other.pop("errors") == ["ValueError: no samples", torn]
    assert main_process.pop("has meter")
    assert not other.pop("has meter")
    assert (other.pop("calls"), main_process.pop("calls")) == (0, 4)
    del main_process["errors"]
    assert_same_value(main_process, other)


def test_a_batch_that_cannot_be_divided_is_refused():
    settings = Settings(training=TrainingConfig(batch_size=9))
    with pytest.raises(ValueError, match=r"batch_size 9 cannot be divided among 2 processes: .* give --batch-size 8"):
        check_shares(settings, Processes(0, 2))
    check_shares(settings, Processes(0, 3))


def test_shares_are_contiguous_and_whole():
    batch = torch.arange(12).view(6, 2)
    assert torch.equal(torch.cat([Processes(rank, 3).share(batch) for rank in range(3)]), batch)
    assert ALONE.share(batch) is batch


def test_a_job_that_does_not_say_where_its_processes_are_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    assert main(["train", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "specreg: error: WORLD_SIZE says that there are 2 processes, and not where (RANK, MASTER_PORT not set): "
        "start them with torchrun or accelerate launch, or unset WORLD_SIZE\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["compare", "sweep", "evaluate", "sample", "report", "inspect", "watch"])
def test_other_commands_are_refused_in_several_processes(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, prefix in (("0", ""), ("1", "process 1: ")):
        monkeypatch.setenv("RANK", rank)
        assert main([command, *(["x"] if command in ("inspect", "report", "watch") else [])]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{prefix}specreg: error: {command} is for one process, this is one of 2: ")
        assert error.count("\n") == 1


def member(rank: int, port: int, out: Path, options: tuple[str, ...]) -> int:
    os.environ |= loops.variables(rank, 2, port)
    return main(["train", "--quiet", "--out", str(out), *options])


def two(out: Path, *options: str) -> list[Fork]:
    """Start a run by two processes without a launcher, which would end one for the other."""
    port = loops.free_port()
    return [Fork(out.parent / f"process{rank}.txt", member, rank, port, out, options) for rank in range(2)]


def torchrun(out: Path, *options: str, restarts: int = 0) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command = [sys.executable, *launcher, "-m", "specreg", "train", "--quiet", "--out", str(out), *options]
    alone = {"CUDA_VISIBLE_DEVICES": ""}  # gloo, wherever this is run
    return subprocess.Popen(command, env=environment() | alone, stderr=subprocess.PIPE, text=True)


@pytest.mark.soak
def test_accelerate_launch_sets_the_variables_that_join_reads(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys\nfrom specreg.processes import join\nprocesses = join()\n"
        "pathlib.Path(sys.argv[1], os.environ['RANK']).write_text("
        "f'{processes.rank} of {processes.count}, {processes.any(processes.rank == 1)}')\nprocesses.leave()\n"
    )
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, *launcher, str(script), str(tmp_path)]
    subprocess.run(command, env=environment() | {"CUDA_VISIBLE_DEVICES": ""}, check=True)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["0 of 2, True", "1 of 2, True"]


def test_each_process_has_the_gpu_of_its_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"LOCAL_RANK is '2', and this machine has 2 GPU\(s\): start one process for"):
        local_device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert local_device() == torch.device("cpu")


def worker(job: subprocess.Popen, rank: int) -> int:
    """Return the number of the system's process that has a rank in a job."""
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = dict(
                one.partition("=")[::2] for one in status.read_bytes().decode(errors="replace").split("\0")
            )
            parent = int(status.with_name("stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == job.pid and variables.get("RANK") == str(rank):
            return int(status.parent.name)
    raise AssertionError(f"no process has rank {rank}")


def assert_whole(out: Path, processes: int) -> None:
    run = RunDirectory(out)
    assert run.complete
    assert [record["step"] for record in run.series("metrics")] == list(range(1, 25))
    assert [record["step"] for record in run.series("spectra")] == list(range(0, 25, 2))
    assert [record["step"] for record in run.series("evaluations")] == [6, 12, 18, 24]
    assert json.loads((out / "environment.json").read_text())["processes"] == processes


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_the_run_goes_on_alone(tmp_path):
    out = tmp_path / "run"
    main_process, other = two(out, *OPTIONS)
    wait_for(main_process, out, 9)
    kill(other)
    code, said = main_process.finish()
    assert code == 4
    (line,) = [line for line in said.splitlines() if line.startswith("specreg: error")]
    assert line.startswith("specreg: error: another process of this job has ended (")
    assert line.endswith("; the same command again goes on from the last checkpoint")
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] >= 8
    assert not RunDirectory(out).complete
    assert train(out)[0] == 0  # by one process now
    assert_whole(out, 1)


@pytest.mark.soak
def test_torchrun_restarts_a_job_whose_main_process_was_killed(tmp_path):
    out = tmp_path / "run"
    job = torchrun(out, *OPTIONS, restarts=1)
    wait_for(job, out, 9)
    os.kill(worker(job, 0), signal.SIGKILL)
    errors = job.communicate()[1]
    assert job.returncode == 0, errors
    assert_whole(out, 2)


@pytest.mark.slow
def test_a_stop_that_reaches_one_process_stops_all_at_one_step(tmp_path):
    out = tmp_path / "run"
    main_process, other = two(out, *OPTIONS, "--checkpoint-every", "100000", "--steps", "100000")
    wait_for(main_process, out, 3)
    other.send_signal(signal.SIGTERM)
    (code, said), (other_code, other_said) = main_process.finish(), other.finish()
    assert (code, other_code) == (130, 130)
    assert (said + other_said).count("specreg: stopped; the same command again goes on") == 1
    assert "specreg: error" not in said + other_said
    step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert step == RunDirectory(out).series("metrics")[-1]["step"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "9"], "batch_size 9 cannot be divided among 2 processes: "),
        # Only the main process looks for these.
        (["--features", "inception", "--inception-weights", "nowhere.pth"], "Inception features need "),
    ],
)
def test_bad_input_under_torchrun_is_said_once_and_trains_nothing(options, said, tmp_path):
    out = tmp_path / "run"
    job = torchrun(out, *OPTIONS, *options)
    errors = job.communicate()[1]
    assert job.returncode != 0
    (line,) = [line for line in errors.splitlines() if "specreg: error" in line]
    assert line.startswith("specreg: error: ")
    assert said in line
    assert not list(out.glob("*.jsonl")) + list(out.glob("*.pt"))
