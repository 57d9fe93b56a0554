"""What a release is: a wheel and an sdist that install into an empty environment and work there, typed."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import specreg

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, code: int = 0) -> str:
    """Run a command outside the repository, without its settings; return what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV", "PYTEST"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def build(sources: Path, kind: str, out: Path) -> Path:
    """Build a wheel or an sdist by the present setuptools: nothing is downloaded."""
    out.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    return out / run(sys.executable, "-c", code, out, cwd=sources).split()[-1]


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, Path]:
    """A wheel and an sdist of the sources, and a wheel of the sdist."""
    folder = tmp_path_factory.mktemp("release")
    sources = folder / "sources"
    shutil.copytree(ROOT / "src", sources / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    built = {kind: build(sources, kind, folder / kind) for kind in ("wheel", "sdist")}
    shutil.unpack_archive(built["sdist"], folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return built | {"again": build(unpacked, "wheel", folder / "again")}


def needed(requirements: list[str], extra: str, known: dict[str, Path]) -> dict[str, Path]:
    """Return what the requirements install, all of theirs included: name of a file or folder -> where it is here."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # for another platform
        tops = {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}
        if tops <= known.keys():
            continue
        known |= {top: Path(str(installed.locate_file(top))) for top in tops}
        needed(installed.requires or [], "", known)
    return known


def install(wheel: Path, extra: str, folder: Path) -> Path:
    """Install into a new environment that has what the wheel asks for, and nothing else; return its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        requirements = re.findall(r"^Requires-Dist: (.*)", archive.read(metadata).decode(), re.M)
    for name, path in needed(requirements, extra, {}).items():
        (packages / name).symlink_to(path)
    pip = ("-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", "--no-compile", wheel)
    run(sys.executable, *pip, cwd=folder)
    return python


@pytest.fixture(scope="module")
def core(archives, tmp_path_factory) -> Path:
    return install(archives["wheel"], "", tmp_path_factory.mktemp("core") / "venv")


def test_an_sdist_makes_the_same_wheel(archives):
    names = [sorted(zipfile.ZipFile(archives[kind]).namelist()) for kind in ("wheel", "again")]
    assert names[0] == names[1]
    files = (
        path for path in (ROOT / "src" / "specreg").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    )
    assert {path.relative_to(ROOT / "src").as_posix() for path in files} <= set(names[0])
    assert archives["wheel"].name == f"specreg-{specreg.__version__}-py3-none-any.whl"


def test_the_version_is_the_changelogs_and_the_citations():
    assert re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == specreg.__version__
    assert f"\nversion: {specreg.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_core_works_without_the_lab(core, tmp_path):
    assert run(core.parent / "specreg", "--version", cwd=tmp_path) == f"specreg {specreg.__version__}\n"
    code = (
        "import importlib.util, torch, specreg, specreg.monitor.writers\n"
        "layer = torch.nn.Linear(4, 4)\n"
        "print(specreg.static_compensation(layer).step(), specreg.__file__)\n"
        "print([name for name in ('rich', 'tyro', 'PIL', 'sklearn', 'specreg.cli') if importlib.util.find_spec(name)])"
    )
    first, second = run(core, "-c", code, cwd=tmp_path).splitlines()
    assert first.startswith(f"True {core.parents[1]}")
    assert second == "['specreg.cli']"


def test_a_checkpoint_is_inspected_with_the_lab(archives, tmp_path):
    python = install(archives["again"], "lab", tmp_path / "venv")
    torch.save({"conv.weight": torch.randn(8, 4, 3, 3), "last.weight": torch.eye(4)}, tmp_path / "model.pt")
    printed = run(python.parent / "specreg", "inspect", "model.pt", "--json", cwd=tmp_path)
    assert re.search(r'"matrix": \[\s*8,\s*36\s*\]', printed)


def test_types_are_seen_outside(core, tmp_path):
    (tmp_path / "user.py").write_text(
        "import specreg\ndef judge(verdict: specreg.Verdict) -> str:\n    return verdict.since\n"  # int | None
    )
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n[mypy-torch.*,numpy.*]\nfollow_imports = skip\n")
    options = ("--python-executable", core, "--cache-dir", tmp_path / "cache", "user.py")
    printed = run(sys.executable, "-m", "mypy", *options, cwd=tmp_path, code=1)
    (line,) = (line for line in printed.splitlines() if "error" in line and "Found" not in line)
    assert line.startswith("user.py:3: error: Incompatible return value type")
