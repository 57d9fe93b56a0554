"""specreg compare from the command line to the files that it promises."""

import contextlib
import io
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from pictures import assert_drawn
from specreg.cli import main
from specreg.records import RunDirectory
from trainings import OPTIONS, Fork, forked_jobs, specreg, train, wait_for

TINY = [*OPTIONS, "--steps", "6", "--evaluate-every", "3", "--checkpoint-every", "3"]
KEYS = [
    "method", "seed", "steps", "modes", "kl", "fd", "kid", "precision", "recall", "density", "coverage", "seconds",
    "config",
]  # fmt: skip


def compare(out: Path, *options: str) -> tuple[int, str, str]:
    """Compare in this process, with forked runs; return the exit code and what was printed."""
    printed, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors), forked_jobs():
        code = main(["compare", "--out", str(out), *options])
    return code, printed.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("compare") / "out"
    code, printed, errors = compare(out, "--methods", "sn", "static", "--seeds", "0,3", *TINY)
    assert code == 0, errors
    return out, printed


@pytest.mark.slow
def test_results_hold_one_object_for_each_run(done):
    out, _ = done
    results = json.loads((out / "results.json").read_text())
    assert [(r["method"], r["seed"]) for r in results] == [("sn", 0), ("sn", 3), ("static", 0), ("static", 3)]
    for result in results:
        assert set(KEYS) <= set(result)
        assert result["steps"] == 6
        assert result["seconds"] > 0
        assert result["config"]["settings"]["training"]["batch_size"] == 4
    assert results[0]["fd"] != results[1]["fd"]


@pytest.mark.slow
def test_the_pictures_are_there_and_the_table_names_the_methods(done):
    out, printed = done
    for name in ("spectra.png", "layers.png", "methods.png", "scores.png", "outputs.png", "samples.png"):
        assert_drawn(out / name)
    assert "SN" in printed
    assert "static SR" in printed
    assert "±" in printed
    assert (out / "table.md").read_text(encoding="utf-8").startswith("| method | seeds | modes ↑ |")


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_what_is_done_is_skipped_and_more_can_be_asked_for(done, tmp_path):
    out = shutil.copytree(done[0], tmp_path / "out")
    stamps = {run: (run / "result.json").stat().st_mtime_ns for run in (out / "runs").iterdir()}
    code, printed, errors = compare(
        out, "--methods", "sn", "static", "dynamic", "--seeds", "0"
    )  # the folder's settings
    assert code == 0, errors
    # What the folder held before is still in its results.
    rows = [(row["method"], row["seed"]) for row in json.loads((out / "results.json").read_text())]
    assert rows == [("sn", 0), ("sn", 3), ("static", 0), ("static", 3), ("dynamic", 0)]
    assert (out / "table.md").read_text().count("\n| ") == 4
    assert re.search(r"^seeds +2 +2 +1 *$", printed, flags=re.M)
    assert all((run / "result.json").stat().st_mtime_ns == stamp for run, stamp in stamps.items())


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_an_interrupt_leaves_resumable_runs(tmp_path):
    """By processes: the command, and its run."""
    out = tmp_path / "out"
    run = RunDirectory(out / "runs" / "static-seed0")
    options = [*TINY, "--methods", "static", "--steps", "100000", "--evaluate-every", "0", "--no-tensorboard"]
    options += ["--checkpoint-every", "100000"]
    process = Fork(tmp_path / "printed", main, ["compare", "--out", str(out), *options])
    wait_for(process, run.path)
    process.send_signal(signal.SIGINT)
    code, printed = process.finish()
    assert code == 130
    assert "the same command again goes on" in printed
    step = run.series("metrics")[-1]["step"]
    assert torch.load(run.checkpoint, weights_only=True)["step"] == step
    # What is left of the training would take long; that a run goes on to the same end is in test_resume.py.
    config = run.read("config")
    config["settings"]["training"]["steps"] = step + 2
    plan = json.loads((out / "sweep.json").read_text())
    plan["cells"]["runs"]["settings"] = config["settings"]
    for path, content in ((run.path / "config.json", config), (out / "sweep.json", plan)):
        path.write_text(json.dumps(content))
    code, _, errors = compare(out, "--methods", "static")
    assert code == 0, errors
    assert json.loads((out / "results.json").read_text())[0]["steps"] == step + 2


@pytest.mark.slow
def test_train_on_a_folder_of_conditional_images(tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "data" / name / f"{index}.png")
    # In processes of their own: one process has one precision.
    out, picture, output = (tmp_path / name for name in ("run", "s.png", "printed"))
    assert train(out, "--data", str(tmp_path / "data"), "--conditional", "--precision", "bf16", *TINY)[0] == 0
    result = json.loads((out / "result.json").read_text())
    assert result["features"] == "pixels"
    assert result["modes"] is None
    sample = ["sample", out, "--out", picture, "--side", "3"]
    assert specreg(tmp_path / "sampled", *sample)[0] == 0
    with Image.open(picture) as image:
        assert image.size == (3 * 17 * 4 + 4, 3 * 17 * 4 + 4)
    code, printed = specreg(output, "evaluate", out, "--json")
    assert code == 0
    again = json.loads(printed)
    assert again == {key: result[key] for key in again}
