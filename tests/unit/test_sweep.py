"""Presets, and the grid of runs that a sweep makes of one."""

import dataclasses
import errno
import fcntl
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from specreg.cli import main
from specreg.display import _progress, metrics
from specreg.experiments import cluster
from specreg.experiments import jobs as processes
from specreg.experiments.config import DataConfig, ModelConfig, RunConfig, Settings
from specreg.experiments.interrupts import interruptible
from specreg.experiments.jobs import end, execute_all, threads_of_each
from specreg.experiments.methods import DynamicOptions, MethodOptions
from specreg.experiments.presets import PRESETS, Cell, choose
from specreg.experiments.run import prepare_run, saved_config
from specreg.experiments.sweep import COMPARISON, Plan, cost, lay_out, saved_settings
from specreg.files import write_json, write_text
from specreg.options import Sweep, parse
from specreg.records import RunDirectory
from specreg.training.loop import TrainingConfig
from sweeps import tiny

# Liu et al. 2019, table 2, as its rows are named: batch and discriminator's channels.
PAPER = [
    *("A16-128", "A32-128", "A64-128", "A128-128", "A256-128", "A512-128", "A1024-128"),
    *("B8-64", "B16-64", "B32-64", "B64-64", "B128-64", "B256-64"),
    *("C8-32", "C16-32", "C32-32", "C64-32", "C128-32"),
    *("D128-256", "D256-256", "D512-256"),
    *("E16-128", "E64-128", "E256-128", "E256-64", "E256-32"),
]


def plan_of(cells: list[Cell], *, methods=(), seeds=(0,), preset="test") -> Plan:
    return Plan(preset, [replace(cell, methods=methods or cell.methods) for cell in cells], seeds)


def test_the_papers_settings_are_the_papers():
    cells = PRESETS["paper"].cells
    assert [cell.name for cell in cells] == PAPER
    for cell in cells:
        letter, batch, channels = re.fullmatch(r"([A-E])(\d+)-(\d+)", cell.name).groups()
        settings, training = cell.settings, cell.settings.training
        assert (training.batch_size, settings.model.d_channels) == (int(batch), int(channels))
        part = ("unlabeled", 48) if letter == "E" else ("train", 32)
        assert (settings.data.data_split, settings.data.image_size) == part
        assert cell.methods == ("sn", "static", "dynamic")
        assert (settings.model.g_channels, settings.model.latent) == (256, 128)
        assert (training.steps, training.d_steps, training.lr_decay, training.loss) == (50_000, 5, "linear", "hinge")
        assert (training.d_lr, training.g_lr, training.beta1, training.beta2) == (2e-4, 2e-4, 0.0, 0.9)
        assert (training.generator_batch, training.accumulate) == (2, 1)
        assert (settings.methods.static.keep, settings.methods.static.every) == (0.5, 5)
        assert (settings.methods.dynamic.start, settings.methods.dynamic.every) == (0, 5)


