"""The report in a real browser: every picture decodes, nothing runs, and a phone needs no sideways scrolling."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from runs import HOSTILE, Page, hostile_sweep, hostile_weights, make_run
from specreg.cli import main
from specreg.report.page import write_page
from specreg.report.runs import open_cells

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]
PHONE = 390  # CSS pixels; a frame, because a headless browser's window cannot be that narrow

# The report itself allows no scripts, so that another page looks into it.
PROBE = """<!doctype html><meta charset="utf-8"><title>probe</title>
<body style="margin: 0"><iframe id="report" style="width: {width}px; height: 800px; border: 0" srcdoc="{page}"></iframe>
<script>
const decodes = (image) => {{
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);  // throws where the image is broken
  return context.getImageData(0, 0, 1, 1).data[3] === 255;
}};
addEventListener("load", () => {{
  const page = document.getElementById("report").contentDocument;
  page.querySelectorAll("details").forEach((fold) => {{ fold.open = true; }});
  document.body.dataset.seen = JSON.stringify({{
    images: page.images.length,
    decoded: [...page.images].filter(decodes).length,
    height: page.documentElement.scrollHeight,
    width: page.documentElement.scrollWidth,
    clientWidth: page.documentElement.clientWidth,
    narrowest: Math.min(...[...page.querySelectorAll("tbody th")].map((cell) => cell.clientWidth)),
    scripts: page.scripts.length,
    hostile: page.querySelectorAll("#hostile, [onerror]").length,
    shown: page.body.innerText.includes('<b id="hostile">'),
    title: page.title,
  }});
}});
</script></body>"""


def dumped(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Open a page without a window; returns its elements as text and what was written to the console."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--enable-logging=stderr", "--v=0", "--window-size=1400,1000", f"--user-data-dir={profile}",
        "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, [line for line in finished.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    runs = [make_run(folder / "a", "static"), make_run(folder / "b", HOSTILE, name=HOSTILE, keep=HOSTILE)]
    write_page(folder / "report.html", open_cells(runs))
    return folder / "report.html"


def test_the_page_opens_without_a_word_on_the_console(report, tmp_path):
    elements, console = dumped(report, tmp_path / "profile")
    assert console == []
    assert "Collapsed since iteration 500" in elements
    assert "<title>Spectra of 2 runs</title>" in elements


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_pictures_decode_names_stay_text_and_the_page_fits_its_width(report, width, tmp_path):
    page = html.escape(report.read_text(encoding="utf-8"), quote=True)
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.format(width=width, page=page), encoding="utf-8")
    elements, console = dumped(probe, tmp_path / "profile")
    found = re.search(r'data-seen="([^"]*)"', elements)
    assert found, elements[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert console == []
    assert seen["decoded"] == seen["images"] > 15
    assert seen["scripts"] == seen["hostile"] == 0
    assert seen["shown"]
    assert seen["title"] == "Spectra of 2 runs"
    assert seen["clientWidth"] in range(width - 20, width + 1)  # less a scroll bar's width
    assert seen["width"] == seen["clientWidth"]
    assert seen["narrowest"] > 60  # a first column of single letters fits as well
    assert seen["height"] > 2000


def test_no_script_of_a_hostile_sweep_or_checkpoint_runs(tmp_path):
    assert main(["report", str(hostile_sweep(tmp_path / "sweep")), "--out", str(tmp_path / "page.html")]) == 0
    weights = hostile_weights(tmp_path / "a.safetensors")
    assert main(["inspect", weights, "--plot", str(tmp_path / "plot.svg")]) == 0
    for name in ("page.html", "plot.svg"):
        elements, console = dumped(tmp_path / name, tmp_path / f"profile of {name}")
        assert console == []  # nothing was blocked either: there was nothing to run
        seen = Page(elements).elements
        assert len(seen) > 50
        assert not {"script", "b"} & {tag for tag, _ in seen}
        assert not any("onerror" in attributes or attributes.get("id") == "hostile" for _, attributes in seen)
        assert "<title>hostile</title>" not in elements
    assert "<title>Sweep: " in (tmp_path / "page.html").read_text(encoding="utf-8")
