"""Writers: what they write is what the monitor saw, nothing twice, and a missing package is named with its remedy."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from meters import Meter
from specreg.monitor import writers
from specreg.monitor.detector import Detector, Thresholds
from specreg.monitor.monitor import Monitor
from specreg.monitor.writers import JsonlWriter, ScalarWriter, TensorBoardWriter, heat_map, scalars, tracker

SPECTRUM = [2.0, 1.0, 0.5, 0.25]


def set_spectrum(layer: nn.Module, values: list[float]) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor(values)))


@pytest.fixture
def module() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    set_spectrum(module[0], SPECTRUM)
    nn.init.constant_(module[1].weight, 1.5)
    return module


@pytest.fixture
def monitor(module) -> Monitor:
    return Monitor(module, every=10, detector=Detector(Thresholds(warmup=0)))


def collapse(monitor: Monitor, begin: int, end: int) -> None:
    """Snapshots of a steady layer, then of a collapsed one."""
    for iteration in range(begin, end, 10):
        if iteration == (begin + end) // 2:
            set_spectrum(monitor.module[0], [2.0, 0.1, 0.1, 0.1])
        monitor.step(iteration)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scalars_are_the_closed_forms(monitor):
    verdict = monitor.step(0)
    p = np.array(SPECTRUM) / sum(SPECTRUM)
    assert scalars(monitor.latest, verdict) == pytest.approx(
        {
            "spectral_state": 1.0,  # steady
            "spectral_s1/0": 2.0,
            "spectral_bulk/0": 0.5,
            "spectral_effective_rank/0": np.exp(-(p * np.log(p)).sum()) / 4,
            "spectral_stable_rank/0": 1 + 1 / 4 + 1 / 16 + 1 / 64,
            "spectral_tail/0": 1 / 8,
            "spectral_s1/1": 3.0,  # one singular value has no distribution
        }
    )


def test_scalars_of_groups_are_their_mean_and_a_lone_layer_has_a_name():
    convolution = nn.Conv1d(4, 4, 1, groups=2)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[4.0, 0], [0, 1], [2, 0], [0, 1]]).unsqueeze(-1))
    monitor = Monitor(convolution)
    verdict = monitor.step(0)
    numbers = scalars(monitor.latest, verdict)
    assert numbers["spectral_s1/module"] == pytest.approx(3.0)
    assert numbers["spectral_tail/module"] == pytest.approx((1 / 4 + 1 / 2) / 2)


def test_jsonl_holds_every_snapshot(monitor, tmp_path):
    path = tmp_path / "spectra.jsonl"
    monitor.actions.append(JsonlWriter(monitor, path))
    collapse(monitor, 0, 100)
    written = lines(path)
    assert [line["iteration"] for line in written] == list(range(0, 100, 10))
    assert written[0]["singular_values"] == {"0": SPECTRUM, "1": [3.0]}
    assert written[-1]["singular_values"]["0"] == [2.0, 0.1, 0.1, 0.1]  # 0.1 in float32 has six digits of 0.1 only
    assert written[-1]["verdict"] == monitor.verdict.to_dict()
    assert written[-1]["verdict"]["state"] == "collapsed"
    assert written[-1]["verdict"]["layers"] == list(written[-1]["verdict"]["evidence"]) == ["0"]


def test_jsonl_of_a_monitor_that_loads_an_older_state_has_no_iteration_twice(monitor, tmp_path):
    path, begin = tmp_path / "spectra.jsonl", monitor.state_dict()
    monitor.actions.append(JsonlWriter(monitor, path))
    monitor.step(0)
    state = monitor.state_dict()
    for iteration in (10, 20):
        monitor.step(iteration)
    monitor.load_state_dict(state)
    for iteration in (10, 20, 30):
        monitor.step(iteration)
    assert [line["iteration"] for line in lines(path)] == [0, 10, 20, 30]
    monitor.load_state_dict(begin)
    monitor.step(0)
    assert [line["iteration"] for line in lines(path)] == [0]


def test_samples_that_are_read_after_a_resume_leave_the_spectra_of_their_line(module, tmp_path):
    path, samples = tmp_path / "spectra.jsonl", lambda: (torch.randn(200, 4), torch.randn(200, 4))
    monitor = Monitor(module, every=10, samples=samples, samples_every=100)
    monitor.actions.append(JsonlWriter(monitor, path))
    for iteration in (0, 10):
        monitor.step(iteration)
    before = lines(path)
    resumed = Monitor(module, every=10, samples=samples, samples_every=100)
    resumed.load_state_dict(monitor.state_dict())
    resumed.actions.append(JsonlWriter(resumed, path))
    resumed.snapshot(10)
    assert [line["singular_values"] for line in lines(path)] == [line["singular_values"] for line in before]
    assert "reading" in lines(path)[-1]


def test_a_reading_after_a_step_leaves_the_change_in_its_line(module, tmp_path):
    pair = lambda: (torch.randn(200, 4), torch.randn(200, 4))  # noqa: E731
    detector = Detector(Thresholds(warmup=0))
    monitor = Monitor(module, every=10, samples=pair, samples_every=10**6, coverage=Meter(0.05), detector=detector)
    monitor.actions.append(JsonlWriter(monitor, tmp_path / "spectra.jsonl"))
    set_spectrum(module[0], [2.0, 1.9, 1.9, 1.9])
    changed = False
    for iteration in range(0, 200, 10):
        if iteration == 50:
            set_spectrum(module[0], [2.0, 0.1, 0.1, 0.1])
        if changed := monitor.step(iteration).changed and iteration:
            break
    assert changed
    monitor.snapshot(iteration)
    assert lines(tmp_path / "spectra.jsonl")[-1]["verdict"]["changed"]


def test_jsonl_of_a_resumed_training_has_no_iteration_twice(module, monitor, tmp_path):
    path = tmp_path / "spectra.jsonl"
    monitor.actions.append(JsonlWriter(monitor, path))
    for iteration in range(0, 50, 10):
        if iteration == 30:
            state = monitor.state_dict()  # the checkpoint is older than the file's last lines
        monitor.step(iteration)
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"iteration": 50, "singu')
    before = path.read_text(encoding="utf-8").splitlines()[:3]
    resumed = Monitor(module, every=10, detector=Detector(Thresholds(warmup=0)))
    resumed.load_state_dict(state)
    resumed.actions.append(JsonlWriter(resumed, path))
    assert path.read_text(encoding="utf-8").splitlines()[:3] == before  # nothing is lost before a snapshot is there
    for iteration in range(30, 71):
        resumed.step(iteration)
    assert path.read_text(encoding="utf-8").splitlines()[:3] == before
    assert [line["iteration"] for line in lines(path)] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert list(tmp_path.iterdir()) == [path]


def test_jsonl_of_a_training_whose_last_line_lost_its_end_goes_on_behind_it(module, monitor, tmp_path):
    path = tmp_path / "spectra.jsonl"
    monitor.actions.append(JsonlWriter(monitor, path))
    monitor.step(0)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    resumed = Monitor(module, every=10)
    resumed.load_state_dict(monitor.state_dict())
    resumed.actions.append(JsonlWriter(resumed, path))
    resumed.step(10)
    assert [line["iteration"] for line in lines(path)] == [0, 10]


@pytest.mark.parametrize("kind", ["the same seed", "another seed", "other layers", "no lines", "later lines"])
def test_jsonl_of_another_training_is_refused_and_left_as_it_is(module, monitor, tmp_path, kind):
    path = tmp_path / "spectra.jsonl"
    monitor.actions.append(JsonlWriter(monitor, path))
    for iteration in range(100 * (kind == "later lines"), 200, 10):
        set_spectrum(module[0], [2.0, 1.0, 0.5, 0.25 if iteration == 0 else 0.2])
        monitor.step(iteration)
    if kind == "no lines":
        path.write_text("a user's notes\n", encoding="utf-8")
    before = path.read_bytes()
    if kind == "another seed":
        set_spectrum(module[0], [2.0, 1.0, 0.5, 0.1])
    other = Monitor(module[0] if kind == "other layers" else module, every=10)
    other.actions.append(JsonlWriter(other, path))
    with pytest.raises(
        ValueError, match=r"spectra\.jsonl holds lines of another training: name another file, or remove"
    ):
        other.step(20)
    # One that has a past of its own, which is not that of the file, though it began alike.
    set_spectrum(module[0], SPECTRUM)
    own = Monitor(module, every=10)
    for iteration in (0, 10, 20):
        own.step(iteration)
    resumed = Monitor(module, every=10)
    resumed.load_state_dict(own.state_dict())
    resumed.actions.append(JsonlWriter(resumed, path))
    with pytest.raises(ValueError, match="holds lines of another training"):
        resumed.step(30)
    assert path.read_bytes() == before
    path.write_bytes(b"")
    own.actions.append(JsonlWriter(own, path))
    own.step(30)
    assert [line["iteration"] for line in lines(path)] == [30]


def test_jsonl_of_a_long_resumed_training_goes_on_though_its_history_is_thinned(monitor, tmp_path):
    path = tmp_path / "spectra.jsonl"
    monitor.history.limit = 8
    monitor.actions.append(JsonlWriter(monitor, path))
    for iteration in range(0, 300, 10):
        set_spectrum(monitor.module[0], [1.23456789e-3, 1e-3 / (1 + iteration), 1e-9, 1e-12])
        monitor.step(iteration)
    resumed = Monitor(monitor.module, every=10)
    resumed.load_state_dict(monitor.state_dict())
    resumed.actions.append(JsonlWriter(resumed, path))
    resumed.step(300)
    assert [line["iteration"] for line in lines(path)] == list(range(0, 310, 10))


def test_several_groups_are_written_down(tmp_path):
    module = nn.ModuleDict({name: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for name in ("D", "G")})
    module["head"] = nn.Linear(4, 4)
    for network in module.values():
        for layer in network if isinstance(network, nn.Sequential) else [network]:
            set_spectrum(layer, SPECTRUM)
    monitor = Monitor(module, every=10, detector=Detector(Thresholds(warmup=0)))
    monitor.actions.append(JsonlWriter(monitor, tmp_path / "spectra.jsonl"))
    for iteration in range(0, 100, 10):
        if iteration == 50:
            set_spectrum(module["G"][1], [2.0, 0.1, 0.1, 0.1])
        monitor.step(iteration)
    numbers = scalars(monitor.latest, monitor.verdict)
    states = {name: number for name, number in numbers.items() if "state" in name}
    assert states == {
        "spectral_state": 4.0, "spectral_group_state/D": 1.0, "spectral_group_state/G": 4.0,
        "spectral_group_state/others": 1.0,
    }  # fmt: skip
    verdict = lines(tmp_path / "spectra.jsonl")[-1]["verdict"]
    assert {name: group["state"] for name, group in verdict["groups"].items()} == {
        "D": "steady",
        "G": "collapsed",
        "": "steady",
    }
    assert verdict["message"].startswith("collapsed in G since iteration 40")


def test_every_writer_has_what_is_missing_and_the_three_states(module, tmp_path):
    few = torch.linspace(-1, 1, 128).reshape(32, 4)
    monitor = Monitor(
        module, every=100, samples=lambda: (few, few + 1), samples_every=200, coverage=Meter(*[0.05] * 5, 0.7)
    )
    logged: list[tuple[dict[str, float], int]] = []
    board = TensorBoardWriter(monitor, tmp_path / "board", images_every=0)
    monitor.actions += [
        ScalarWriter(monitor, lambda numbers, step: logged.append((numbers, step))),
        JsonlWriter(monitor, tmp_path / "spectra.jsonl"),
        board,
    ]
    for iteration in range(0, 2001, 100):
        monitor.step(iteration)
    board.close()
    told = {step: numbers for numbers, step in logged}
    written, events = lines(tmp_path / "spectra.jsonl"), read_events(tmp_path / "board")
    reading = {"missing": 0.7, "lost": 0.7, "far": 0.0, "floor": 0.04}
    readings = list(range(0, 2001, 200))
    assert {f"coverage_{name}": value for name, value in reading.items()}.items() <= told[2000].items()
    assert [step for step, numbers in told.items() if "coverage_missing" in numbers] == readings
    assert [told[step]["coverage_state"] for step in (0, 400, 800, 2000)] == [1, 1, 1, 5]
    assert {(numbers["spectral_state"], numbers["signal_state"]) for numbers in told.values()} == {(0, 0)}
    assert [line["iteration"] for line in written if "reading" in line] == readings
    assert written[-1]["reading"] == reading
    answers = {name: written[-1]["verdict"][name]["state"] for name in ("spectra", "coverage", "signal")}
    assert answers == {"spectra": "not judged", "coverage": "lost", "signal": "teaching"}
    for name, value in told[2000].items():
        assert events.Scalars(name)[-1].value == pytest.approx(value)
    assert [one.step for one in events.Scalars("coverage_lost")] == readings


def read_events(folder) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def test_tensorboard_reads_the_numbers_the_message_and_the_pictures_back(monitor, tmp_path):
    writer = TensorBoardWriter(monitor, tmp_path, images_every=4)
    monitor.actions.append(writer)
    collapse(monitor, 0, 100)
    events = read_events(tmp_path)  # before it is closed: every snapshot is flushed
    writer.close()
    bulk = events.Scalars("spectral_bulk/0")
    assert [one.step for one in bulk] == list(range(0, 100, 10))
    assert [one.value for one in bulk] == pytest.approx([0.5] * 5 + [0.05] * 5)
    assert [one.value for one in events.Scalars("spectral_state")][::9] == [1.0, 4.0]
    messages = [one.tensor_proto.string_val[0].decode() for one in events.Tensors("spectral_state/text_summary")]
    assert len(messages) == 1  # the fall is as deep as fast: the state changed once
    assert messages[0].startswith("collapsed since iteration 40")
    assert events.Tags()["images"] == ["spectrum/0"]  # the other layer has one singular value
    assert [one.step for one in events.Images("spectrum/0")] == [30, 70]
    assert (events.Images("spectrum/0")[1].width, events.Images("spectrum/0")[1].height) == (256, 256)


def test_pictures_come_whatever_the_steps_of_the_loop_are(monitor, tmp_path):
    writer = TensorBoardWriter(monitor, tmp_path, images_every=4)
    monitor.actions.append(writer)
    for iteration in range(0, 200, 20):
        monitor.step(iteration)
    assert [image.step for image in read_events(tmp_path).Images("spectrum/0")] == [40, 80, 120, 160]
    writer.close()
    every = TensorBoardWriter(monitor, tmp_path / "every", images_every=1)
    monitor.actions[:] = [every]
    for iteration in (200, 203):
        monitor.snapshot(iteration)
    assert [image.step for image in read_events(tmp_path / "every").Images("spectrum/0")] == [200, 203]
    every.close()


def test_tensorboard_of_a_resumed_training_has_its_images_where_it_would_have_had_them(monitor, tmp_path):
    for folder, iterations in (("first", range(0, 20, 10)), ("second", range(20, 100, 10))):
        writer = TensorBoardWriter(monitor, tmp_path / folder, images_every=4)
        monitor.actions[:] = [writer]
        for iteration in iterations:
            monitor.step(iteration)
        writer.close()
    assert [image.step for image in read_events(tmp_path / "second").Images("spectrum/0")] == [30, 70]


@pytest.mark.parametrize("steps", [[0], [0, 100]], ids=["the first", "a later"])
def test_samples_that_are_read_after_a_snapshot_leave_nothing_twice(module, tmp_path, steps):
    few = torch.linspace(-1, 1, 400).reshape(100, 4)
    samples = lambda: (few, few + 1)  # noqa: E731
    monitor = Monitor(module, every=100, samples=samples, samples_every=1000, coverage=Meter(0.05, 0.7))
    path, board = tmp_path / "spectra.jsonl", TensorBoardWriter(monitor, tmp_path / "board", images_every=1)
    monitor.actions += [JsonlWriter(monitor, path), board]
    for iteration in steps:
        monitor.step(iteration)
    monitor.sampled = -1  # as if no samples had been due at that step
    monitor.snapshot(steps[-1])
    monitor.step(200)
    board.close()
    written, events = lines(path), read_events(tmp_path / "board")
    assert [line["iteration"] for line in written] == [*steps, 200]
    assert written[-2]["reading"]["missing"] == 0.7
    assert [event.step for event in events.Scalars("spectral_s1/0")] == [*steps, 200]
    assert [event.step for event in events.Images("spectrum/0")] == [*steps, 200]
    assert [event.value for event in events.Scalars("coverage_missing")][-1] == pytest.approx(0.7)


def test_jsonl_begins_anew_where_its_file_was_moved_away_before_the_samples(module, tmp_path):
    samples = lambda: (torch.ones(100, 4), torch.ones(100, 4))  # noqa: E731
    monitor = Monitor(module, every=1, samples=samples, samples_every=1000, coverage=Meter(0.05, 0.7))
    path = tmp_path / "spectra.jsonl"
    monitor.actions.append(JsonlWriter(monitor, path))
    monitor.step(1)
    monitor.step(2)
    path.rename(tmp_path / "older.jsonl")
    monitor.snapshot(2)
    assert [line["iteration"] for line in lines(path)] == [2]


def test_tensorboard_of_a_resumed_training_has_no_iteration_twice(module, tmp_path):
    for begin, end in ((0, 50), (30, 70)):
        for file in tmp_path.iterdir():  # TensorBoard reads files in the order of their names, which count seconds
            file.rename(tmp_path / "events.out.tfevents.0")
        monitor = Monitor(module, every=10)
        writer = TensorBoardWriter(monitor, tmp_path, images_every=0)
        monitor.actions.append(writer)
        for iteration in range(begin, end, 10):
            monitor.step(iteration)
        writer.close()
    assert [one.step for one in read_events(tmp_path).Scalars("spectral_s1/0")] == [0, 10, 20, 30, 40, 50, 60]


def test_tensorboard_of_a_monitor_that_loads_an_older_state_has_no_iteration_twice(monitor, tmp_path):
    writer = TensorBoardWriter(monitor, tmp_path)
    monitor.actions.append(writer)
    monitor.step(0)
    state = monitor.state_dict()
    for iteration in (10, 20):
        monitor.step(iteration)
    monitor.load_state_dict(state)
    for file in tmp_path.iterdir():  # TensorBoard reads files in the order of their names, which count seconds
        file.rename(tmp_path / "events.out.tfevents.0")
    for iteration in (10, 20):
        monitor.step(iteration)
    state = monitor.state_dict()
    monitor.step(30)
    renamed = [f"events.out.tfevents.{number}" for number in range(3)]
    for name in ("1", "2"):
        (newest,) = (file for file in tmp_path.iterdir() if file.name not in renamed)
        newest.rename(tmp_path / f"events.out.tfevents.{name}")
        if name == "1":
            monitor.load_state_dict(state)
            set_spectrum(monitor.module[0], [4.0, 1.0, 0.5, 0.25])
            monitor.step(30)
    writer.close()
    events = read_events(tmp_path)
    assert [one.step for one in events.Scalars("spectral_bulk/0")] == [0, 10, 20, 30]
    assert [one.value for one in events.Scalars("spectral_s1/0")] == [2.0, 2.0, 2.0, 4.0]


def test_tensorboard_says_that_a_folder_holds_another_training(module, monitor, tmp_path, caplog):
    for index, state in enumerate((None, None, monitor)):
        each = Monitor(module, every=10)
        if state is not None:
            monitor.step(0)
            each.load_state_dict(monitor.state_dict())
        writer = TensorBoardWriter(each, tmp_path, images_every=0)
        each.actions.append(writer)
        each.step(10)
        writer.close()
        assert len(caplog.messages) == min(index, 1)
    assert "holds entries already: those from iteration 10 on are hidden" in caplog.text


def test_tensorboard_writes_to_the_trainings_own_writer_and_leaves_it_open(monitor, tmp_path):
    with SummaryWriter(str(tmp_path)) as own:
        writer = TensorBoardWriter(monitor, own)
        monitor.actions.append(writer)
        monitor.step(5)
        writer.close()
        own.add_scalar("loss", 1.0, 5)
    assert {"loss", "spectral_tail/0"} <= set(read_events(tmp_path).Tags()["scalars"])


def test_heat_map_goes_right_with_time_and_down_with_k():
    picture = heat_map(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert picture.shape == (256, 256, 3)
    yellow, dark = list(writers._COLOURS[-1]), list(writers._COLOURS[0])
    corners = {"first s1": picture[0, 0], "first s2": picture[-1, 0], "last s1": picture[0, -1], "s2": picture[-1, -1]}
    assert [list(corner) for corner in corners.values()] == [yellow, dark, yellow, yellow]
    half = heat_map(torch.tensor([[[2.0, 2.0], [2.0, 0.0]]]))  # of two groups the mean
    assert list(half[-1, 0]) == list(writers._COLOURS[2])


def test_heat_map_of_a_large_layer_keeps_its_ends():
    values = torch.ones(300, 1000)
    values[:, -1] = 0
    picture = heat_map(values)
    assert picture.shape == (256, 256, 3)
    assert (picture[-1] == writers._COLOURS[0]).all()
    assert (picture[-2] == writers._COLOURS[-1]).all()


@pytest.mark.parametrize(("name", "verb"), [("wandb", "log"), ("trackio", "log"), ("mlflow", "log_metrics")])
def test_the_adapter_logs_the_numbers_at_their_step(monitor, monkeypatch, name, verb):
    logged = []
    fake = SimpleNamespace(**{verb: None})
    monkeypatch.setitem(sys.modules, name, fake)
    monitor.actions.append(ScalarWriter(monitor, tracker(name)))
    setattr(fake, verb, lambda values, step: logged.append((values, step)))  # as wandb.init does, after the import
    monitor.step(20)
    monitor.step(25)  # not due
    verdict = monitor.step(30)
    assert [step for _, step in logged] == [20, 30]
    assert logged[-1][0] == scalars(monitor.latest, verdict)
    assert all(type(value) is float for value in logged[-1][0].values())


@pytest.mark.parametrize(
    ("make", "package"),
    [(lambda monitor: tracker("wandb"), "wandb"), (lambda monitor: TensorBoardWriter(monitor, "runs"), "tensorboard")],
)
def test_a_missing_package_is_named_with_its_remedy(monitor, monkeypatch, make, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package or name.startswith("torch.utils.tenso")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    with pytest.raises(ValueError, match=f"needs the package {package}: pip install {package}"):
        make(monitor)