def test_the_other_presets():
    for cell, batch in zip(PRESETS["imagenet"].cells, (512, 2048), strict=True):
        training = cell.settings.training
        assert cell.name == f"{batch}-64"
        assert training.batch_size * training.accumulate == batch
        assert (training.g_lr, training.d_lr, training.beta1, training.beta2) == (1e-4, 4e-4, 0.0, 0.999)
        assert (training.d_steps, cell.settings.model.d_channels, cell.settings.data.image_size) == (1, 64, 128)
        assert cell.settings.data.conditional
    (conditional,) = PRESETS["cifar10-conditional"].cells
    assert conditional.settings.data == DataConfig(data="", image_size=32, conditional=True)
    reduced = choose(PRESETS["sttp"].cells, ["C64-32"])[0].settings
    assert (reduced.training.steps, reduced.training.batch_size, reduced.model.d_channels) == (100_000, 64, 32)
    assert (reduced.training.generator_batch, reduced.methods.dynamic) == (1, DynamicOptions(start=0, scale="unit"))
    # Its papers know no SR: it is the library's own, whose scale loses no training as the authors' did in C8-32.
    assert all(cell.settings.methods == MethodOptions() for cell in PRESETS["stacked-mnist"].cells)
    assert [cell.settings for cell in PRESETS["digits"].cells] == [Settings()]
    cells = [cell.settings for cell in PRESETS["digits-grid"].cells]
    grid = {(settings.model.d_channels, settings.training.batch_size) for settings in cells}
    assert grid == {(channels, batch) for channels in (4, 8, 16) for batch in (8, 16, 32)}
    assert PRESETS["digits-grid"].seeds == (0, 1, 2)
    studied = [(cell.name, cell.methods, cell.settings.methods.static.keep) for cell in PRESETS["keep"].cells]
    assert studied == [
        ("i=1", ("sn",), 0.5), ("i=0.25r", ("static",), 0.25), ("i=0.5r", ("static",), 0.5),
        ("i=0.75r", ("static",), 0.75), ("i=r", ("static",), 1.0),
    ]  # fmt: skip
    (shown,) = PRESETS["demo"].cells
    training = shown.settings.training
    assert (PRESETS["demo"].seeds, shown.methods) == ((0, 1, 2, 3, 4), ("sn", "static"))
    assert (training.steps, training.batch_size, training.d_lr, training.g_lr) == (1500, 100, 1e-3, 1e-3)
    for preset in PRESETS.values():
        assert "Deviations from" in preset.about
        assert len({cell.name for cell in preset.cells}) == len(preset.cells)
        assert cost(preset.cells[0]).multiply_adds > 0


def test_steps_of_a_sweep_grow_with_all_of_its_runs(tmp_path):
    (cell,), (longer,) = tiny(), tiny(steps=9)
    for job in lay_out(tmp_path, plan_of([cell], methods=("sn", "static"), seeds=[0])):
        job.run.write("result", {})
        job.run.checkpoint.touch()
    before = (tmp_path / "sweep.json").read_text()
    with pytest.raises(ValueError, match="holds static-seed0, too, to be compared after as many steps"):
        lay_out(tmp_path, plan_of([longer], methods=("sn",), seeds=[0]))
    assert (tmp_path / "sweep.json").read_text() == before
    jobs = lay_out(tmp_path, plan_of([longer], methods=("sn", "static"), seeds=[0]))
    assert [(job.state, saved_config(job.run).settings.training.steps) for job in jobs] == [("waiting", 9)] * 2
    with pytest.raises(ValueError, match=r"with other settings \(steps 9 -> 4: steps can only grow\)"):
        lay_out(tmp_path, plan_of([cell], methods=("sn", "static"), seeds=[0]))


def test_data_that_have_moved_are_the_same_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("real.npz", images=np.zeros((20, 8, 8), np.uint8))
    (cell,) = tiny()

    def lay(path, *methods):
        settings = replace(cell.settings, data=DataConfig(data=path))
        (job,) = lay_out(tmp_path / "out", plan_of([replace(cell, settings=settings)], methods=methods))
        return job

    job = lay("real.npz", "sn")
    job.run.write("result", {})
    assert lay("./real.npz", "sn").state == "done"
    here = str(tmp_path / "real.npz")
    assert lay(here, "sn").state == "done"
    shutil.copy("real.npz", "moved.npz")
    with pytest.raises(ValueError, match=r"with other settings \(data '.*real.npz' -> 'moved.npz'\)"):
        lay("moved.npz", "sn")
    Path("real.npz").unlink()
    job.run.write("environment", {"images": 21})
    job.run.checkpoint.touch()
    with pytest.raises(ValueError, match="sn-seed0 was trained on 21 images, and its data have 20 now"):
        lay("moved.npz", "static")
    job.run.write("environment", {"images": 20})
    assert lay("moved.npz", "static").state == "waiting"
    assert lay("moved.npz", "sn").state == "done"
    assert saved_config(job.run).settings.data.data == "moved.npz"


