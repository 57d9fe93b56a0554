"""Runs as a report reads them: records checked once, labels, and which runs are repetitions of each other."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from specreg.files import exists
from specreg.names import STATES
from specreg.records import RunDirectory
from specreg.report.methods import look
from specreg.report.tables import DECLARED

OUTPUTS = ("training", "held_out", "generated")
_WORDS = ("method", "config", "verdict", *DECLARED)  # what is no number in a result
_LARGEST = 1e100  # of a finite number; no loss or distance of single precision comes near, and sums stay finite
_MOST_NAMED = 2  # settings that a label names; beyond that it numbers them


class Run:
    """One run directory; every file is read and checked when it is first asked for.

    Attributes:
        look: how its method is called and drawn.
        label: a name that no other run of the report has, by :func:`open_runs`.
        group: what it shares with its repetitions under other seeds.

    Raises:
        ValueError: a file is damaged; names it.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        config = directory.read("config")
        if config is None:
            raise ValueError(f"{directory.path} holds no run (no config.json)")
        kinds = {"method": str, "seed": int, "settings": dict}
        if not all(isinstance(config.get(key), kinds[key]) for key in kinds):
            raise ValueError(f"{directory.path / 'config.json'} is not a run's configuration")
        self.method: str = config["method"]
        self.seed: int = config["seed"]
        self.settings = flat(config["settings"])
        self.look = look(directory, self.method)
        self.group: str = self.look.title
        self.label: str = f"{self.group}, seed {self.seed}"

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

    @cached_property
    def spectra(self) -> list[dict[str, Any]]:
        return self._series("spectra", {"layers": _spectra})

    @cached_property
    def verdicts(self) -> list[dict[str, Any]]:
        fields: dict[str, Callable[[Any], bool]] = {
            "iteration": _integer,
            "state": STATES.__contains__,
            "since": lambda value: value is None or _integer(value),
            "layers": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
            "message": lambda value: isinstance(value, str),
            "evidence": lambda value: isinstance(value, dict) and all(map(_is_evidence, value.values())),
        }
        return self._series("verdicts", fields)

    @cached_property
    def sensitivity(self) -> list[dict[str, Any]]:
        """Flat numbers in groups: "attainment" by layer, "gradient_norms" and "diversity"."""
        groups = ("attainment", "gradient_norms", "diversity")
        return [
            {key: {} for key in groups} | record
            for record in self._series("sensitivity", dict.fromkeys(groups, _numbers))
        ]

    @cached_property
    def outputs(self) -> list[dict[str, Any]]:
        """Quantiles of the discriminator's scores of training, held-out and generated images."""
        return self._series("outputs", dict.fromkeys(OUTPUTS, _quantiles))

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return self._series("events", {"event": lambda value: isinstance(value, str)})

    @cached_property
    def curves(self) -> dict[str, dict[int, float]]:
        """Every number recorded during training: key -> step -> value; losses, metrics, diversity, overfitting."""
        curves: dict[str, dict[int, float]] = {}
        diversity = [{"step": record["step"]} | record["diversity"] for record in self.sensitivity]
        for record in (*self._series("evaluations", {}), *self._series("metrics", {}), *diversity, *self.outputs):
            for key, value in record.items():
                if key != "step" and _number(value):
                    curves.setdefault(key, {})[record["step"]] = value
        return curves

    @property
    def layers(self) -> list[str]:
        """The names of the layers whose spectra are recorded, in the network's order."""
        return list(self.spectra[0]["layers"]) if self.spectra else []

    @property
    def measured_layers(self) -> list[str]:
        """These and the layers without a spectrum of their own (r = 1) whose attainment is recorded."""
        return list(dict.fromkeys([*self.layers, *(name for one in self.sensitivity for name in one["attainment"])]))

    @property
    def last_step(self) -> int:
        steps = [record["step"] for record in (*self.spectra[-1:], *self.verdicts[-1:])]
        return max([*steps, *(max(curve) for curve in self.curves.values())], default=0)

    def ratios(self, name: str) -> list[tuple[int, list[float]]]:
        """Return the steps and the curves s_k/s_1 of a layer."""
        known = ((record["step"], record["layers"].get(name)) for record in self.spectra)
        return [(step, ratios(values)) for step, values in known if values]

    def bulks(self, name: str) -> dict[int, float]:
        """Return the bulk of a layer by step, what the detector watches."""
        return {step: bulk(values) for step, values in self.ratios(name) if len(values) > 1}

    def read(self) -> None:
        """Read and check everything, for whoever writes files of it.

        Raises:
            ValueError: a file is damaged; names it.
        """
        _ = self.environment, self.result, self.spectra, self.verdicts, self.events, self.curves

    def _series(self, name: str, fields: Mapping[str, Callable[[Any], bool]]) -> list[dict[str, Any]]:
        """Read a series and check its fields; sensitivity's are optional, as what is measured depends on the run."""
        records = self.directory.series(name)
        for record in records:
            for key, valid in fields.items():
                if (key not in record and name != "sensitivity") or (key in record and not valid(record[key])):
                    path = self.directory.path / f"{name}.jsonl"
                    raise ValueError(
                        f"{path} is damaged: {key!r} at step {record['step']} is {record.get(key)!r:.60}; restore it"
                    )
        return records


