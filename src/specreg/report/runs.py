"""Runs as a report reads them: records checked once, cells of a sweep, labels, and which runs repeat each other."""

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from specreg.files import check_file, exists, read_json
from specreg.names import QUESTIONS, STATES, bulk_range, flat
from specreg.records import RunDirectory, no_run

OUTPUTS = ("training", "held_out", "generated")
# What a result says of its protocol in words.
DECLARED = ("protocol", "split", "features", "resizing", "library")
_WORDS = ("method", "config", "verdict", "answers", *DECLARED)  # what is no number in a result
_LARGEST = 1e100  # of a finite number; no loss or distance of single precision comes near, and sums stay finite
_COLOUR = re.compile("#[0-9a-f]{6}")
_LETTER = re.compile(r"^[A-Z](?=\d+-\d+$)")  # of the paper's settings
_Valid = Callable[[Any], bool]  # tells whether a value can be a field's
_MOST_NAMED = 2  # settings that a label names; beyond that it numbers them


class Look(NamedTuple):
    """How a method is called and drawn, by the run's own ``method.json``: a report knows no list of methods."""

    title: str  # in tables and figures
    colour: str = ""  # of its lines, #rrggbb; "" for any
    order: int = 10**6  # its place among the methods; the last where nothing is known of it


def _series(name: str) -> cached_property[list[dict[str, Any]]]:
    return cached_property(lambda run: run.directory.series(name, _FIELDS[name]))


class Run:
    """One run directory; every file is read and checked when it is first asked for."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        config = directory.read("config") or {}
        if not _has(method=_is(str), seed=_is(int), settings=_has(training=_has(steps=_integer)))(config):
            raise ValueError(f"{directory.path / 'config.json'} is not a run's configuration")
        self.method: str = config["method"]
        self.seed: int = config["seed"]
        self.settings = flat(config["settings"])
        self.look = _look(directory, self.method)
        self.group: str = self.look.title  # what it shares with its repetitions under other seeds
        self.label: str = f"{self.group}, seed {self.seed}"  # that no other run of the report has, by open_cells

    @cached_property
    def environment(self) -> dict[str, Any]:
        return flat(self.directory.read("environment") or {})

    @cached_property
    def result(self) -> dict[str, Any]:
        """The final evaluation and ``seconds``; empty while the run is not complete."""
        result = self.directory.read("result") or {}
        numbers = {key: value for key, value in result.items() if key not in _WORDS}
        named = isinstance(result.get("method", ""), str)
        if not named or not all(value is None or _number(value) for value in numbers.values()):
            raise ValueError(f"{self.directory.path / 'result.json'} is damaged: not a run's result; restore it")
        seconds = (self.directory.read("timing") or {}).get("seconds")
        return result | {"seconds": seconds if _number(seconds) else None} if result else {}

    spectra = _series("spectra")
    verdicts = _series("verdicts")
    outputs = _series("outputs")  # quantiles of the discriminator's scores of training, held-out and generated images
    events = _series("events")

    @cached_property
    def sensitivity(self) -> dict[str, dict[str, dict[int, float]]]:
        """Curves in groups: "attainment" by layer, "gradient_norms" and "diversity"."""
        records = self.directory.series("sensitivity", _FIELDS["sensitivity"], optional=True)
        return {group: _curves(records, group) for group in _FIELDS["sensitivity"]}

    @cached_property
    def curves(self) -> dict[str, dict[int, float]]:
        """Every number recorded during training: key -> step -> value; losses, metrics, diversity, overfitting."""
        recorded = [*self.directory.series("evaluations"), *self.directory.series("metrics")]
        return _curves(recorded) | self.sensitivity["diversity"] | _curves(self.outputs)

    @property
    def layers(self) -> list[str]:
        """The names of the layers whose spectra are recorded, in the network's order."""
        return list(self.spectra[0]["layers"]) if self.spectra else []

    @property
    def measured_layers(self) -> list[str]:
        """These and the layers without a spectrum of their own (r = 1) whose attainment is recorded."""
        return list(dict.fromkeys([*self.layers, *self.sensitivity["attainment"]]))

    @property
    def last_step(self) -> int:
        steps = [record["step"] for record in (*self.spectra[-1:], *self.verdicts[-1:])]
        return max([*steps, *(max(curve) for curve in self.curves.values())], default=0)

    def ratios(self, name: str) -> list[tuple[int, list[float]]]:
        """Return the steps and the curves s_k/s_1 of a layer."""
        spectra = ((record["step"], record["layers"].get(name)) for record in self.spectra)
        return [(step, ratios(values)) for step, values in spectra if values]

    def bulks(self, name: str) -> dict[int, float]:
        """Return the bulk of a layer by step, what the detector watches."""
        return {step: bulk(values) for step, values in self.ratios(name) if len(values) > 1}

    def picture(self, name: str) -> Image.Image | None:
        """Return the run's grid of "samples", its "data" or what is "missing", grey or in colours; None without one."""
        path = self.directory.image(name)
        if not path.exists():
            return None
        check_file(path)
        try:
            with (
                warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
                Image.open(path, formats=["PNG"]) as picture,  # of a stranger's file: no other reader is asked
            ):
                picture.load()
                return picture.convert(picture.mode if picture.mode in ("L", "RGB") else "RGB")
        except Exception as error:  # a damaged image makes its decoder fail anywhere
            raise ValueError(f"{path} is damaged: it is no picture; remove it or restore it") from error

    def read(self) -> None:
        """Read and check everything, for whoever writes files of it."""
        _ = self.environment, self.result, self.spectra, self.verdicts, self.events, self.curves