def test_the_folder_of_the_images_is_none_for_runs(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.new("L", (8, 8)).save(folder / f"{index}.png")
    (cell,) = tiny()
    plan = plan_of([replace(cell, settings=replace(cell.settings, data=DataConfig(data=str(folder))))])
    with pytest.raises(ValueError, match="holds the images that are trained on: give another folder, or one within it"):
        lay_out(tmp_path / "images", plan)
    assert len(list(folder.iterdir())) == 3
    assert lay_out(folder / "runs", plan)


def test_a_complete_run_whose_checkpoints_are_gone_is_not_made_anew_in_silence(tmp_path):
    (cell,), (longer,) = tiny(), tiny(steps=9)
    (job,) = lay_out(tmp_path, plan_of([cell], methods=("sn",), seeds=[0]))
    job.run.write("result", {})
    with pytest.raises(ValueError, match="sn-seed0 has no checkpoint to go on from: restore one, or train anew"):
        lay_out(tmp_path, plan_of([longer], methods=("sn",), seeds=[0]))
    assert job.run.complete


def test_a_run_that_does_not_fit_is_found_before_the_others_are_changed(tmp_path):
    (cell,), (longer,), (longest,) = tiny(), tiny(steps=9), tiny(steps=12)
    for job in lay_out(tmp_path, plan_of([cell], methods=("sn", "static"), seeds=[0])):
        job.run.write("result", {})
        job.run.checkpoint.touch()
    prepare_run(RunConfig("static", 0, longest.settings), RunDirectory(tmp_path / cell.name / "static-seed0"))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="steps 12 -> 9: steps can only grow"):
        lay_out(tmp_path, plan_of([longer], methods=("sn", "static"), seeds=[0]))
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_run_that_is_being_written_is_found_before_the_others_are_changed(tmp_path):
    (cell,), (longer,) = tiny(), tiny(steps=9)
    for job in lay_out(tmp_path, plan_of([cell], methods=("sn", "static"), seeds=[0])):
        job.run.write("result", {})
        job.run.checkpoint.touch()
    runs = [tmp_path / cell.name / f"{method}-seed0" for method in ("sn", "static")]
    with RunDirectory(runs[1]).lock():
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        with pytest.raises(ValueError, match="is being written by"):
            lay_out(tmp_path, plan_of([longer], methods=("sn", "static"), seeds=[0]))
        assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_runs_process_takes_no_module_from_the_folder_it_is_started_in_and_its_own_threads(tmp_path, monkeypatch):
    (tmp_path / "tyro.py").write_text("raise SystemExit(7)")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    write_json(run.path / "sweep.json", {})  # so that it is refused at once
    monkeypatch.chdir(tmp_path)
    process = processes.begin(run, 1)
    try:
        assert process.wait() == 2
    finally:
        process.kill()
        process.wait()
    monkeypatch.setenv("MKL_NUM_THREADS", "16")
    given = {}
    monkeypatch.setattr(processes.subprocess, "Popen", lambda command, **options: given.update(options["env"]))
    processes.begin(run, 3)
    assert (given["OMP_NUM_THREADS"], given["MKL_NUM_THREADS"]) == ("3", "3")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_stopped_while_it_opens_its_data_has_not_failed(number, tmp_path):
    assert processes.end(RunDirectory(tmp_path), -number) == ("stopped", "")
    assert not (tmp_path / "failed.json").exists()


def test_a_run_whose_machine_is_shut_down_is_made_elsewhere(tmp_path, monkeypatch):
    answers = [("stopped", ""), ("done", "")]
    fake = SimpleNamespace(
        get=lambda reference: answers.pop(0),
        wait=lambda references, timeout: (references[:1], references[1:]),
        exceptions=SimpleNamespace(TaskCancelledError=KeyError, RayTaskError=KeyError, RayError=KeyError),
    )
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(cluster, "_NOTICE", 0)
    monkeypatch.setattr(cluster, "POLL_SECONDS", 0.01)
    (job,) = lay_out(tmp_path, plan_of(tiny(), methods=("sn",), seeds=[0]))
    task = SimpleNamespace(remote=lambda *arguments: object())
    cluster._Submissions(task, 1, [job]).execute(lambda: False, lambda: None)
    assert (job.state, job.lost, answers) == ("done", 1, [])


def test_cells_are_chosen_by_names_and_globs_in_their_own_order():
    chosen = choose(PRESETS["paper"].cells, ["C*", "A16-128", "B?-64"])
    assert [cell.name for cell in chosen] == ["A16-128", "B8-64", "C8-32", "C16-32", "C32-32", "C64-32", "C128-32"]
    with pytest.raises(ValueError, match=r"no cell is named 'F\*': the cells are A16-128, A32-128"):
        choose(PRESETS["paper"].cells, ["A16-128", "F*"])