def open_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Open run directories and the runs of comparison folders, ordered by method and seed, with labels set.

    Raises:
        ValueError: a path is neither, or a run's configuration is damaged.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        inside = []
        exists(path)  # a name that cannot be looked up is said to be one
        if not (path / "config.json").exists():  # a comparison's folder, or one setting of a sweep
            inside = sorted((path / "runs").glob("*/config.json")) or sorted(path.glob("*/config.json"))
        if not inside and not (path / "config.json").exists():
            raise ValueError(f"{path} is neither a run directory nor a comparison folder (no config.json, no runs)")
        for directory in [config.parent for config in inside] or [path]:
            found.setdefault(directory.resolve(), Run(RunDirectory(directory)))
    runs = sorted(found.values(), key=lambda run: (run.look.order, run.seed))
    _set_labels(runs)
    return [run for alike in grouped(runs).values() for run in alike]


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Return the runs by group, in their order."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    return groups


def differing(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that do not have one value everywhere, in their order."""
    keys = dict.fromkeys(key for one in values for key in one)
    return [key for key in keys if any(one.get(key) != values[0].get(key) for one in values)]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values in one mapping, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{key}.{inner}": one for inner, one in flat(value).items()}
        else:
            found[key] = value
    return found


def ratios(values: Sequence[float]) -> list[float]:
    """Return s_k/s_1; zeros where the first is zero."""
    return [value / values[0] if values[0] else 0.0 for value in values]


def bulk(values: Sequence[float]) -> float:
    """Return the mean of ratios over k = 2 to ceil(r/2), at least k = 2, as the detector does."""
    chosen = values[1 : max(2, math.ceil(len(values) / 2))]
    return sum(chosen) / len(chosen)


def _set_labels(runs: Sequence[Run]) -> None:
    """Tell runs apart: by the settings in which runs of one method differ, then by their folders."""
    for alike in _by(runs, lambda run: run.method):
        keys = differing([run.settings for run in alike])
        kinds = [{key: run.settings.get(key) for key in keys} for run in alike]
        for run, kind in zip(alike, kinds, strict=True):
            named = "".join(f", {key.split('.')[-1]} {value}" for key, value in kind.items())
            run.group += named if len(keys) <= _MOST_NAMED else f", settings {kinds.index(kind) + 1}"
            run.label = f"{run.group}, seed {run.seed}"
    for alike in _by(runs, lambda run: run.label):
        for number, run in enumerate(alike, start=1):
            if len(alike) > 1:
                run.label += f" ({number}: {run.directory.path.resolve().name})"


def _by(runs: Iterable[Run], key: Callable[[Run], str]) -> list[list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return list(found.values())


def _number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST or (isinstance(value, float) and not math.isfinite(value))


def _integer(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(_number(one) for one in value.values())


def _quantiles(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(_number, value))


def _spectra(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(one, list) and one and all(map(_number, one)) for one in value.values())
    )


def _is_evidence(value: Any) -> bool:
    return isinstance(value, dict) and _number(value.get("before")) and _number(value.get("now"))
