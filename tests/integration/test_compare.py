"""specreg compare from the command line to the files that it promises."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

TINY = [
    "--steps", "6", "--d-channels", "4", "--g-channels", "4", "--latent", "8", "--batch-size", "4", "--d-steps", "1",
    "--log-every", "1", "--spectra-every", "2", "--evaluate-every", "3", "--checkpoint-every", "3",
    "--samples", "64", "--reference", "128",
]  # fmt: skip
KEYS = [
    "method", "seed", "steps", "modes", "kl", "fd", "kid", "precision", "recall", "density", "coverage", "seconds",
    "config",
]  # fmt: skip


def compare(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "specreg", "compare", "--out", str(out), *options],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("compare") / "out"
    finished = compare(out, "--methods", "sn", "static", "--seeds", "0,3", *TINY)
    assert finished.returncode == 0, finished.stderr
    return out, finished.stdout


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
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
            assert len(picture.convert("L").resize((50, 50)).getcolors(256) or []) > 5  # not blank
    assert "SN" in printed
    assert "static SR" in printed
    assert "±" in printed
    assert (out / "table.md").read_text().startswith("| method | seeds | modes ↑ |")


@pytest.mark.slow
def test_what_is_done_is_skipped_and_more_can_be_asked_for(done):
    out, _ = done
    stamps = {run: (run / "result.json").stat().st_mtime_ns for run in (out / "runs").iterdir()}
    finished = compare(out, "--methods", "sn", "static", "dynamic", "--seeds", "0")  # settings are the folder's own
    assert finished.returncode == 0, finished.stderr
    assert "the record would be there after 2000 discriminator steps, the run has 6" in finished.stderr
    # What the folder held before is still in its results.
    rows = [(row["method"], row["seed"]) for row in json.loads((out / "results.json").read_text())]
    assert rows == [("sn", 0), ("sn", 3), ("static", 0), ("static", 3), ("dynamic", 0)]
    assert (out / "table.md").read_text().count("\n| ") == 4
    assert re.search(r"^seeds +2 +2 +1 *$", finished.stdout, flags=re.M)
    assert all((run / "result.json").stat().st_mtime_ns == stamp for run, stamp in stamps.items())


@pytest.mark.slow
def test_other_settings_are_refused(done):
    out, _ = done
    before = (out / "results.json").read_bytes()
    finished = compare(out, "--batch-size", "8")
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert "batch_size 4 -> 8" in finished.stderr
    assert (out / "results.json").read_bytes() == before


@pytest.mark.slow
def test_an_interrupt_leaves_resumable_runs(tmp_path):
    out = tmp_path / "out"
    options = [*TINY, "--methods", "static", "--checkpoint-every", "100000", "--no-tensorboard"]
    for option, value in (("--steps", "300"), ("--evaluate-every", "100"), ("--spectra-every", "100")):
        options[options.index(option) + 1] = value
    command = [sys.executable, "-m", "specreg", "compare", "--out", str(out), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    metrics = out / "runs" / "static-seed0" / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command again goes on" in errors
    assert (out / "runs" / "static-seed0" / "checkpoint.pt").exists()
    finished = compare(out, "--methods", "static")
    assert finished.returncode == 0, finished.stderr
    assert json.loads((out / "results.json").read_text())[0]["steps"] == 300


@pytest.mark.slow
def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path):
    out = tmp_path / "out"
    (out / "runs" / "sn-seed0").mkdir(parents=True)
    (out / "runs" / "sn-seed0" / "checkpoint.pt").write_bytes(b"torn")
    finished = compare(out, "--methods", "sn", "static", *TINY)
    assert finished.returncode == 1
    assert "sn-seed0 failed: specreg: error: " in finished.stderr
    assert "is not a readable checkpoint" in finished.stderr
    assert [r["method"] for r in json.loads((out / "results.json").read_text())] == ["static"]


@pytest.mark.slow
@pytest.mark.skipif(os.cpu_count() == 1, reason="one core")
def test_train_on_a_folder_of_conditional_images(tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "data" / name / f"{index}.png")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "specreg", "train", "--quiet", "--out", str(out), "--data", str(tmp_path / "data")]
    subprocess.run([*command, "--conditional", "--precision", "bf16", *TINY], check=True)
    result = json.loads((out / "result.json").read_text())
    assert result["features"] == "pixels"
    assert result["modes"] is None
    sample = [sys.executable, "-m", "specreg", "sample", str(out), "--out", str(tmp_path / "s.png"), "--side", "3"]
    subprocess.run(sample, check=True)
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (3 * 17 * 4 + 4, 3 * 17 * 4 + 4)
    assert subprocess.run(sample, check=False, capture_output=True).returncode == 2  # not overwritten
    evaluate = [sys.executable, "-m", "specreg", "evaluate", str(out), "--json"]
    printed = subprocess.run(evaluate, check=True, capture_output=True, text=True).stdout
    again = json.loads(printed)
    assert again == {key: result[key] for key in again}