def test_the_cost_is_what_one_counts_by_hand():
    ch, steps, batch = 4, 7, 3
    model = ModelConfig(d_channels=ch, g_channels=2, latent=5)
    training = TrainingConfig(steps=steps, batch_size=batch, d_steps=2, generator_batch=2)
    cell = Cell("c", replace(Settings(), model=model, training=training))
    block = 2 * ch * ch * 9  # two 3x3 convolutions of one pixel
    discriminator = 64 * 3 * ch * 9 + 64 * ch * ch * 9 + 16 * 3 * ch  # the first block; its shortcut is pooled first
    discriminator += 16 * block + 4 * ch * ch + 2 * 4 * block + ch
    generator = 5 * 2 * 16 + 64 * 2 * 2 * 9 * 2 + 16 * 2 * 2 + 64 * 2 * 3 * 9
    by_hand = steps * (2 * batch * (generator + 6 * discriminator) + 2 * batch * (3 * generator + 2 * discriminator))
    assert cost(cell).multiply_adds == by_hand
    relativistic = replace(cell.settings, training=replace(training, loss="relativistic-r1r2"))
    more = steps * 2 * batch * 2 * discriminator  # as many real images, forward and back to the inputs
    assert cost(replace(cell, settings=relativistic)).multiply_adds == by_hand + more
    assert cost(cell).real_images == 7 * 2 * 3
    first, rest = 3 * ch * 9 + ch + ch * ch * 9 + ch + 3 * ch + ch, block + 2 * ch
    assert cost(cell).d_parameters == first + (rest + ch * ch + ch) + 2 * rest + ch


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["stacked-mnist", "--conditional"],
            "the network unrolled, chosen by --network or the preset, cannot be conditional: drop --conditional",
        ),
        (
            ["paper", "--network", "mlp"],
            "the mlp makes points, and CIFAR-10 are images: --network resnet, dcgan or unrolled",
        ),
    ],
)
def test_a_dry_run_refuses_what_the_sweep_would(given, said, capsys):
    assert main(["sweep", "--dry-run", "--preset", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_dry_run_takes_the_classes_of_the_data_that_are_named(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    named = ["--preset", "paper-cpu", "--conditional", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["sweep", "--dry-run", *named]) == 0
    assert "C8-32" in capsys.readouterr().out


def test_a_dry_run_lists_cells_and_cost_with_the_deviations_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["sweep", "--preset", "paper", "--dry-run", "--steps", "100", "--cells", "A16-128", "E*"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert max(map(len, printed.splitlines())) <= 80
    rows = re.findall(r"^([A-E]\d+-\d+) +sn static dynamic .* 0/3$", printed, flags=re.M)
    assert rows == ["A16-128", "E16-128", "E64-128", "E256-128", "E256-64", "E256-32"]
    said = " ".join(printed.split())
    assert "- batches are drawn with replacement; the authors shuffle epochs" in said
    assert "6 cells, 18 runs" in said
    assert (
        "Changed from the preset in A16-128, E16-128, E64-128, E256-128, E256-64, E256-32: steps 50000 -> 100." in said
    )


def test_a_comparison_says_what_it_costs_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--dry-run", "--methods", "sn", "static", "--seeds", "0", "1", "2", "--steps", "30"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert "1 cell, 6 runs, 39.1 G multiply-adds in all." in printed
    assert re.search(r"^runs sn static .* 0/6$", printed, flags=re.M)


def test_a_dry_run_in_a_folder_counts_steps_and_refuses_what_does_not_fit(tmp_path, capsys):
    settings = Settings()
    lay_out(tmp_path, Plan("", [Cell(COMPARISON, settings, ("sn", "static"))], (0,)))
    run = RunDirectory(tmp_path / COMPARISON / "sn-seed0")
    run.write("result", {"fd": 1.0})
    run.checkpoint.touch()
    command, more = ["compare", "--dry-run", "--out", str(tmp_path)], str(settings.training.steps + 1)
    for given, done in (([], "1/2"), (["--steps", more], "0/2")):
        assert main([*command, "--methods", "sn", "static", "--seeds", "0", *given]) == 0
        assert re.search(rf"^runs sn static .* {done}$", capsys.readouterr().out, flags=re.M)
    for given, said in ((["--steps", more], "holds static-seed0, too"), (["--batch-size", "8"], "other settings")):
        assert main([*command, "--methods", "sn", "--seeds", "0", *given]) == 2
        assert said in capsys.readouterr().err


def test_overrides_change_every_cell_and_data_are_no_change():
    (cell,) = choose(PRESETS["paper"].cells, ["C8-32"])
    settings = cell.settings
    given = replace(settings, data=replace(settings.data, data="a.zip"), model=replace(settings.model, g_channels=8))
    assert cell.changed_to(given) == replace(cell, settings=given, changes=("g_channels 256 -> 8",))
    (shipped,) = PRESETS["digits"].cells
    other = replace(Settings(), data=DataConfig(data="a.zip"))
    assert shipped.changed_to(other).changes == ("data 'digits' -> 'a.zip'",)


def given_to(settings, *options):
    """Return a cell's settings with the options of a command line."""
    return parse(Sweep(settings=settings), ["--preset", "paper", *options]).settings


def test_an_option_replaces_the_presets_value_even_by_the_default():
    (cell,) = choose(PRESETS["paper"].cells, ["C8-32"])
    steps, narrow = Settings().training.steps, ("--detector.window", "7")
    assert steps != cell.settings.training.steps
    result = given_to(cell.settings, "--steps", str(steps), "--no-tensorboard", "--d-lr=0.5", "--seeds", "3")
    assert result.training == replace(cell.settings.training, steps=steps, d_lr=0.5)
    assert result.records == replace(cell.settings.records, tensorboard=False)
    assert (result.data, result.model) == (cell.settings.data, cell.settings.model)
    assert given_to(cell.settings, *narrow).detector == replace(cell.settings.detector, window=7)
    assert given_to(cell.settings, *narrow).methods == cell.settings.methods


def test_every_option_of_every_method_replaces_the_presets_value():
    (cell,) = choose(PRESETS["paper"].cells, ["C8-32"])
    changed = {int: 3, float: 0.25}
    words = {"scale": "hold", "scheme": "dynamic", "evidence": "coverage"}
    for key, options in vars(Settings().methods).items():
        for field in dataclasses.fields(options):
            option, value = f"--{key}.{field.name}".replace("_", "-"), words.get(field.name)
            if isinstance(getattr(options, field.name), bool):
                typed, value = [option], True
            else:
                value = value or changed[type(getattr(options, field.name))]
                typed = [option, str(value)]
            expected = replace(getattr(cell.settings.methods, key), **{field.name: value})
            methods = replace(cell.settings.methods, **{key: expected})
            assert given_to(cell.settings, *typed) == replace(cell.settings, methods=methods)


def test_a_comparison_is_a_sweep_of_one_cell_and_no_preset(tmp_path):
    plan = Plan("", [replace(tiny()[0], name=COMPARISON, methods=("sn",))], (0, 1))
    jobs = lay_out(tmp_path, plan)
    assert [str(job.run.path.relative_to(tmp_path)) for job in jobs] == ["runs/sn-seed0", "runs/sn-seed1"]
    assert saved_settings(tmp_path) == tiny()[0].settings
    assert saved_settings(tmp_path / "elsewhere") is None
    with pytest.raises(ValueError, match="holds a comparison: choose another folder"):
        lay_out(tmp_path, plan_of(tiny()))


SWEEP = ["sweep", "--out", "out", "--preset"]


def test_ray_is_asked_for_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("specreg.cli.find_spec", lambda name: None if name == "ray" else find_spec(name))
    monkeypatch.chdir(tmp_path)
    assert main([*SWEEP, "digits", "--ray"]) == 2
    assert "pip install '.[cluster]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("allowed", "parallel", "threads"), [(8, 2, 4), (8, 3, 2), (1, 2, 1), (3, 1, 3), (8, 20, 1)])
def test_jobs_share_the_cores_and_have_no_more_threads_than_are_allowed(monkeypatch, allowed, parallel, threads):
    monkeypatch.setattr("specreg.experiments.jobs._cores", lambda: 8)
    monkeypatch.setattr(processes.torch, "get_num_threads", lambda: allowed)
    assert threads_of_each(parallel) == threads


def test_fewer_runs_than_cores_share_them_all(tmp_path, monkeypatch):
    monkeypatch.setattr("specreg.experiments.jobs._cores", lambda: 8)
    monkeypatch.setattr("specreg.experiments.jobs.torch.get_num_threads", lambda: 8)
    begun = []
    monkeypatch.setattr("specreg.experiments.jobs.begin", lambda run, threads: begun.append(threads) or Mock())
    monkeypatch.setattr("specreg.experiments.jobs.end", lambda run, code: ("done", ""))
    jobs = lay_out(tmp_path, plan_of(tiny()))
    execute_all(jobs, None)
    assert begun == [8 // len(jobs)] * len(jobs)


@pytest.mark.parametrize(("number", "is_taken"), [(signal.SIGHUP, False), (signal.SIGINT, True)])
def test_what_nohup_ignores_stays_ignored(number, is_taken):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible() as interrupted:
            signal.raise_signal(number)
            assert interrupted() is is_taken
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("on_gpu", "at_a_time"), [(False, 2), (True, 1)])
def test_as_many_runs_at_a_time_as_cores_or_one_on_a_gpu_that_they_train_on(on_gpu, at_a_time, tmp_path, monkeypatch):
    fake_runs(monkeypatch, "open(__import__('sys').argv[1] + '/result.json', 'w').write('{}')")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5}, raising=False)
    monkeypatch.setattr(processes.torch.accelerator, "is_available", lambda: True)  # as of a Mac
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: on_gpu)
    jobs, running = lay_out(tmp_path, plan_of(tiny(), seeds=(0, 1))), []
    execute_all(jobs, None, lambda: running.append(sum(job.state == "running" for job in jobs)))
    assert len(jobs) == 4
    assert max(running) == at_a_time


def test_runs_have_deterministic_names_and_what_is_done_or_failed_is_passed_over(tmp_path):
    jobs = lay_out(tmp_path, plan_of(tiny(), seeds=(0, 3)))
    assert [job.name for job in jobs] == [f"tiny/{name}" for name in
                                         ("sn-seed0", "static-seed0", "sn-seed3", "static-seed3")]  # fmt: skip
    assert [str(job.run.path) for job in jobs] == [str(tmp_path / job.name) for job in jobs]
    jobs[0].run.write("result", {"method": "sn"})
    jobs[1].run.write("failed", {"error": "no memory"})
    again = lay_out(tmp_path, plan_of(tiny(), seeds=(0, 3)))
    assert [job.state for job in again] == ["done", "failed", "waiting", "waiting"]
    assert again[1].error.startswith("no memory")
    assert [job.state for job in lay_out(tmp_path, plan_of(tiny(), seeds=(0,)), retry=True)] == ["done", "waiting"]


def test_sweeps_of_one_preset_into_one_folder_add_up(tmp_path):
    (first,) = tiny()
    lay_out(tmp_path, plan_of([first]))
    other = replace(first, name="other").changed_to(replace(first.settings, precision="bf16"))
    lay_out(tmp_path, plan_of([other], seeds=(1,)))
    lay_out(tmp_path, plan_of([first], seeds=(0, 1)))
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert {name: cell["runs"] for name, cell in saved["cells"].items()} == {
        "tiny": ["sn-seed0", "static-seed0", "sn-seed1", "static-seed1"],
        "other": ["sn-seed1", "static-seed1"],
    }
    assert saved["cells"]["other"]["changes"] == ["precision 'float32' -> 'bf16'"]
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds tiny with other settings \(.*4.*3"):
        lay_out(tmp_path, plan_of(tiny(3)))
    with pytest.raises(ValueError, match="holds sn-seed1, static-seed1, too, to be compared after as many steps"):
        lay_out(tmp_path, plan_of(tiny(5)))
    with pytest.raises(ValueError, match="holds a sweep of the preset 'test'"):
        lay_out(tmp_path, plan_of([first], preset="digits"))
    assert (tmp_path / "sweep.json").read_bytes() == before


LAUNCH = subprocess.Popen


def fake_runs(monkeypatch, script: str) -> None:
    """Let every run be a moment of Python instead of a training."""

    def popen(command, **options):
        return LAUNCH([sys.executable, "-S", "-c", script, command[-1]], **options)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.02)


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path, monkeypatch):
    fake_runs(monkeypatch, "import os, signal, sys\nout = sys.argv[1]\nprint('first')\n"
                           "if 'sn-seed0' in out: sys.exit('the last line')\n"
                           "if 'sn-seed1' in out: os.kill(os.getpid(), signal.SIGKILL)\n"
                           "open(out + '/result.json', 'w').write('{}')")  # fmt: skip
    jobs = lay_out(tmp_path, plan_of(tiny(), seeds=(0, 1)))
    execute_all(jobs, 2)
    assert [job.state for job in jobs] == ["failed", "done", "failed", "done"]
    assert jobs[0].run.read("failed") == {"error": "the last line"}
    assert jobs[2].run.read("failed") == {"error": "killed by SIGKILL"}
    assert jobs[1].run.read("failed") is None


