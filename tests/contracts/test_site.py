"""The documentation site: its tutorials run as they stand, every page is in it, every public name is in the API."""

import json
import re
import runpy
import shlex
import types
from pathlib import Path

import pytest
import torch
import yaml

import specreg
from specreg.cli import main
from trainings import forked_jobs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def follow(page: str) -> dict:
    """Run the cells of a page as a notebook, Python in one namespace and commands in this process; return that."""
    names: dict = {}
    notebook = runpy.run_path(str(ROOT / "scripts" / "notebooks.py"))["notebook"]
    cells = json.loads(json.dumps(notebook((DOCS / page).read_text(encoding="utf-8"))))["cells"]
    blocks = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    assert blocks
    for block in blocks:
        if not block.startswith("%%sh\n"):
            exec(compile(block, page, "exec"), names)
            continue
        for command in block.removeprefix("%%sh\n").replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(command)
            with forked_jobs():
                assert (program, main(arguments)) == ("specreg", 0), command
    return names


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["index.md", "extending.md", "monitor.md", "coverage.md"])
def test_pages_with_code_run(page, capsys):
    follow(page)
    printed = capsys.readouterr().out.splitlines()
    assert printed
    said = re.findall(r"^print\(.*\)  # (?!\d: )(.+)$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    compared = [line for line in said if "..." not in line]
    assert bool(compared) == (page in ("extending.md", "monitor.md"))
    assert [line for line in compared if line not in printed] == []


def test_sr_in_ones_own_loop():
    names = follow("tutorials/own-loop.md")
    assert names["compensator"].acted == 21
    assert names["compensator"].satisfied()
    assert float(names["ratios"][31]) > 0.999
    assert float(names["ratios"][-1]) < 0.9


def test_a_training_is_watched_and_gone_back_with(caplog):
    names = follow("tutorials/watch.md")
    assert 2000 < names["iteration"] < 3000
    assert names["verdict"].state == "lost"
    assert names["restored"] <= names["verdict"].coverage.since <= 2000
    assert [verdict.state for verdict in names["changes"]][-1] == "lost"
    forgotten = torch.cdist(names["missing"], names["centres"]).argmin(1)
    assert set(forgotten.tolist()) <= {4, 5, 6, 7}


def test_an_autopsy(folder, capsys):
    names = follow("tutorials/autopsy.md")
    assert names["collapsed"] == ["models.netD.conv2"]
    assert "collapsed" in capsys.readouterr().out
    assert (folder / "spectrum.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_methods_are_compared(folder):
    names = follow("tutorials/compare.md")
    assert [(run["method"], run["seed"]) for run in names["runs"]] == [("sn", 0), ("static", 0)]
    assert (folder / "report.html").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.usefixtures("unrendered")
def test_a_cell_is_reproduced(folder, capsys):
    follow("tutorials/reproduce.md")
    assert re.search(r"^static \d", capsys.readouterr().out, re.M)
    assert not (folder / "runs").exists()  # the dry run wrote nothing


def listed(entry) -> list[str]:
    """Return the pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in listed(each)]


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(listed(nav)) == sorted([*pages, "changelog.md"])


def test_every_public_name_is_in_the_api():
    pages = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    entries = re.findall(r"^::: specreg\.(\w+)$", pages, re.M)
    assert sorted({*entries} - {"losses"}) == sorted(specreg.__all__)


def test_docstrings_and_pages_become_what_mkdocs_reads():
    griffe, _ = pytest.importorskip("griffe"), pytest.importorskip("mkdocs")
    documentation = runpy.run_path(str(ROOT / "scripts" / "documentation.py"))
    text = "Do :math:`s_1`.\n\n.. math:: a\n    + b\n\nSee :func:`specreg.spectra`, :class:`~a.b.Kind`.\n\n"
    text += "Example:\n    >>> 1"
    function = griffe.Function("f", docstring=griffe.Docstring(text))
    documentation["Docstrings"]().on_instance(obj=function)
    assert function.docstring.value.splitlines() == [
        r"Do \(s_1\).", "", r"\[", "a", "    + b", r"\]", "",
        "See [`specreg.spectra`][specreg.spectra], `Kind`.", "", "Examples:", "    >>> 1",
    ]  # fmt: skip
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="results/x.md"))
    source = (
        "All:\n- [here](../math.md#layers), [`fast.py`](../../src/specreg/spectra/fast.py)\n- [there](../../LICENSE)\n"
    )
    read = documentation["on_page_markdown"]
    kept = "All:\n\n- [here](../math.md#layers), "
    assert read(source, page, types.SimpleNamespace(repo_url="")) == kept + "`fast.py`\n- there (`LICENSE`)"
    assert read(source, page, types.SimpleNamespace(repo_url="https://x/")) == (
        kept + "[`fast.py`](https://x/blob/main/src/specreg/spectra/fast.py)\n- [there](https://x/blob/main/LICENSE)"
    )
