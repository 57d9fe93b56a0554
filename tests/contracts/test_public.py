"""The public surface: names, signatures, documentation, light imports, the example, the README's commands."""

import doctest
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import specreg
from specreg.monitor.modes import ModeThresholds
from specreg.monitor.signal import _CONSTANT, _FAINT, _PATIENCE
from specreg.names import COVERED, SIGNALLED, SPECTRAL

ROOT = Path(__file__).parents[2]
SIGNATURES = {
    "spectral_norm": "(module, *, only=None, skip=None)",
    "static_compensation": ("(module, *, keep=0.5, every=5, start=0, scale='auto', only=None, skip=None)"),
    "dynamic_compensation": "(module, *, every=5, start=0, scale='auto', only=None, skip=None)",
    "spectral_regularization": "(module, *, keep=0.5, gradient='paper', only=None, skip=None)",
    "orthogonalize": "(module, *, iterations=3, only=None, skip=None)",
    "orthogonality_penalty": "(module, *, only=None, skip=None)",
    "d_optimal_penalty": "(module, *, only=None, skip=None)",
    "spectral_penalty": "(module, *, exponent=2, only=None, skip=None)",
    "register": "(module, weight='weight', *, output_dim=0, groups=1, gain=1.0)",
    "spectra": "(module, *, normalized=False, weight='stored', only=None, skip=None)",
    "remove": "(module)",
    "Monitor": (
        "(module, *, every=100, detector=None, actions=(), samples=None, samples_every=250, coverage=None, "
        "scores=None, groups=None, only=None, skip=None)"
    ),
    "Detector": "(thresholds=None)",
    "Guard": (
        "(monitor, *, states=('collapsing', 'collapsed', 'losing', 'never learnt', 'lost'), "
        "pin=None, every=10, keep=0.5, scale='auto', only=None, skip=None)"
    ),
    "History": "(limit=1000)",
    "attainment": "(module, *inputs, operator=False, only=None, skip=None)",
    "gradient_norms": "(discriminator, real, generated, *, generator=None)",
    "diversity": "(generated, real)",
    "Coverage": "(real, *, features=None, seed=0)",
}
RECORDS = ("Thresholds", "Verdict")
EXEMPLARY = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    for path in (ROOT / "src").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
)  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_published_ones(name):
    signature = inspect.signature(getattr(specreg, name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    stripped = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    assert str(stripped) == SIGNATURES[name]


def test_the_constants_of_the_verdicts_are_the_published_ones():
    # Their places are what writers write.
    assert SPECTRAL == ("not judged", "steady", "recovered", "collapsing", "collapsed")
    assert COVERED == ("not judged", "healthy", "recovered", "losing", "never learnt", "lost")
    assert SIGNALLED == ("teaching", "dead")
    assert asdict(specreg.Thresholds()) == {
        "warmup": 500, "window": 1000, "fast": 0.35, "together": 0.2, "long_window": 3000, "sustained": 0.4, "far": 0.5,
        "collapsed": 0.5, "regained": 0.4, "patience": 1, "smoothing": 3,
    }  # fmt: skip
    assert asdict(ModeThresholds()) == {
        "warmup": 500, "far": 0.5, "smoothing": 3, "losing": 0.25, "lost": 0.4, "regained": 0.6, "learnt": 0.65,
        "patience": 1000, "progress": 0.05,
    }  # fmt: skip
    assert (_FAINT, _CONSTANT, _PATIENCE) == (1e-3, 1e-5, 2)


def test_every_public_name_is_found_and_no_other():
    assert not {"sys", "torch"}.intersection(specreg.__all__)
    assert all(hasattr(specreg, name) for name in specreg.__all__)
    with pytest.raises(AttributeError, match="module 'specreg' has no attribute 'Monitr'"):
        specreg.Monitr  # noqa: B018


def test_every_public_name_is_documented():
    assert {*SIGNATURES, *RECORDS} == set(specreg.__all__)
    for name in specreg.__all__:
        documentation = inspect.getdoc(getattr(specreg, name))
        assert documentation is not None
        sections = ("Args:",) if name == "register" else ("Args:", "Returns:")
        if isinstance(getattr(specreg, name), type):
            sections = ("Attributes:",) if name in RECORDS else ("Args:",)
        for section in (*sections, "Example:", ">>> "):
            assert section in documentation, (name, section)


@pytest.mark.parametrize("module", EXEMPLARY)
def test_examples_in_docstrings_run(module):
    failures, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failures == 0


def test_the_library_imports_little_beyond_torch_and_no_network_the_compiler_and_a_package_hides_no_verb():
    """What an import costs is what it imports."""
    code = (
        "import sys, torch, numpy; seen = set(sys.modules); import specreg.spectra.gram, specreg.monitor.writers\n"
        "print(sorted({name.split('.')[0] for name in sys.modules.keys() - seen} - sys.stdlib_module_names))\n"
        "import specreg; print(specreg.spectra.__module__, specreg.monitor.actions.Pin.__name__)\n"
        "import specreg.models, specreg.models.resnet, specreg.models.dcgan; print('torch._dynamo' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "['specreg']\nspecreg.monitor.snapshot Pin\nFalse\n"


def test_the_readmes_library_lines_work():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_readme_is_short_and_its_commands_are_the_projects():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120
    targets = re.findall(r"^make (\w+)", readme, flags=re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, flags=re.M) for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_relative_links_in_the_documentation_lead_somewhere():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), (page.name, link)