@dataclass
class Cell:
    """One setting and its runs: a cell of a preset's sweep, or comparisons and run directories taken together."""

    name: str
    preset: str = ""  # that the sweep is of, "" outside one
    changes: list[str] = field(default_factory=list)  # in what its settings differ from the preset's
    settings: dict[str, Any] = field(default_factory=dict)  # what its runs have in common
    planned: list[RunDirectory] = field(default_factory=list)  # the directories of its runs
    folder: Path = Path()  # of the sweep
    label: str = ""  # a name that no other cell of the report has
    runs: list[Run] = field(default_factory=list)  # those that have begun, in the order of the methods, with labels
    # Left out because another one is the same training, told by its scores.
    copies: list[Run] = field(default_factory=list)

    @property
    def published(self) -> dict[str, Any]:
        """What a paper says of this setting, by score and method; empty where none does."""
        return published(self.preset).get("cells", {}).get(self.name, {})


@cache
def published(preset: str) -> dict[str, Any]:
    """Return what a paper published of a preset: its source and cells; empty where there is none."""
    presets = json.loads(files(__package__).joinpath("published.json").read_text(encoding="utf-8"))
    return presets.get(preset, {})


def open_cells(paths: Iterable[str | Path]) -> list[Cell]:
    """Open run directories, folders of runs, comparisons and sweeps.

    Returns:
        One cell for all runs of no preset, then those of presets by name; with labels set.
    """
    cells, loose = [], Cell("runs")
    for path in {os.path.realpath(path): Path(path) for path in paths}.values():
        if exists(path / "sweep.json"):
            swept = _planned_cells(path)
        else:
            swept = [Cell("", planned=[RunDirectory(directory) for directory in _run_directories(path)])]
        cells += [cell for cell in swept if cell.preset]
        loose.planned += [run for cell in swept if not cell.preset for run in cell.planned]
    loose.planned = list({run.path.resolve(): run for run in loose.planned}.values())
    cells += [loose] if loose.planned else []
    if not cells:
        raise ValueError("no run is planned in these folders: name one with runs")
    for cell in cells:
        begun = [Run(run) for run in cell.planned if exists(run.path / "config.json")]
        cell.copies = _copies(begun)
        copied = [run.directory for run in cell.copies]
        cell.planned = [run for run in cell.planned if run not in copied]
        begun = [run for run in begun if run not in cell.copies]
        cell.runs = _labelled(sorted(begun, key=lambda run: (run.look.order, run.seed)))
    changed = differing([run.settings for run in loose.runs])
    loose.settings = {key: value for run in loose.runs[:1] for key, value in run.settings.items() if key not in changed}
    for form in ("{cell}", "{cell} ({folder})", "{cell} ({path})"):  # the first that tells it from the others
        taken = Counter(cell.label for cell in cells)
        for cell in cells:
            if taken[cell.label] > 1 or not cell.label:
                cell.label = form.format(cell=cell.name, folder=cell.folder.absolute().name, path=cell.folder)
    for cell in cells if len(cells) > 1 else ():
        for run in cell.runs:
            run.label = f"{cell.label}: {run.label}"
    # Those of the paper by their letter, other presets' as they are.
    return sorted(cells, key=lambda cell: (cell.preset, _LETTER.findall(cell.name)))


def _planned_cells(folder: Path) -> list[Cell]:
    saved = read_json(folder / "sweep.json")
    cells = []
    try:
        preset = str(saved["preset"])
        for name, cell in saved["cells"].items():
            runs, changes = list(map(str, cell["runs"])), list(map(str, cell["changes"]))
            for part in (name, *runs):
                if part in ("", ".", "..") or "/" in part:
                    raise ValueError(f"{folder / 'sweep.json'} names {part!r:.60}, no folder of its own: restore it")
            planned = [RunDirectory(folder / name / run) for run in runs]
            cells.append(Cell(name, preset, changes, flat(cell["settings"]), planned, folder))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'sweep.json'} does not hold a sweep ({type(error).__name__}: {error}): restore it"
        ) from error
    return cells


def _run_directories(path: Path) -> list[Path]:
    """Return a run directory itself, or those in a folder of runs."""
    if exists(path / "config.json"):
        return [path]
    inside = sorted(path.glob("*/config.json")) or sorted((path / "runs").glob("*/config.json"))
    if not inside:
        raise ValueError(no_run(path, "is neither a run directory nor a comparison folder (no config.json, no runs)"))
    return [config.parent for config in inside]


def _copies(runs: Sequence[Run]) -> list[Run]:
    """Return the complete runs that are one before them: one seed and all scores alike, as a comparison's SN is in two.

    Counted twice they would make the spread of a mean too small.
    """
    first: dict[str, Run] = {}
    return [run for run in runs if run.result and first.setdefault(_scored(run), run) is not run]