def test_a_signal_without_a_name_is_said_by_its_number(tmp_path):
    assert end(RunDirectory(tmp_path), -(signal.SIGRTMIN + 1)) == ("failed", f"killed by signal {signal.SIGRTMIN + 1}")


def test_a_run_that_another_process_writes_is_waited_for_and_not_made_again(tmp_path, monkeypatch):
    fake_runs(monkeypatch, "raise SystemExit('began')")
    (job,) = lay_out(tmp_path, plan_of([replace(tiny()[0], methods=("sn",))]))
    with job.run.lock():
        assert end(job.run, 2) == ("waiting", "")
        assert not (job.run.path / "failed.json").exists()
        execute_all([job], 1, lambda: job.run.write("result", {}))
    assert (job.state, job.error) == ("done", "")
    assert not (job.run.path / "log.txt").exists()


def test_an_error_while_watching_leaves_no_process_behind(tmp_path, monkeypatch):
    fake_runs(monkeypatch, "import time; time.sleep(600)")
    (job,) = lay_out(tmp_path, plan_of([replace(tiny()[0], methods=("sn",))]))

    def watch():
        raise ValueError("cannot draw")

    with pytest.raises(ValueError, match="cannot draw"):
        execute_all([job], 1, watch)
    assert job.process.poll() is not None


