"""No file from a stranger may run code: what the package must never call is looked for in its syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("src", "scripts", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
UNPICKLES = {
    # Its unpickler calls nothing at all: tests/contracts/test_hostile_files.py.
    ROOT / "src/specreg/pickles.py": ["imports pickle"],
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput"}


def violations(source: str) -> list[str]:
    """Return what a module does that it may not, with the line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{node.lineno}: imports {n}" for n in names if n.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in FORBIDDEN_CALLS or given.get("shell", "False") != "False":
                found.append(f"{node.lineno}: calls {name}")
            if name.endswith("torch.load") and given.get("weights_only") != "True":
                found.append(f"{node.lineno}: torch.load without weights_only=True")
            if given.get("allow_pickle", "False") != "False" or given.get("weights_only", "True") != "True":
                found.append(f"{node.lineno}: {name} may unpickle")
            if name.endswith("Image.open") and "formats" not in given:
                found.append(f"{node.lineno}: {name} asks every reader, Ghostscript's too")
            if name.endswith((".extract", ".extractall")):
                found.append(f"{node.lineno}: {name} writes files that an archive names")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_starts_a_shell(path):
    found = [violation.partition(": ")[2] for violation in violations(path.read_text(encoding="utf-8"))]
    assert found == UNPICKLES.get(path, [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "os.system('ls')",
        "eval('1')",
        "archive.extractall(folder)",
        "Image.open(path)",
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert len(violations(source)) >= 1