def _scored(run: Run) -> str:
    """Return what a run was and came to, its folder and time left out."""
    scores = {key: value for key, value in run.result.items() if key not in ("config", "seconds")}
    return json.dumps([run.method, run.seed, _own_settings(run), scores])


def runs_of(cells: Iterable[Cell]) -> list[Run]:
    """Return all runs of some cells, in their order."""
    return [run for cell in cells for run in cell.runs]


def grouped(runs: Iterable[Run], attribute: str = "group") -> dict[str, list[Run]]:
    """Return the runs by group, or by another attribute, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(getattr(run, attribute), []).append(run)
    return groups


def differing(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that do not have one value everywhere, in their order."""
    keys = dict.fromkeys(key for row in values for key in row)
    return [key for key in keys if any(row.get(key) != values[0].get(key) for row in values)]


def ratios(values: Sequence[float]) -> list[float]:
    """Return s_k/s_1; zeros where the first is zero."""
    return [value / values[0] if values[0] else 0.0 for value in values]


def bulk(values: Sequence[float]) -> float:
    """Return the mean of ratios that the detector watches."""
    chosen = values[slice(*bulk_range(len(values)))]
    return sum(chosen) / len(chosen)


def _labelled(runs: Sequence[Run]) -> list[Run]:
    """Tell runs apart by the settings in which those of a method differ, then by folder; groups stay together."""
    for alike in grouped(runs, "method").values():
        keys = differing([_own_settings(run) for run in alike])
        kinds = [{key: run.settings.get(key) for key in keys} for run in alike]
        for run, kind in zip(alike, kinds, strict=True):
            named = "".join(f", {key.split('.')[-1]} {value}" for key, value in kind.items())
            run.group += named if len(keys) <= _MOST_NAMED else f", settings {kinds.index(kind) + 1}"
            run.label = f"{run.group}, seed {run.seed}"
    for alike in grouped(runs, "label").values():
        names = [run.directory.path.resolve().name for run in alike]
        for number, (run, name) in enumerate(zip(alike, names, strict=True), start=1):
            if len(alike) > 1:
                run.label += f" ({number}: {name if len(set(names)) == len(names) else run.directory.path})"
    return [run for alike in grouped(runs).values() for run in alike]


def _own_settings(run: Run) -> dict[str, Any]:
    """Return a run's settings without methods' options that are not its own."""
    own = f"methods.{run.method.replace('-', '_')}."
    return {key: value for key, value in run.settings.items() if not key.startswith("methods.") or key.startswith(own)}


def _curves(records: Iterable[Mapping[str, Any]], group: str = "") -> dict[str, dict[int, float]]:
    """Return the numbers of records, or of a group in them, as name -> step -> value."""
    curves: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in (record.get(group, {}) if group else record).items():
            if _number(value) and (group or name != "step"):
                curves.setdefault(name, {})[record["step"]] = value
    return curves


def _look(run: RunDirectory, method: str) -> Look:
    """Return how a run's method is called and drawn, by its bare name where the run does not say."""
    record: dict[str, Any] | None = run.read("method")
    if record is None:
        return Look(method)
    if not _has(title=_is(str), colour=_is(str), order=_integer)(record) or not _COLOUR.fullmatch(record["colour"]):
        raise ValueError(f"{run.path / 'method.json'} is damaged: not what a run says of its method; remove it")
    return Look(*(record[key] for key in Look._fields))


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST or (isinstance(value, float) and not math.isfinite(value))


def _integer(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _is(kind: type) -> _Valid:
    return lambda value: isinstance(value, kind)


def _list(valid: _Valid, *, at_least: int = 0) -> _Valid:
    return lambda value: isinstance(value, list) and len(value) >= at_least and all(map(valid, value))


def _by_name(valid: _Valid) -> _Valid:
    return lambda value: isinstance(value, dict) and all(map(valid, value.values()))


def _has(**fields: _Valid) -> _Valid:
    return lambda value: (
        isinstance(value, dict) and all(key in value and valid(value[key]) for key, valid in fields.items())
    )


# A verdict has these, and so has its answer to each question.
_ANSWER: dict[str, _Valid] = {
    "state": STATES.__contains__,
    "since": lambda value: value is None or _integer(value),
    "message": _is(str),
}
# What the fields of each series have to be.
_FIELDS: dict[str, dict[str, _Valid]] = {
    "spectra": {"layers": _by_name(_list(_number, at_least=1))},  # none where every layer has a single value
    "verdicts": {
        "iteration": _integer,
        **_ANSWER,
        "layers": _list(_is(str)),
        **dict.fromkeys(QUESTIONS, _has(**_ANSWER)),
        "evidence": _by_name(_has(before=_number, now=_number)),
    },
    "sensitivity": dict.fromkeys(("attainment", "gradient_norms", "diversity"), _by_name(_number)),
    "outputs": dict.fromkeys(OUTPUTS, _list(_number, at_least=2)),
    "events": {"event": _is(str)},
}