def test_when_the_time_is_up_the_runs_are_interrupted_and_the_rest_waits(tmp_path, monkeypatch):
    fake_runs(monkeypatch, "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
                           "time.sleep(600)")  # fmt: skip
    jobs = lay_out(tmp_path, plan_of(tiny()))
    began = time.monotonic()
    execute_all(jobs, 1, minutes=0.5 / 60)
    assert time.monotonic() - began >= 0.5
    assert [job.state for job in jobs] == ["stopped", "waiting"]
    assert jobs[0].run.read("failed") is None


def test_a_failed_run_that_is_made_by_hand_has_not_failed_any_more(tmp_path):
    (cell,) = tiny(1)
    lay_out(tmp_path, plan_of([cell], methods=("sn",)))[0].run.write("failed", {"error": "no memory"})
    assert main(["train", "--quiet", "--out", str(tmp_path / "tiny" / "sn-seed0")]) == 0
    assert [job.state for job in lay_out(tmp_path, plan_of(tiny(2), methods=("sn",)))] == ["waiting"]


def test_the_command_reports_failures_passes_them_over_and_tries_again_when_told(tmp_path, monkeypatch, capsys):
    fake_runs(monkeypatch, "import sys\nif 'static' in sys.argv[1]: sys.exit('no memory')\n"
                           "open(sys.argv[1] + '/result.json', 'w').write('{\"fd\": 2.5}')")  # fmt: skip
    out = tmp_path / "out"
    command = ["sweep", "--preset", "digits", "--out", str(out), "--methods", "sn,static", "--steps", "7"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "specreg: digits/static-seed0 failed: no memory\n" in printed.err
    assert "2 runs: 1 done, 1 failed" in printed.err
    assert re.search(r"FD ↓ +2.50 +-", printed.out)
    assert f"specreg report {out}" in printed.out
    assert [row["fd"] for row in json.loads((out / "results.json").read_text())] == [2.5]
    assert json.loads((out / "digits" / "sn-seed0" / "config.json").read_text())["settings"]["training"]["steps"] == 7
    fake_runs(monkeypatch, "import sys\nopen(sys.argv[1] + '/result.json', 'w').write('{}')")
    assert main(command) == 1
    assert "failed: no memory (--retry tries it again)" in capsys.readouterr().err
    assert main([*command, "--retry"]) == 0
    assert not (out / "digits" / "static-seed0" / "failed.json").exists()


def test_runs_that_are_there_already_but_were_planned_by_nobody_are_in_the_results(tmp_path, monkeypatch, capsys):
    fake_runs(monkeypatch, "import sys\nopen(sys.argv[1] + '/result.json', 'w').write('{\"fd\": 2.5}')")
    out = tmp_path / "out"
    for methods in (["sn", "static"], ["sn"], ["sn", "static"]):
        assert main(["compare", "--out", str(out), "--methods", *methods]) == 0
        assert len(json.loads((out / "results.json").read_text())) == len(methods)
        if methods == ["sn", "static"]:
            (out / "sweep.json").unlink()  # as the message about a damaged one says


def test_the_live_table_fits_80_columns(tmp_path):
    jobs = lay_out(tmp_path, plan_of([replace(tiny()[0], name="A1024-128")], methods=("dynamic",), seeds=range(20)))
    for job in jobs:
        job.state = "running"
        job.run.append("metrics", {"step": 50000, "d_loss": 1.0})
        job.run.append("evaluations", {"step": 50000, "modes": 1000, "kl": 1.25, "fd": 123.45} | {"lost": 0.98})
        job.run.append("verdicts", {"step": 50000, "state": "collapsing"})
    jobs[0].state, jobs[0].error = "failed", "a long line " * 20
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(_progress(jobs))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "20 runs: 19 running, 1 failed"
    assert "".join(lines[2:4]).startswith("A1024-128/dynamic-seed1")
    assert lines[1].split() == ["run", "step", "modes", "KL", "FD", "lost", "verdict"]
    assert lines[2].split()[1:] == ["50000/4", "1000", "1.25", "123.45", "0.98", "collapsing"]
    assert "18.…" not in "".join(lines)
    jobs[1].state = "stopped"
    console.print(_progress(jobs[:12]))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[-1] for line in lines[2:5]] == ["failed", "stopped", "collapsing"]
    assert lines[-1].startswith("A1024-128/dynamic-seed0: a long line")
    assert len(lines) < 20


def test_a_runs_metrics_end_with_the_three_answers(capsys):
    answers = {"spectra": "steady", "coverage": "lost", "signal": "teaching"}
    metrics({"coverage": 0.25, "missing": 0.5, "verdict": "lost", "answers": answers})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["coverage", "0.25"], ["missing", "0.5"], ["verdict", "lost"]]
    assert lines[3:] == [["verdict,", question, state] for question, state in answers.items()]


def test_two_processes_never_write_one_run(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.holder() is None
    holding = "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n" \
              "from specreg.records import RunDirectory\n" \
              "with RunDirectory(sys.argv[1]).lock(): print('held', flush=True); time.sleep(600)"  # fmt: skip
    source = str(Path(processes.__file__).parents[2])
    command = [sys.executable, "-c", holding, str(tmp_path), source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert run.holder() == f"process {process.pid} on {os.uname().nodename}"
        with pytest.raises(ValueError, match=f"is being written by process {process.pid} on ") as refused, run.lock():
            pass
        assert "\n" not in str(refused.value)
    finally:
        process.kill()
        process.communicate()
    assert run.holder() is None  # a killed process leaves no lock behind
    with run.lock():
        assert run.holder() == f"process {os.getpid()} on {os.uname().nodename}"
    with open(tmp_path / "run.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_train_refuses_a_run_that_is_being_written(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    with RunDirectory(out).lock():
        assert main(["train", "--quiet", "--out", str(out), "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"is being written by process {os.getpid()} on " in error
    assert not (out / "metrics.jsonl").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ValueError, match=r"run.lock cannot be locked \(.+\): check its permissions"):
        RunDirectory(tmp_path).lock().__enter__()


def test_files_are_written_where_modes_cannot_be_set(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
